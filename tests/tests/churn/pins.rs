//! Pins that somebody removes by hand.

use std::{collections::BTreeMap, fs, path::PathBuf};

use gate25_tests::{
    Accounts, Agent, Feature, May, Meter, NetNs, PolicyText, Privileges, Rounds, Settings, Trial,
    World, poll,
};
use nix::sys::signal::Signal;

use super::scene::{LIMIT, besieged_with, check_tight, watchful};

/// Where the agent's pins are.
const FOLDER: &str = "/sys/fs/bpf/gate25";
/// Where they are no longer.
const ASIDE: &str = "/sys/fs/bpf/aside";

/// Removes pins, one by one and all of them, while the agent runs: nothing is detached, and at the
/// next rescan they are there again, for the same programs and tables.
#[track_caller]
pub(crate) fn removed(times: u64) {
    let world = World::new().unwrap();
    // Only root makes the folder again; system_privileges.rs tells how it is without him.
    let settings = Settings {
        privileges: Privileges::Root,
        ..watchful(&world, "")
    };
    let (mut meter, mut agent) = besieged_with(&world, settings);
    let host = &world.hosting.hypervisor;
    let before = world.pinned_objects().unwrap();
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        for kind in ["/programs/", "/links/", "table"] {
            meter
                .phase(&format!("one of {kind}, round {round}"))
                .unwrap();
            let of_kind = |path: &&PathBuf| match kind {
                "table" => !["/links/", "/programs/"]
                    .iter()
                    .any(|it| in_folder(path, it)),
                kind => in_folder(path, kind),
            };
            let pins: Vec<&PathBuf> = before.keys().filter(of_kind).collect();
            let pin = pins[round as usize % pins.len()];
            host.run(|| fs::remove_file(pin)).unwrap().unwrap();
            meter.check().unwrap();
            // Programs stay where they are attached, and get their pins with the others.
            if kind != "/programs/" {
                wait_pins(&world, &agent, &before);
            }
        }
        meter.phase(&format!("all of them, round {round}")).unwrap();
        remove_all(host);
        meter.check().unwrap();
        wait_pins(&world, &agent, &before);
    }
    // They are worth as much as the first ones: the agent may end.
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    meter.check().unwrap();
    agent.restart().unwrap();
    meter.check().unwrap();
    let what = "pins removed by hand under the agent, single ones and all";
    let times = rounds.begun() * 4;
    meter
        .judge(&agent, Trial::Fault, what, times, Accounts::Customers)
        .unwrap();
}

/// Removes all pins while no agent runs, which takes the programs off where links hold them, and leaves them where
/// classic filters do. The guard stays.
#[track_caller]
pub(crate) fn removed_without_an_agent(times: u64) {
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let may = May::RelayOnly;
    meter
        .guest_by_frames(&world, &guest, Some("c-1"), may)
        .unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let mut agent = world.agent_with(watchful(&world, ""), &policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    let host = &world.hosting.hypervisor;
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter
            .phase(&format!("without pins, round {round}"))
            .unwrap();
        agent.signal(Signal::SIGKILL).unwrap();
        agent.process().wait(LIMIT).unwrap();
        remove_all(host);
        meter.wait_sent(500).unwrap();
        check_tight(&meter, &agent, "without pins");
        meter
            .phase(&format!("started again, round {round}"))
            .unwrap();
        agent.restart().unwrap();
        meter.wait_sent(500).unwrap();
        check_tight(&meter, &agent, "started again");
    }
    meter.wait_all_relayed().unwrap();
    let what = "pins removed by hand while no agent runs, virtual machines";
    let accounts = match Feature::Tcx.is_present().unwrap() {
        true => Accounts::Guarded,
        false => Accounts::AtMost,
    };
    meter
        .judge(&agent, Trial::Fault, what, rounds.begun(), accounts)
        .unwrap();
}

/// At one moment: one by one, the agent makes them again meanwhile.
#[track_caller]
fn remove_all(host: &NetNs) {
    host.run(|| fs::rename(FOLDER, ASIDE)).unwrap().unwrap();
    host.exec("rm", &["-r", ASIDE]).unwrap();
}

fn in_folder(path: &std::path::Path, folder: &str) -> bool {
    path.to_string_lossy().contains(folder)
}

#[track_caller]
fn wait_pins(world: &World, agent: &Agent, wanted: &BTreeMap<PathBuf, u64>) {
    let mut seen = BTreeMap::new();
    poll("the pins to come back", LIMIT, || {
        // They come one after the other.
        seen = world.pinned_objects().unwrap_or_default();
        Ok((seen == *wanted).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {seen:?}, not {wanted:?}\n{}", agent.log()));
}
