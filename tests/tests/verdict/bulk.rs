//! Many packets that were right before something changed in them: the kernel and the pure
//! functions decide and count alike.

use std::time::Instant;

use gate25_common::abi::CustomerId;
use gate25_common::counters::Uninterrupted;
use gate25_common::decide::{HostMode, Verdict};
use gate25_common::packet::{ParseError, Parsed, parse};
use gate25_common::testing::frames::MemoryFrame;
use gate25_tests::{NetNs, fewer};

use super::cgroup::Cgroups;
use super::egress::{family, make_way_out, out, parse_packet};
use super::kernel::{Action, Kernel, LOOPBACK, Meta, NOTICE, NOTICE_V6, in_namespace};
use super::pure::{carried_out, judge, possible};
use super::random::{Random, frame, policies};

const PACKETS: u32 = 40_000;
/// Packets between two changes of the workload's owner.
const ROUND: u32 = 500;

/// Where the packets are judged.
#[derive(Debug, Clone, Copy)]
enum Hook {
    Interface,
    Cgroup,
}

impl Hook {
    /// Bytes of a frame that the program does not get to see.
    fn headers(self) -> usize {
        match self {
            Self::Interface => 0,
            Self::Cgroup => 14,
        }
    }

    fn parse(self, frame: &[u8]) -> Result<Parsed, ParseError> {
        match self {
            Self::Interface => parse(&MemoryFrame::new(frame)),
            Self::Cgroup => parse_packet(frame, family(frame).expect("IP behind Ethernet")),
        }
    }

    fn run(self, kernel: &Kernel, frame: &[u8]) -> Action {
        match self {
            Self::Interface => kernel.run(frame, Meta::default()),
            Self::Cgroup => kernel.run_egress(frame, out()),
        }
    }
}

fn agree(namespace: &NetNs, hook: Hook, host: HostMode, seed: u64) {
    agree_with(namespace, hook, host, Kernel::load(host), seed);
}

fn agree_with(namespace: &NetNs, hook: Hook, host: HostMode, mut kernel: Kernel, seed: u64) {
    make_way_out(namespace);
    let cgroups = Cgroups::enter();
    let mut random = Random(seed);
    let mut tables = policies(&mut random);
    let owners: Vec<_> = tables.policies.keys().copied().collect();
    kernel.fill(LOOPBACK, &tables);
    kernel.listen(&[NOTICE, NOTICE_V6]);
    let mut expected = kernel.host_counters();
    let mut seen = [0u32; Verdict::ALL.len()];
    let (mut answered, mut untracked) = (0, 0);
    let start = Instant::now();
    let (packets, round) = (fewer(PACKETS), fewer(ROUND));
    for number in 0..packets {
        if number % round == 0 {
            // One of those with a policy, one without, or nobody.
            tables.owner = match random.below(10) {
                0 => None,
                1 => Some(CustomerId::from_raw(999)),
                _ => Some(random.of(&owners)),
            };
            kernel.own(LOOPBACK, tables.owner);
            kernel.own_cgroup(cgroups.inner(), tables.owner);
        }
        let frame = frame(hook.headers(), &mut random);
        let length = frame.len() - hook.headers();
        let parsed = hook.parse(&frame);
        let is_attempt = matches!(&parsed, Ok(Parsed::Guarded(segment)) if segment.is_attempt());
        let decision = judge(&tables, host, parsed, length, &mut expected);
        // Only who has a policy was given counters.
        if is_attempt && decision.is_some_and(|it| !tables.policies.contains_key(&it.customer)) {
            expected.count_untracked::<Uninterrupted>();
            untracked += 1;
        }
        let verdict = decision.map(|decision| decision.verdict);
        let action = hook.run(&kernel, &frame);
        assert!(
            carried_out(&tables, decision, &frame, &action),
            "seed {seed}, packet {number}: {action:?} for {verdict:?}: {frame:02x?}"
        );
        if let Some(verdict) = verdict {
            seen[verdict as usize] += 1;
        }
        answered += u32::from(matches!(action, Action::Answered(_)));
        if number % 16 == 0 {
            let context = format!("seed {seed}, packet {number}");
            assert_eq!(kernel.host_counters(), expected, "{context}");
        }
    }
    assert_eq!(kernel.host_counters(), expected, "at the end");
    let rate = f64::from(packets) / start.elapsed().as_secs_f64();
    report(&format!(
        "{hook:?}, {host:?}: {packets} packets, {rate:.0} a second, {seen:?}, {answered} answered"
    ));
    // Not vacuous: a fair share of each.
    assert!(untracked > packets / 1000, "{untracked}");
    for verdict in possible(host) {
        assert!(
            seen[*verdict as usize] > packets / 100,
            "{verdict:?} in {seen:?}"
        );
    }
}

#[expect(clippy::print_stdout, reason = "shown with --nocapture")]
fn report(line: &str) {
    println!("{line}");
}

#[test]
fn mutated_packets_are_decided_alike_under_the_policy() {
    in_namespace(|namespace| agree(namespace, Hook::Interface, HostMode::Policy, 25));
}

#[test]
fn mutated_packets_are_decided_alike_where_the_host_observes() {
    in_namespace(|namespace| agree(namespace, Hook::Interface, HostMode::Observe, 26));
}

#[test]
fn mutated_packets_of_containers_are_decided_alike_under_the_policy() {
    in_namespace(|namespace| agree(namespace, Hook::Cgroup, HostMode::Policy, 27));
}

#[test]
fn mutated_packets_of_containers_are_decided_alike_where_the_host_observes() {
    in_namespace(|namespace| agree(namespace, Hook::Cgroup, HostMode::Observe, 28));
}

#[test]
fn mutated_packets_are_decided_alike_while_the_host_is_bypassed() {
    for (hook, seed) in [(Hook::Interface, 29), (Hook::Cgroup, 30)] {
        in_namespace(move |namespace| {
            let kernel = Kernel::load_bypassed();
            agree_with(namespace, hook, HostMode::Observe, kernel, seed);
        });
    }
}
