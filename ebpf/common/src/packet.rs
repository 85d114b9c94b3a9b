//! Finds out whether a frame is a TCP packet for a guarded port.
//!
//! Lengths are untrusted, every walk is bounded, and a bound that is hit closes the port. The
//! frame is read through [`Frame`], so the kernel and the tests run the same code.

mod link;
mod network;
mod reply;
mod tcp;

use crate::address::{Address, Family};
use crate::decide::{Route, Subject};
use crate::packet::link::{ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::packet::network::{
    IPV4_FRAGMENT_OFFSET, IPV4_HEADER, IPV4_MORE_FRAGMENTS, IPV6_HEADER, PROTOCOL_GRE,
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_IPIP, PROTOCOL_IPV6, PROTOCOL_TCP, PROTOCOL_UDP,
};
use crate::packet::tcp::{TCP_ACK, TCP_FIN, TCP_HEADER, TCP_JUDGED, TCP_RST, TCP_SYN};
use crate::redirect::Motion;

pub use link::{ETHERTYPES_OF_TAGS, Link, PROTOCOL_LLC, link, plain_link};
pub use network::{ipv4_route, network};
pub use reply::{Reply, ToGuest};

/// Bytes from the start of the frame within which the TCP header must begin.
pub const MAX_HEADERS: usize = 512;

/// Reads a frame that begins with its Ethernet header, or a packet that begins with its IP header.
pub trait Frame {
    /// `N` bytes at `offset`, at least 2; `None` if they are not (or not directly) there.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Length of the whole frame, wherever its bytes are.
    fn length(&self) -> usize;
    /// Whether the bytes before `end` will stay as they are: a checksum may be written into the
    /// frame after it was judged.
    #[inline(always)]
    fn settled(&self, end: usize) -> bool {
        let _all = end;
        true
    }
    /// VLAN tags that were taken off the frame before it got here.
    fn stripped_tags(&self) -> u32;
    /// Whether TCP packets for `port` (network order) are judged.
    fn guarded(&self, port: [u8; 2]) -> bool;
    /// Whether TCP packets from port `from` to port `to` (network order) are judged: by where they
    /// go, unless the frame is one towards a guest.
    #[inline(always)]
    fn judged(&self, from: [u8; 2], to: [u8; 2]) -> bool {
        let _any = from;
        self.guarded(to)
    }
    /// [`ipv4_route`] on this frame; the kernel's frames run it as a function of its own, since
    /// the verifier would otherwise follow its loop into everything that comes after it.
    ///
    /// # Errors
    ///
    /// As [`ipv4_route`].
    #[inline(always)]
    fn route_of_options(&self, before: usize, end: usize) -> Result<Route, ParseError>
    where
        Self: Sized,
    {
        ipv4_route(self, before, end)
    }
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

/// What a [`Segment`] is without the fields that can be read from its frame again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    /// As [`Segment::family`].
    pub family: Family,
    /// As [`Segment::route`].
    pub route: Route,
    /// As [`Segment::form`].
    pub form: Form,
    /// As [`Segment::network`].
    pub network: usize,
    /// As [`Segment::transport`].
    pub transport: usize,
    /// As [`Segment::tcp_header`].
    pub tcp_header: usize,
    /// As [`Segment::payload`].
    pub payload: usize,
}

impl Outline {
    /// The segment in `frame` that it is the outline of; `None` if the frame is another one.
    #[inline(always)]
    pub fn fill<F: Frame>(self, frame: &F) -> Option<Segment> {
        let header: [u8; TCP_JUDGED] = frame.load(self.transport)?;
        let destination = match self.family {
            Family::V4 => Address::from_v4(frame.load(self.network + 16)?),
            Family::V6 => Address::from_v6(frame.load(self.network + 24)?),
        };
        Some(self.segment(destination, [header[2], header[3]], header[13]))
    }

    /// The segment to `destination` and `port` with `flags`.
    #[inline(always)]
    fn segment(self, destination: Address, port: [u8; 2], flags: u8) -> Segment {
        let Self {
            family,
            route,
            form,
            network,
            transport,
            tcp_header,
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

/// Whether a packet has the form that a reset can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Ethernet with tags, IP without options or extension headers, TCP.
    Plain,
    /// Anything else.
    Unusual,
}

impl Segment {
    /// What cannot be read from the frame again.
    #[inline(always)]
    pub const fn outline(&self) -> Outline {
        Outline {
            family: self.family,
            route: self.route,
            form: self.form,
            network: self.network,
            transport: self.transport,
            tcp_header: self.tcp_header,
            payload: self.payload,
        }
    }

    /// Whether it opens a connection: a SYN without ACK.
    #[inline(always)]
    pub const fn is_attempt(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// What there is to judge of it.
    #[inline(always)]
    pub const fn subject(&self) -> Subject {
        Subject::Guarded {
            destination: self.destination,
            port: self.port,
            route: self.route,
            family: self.family,
            form: self.form,
        }
    }

    /// What it does to its connection.
    #[inline(always)]
    pub const fn motion(&self) -> Motion {
        if self.flags & (TCP_FIN | TCP_RST) != 0 {
            Motion::Ends
        } else if self.is_attempt() {
            Motion::Begins
        } else {
            Motion::Goes
        }
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
    /// A checksum is still to be written over a header that was judged.
    LateChecksum = 8,
}

impl Malformed {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 9] = [
        Self::Truncated,
        Self::Header,
        Self::Extensions,
        Self::ShortFragment,
        Self::OverlappingFragment,
        Self::VlanDepth,
        Self::SourceRoute,
        Self::Lookup,
        Self::LateChecksum,
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
            Self::LateChecksum => "late_checksum",
        }
    }
}

/// Why parsing ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseError {
    /// The frame ends before it is known to hold IP.
    ShortLink,
    /// Bytes of an IP packet's headers, or of what may be one, could not be loaded.
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
    match ethertype {
        ETHERTYPE_IPV4 => evidently_other_packet(frame, Family::V4, ETHERNET_HEADER),
        ETHERTYPE_IPV6 => evidently_other_packet(frame, Family::V6, ETHERNET_HEADER),
        ETHERTYPE_ARP => frame.settled(ETHERNET_HEADER),
        _ => false,
    }
}

/// [`evidently_other`] for the IP packet whose header is at `network`. Whatever this does not
/// settle is for [`network()`].
#[inline(always)]
pub fn evidently_other_packet<F: Frame>(frame: &F, family: Family, network: usize) -> bool {
    let judged = match family {
        Family::V4 => {
            let Some(header) = frame.load::<24>(network) else {
                return false;
            };
            let fragment = u16::from_be_bytes([header[6], header[7]]);
            if header[0] != 0x45 || fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) != 0 {
                return false;
            }
            let transport = network + IPV4_HEADER;
            match header[9] {
                PROTOCOL_TCP => {
                    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                    if frame.judged([header[20], header[21]], [header[22], header[23]])
                        || total < IPV4_HEADER + TCP_HEADER
                        || frame.length() < transport + TCP_HEADER
                    {
                        return false;
                    }
                    transport + TCP_JUDGED
                }
                PROTOCOL_UDP | PROTOCOL_ICMP => transport,
                _ => return false,
            }
        }
        Family::V6 => {
            let Some(header) = frame.load::<8>(network) else {
                return false;
            };
            if header[0] >> 4 != 6 {
                return false;
            }
            let transport = network + IPV6_HEADER;
            match header[6] {
                PROTOCOL_TCP => {
                    let Some([a, b, c, d]) = frame.load::<4>(transport) else {
                        return false;
                    };
                    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
                    if frame.judged([a, b], [c, d])
                        || payload < TCP_HEADER
                        || frame.length() < transport + TCP_HEADER
                    {
                        return false;
                    }
                    transport + TCP_JUDGED
                }
                PROTOCOL_UDP | PROTOCOL_ICMPV6 => transport,
                _ => return false,
            }
        }
    };
    frame.settled(judged)
}

/// The outcome, if it does not rest on bytes before `judged` that are still to be written.
#[inline(always)]
fn settle<F: Frame>(
    frame: &F,
    outcome: Parsed,
    judged: usize,
    family: Family,
) -> Result<Parsed, ParseError> {
    if frame.settled(judged) {
        Ok(outcome)
    } else {
        Err(ParseError::Malformed(Malformed::LateChecksum, family))
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
