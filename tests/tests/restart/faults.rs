//! Faults under senders that never pause; the slow tier does the same more often.

use std::time::Duration;

use gate25_tests::{PolicyText, Siege, World, faults, poll};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);

/// Both containers and the guest are one customer's, who may only use the relays.
pub(crate) fn closed(world: &World) -> PolicyText {
    PolicyText::default()
        .container("c-1", &world.below(Siege::CGROUPS))
        .customer("c-2", Siege::INTERFACE)
        .customer("c-3", "tap900i*")
        .exempt("c-3")
        .container("c-4", &world.below("elsewhere-4-*"))
        .customer("c-5", "tap905i*")
        .container("c-6", &world.below("elsewhere-6-*"))
}

/// The same to the besieged, and as different as can be in all else.
pub(crate) fn other(world: &World) -> PolicyText {
    PolicyText::default()
        .profile("other", "enforce", "reject")
        .container_of("other", "c-4", &world.below(Siege::CGROUPS))
        .customer_of("other", "c-5", Siege::INTERFACE)
        .container("c-6", &world.below("elsewhere-6-*"))
        .exempt("c-6")
        // The counters of a customer that is removed begin anew when it returns.
        .container("c-1", &world.below("elsewhere-1-*"))
        .customer("c-2", "tap902i*")
        .customer("c-3", "tap900i*")
}

/// Kills the agent so many times, at moments between the first instruction of a start and long
/// after it.
#[track_caller]
pub(crate) fn killed_at_random_moments(rounds: u32) {
    let world = World::new().unwrap();
    let mut siege = Siege::prepare(&world).unwrap();
    let mut agent = world.agent_with(world.settings(), &closed(&world)).unwrap();
    siege.attack(&world).unwrap();
    let mut before = agent.metrics().unwrap();
    let mut moments = Moments::new();
    for round in 0..rounds {
        let moment = moments.next();
        moment.pass();
        // The one before may have been killed before it was ready.
        agent.signal(Signal::SIGKILL).unwrap();
        agent.process().wait(LIMIT).unwrap();
        let policy = if round % 3 == 0 {
            other(&world)
        } else {
            closed(&world)
        };
        agent.write_policy("policy.yaml", &policy.text()).unwrap();
        if round % 4 == 3 {
            agent.restart().unwrap();
            let after = agent.metrics().unwrap();
            after.check_not_below(&before).unwrap();
            before = after;
            siege.check(&world).unwrap();
        } else {
            agent.restart_unready().unwrap();
        }
    }
    agent.wait_ready(LIMIT).unwrap();
    siege.check(&world).unwrap();
    agent.metrics().unwrap().check_not_below(&before).unwrap();
    let attempts = siege.attempts().unwrap();
    assert!(attempts > u64::from(rounds) * 10, "{attempts}");
}

/// Kills starts at their bpf(2) calls, every `step`-th of them: on a host that has nothing yet, and
/// on one where an earlier agent left a policy other than that of the files.
#[track_caller]
pub(crate) fn killed_in_a_start(step: u32) {
    let world = World::new().unwrap();
    let mut siege = Siege::prepare(&world).unwrap();
    let mut agent = world.agent_with(world.settings(), &closed(&world)).unwrap();
    agent.stop().unwrap();
    let host = &world.hosting.hypervisor;
    // Nothing: the pins are gone, and with them all that hung on them.
    for call in (1..).step_by(step as usize) {
        host.exec("umount", &["--lazy", "/sys/fs/bpf"]).unwrap();
        let survived = start_killed_at(&mut agent, call);
        agent.settings().wrapper.clear();
        if survived {
            assert!(call > step, "no call was interrupted");
            break;
        }
        agent
            .restart()
            .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
        world.wait_contained(&siege.shared.tenant).unwrap();
        agent.stop().unwrap();
    }
    agent.restart().unwrap();
    siege.attack(&world).unwrap();
    agent.stop().unwrap();
    for call in (1..).step_by(step as usize) {
        let policy = if call % 2 == 0 {
            closed(&world)
        } else {
            other(&world)
        };
        agent.write_policy("policy.yaml", &policy.text()).unwrap();
        let survived = start_killed_at(&mut agent, call);
        agent.settings().wrapper.clear();
        siege
            .check(&world)
            .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
        if survived {
            assert!(call > step, "no call was interrupted");
            break;
        }
        // Half of the time the next one, killed too, finds what this one left.
        if call % (2 * step) > step {
            agent
                .restart()
                .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
            siege.check(&world).unwrap();
            agent.stop().unwrap();
        }
    }
    agent.restart().unwrap();
    siege.check(&world).unwrap();
}

/// Whether the start got through, being killed at that call.
#[track_caller]
fn start_killed_at(agent: &mut gate25_tests::Agent, call: u32) -> bool {
    agent.settings().wrapper = faults::kill_at_bpf_call(call);
    agent.restart_unready().unwrap();
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
pub(crate) fn killed_in_an_apply(step: u32) {
    let world = World::new().unwrap();
    let mut siege = Siege::prepare(&world).unwrap();
    let mut agent = world.agent_with(world.settings(), &closed(&world)).unwrap();
    siege.attack(&world).unwrap();
    let host = &world.hosting.hypervisor;
    for (round, call) in (1..).step_by(step as usize).enumerate() {
        let policy = if round % 2 == 0 {
            other(&world)
        } else {
            closed(&world)
        };
        let tracer = faults::kill_later(host, &mut agent, call).unwrap();
        agent.write_policy("policy.yaml", &policy.text()).unwrap();
        let survived = poll("the apply's end", LIMIT, || {
            if agent.process().status()?.is_some() {
                return Ok(Some(false));
            }
            Ok(agent.log().contains("generation=2 ").then_some(true))
        });
        let survived = survived.unwrap_or_else(|error| panic!("call {call}: {error:#}"));
        siege
            .check(&world)
            .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
        drop(tracer);
        if survived {
            assert!(call > step, "no call was interrupted");
            break;
        }
        agent
            .restart()
            .unwrap_or_else(|error| panic!("after a kill at call {call}: {error:#}"));
        siege.check(&world).unwrap();
    }
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
