//! Random frames and policies: what was right before something changed in it.

use std::net::SocketAddr;

use gate25_common::abi::{Blocked, CustomerId, CustomerPolicy, Exemption, Mode, Quarantine, SetId};
use gate25_common::address::Address;
use gate25_common::redirect::Target;
use gate25_common::testing::frames::{
    Extension, IPV4, IPV6, Ipv4, Ipv6, OLD_TAG, SERVICE_TAG, Step, TAG, Tcp, ethernet,
};
use gate25_common::testing::tables::MemoryTables;

use super::kernel::{NOTICE, NOTICE_V6, boot_time};

const TARGET_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 3];

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
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

/// A frame that was right before something changed in it behind its first `untouched` bytes, which
/// are plain Ethernet if there are any.
pub(crate) fn frame(untouched: usize, random: &mut Random) -> Vec<u8> {
    let tcp = Tcp {
        options: vec![1; 4 * random.below(4)],
        payload: vec![0x55; random.below(60)],
        ..Tcp::with_flags(random.of(&[25, 25, 25, 25, 443, 6400]), random.next() as u8)
    }
    .bytes();
    let steps = match untouched {
        0 => random.of(&[0, 0, 0, 1, 2, 3, 4]),
        _ => 0,
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
        let at = untouched + random.below(frame.len().min(120) - untouched);
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

/// Policies of customers, one of them `unassigned`'s.
pub(crate) fn policies(random: &mut Random) -> MemoryTables {
    let mut tables = MemoryTables {
        now: boot_time(),
        ..MemoryTables::default()
    };
    // Named by their contents, which are never the same.
    let sets: Vec<_> = (0..12).filter_map(|_| SetId::new(random.next())).collect();
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
            random.of(&[
                Blocked::Reject,
                Blocked::Drop,
                Blocked::Redirect,
                Blocked::Notice,
            ]),
            random.of(&[
                Quarantine::No,
                Quarantine::No,
                Quarantine::No,
                Quarantine::Yes,
            ]),
            set(random),
            set(random),
        );
        let relay = SocketAddr::from((v4_address(random), 25));
        let relay_v6 = SocketAddr::from((TARGET_V6, 25));
        let targets = match policy.blocked() {
            Some(Blocked::Notice) => [NOTICE, NOTICE_V6],
            _ => [relay, relay_v6],
        };
        let [v4, v6] = targets.map(|it| match random.below(5) {
            0 => Target::NONE,
            _ => Target::new(it.ip().into(), it.port().to_be_bytes()).expect("a port"),
        });
        let policy = policy.with_targets(v4, v6);
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
