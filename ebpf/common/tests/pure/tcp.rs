//! The TCP header.

use gate25_common::packet::{Parsed, parse};
use gate25_common::testing::frames::{
    ACK, FIN, Ipv4, Ipv6, MemoryFrame, RST, SERVER_V4, SERVER_V6, SYN, Tcp, frame_v4, frame_v6,
};

use super::{guarded, other};

fn frames(tcp: &Tcp) -> [Vec<u8>; 2] {
    let tcp = tcp.bytes();
    [
        frame_v4(&Ipv4::to(SERVER_V4), &tcp),
        frame_v6(&Ipv6::to(SERVER_V6), &tcp),
    ]
}

#[test]
fn every_combination_of_flags_is_told() {
    for flags in 0..=255u8 {
        for frame in frames(&Tcp::with_flags(25, flags)) {
            let segment = guarded(&frame);
            let set = |flag| flags & flag == flag;
            assert_eq!(segment.is_attempt(), set(SYN) && !set(ACK), "{flags:#x}");
            assert_eq!(segment.is_reset(), set(RST), "{flags:#x}");
            assert_eq!(segment.is_ack(), set(ACK), "{flags:#x}");
            let control = u32::from(set(SYN)) + u32::from(set(FIN));
            assert_eq!(segment.control_length(), control, "{flags:#x}");
        }
    }
}

#[test]
fn every_other_port_passes() {
    for port in (0..=65_535).filter(|port| *port != 25) {
        other(&frames(&Tcp::syn(port))[usize::from(port) % 2]);
    }
}

#[test]
fn source_port_does_not_matter() {
    for source in [0, 25, 65_535] {
        for frame in frames(&Tcp {
            source,
            ..Tcp::syn(25)
        }) {
            assert_eq!(guarded(&frame).port, [0, 25]);
        }
        for frame in frames(&Tcp {
            source: 25,
            ..Tcp::syn(source.max(26))
        }) {
            other(&frame);
        }
    }
}

#[test]
fn every_guarded_port_is_judged() {
    let ports = vec![25, 465, 587, 2525, 6400, 1, 65_535, 8025];
    for frame in ports.iter().flat_map(|port| frames(&Tcp::syn(*port))) {
        let frame = MemoryFrame {
            ports: ports.clone(),
            ..MemoryFrame::new(&frame)
        };
        assert!(matches!(parse(&frame), Ok(Parsed::Guarded(_))));
    }
}

#[test]
fn header_length_and_payload_follow_the_data_offset() {
    for words in 5..=15u8 {
        let options = vec![1; 4 * (usize::from(words) - 5)];
        for frame in frames(&Tcp {
            options,
            payload: vec![7; 33],
            ..Tcp::syn(25)
        }) {
            let segment = guarded(&frame);
            assert_eq!(
                (segment.tcp_header, segment.payload),
                (4 * usize::from(words), 33)
            );
        }
    }
}

#[test]
fn data_offset_beyond_the_datagram_leaves_no_payload() {
    for frame in frames(&Tcp {
        data_offset: Some(15),
        payload: vec![7; 39],
        ..Tcp::syn(25)
    }) {
        assert_eq!(guarded(&frame).payload, 0);
    }
    for frame in frames(&Tcp {
        data_offset: Some(15),
        payload: vec![7; 41],
        ..Tcp::syn(25)
    }) {
        assert_eq!(guarded(&frame).payload, 1);
    }
}
