//! IPv6: extension headers in every order and of every length, routes, lengths that lie, and
//! addresses that stand for others.

use gate25_common::testing::frames::{Extension, Ipv6, SERVER_V4, SERVER_V6, Tcp};

use super::packets::{syn, v6};
use super::range::{ALLOWED_V6, Carried, Family, Gate};

const AUTHENTICATION: Extension = Extension::Authentication { length: 4 };
/// With nothing left to visit.
const ROUTING: Extension = Extension::Routing { left: 0 };
/// What ordinary packets may have, and netfilter walks.
const WALKED: [Extension; 3] = [Extension::HOP_BY_HOP, Extension::DESTINATION, ROUTING];
const EVERY: [Extension; 8] = [
    Extension::HOP_BY_HOP,
    ROUTING,
    Extension::ATOMIC,
    Extension::DESTINATION,
    AUTHENTICATION,
    Extension::MOBILITY,
    Extension::HOST_IDENTITY,
    Extension::SHIM6,
];
/// Offsets in a frame whose first extension header is a routing header.
const ROUTING_TYPE: usize = 14 + 40 + 2;
const SEGMENTS_LEFT: usize = ROUTING_TYPE + 1;
const FIRST_SEGMENT: usize = 14 + 40 + 8;

pub(crate) fn families() -> Vec<Family> {
    vec![
        Family::new(
            "IPv6 extension headers in every order, up to four",
            orders(&EVERY, 4).iter().map(|it| through(it)).collect(),
        ),
        Family::new(
            "IPv6 extension headers, all eight in any order, and more than are walked",
            long_chains(),
        ),
        Family::new("IPv6 extension headers of every length", header_lengths()),
        Family::new(
            "IPv6 routing headers of every type, with segments left",
            routing(),
        ),
        Family::new(
            "IPv6 segment routing by way of an allowed address",
            segments_by_allowed(),
        ),
        Family::new("IPv6 payload lengths that lie, jumbograms", lengths()),
        Family::new("IPv6 headers whose version lies", versions()).routed(Carried::Nothing),
        Family::new(
            "IPv4 addresses in IPv6 clothes: mapped, NAT64, 6to4, compatible",
            clothes(),
        ),
    ]
}

/// What passes, and what no receiver takes for TCP: asked of one.
pub(crate) fn unknown_headers() -> Vec<Vec<u8>> {
    let walked = EVERY.map(|extension| extension.kind());
    let mut frames = Vec::new();
    for kind in (0..=255u8).filter(|kind| *kind != 6 && !walked.contains(kind)) {
        // TCP itself under another number, and TCP behind a header of that number.
        let header = Ipv6 {
            protocol: kind,
            ..Ipv6::to(SERVER_V6)
        };
        frames.push(v6(&header, &syn()));
        let inside = [&[6, 0, 0, 0, 0, 0, 0, 0][..], &syn()].concat();
        frames.push(v6(&header, &inside));
    }
    frames
}

/// What no gate has any business with, as far as it looks: other ports and other protocols.
pub(crate) fn harmless(gate: Gate) -> Vec<Vec<u8>> {
    let chains = match gate {
        Gate::Programs => orders(&EVERY, 2),
        // What netfilter walks; a fragment header comes last.
        Gate::Rules => orders(&WALKED, 3)
            .into_iter()
            .flat_map(|chain| [[&chain[..], &[Extension::ATOMIC]].concat(), chain])
            .collect(),
        // One header.
        Gate::Guard => [&WALKED[..], &[Extension::ATOMIC]]
            .concat()
            .into_iter()
            .map(|one| vec![one])
            .collect(),
    };
    let other = Tcp::syn(443).bytes();
    let of = |chain: &Vec<Extension>| v6(&Ipv6::through(SERVER_V6, chain), &other);
    let mut frames: Vec<Vec<u8>> = chains.iter().map(of).collect();
    let later = Extension::Fragment {
        offset: 2,
        more: false,
    };
    // No next header, UDP and ICMP behind one header; a later fragment of whatever it is.
    for (protocol, kinds) in [(59, &EVERY[..]), (17, &EVERY), (58, &EVERY), (6, &[later])] {
        for kind in kinds {
            let header = Ipv6 {
                protocol,
                ..Ipv6::through(SERVER_V6, &[*kind])
            };
            frames.push(v6(&header, &syn()));
        }
    }
    frames
}

fn through(extensions: &[Extension]) -> Vec<u8> {
    v6(&Ipv6::through(SERVER_V6, extensions), &syn())
}

/// Every sequence of at most `most` of `kinds`, with repetitions.
fn orders(kinds: &[Extension], most: u32) -> Vec<Vec<Extension>> {
    let mut chains = Vec::new();
    let base = kinds.len();
    for count in 0..=most {
        for mut number in 0..base.pow(count) {
            let mut chain = Vec::new();
            for _ in 0..count {
                chain.push(kinds[number % base]);
                number /= base;
            }
            chains.push(chain);
        }
    }
    chains
}

/// Permutations of all eight (every 17th, which takes each header to each place), and chains of
/// nine to twenty.
fn long_chains() -> Vec<Vec<u8>> {
    const ALL: usize = 40_320;
    let mut frames: Vec<Vec<u8>> = (0..ALL)
        .step_by(17)
        .map(|number| through(&permutation(number)))
        .collect();
    for count in 5..=20 {
        for kind in EVERY {
            frames.push(through(&vec![kind; count]));
        }
        for first in 0..EVERY.len() {
            let chain: Vec<Extension> = (0..count).map(|at| EVERY[(first + at) % 8]).collect();
            frames.push(through(&chain));
        }
    }
    frames
}

/// The permutation of that number, by the factorial number system.
fn permutation(mut number: usize) -> Vec<Extension> {
    let mut left = EVERY.to_vec();
    let mut chain = Vec::new();
    for count in (1..=EVERY.len()).rev() {
        chain.push(left.remove(number % count));
        number /= count;
    }
    chain
}

fn header_lengths() -> Vec<Vec<u8>> {
    let kinds = [0, 43, 60, 135, 139, 140];
    let mut frames = Vec::new();
    for length in 0..=255 {
        for kind in kinds {
            frames.push(through(&[Extension::Options { kind, length }]));
        }
        frames.push(through(&[Extension::Authentication { length }]));
        // Behind another one.
        let options = Extension::Options { kind: 60, length };
        frames.push(through(&[Extension::HOP_BY_HOP, options]));
        frames.push(through(&[options, Extension::ATOMIC]));
    }
    frames
}

/// A packet to `destination` by way of `via` (RFC 5095, 6275, 6554, 8754 and numbers without use).
fn routed(kind: u8, left: u8, destination: [u8; 16], via: &[[u8; 16]]) -> Vec<u8> {
    let length = 2 * via.len() as u8;
    let header = Extension::Options { kind: 43, length };
    let mut frame = v6(&Ipv6::through(destination, &[header]), &syn());
    frame[ROUTING_TYPE] = kind;
    frame[SEGMENTS_LEFT] = left;
    frame[FIRST_SEGMENT - 4..FIRST_SEGMENT].fill(0);
    if kind == 4 {
        // The last entry of a segment routing header.
        frame[FIRST_SEGMENT - 4] = via.len().saturating_sub(1) as u8;
    }
    let addresses = via.concat();
    frame[FIRST_SEGMENT..FIRST_SEGMENT + addresses.len()].copy_from_slice(&addresses);
    frame
}

fn routing() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for kind in [0, 1, 2, 3, 4, 5, 6, 253, 254, 255] {
        for addresses in 0..=4 {
            for left in [0, 1, 2, 4, 255] {
                frames.push(routed(kind, left, SERVER_V6, &vec![SERVER_V6; addresses]));
            }
        }
    }
    frames
}

/// To the gateway, which may be reached, and which sends them on to where the route says.
fn segments_by_allowed() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for kind in [0, 2, 3, 4] {
        for addresses in 1..=4u8 {
            let mut via = vec![ALLOWED_V6; usize::from(addresses)];
            via[0] = SERVER_V6;
            for left in 1..=addresses {
                frames.push(routed(kind, left, ALLOWED_V6, &via));
            }
        }
    }
    frames
}

fn lengths() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for length in (0..=60).chain([1500, 65535]) {
        for extensions in [&[][..], &[Extension::DESTINATION], &[Extension::ATOMIC]] {
            let header = Ipv6 {
                payload_length: Some(length),
                ..Ipv6::through(SERVER_V6, extensions)
            };
            frames.push(v6(&header, &syn()));
        }
    }
    // Jumbograms (RFC 2675): the true length is in an option, here of every size.
    for length in [0u32, 20, 28, 65535, 65536, 70_000, u32::MAX] {
        for options in [1, 2, 4, 8] {
            let mut chain = vec![Extension::HOP_BY_HOP];
            chain.resize(options, Extension::DESTINATION);
            let header = Ipv6 {
                payload_length: Some(0),
                ..Ipv6::through(SERVER_V6, &chain)
            };
            let mut frame = v6(&header, &syn());
            frame[56..58].copy_from_slice(&[0xc2, 4]);
            frame[58..62].copy_from_slice(&length.to_be_bytes());
            frames.push(frame);
        }
    }
    frames
}

fn versions() -> Vec<Vec<u8>> {
    let versions = (0..16).filter(|version| *version != 6);
    let of = |version| {
        let header = Ipv6 {
            version,
            ..Ipv6::to(SERVER_V6)
        };
        v6(&header, &syn())
    };
    versions.map(of).collect()
}

fn clothes() -> Vec<Vec<u8>> {
    let [a, b, c, d] = SERVER_V4;
    let tail = |prefix: &[u8]| {
        let mut address = [0; 16];
        address[..prefix.len()].copy_from_slice(prefix);
        address[12..].copy_from_slice(&SERVER_V4);
        address
    };
    let mapped = tail(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    let translated = tail(&[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]);
    let mut frames = Vec::new();
    for destination in [
        mapped,
        translated,
        tail(&[]),
        tail(&[0, 0x64, 0xff, 0x9b]),
        tail(&[0, 0x64, 0xff, 0x9b, 0, 1]),
        [0x20, 2, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        // Teredo, ISATAP.
        [0x20, 1, 0, 0, a, b, c, d, 0, 0, 0xff, 0xe6, !a, !b, !c, !d],
        tail(&[0x20, 1, 0x0d, 0xb8, 0, 0x25, 0, 0, 0, 0, 0x5e, 0xfe]),
    ] {
        for extensions in [&[][..], &WALKED[..1], &WALKED[1..2]] {
            frames.push(v6(&Ipv6::through(destination, extensions), &syn()));
        }
    }
    frames
}
