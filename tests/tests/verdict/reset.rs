//! Resets, read by other people's code.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use gate25_common::abi::{Blocked, Mode, Quarantine};
use gate25_common::decide::HostMode;
use gate25_common::testing::frames::{
    ACK, FIN, GATEWAY_MAC, GUEST_MAC, GUEST_V4, GUEST_V6, IPV4, IPV6, Ipv4, Ipv6, PSH, SERVER_V4,
    SERVER_V6, SERVICE_TAG, SYN, Step, Tcp, ethernet,
};

use super::kernel::{Action, Kernel, LOOPBACK, Meta, in_namespace};
use super::table::tables;

const SEQUENCE: u32 = 0x1020_3040;
const ACKNOWLEDGEMENT: u32 = 0x5060_7080;

/// Flags and payload of a segment, and by RFC 9293, 3.10.7.1 what answers it: sequence number,
/// and acknowledgement number where it has one.
fn answers() -> Vec<(u8, usize, u32, Option<u32>)> {
    vec![
        // "If the ACK bit is off, sequence number zero is used, <SEQ=0><ACK=SEG.SEQ+SEG.LEN>".
        // SEG.LEN counts SYN and FIN (3.4).
        (SYN, 0, 0, Some(SEQUENCE + 1)),
        (SYN, 100, 0, Some(SEQUENCE + 101)),
        (FIN, 0, 0, Some(SEQUENCE + 1)),
        (SYN | FIN, 7, 0, Some(SEQUENCE + 9)),
        (0, 0, 0, Some(SEQUENCE)),
        (PSH, 11, 0, Some(SEQUENCE + 11)),
        // "If the ACK bit is on, <SEQ=SEG.ACK><CTL=RST>".
        (ACK, 0, ACKNOWLEDGEMENT, None),
        (SYN | ACK, 0, ACKNOWLEDGEMENT, None),
        (ACK | PSH, 1400, ACKNOWLEDGEMENT, None),
        (ACK | FIN, 3, ACKNOWLEDGEMENT, None),
    ]
}

fn rejecting() -> Kernel {
    let mut kernel = Kernel::load(HostMode::Policy);
    kernel.fill(
        LOOPBACK,
        &tables(Mode::Enforce, Blocked::Reject, Quarantine::No),
    );
    kernel
}

#[track_caller]
fn answer(kernel: &Kernel, frame: &[u8]) -> Vec<u8> {
    match kernel.run(frame, Meta::default()) {
        Action::Answered(answer) => answer,
        other @ (Action::Passed | Action::Dropped | Action::Led(_)) => panic!("{other:?}"),
    }
}

/// Checks everything in `answer` that does not depend on the segment it answers.
#[track_caller]
fn check(answer: &[u8], steps: &[Step], sequence: u32, acknowledgement: Option<u32>) {
    assert_eq!(answer[..6], GUEST_MAC);
    assert_eq!(answer[6..12], GATEWAY_MAC);
    let packet = SlicedPacket::from_ethernet(answer).expect("a right packet");
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        panic!("no TCP in {answer:02x?}");
    };
    let header = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let ip = ip.header();
            assert_eq!((ip.source(), ip.destination()), (SERVER_V4, GUEST_V4));
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
            assert_eq!(ip.total_len(), 40);
            let sum = tcp.calc_checksum_ipv4(SERVER_V4, GUEST_V4).expect("short");
            assert_eq!(tcp.checksum(), sum);
            ethernet(steps, IPV4, &[]).len() + 20
        }
        Some(NetSlice::Ipv6(ip)) => {
            let ip = ip.header();
            assert_eq!((ip.source(), ip.destination()), (SERVER_V6, GUEST_V6));
            assert_eq!(ip.payload_length(), 20);
            let sum = tcp.calc_checksum_ipv6(SERVER_V6, GUEST_V6).expect("short");
            assert_eq!(tcp.checksum(), sum);
            ethernet(steps, IPV6, &[]).len() + 40
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(answer.len(), header + 20);
    assert_eq!((tcp.source_port(), tcp.destination_port()), (25, 40_000));
    assert_eq!(tcp.sequence_number(), sequence);
    assert_eq!(tcp.acknowledgment_number(), acknowledgement.unwrap_or(0));
    assert_eq!(tcp.ack(), acknowledgement.is_some());
    assert!(tcp.rst());
    assert!(!tcp.syn() && !tcp.fin() && !tcp.psh() && !tcp.urg() && !tcp.ece() && !tcp.cwr());
    // What stood between the addresses and the packet stays there.
    let link = ethernet(
        steps,
        u16::from_be_bytes([answer[header - 22], answer[header - 21]]),
        &[],
    );
    let link = link.get(12..link.len() - 2).expect("its tags");
    assert_eq!(answer[12..12 + link.len()], *link);
}

#[test]
fn every_kind_of_segment_gets_its_reset() {
    in_namespace(|_| {
        let kernel = rejecting();
        let stacks: [&[Step]; 4] = [
            &[],
            &[Step::PRIORITY],
            &[Step::Tag(0x8100, 0xe123)],
            &[Step::Tag(SERVICE_TAG, 5), Step::Tag(0x8100, 0x6007)],
        ];
        for (flags, payload, sequence, acknowledgement) in answers() {
            for options in [0, 20, 40] {
                let tcp = Tcp {
                    options: vec![1; options],
                    payload: vec![0xa5; payload],
                    ..Tcp::with_flags(25, flags)
                }
                .bytes();
                for steps in stacks {
                    let v4 = ethernet(steps, IPV4, &Ipv4::to(SERVER_V4).with(&tcp));
                    let v6 = ethernet(steps, IPV6, &Ipv6::to(SERVER_V6).with(&tcp));
                    for frame in [v4, v6] {
                        check(&answer(&kernel, &frame), steps, sequence, acknowledgement);
                    }
                }
            }
        }
    });
}

#[test]
fn padding_of_a_short_frame_is_no_payload_to_the_reset() {
    in_namespace(|_| {
        let kernel = rejecting();
        let mut frame = ethernet(&[], IPV4, &Ipv4::to(SERVER_V4).with(&Tcp::syn(25).bytes()));
        frame.resize(60, 0);
        check(&answer(&kernel, &frame), &[], 0, Some(SEQUENCE + 1));
    });
}

#[test]
fn sequence_numbers_wrap_around() {
    in_namespace(|_| {
        let kernel = rejecting();
        let tcp = Tcp {
            sequence: u32::MAX,
            payload: vec![0; 10],
            ..Tcp::syn(25)
        };
        let frame = ethernet(&[], IPV4, &Ipv4::to(SERVER_V4).with(&tcp.bytes()));
        check(&answer(&kernel, &frame), &[], 0, Some(10));
    });
}

#[test]
fn answer_does_not_depend_on_checksums_of_the_question() {
    in_namespace(|_| {
        let kernel = rejecting();
        let frame = ethernet(&[], IPV4, &Ipv4::to(SERVER_V4).with(&Tcp::syn(25).bytes()));
        let expected = answer(&kernel, &frame);
        for value in [1, 0x7f, 0xff] {
            let mut frame = frame.clone();
            frame[24..26].fill(value);
            frame[50..52].fill(value);
            assert_eq!(answer(&kernel, &frame), expected);
        }
    });
}

#[test]
fn large_buffer_gets_one_reset() {
    in_namespace(|_| {
        let kernel = rejecting();
        let tcp = Tcp {
            payload: vec![1; 3000],
            ..Tcp::with_flags(25, ACK)
        };
        let frame = ethernet(&[], IPV4, &Ipv4::to(SERVER_V4).with(&tcp.bytes()));
        let meta = Meta {
            gso_size: 1400,
            ..Meta::default()
        };
        match kernel.run(&frame, meta) {
            Action::Answered(answer) => check(&answer, &[], ACKNOWLEDGEMENT, None),
            other @ (Action::Passed | Action::Dropped | Action::Led(_)) => panic!("{other:?}"),
        }
    });
}
