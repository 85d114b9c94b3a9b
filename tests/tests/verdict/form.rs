//! What a frame is made of, as far as nftables cannot look into it: read once more, in the plainest
//! way.

use gate25_common::address::Address;
use gate25_common::packet::MAX_HEADERS;
use gate25_common::testing::frames::{IPV4, IPV6, OLD_TAG, SERVICE_TAG, TAG};

const TCP: u8 = 6;
const TCP_HEADER: usize = 20;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// No next header, which also stands for what is not there.
const NONE: u8 = 59;
/// Mobility, host identity and shim6, which netfilter does not walk either.
const UNWALKED: [u8; 4] = [AUTHENTICATION, 135, 139, 140];
const WALKED: [u8; 3] = [0, ROUTING, 60];
/// Extension headers that the programs follow.
const FOLLOWED: usize = 8;

/// Why nftables may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// It may not.
    Plain,
    /// Behind two tags, an old tag, or an LLC header.
    Hidden,
    /// An authentication header in IPv4, a header that netfilter does not walk in IPv6.
    Unwalked,
    /// A routing header.
    Routing,
    /// A fragment header with another extension header behind it.
    Fragment,
    /// Extension headers that the programs do not follow: too many, too long, or with
    /// the TCP header longer than the packet says that it is.
    Further,
    /// Options in IPv4.
    Options,
    /// The IP header claims more than there is, or in IPv4 to be of no length.
    Long,
}

/// What a frame is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) form: Form,
    /// Bytes of the tag that the kernel takes off.
    pub(crate) stripped: usize,
    /// Extension headers that the programs do not follow.
    pub(crate) further: bool,
    /// Where a packet for the guarded port goes, behind however many headers.
    pub(crate) guarded: Option<Address>,
}

impl Shape {
    pub(crate) fn of(frame: &[u8]) -> Self {
        let mut shape = Self {
            form: Form::Hidden,
            stripped: 0,
            further: false,
            guarded: None,
        };
        let (mut kind, mut at) = (word(frame, 12), 14);
        if [TAG, SERVICE_TAG].contains(&kind) {
            shape.stripped = 4;
            (kind, at) = (word(frame, 16), 18);
        }
        if [TAG, SERVICE_TAG, OLD_TAG].contains(&kind) || kind < 0x600 {
            return shape;
        }
        shape.form = match kind {
            IPV4 => v4(frame.get(at..).unwrap_or_default()),
            IPV6 => v6(frame, at, &mut shape),
            _ => Form::Plain,
        };
        shape
    }
}

fn v4(packet: &[u8]) -> Form {
    if byte(packet, 9) == AUTHENTICATION {
        Form::Unwalked
    } else if byte(packet, 0) > 0x45 {
        Form::Options
    } else if word(packet, 2) == 0 || usize::from(word(packet, 2)) > packet.len() {
        Form::Long
    } else {
        Form::Plain
    }
}

fn v6(frame: &[u8], start: usize, shape: &mut Shape) -> Form {
    let packet = frame.get(start..).unwrap_or_default();
    let (mut next, mut at) = (byte(packet, 6), 40);
    let (mut count, mut unwalked, mut routing, mut fragment) = (0, false, false, false);
    while is_extension(next) {
        count += 1;
        unwalked |= UNWALKED.contains(&next);
        routing |= next == ROUTING;
        let length = usize::from(byte(packet, at + 1));
        let bytes = match next {
            FRAGMENT => 8,
            AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        let behind = byte(packet, at);
        fragment |= next == FRAGMENT && is_extension(behind);
        let later = next == FRAGMENT && word(packet, at + 2) >> 3 > 1;
        next = if later { NONE } else { behind };
        at += bytes;
    }
    let length = usize::from(word(packet, 4));
    let end = if next == TCP { at + TCP_HEADER } else { at };
    let beyond = count > 0 && length != 0 && end > length + 40;
    shape.further = count > FOLLOWED || start + at > MAX_HEADERS || beyond;
    if next == TCP && word(packet, at + 2) == 25 {
        let destination = packet.get(24..40).and_then(|it| it.first_chunk());
        shape.guarded = destination.copied().map(Address::from_v6);
    }
    if unwalked {
        Form::Unwalked
    } else if fragment {
        Form::Fragment
    } else if routing {
        Form::Routing
    } else if shape.further {
        Form::Further
    } else if length + 40 > packet.len() {
        Form::Long
    } else {
        Form::Plain
    }
}

fn is_extension(header: u8) -> bool {
    UNWALKED.contains(&header) || WALKED.contains(&header) || header == FRAGMENT
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(NONE)
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([byte(bytes, at), byte(bytes, at + 1)])
}
