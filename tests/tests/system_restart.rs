//! The agent ends in every way and starts again, under senders that never pause.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "faults/besieged.rs"]
mod besieged;

use std::time::Duration;

use gate25_tests::{
    Accounts, Agent, Meter, PolicyText, Privileges, Settings, Trial, World, faults, poll,
};
use nix::sys::signal::Signal;

use besieged::{besieged, closed, either};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn restart_with_nothing_changed_writes_nothing() {
    let world = World::new().unwrap();
    let _senders = Meter::prepare(&world).unwrap();
    let mut agent = world.agent_with(world.settings(), &closed(&world)).unwrap();
    let before = world.pinned_objects().unwrap();
    assert!(before.len() > 10, "{before:?}");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        agent.signal(signal).unwrap();
        agent.process().wait(LIMIT).unwrap();
        agent.restart().unwrap();
        assert_eq!(world.pinned_objects().unwrap(), before, "{signal}");
        let log = agent.log();
        let applied = log.lines().find(|line| line.contains("policy applied"));
        let applied = applied.unwrap_or_else(|| panic!("{log}"));
        assert!(applied.contains("writes=0 "), "{signal}: {applied}");
    }
}

#[test]
fn two_agents_started_at_once_leave_one() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let files = [("policy.yaml", closed(&world).text())];
    let mut first = Agent::start_unready(host, world.settings(), &files).unwrap();
    let mut second = Agent::start_unready(host, world.settings(), &files).unwrap();
    poll("one of two agents to end", LIMIT, || {
        let ended = [first.process().status()?, second.process().status()?];
        Ok(ended.iter().any(Option::is_some).then_some(()))
    })
    .unwrap();
    let (mut runs, mut ended) = match first.process().status().unwrap() {
        None => (first, second),
        Some(_) => (second, first),
    };
    let status = ended.process().wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(1), "{}", ended.log());
    let told = ended.log();
    assert!(told.contains("another"), "{told}");
    runs.wait_ready(LIMIT).unwrap();
    assert_eq!(runs.process().status().unwrap(), None);
    // As long as it runs, no other starts; once it is dead, one does.
    ended.restart_unready().unwrap();
    assert!(!ended.process().wait(LIMIT).unwrap().success());
    runs.signal(Signal::SIGKILL).unwrap();
    runs.process().wait(LIMIT).unwrap();
    ended.restart().unwrap();
}

#[test]
fn pins_taken_away_while_the_agent_runs_come_back() {
    let world = World::new().unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    // Only root mounts; system_privileges.rs tells how it is without him.
    let settings = Settings {
        privileges: Privileges::Root,
        ..world.settings()
    };
    let mut agent = world.agent_with(settings, &closed(&world)).unwrap();
    meter.attack(&world, &agent).unwrap();
    let host = &world.hosting.hypervisor;
    host.exec("umount", &["--lazy", "/sys/fs/bpf"]).unwrap();
    poll("the pins to come back", LIMIT, || {
        let objects = world.pinned_objects().unwrap_or_default();
        Ok((objects.len() > 10).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    assert!(agent.log().contains("WARN"), "{}", agent.log());
    meter.check().unwrap();
    // They are worth as much as the first ones: the agent may end.
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    meter.check().unwrap();
    agent.restart().unwrap();
    meter.check().unwrap();
    meter
        .judge(
            &agent,
            Trial::Fault,
            "bpf filesystem unmounted under the agent",
            1,
            Accounts::Customers,
        )
        .unwrap();
}

#[test]
fn pins_of_another_layout_are_taken_over_without_a_gap() {
    let world = World::new().unwrap();
    let (mut meter, mut agent) = besieged(&world);
    let before = refused(&agent);
    assert!(before > 0.0);
    agent.stop().unwrap();
    // What an earlier version with other tables leaves: links and tables in a folder of its own.
    let host = &world.hosting.hypervisor;
    let own = "/sys/fs/bpf/gate25";
    age_pins(&world);
    meter.check().unwrap();
    agent.restart().unwrap();
    // What is counted means what it meant then.
    assert!(refused(&agent) >= before, "{before}: {}", agent.log());
    meter.check().unwrap();
    assert!(agent.log().contains("v1"), "{}", agent.log());
    let left = host.exec("ls", &[own]).unwrap();
    assert!(!left.split_whitespace().any(|name| name == "v1"), "{left}");
    assert!(world.pinned_objects().unwrap().len() > 10);
    agent
        .apply_policy("policy.yaml", &either(&world, 0).text())
        .unwrap();
    meter.check().unwrap();
    meter
        .judge(
            &agent,
            Trial::Fault,
            "start on the pins of an earlier version",
            1,
            Accounts::Host,
        )
        .unwrap();
}

#[test]
fn counters_of_another_form_begin_anew() {
    let world = World::new().unwrap();
    let (mut meter, mut agent) = besieged(&world);
    agent.stop().unwrap();
    age_pins(&world);
    let host = &world.hosting.hypervisor;
    let counters = "/sys/fs/bpf/gate25/v1/HOST_COUNTERS";
    host.exec("rm", &[counters]).unwrap();
    let form = "type percpu_array key 4 value 8 entries 1 name HOST_COUNTERS";
    let create = ["map", "create", counters];
    let create: Vec<&str> = create.into_iter().chain(form.split(' ')).collect();
    host.exec("bpftool", &create).unwrap();
    agent.restart().unwrap();
    meter.check().unwrap();
    let log = agent.log();
    assert!(log.contains("CUSTOMER_COUNT"), "{log}");
    assert!(!log.contains("HOST_COUNTERS"), "{log}");
    meter
        .judge(
            &agent,
            Trial::Fault,
            "start on counters of another form",
            1,
            Accounts::AtMost,
        )
        .unwrap();
}

#[test]
fn start_that_cannot_read_a_pinned_table_ends_and_leaves_what_was_counted() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let settings = Settings {
        privileges: Privileges::Root,
        ..world.settings()
    };
    let mut agent = world.agent_with(settings, &policy).unwrap();
    world.check_closed(&guest).unwrap();
    let before = refused(&agent);
    assert!(before > 0.0);
    agent.stop().unwrap();
    let calls = world.lab.dir().join("calls");
    agent.settings().wrapper = faults::fail_bpf_call(None, &calls);
    agent.restart().unwrap();
    agent.stop().unwrap();
    // It is opened to see what it is, then to see its form, which the next call tells.
    let opened = faults::bpf_calls_with(&calls, "/HOST_COUNTERS").unwrap();
    for call in [opened[0], opened[1], opened[1] + 1] {
        agent.settings().wrapper = faults::fail_bpf_call(Some(call), &calls);
        agent.restart_unready().unwrap();
        let status = agent.process().wait(LIMIT).unwrap();
        assert!(!status.success(), "{call}: {status}");
        let log = agent.log();
        let told = log.contains("look at what is pinned") && log.contains("HOST_COUNTERS");
        assert!(told, "{call}: {log}");
    }
    agent.settings().wrapper.clear();
    agent.restart().unwrap();
    assert_eq!(refused(&agent), before);
}

#[test]
fn start_that_fails_where_programs_enforce_leaves_them_and_takes_no_other_backend() {
    let world = World::new().unwrap();
    let container = world
        .container("shop", &gate25_tests::Network::Hypervisor)
        .unwrap();
    let settings = Settings {
        privileges: Privileges::Root,
        more: "backend: auto\n".to_owned(),
        ..world.settings()
    };
    let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    world.wait_contained(&container.tenant).unwrap();
    agent.stop().unwrap();
    let calls = world.lab.dir().join("calls");
    agent.settings().wrapper = faults::fail_bpf_call(None, &calls);
    agent.restart().unwrap();
    agent.stop().unwrap();
    let last = faults::bpf_calls_with(&calls, "")
        .unwrap()
        .into_iter()
        .max();
    let mut ended = 0;
    for call in (1..=last.unwrap()).step_by(7) {
        agent.settings().wrapper = faults::fail_bpf_call(Some(call), &calls);
        agent.restart_unready().unwrap();
        let outcome = poll("the start to end one way or the other", LIMIT, || {
            let is_over = agent.process().status()?.is_some();
            let is_up = agent.log().contains("control socket open");
            Ok((is_over || is_up).then_some(is_over))
        });
        ended += u32::from(outcome.unwrap());
        let log = agent.log();
        assert!(!log.contains("nftables enforces"), "{call}: {log}");
        world.check_contained(&container.tenant).unwrap();
    }
    assert!(ended > 0, "no start of {last:?} calls has failed");
}

#[test]
fn exempt_container_stays_open_over_restarts() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .container("c-1", &world.below("free"))
        .exempt("c-1");
    let mut agent = world.agent_with(world.settings(), &policy).unwrap();
    let free = world
        .container("free", &gate25_tests::Network::Hypervisor)
        .unwrap();
    world.wait_free(&free.tenant).unwrap();
    let to = gate25_tests::Hosting::EXCHANGER;
    free.tenant.echo("v4", to.v4_port(25)).unwrap();
    free.tenant
        .hammer("v6", to.v6_port(25), Duration::from_millis(3))
        .unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGKILL].repeat(5) {
        agent.signal(signal).unwrap();
        agent.process().wait(LIMIT).unwrap();
        agent.restart().unwrap();
    }
    assert!(free.tenant.echoes("v4").unwrap() > 10);
    let tally = free.tenant.tally("v6").unwrap();
    assert_eq!(tally.connected, tally.attempts(), "{tally:?}");
}

/// Makes a dead agent's folder that of the first version.
#[track_caller]
fn age_pins(world: &World) {
    let host = &world.hosting.hypervisor;
    let own = "/sys/fs/bpf/gate25";
    let folder = host.exec("ls", &[own]).unwrap();
    let folder = folder.split_whitespace().find(|name| name.starts_with('v'));
    let new = format!("{own}/{}", folder.unwrap());
    host.exec("mv", &["-T", &new, &format!("{own}/v1")])
        .unwrap();
}

#[track_caller]
fn refused(agent: &Agent) -> f64 {
    let verdict = [("verdict", "reject")];
    let metrics = agent.metrics().unwrap();
    metrics.sum("gate25_connections_total", &verdict).unwrap()
}
