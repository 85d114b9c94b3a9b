//! A host that is bypassed: guests and containers send, everybody is told, and it ends by itself.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::{Duration, Instant};

use gate25_tests::{
    Agent, Hosting, Network, Outcome, PolicyText, Said, Sender, Settings, World, paced,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const END: &str = "gate25_bypass_end_timestamp_seconds";
const TERM: Duration = Duration::from_secs(8);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);
/// How far from the moment named it may end.
const PUNCTUAL: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(3);

#[test]
fn bypass_opens_everything_and_ends_on_time_with_the_agent_killed_or_suspended() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let world = World::new().unwrap();
        let guest = world.guest(101, "tap101i0").unwrap();
        let policy = PolicyText::default().customer("c-1", "tap101i0");
        let mut agent = world.agent_with(world.settings(), &policy).unwrap();
        let container = world.container("closed", &Network::Hypervisor).unwrap();
        world.check_closed(&guest).unwrap();
        world.wait_contained(&container.tenant).unwrap();
        let dry = begin(&agent, paced(TERM), &["--dry-run"]);
        assert_eq!(dry.code, Some(0), "{dry:?}");
        world.check_closed(&guest).unwrap();
        let asked = Instant::now();
        let begun = begin(&agent, paced(TERM), &[]);
        let answered = Instant::now();
        assert_eq!(begun.code, Some(0), "{begun:?}");
        assert!(begun.out.contains("only observes until"), "{begun:?}");
        world.check_open(&guest).unwrap();
        world.check_free(&container.tenant).unwrap();
        check_told(&agent);
        agent.signal(signal).unwrap();
        world.check_free(&container.tenant).unwrap();
        let sender = Sender::start(&guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
        let tally = sender
            .until("refusals", LIMIT, |tally| tally.refused > 20)
            .unwrap();
        drop(sender);
        let last = tally.last_connected.unwrap();
        let early = (asked + paced(TERM)).saturating_duration_since(last);
        assert!(early < paced(PUNCTUAL), "{early:?} early");
        let late = last.saturating_duration_since(answered + paced(TERM));
        assert!(late < paced(PUNCTUAL), "{late:?} late");
        world.check_closed(&guest).unwrap();
        world.wait_contained(&container.tenant).unwrap();
    }
}

#[test]
fn bypass_is_told_of_by_what_a_dead_agent_left() {
    let world = World::new().unwrap();
    let policy = PolicyText::default();
    let mut agent = world.agent_with(world.settings(), &policy).unwrap();
    let begun = begin(&agent, LONG, &[]);
    assert_eq!(begun.code, Some(0), "{begun:?}");
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    let status = agent.command(&["status"]).unwrap();
    assert_eq!(status.code, Some(4), "{status:?}");
    assert!(
        status.out.contains("bypass") && status.out.contains("NOC-9"),
        "{status:?}"
    );
    // A start goes on with it, and ends it when asked.
    agent.restart().unwrap();
    check_told(&agent);
    let ended = agent.command(&["bypass", "end"]).unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let guest = world.guest(101, "tap101i0").unwrap();
    world.wait_closed(&guest).unwrap();
    assert_eq!(agent.metrics().unwrap().sum(END, &[]), Some(0.0));
    assert_eq!(agent.command(&["status"]).unwrap().code, Some(0));
    let metrics = agent.metrics().unwrap();
    assert!(metrics.sum("gate25_enforcing", &[]).unwrap() > 0.0);
}

#[test]
fn bypass_that_ends_cuts_the_connections_that_it_had_let_through() {
    let world = World::new().unwrap();
    let policy = PolicyText::default().container("c-1", &world.below("held"));
    let agent = world.agent_with(world.settings(), &policy).unwrap();
    let container = world.container("held", &Network::Hypervisor).unwrap();
    world.wait_contained(&container.tenant).unwrap();
    for how in ["by itself", "by command"] {
        let brief = paced(Duration::from_secs(4));
        let term = if how == "by itself" { brief } else { LONG };
        let begun = begin(&agent, term, &[]);
        assert_eq!(begun.code, Some(0), "{begun:?}");
        container
            .tenant
            .hold(how, Hosting::EXCHANGER.v4_port(25))
            .unwrap();
        // What the policy revokes meanwhile is let through like the rest.
        let other = policy.clone().customer("c-2", "tap102i0");
        agent.apply_policy("policy.yaml", &other.text()).unwrap();
        agent.apply_policy("policy.yaml", &policy.text()).unwrap();
        if how == "by command" {
            let ended = agent.command(&["bypass", "end"]).unwrap();
            assert_eq!(ended.code, Some(0), "{ended:?}");
        }
        let cut = container.tenant.wait_cut(how).unwrap();
        let is_cut = matches!(cut.outcome, Outcome::Aborted | Outcome::Reset);
        assert!(is_cut, "{how}: {cut}\n{}", agent.log());
        world.wait_contained(&container.tenant).unwrap();
    }
}

#[test]
fn bypass_is_ended_by_root_with_the_agent_dead() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    world.check_closed(&guest).unwrap();
    let begun = begin(&agent, paced(TERM), &[]);
    assert_eq!(begun.code, Some(0), "{begun:?}");
    world.wait_open(&guest).unwrap();
    let rehearsed = agent.command(&["bypass", "end", "--dry-run"]).unwrap();
    assert_eq!(rehearsed.code, Some(0), "{rehearsed:?}");
    assert!(rehearsed.out.contains("would refuse"), "{rehearsed:?}");
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    world.check_open(&guest).unwrap();
    let rehearsed = agent.command(&["bypass", "end", "--dry-run"]).unwrap();
    assert_eq!(rehearsed.code, Some(0), "{rehearsed:?}");
    world.check_open(&guest).unwrap();
    let ended = agent.command(&["bypass", "end"]).unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    world.check_closed(&guest).unwrap();
    let status = agent.command(&["status"]).unwrap();
    assert!(!status.out.contains("bypass"), "{status:?}");
    agent.restart().unwrap();
    world.check_closed(&guest).unwrap();
}

#[test]
fn bypass_is_refused_where_nothing_would_end_it_and_where_it_would_change_nothing() {
    for (more, reason, ends_as) in [
        (
            "backend: nftables\n",
            "backend nftables cannot",
            "no bypass; this host refuses what the policy refuses",
        ),
        (
            "enforcement: observe\n",
            "only observes by its settings",
            "no bypass; this host only observes, by its settings",
        ),
    ] {
        let world = World::new().unwrap();
        let settings = Settings {
            more: more.to_owned(),
            ..Settings::default()
        };
        let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
        let refused = begin(&agent, paced(TERM), &[]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains(reason), "{refused:?}");
        assert_eq!(agent.metrics().unwrap().sum(END, &[]), Some(0.0));
        let ended = agent.command(&["bypass", "end"]).unwrap();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.out.trim_end(), ends_as, "{ended:?}");
        for nonsense in [
            &["bypass"][..],
            &["bypass", "--for", "1h"],
            &["bypass", "--ticket", "T"],
            &["bypass", "--for", "1y", "--ticket", "T"],
            &["bypass", "--for", "1h", "--ticket", " "],
            &["bypass", "end", "--for", "1h"],
        ] {
            let said = agent.command(nonsense).unwrap();
            assert_eq!(said.code, Some(2), "{nonsense:?}: {said:?}");
        }
    }
}

#[test]
fn bypass_under_another_ticket_is_refused_until_the_first_one_has_ended() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    assert_eq!(begin(&agent, LONG, &[]).code, Some(0));
    // By the clock that counts from the boot, told by the other one.
    let ends = || agent.metrics().unwrap().sum(END, &[]).unwrap().round();
    let first = ends();
    let other = ["bypass", "--for", "1h", "--ticket", "NOC-8"];
    for more in [&["--dry-run"][..], &[]] {
        let refused = agent.command(&[&other[..], more].concat()).unwrap();
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains("NOC-9"), "{refused:?}");
        assert!((ends() - first).abs() <= 1.0, "{first}");
    }
    // Under its own ticket it gets another end.
    assert_eq!(begin(&agent, 2 * LONG, &[]).code, Some(0));
    assert!(ends() > first, "{first}");
    assert_eq!(agent.command(&["bypass", "end"]).unwrap().code, Some(0));
    assert_eq!(agent.command(&other).unwrap().code, Some(0));
}

/// Asks for a bypass.
#[track_caller]
fn begin(agent: &Agent, term: Duration, more: &[&str]) -> Said {
    let term = format!("{}s", term.as_secs());
    let command = ["bypass", "--for", &term, "--ticket", "NOC-9"];
    agent.command(&[&command[..], more].concat()).unwrap()
}

/// Status, metrics and doctor say so.
#[track_caller]
fn check_told(agent: &Agent) {
    let metrics = agent.metrics().unwrap();
    assert!(metrics.sum(END, &[]).unwrap() > 0.0);
    assert_eq!(metrics.sum("gate25_enforcing", &[]), Some(0.0));
    let status = agent.command(&["status"]).unwrap();
    assert_eq!(status.code, Some(1), "{status:?}");
    assert!(status.out.contains("this host is bypassed"), "{status:?}");
    assert!(status.out.contains("NOC-9"), "{status:?}");
    let doctor = agent.command(&["doctor", "-j"]).unwrap();
    assert!(doctor.out.contains("\"bypassed\""), "{doctor:?}");
    let log = agent.log();
    assert!(
        log.lines()
            .any(|line| line.contains("WARN") && line.contains("bypassed")),
        "{log}"
    );
}
