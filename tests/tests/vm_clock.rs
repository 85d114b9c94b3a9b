//! The wall clock is set, over the end and the beginning of exemptions, with the agent alive and dead.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_tests::{Agent, Guest, PolicyText, World, after, inside};
use jiff::{SignedDuration, Timestamp};
use nix::{
    sys::{signal::Signal, time::TimeSpec},
    time::{ClockId, clock_settime},
};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn clock_set_past_the_end_closes_and_set_back_opens_again() {
    let (world, guest, _agent) = open_for(HOUR);
    let clock = Clock::take();
    clock.set(2);
    world.wait_closed(&guest).unwrap();
    clock.set(0);
    world.wait_open(&guest).unwrap();
}

#[test]
fn clock_set_past_the_beginning_opens_and_set_back_closes() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let clock = Clock::take();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt_from("c-1", after(HOUR));
    let _agent = world.agent(&policy).unwrap();
    world.check_closed(&guest).unwrap();
    clock.set(2);
    world.wait_open(&guest).unwrap();
    clock.set(0);
    world.wait_closed(&guest).unwrap();
}

#[test]
fn clock_set_past_the_end_with_the_agent_dead_is_followed_by_the_next_start() {
    let (world, guest, mut agent) = open_for(HOUR);
    let clock = Clock::take();
    agent.signal(Signal::SIGKILL).unwrap();
    clock.set(2);
    // Nobody is there to tell the kernel: it counts from the boot on.
    world.check_open(&guest).unwrap();
    agent.restart().unwrap();
    world.wait_closed(&guest).unwrap();
}

#[test]
fn clock_set_back_with_the_agent_dead_does_not_lengthen_an_exemption() {
    // Long enough to see it open in an emulated machine.
    let (world, guest, mut agent) = open_for(Duration::from_secs(40));
    let clock = Clock::take();
    agent.signal(Signal::SIGKILL).unwrap();
    clock.set(-2);
    world.check_open(&guest).unwrap();
    world.wait_closed(&guest).unwrap();
}

/// A guest who is exempt for so long.
fn open_for(term: Duration) -> (World, Guest, Agent) {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt_until("c-1", after(term));
    let agent = world.agent(&policy).unwrap();
    world.check_open(&guest).unwrap();
    (world, guest, agent)
}

/// The machine's wall clock; right again when this value goes.
struct Clock {
    /// How far it was ahead of the time since boot.
    ahead: SignedDuration,
}

impl Clock {
    fn take() -> Self {
        assert!(
            inside(),
            "this test sets the machine's clock: run it by `./xtask/x vm`"
        );
        Self {
            ahead: Timestamp::now().duration_since(Timestamp::UNIX_EPOCH) - boot_time(),
        }
    }

    /// Sets it so many hours ahead of what is right.
    fn set(&self, hours: i64) {
        let now = boot_time() + self.ahead + SignedDuration::from_hours(hours);
        let now = TimeSpec::new(now.as_secs(), i64::from(now.subsec_nanos()));
        clock_settime(ClockId::CLOCK_REALTIME, now).unwrap();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn boot_time() -> SignedDuration {
    let now = ClockId::CLOCK_BOOTTIME.now().unwrap();
    SignedDuration::new(now.tv_sec(), i32::try_from(now.tv_nsec()).unwrap())
}
