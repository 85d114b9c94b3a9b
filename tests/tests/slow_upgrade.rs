//! Upgrades and downgrades to other builds of the agent, under senders that never pause.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "faults/besieged.rs"]
mod besieged;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use gate25_tests::{Accounts, Build, Rounds, Trial, World};
use nix::sys::signal::Signal;

use besieged::{besieged, either};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn upgrade_to_other_programs_and_back_opens_nothing_and_loses_no_count() {
    let what = "upgrade to other programs, and back";
    upgraded(Build::OtherPrograms, what, Accounts::Host, Counters::GoOn);
}

#[test]
fn upgrade_to_other_tables_and_downgrade_open_nothing() {
    let what = "upgrade to another version of the tables, and downgrade";
    // Counters of a newer version are not taken over.
    let accounts = Accounts::AtMost;
    upgraded(Build::OtherTables, what, accounts, Counters::BeginAnew);
}

/// What a start of the older build makes of the newer one's counters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counters {
    GoOn,
    BeginAnew,
}

#[track_caller]
fn upgraded(other: Build, what: &str, accounts: Accounts, older: Counters) {
    let world = World::new().unwrap();
    let (mut meter, mut agent) = besieged(&world);
    let mut rounds = Rounds::of(50).unwrap();
    for round in rounds.by_ref() {
        let build = if round % 2 == 0 { other } else { Build::This };
        meter.phase(&format!("{build:?}, round {round}")).unwrap();
        let before = agent.metrics().unwrap();
        let attached = (round < 2).then(|| programs(&world));
        // As a package does it, and as somebody in a hurry.
        let signal = if round % 3 == 0 {
            Signal::SIGKILL
        } else {
            Signal::SIGTERM
        };
        agent.signal(signal).unwrap();
        agent.process().wait(LIMIT).unwrap();
        if round % 5 == 4 {
            let text = either(&world, round).text();
            agent.write_policy("policy.yaml", &text).unwrap();
        }
        agent.settings().build = build;
        agent.restart().unwrap();
        if let Some(attached) = attached {
            assert_ne!(programs(&world), attached, "{build:?} takes over as it is");
        }
        if build == other || older == Counters::GoOn {
            agent.metrics().unwrap().check_not_below(&before).unwrap();
        }
        meter.check().unwrap();
    }
    meter
        .judge(&agent, Trial::Fault, what, rounds.begun(), accounts)
        .unwrap();
}

/// The numbers of the programs that are pinned, by where.
#[track_caller]
fn programs(world: &World) -> BTreeMap<PathBuf, u64> {
    let mut objects = world.pinned_objects().unwrap();
    objects.retain(|path, _| path.to_string_lossy().contains("/programs/"));
    assert!(!objects.is_empty());
    objects
}
