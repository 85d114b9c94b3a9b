//! Results of parser parts as one number: global functions return nothing else.

use gate25_common::address::Family;
use gate25_common::decide::Route;
use gate25_common::packet::{
    Form, Frame, Link, MAX_HEADERS, Malformed, Outline, ParseError, Parsed, Tunnel,
};

/// What the lowest byte says.
const KIND: u64 = 0xff;
const OTHER: u64 = 0;
pub(crate) const SHORT: u64 = 1;
const UNREADABLE: u64 = 2;
const IP: u64 = 3;
const GUARDED: u64 = 4;
const DIRECT: u64 = 5;
const SOURCE_ROUTED: u64 = 6;
const TUNNEL: u64 = 16;
const MALFORMED: u64 = 32;

const V6: u64 = 1 << 8;
const UNUSUAL: u64 = 1 << 9;
const ROUTED: u64 = 1 << 10;

const NETWORK: Field = Field::new(16, 10);
const TRANSPORT: Field = Field::new(26, 10);
const TCP_HEADER: Field = Field::new(36, 6);
const PAYLOAD: Field = Field::new(42, 22);

/// Whatever is told is told again as it was, and no two things by one number.
const _: () = {
    assert!(Tunnel::ALL.len() == 3 && TUNNEL + Tunnel::ALL.len() as u64 <= MALFORMED);
    assert!(MALFORMED + Malformed::ALL.len() as u64 <= KIND);
    let mut at = 0;
    while at < Malformed::ALL.len() {
        let kind = Malformed::ALL[at] as u64;
        assert!(kind == at as u64 && unpack_malformed(kind) as u64 == kind);
        at += 1;
    }
};

/// Headers of the link and of IP are shorter than what is walked of extension headers, so that every
/// offset is below twice that; a TCP header has 60 bytes, and no packet of the kernel 4 MiB.
const _: () = {
    assert!(NETWORK.mask >= 2 * MAX_HEADERS as u64 - 1 && TRANSPORT.mask == NETWORK.mask);
    assert!(TCP_HEADER.mask >= 60 && PAYLOAD.mask >= (1 << 22) - 1);
};

/// Bits of the number that hold a number of their own.
struct Field {
    shift: u32,
    mask: u64,
}

impl Field {
    const fn new(shift: u32, bits: u32) -> Self {
        Self {
            shift,
            mask: (1 << bits) - 1,
        }
    }

    #[inline(always)]
    const fn put(self, value: usize) -> u64 {
        (value as u64 & self.mask) << self.shift
    }

    #[inline(always)]
    const fn get(self, packed: u64) -> usize {
        (packed >> self.shift & self.mask) as usize
    }
}

#[inline(always)]
pub(crate) fn pack_link(link: Result<Link, ParseError>) -> u64 {
    match link {
        Ok(Link::Other) => OTHER,
        Ok(Link::Ip {
            family,
            network,
            form,
        }) => IP | pack_family(family) | pack_form(form) | NETWORK.put(network),
        Err(error) => pack_error(error),
    }
}

#[inline(always)]
pub(crate) fn unpack_link(packed: u64) -> Result<Link, ParseError> {
    match packed & KIND {
        OTHER => Ok(Link::Other),
        IP => Ok(Link::Ip {
            family: unpack_family(packed),
            network: NETWORK.get(packed),
            form: unpack_form(packed),
        }),
        _ => Err(unpack_error(packed)),
    }
}

#[inline(always)]
pub(crate) fn pack_parsed(parsed: Result<Parsed, ParseError>) -> u64 {
    match parsed {
        Ok(Parsed::Other) => OTHER,
        Ok(Parsed::Tunnel(tunnel)) => TUNNEL + tunnel as u64,
        Ok(Parsed::Guarded(segment)) => {
            let Outline {
                family,
                route,
                form,
                network,
                transport,
                tcp_header,
                payload,
            } = segment.outline();
            let route = match route {
                Route::Direct => 0,
                Route::SourceRouted => ROUTED,
            };
            GUARDED
                | pack_family(family)
                | pack_form(form)
                | route
                | NETWORK.put(network)
                | TRANSPORT.put(transport)
                | TCP_HEADER.put(tcp_header)
                | PAYLOAD.put(payload)
        }
        Err(error) => pack_error(error),
    }
}

/// What [`pack_parsed`] packed, its segment read from `frame` again.
#[inline(always)]
pub(crate) fn unpack_parsed<F: Frame>(packed: u64, frame: &F) -> Result<Parsed, ParseError> {
    const IPIP: u64 = TUNNEL + Tunnel::Ipip as u64;
    const SIX_IN_FOUR: u64 = TUNNEL + Tunnel::SixInFour as u64;
    const GRE: u64 = TUNNEL + Tunnel::Gre as u64;
    match packed & KIND {
        OTHER => Ok(Parsed::Other),
        IPIP => Ok(Parsed::Tunnel(Tunnel::Ipip)),
        SIX_IN_FOUR => Ok(Parsed::Tunnel(Tunnel::SixInFour)),
        GRE => Ok(Parsed::Tunnel(Tunnel::Gre)),
        GUARDED => {
            let outline = outline(packed);
            outline
                .fill(frame)
                .map(Parsed::Guarded)
                .ok_or(ParseError::ShortNetwork(outline.family))
        }
        _ => Err(unpack_error(packed)),
    }
}

/// The outline of the TCP packet that [`pack_parsed`] packed, if it was one that is judged.
#[inline(always)]
pub(crate) fn unpack_outline(packed: u64) -> Option<Outline> {
    (packed & KIND == GUARDED).then(|| outline(packed))
}

#[inline(always)]
fn outline(packed: u64) -> Outline {
    Outline {
        family: unpack_family(packed),
        route: if packed & ROUTED == 0 {
            Route::Direct
        } else {
            Route::SourceRouted
        },
        form: unpack_form(packed),
        network: NETWORK.get(packed),
        transport: TRANSPORT.get(packed),
        tcp_header: TCP_HEADER.get(packed),
        payload: PAYLOAD.get(packed),
    }
}

/// Whether it says where an IP packet begins. What does not means the same as a packed outcome of
/// the whole parser.
#[inline(always)]
pub(crate) fn is_ip(packed: u64) -> bool {
    packed & KIND == IP
}

/// Whether it says that there is nothing to judge or to count.
#[inline(always)]
pub(crate) fn is_other(packed: u64) -> bool {
    packed & KIND == OTHER
}

/// Whether it says that bytes could not be loaded.
#[inline(always)]
pub(crate) fn is_short(packed: u64) -> bool {
    matches!(packed & KIND, SHORT | UNREADABLE)
}

#[inline(always)]
pub(crate) fn pack_route(route: Result<Route, ParseError>) -> u64 {
    match route {
        Ok(Route::Direct) => DIRECT,
        Ok(Route::SourceRouted) => SOURCE_ROUTED,
        Err(error) => pack_error(error),
    }
}

#[inline(always)]
pub(crate) fn unpack_route(packed: u64) -> Result<Route, ParseError> {
    match packed & KIND {
        DIRECT => Ok(Route::Direct),
        SOURCE_ROUTED => Ok(Route::SourceRouted),
        _ => Err(unpack_error(packed)),
    }
}

#[inline(always)]
fn pack_error(error: ParseError) -> u64 {
    match error {
        ParseError::ShortLink => SHORT,
        ParseError::ShortNetwork(family) => UNREADABLE | pack_family(family),
        ParseError::Malformed(kind, family) => (MALFORMED + kind as u64) | pack_family(family),
    }
}

#[inline(always)]
fn unpack_error(packed: u64) -> ParseError {
    let family = unpack_family(packed);
    match packed & KIND {
        SHORT => ParseError::ShortLink,
        UNREADABLE => ParseError::ShortNetwork(family),
        kind => ParseError::Malformed(unpack_malformed(kind.wrapping_sub(MALFORMED)), family),
    }
}

#[inline(always)]
const fn unpack_malformed(kind: u64) -> Malformed {
    const HEADER: u64 = Malformed::Header as u64;
    const EXTENSIONS: u64 = Malformed::Extensions as u64;
    const SHORT_FRAGMENT: u64 = Malformed::ShortFragment as u64;
    const OVERLAPPING_FRAGMENT: u64 = Malformed::OverlappingFragment as u64;
    const VLAN_DEPTH: u64 = Malformed::VlanDepth as u64;
    const SOURCE_ROUTE: u64 = Malformed::SourceRoute as u64;
    const LOOKUP: u64 = Malformed::Lookup as u64;
    const LATE_CHECKSUM: u64 = Malformed::LateChecksum as u64;
    match kind {
        HEADER => Malformed::Header,
        EXTENSIONS => Malformed::Extensions,
        SHORT_FRAGMENT => Malformed::ShortFragment,
        OVERLAPPING_FRAGMENT => Malformed::OverlappingFragment,
        VLAN_DEPTH => Malformed::VlanDepth,
        SOURCE_ROUTE => Malformed::SourceRoute,
        LOOKUP => Malformed::Lookup,
        LATE_CHECKSUM => Malformed::LateChecksum,
        // `Truncated`, and numbers that are never packed.
        _ => Malformed::Truncated,
    }
}

#[inline(always)]
fn pack_family(family: Family) -> u64 {
    match family {
        Family::V4 => 0,
        Family::V6 => V6,
    }
}

#[inline(always)]
fn unpack_family(packed: u64) -> Family {
    if packed & V6 == 0 {
        Family::V4
    } else {
        Family::V6
    }
}

#[inline(always)]
fn pack_form(form: Form) -> u64 {
    match form {
        Form::Plain => 0,
        Form::Unusual => UNUSUAL,
    }
}

#[inline(always)]
fn unpack_form(packed: u64) -> Form {
    if packed & UNUSUAL == 0 {
        Form::Plain
    } else {
        Form::Unusual
    }
}
