//! The agent killed at every moment of its life, under senders that never pause.

use std::time::Duration;

use gate25_tests::{Accounts, Agent, Guest, May, Meter, Rounds, Trial, World, faults, poll};
use nix::sys::signal::Signal;

use super::besieged::{besieged, closed, either};

const LIMIT: Duration = Duration::from_secs(20);

/// Kills the agent so many times, at moments between the first instruction of a start and long
/// after it.
#[track_caller]
pub(crate) fn at_random_moments(times: u64) {
    let world = World::new().unwrap();
    let (mut meter, mut agent) = besieged(&world);
    let mut before = agent.metrics().unwrap();
    let mut moments = Moments::new();
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter.phase(&format!("round {round}")).unwrap();
        moments.next().pass();
        // The one before may have been killed before it was ready.
        agent.signal(Signal::SIGKILL).unwrap();
        agent.process().wait(LIMIT).unwrap();
        let policy = either(&world, round % 3);
        agent.write_policy("policy.yaml", &policy.text()).unwrap();
        if round % 4 == 3 {
            agent.restart().unwrap();
            let after = agent.metrics().unwrap();
            after.check_not_below(&before).unwrap();
            before = after;
            meter.check().unwrap();
        } else {
            agent.restart_unready().unwrap();
        }
    }
    agent.wait_ready(LIMIT).unwrap();
    meter.check().unwrap();
    agent.metrics().unwrap().check_not_below(&before).unwrap();
    let what = "kill -9 of the agent at a random moment";
    meter
        .judge(&agent, Trial::Fault, what, rounds.begun(), Accounts::Host)
        .unwrap();
}

/// Of the calls of a start that finds nothing, at most every so many-th is tried: each takes a whole
/// start after it.
const COLD_STEP: usize = 3;

/// Kills starts at their bpf(2) calls, every `step`-th of them: on a host of which an earlier agent's
/// pins are gone, and on one where it left a policy other than that of the files.
#[track_caller]
pub(crate) fn in_a_start(step: usize) {
    let world = World::new().unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    let mut agent = world.agent_with(world.settings(), &closed(&world)).unwrap();
    let what = "kill -9 at a kernel call of a start";
    agent
        .wait_metric("gate25_guard_in_place", &[], LIMIT, |value| value == 1.0)
        .unwrap();
    meter.wait_as_told(&world).unwrap();
    meter.begin(&agent).unwrap();
    meter.fire_frames().unwrap();
    agent.stop().unwrap();
    let kills = sweep_cold_starts(&world, &mut meter, &mut agent, step.max(COLD_STEP));
    agent.restart().unwrap();
    meter.wait_all_relayed().unwrap();
    meter
        .judge(&agent, Trial::Fault, what, kills, Accounts::Guarded)
        .unwrap();
    meter.attack(&world, &agent).unwrap();
    agent.stop().unwrap();
    let mut kills = 0;
    for round in Rounds::of(1).unwrap() {
        // In a soak each sweep takes other calls.
        let first = 1 + (round % step as u64) as u32;
        kills += sweep_starts(&world, &mut meter, &mut agent, (first..).step_by(step));
    }
    agent.restart().unwrap();
    meter.check().unwrap();
    meter
        .judge(&agent, Trial::Fault, what, kills, Accounts::Host)
        .unwrap();
}

/// Takes the pins away, and with them all that hangs on them, and kills the start that follows, until
/// one gets through; how many were killed. The guard stops the virtual machines' frames until there
/// are programs; on the host's own network nothing does.
#[track_caller]
fn sweep_cold_starts(world: &World, meter: &mut Meter, agent: &mut Agent, step: usize) -> u64 {
    let host = &world.hosting.hypervisor;
    for (kills, call) in (0..).zip((1..).step_by(step)) {
        meter.phase(&format!("a cold start, call {call}")).unwrap();
        host.exec("umount", &["--lazy", "/sys/fs/bpf"]).unwrap();
        let survived = start_killed_at(agent, call);
        let after = format!("after a kill at call {call}");
        meter
            .check()
            .unwrap_or_else(|error| panic!("{after}: {error:#}"));
        if survived {
            assert!(kills > 0, "no call was interrupted");
            return kills;
        }
        agent
            .restart()
            .unwrap_or_else(|error| panic!("{after}: {error:#}"));
        meter
            .wait_containers_as_told(world)
            .unwrap_or_else(|error| panic!("{after}: {error:#}\n{}", agent.log()));
        agent.stop().unwrap();
    }
    0
}

/// Kills starts at these calls until one gets through; how many were killed.
#[track_caller]
fn sweep_starts(
    world: &World,
    meter: &mut Meter,
    agent: &mut Agent,
    calls: impl Iterator<Item = u32>,
) -> u64 {
    for (round, call) in (0..).zip(calls) {
        meter.phase(&format!("a start, call {call}")).unwrap();
        let policy = either(world, round);
        agent.write_policy("policy.yaml", &policy.text()).unwrap();
        let survived = start_killed_at(agent, call);
        meter
            .check()
            .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
        if survived {
            assert!(round > 0, "no call was interrupted");
            return round;
        }
        // Half of the time the next one, killed too, finds what this one left.
        if round % 2 == 1 {
            agent
                .restart()
                .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
            meter.check().unwrap();
            agent.stop().unwrap();
        }
    }
    0
}

/// Whether the start got through, being killed at that call.
#[track_caller]
fn start_killed_at(agent: &mut Agent, call: u32) -> bool {
    agent.settings().wrapper = faults::kill_at_bpf_call(call);
    agent.restart_unready().unwrap();
    agent.settings().wrapper.clear();
    let survived = poll("the start's end", LIMIT, || {
        if let Some(status) = agent.process().status()? {
            assert!(!status.success(), "{status}");
            return Ok(Some(false));
        }
        let ready = agent.get("/readyz");
        Ok(ready.is_ok_and(|(status, _)| status == 200).then_some(true))
    });
    let survived = survived.unwrap_or_else(|error| panic!("call {call}: {error:#}"));
    if survived {
        agent.stop().unwrap();
    }
    survived
}

/// Kills the agent at every `step`-th bpf(2) call of a thread while it applies a policy.
#[track_caller]
pub(crate) fn in_an_apply(step: usize) {
    let world = World::new().unwrap();
    let (mut meter, mut agent) = besieged(&world);
    let what = "kill -9 at a kernel call of a reload";
    let kills = sweep(&mut agent, step, |agent, round, call| {
        meter.phase(&format!("{what}, {call}")).unwrap();
        let policy = either(&world, round);
        let survived = killed_at(
            &world,
            agent,
            call,
            |agent| agent.write_policy("policy.yaml", &policy.text()).unwrap(),
            // Each reload is the first of an agent's life.
            |agent| agent.log().contains("generation=2 "),
        );
        meter
            .check()
            .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
        survived
    });
    meter.check().unwrap();
    meter
        .judge(&agent, Trial::Fault, what, kills, Accounts::Host)
        .unwrap();
}

/// Kills the agent at every `step`-th bpf(2) call of a thread while it attaches its programs to a
/// guest's interface that has just been made, and pins them. The guest sends from the first moment
/// on, and the guard stops it until the programs are there.
#[track_caller]
pub(crate) fn in_an_attachment(step: usize) {
    const INTERFACE: &str = "tap250i0";
    let world = World::new().unwrap();
    let mut meter = Meter::prepare(&world).unwrap();
    let guest = world.guest(250, INTERFACE).unwrap();
    let may = May::RelayOnly;
    meter.guest_by_frames(&world, &guest, None, may).unwrap();
    let policy = closed(&world);
    let mut agent = world.agent_with(world.settings(), &policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    let what = "kill -9 at a kernel call of an attachment";
    let kills = sweep(&mut agent, step, |agent, _, call| {
        meter.phase(&format!("{what}, {call}")).unwrap();
        let survived = killed_at(
            &world,
            agent,
            call,
            |_| replug(&world, &guest),
            |_| {
                let index = world.index(INTERFACE).unwrap();
                world.covered_interfaces().unwrap().contains(&index)
            },
        );
        meter
            .check()
            .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
        survived
    });
    meter.check().unwrap();
    meter.wait_all_relayed().unwrap();
    meter
        .judge(&agent, Trial::Fault, what, kills, Accounts::Guarded)
        .unwrap();
}

/// Takes a guest's interface away and makes another of its name.
#[track_caller]
fn replug(world: &World, guest: &Guest) {
    let (interface, holder) = (&guest.interface, guest.ns.holder());
    let host = &world.hosting.hypervisor;
    host.ip(&format!(
        "link del {interface}
         link add {interface} type veth peer name eth0 netns {holder}
         link set {interface} master vmbr0 up"
    ))
    .unwrap();
    guest.ns.ip("link set eth0 up").unwrap();
}

/// Tries calls from the first on, every `step`-th, until one is beyond the last; starts the agent
/// again after each. How many it was killed at.
#[track_caller]
fn sweep(
    agent: &mut Agent,
    step: usize,
    mut survives: impl FnMut(&mut Agent, u64, u32) -> bool,
) -> u64 {
    let mut kills = 0;
    for sweep in Rounds::of(1).unwrap() {
        // In a soak each sweep takes other calls.
        let first = 1 + (sweep % step as u64) as u32;
        for (round, call) in (0..).zip((first..).step_by(step)) {
            let survived = survives(agent, round, call);
            if survived {
                agent.stop().unwrap();
            }
            agent
                .restart()
                .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
            if survived {
                assert!(round > 0, "no call was interrupted");
                break;
            }
            kills += 1;
        }
    }
    kills
}

/// Kills a running agent at this call after `act`, and says whether it survived until `done`.
#[track_caller]
fn killed_at(
    world: &World,
    agent: &mut Agent,
    call: u32,
    act: impl FnOnce(&mut Agent),
    done: impl Fn(&Agent) -> bool,
) -> bool {
    let tracer = faults::kill_later(&world.hosting.hypervisor, agent, call).unwrap();
    act(agent);
    let survived = poll("the kill, or the end of what it was for", LIMIT, || {
        if agent.process().status()?.is_some() {
            return Ok(Some(false));
        }
        Ok(done(agent).then_some(true))
    });
    drop(tracer);
    let survived =
        survived.unwrap_or_else(|error| panic!("call {call}: {error:#}\n{}", agent.log()));
    // The call may be one behind the end of what it was for.
    survived && agent.process().status().unwrap().is_none()
}

/// Moments within a start and a little after, spread evenly but in no order.
struct Moments(u64);

struct Moment(Duration);

impl Moments {
    fn new() -> Self {
        Self(0x9e37_79b9)
    }

    fn next(&mut self) -> Moment {
        // A linear congruential generator: the same moments each time, as far as that is in hand.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        Moment(Duration::from_micros((self.0 >> 33) % 250_000))
    }
}

impl Moment {
    fn pass(self) {
        // Not waiting for anything: the moment is what is tested.
        std::thread::sleep(self.0);
    }
}
