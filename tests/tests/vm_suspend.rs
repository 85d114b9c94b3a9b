//! The machine sleeps, and exemptions end meanwhile.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{fs, time::Duration};

use gate25_tests::{Agent, Guest, Hosting, PolicyText, Sender, Settings, World, after, inside};
use jiff::Timestamp;
use nix::{sys::signal::Signal, time::ClockId};

const PAUSE: Duration = Duration::from_millis(20);
/// Long enough to see it open in an emulated machine.
const TERM: Duration = Duration::from_secs(30);
/// The machine sleeps so long beyond the end.
const BEYOND: i64 = 4;
const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";

#[test]
fn exemption_that_ends_in_suspend_has_ended_at_the_resume_with_the_agent_alive() {
    let (world, guest, _agent, ends) = open_until_an_end("auto");
    suspend(ends + jiff::SignedDuration::from_secs(BEYOND));
    world.check_closed(&guest).unwrap();
}

#[test]
fn exemption_that_ends_in_suspend_has_ended_at_the_resume_with_the_agent_dead() {
    let (world, guest, mut agent, ends) = open_until_an_end("auto");
    agent.signal(Signal::SIGKILL).unwrap();
    let sender = Sender::start(&guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    sender.more(5).unwrap();
    suspend(ends + jiff::SignedDuration::from_secs(BEYOND));
    // One attempt may have begun before the machine fell asleep.
    sender.more(2).unwrap();
    sender.reset();
    let tally = sender.more(20).unwrap();
    assert_eq!((tally.connected, tally.others), (0, 0), "{tally:?}");
    drop(sender);
    world.check_closed(&guest).unwrap();
}

#[test]
fn exemption_that_ends_in_suspend_ends_once_nftables_is_told_of_the_resume() {
    let (world, guest, _agent, ends) = open_until_an_end("nftables");
    suspend(ends + jiff::SignedDuration::from_secs(BEYOND));
    world.wait_closed(&guest).unwrap();
}

#[test]
fn exemption_that_outlasts_a_suspend_goes_on() {
    let (world, guest, _agent) = open_until(after(TERM * 100), "auto");
    suspend(Timestamp::now() + jiff::SignedDuration::from_secs(BEYOND));
    world.check_open(&guest).unwrap();
}

fn open_until_an_end(backend: &str) -> (World, Guest, Agent, Timestamp) {
    let ends = after(TERM);
    let (world, guest, agent) = open_until(ends, backend);
    (world, guest, agent, ends)
}

fn open_until(ends: Timestamp, backend: &str) -> (World, Guest, Agent) {
    let world = if backend == "nftables" {
        World::for_nftables()
    } else {
        World::new()
    }
    .unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt_until("c-1", ends);
    let settings = Settings {
        more: format!("backend: {backend}\n"),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &policy).unwrap();
    world.check_open(&guest).unwrap();
    (world, guest, agent)
}

/// Suspends the machine to memory until this moment.
#[track_caller]
fn suspend(until: Timestamp) {
    assert!(
        inside(),
        "this test suspends the machine: run it by `./xtask/x vm`"
    );
    assert!(Timestamp::now() < until, "too slow to sleep before the end");
    let (slept, awake) = (asleep(), ClockId::CLOCK_MONOTONIC.now().unwrap());
    fs::write(ALARM, "0").unwrap();
    fs::write(ALARM, until.as_second().to_string()).unwrap();
    fs::write("/sys/power/state", "mem").unwrap();
    assert!(
        asleep() > slept + Duration::from_secs(1),
        "awake since {awake:?}, and hardly slept"
    );
    assert!(Timestamp::now() >= until - jiff::SignedDuration::from_secs(1));
}

/// How long the machine has been suspended since its boot.
fn asleep() -> Duration {
    let [boot, monotonic] = [ClockId::CLOCK_BOOTTIME, ClockId::CLOCK_MONOTONIC]
        .map(|clock| Duration::from(clock.now().unwrap()));
    boot - monotonic
}
