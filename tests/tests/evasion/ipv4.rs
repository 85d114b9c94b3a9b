//! IPv4 headers: options, source routes, lengths that lie, authentication headers.

use gate25_common::testing::frames::{Ipv4, SERVER_V4, Tcp, frame_v4};

use super::packets::{GUARDED, syn, v4};
use super::range::{ALLOWED_V4, Carried, Family};

const LOOSE: u8 = 131;
const STRICT: u8 = 137;
const AUTHENTICATION: u8 = 51;
const TCP: u8 = 6;

pub(crate) fn families() -> Vec<Family> {
    vec![
        Family::new(
            "IPv4 options of every kind and length, malformed ones too",
            options(),
        ),
        Family::new(
            "IPv4 source routes (LSRR, SSRR) among other options",
            source_routes(),
        ),
        Family::new(
            "IPv4 source routes by way of an allowed address",
            routes_by_allowed(),
        ),
        Family::new("IPv4 header and total lengths that lie", lengths()),
        Family::new(
            "IPv4 header checksums that are wrong, versions that lie",
            broken_headers(),
        )
        .routed(Carried::Nothing),
        // Nobody takes what is behind one without a key that he shares with the guest.
        Family::new(
            "TCP behind authentication headers (AH) in IPv4",
            authenticated(),
        ),
        Family::new(
            "IPv4 to addresses of many: broadcast, multicast, reserved",
            many_addresses(),
        ),
    ]
}

/// The packet with these options, filled up with zeros to words.
fn with_options(destination: [u8; 4], options: &[u8]) -> Vec<u8> {
    let mut options = options.to_vec();
    options.resize(options.len().div_ceil(4) * 4, 0);
    v4(
        &Ipv4 {
            options,
            ..Ipv4::to(destination)
        },
        &syn(),
    )
}

/// Every kind, over every length of the options, with lengths of its own that are right, too
/// short, too long, and none.
fn options() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for kind in 0..=255 {
        for total in (4..=40).step_by(4) {
            for claimed in [total as u8, 0, 1, 2, total as u8 + 1, 255] {
                let mut bytes = vec![0; total];
                bytes[0] = kind;
                bytes[1] = claimed;
                bytes[2] = 4;
                frames.push(with_options(SERVER_V4, &bytes));
            }
        }
    }
    // The last byte, where no length follows.
    for kind in 0..=255 {
        for length in [4, 40] {
            let mut bytes = vec![1; length];
            bytes[length - 1] = kind;
            frames.push(with_options(SERVER_V4, &bytes));
        }
    }
    frames
}

/// A source route over `hops`, at the first of them or further on.
fn route(kind: u8, pointer: u8, hops: &[[u8; 4]]) -> Vec<u8> {
    let length = 3 + 4 * hops.len() as u8;
    [&[kind, length, pointer][..], &hops.concat()].concat()
}

fn source_routes() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for kind in [LOOSE, STRICT] {
        for hops in 1..=9 {
            for pointer in [
                0,
                1,
                3,
                4,
                5,
                8,
                3 + 4 * hops as u8,
                4 + 4 * hops as u8,
                255,
            ] {
                let route = route(kind, pointer, &vec![SERVER_V4; hops]);
                frames.push(with_options(SERVER_V4, &route));
            }
        }
        for before in 0..=33 {
            let mut bytes = vec![1; before];
            bytes.extend(route(kind, 4, &[SERVER_V4]));
            frames.push(with_options(SERVER_V4, &bytes));
            // Behind another option of that length.
            if before >= 2 {
                let mut bytes = vec![0; before];
                bytes[0] = 148;
                bytes[1] = before as u8;
                bytes.extend(route(kind, 4, &[SERVER_V4]));
                frames.push(with_options(SERVER_V4, &bytes));
            }
        }
    }
    frames
}

/// To the gateway, which may be reached, and which sends them on to where the route says.
fn routes_by_allowed() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for before in 0..=33 {
        let mut bytes = vec![1; before];
        bytes.extend(route(LOOSE, 4, &[SERVER_V4]));
        frames.push(with_options(ALLOWED_V4, &bytes));
    }
    for hops in 1..=9 {
        let route = route(LOOSE, 4, &vec![SERVER_V4; hops]);
        frames.push(with_options(ALLOWED_V4, &route));
    }
    frames
}

/// Headers that claim another length than they have, datagrams that claim another length than the
/// frame has. Wherever the TCP header is then, its ports are 25.
fn lengths() -> Vec<Vec<u8>> {
    let ports = [0, GUARDED as u8].repeat(40);
    let mut frames = Vec::new();
    for ihl in 0..=15 {
        for total in [
            0, 1, 19, 20, 21, 39, 40, 41, 60, 79, 80, 99, 100, 101, 1500, 65535,
        ] {
            let header = Ipv4 {
                ihl: Some(ihl),
                total_length: Some(total),
                ..Ipv4::to(SERVER_V4)
            };
            frames.push(v4(&header, &ports));
            // More than the frame holds.
            frames.push(v4(&header, &ports[..20]));
        }
    }
    // A segment for the port at the true place.
    for total in (0..=60).chain([65535]) {
        let header = Ipv4 {
            total_length: Some(total),
            ..Ipv4::to(SERVER_V4)
        };
        frames.push(v4(&header, &syn()));
    }
    frames
}

fn broken_headers() -> Vec<Vec<u8>> {
    // Whose checksum is 0.
    let mut frames = vec![frame_v4(&Ipv4::to(SERVER_V4), &syn())];
    for version in (0..16).filter(|version| *version != 4) {
        let header = Ipv4 {
            version,
            ..Ipv4::to(SERVER_V4)
        };
        frames.push(v4(&header, &syn()));
    }
    frames
}

fn authenticated() -> Vec<Vec<u8>> {
    let header = Ipv4 {
        protocol: AUTHENTICATION,
        ..Ipv4::to(SERVER_V4)
    };
    let mut frames = Vec::new();
    for length in 1..=60u8 {
        let mut payload = vec![TCP, length, 0, 0];
        payload.resize((usize::from(length) + 2) * 4, 0);
        payload.extend(syn());
        frames.push(v4(&header, &payload));
        let mut nested = vec![AUTHENTICATION, 4, 0, 0];
        nested.resize(24, 0);
        nested.extend(payload);
        frames.push(v4(&header, &nested));
    }
    frames
}

fn many_addresses() -> Vec<Vec<u8>> {
    let [a, b, c, _] = SERVER_V4;
    [
        [255; 4],
        [a, b, c, 255],
        [a, b, c, 0],
        [224, 0, 0, 1],
        [239, 1, 2, 3],
        [240, 0, 0, 1],
        [0; 4],
        [127, 0, 0, 1],
        [169, 254, 0, 1],
        SERVER_V4,
    ]
    .into_iter()
    .flat_map(|destination| {
        let header = Ipv4::to(destination);
        // As if from port 25, too.
        let from = Tcp {
            source: GUARDED,
            ..Tcp::syn(GUARDED)
        };
        [v4(&header, &syn()), v4(&header, &from.bytes())]
    })
    .collect()
}
