//! Exemptions begin and end on time, whether the agent looks or not.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::{Duration, Instant};

use gate25_tests::{Held, Hosting, PolicyText, Sender, World, after, paced};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(3);
/// How long the exemptions of these tests last.
const TERM: Duration = Duration::from_secs(3);
/// How far from the moment named an exemption may begin or end.
const PUNCTUAL: Duration = Duration::from_millis(500);

#[test]
fn exemption_that_starts_in_the_future_opens_by_itself() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let mut agent = world.agent(&policy).unwrap();
    let policy = policy.exempt_from("c-1", after(paced(TERM)));
    let begins = Instant::now() + paced(TERM);
    agent.apply_policy("policy.yaml", &policy.text()).unwrap();
    world.check_closed(&guest).unwrap();
    let scheduled = [("state", "scheduled")];
    let metrics = agent.metrics().unwrap();
    assert_eq!(
        metrics.sum("gate25_policy_exemptions", &scheduled),
        Some(1.0)
    );
    agent.signal(Signal::SIGSTOP).unwrap();
    let sender = Sender::start(&guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    let tally = sender
        .until("connections", LIMIT, |tally| tally.connected > 5)
        .unwrap();
    assert!(tally.refused > 0, "{tally:?}");
    near(tally.first_connected.unwrap(), begins);
    agent.signal(Signal::SIGCONT).unwrap();
    world.check_open(&guest).unwrap();
}

#[test]
fn exemption_ends_on_time_with_the_agent_stopped_and_cuts_open_connections() {
    ends_on_time(Some(Signal::SIGSTOP));
}

#[test]
fn exemption_ends_on_time_with_the_agent_killed() {
    ends_on_time(Some(Signal::SIGKILL));
}

#[test]
fn exemption_ends_on_time_with_the_agent_at_work() {
    ends_on_time(None);
}

#[track_caller]
fn ends_on_time(signal: Option<Signal>) {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let mut agent = world.agent(&policy).unwrap();
    let policy = policy.exempt_until("c-1", after(paced(TERM)));
    let ends = Instant::now() + paced(TERM);
    agent.apply_policy("policy.yaml", &policy.text()).unwrap();
    world.check_open(&guest).unwrap();
    let mut held: Vec<Held> = [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ]
    .map(|to| Held::open(&guest.ns, to, LIMIT).unwrap())
    .into();
    if let Some(signal) = signal {
        agent.signal(signal).unwrap();
    }
    let sender = Sender::start(&guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    let tally = sender
        .until("refusals", LIMIT, |tally| tally.refused > 20)
        .unwrap();
    assert!(tally.connected > 0, "{tally:?}");
    // One may have been in the middle of its handshake.
    assert!(tally.others <= 1, "{tally:?}");
    near(tally.last_connected.unwrap(), ends);
    // What was connected while it was allowed ends at the next packet.
    for connection in &mut held {
        let cut = connection.write_until_cut(LIMIT).unwrap();
        assert_eq!(cut.outcome, gate25_tests::Outcome::Reset, "{cut}");
        assert!(cut.took < paced(PUNCTUAL), "{cut}");
    }
    drop(sender);
    if signal == Some(Signal::SIGKILL) {
        agent.restart().unwrap();
    } else if signal == Some(Signal::SIGSTOP) {
        agent.signal(Signal::SIGCONT).unwrap();
    }
    world.check_closed(&guest).unwrap();
    let expired = [("state", "expired")];
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("gate25_policy_exemptions", &expired), Some(1.0));
}

#[track_caller]
fn near(at: Instant, expected: Instant) {
    let early = expected.saturating_duration_since(at);
    let late = at.saturating_duration_since(expected);
    assert!(early < paced(PUNCTUAL), "{early:?} early");
    assert!(late < paced(PUNCTUAL), "{late:?} late");
}
