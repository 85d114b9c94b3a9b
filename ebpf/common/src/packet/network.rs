//! The network layer: IPv4 with its options, IPv6 with its extension headers, fragments.

use super::tcp::{TCP_JUDGED, tcp};
use super::{Form, Frame, MAX_HEADERS, Malformed, ParseError, Parsed, Tunnel, settle};
use crate::address::{Address, Family};
use crate::decide::Route;

pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;

/// Extension headers that may stand before the TCP header.
const MAX_EXTENSIONS: u32 = 8;

const PROTOCOL_HOP_BY_HOP: u8 = 0;
pub(super) const PROTOCOL_ICMP: u8 = 1;
pub(super) const PROTOCOL_IPIP: u8 = 4;
pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;
pub(super) const PROTOCOL_IPV6: u8 = 41;
const PROTOCOL_ROUTING: u8 = 43;
const PROTOCOL_FRAGMENT: u8 = 44;
pub(super) const PROTOCOL_GRE: u8 = 47;
const PROTOCOL_AUTHENTICATION: u8 = 51;
pub(super) const PROTOCOL_ICMPV6: u8 = 58;
const PROTOCOL_DESTINATION_OPTIONS: u8 = 60;
const PROTOCOL_MOBILITY: u8 = 135;
const PROTOCOL_HOST_IDENTITY: u8 = 139;
const PROTOCOL_SHIM6: u8 = 140;

const IPV4_OPTION_END: u8 = 0;
const IPV4_OPTION_NOP: u8 = 1;
const IPV4_OPTION_LOOSE_ROUTE: u8 = 131;
const IPV4_OPTION_STRICT_ROUTE: u8 = 137;
const MAX_IPV4_OPTIONS: usize = 40;

pub(super) const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
pub(super) const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV6_MORE_FRAGMENTS: u16 = 0x0001;

/// The second half of [`parse`]: the IP packet whose header is at `at`.
///
/// # Errors
///
/// [`ParseError`].
#[inline(always)]
pub fn network<F: Frame>(
    frame: &F,
    family: Family,
    at: usize,
    form: Form,
) -> Result<Parsed, ParseError> {
    match family {
        Family::V4 => ipv4(frame, at, form),
        Family::V6 => ipv6(frame, at, form),
    }
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F, network: usize, form: Form) -> Result<Parsed, ParseError> {
    const FAMILY: Family = Family::V4;
    let malformed = |kind| Err(ParseError::Malformed(kind, FAMILY));
    let header: [u8; IPV4_HEADER] = frame
        .load(network)
        .ok_or(ParseError::ShortNetwork(FAMILY))?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < IPV4_HEADER {
        return malformed(Malformed::Header);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let mut protocol = header[9];
    if fragment & IPV4_FRAGMENT_OFFSET != 0 {
        // The protocol is part of a datagram's identity (RFC 791, 3.2): another one's fragment
        // does not end up in a TCP packet.
        if protocol == PROTOCOL_TCP {
            later_fragment(fragment & IPV4_FRAGMENT_OFFSET, FAMILY)?;
        }
        return settle(frame, Parsed::Other, network + header_length, FAMILY);
    }
    let end = datagram_end(
        frame,
        network,
        usize::from(u16::from_be_bytes([header[2], header[3]])),
    );
    let mut transport = network + header_length;
    let mut form = form;
    if protocol == PROTOCOL_AUTHENTICATION {
        let [next, length] = frame
            .load(transport)
            .ok_or(ParseError::ShortNetwork(FAMILY))?;
        protocol = next;
        transport += (usize::from(length) + 2) * 4;
        form = Form::Unusual;
        if protocol == PROTOCOL_AUTHENTICATION {
            return malformed(Malformed::Extensions);
        }
    }
    if protocol != PROTOCOL_TCP {
        return settle(frame, not_tcp(protocol), transport, FAMILY);
    }
    let piece = if fragment & IPV4_MORE_FRAGMENTS != 0 {
        form = Form::Unusual;
        Piece::First
    } else {
        Piece::Whole
    };
    let judged = transport + TCP_JUDGED;
    let Some(tcp) = tcp(frame, transport, end, piece, FAMILY)? else {
        return settle(frame, Parsed::Other, judged, FAMILY);
    };
    let route = if header_length == IPV4_HEADER {
        Route::Direct
    } else {
        form = Form::Unusual;
        frame.route_of_options(network + IPV4_HEADER - 1, network + header_length)?
    };
    let destination = Address::from_v4([header[16], header[17], header[18], header[19]]);
    let segment = tcp.segment(FAMILY, destination, route, form, network);
    settle(frame, Parsed::Guarded(segment), judged, FAMILY)
}

/// Looks for a source route among the IPv4 options that end at `end`. Frames are read two bytes at
/// a time, so they are given by the byte before them.
///
/// # Errors
///
/// [`ParseError`]: options that end early, or whose lengths make no sense.
#[inline(always)]
pub fn ipv4_route<F: Frame>(frame: &F, before: usize, end: usize) -> Result<Route, ParseError> {
    // Byte by byte rather than option by option: the verifier follows every option to every place
    // at which the next could begin.
    let mut skip = 0;
    for at in 0..MAX_IPV4_OPTIONS {
        if before + at + 1 >= end {
            return Ok(Route::Direct);
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        let [_, kind] = frame
            .load(before + at)
            .ok_or(ParseError::ShortNetwork(Family::V4))?;
        match kind {
            IPV4_OPTION_END => return Ok(Route::Direct),
            IPV4_OPTION_NOP => {}
            IPV4_OPTION_LOOSE_ROUTE | IPV4_OPTION_STRICT_ROUTE => return Ok(Route::SourceRouted),
            _ => {
                let [_, length] = frame
                    .load(before + at + 1)
                    .ok_or(ParseError::ShortNetwork(Family::V4))?;
                if length < 2 {
                    return Err(ParseError::Malformed(Malformed::Header, Family::V4));
                }
                skip = length - 1;
            }
        }
    }
    Ok(Route::Direct)
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &F, network: usize, form: Form) -> Result<Parsed, ParseError> {
    const FAMILY: Family = Family::V6;
    let malformed = |kind| Err(ParseError::Malformed(kind, FAMILY));
    let short = ParseError::ShortNetwork(FAMILY);
    let [first, _, _, _, high, low, mut next, _]: [u8; 8] = frame.load(network).ok_or(short)?;
    if first >> 4 != 6 {
        return malformed(Malformed::Header);
    }
    let payload = usize::from(u16::from_be_bytes([high, low]));
    let total = if payload == 0 {
        0
    } else {
        IPV6_HEADER + payload
    };
    let end = datagram_end(frame, network, total);
    let mut transport = network + IPV6_HEADER;
    let mut piece = Piece::Whole;
    let mut route = Route::Direct;
    let mut form = form;
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            PROTOCOL_TCP => {
                let judged = transport + TCP_JUDGED;
                let Some(tcp) = tcp(frame, transport, end, piece, FAMILY)? else {
                    return settle(frame, Parsed::Other, judged, FAMILY);
                };
                let destination = frame.load(network + 24).ok_or(short)?;
                let destination = Address::from_v6(destination);
                let segment = tcp.segment(FAMILY, destination, route, form, network);
                return settle(frame, Parsed::Guarded(segment), judged, FAMILY);
            }
            PROTOCOL_HOP_BY_HOP
            | PROTOCOL_ROUTING
            | PROTOCOL_DESTINATION_OPTIONS
            | PROTOCOL_AUTHENTICATION
            | PROTOCOL_MOBILITY
            | PROTOCOL_HOST_IDENTITY
            | PROTOCOL_SHIM6 => {
                if transport + 8 > end {
                    return malformed(piece.cut_short());
                }
                let extension: [u8; 4] = frame.load(transport).ok_or(short)?;
                if next == PROTOCOL_ROUTING && extension[3] != 0 {
                    route = Route::SourceRouted;
                }
                transport += if next == PROTOCOL_AUTHENTICATION {
                    (usize::from(extension[1]) + 2) * 4
                } else {
                    (usize::from(extension[1]) + 1) * 8
                };
                next = extension[0];
            }
            PROTOCOL_FRAGMENT => {
                if transport + 8 > end {
                    return malformed(piece.cut_short());
                }
                let extension: [u8; 4] = frame.load(transport).ok_or(short)?;
                next = extension[0];
                let fragment = u16::from_be_bytes([extension[2], extension[3]]);
                if fragment >> 3 != 0 {
                    // Only the first fragment's next header counts (RFC 8200, 4.5), so that this
                    // one says nothing about the protocol.
                    later_fragment(fragment >> 3, FAMILY)?;
                    return settle(frame, Parsed::Other, transport + 8, FAMILY);
                }
                if fragment & IPV6_MORE_FRAGMENTS != 0 {
                    piece = Piece::First;
                }
                transport += 8;
            }
            other => return settle(frame, not_tcp(other), transport, FAMILY),
        }
        if transport > MAX_HEADERS {
            return malformed(Malformed::Extensions);
        }
        form = Form::Unusual;
    }
    malformed(Malformed::Extensions)
}

/// Whether a datagram came in one piece.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    Whole,
    First,
}

impl Piece {
    #[inline(always)]
    pub(super) const fn cut_short(self) -> Malformed {
        match self {
            Self::Whole => Malformed::Truncated,
            Self::First => Malformed::ShortFragment,
        }
    }
}

/// Where the datagram ends in the frame: its own length counts unless it is 0, as in packets of
/// more than 64 KiB (jumbo payload, BIG TCP).
#[inline(always)]
fn datagram_end<F: Frame>(frame: &F, network: usize, total: usize) -> usize {
    let frame_end = frame.length();
    if total == 0 || network + total > frame_end {
        frame_end
    } else {
        network + total
    }
}

#[inline(always)]
const fn not_tcp(protocol: u8) -> Parsed {
    match protocol {
        PROTOCOL_IPIP => Parsed::Tunnel(Tunnel::Ipip),
        PROTOCOL_IPV6 => Parsed::Tunnel(Tunnel::SixInFour),
        PROTOCOL_GRE => Parsed::Tunnel(Tunnel::Gre),
        _ => Parsed::Other,
    }
}

/// A fragment after the first passes, since its first is what gets judged, unless it lies over
/// the first one's TCP header (RFC 3128). `offset` counts units of 8 bytes.
#[inline(always)]
fn later_fragment(offset: u16, family: Family) -> Result<(), ParseError> {
    if offset == 1 {
        Err(ParseError::Malformed(
            Malformed::OverlappingFragment,
            family,
        ))
    } else {
        Ok(())
    }
}
