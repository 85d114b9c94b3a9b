//! The parser against etherparse, on frames that were right before something changed in them.

use std::net::IpAddr;

use etherparse::{LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use gate25_common::address::{Address, Family};
use gate25_common::packet::{Malformed, ParseError, Parsed, Segment, parse};
use gate25_common::testing::frames::{
    Extension, IPV4, IPV6, Ipv4, Ipv6, MemoryFrame, OLD_TAG, SERVER_V4, SERVER_V6, SERVICE_TAG,
    Step, TAG, Tcp, ethernet,
};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

/// What both parsers tell about a TCP packet to port 25.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    destination: Address,
    payload: usize,
}

/// What etherparse finds, outside the known differences.
fn reference(frame: &[u8]) -> Option<Found> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return None;
    };
    let destination: IpAddr = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => ip.header().destination_addr().into(),
        Some(LaxNetSlice::Ipv6(ip)) => ip.header().destination_addr().into(),
        Some(LaxNetSlice::Arp(_)) | None => return None,
    };
    let only_tags = packet
        .link_exts
        .iter()
        .all(|step| matches!(step, LaxLinkExtSlice::Vlan(_)));
    (tcp.destination_port() == 25 && only_tags).then(|| Found {
        destination: Address::from(destination),
        payload: tcp.payload().len(),
    })
}

fn found(segment: &Segment) -> Found {
    Found {
        destination: segment.destination,
        payload: segment.payload,
    }
}

/// Where the parser is stricter than etherparse by design: it refuses what it does not walk,
/// options that are none, and an IPv4 length within the header, for which etherparse takes the
/// rest of the frame.
fn stricter(frame: &[u8], error: ParseError) -> bool {
    match error {
        ParseError::Malformed(Malformed::VlanDepth, _) => tags(frame) > 2,
        ParseError::Malformed(Malformed::Extensions, _) => true,
        ParseError::Malformed(Malformed::Header, _) => frame[network(frame)] > 0x45,
        ParseError::Malformed(Malformed::Truncated, Family::V4) => {
            let at = network(frame);
            let total = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
            usize::from(total) < usize::from(frame[at] & 0x0f) * 4
        }
        ParseError::Malformed(
            Malformed::Truncated
            | Malformed::ShortFragment
            | Malformed::OverlappingFragment
            | Malformed::SourceRoute
            | Malformed::Lookup
            | Malformed::LateChecksum,
            _,
        )
        | ParseError::ShortLink
        | ParseError::ShortNetwork(_) => false,
    }
}

/// Where the parser looks further than etherparse by design: SNAP, first fragments, extension
/// headers at any place or of rare kinds, and TCP headers whose length is wrong.
fn looks_further(frame: &[u8], segment: &Segment) -> bool {
    let at = network(frame);
    let header = &frame[segment.transport..];
    let wrong_length = header[12] < 0x50 || header.len() < usize::from(header[12] >> 4) * 4;
    let cut = segment.transport + segment.tcp_header + segment.payload;
    let snap = segment.network != at;
    let chained = segment.transport - segment.network > 40;
    let fragment_v4 = frame[at] >> 4 == 4 && frame[at + 6] & 0x20 != 0;
    let authenticated_v4 = frame[at] >> 4 == 4 && frame[at + 9] == 51;
    wrong_length
        || snap
        || fragment_v4
        || authenticated_v4
        || frame[at] >> 4 == 6 && chained
        || cut > frame.len()
        // The datagram ends inside the TCP header's options.
        || segment.payload == 0 && segment.tcp_header > 20
}

fn tags(frame: &[u8]) -> usize {
    (network(frame) - 14) / 4
}

/// Offset of what follows the tags.
fn network(frame: &[u8]) -> usize {
    let mut at = 12;
    while at + 2 <= frame.len()
        && [TAG, SERVICE_TAG, OLD_TAG].contains(&u16::from_be_bytes([frame[at], frame[at + 1]]))
    {
        at += 4;
    }
    at + 2
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..3, any::<u16>())
            .prop_map(|(tag, information)| Step::Tag([TAG, SERVICE_TAG, OLD_TAG][tag], information)),
        1 => Just(Step::SNAP),
    ]
}

fn extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        Just(Extension::DESTINATION),
        Just(Extension::Routing { left: 0 }),
        Just(Extension::ATOMIC),
        Just(Extension::Authentication { length: 4 }),
        Just(Extension::MOBILITY),
        (0u16..3, any::<bool>()).prop_map(|(offset, more)| Extension::Fragment { offset, more }),
    ]
}

fn tcp() -> impl Strategy<Value = Vec<u8>> {
    let port = prop_oneof![4 => Just(25), 1 => Just(443), 1 => any::<u16>()];
    (port, any::<u8>(), 0usize..4, 0usize..40).prop_map(|(port, flags, options, payload)| {
        Tcp {
            options: vec![1; 4 * options],
            payload: vec![0x55; payload],
            ..Tcp::with_flags(port, flags)
        }
        .bytes()
    })
}

fn v4() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let fragment = prop_oneof![6 => Just(0), 1 => Just(Ipv4::MORE), 1 => 0u16..3];
    let options = prop_oneof![
        4 => Just(Vec::new()),
        1 => Just(vec![1; 4]),
        1 => Just(vec![131, 7, 4, 192, 0, 2, 1, 0]),
        1 => proptest::collection::vec(any::<u8>(), 8),
    ];
    (tcp(), fragment, options).prop_map(|(tcp, fragment, options)| {
        let ip = Ipv4 {
            fragment,
            options,
            ..Ipv4::to(SERVER_V4)
        };
        (IPV4, ip.with(&tcp))
    })
}

fn v6() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let chain = prop_oneof![
        2 => Just(Vec::new()),
        1 => proptest::collection::vec(extension(), 0..4),
        1 => proptest::collection::vec(extension(), 0..11),
    ];
    (tcp(), chain, any::<bool>()).prop_map(|(tcp, mut chain, hop_by_hop)| {
        if hop_by_hop && !chain.is_empty() {
            chain.insert(0, Extension::HOP_BY_HOP);
        }
        (IPV6, Ipv6::through(SERVER_V6, &chain).with(&tcp))
    })
}

/// A frame that is right, with up to three bytes changed, sometimes cut off or padded.
pub(super) fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        any::<u8>(),
        proptest::sample::select(vec![
            0u8, 1, 4, 5, 6, 17, 20, 25, 41, 43, 44, 51, 60, 0x45, 0x60
        ]),
    ];
    let change = (12usize..110, byte);
    let length = prop_oneof![4 => Just(None), 1 => (0usize..160).prop_map(Some)];
    (
        proptest::collection::vec(step(), 0..4),
        prop_oneof![v4(), v6()],
        proptest::collection::vec(change, 0..4),
        length,
    )
        .prop_map(|(steps, (ethertype, packet), changes, length)| {
            let mut frame = ethernet(&steps, ethertype, &packet);
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            if let Some(length) = length {
                frame.resize(length, 0);
            }
            frame
        })
}

fn compare(frame: &[u8]) -> Result<(), String> {
    let reference = reference(frame);
    match (parse(&MemoryFrame::new(frame)), reference) {
        (Ok(Parsed::Guarded(segment)), Some(reference)) if found(&segment) == reference => Ok(()),
        (Ok(Parsed::Guarded(segment)), None) if looks_further(frame, &segment) => Ok(()),
        (Ok(Parsed::Other | Parsed::Tunnel(_)), None) | (Err(_), None) => Ok(()),
        (Err(error), Some(_)) if stricter(frame, error) => Ok(()),
        (parsed, reference) => Err(format!(
            "{frame:02x?}: {parsed:?}, etherparse {reference:?}"
        )),
    }
}

/// Without this the comparison could agree on nothing but refusals.
#[test]
fn frames_that_are_right_are_found_by_both() {
    for steps in [
        &[][..],
        &[Step::PRIORITY],
        &[Step::Tag(SERVICE_TAG, 3), Step::PRIORITY],
    ] {
        let tcp = Tcp {
            payload: vec![1; 9],
            ..Tcp::syn(25)
        }
        .bytes();
        let chain = [
            Extension::HOP_BY_HOP,
            Extension::DESTINATION,
            Extension::ATOMIC,
        ];
        for frame in [
            ethernet(steps, IPV4, &Ipv4::to(SERVER_V4).with(&tcp)),
            ethernet(steps, IPV6, &Ipv6::to(SERVER_V6).with(&tcp)),
            ethernet(steps, IPV6, &Ipv6::through(SERVER_V6, &chain).with(&tcp)),
        ] {
            let reference = reference(&frame).expect("etherparse finds it");
            assert_eq!(found(&super::guarded(&frame)), reference);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50_000))]

    #[test]
    fn mutated_frames_are_told_alike(frame in mutated()) {
        if let Err(difference) = compare(&frame) {
            panic!("{difference}");
        }
    }

    #[test]
    fn random_frames_are_told_alike(
        ethertype in proptest::sample::select(vec![IPV4, IPV6, TAG]),
        body in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        if let Err(difference) = compare(&ethernet(&[], ethertype, &body)) {
            panic!("{difference}");
        }
    }
}
