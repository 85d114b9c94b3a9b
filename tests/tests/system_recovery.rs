//! What an operator can still do, and is told, where something else than what he asks for is wrong.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{fs, time::Duration};

use gate25_tests::{Agent, Hosting, PolicyText, Said, World, binary};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);
const FILE: &str = "policy.yaml";
const REVOKE: [&str; 4] = ["exempt", "revoke", "c-2-exemption", "--wait"];

#[test]
fn settings_that_are_not_valid_keep_nobody_from_asking_closing_or_opening() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let second = world.guest(102, "tap102i0").unwrap();
    let mut agent = world.agent(&policy()).unwrap();
    let changed = policy().customer("c-3", "tap103i0").text();
    agent.apply_policy(FILE, &changed).unwrap();
    let valid = fs::read_to_string(agent.config()).unwrap();
    fs::write(agent.config(), format!("{valid}nonsense: 1\n")).unwrap();
    let refused = agent.command(&["check"]).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for command in [
        &["status"][..],
        &["list", "customers"],
        &["reload", "--wait"],
        &["reload", "--confirm-within", "10m"],
        &["confirm"],
        &["bypass", "--for", "1h", "--ticket", "NOC-9"],
        &["bypass", "end"],
    ] {
        let said = agent.command(command).unwrap();
        assert_eq!(said.code, Some(0), "{command:?}: {said:?}");
        assert!(said.err.contains("nonsense"), "{command:?}: {said:?}");
    }
    let doctor = agent.command(&["doctor", "-j"]).unwrap();
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert!(doctor.out.contains("\"settings-invalid\""), "{doctor:?}");
    assert!(doctor.out.contains("nonsense"), "{doctor:?}");
    world.check_open(&second).unwrap();
    // It has to be known where to write.
    let nowhere = agent.command(&REVOKE).unwrap();
    assert_eq!(nowhere.code, Some(1), "{nowhere:?}");
    world.check_open(&second).unwrap();
    let dir = agent.policy_dir();
    let revoked = with(&agent, &["--dir", dir.to_str().unwrap()]);
    assert_eq!(revoked.code, Some(0), "{revoked:?}");
    world.check_closed(&second).unwrap();
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    let status = agent.command(&["status"]).unwrap();
    assert!(
        status.out.contains("goes on without the agent"),
        "{status:?}"
    );
    assert!(status.out.contains("mode\tnot known"), "{status:?}");
    world.check_closed(&guest).unwrap();
    let opened = agent.command(&["teardown"]).unwrap();
    assert_eq!(opened.code, Some(0), "{opened:?}");
    world.check_open(&guest).unwrap();
    fs::write(agent.config(), valid).unwrap();
}

#[test]
fn teardown_without_nft_leaves_the_programs_that_the_guard_waits_for() {
    let world = World::new().unwrap();
    let exempt = world.guest(102, "tap102i0").unwrap();
    let mut agent = world.agent(&policy()).unwrap();
    world.check_open(&exempt).unwrap();
    agent
        .wait_metric("gate25_guard_in_place", &[], LIMIT, |value| value == 1.0)
        .unwrap();
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    let host = &world.hosting.hypervisor;
    let without_nft = |words: &[&str]| {
        let mut command = host.command(binary().unwrap());
        let command_line = [words, &["--config"]].concat();
        command.env("PATH", "/nonexistent").args(command_line);
        command.arg(agent.config());
        host.ask(command, LIMIT).unwrap()
    };
    let refused = without_nft(&["teardown"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("run nft"), "{refused:?}");
    assert!(
        refused.err.contains("programs and rules stay"),
        "{refused:?}"
    );
    world.check_open(&exempt).unwrap();
    let status = without_nft(&["status"]);
    assert!(status.out.contains("guard\tnot known"), "{status:?}");
    let opened = agent.command(&["teardown"]).unwrap();
    assert_eq!(opened.code, Some(0), "{opened:?}");
    // Nothing is left, and so nothing is missed.
    let nothing = without_nft(&["teardown"]);
    assert_eq!(nothing.code, Some(0), "{nothing:?}");
    world.check_open(&exempt).unwrap();
}

#[test]
fn edit_of_files_that_no_agent_reads_is_told_and_is_no_success() {
    let world = World::new().unwrap();
    let exempt = world.guest(102, "tap102i0").unwrap();
    let agent = world.agent(&policy()).unwrap();
    let elsewhere = world.lab.dir().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join(FILE), policy().text()).unwrap();
    let told = with(&agent, &["--dir", elsewhere.to_str().unwrap()]);
    assert_eq!(told.code, Some(1), "{told:?}");
    let theirs = agent.policy_dir();
    assert!(told.err.contains(theirs.to_str().unwrap()), "{told:?}");
    assert!(!told.out.contains("in force"), "{told:?}");
    world.check_open(&exempt).unwrap();
    let status = agent.command(&["status"]).unwrap();
    assert!(status.out.contains(theirs.to_str().unwrap()), "{status:?}");
}

#[test]
fn revocation_does_not_wait_until_mistakes_of_others_are_mended() {
    let world = World::new().unwrap();
    let exempt = world.guest(102, "tap102i0").unwrap();
    let text = policy().exempt("c-3").text();
    let agent = world
        .agent(&policy().customer("c-3", "tap103i0").exempt("c-3"))
        .unwrap();
    // The customer is gone, and what he had is not: an agent leaves it out.
    agent.apply_policy(FILE, &text).unwrap();
    assert_eq!(agent.command(&["check"]).unwrap().code, Some(1));
    let extend = ["exempt", "extend", "c-2-exemption", "--by", "1h"];
    let extended = agent.command(&extend).unwrap();
    assert_eq!(extended.code, Some(1), "{extended:?}");
    world.check_open(&exempt).unwrap();
    let revoked = agent.command(&REVOKE).unwrap();
    assert_eq!(revoked.code, Some(0), "{revoked:?}");
    world.check_closed(&exempt).unwrap();
}

#[test]
fn exemption_with_a_mistake_that_an_agent_runs_with_is_revoked() {
    let world = World::new().unwrap();
    let exempt = world.guest(102, "tap102i0").unwrap();
    let agent = world.agent(&policy()).unwrap();
    let [v4, v6] = [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ];
    let to = format!("to: [{}, \"{}\", gone]", v4.ip(), v6.ip());
    let text = policy().text().replace("to: any", &to);
    agent.apply_policy(FILE, &text).unwrap();
    assert_eq!(agent.command(&["check"]).unwrap().code, Some(1));
    world.check_open(&exempt).unwrap();
    let revoked = agent.command(&REVOKE).unwrap();
    assert_eq!(revoked.code, Some(0), "{revoked:?}");
    world.check_closed(&exempt).unwrap();
}

#[test]
fn edit_of_files_that_were_undone_puts_them_in_force_only_if_it_is_to() {
    let world = World::new().unwrap();
    let first = world.guest(101, "tap101i0").unwrap();
    let second = world.guest(102, "tap102i0").unwrap();
    let agent = world.agent(&policy()).unwrap();
    let undone = policy().exempt("c-1").text();
    agent.apply_policy(FILE, &undone).unwrap();
    world.check_open(&first).unwrap();
    assert_eq!(agent.command(&["undo"]).unwrap().code, Some(0));
    world.check_closed(&first).unwrap();
    let refused = agent.command(&REVOKE).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("undone"), "{refused:?}");
    let file = agent.policy_dir().join(FILE);
    assert_eq!(fs::read_to_string(&file).unwrap(), undone);
    world.check_closed(&first).unwrap();
    world.check_open(&second).unwrap();
    let taken = with(&agent, &["--take-undone"]);
    assert_eq!(taken.code, Some(0), "{taken:?}");
    world.check_open(&first).unwrap();
    world.check_closed(&second).unwrap();
}

/// Customer c-2 is exempt.
fn policy() -> PolicyText {
    PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0")
        .exempt("c-2")
}

/// Revokes the exemption, with these words in addition.
#[track_caller]
fn with(agent: &Agent, more: &[&str]) -> Said {
    agent.command(&[&REVOKE[..], more].concat()).unwrap()
}
