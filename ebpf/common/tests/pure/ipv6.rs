//! IPv6: lengths, extension headers, fragments.

use gate25_common::address::{Address, Family};
use gate25_common::decide::Route;
use gate25_common::packet::{Form, Malformed, ParseError, Parsed, Tunnel, parse};
use gate25_common::testing::frames::{Extension, Ipv6, MemoryFrame, SERVER_V6, Tcp, frame_v6};
use proptest::prelude::{Just, Strategy, prop_assert_eq, prop_oneof, proptest};

use super::{guarded, malformed, other, short};

fn syn() -> Vec<u8> {
    Tcp::syn(25).bytes()
}

fn through(extensions: &[Extension]) -> Vec<u8> {
    frame_v6(&Ipv6::through(SERVER_V6, extensions), &syn())
}

#[track_caller]
fn closed(ip: &Ipv6, payload: &[u8], kind: Malformed) {
    malformed(&frame_v6(ip, payload), kind, Family::V6);
}

const WALKED: [Extension; 8] = [
    Extension::HOP_BY_HOP,
    Extension::DESTINATION,
    Extension::Routing { left: 0 },
    Extension::ATOMIC,
    Extension::Authentication { length: 4 },
    Extension::MOBILITY,
    Extension::HOST_IDENTITY,
    Extension::SHIM6,
];

#[test]
fn plain_packet_is_judged() {
    let tcp = Tcp {
        payload: b"EHLO".to_vec(),
        ..Tcp::with_flags(25, 0x18)
    };
    let segment = guarded(&frame_v6(&Ipv6::to(SERVER_V6), &tcp.bytes()));
    assert_eq!(segment.family, Family::V6);
    assert_eq!(segment.destination, Address::from_v6(SERVER_V6));
    assert_eq!(segment.port, [0, 25]);
    assert_eq!(segment.route, Route::Direct);
    assert_eq!(segment.form, Form::Plain);
    assert_eq!((segment.network, segment.transport), (14, 54));
    assert_eq!((segment.tcp_header, segment.payload), (20, 4));
}

#[test]
fn destinations_that_stand_for_ipv4_are_judged_as_ipv4() {
    for prefix in [
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
    ] {
        let mut destination = [0; 16];
        destination[..12].copy_from_slice(&prefix);
        destination[12..].copy_from_slice(&[192, 0, 2, 25]);
        let segment = guarded(&frame_v6(&Ipv6::to(destination), &syn()));
        assert_eq!(segment.destination, Address::from_v4([192, 0, 2, 25]));
        assert_eq!(segment.family, Family::V6);
    }
}

#[test]
fn every_wrong_version_is_closed() {
    for version in (0..16).filter(|version| *version != 6) {
        closed(
            &Ipv6 {
                version,
                ..Ipv6::to(SERVER_V6)
            },
            &syn(),
            Malformed::Header,
        );
    }
}

#[test]
fn payload_length_that_cuts_the_tcp_header_is_closed() {
    for length in 1..20 {
        let ip = Ipv6 {
            payload_length: Some(length),
            ..Ipv6::to(SERVER_V6)
        };
        closed(&ip, &syn(), Malformed::Truncated);
    }
}

/// Jumbograms (RFC 2675) and BIG TCP.
#[test]
fn payload_length_of_zero_is_the_rest_of_the_frame() {
    let tcp = Tcp {
        payload: vec![0; 100],
        ..Tcp::syn(25)
    };
    for extensions in [&[][..], &[Extension::HOP_BY_HOP]] {
        let ip = Ipv6 {
            payload_length: Some(0),
            ..Ipv6::through(SERVER_V6, extensions)
        };
        assert_eq!(guarded(&frame_v6(&ip, &tcp.bytes())).payload, 100);
    }
}

#[test]
fn padding_after_the_datagram_is_not_payload() {
    let mut frame = frame_v6(&Ipv6::to(SERVER_V6), &syn());
    frame.resize(100, 0);
    assert_eq!(guarded(&frame).payload, 0);
}

#[test]
fn frame_that_ends_inside_a_header_is_closed() {
    let frame = frame_v6(&Ipv6::to(SERVER_V6), &syn());
    for length in 14..22 {
        short(&frame[..length], Family::V6);
    }
    for length in 22..74 {
        malformed(&frame[..length], Malformed::Truncated, Family::V6);
    }
}

#[test]
fn each_extension_header_is_looked_through() {
    for extension in WALKED {
        let segment = guarded(&through(&[extension]));
        let length = if extension == (Extension::Authentication { length: 4 }) {
            24
        } else {
            8
        };
        assert_eq!(segment.transport, 54 + length, "{extension:?}");
        assert_eq!(segment.form, Form::Unusual, "{extension:?}");
        assert_eq!(segment.route, Route::Direct, "{extension:?}");
    }
}

#[test]
fn extension_headers_are_looked_through_in_every_order() {
    for first in WALKED {
        for second in WALKED {
            for third in WALKED {
                let segment = guarded(&through(&[first, second, third]));
                assert_eq!(segment.port, [0, 25], "{first:?} {second:?} {third:?}");
            }
        }
    }
}

#[test]
fn extension_headers_up_to_the_limit_are_looked_through() {
    for count in 1..=8 {
        assert_eq!(
            guarded(&through(&vec![Extension::DESTINATION; count])).port,
            [0, 25]
        );
    }
    for count in 9..12 {
        malformed(
            &through(&vec![Extension::DESTINATION; count]),
            Malformed::Extensions,
            Family::V6,
        );
    }
}

#[test]
fn extension_header_lengths_are_honoured() {
    for length in 0..=50 {
        let options = Extension::Options { kind: 60, length };
        assert_eq!(
            guarded(&through(&[options])).transport,
            54 + 8 * (usize::from(length) + 1)
        );
        let authentication = Extension::Authentication { length };
        assert_eq!(
            guarded(&through(&[authentication])).transport,
            54 + 4 * (usize::from(length) + 2)
        );
    }
}

#[test]
fn extension_headers_longer_than_are_walked_are_closed() {
    for length in [58, 100, 255] {
        let options = Extension::Options { kind: 60, length };
        malformed(&through(&[options]), Malformed::Extensions, Family::V6);
    }
}

#[test]
fn extension_header_beyond_the_datagram_is_closed() {
    let ip = Ipv6 {
        payload_length: Some(7),
        ..Ipv6::through(SERVER_V6, &[Extension::DESTINATION])
    };
    closed(&ip, &syn(), Malformed::Truncated);
    let ip = Ipv6 {
        payload_length: Some(8),
        ..ip
    };
    closed(&ip, &syn(), Malformed::Truncated);
    let frame = through(&[Extension::DESTINATION]);
    malformed(&frame[..60], Malformed::Truncated, Family::V6);
}

#[test]
fn routing_header_with_segments_left_hides_the_destination() {
    for left in [1, 2, 255] {
        let routing = Extension::Routing { left };
        assert_eq!(guarded(&through(&[routing])).route, Route::SourceRouted);
        let chain = [
            Extension::HOP_BY_HOP,
            routing,
            Extension::Routing { left: 0 },
        ];
        assert_eq!(guarded(&through(&chain)).route, Route::SourceRouted);
    }
    assert_eq!(
        guarded(&through(&[Extension::Routing { left: 0 }])).route,
        Route::Direct
    );
}

#[test]
fn unknown_next_headers_pass() {
    let known = [0, 4, 6, 41, 43, 44, 47, 51, 60, 135, 139, 140];
    for protocol in (0..=255).filter(|protocol| !known.contains(protocol)) {
        let ip = Ipv6 {
            protocol,
            ..Ipv6::to(SERVER_V6)
        };
        other(&frame_v6(&ip, &syn()));
        let ip = Ipv6 {
            protocol,
            ..Ipv6::through(SERVER_V6, &[Extension::DESTINATION])
        };
        other(&frame_v6(&ip, &syn()));
    }
}

#[test]
fn tunnels_are_told() {
    for (protocol, tunnel) in [
        (4, Tunnel::Ipip),
        (41, Tunnel::SixInFour),
        (47, Tunnel::Gre),
    ] {
        for extensions in [&[][..], &[Extension::DESTINATION]] {
            let ip = Ipv6 {
                protocol,
                ..Ipv6::through(SERVER_V6, extensions)
            };
            let parsed = parse(&MemoryFrame::new(&frame_v6(&ip, &[0; 60])));
            assert_eq!(parsed, Ok(Parsed::Tunnel(tunnel)));
        }
    }
}

#[test]
fn first_fragment_with_a_whole_tcp_header_is_judged_and_never_answered() {
    let first = Extension::Fragment {
        offset: 0,
        more: true,
    };
    for chain in [
        &[first][..],
        &[Extension::HOP_BY_HOP, first],
        &[first, Extension::DESTINATION],
    ] {
        assert_eq!(guarded(&through(chain)).form, Form::Unusual);
    }
}

/// RFC 7112: a first fragment holds the whole header chain.
#[test]
fn first_fragment_without_a_whole_header_chain_is_closed_even_if_its_frame_is_padded() {
    let first = Extension::Fragment {
        offset: 0,
        more: true,
    };
    for length in 0..20 {
        let ip = Ipv6 {
            payload_length: Some(8 + length),
            ..Ipv6::through(SERVER_V6, &[first])
        };
        closed(&ip, &Tcp::syn(443).bytes(), Malformed::ShortFragment);
    }
    for length in 0..28 {
        let chain = [first, Extension::DESTINATION];
        let ip = Ipv6 {
            payload_length: Some(8 + length),
            ..Ipv6::through(SERVER_V6, &chain)
        };
        closed(&ip, &Tcp::syn(443).bytes(), Malformed::ShortFragment);
    }
}

#[test]
fn atomic_fragment_that_is_cut_short_is_truncated() {
    let ip = Ipv6 {
        payload_length: Some(20),
        ..Ipv6::through(SERVER_V6, &[Extension::ATOMIC])
    };
    closed(&ip, &syn(), Malformed::Truncated);
}

/// RFC 8200, 4.5: only the first fragment's next header counts, so another number in a later one
/// does not make it another protocol's.
#[test]
fn fragment_over_the_tcp_header_is_closed_whatever_its_next_header() {
    for more in [false, true] {
        for protocol in [6, 17, 58, 59, 60, 0, 255] {
            let overlap = Extension::Fragment { offset: 1, more };
            let ip = Ipv6 {
                protocol,
                ..Ipv6::through(SERVER_V6, &[overlap])
            };
            closed(&ip, &syn(), Malformed::OverlappingFragment);
        }
    }
}

#[test]
fn later_fragments_pass() {
    for offset in [2, 3, 181, 0x1fff] {
        for more in [false, true] {
            other(&through(&[Extension::Fragment { offset, more }]));
        }
    }
}

#[test]
fn headers_outside_the_readable_part_are_asked_for() {
    let chain = [
        Extension::HOP_BY_HOP,
        Extension::DESTINATION,
        Extension::ATOMIC,
    ];
    let frame = through(&chain);
    for linear in 14..92 {
        let parsed = parse(&MemoryFrame::new(&frame).linear(linear));
        assert_eq!(
            parsed,
            Err(ParseError::ShortNetwork(Family::V6)),
            "{linear} bytes readable"
        );
    }
}

fn extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        (0usize..4, 0u8..6).prop_map(|(kind, length)| Extension::Options {
            kind: [0, 60, 135, 140][kind],
            length
        }),
        (0u8..3).prop_map(|left| Extension::Routing { left }),
        Just(Extension::ATOMIC),
        (0u8..8).prop_map(|length| Extension::Authentication { length }),
    ]
}

proptest! {
    #[test]
    fn chains_of_any_order_and_length_lead_to_the_ports(
        chain in proptest::collection::vec(extension(), 0..=8),
    ) {
        let frame = through(&chain);
        let routed = chain.iter().any(|e| matches!(e, Extension::Routing { left: 1.. }));
        let parsed = parse(&MemoryFrame::new(&frame));
        let Ok(Parsed::Guarded(segment)) = parsed else { panic!("parsed {parsed:?}") };
        prop_assert_eq!(segment.transport, frame.len() - 20);
        prop_assert_eq!(segment.route == Route::SourceRouted, routed);
        prop_assert_eq!(segment.form == Form::Plain, chain.is_empty());
    }
}
