//! Many packets that were right before something changed in them: the kernel and the pure
//! functions decide and count alike.

use std::time::Instant;

use gate25_common::abi::{Blocked, CustomerId, CustomerPolicy, Exemption, Mode, Quarantine, SetId};
use gate25_common::address::Address;
use gate25_common::counters::{HostCounters, Uninterrupted};
use gate25_common::decide::{HostMode, Subject, Verdict, decide};
use gate25_common::packet::{Malformed, ParseError, Parsed, parse};
use gate25_common::testing::frames::{
    Extension, IPV4, IPV6, Ipv4, Ipv6, MemoryFrame, OLD_TAG, SERVICE_TAG, Step, TAG, Tcp, ethernet,
};
use gate25_common::testing::tables::MemoryTables;
use gate25_tests::NetNs;

use super::cgroup::Cgroups;
use super::egress::{family, make_way_out, out, parse_packet};
use super::kernel::{Action, Kernel, LOOPBACK, Meta, boot_time, in_namespace};

const PACKETS: u32 = 40_000;
/// Packets between two changes of the workload's owner.
const ROUND: u32 = 500;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

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

fn v4_address(random: &mut Random) -> [u8; 4] {
    [
        random.of(&[10, 192, 203, 224]),
        random.of(&[0, 1]),
        random.of(&[0, 2]),
        random.below(8) as u8,
    ]
}

fn v6_address(random: &mut Random) -> [u8; 16] {
    let mut address = [0; 16];
    let head = random.of(&[
        [0x20, 1, 0x0d, 0xb8],
        [0, 0x64, 0xff, 0x9b],
        [0; 4],
        [0xff, 2, 0, 0],
    ]);
    address[..4].copy_from_slice(&head);
    if head == [0; 4] {
        address[10..12].fill(0xff);
    }
    address[12..].copy_from_slice(&v4_address(random));
    address
}

fn address(random: &mut Random) -> Address {
    if random.one_in(2) {
        Address::from_v4(v4_address(random))
    } else {
        Address::from_v6(v6_address(random))
    }
}

fn extension(random: &mut Random) -> Extension {
    match random.below(7) {
        0 => Extension::HOP_BY_HOP,
        1 => Extension::Options {
            kind: 60,
            length: random.below(12) as u8,
        },
        2 => Extension::Routing {
            left: random.of(&[0, 0, 1]),
        },
        3 => Extension::ATOMIC,
        4 => Extension::Fragment {
            offset: random.of(&[0, 0, 1, 2, 99]),
            more: random.one_in(2),
        },
        5 => Extension::Authentication {
            length: random.below(8) as u8,
        },
        _ => Extension::MOBILITY,
    }
}

fn frame(hook: Hook, random: &mut Random) -> Vec<u8> {
    let tcp = Tcp {
        options: vec![1; 4 * random.below(4)],
        payload: vec![0x55; random.below(60)],
        ..Tcp::with_flags(random.of(&[25, 25, 25, 25, 443, 6400]), random.next() as u8)
    }
    .bytes();
    let steps = match hook {
        Hook::Interface => random.of(&[0, 0, 0, 1, 2, 3, 4]),
        Hook::Cgroup => 0,
    };
    let steps: Vec<_> = (0..steps)
        .map(|_| match random.below(5) {
            0 => Step::SNAP,
            tag => Step::Tag(
                [TAG, SERVICE_TAG, OLD_TAG, TAG][tag - 1],
                random.next() as u16,
            ),
        })
        .collect();
    let mut frame = if random.one_in(2) {
        let mut ip = Ipv4::to(v4_address(random));
        if random.one_in(5) {
            ip.fragment = random.of(&[Ipv4::MORE, Ipv4::DONT, 1, 2, Ipv4::MORE | 1]);
        }
        ip.options = match random.below(8) {
            0 => vec![1; 4 * random.below(11)],
            1 => vec![131, 7, 4, 192, 0, 2, 1, 0],
            2 => (0..8).map(|_| random.next() as u8).collect(),
            3 => vec![68, random.below(12) as u8, 1, 1, 137, 3, 4, 0, 148, 4, 0, 0],
            _ => Vec::new(),
        };
        ip.protocol = random.of(&[6, 6, 6, 6, 6, 6, 17, 51, 4, 47]);
        ethernet(&steps, IPV4, &ip.with(&tcp))
    } else {
        let mut ip = Ipv6::to(v6_address(random));
        let extensions = random.of(&[0, 0, 0, 1, 2, 3, 8, 9]);
        ip.extensions = (0..extensions).map(|_| extension(random)).collect();
        ip.protocol = random.of(&[6, 6, 6, 6, 6, 17, 59, 41]);
        ethernet(&steps, IPV6, &ip.with(&tcp))
    };
    for _ in 0..random.of(&[0, 0, 0, 1, 2, 4]) {
        let at = hook.headers() + random.below(frame.len().min(120) - hook.headers());
        frame[at] = random.of(&[
            0,
            1,
            2,
            5,
            6,
            25,
            43,
            44,
            51,
            60,
            0x45,
            0x46,
            random.0 as u8,
        ]);
    }
    if random.one_in(8) {
        // A test run takes no frame that ends inside its first IP header (net/bpf/test_run.c).
        let length = 54 + random.below(frame.len());
        frame.resize(length, 0);
    }
    frame
}

fn policies(random: &mut Random) -> MemoryTables {
    let mut tables = MemoryTables {
        now: boot_time(),
        ..MemoryTables::default()
    };
    let sets: Vec<_> = (1..=12).filter_map(SetId::new).collect();
    for set in &sets {
        for entry in 0..1 + random.below(12) {
            let length = random.of(&[0, 32, 96, 104, 112, 120, 125, 126, 127, 128]);
            let mask = match length {
                0 => 0,
                length => u128::MAX << (128 - u32::from(length)),
            };
            let bits = u128::from_be_bytes(address(random).octets()) & mask;
            // Not through the canonical form: a prefix of NAT64 addresses is not one of IPv4.
            if Address::from_v6(bits.to_be_bytes()).octets() == bits.to_be_bytes() {
                let prefix = Address::from_v6(bits.to_be_bytes());
                tables.insert(*set, prefix, length, entry as u16);
            }
        }
    }
    let set = |random: &mut Random| match random.below(8) {
        0 => SetId::ANY,
        1..4 => SetId::NONE,
        _ => random.of(&sets),
    };
    for number in 0..24 {
        let policy = CustomerPolicy::new(
            random.of(&[Mode::Enforce, Mode::Enforce, Mode::Observe]),
            random.of(&[Blocked::Reject, Blocked::Drop]),
            random.of(&[
                Quarantine::No,
                Quarantine::No,
                Quarantine::No,
                Quarantine::Yes,
            ]),
            set(random),
            set(random),
        );
        let exemptions: Vec<_> = (0..random.below(17))
            .map(|_| {
                // Long over, not yet begun, in force.
                let times = [(0, 1), (u64::MAX - 1, u64::MAX), (0, u64::MAX)];
                let (starts, expires) = random.of(&times);
                Exemption::new(set(random), starts, expires)
            })
            .collect();
        let policy = policy.with_exemptions(&exemptions).expect("at most 16");
        let customer = match number {
            0 => CustomerId::UNASSIGNED,
            number => CustomerId::from_raw(number),
        };
        tables.policies.insert(customer, policy);
    }
    tables
}

/// What the pure functions make of `frame`; counts it as the program should.
fn expect(
    tables: &MemoryTables,
    (hook, host): (Hook, HostMode),
    frame: &[u8],
    counters: &mut HostCounters,
) -> Option<Verdict> {
    let length = (frame.len() - hook.headers()) as u64;
    let (subject, family) = match hook.parse(frame) {
        Ok(Parsed::Other) | Err(ParseError::ShortLink) => return None,
        Ok(Parsed::Tunnel(tunnel)) => {
            counters.count_tunnel::<Uninterrupted>(tunnel);
            return None;
        }
        Ok(Parsed::Guarded(segment)) => {
            let decision = decide(tables, host, &segment.subject());
            counters.count::<Uninterrupted>(&decision, segment.family, 1, length);
            if segment.is_attempt() {
                counters.count_attempt::<Uninterrupted>(&decision, segment.family);
            }
            return Some(decision.verdict);
        }
        Err(ParseError::ShortNetwork(family)) => (Subject::Malformed(Malformed::Truncated), family),
        Err(ParseError::Malformed(kind, family)) => (Subject::Malformed(kind), family),
    };
    let decision = decide(tables, host, &subject);
    counters.count::<Uninterrupted>(&decision, family, 1, length);
    Some(decision.verdict)
}

fn agree(namespace: &NetNs, hook: Hook, host: HostMode, seed: u64) {
    make_way_out(namespace);
    let cgroups = Cgroups::enter();
    let mut random = Random(seed);
    let mut tables = policies(&mut random);
    let owners: Vec<_> = tables.policies.keys().copied().collect();
    let mut kernel = Kernel::load(host);
    kernel.fill(LOOPBACK, &tables);
    let mut expected = kernel.host_counters();
    let mut seen = [0u32; Verdict::ALL.len()];
    let mut answered = 0;
    let start = Instant::now();
    for number in 0..PACKETS {
        if number % ROUND == 0 {
            // One of those with a policy, one without, or nobody.
            tables.owner = match random.below(10) {
                0 => None,
                1 => Some(CustomerId::from_raw(999)),
                _ => Some(random.of(&owners)),
            };
            kernel.own(LOOPBACK, tables.owner);
            kernel.own_cgroup(cgroups.inner(), tables.owner);
        }
        let frame = frame(hook, &mut random);
        let verdict = expect(&tables, (hook, host), &frame, &mut expected);
        let action = hook.run(&kernel, &frame);
        let agrees = match verdict {
            None | Some(Verdict::Allow | Verdict::Observe) => action == Action::Passed,
            Some(Verdict::Drop) => action == Action::Dropped,
            Some(Verdict::Reject) => action != Action::Passed,
            Some(Verdict::Redirect | Verdict::Notice | Verdict::Throttle) => false,
        };
        assert!(
            agrees,
            "seed {seed}, packet {number}: {action:?} for {verdict:?}: {frame:02x?}"
        );
        if let Some(verdict) = verdict {
            seen[verdict as usize] += 1;
        }
        answered += u32::from(matches!(action, Action::Answered(_)));
        if number % 16 == 0 {
            same(
                &kernel.host_counters(),
                &expected,
                &format!("seed {seed}, packet {number}"),
            );
        }
    }
    same(&kernel.host_counters(), &expected, "at the end");
    let rate = f64::from(PACKETS) / start.elapsed().as_secs_f64();
    report(&format!(
        "{hook:?}, {host:?}: {PACKETS} packets, {rate:.0} a second, {seen:?}, {answered} answered"
    ));
    // Not vacuous: a fair share of each.
    let all = match host {
        HostMode::Policy => &[
            Verdict::Allow,
            Verdict::Observe,
            Verdict::Reject,
            Verdict::Drop,
        ][..],
        HostMode::Observe => &[Verdict::Allow, Verdict::Observe],
    };
    for verdict in all {
        assert!(
            seen[*verdict as usize] > PACKETS / 100,
            "{verdict:?} in {seen:?}"
        );
    }
}

#[expect(clippy::print_stdout, reason = "shown with --nocapture")]
fn report(line: &str) {
    println!("{line}");
}

/// Compares all but the attempts of customers without counters, of which there are some here.
#[track_caller]
fn same(kernel: &HostCounters, expected: &HostCounters, context: &str) {
    let mut expected = *expected;
    while expected.untracked() < kernel.untracked() {
        expected.count_untracked::<Uninterrupted>();
    }
    assert_eq!(*kernel, expected, "{context}");
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
