//! Rules of nftables that somebody flushes or deletes.

use std::time::{Duration, Instant};

use gate25_tests::{
    Accounts, Agent, Link, May, Measured, Meter, PolicyText, Rounds, Settings, Trial, World, paced,
    poll,
};
use nix::sys::signal::Signal;

use super::scene::{LIMIT, besieged, check_tight, judge_guarded};

/// How soon rules are back, with something for a busy machine.
const SOON: Duration = Duration::from_secs(3);

/// Flushes the ruleset, or deletes the guard's tables, beside the programs.
#[track_caller]
pub(crate) fn flushed_beside_programs(times: u64) {
    let world = World::new().unwrap();
    let (mut meter, agent) = besieged(&world);
    let host = &world.hosting.hypervisor;
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter.phase(&format!("flushed, round {round}")).unwrap();
        wait_tables(&world, &agent, "gate25_guard", 2);
        let commands: &[&str] = match round % 2 {
            0 => &["flush ruleset"],
            _ => &[
                "delete table bridge gate25_guard",
                "delete table inet gate25_guard",
            ],
        };
        for command in commands {
            host.exec("nft", &[command]).unwrap();
        }
        meter.check().unwrap();
    }
    wait_tables(&world, &agent, "gate25_guard", 2);
    let what = "ruleset flushed or the guard's tables deleted by hand, with eBPF";
    meter
        .judge(
            &agent,
            Trial::Fault,
            what,
            rounds.begun(),
            Accounts::Customers,
        )
        .unwrap();
}

/// Deletes the table that enforces where nftables does: the guard stands until it is back, at once or
/// once an agent goes on that was suspended.
#[track_caller]
pub(crate) fn table_deleted(times: u64) {
    let world = World::for_nftables().unwrap();
    let (mut meter, mut agent) = by_nftables(&world);
    let host = &world.hosting.hypervisor;
    wait_tables(&world, &agent, "gate25_guard", 2);
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter.phase(&format!("deleted, round {round}")).unwrap();
        let suspended = round % 2 == 0;
        if suspended {
            agent.signal(Signal::SIGSTOP).unwrap();
        }
        host.exec("nft", &["delete table netdev gate25"]).unwrap();
        if suspended {
            meter.wait_sent(200).unwrap();
            check_tight(&meter, &agent, &format!("suspended, round {round}"));
            agent.signal(Signal::SIGCONT).unwrap();
        }
        wait_tables(&world, &agent, "netdev gate25", 1);
        meter.wait_sent(200).unwrap();
        check_tight(&meter, &agent, &format!("round {round}"));
    }
    meter.check().unwrap();
    meter.wait_all_relayed().unwrap();
    let what = "table deleted by hand, with nftables";
    judge_guarded(&mut meter, &agent, what, rounds.begun());
}

/// Flushes the ruleset where nftables enforces, the guard included: open until it is back, and closed
/// after. What was sent and arrived in all.
#[track_caller]
pub(crate) fn flushed_where_nftables_enforces(times: u64) -> Measured {
    let world = World::for_nftables().unwrap();
    let (mut meter, agent) = by_nftables(&world);
    let host = &world.hosting.hypervisor;
    for round in 0..times {
        wait_tables(&world, &agent, "gate25_guard", 2);
        meter.phase(&format!("flushed, round {round}")).unwrap();
        host.exec("nft", &["flush ruleset"]).unwrap();
        let flushed = Instant::now();
        wait_tables(&world, &agent, "netdev gate25", 1);
        let took = flushed.elapsed();
        assert!(took < paced(SOON), "{took:?}");
        // What was on its way has arrived once as much has been sent again.
        meter.wait_sent(300).unwrap();
        let open = meter.measured().unwrap().leaked;
        meter.wait_sent(500).unwrap();
        let closed = meter.measured().unwrap().leaked;
        assert_eq!(open, closed, "round {round}\n{}", agent.log());
    }
    meter.end(&agent, Accounts::AtMost).unwrap().measured
}

/// Guests of every kind at work, with nftables.
#[track_caller]
fn by_nftables(world: &World) -> (Meter, Agent) {
    let mut meter = Meter::bare(world).unwrap();
    let mut policy = PolicyText::default();
    for (number, name, link) in [
        (101, "tap101i0", Link::BridgedVeth),
        (102, "tap102i0", Link::RoutedVeth),
    ] {
        let guest = world.guest_by(number, name, link).unwrap();
        let owner = format!("c-{number}");
        meter
            .guest_by_frames(world, &guest, Some(&owner), May::RelayOnly)
            .unwrap();
        policy = policy.customer(&owner, name);
    }
    let settings = Settings {
        more: "backend: nftables\n".to_owned(),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &policy).unwrap();
    meter.attack(world, &agent).unwrap();
    (meter, agent)
}

#[track_caller]
fn wait_tables(world: &World, agent: &Agent, name: &str, count: usize) {
    let host = &world.hosting.hypervisor;
    poll(&format!("{count} tables {name}"), LIMIT, || {
        let listed = host.exec("nft", &["list tables"])?;
        let found = listed.lines().filter(|line| line.ends_with(name));
        Ok((found.count() == count).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
}
