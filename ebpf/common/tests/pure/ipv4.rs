//! IPv4: lengths, options, fragments.

use gate25_common::address::{Address, Family};
use gate25_common::decide::Route;
use gate25_common::packet::{Form, Malformed, ParseError, Parsed, Tunnel, parse};
use gate25_common::testing::frames::{IPV4, Ipv4, MemoryFrame, SERVER_V4, Tcp, ethernet, frame_v4};

use super::{guarded, malformed, other, short};

fn syn() -> Vec<u8> {
    Tcp::syn(25).bytes()
}

fn with_options(options: &[u8]) -> Vec<u8> {
    let options = options.to_vec();
    frame_v4(
        &Ipv4 {
            options,
            ..Ipv4::to(SERVER_V4)
        },
        &syn(),
    )
}

#[track_caller]
fn closed(ip: &Ipv4, payload: &[u8], kind: Malformed) {
    malformed(&frame_v4(ip, payload), kind, Family::V4);
}

#[test]
fn plain_packet_is_judged() {
    let tcp = Tcp {
        payload: b"EHLO".to_vec(),
        ..Tcp::with_flags(25, 0x18)
    };
    let segment = guarded(&frame_v4(&Ipv4::to(SERVER_V4), &tcp.bytes()));
    assert_eq!(segment.family, Family::V4);
    assert_eq!(segment.destination, Address::from_v4(SERVER_V4));
    assert_eq!(segment.port, [0, 25]);
    assert_eq!(segment.route, Route::Direct);
    assert_eq!(segment.form, Form::Plain);
    assert_eq!((segment.network, segment.transport), (14, 34));
    assert_eq!((segment.tcp_header, segment.payload), (20, 4));
}

#[test]
fn padding_after_the_datagram_is_not_payload() {
    let mut frame = frame_v4(&Ipv4::to(SERVER_V4), &syn());
    frame.resize(60, 0);
    assert_eq!(guarded(&frame).payload, 0);
}

#[test]
fn every_wrong_version_is_closed() {
    for version in (0..16).filter(|version| *version != 4) {
        closed(
            &Ipv4 {
                version,
                ..Ipv4::to(SERVER_V4)
            },
            &syn(),
            Malformed::Header,
        );
    }
}

#[test]
fn header_length_below_five_words_is_closed() {
    for ihl in 0..5 {
        let ip = Ipv4 {
            ihl: Some(ihl),
            ..Ipv4::to(SERVER_V4)
        };
        closed(&ip, &syn(), Malformed::Header);
    }
}

#[test]
fn header_length_moves_the_ports() {
    for words in 1..=10 {
        let segment = guarded(&with_options(&vec![1; 4 * words]));
        assert_eq!(segment.transport, 34 + 4 * words);
        assert_eq!(segment.form, Form::Unusual);
        assert_eq!(segment.route, Route::Direct);
    }
}

#[test]
fn ports_behind_options_are_found_where_others_lie_in_the_options() {
    // What would be the ports if the options were not there says 443.
    let innocent = Tcp::syn(443).bytes();
    let mut options = vec![0x94, 40];
    options.extend(&innocent[2..20]);
    options.resize(40, 0);
    assert_eq!(guarded(&with_options(&options)).port, [0, 25]);
    let mut options = vec![0x9c, 1, 0, 25];
    options.resize(40, 0);
    let ip = Ipv4 {
        options,
        ..Ipv4::to(SERVER_V4)
    };
    other(&frame_v4(&ip, &innocent));
}

#[test]
fn header_longer_than_the_datagram_is_closed() {
    let ip = Ipv4 {
        ihl: Some(15),
        ..Ipv4::to(SERVER_V4)
    };
    closed(&ip, &syn(), Malformed::Truncated);
}

#[test]
fn total_length_that_cuts_the_tcp_header_is_closed() {
    for total in 1..40 {
        let ip = Ipv4 {
            total_length: Some(total),
            ..Ipv4::to(SERVER_V4)
        };
        closed(&ip, &syn(), Malformed::Truncated);
    }
}

/// BIG TCP hands over packets of more than 64 KiB with a length of 0.
#[test]
fn total_length_of_zero_is_the_rest_of_the_frame() {
    let tcp = Tcp {
        payload: vec![0; 100],
        ..Tcp::syn(25)
    };
    let ip = Ipv4 {
        total_length: Some(0),
        ..Ipv4::to(SERVER_V4)
    };
    assert_eq!(guarded(&frame_v4(&ip, &tcp.bytes())).payload, 100);
}

#[test]
fn total_length_beyond_the_frame_ends_with_the_frame() {
    let ip = Ipv4 {
        total_length: Some(65_535),
        ..Ipv4::to(SERVER_V4)
    };
    assert_eq!(guarded(&frame_v4(&ip, &syn())).payload, 0);
}

#[test]
fn frame_that_ends_inside_a_header_is_closed() {
    let frame = frame_v4(&Ipv4::to(SERVER_V4), &syn());
    for length in 14..34 {
        short(&frame[..length], Family::V4);
    }
    for length in 34..54 {
        malformed(&frame[..length], Malformed::Truncated, Family::V4);
    }
}

#[test]
fn first_fragment_with_a_whole_tcp_header_is_judged_and_never_answered() {
    let ip = Ipv4 {
        fragment: Ipv4::MORE,
        ..Ipv4::to(SERVER_V4)
    };
    let segment = guarded(&frame_v4(&ip, &syn()));
    assert_eq!(segment.form, Form::Unusual);
    assert_eq!(segment.destination, Address::from_v4(SERVER_V4));
}

#[test]
fn first_fragment_without_a_whole_tcp_header_is_closed_even_if_its_frame_is_padded() {
    for length in 0..20u16 {
        let ip = Ipv4 {
            fragment: Ipv4::MORE,
            total_length: Some(20 + length),
            ..Ipv4::to(SERVER_V4)
        };
        // Padding that would complete an innocent header.
        closed(&ip, &Tcp::syn(443).bytes(), Malformed::ShortFragment);
        closed(&ip, &[0; 100], Malformed::ShortFragment);
    }
}

#[test]
fn fragment_over_the_tcp_header_is_closed() {
    for flags in [0, Ipv4::MORE, Ipv4::DONT, 0x8000] {
        let ip = Ipv4 {
            fragment: flags | 1,
            ..Ipv4::to(SERVER_V4)
        };
        closed(&ip, &syn(), Malformed::OverlappingFragment);
    }
}

#[test]
fn later_fragments_pass() {
    for offset in [2, 3, 185, 0x1fff] {
        for flags in [0, Ipv4::MORE] {
            let ip = Ipv4 {
                fragment: flags | offset,
                ..Ipv4::to(SERVER_V4)
            };
            other(&frame_v4(&ip, &syn()));
        }
    }
}

#[test]
fn fragment_of_another_protocol_at_offset_one_passes() {
    let ip = Ipv4 {
        fragment: 1,
        protocol: 17,
        ..Ipv4::to(SERVER_V4)
    };
    other(&frame_v4(&ip, &[0; 32]));
}

#[test]
fn flags_that_are_no_fragment_do_not_matter() {
    for fragment in [Ipv4::DONT, 0x8000, 0xc000] {
        let ip = Ipv4 {
            fragment,
            ..Ipv4::to(SERVER_V4)
        };
        assert_eq!(guarded(&frame_v4(&ip, &syn())).form, Form::Plain);
    }
}

#[test]
fn source_routes_are_found_wherever_they_stand() {
    let routes: [&[u8]; 6] = [
        &[131, 7, 4, 192, 0, 2, 1, 0],
        &[137, 7, 4, 192, 0, 2, 1, 0],
        &[1, 131, 7, 4, 192, 0, 2, 1],
        &[1, 1, 1, 1, 137, 3, 4, 0],
        // After a timestamp and after record route.
        &[68, 8, 5, 0, 0, 0, 0, 0, 131, 3, 4, 0],
        &[7, 7, 4, 0, 0, 0, 0, 137, 3, 4, 0, 0],
    ];
    for options in routes {
        assert_eq!(
            guarded(&with_options(options)).route,
            Route::SourceRouted,
            "{options:?}"
        );
    }
    let mut last = vec![1; 39];
    last.push(131);
    assert_eq!(guarded(&with_options(&last)).route, Route::SourceRouted);
}

#[test]
fn source_routes_that_no_receiver_reads_do_not_count() {
    let no_routes: [&[u8]; 4] = [
        // Behind the end of the options (RFC 791: end of option list).
        &[0, 131, 7, 4, 192, 0, 2, 1],
        // Inside another option's data.
        &[68, 8, 131, 7, 4, 137, 3, 4],
        &[148, 4, 0, 0],
        &[7, 3, 4, 0],
    ];
    for options in no_routes {
        assert_eq!(
            guarded(&with_options(options)).route,
            Route::Direct,
            "{options:?}"
        );
    }
}

#[test]
fn option_too_short_to_be_one_is_closed() {
    for length in [0, 1] {
        malformed(
            &with_options(&[148, length, 131, 7]),
            Malformed::Header,
            Family::V4,
        );
    }
}

#[test]
fn bad_options_of_other_packets_pass() {
    let ip = Ipv4 {
        options: vec![148, 0, 131, 7],
        ..Ipv4::to(SERVER_V4)
    };
    other(&frame_v4(&ip, &Tcp::syn(443).bytes()));
}

#[test]
fn authentication_header_is_looked_through() {
    let ip = Ipv4 {
        protocol: 51,
        ..Ipv4::to(SERVER_V4)
    };
    for words in [1u8, 4, 62] {
        let mut payload = vec![0; 4 * (usize::from(words) + 2)];
        payload[0] = 6;
        payload[1] = words;
        let header = payload.len();
        payload.extend(syn());
        let segment = guarded(&frame_v4(&ip, &payload));
        assert_eq!(segment.transport, 34 + header);
        assert_eq!(segment.form, Form::Unusual);
        payload[0] = 17;
        other(&frame_v4(&ip, &payload));
    }
}

#[test]
fn authentication_header_inside_another_is_closed() {
    let ip = Ipv4 {
        protocol: 51,
        ..Ipv4::to(SERVER_V4)
    };
    let mut payload = vec![51, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    payload.extend([6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend(syn());
    malformed(&frame_v4(&ip, &payload), Malformed::Extensions, Family::V4);
}

#[test]
fn authentication_header_longer_than_is_walked_is_closed() {
    let ip = Ipv4 {
        protocol: 51,
        ..Ipv4::to(SERVER_V4)
    };
    let mut payload = vec![0; 4 * 257];
    payload[0] = 6;
    payload[1] = 255;
    payload.extend(syn());
    closed(&ip, &payload, Malformed::Extensions);
}

#[test]
fn authentication_header_that_is_cut_off_is_closed() {
    let ip = Ipv4 {
        protocol: 51,
        ..Ipv4::to(SERVER_V4)
    };
    closed(&ip, &[6, 4, 0, 0, 0, 0, 0, 0], Malformed::Truncated);
    short(&frame_v4(&ip, &[6]), Family::V4);
}

#[test]
fn other_protocols_pass() {
    for protocol in (0..=255).filter(|protocol| ![4, 6, 41, 47, 51].contains(protocol)) {
        let ip = Ipv4 {
            protocol,
            ..Ipv4::to(SERVER_V4)
        };
        other(&frame_v4(&ip, &syn()));
    }
}

#[test]
fn tunnels_are_told() {
    for (protocol, tunnel) in [
        (4, Tunnel::Ipip),
        (41, Tunnel::SixInFour),
        (47, Tunnel::Gre),
    ] {
        let ip = Ipv4 {
            protocol,
            ..Ipv4::to(SERVER_V4)
        };
        let frame = frame_v4(&ip, &Ipv4::to(SERVER_V4).with(&syn()));
        assert_eq!(parse(&MemoryFrame::new(&frame)), Ok(Parsed::Tunnel(tunnel)));
        assert_eq!(tunnel.protocol(), protocol);
    }
}

#[test]
fn headers_outside_the_readable_part_are_asked_for() {
    let options = vec![1; 40];
    let frame = ethernet(
        &[],
        IPV4,
        &Ipv4 {
            options,
            ..Ipv4::to(SERVER_V4)
        }
        .with(&syn()),
    );
    for linear in 14..88 {
        let parsed = parse(&MemoryFrame::new(&frame).linear(linear));
        assert_eq!(
            parsed,
            Err(ParseError::ShortNetwork(Family::V4)),
            "{linear} bytes readable"
        );
    }
}
