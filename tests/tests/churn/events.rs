//! Events that nobody takes out of the ring buffer.

use gate25_common::{abi::EVENTS_BYTES, counters::Event};
use gate25_tests::{Accounts, May, Meter, Network, Offload, PolicyText, Rounds, Tap, Trial, World};
use nix::sys::signal::Signal;

use super::scene::{LIMIT, check_tight, watchful};

const LOST: &str = "gate25_events_lost_total";
/// Beyond the first ones of a customer, every so many-th attempt is reported.
const SAMPLE: u64 = 64;
/// Packets a second and sender, half of them attempts.
const RATE: u32 = 15_000;

/// Suspends the agent until the ring buffer is full and more: what is lost is counted, and nobody is
/// judged otherwise.
#[track_caller]
pub(crate) fn nobody_reads(times: u64) {
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let host = &world.hosting.hypervisor;
    let mut policy = PolicyText::default();
    for (number, name) in [(101, "tap101i0"), (102, "tap102i0")] {
        let tap = Tap::new(host, name, Offload::VnetHeader).unwrap();
        host.ip(&format!("link set {name} master vmbr0 up"))
            .unwrap();
        let owner = format!("c-{number}");
        meter
            .tap(&world, tap, number, Some(&owner), May::RelayOnly)
            .unwrap();
        policy = policy.customer(&owner, name);
    }
    let container = world.container("shared", &Network::Hypervisor).unwrap();
    policy = policy.container("c-shared", &world.below("shared"));
    meter
        .container(&world, container, Some("c-shared"), May::RelayOnly)
        .unwrap();
    meter.forbidden_rate(RATE);
    let mut agent = world.agent_with(watchful(&world, ""), &policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    // Each record has eight bytes of the kernel's.
    let room = (EVENTS_BYTES / (size_of::<Event>() + 8)) as u64;
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        let before = agent.metrics().unwrap().sum(LOST, &[]).unwrap();
        meter
            .phase(&format!("nobody reads, round {round}"))
            .unwrap();
        agent.signal(Signal::SIGSTOP).unwrap();
        for _ in 0..10 {
            meter.wait_all_sent(2 * room * SAMPLE * 12 / 100).unwrap();
        }
        check_tight(&meter, &agent, "nobody reads");
        agent.signal(Signal::SIGCONT).unwrap();
        agent
            .wait_metric(LOST, &[], LIMIT, |now| now > before)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        meter.check().unwrap();
    }
    let what = "ring buffer of events full, its reader suspended";
    meter
        .judge(
            &agent,
            Trial::Fault,
            what,
            rounds.begun(),
            Accounts::Customers,
        )
        .unwrap();
}
