//! Finds out whether a frame is a TCP packet for a guarded port.
//!
//! Lengths are untrusted, every walk is bounded, and a bound that is hit closes the port. The
//! frame is read through [`Frame`], so the kernel and the tests run the same code.

use crate::address::{Address, Family};
use crate::decide::Route;

const ETHERNET_HEADER: usize = 14;
const LLC_SNAP_HEADER: usize = 8;
const VLAN_TAG: usize = 4;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;

/// Tags that may stand before an IP header.
const MAX_VLAN_TAGS: u32 = 2;
/// Link-layer steps (tags, SNAP headers) that are looked through to learn that there are too many.
const MAX_LINK_STEPS: u32 = 4;
/// Extension headers that may stand before the TCP header.
const MAX_EXTENSIONS: u32 = 8;
/// Bytes from the start of the frame within which the TCP header must begin.
pub const MAX_HEADERS: usize = 512;

const ETHERTYPE_MIN: u16 = 0x0600;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const ETHERTYPE_OLD_QINQ: u16 = 0x9100;
const LLC_SNAP: [u8; 3] = [0xaa, 0xaa, 0x03];

const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_IPIP: u8 = 4;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_IPV6: u8 = 41;
const PROTOCOL_ROUTING: u8 = 43;
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_GRE: u8 = 47;
const PROTOCOL_AUTHENTICATION: u8 = 51;
const PROTOCOL_ICMPV6: u8 = 58;
const PROTOCOL_DESTINATION_OPTIONS: u8 = 60;
const PROTOCOL_MOBILITY: u8 = 135;
const PROTOCOL_HOST_IDENTITY: u8 = 139;
const PROTOCOL_SHIM6: u8 = 140;

const IPV4_OPTION_END: u8 = 0;
const IPV4_OPTION_NOP: u8 = 1;
const IPV4_OPTION_LOOSE_ROUTE: u8 = 131;
const IPV4_OPTION_STRICT_ROUTE: u8 = 137;
const MAX_IPV4_OPTIONS: usize = 40;

const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV6_MORE_FRAGMENTS: u16 = 0x0001;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// Reads a frame that begins with its Ethernet header.
pub trait Frame {
    /// `N` bytes at `offset`, at least 2; `None` if they are not (or not directly) there.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Length of the whole frame, wherever its bytes are.
    fn length(&self) -> usize;
    /// VLAN tags that were taken off the frame before it got here.
    fn stripped_tags(&self) -> u32;
    /// Whether TCP packets for `port` (network order) are judged.
    fn guarded(&self, port: [u8; 2]) -> bool;
}

/// What a frame is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Not ours to judge.
    Other,
    /// Not ours to judge, but worth counting: its inside is not seen.
    Tunnel(Tunnel),
    /// A TCP packet for a guarded port.
    Guarded(Segment),
}

/// A tunnel that a guest may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tunnel {
    /// IPv4 in IP, protocol 4.
    Ipip = 0,
    /// IPv6 in IP, protocol 41.
    SixInFour = 1,
    /// GRE, protocol 47.
    Gre = 2,
}

impl Tunnel {
    /// Every tunnel, in the order of the counters.
    pub const ALL: [Self; 3] = [Self::Ipip, Self::SixInFour, Self::Gre];

    /// The IP protocol number.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Ipip => PROTOCOL_IPIP,
            Self::SixInFour => PROTOCOL_IPV6,
            Self::Gre => PROTOCOL_GRE,
        }
    }
}

/// A TCP packet for a guarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The family of its IP header.
    pub family: Family,
    /// Where it goes.
    pub destination: Address,
    /// The port it goes to, in network order.
    pub port: [u8; 2],
    /// Whether the address is all of the truth.
    pub route: Route,
    /// Whether it has the form that a reset can answer.
    pub form: Form,
    /// Offset of the IP header in the frame.
    pub network: usize,
    /// Offset of the TCP header in the frame.
    pub transport: usize,
    /// Length of the TCP header, options included.
    pub tcp_header: usize,
    /// Bytes after the TCP header, by the IP header's account.
    pub payload: usize,
    flags: u8,
}

/// Whether a packet has the form that a reset can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Ethernet with tags, IP without options or extension headers, TCP.
    Plain,
    /// Anything else.
    Unusual,
}

impl Segment {
    /// Whether it opens a connection: a SYN without ACK.
    #[inline(always)]
    pub const fn is_attempt(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// Whether it is itself a reset.
    #[inline(always)]
    pub const fn is_reset(&self) -> bool {
        self.flags & TCP_RST != 0
    }

    /// Whether it acknowledges.
    #[inline(always)]
    pub const fn is_ack(&self) -> bool {
        self.flags & TCP_ACK != 0
    }

    /// Sequence numbers that it takes up besides its payload: one for SYN, one for FIN.
    #[inline(always)]
    pub const fn control_length(&self) -> u32 {
        (self.flags & TCP_SYN != 0) as u32 + (self.flags & TCP_FIN != 0) as u32
    }
}

/// Why a packet is refused for its form, or without its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Malformed {
    /// The frame or the datagram ends inside a header.
    Truncated = 0,
    /// An IP header that contradicts itself.
    Header = 1,
    /// More extension headers, or longer ones, than are walked.
    Extensions = 2,
    /// A first fragment without a whole TCP header.
    ShortFragment = 3,
    /// A fragment that could rewrite the TCP header (RFC 3128).
    OverlappingFragment = 4,
    /// More VLAN tags over IP than are looked through.
    VlanDepth = 5,
    /// A guarded packet whose true destination may be another.
    SourceRoute = 6,
    /// A guarded packet whose policy cannot be read.
    Lookup = 7,
}

impl Malformed {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 8] = [
        Self::Truncated,
        Self::Header,
        Self::Extensions,
        Self::ShortFragment,
        Self::OverlappingFragment,
        Self::VlanDepth,
        Self::SourceRoute,
        Self::Lookup,
    ];

    /// The word for it in metrics and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Header => "header",
            Self::Extensions => "extensions",
            Self::ShortFragment => "short_fragment",
            Self::OverlappingFragment => "overlapping_fragment",
            Self::VlanDepth => "vlan_depth",
            Self::SourceRoute => "source_route",
            Self::Lookup => "lookup",
        }
    }
}

/// Why parsing ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseError {
    /// The frame ends before it is known to hold IP.
    ShortLink,
    /// Bytes of an IP packet's headers could not be loaded.
    ShortNetwork(Family),
    /// The packet is refused for its form.
    Malformed(Malformed, Family),
}

/// Whether `frame` is certainly not ours to judge, told by the few comparisons that settle it for
/// almost all traffic. Whatever this does not settle is for [`parse`].
#[inline(always)]
pub fn evidently_other<F: Frame>(frame: &F) -> bool {
    let Some(ethertype) = frame.load(ETHERNET_HEADER - 2).map(u16::from_be_bytes) else {
        return false;
    };
    let network = ETHERNET_HEADER;
    match ethertype {
        ETHERTYPE_IPV4 => {
            let Some(header) = frame.load::<24>(network) else {
                return false;
            };
            let fragment = u16::from_be_bytes([header[6], header[7]]);
            header[0] == 0x45
                && fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) == 0
                && match header[9] {
                    PROTOCOL_TCP => {
                        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                        !frame.guarded([header[22], header[23]])
                            && total >= IPV4_HEADER + TCP_HEADER
                            && frame.length() >= network + IPV4_HEADER + TCP_HEADER
                    }
                    PROTOCOL_UDP | PROTOCOL_ICMP => true,
                    _ => false,
                }
        }
        ETHERTYPE_IPV6 => {
            let Some(header) = frame.load::<8>(network) else {
                return false;
            };
            header[0] >> 4 == 6
                && match header[6] {
                    PROTOCOL_TCP => {
                        let Some([_, _, port @ ..]) = frame.load::<4>(network + IPV6_HEADER) else {
                            return false;
                        };
                        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
                        !frame.guarded(port)
                            && payload >= TCP_HEADER
                            && frame.length() >= network + IPV6_HEADER + TCP_HEADER
                    }
                    PROTOCOL_UDP | PROTOCOL_ICMPV6 => true,
                    _ => false,
                }
        }
        ETHERTYPE_ARP => true,
        _ => false,
    }
}

/// Tells what `frame` is.
///
/// # Errors
///
/// [`ParseError`]: short frames are worth another try once more of them is loaded; after that,
/// one without an IP header is not ours, and one with an IP header is
/// [`Malformed::Truncated`].
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Result<Parsed, ParseError> {
    match link(frame)? {
        Link::Other => Ok(Parsed::Other),
        Link::Ip {
            family,
            network: at,
            form,
        } => network(frame, family, at, form),
    }
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// No IP packet.
    Other,
    /// An IP packet.
    Ip {
        /// Its family.
        family: Family,
        /// Offset of its header.
        network: usize,
        /// Whether its link header has the form that a reset can answer.
        form: Form,
    },
}

/// The first half of [`parse`]: looks through tags and SNAP headers.
///
/// # Errors
///
/// [`ParseError`].
#[inline(always)]
pub fn link<F: Frame>(frame: &F) -> Result<Link, ParseError> {
    let mut ethertype = ethertype(frame, ETHERNET_HEADER - 2)?;
    let mut network = ETHERNET_HEADER;
    let mut tags = frame.stripped_tags();
    let mut form = Form::Plain;
    for _ in 0..MAX_LINK_STEPS {
        let family = match ethertype {
            ETHERTYPE_IPV4 => Family::V4,
            ETHERTYPE_IPV6 => Family::V6,
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_OLD_QINQ => {
                ethertype = self::ethertype(frame, network + VLAN_TAG - 2)?;
                network += VLAN_TAG;
                tags += 1;
                continue;
            }
            length if length < ETHERTYPE_MIN => {
                let llc: [u8; 3] = frame.load(network).ok_or(ParseError::ShortLink)?;
                if llc != LLC_SNAP {
                    return Ok(Link::Other);
                }
                ethertype = self::ethertype(frame, network + LLC_SNAP_HEADER - 2)?;
                network += LLC_SNAP_HEADER;
                form = Form::Unusual;
                continue;
            }
            _ => return Ok(Link::Other),
        };
        if tags > MAX_VLAN_TAGS {
            return Err(ParseError::Malformed(Malformed::VlanDepth, family));
        }
        return Ok(Link::Ip {
            family,
            network,
            form,
        });
    }
    // So many steps that what is inside, IP or not, is no guest's ordinary traffic.
    Err(ParseError::Malformed(Malformed::VlanDepth, Family::V4))
}

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
fn ethertype<F: Frame>(frame: &F, offset: usize) -> Result<u16, ParseError> {
    frame
        .load(offset)
        .map(u16::from_be_bytes)
        .ok_or(ParseError::ShortLink)
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
        return later_fragment(protocol, fragment & IPV4_FRAGMENT_OFFSET, FAMILY);
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
    }
    if let Some(tunnel) = tunnel(protocol) {
        return Ok(Parsed::Tunnel(tunnel));
    }
    if protocol != PROTOCOL_TCP {
        return Ok(Parsed::Other);
    }
    let piece = if fragment & IPV4_MORE_FRAGMENTS != 0 {
        Piece::First
    } else {
        Piece::Whole
    };
    let Some(tcp) = tcp(frame, transport, end, piece, FAMILY)? else {
        return Ok(Parsed::Other);
    };
    let route = if header_length == IPV4_HEADER {
        Route::Direct
    } else {
        form = Form::Unusual;
        ipv4_route(frame, network + IPV4_HEADER, network + header_length)?
    };
    let destination = Address::from_v4([header[16], header[17], header[18], header[19]]);
    Ok(Parsed::Guarded(tcp.segment(
        FAMILY,
        destination,
        route,
        form,
        network,
    )))
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
                let Some(tcp) = tcp(frame, transport, end, piece, FAMILY)? else {
                    return Ok(Parsed::Other);
                };
                let destination = frame.load(network + 24).ok_or(short)?;
                let destination = Address::from_v6(destination);
                return Ok(Parsed::Guarded(tcp.segment(
                    FAMILY,
                    destination,
                    route,
                    form,
                    network,
                )));
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
                    return later_fragment(next, fragment >> 3, FAMILY);
                }
                if fragment & IPV6_MORE_FRAGMENTS != 0 {
                    piece = Piece::First;
                }
                transport += 8;
            }
            other => return Ok(tunnel(other).map_or(Parsed::Other, Parsed::Tunnel)),
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
enum Piece {
    Whole,
    First,
}

impl Piece {
    #[inline(always)]
    const fn cut_short(self) -> Malformed {
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
const fn tunnel(protocol: u8) -> Option<Tunnel> {
    match protocol {
        PROTOCOL_IPIP => Some(Tunnel::Ipip),
        PROTOCOL_IPV6 => Some(Tunnel::SixInFour),
        PROTOCOL_GRE => Some(Tunnel::Gre),
        _ => None,
    }
}

/// A fragment after the first passes, since its first is what gets judged, unless it lies over
/// the first one's TCP header. `offset` counts units of 8 bytes.
#[inline(always)]
fn later_fragment(protocol: u8, offset: u16, family: Family) -> Result<Parsed, ParseError> {
    if protocol == PROTOCOL_TCP && offset == 1 {
        Err(ParseError::Malformed(
            Malformed::OverlappingFragment,
            family,
        ))
    } else {
        Ok(Parsed::Other)
    }
}

struct Tcp {
    port: [u8; 2],
    flags: u8,
    transport: usize,
    header: usize,
    payload: usize,
}

impl Tcp {
    #[inline(always)]
    fn segment(
        self,
        family: Family,
        destination: Address,
        route: Route,
        form: Form,
        network: usize,
    ) -> Segment {
        let Self {
            port,
            flags,
            transport,
            header: tcp_header,
            payload,
        } = self;
        Segment {
            family,
            destination,
            port,
            route,
            form,
            network,
            transport,
            tcp_header,
            payload,
            flags,
        }
    }
}

/// The TCP header at `transport`; `None` if its port is not guarded.
#[inline(always)]
fn tcp<F: Frame>(
    frame: &F,
    transport: usize,
    end: usize,
    piece: Piece,
    family: Family,
) -> Result<Option<Tcp>, ParseError> {
    if transport > MAX_HEADERS {
        return Err(ParseError::Malformed(Malformed::Extensions, family));
    }
    if transport + TCP_HEADER > end {
        return Err(ParseError::Malformed(piece.cut_short(), family));
    }
    let header: [u8; 14] = frame
        .load(transport)
        .ok_or(ParseError::ShortNetwork(family))?;
    let port = [header[2], header[3]];
    if !frame.guarded(port) {
        return Ok(None);
    }
    let length = usize::from(header[12] >> 4) * 4;
    Ok(Some(Tcp {
        port,
        flags: header[13],
        transport,
        header: length,
        payload: end.saturating_sub(transport + length),
    }))
}

/// Looks for a source route among the options between `start` and `end`.
#[inline(always)]
fn ipv4_route<F: Frame>(frame: &F, start: usize, end: usize) -> Result<Route, ParseError> {
    let mut at = start;
    for _ in 0..MAX_IPV4_OPTIONS {
        if at >= end {
            return Ok(Route::Direct);
        }
        let [_, kind] = frame
            .load(at - 1)
            .ok_or(ParseError::ShortNetwork(Family::V4))?;
        match kind {
            IPV4_OPTION_END => return Ok(Route::Direct),
            IPV4_OPTION_NOP => at += 1,
            IPV4_OPTION_LOOSE_ROUTE | IPV4_OPTION_STRICT_ROUTE => return Ok(Route::SourceRouted),
            _ => {
                let [_, length] = frame.load(at).ok_or(ParseError::ShortNetwork(Family::V4))?;
                if length < 2 {
                    return Err(ParseError::Malformed(Malformed::Header, Family::V4));
                }
                at += usize::from(length);
            }
        }
    }
    Ok(Route::Direct)
}
