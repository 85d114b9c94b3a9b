//! Results of parser parts as one number: global functions return nothing else.

use gate25_common::address::{Address, Family};
use gate25_common::decide::{Route, Verdict};
use gate25_common::packet::{Form, Link, Malformed, ParseError, Segment};

const OTHER: u64 = 0;
pub(crate) const SHORT: u64 = 1;
const IP: u64 = 2;
const VLAN_DEPTH: u64 = 3;
const DIRECT: u64 = 4;
const SOURCE_ROUTED: u64 = 5;
const MALFORMED: u64 = 6;
const UNREADABLE: u64 = 7;
const KIND: u64 = 0xff;
const V6: u64 = 1 << 8;
const UNUSUAL: u64 = 1 << 9;
const OFFSET_SHIFT: u64 = 16;
const OFFSET: u64 = 0xff;

#[inline(always)]
pub(crate) fn pack_link(link: Result<Link, ParseError>) -> u64 {
    match link {
        Ok(Link::Other) => OTHER,
        Ok(Link::Ip {
            family,
            network,
            form,
        }) => {
            let form = match form {
                Form::Plain => 0,
                Form::Unusual => UNUSUAL,
            };
            IP | pack_family(family) | form | (network as u64) << OFFSET_SHIFT
        }
        // The one way in which a link layer is malformed.
        Err(ParseError::Malformed(_, family)) => VLAN_DEPTH | pack_family(family),
        Err(ParseError::ShortLink) => SHORT,
        Err(ParseError::ShortNetwork(family)) => UNREADABLE | pack_family(family),
    }
}

#[inline(always)]
pub(crate) fn unpack_link(packed: u64) -> Result<Link, ParseError> {
    let family = if packed & V6 == 0 {
        Family::V4
    } else {
        Family::V6
    };
    match packed & KIND {
        OTHER => Ok(Link::Other),
        SHORT => Err(ParseError::ShortLink),
        UNREADABLE => Err(ParseError::ShortNetwork(family)),
        IP => Ok(Link::Ip {
            family,
            network: (packed >> OFFSET_SHIFT & OFFSET) as usize,
            form: if packed & UNUSUAL == 0 {
                Form::Plain
            } else {
                Form::Unusual
            },
        }),
        // `VLAN_DEPTH`; no other number is ever packed.
        _ => Err(ParseError::Malformed(Malformed::VlanDepth, family)),
    }
}

#[inline(always)]
pub(crate) fn pack_route(route: Result<Route, ParseError>) -> u64 {
    match route {
        Ok(Route::Direct) => DIRECT,
        Ok(Route::SourceRouted) => SOURCE_ROUTED,
        Err(ParseError::ShortLink | ParseError::ShortNetwork(_)) => SHORT,
        // The one way in which options are malformed.
        Err(ParseError::Malformed(..)) => MALFORMED,
    }
}

#[inline(always)]
pub(crate) fn unpack_route(packed: u64) -> Result<Route, ParseError> {
    match packed {
        DIRECT => Ok(Route::Direct),
        SOURCE_ROUTED => Ok(Route::SourceRouted),
        SHORT => Err(ParseError::ShortNetwork(Family::V4)),
        // `MALFORMED`; no other number is ever packed.
        _ => Err(ParseError::Malformed(Malformed::Header, Family::V4)),
    }
}

#[inline(always)]
fn pack_family(family: Family) -> u64 {
    match family {
        Family::V4 => 0,
        Family::V6 => V6,
    }
}

/// The first and the last eight bytes of an address.
#[inline(always)]
pub(crate) fn pack_address(address: &Address) -> [u64; 2] {
    let [a, b, c, d] = address.words().map(u64::from);
    [a | b << 32, c | d << 32]
}

#[inline(always)]
pub(crate) fn unpack_address(high: u64, low: u64) -> Address {
    Address::from_words([
        high as u32,
        (high >> 32) as u32,
        low as u32,
        (low >> 32) as u32,
    ])
}

/// What the decision and the counters need of a [`Segment`] besides its destination and payload.
pub(crate) struct Place {
    pub(crate) family: Family,
    pub(crate) port: [u8; 2],
    pub(crate) route: Route,
    pub(crate) is_attempt: bool,
    /// Bytes before the payload.
    pub(crate) headers: u64,
}

const PLACE_V6: u64 = 1 << 16;
const PLACE_SOURCE_ROUTED: u64 = 1 << 17;
const PLACE_ATTEMPT: u64 = 1 << 18;
const PLACE_HEADERS_SHIFT: u64 = 32;

#[inline(always)]
pub(crate) fn pack_place(segment: &Segment) -> u64 {
    let family = match segment.family {
        Family::V4 => 0,
        Family::V6 => PLACE_V6,
    };
    let route = match segment.route {
        Route::Direct => 0,
        Route::SourceRouted => PLACE_SOURCE_ROUTED,
    };
    let attempt = if segment.is_attempt() {
        PLACE_ATTEMPT
    } else {
        0
    };
    let headers = (segment.transport + segment.tcp_header) as u64;
    let port = u64::from(u16::from_ne_bytes(segment.port));
    port | family | route | attempt | headers << PLACE_HEADERS_SHIFT
}

#[inline(always)]
pub(crate) fn unpack_place(packed: u64) -> Place {
    Place {
        family: if packed & PLACE_V6 == 0 {
            Family::V4
        } else {
            Family::V6
        },
        port: (packed as u16).to_ne_bytes(),
        route: if packed & PLACE_SOURCE_ROUTED == 0 {
            Route::Direct
        } else {
            Route::SourceRouted
        },
        is_attempt: packed & PLACE_ATTEMPT != 0,
        headers: packed >> PLACE_HEADERS_SHIFT,
    }
}

/// What a reset needs of a [`Segment`] besides its payload's length.
pub(crate) struct Question {
    pub(crate) family: Family,
    pub(crate) network: usize,
    pub(crate) transport: usize,
    pub(crate) is_ack: bool,
    pub(crate) control_length: u32,
}

const QUESTION_V6: u64 = 1 << 32;
const QUESTION_ACK: u64 = 1 << 33;
const QUESTION_TRANSPORT_SHIFT: u64 = 16;
const QUESTION_CONTROL_SHIFT: u64 = 40;

#[inline(always)]
pub(crate) fn pack_question(segment: &Segment) -> u64 {
    let family = match segment.family {
        Family::V4 => 0,
        Family::V6 => QUESTION_V6,
    };
    let ack = if segment.is_ack() { QUESTION_ACK } else { 0 };
    segment.network as u64
        | (segment.transport as u64) << QUESTION_TRANSPORT_SHIFT
        | family
        | ack
        | u64::from(segment.control_length()) << QUESTION_CONTROL_SHIFT
}

#[inline(always)]
pub(crate) fn unpack_question(packed: u64) -> Question {
    Question {
        family: if packed & QUESTION_V6 == 0 {
            Family::V4
        } else {
            Family::V6
        },
        network: usize::from(packed as u16),
        transport: usize::from((packed >> QUESTION_TRANSPORT_SHIFT) as u16),
        is_ack: packed & QUESTION_ACK != 0,
        control_length: (packed >> QUESTION_CONTROL_SHIFT) as u32,
    }
}

#[inline(always)]
pub(crate) fn unpack_family(packed: u32) -> Family {
    if packed == Family::V4 as u32 {
        Family::V4
    } else {
        Family::V6
    }
}

#[inline(always)]
pub(crate) fn unpack_malformed(packed: u32) -> Malformed {
    // No other number is ever packed.
    Malformed::ALL
        .get(packed as usize)
        .copied()
        .unwrap_or(Malformed::Lookup)
}

/// The verdict with this number. No other number is ever packed; it would close the port.
#[inline(always)]
pub(crate) fn unpack_verdict(packed: u64) -> Verdict {
    const ALLOW: u64 = Verdict::Allow as u64;
    const OBSERVE: u64 = Verdict::Observe as u64;
    const REJECT: u64 = Verdict::Reject as u64;
    const REDIRECT: u64 = Verdict::Redirect as u64;
    const NOTICE: u64 = Verdict::Notice as u64;
    const THROTTLE: u64 = Verdict::Throttle as u64;
    match packed {
        ALLOW => Verdict::Allow,
        OBSERVE => Verdict::Observe,
        REJECT => Verdict::Reject,
        REDIRECT => Verdict::Redirect,
        NOTICE => Verdict::Notice,
        THROTTLE => Verdict::Throttle,
        _ => Verdict::Drop,
    }
}
