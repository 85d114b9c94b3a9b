//! What comes back from a port of a target.

use super::network::{
    IPV4_FRAGMENT_OFFSET, IPV4_HEADER, IPV4_MORE_FRAGMENTS, IPV6_HEADER, PROTOCOL_TCP,
};
use super::{Frame, MAX_HEADERS};
use crate::address::Family;
use crate::redirect::Endpoint;

/// A TCP packet that may belong to a redirected connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Offset of the TCP header in the frame.
    pub transport: usize,
    /// Where it comes from.
    pub source: Endpoint,
    /// Where it goes.
    pub destination: Endpoint,
}

/// The TCP packet from a port that is a target's whose IP header is at `network`. `None` for
/// everything else, fragments included, which do not tell their ports, and for headers that are not
/// there.
#[inline(always)]
pub fn reply<F: Frame>(
    frame: &F,
    family: Family,
    network: usize,
    is_targets: impl Fn([u8; 2]) -> bool,
) -> Option<Reply> {
    if network > MAX_HEADERS {
        return None;
    }
    let transport = match family {
        Family::V4 => {
            let header: [u8; 10] = frame.load(network)?;
            let fragment = u16::from_be_bytes([header[6], header[7]]);
            let length = usize::from(header[0] & 0x0f) * 4;
            if header[9] != PROTOCOL_TCP
                || fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) != 0
                || length < IPV4_HEADER
            {
                return None;
            }
            network + length
        }
        Family::V6 => {
            let header: [u8; 8] = frame.load(network)?;
            if header[6] != PROTOCOL_TCP {
                return None;
            }
            network + IPV6_HEADER
        }
    };
    let [a, b, c, d] = frame.load(transport)?;
    let (from, to) = ([a, b], [c, d]);
    if !is_targets(from) {
        return None;
    }
    let (source, destination) = match family {
        Family::V4 => {
            let [a, b, c, d, e, f, g, h]: [u8; 8] = frame.load(network + 12)?;
            (
                Endpoint::v4(u32::from_ne_bytes([a, b, c, d]), from),
                Endpoint::v4(u32::from_ne_bytes([e, f, g, h]), to),
            )
        }
        Family::V6 => (
            Endpoint::v6(words(frame.load(network + 8)?), from),
            Endpoint::v6(words(frame.load(network + 24)?), to),
        ),
    };
    Some(Reply {
        transport,
        source,
        destination,
    })
}

#[inline(always)]
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
