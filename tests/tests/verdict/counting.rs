//! Segments and bytes of large buffers, attempts, destinations.

use gate25_common::abi::{Blocked, CustomerId, Mode, Quarantine};
use gate25_common::address::Family;
use gate25_common::decide::{HostMode, Reason, Verdict};
use gate25_common::testing::frames::{
    ACK, IPV4, IPV6, Ipv4, Ipv6, SERVER_V4, SERVER_V6, SYN, Step, Tcp, ethernet, frame_v4,
};

use super::kernel::{Action, Kernel, LOOPBACK, Meta, in_namespace};
use super::table::{CUSTOMER, EXEMPT_V4, RELAY_V4, tables};

fn dropping() -> Kernel {
    let mut kernel = Kernel::load(HostMode::Policy);
    kernel.fill(
        LOOPBACK,
        &tables(Mode::Enforce, Blocked::Drop, Quarantine::No),
    );
    kernel
}

/// Payload, `gso_size`, and the packets and bytes that come out of it, with headers of `header`
/// bytes before each.
#[track_caller]
fn counted(
    steps: &[Step],
    family: Family,
    payload: usize,
    gso_size: u32,
    packets: u64,
    bytes: u64,
) {
    let kernel = dropping();
    let tcp = Tcp {
        options: vec![1; 12],
        payload: vec![1; payload],
        ..Tcp::with_flags(25, ACK)
    };
    let frame = match family {
        Family::V4 => ethernet(steps, IPV4, &Ipv4::to(SERVER_V4).with(&tcp.bytes())),
        Family::V6 => ethernet(steps, IPV6, &Ipv6::to(SERVER_V6).with(&tcp.bytes())),
    };
    let meta = Meta {
        gso_size,
        ..Meta::default()
    };
    assert_eq!(kernel.run(&frame, meta), Action::Dropped);
    let counters = kernel.host_counters();
    assert_eq!(counters.packets(Verdict::Drop, family), packets);
    assert_eq!(counters.bytes(Verdict::Drop, family), bytes);
    assert_eq!(
        counters.connections(Verdict::Drop, Reason::Profile, family),
        0
    );
}

/// A test run takes no more than a page (net/bpf/test_run.c).
///
/// Headers are 14 + 20 + 32 = 66 bytes, or 14 + 40 + 32 = 86, and 4 more with a tag.
#[test]
fn large_buffers_count_as_the_packets_they_become() {
    in_namespace(|_| {
        // One packet.
        counted(&[], Family::V4, 3000, 0, 1, 3066);
        // 1448 + 1448 + 104: 3000 + 3 * 66.
        counted(&[], Family::V4, 3000, 1448, 3, 3198);
        // 1500 + 1500: 3000 + 2 * 66.
        counted(&[], Family::V4, 3000, 1500, 2, 3132);
        counted(&[], Family::V4, 3000, 3000, 1, 3066);
        counted(&[], Family::V4, 3000, 2999, 2, 3132);
        counted(&[], Family::V4, 3000, 60_000, 1, 3066);
        // 1428 + 1428 + 144: 3000 + 3 * 86.
        counted(&[], Family::V6, 3000, 1428, 3, 3258);
        // 3000 + 3 * 70.
        counted(&[Step::PRIORITY], Family::V4, 3000, 1448, 3, 3210);
        // Nothing in it is still one packet.
        counted(&[], Family::V4, 0, 1448, 1, 66);
    });
}

#[test]
fn attempts_of_a_customer_are_counted_by_verdict() {
    in_namespace(|_| {
        let kernel = dropping();
        for (destination, times) in [(SERVER_V4, 3), (RELAY_V4, 2), (EXEMPT_V4, 1)] {
            for flags in [SYN, SYN | ACK, ACK] {
                for _ in 0..times {
                    let frame =
                        frame_v4(&Ipv4::to(destination), &Tcp::with_flags(25, flags).bytes());
                    kernel.run(&frame, Meta::default());
                }
            }
        }
        let counters = kernel.customer_counters(CUSTOMER);
        assert_eq!(counters.connections(Verdict::Drop), 3);
        assert_eq!(counters.connections(Verdict::Allow), 3);
        // All but those to the relay.
        assert_eq!(counters.uncovered(), 4);
        assert_eq!(
            kernel.customer_counters(CustomerId::UNASSIGNED).uncovered(),
            0
        );
    });
}

#[test]
fn destinations_without_a_relay_are_sketched() {
    in_namespace(|_| {
        let kernel = dropping();
        for round in 0..3 {
            for host in 0..100 {
                let frame = frame_v4(&Ipv4::to([203, 0, 113, host]), &Tcp::syn(25).bytes());
                kernel.run(&frame, Meta::default());
            }
            let ones = kernel.sketch(CUSTOMER).ones();
            // 100 of 4096 bits: two destinations share a bit about once (linear counting's
            // expectation is 98.8 bits, its standard deviation 1.1).
            assert!(
                (94..=100).contains(&ones),
                "{ones} bits after round {round}"
            );
        }
        let before = kernel.sketch(CUSTOMER);
        for _ in 0..10 {
            kernel.run(
                &frame_v4(&Ipv4::to(RELAY_V4), &Tcp::syn(25).bytes()),
                Meta::default(),
            );
        }
        assert_eq!(kernel.sketch(CUSTOMER), before);
    });
}

#[test]
fn customer_without_counters_is_judged_and_counted_as_untracked() {
    in_namespace(|_| {
        let mut kernel = dropping();
        let stranger = CustomerId::from_name("not-written-yet");
        let mut tables = tables(Mode::Enforce, Blocked::Drop, Quarantine::No);
        tables.policies.clear();
        kernel.fill(LOOPBACK, &tables.owned_by(Some(stranger)));
        let frame = frame_v4(&Ipv4::to(SERVER_V4), &Tcp::syn(25).bytes());
        assert_eq!(kernel.run(&frame, Meta::default()), Action::Dropped);
        let counters = kernel.host_counters();
        assert_eq!(counters.untracked(), 1);
        assert_eq!(
            counters.connections(Verdict::Drop, Reason::Malformed, Family::V4),
            1
        );
    });
}
