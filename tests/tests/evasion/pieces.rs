//! Datagrams in pieces that show no port, another port, or the port in a piece of its own.

use gate25_common::testing::frames::{
    Extension, IPV4, IPV6, Ipv4, Ipv6, SERVER_V4, SERVER_V6, Step, Tcp, ethernet,
};

use super::packets::{GUARDED, packet_v4};

const UNIT: usize = 8;
const OTHER: u16 = 443;
/// A fragment's header, which its builder gives this number.
const NUMBERED: [u8; 2] = [0x12, 0x34];

/// Frames that belong together, in the order in which they are sent.
pub(crate) type Set = Vec<Vec<u8>>;

pub(crate) struct Family {
    pub(crate) what: &'static str,
    pub(crate) sets: Vec<Set>,
    /// How many of IPv4's and of IPv6's show a receiver a packet for the guarded port while nothing
    /// judges, at least.
    pub(crate) least: [usize; 2],
}

pub(crate) fn families() -> Vec<Family> {
    let family = |what, least, sets| Family { what, sets, least };
    vec![
        family(
            "fragments in any order, of any number, twice",
            [16, 16],
            whole_headers(),
        ),
        // Linux takes none of IPv6's (RFC 8200, 4.5), but they show the port.
        family(
            "first fragments too small for a TCP header",
            [37, 37],
            tiny(),
        ),
        // Those that overlap end a datagram, but for one within another, which is left out.
        family(
            "fragments that begin within the TCP header",
            [4, 4],
            within_header(),
        ),
        family(
            "overlapping fragments that rewrite the port",
            [9, 9],
            overlapping(),
        ),
        // But for those whose first piece ends before the port.
        family(
            "IPv6 fragments behind other extension headers, fragments of fragments",
            [0, 84],
            behind_headers(),
        ),
        family(
            "IPv4 fragments with options, in VLAN tags",
            [11, 0],
            with_options(),
        ),
    ]
}

/// How many of the sets are IPv4's, and how many IPv6's.
pub(crate) fn by_version(sets: &[Set]) -> [usize; 2] {
    let is_v6 = |set: &&Set| set[0][12..14] == IPV6.to_be_bytes();
    let v6 = sets.iter().filter(is_v6).count();
    [sets.len() - v6, v6]
}

/// One piece of a datagram: where it begins, whether more follow, and its bytes.
#[derive(Clone)]
struct Piece {
    offset: usize,
    more: bool,
    bytes: Vec<u8>,
}

/// A segment for `port` of 80 bytes.
fn segment(port: u16) -> Vec<u8> {
    Tcp {
        payload: vec![b'x'; 60],
        ..Tcp::syn(port)
    }
    .bytes()
}

/// The bytes cut at `cuts`, which are multiples of eight.
fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let ends = cuts.iter().copied().chain([bytes.len()]);
    let mut from = 0;
    for to in ends {
        pieces.push(Piece {
            offset: from,
            more: to < bytes.len(),
            bytes: bytes[from..to].to_vec(),
        });
        from = to;
    }
    pieces
}

fn v4(pieces: &[Piece]) -> Set {
    pieces
        .iter()
        .map(|piece| ethernet(&[], IPV4, &packet(piece, &[])))
        .collect()
}

fn packet(piece: &Piece, options: &[u8]) -> Vec<u8> {
    let more = if piece.more { Ipv4::MORE } else { 0 };
    let header = Ipv4 {
        fragment: more | (piece.offset / UNIT) as u16,
        options: options.to_vec(),
        ..Ipv4::to(SERVER_V4)
    };
    packet_v4(&header, &piece.bytes)
}

/// IPv6 pieces whose first header says `protocol`, behind `before`.
fn v6_of(pieces: &[Piece], protocol: u8, before: &[Extension]) -> Set {
    let of = |piece: &Piece| {
        let mut extensions = before.to_vec();
        extensions.push(Extension::Fragment {
            offset: (piece.offset / UNIT) as u16,
            more: piece.more,
        });
        let header = Ipv6 {
            protocol,
            ..Ipv6::through(SERVER_V6, &extensions)
        };
        ethernet(&[], IPV6, &header.with(&piece.bytes))
    };
    pieces.iter().map(of).collect()
}

fn v6(pieces: &[Piece]) -> Set {
    v6_of(pieces, 6, &[])
}

fn both(pieces: &[Piece]) -> [Set; 2] {
    [v4(pieces), v6(pieces)]
}

/// The order of that number of what there is.
fn ordered<T: Clone>(items: &[T], mut number: usize) -> Vec<T> {
    let mut left = items.to_vec();
    let mut order = Vec::new();
    while !left.is_empty() {
        order.push(left.remove(number % left.len()));
        number /= left.len() + 1;
    }
    order
}

fn whole_headers() -> Vec<Set> {
    let bytes = segment(GUARDED);
    let mut sets = Vec::new();
    for first in [24, 32, 40, 72] {
        let pieces = cut(&bytes, &[first]);
        for number in 0..2 {
            sets.extend(both(&ordered(&pieces, number)));
        }
    }
    let three = cut(&bytes, &[24, 48]);
    for number in 0..6 {
        sets.extend(both(&ordered(&three, number)));
    }
    let all: Vec<usize> = (24..80).step_by(8).collect();
    sets.extend(both(&cut(&bytes, &all)));
    // One piece that is the whole (RFC 6946), and each twice.
    let whole = cut(&bytes, &[]);
    sets.push(v6(&whole));
    let twice: Vec<Piece> = three
        .iter()
        .flat_map(|it| [it.clone(), it.clone()])
        .collect();
    sets.push(v4(&twice));
    sets
}

fn tiny() -> Vec<Set> {
    let bytes = segment(GUARDED);
    let mut sets = Vec::new();
    for first in [8, 16] {
        for cuts in [vec![first], vec![first, 24], vec![first, first + 8]] {
            let pieces = cut(&bytes, &cuts);
            for number in 0..6 {
                sets.extend(both(&ordered(&pieces, number)));
            }
        }
    }
    // Nothing at all in the first.
    let mut pieces = cut(&bytes, &[24]);
    pieces.insert(
        0,
        Piece {
            offset: 0,
            more: true,
            bytes: Vec::new(),
        },
    );
    sets.extend(both(&pieces));
    sets
}

/// The first shows another port, and a second rewrites all but the first eight bytes; or it shows
/// the port and what follows the flags.
fn within_header() -> Vec<Set> {
    let (guarded, other) = (segment(GUARDED), segment(OTHER));
    let mut sets = Vec::new();
    for first in [&guarded, &other] {
        let shown = Piece {
            offset: 0,
            more: true,
            bytes: first[..24].to_vec(),
        };
        let rewriting = Piece {
            offset: 8,
            more: false,
            bytes: guarded[8..].to_vec(),
        };
        let ports = Piece {
            bytes: guarded[..8].to_vec(),
            ..shown.clone()
        };
        for pieces in [
            vec![shown.clone(), rewriting.clone()],
            vec![rewriting.clone(), shown.clone()],
            vec![ports.clone(), rewriting.clone()],
            vec![rewriting.clone(), ports.clone()],
        ] {
            sets.extend(both(&pieces));
        }
    }
    sets
}

/// The same place twice: for another port and for the guarded one.
fn overlapping() -> Vec<Set> {
    let (guarded, other) = (segment(GUARDED), segment(OTHER));
    let mut sets = Vec::new();
    for length in [24, 32, 40] {
        let shown = cut(&other, &[length]);
        let hidden = cut(&guarded, &[length]);
        for pieces in [
            // The first piece again, before its end and after.
            vec![&shown[0], &hidden[0], &shown[1]],
            vec![&hidden[0], &shown[0], &shown[1]],
            vec![&shown[1], &shown[0], &hidden[0]],
            vec![&shown[1], &hidden[0], &shown[0]],
        ] {
            let pieces: Vec<Piece> = pieces.into_iter().cloned().collect();
            sets.extend(both(&pieces));
        }
        // One that reaches further than the other.
        let longer = cut(&guarded, &[length + 8]);
        for pieces in [
            vec![&shown[0], &longer[0], &longer[1]],
            vec![&longer[1], &longer[0], &shown[0]],
        ] {
            let pieces: Vec<Piece> = pieces.into_iter().cloned().collect();
            sets.extend(both(&pieces));
        }
    }
    // IPv6: options before the TCP header, which then lies where a later piece may be laid over it.
    for units in 1..=4 {
        let mut options = vec![6, units as u8 - 1, 1, 4];
        options.resize(units * UNIT, 0);
        let shown = [&options[..], &other].concat();
        let hidden = [&options[..], &guarded].concat();
        let first = units * UNIT + 24;
        let over = Piece {
            offset: units * UNIT,
            more: true,
            bytes: hidden[units * UNIT..first].to_vec(),
        };
        let shown = cut(&shown, &[first]);
        for pieces in [
            [shown[0].clone(), over.clone(), shown[1].clone()],
            [over.clone(), shown[0].clone(), shown[1].clone()],
            [shown[0].clone(), shown[1].clone(), over.clone()],
        ] {
            sets.push(v6_of(&pieces, 60, &[]));
        }
    }
    sets
}

fn behind_headers() -> Vec<Set> {
    let bytes = segment(GUARDED);
    let mut sets = Vec::new();
    for before in [
        vec![Extension::HOP_BY_HOP],
        vec![Extension::DESTINATION],
        vec![Extension::HOP_BY_HOP, Extension::DESTINATION],
        vec![Extension::Routing { left: 0 }],
        vec![Extension::ATOMIC],
    ] {
        for first in [8, 24, 40] {
            let pieces = cut(&bytes, &[first]);
            for number in 0..2 {
                sets.push(v6_of(&ordered(&pieces, number), 6, &before));
            }
        }
    }
    // Options in the pieces: in the first whole, in the first alone, and across the first cut.
    for units in 1..=4 {
        let mut options = vec![6, units as u8 - 1, 1, 4];
        options.resize(units * UNIT, 0);
        let all = [&options[..], &bytes].concat();
        for first in (UNIT..all.len()).step_by(UNIT) {
            sets.push(v6_of(&cut(&all, &[first]), 60, &[]));
        }
    }
    // Pieces of a datagram that is itself a piece, cut anywhere.
    let inner = [&[6, 0, 0, 0, 0, 0, 0x56, 0x78][..], &bytes].concat();
    for first in (UNIT..inner.len()).step_by(UNIT) {
        for number in 0..2 {
            sets.push(v6_of(&ordered(&cut(&inner, &[first]), number), 44, &[]));
        }
    }
    sets
}

fn with_options() -> Vec<Set> {
    let pieces = cut(&segment(GUARDED), &[24]);
    let mut sets = Vec::new();
    for options in [vec![1; 4], vec![1; 40], vec![148, 4, 0, 0]] {
        // In both, in the first, in the last.
        for (first, last) in [(true, true), (true, false), (false, true)] {
            let of = |piece: &Piece, has: bool| {
                let options: &[u8] = if has { &options } else { &[] };
                ethernet(&[], IPV4, &packet(piece, options))
            };
            sets.push(vec![of(&pieces[0], first), of(&pieces[1], last)]);
        }
    }
    for tags in [&[Step::PRIORITY][..], &[Step::PRIORITY, Step::PRIORITY]] {
        let of = |piece: &Piece| ethernet(tags, IPV4, &packet(piece, &[]));
        sets.push(pieces.iter().map(of).collect());
    }
    sets
}

/// The set with a number of its own, so that no other set's pieces end up in its datagram.
pub(crate) fn numbered(set: &Set, number: u16) -> Set {
    let renumber = |frame: &Vec<u8>| {
        let mut frame = frame.clone();
        let places = (18..frame.len() - 1).filter(|at| frame[*at..at + 2] == NUMBERED);
        for at in places.collect::<Vec<usize>>() {
            frame[at..at + 2].copy_from_slice(&number.to_be_bytes());
            // IPv4's identification is under the header's checksum (RFC 1624).
            if frame[at - 6..at - 4] == IPV4.to_be_bytes() && frame[at - 4] >> 4 == 4 {
                let [high, low] = [frame[at + 6], frame[at + 7]];
                let before = u32::from(!u16::from_be_bytes([high, low]));
                let sum = before + u32::from(!u16::from_be_bytes(NUMBERED)) + u32::from(number);
                let folded = (sum & 0xffff) + (sum >> 16);
                let folded = (folded & 0xffff) + (folded >> 16);
                frame[at + 6..at + 8].copy_from_slice(&(!(folded as u16)).to_be_bytes());
            }
        }
        frame
    };
    set.iter().map(renumber).collect()
}
