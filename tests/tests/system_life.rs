//! The agent stops, crashes and starts again: enforcement and counters go on.
#![cfg(feature = "root")]

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use gate25_tests::{Agent, Metrics, PolicyText, World, poll};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn agent_terminated_or_killed_leaves_enforcement_and_counters() {
    let world = World::new().unwrap();
    let open = world.guest(101, "tap101i0").unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let mut agent = world.agent(&policy()).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let before = agent.metrics().unwrap();
        agent.signal(signal).unwrap();
        let status = agent.process().wait(LIMIT).unwrap();
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
        world.check_open(&open).unwrap();
        world.check_closed(&closed).unwrap();
        agent.restart().unwrap();
        let after = agent.metrics().unwrap();
        after.check_not_below(&before).unwrap();
        // What was tried while nobody looked is counted: two connects each, the relay twice.
        for (verdict, more) in [("reject", 2.0), ("allow", 4.0)] {
            let labels = [("verdict", verdict)];
            let total = |page: &Metrics| page.sum("gate25_connections_total", &labels).unwrap();
            assert_eq!(total(&after) - total(&before), more, "{signal} {verdict}");
        }
        world.check_open(&open).unwrap();
        world.check_closed(&closed).unwrap();
    }
}

#[test]
fn interface_made_while_the_agent_is_dead_is_covered_by_the_next_start() {
    let world = World::new().unwrap();
    let gone = world.guest(103, "tap103i0").unwrap();
    let mut agent = world.agent(&policy()).unwrap();
    world.check_closed(&gone).unwrap();
    agent.stop().unwrap();
    let host = &world.hosting.hypervisor;
    host.ip("link del tap103i0").unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    agent.restart().unwrap();
    world.check_closed(&closed).unwrap();
    assert_eq!(
        world.covered_interfaces().unwrap(),
        [world.index("tap102i0").unwrap()]
    );
}

#[test]
fn policy_that_fails_at_the_next_start_leaves_the_last_accepted_one() {
    let world = World::new().unwrap();
    let open = world.guest(101, "tap101i0").unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let mut agent = world.agent(&policy()).unwrap();
    agent.stop().unwrap();
    agent
        .write_policy("policy.yaml", "schema: 1\nnonsense: [\n")
        .unwrap();
    // It is not ready, and says why.
    let error = agent.restart().unwrap_err();
    assert!(format!("{error:#}").contains("policy refused"), "{error:#}");
    let (status, text) = agent.get("/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("that was last accepted"), "{text}");
    let source = [("source", "last_known_good")];
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("gate25_policy_source", &source), Some(1.0));
    world.check_open(&open).unwrap();
    world.check_closed(&closed).unwrap();
    agent.write_policy("policy.yaml", &policy().text()).unwrap();
    agent.wait_ready(LIMIT).unwrap();
    world.check_open(&open).unwrap();
    world.check_closed(&closed).unwrap();
}

#[test]
fn http_port_taken_by_another_holds_nothing_up() {
    let world = World::new().unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let host = &world.hosting.hypervisor;
    let address = SocketAddr::from(([127, 0, 0, 1], 9425));
    let taken = host.run(|| TcpListener::bind(address)).unwrap().unwrap();
    let settings = gate25_tests::Settings::default();
    let files = [("policy.yaml", policy().text())];
    let mut agent = Agent::start_unready(host, settings, &files).unwrap();
    world.wait_closed(&closed).unwrap();
    poll("a warning", LIMIT, || {
        let log = agent.log();
        let warned = |line: &str| line.contains("WARN") && line.contains("127.0.0.1:9425");
        Ok(log.lines().any(warned).then_some(()))
    })
    .unwrap();
    drop(taken);
    agent.wait_ready(LIMIT).unwrap();
}

fn policy() -> PolicyText {
    PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1")
        .customer("c-2", "tap102i0")
}
