//! Results of parser parts as one number: global functions return nothing else.

use gate25_common::address::Family;
use gate25_common::decide::Route;
use gate25_common::packet::{Form, Link, Malformed, ParseError};

const OTHER: u64 = 0;
pub(crate) const SHORT: u64 = 1;
const IP: u64 = 2;
const VLAN_DEPTH: u64 = 3;
const DIRECT: u64 = 4;
const SOURCE_ROUTED: u64 = 5;
const MALFORMED: u64 = 6;
const UNREADABLE: u64 = 7;
const LATE: u64 = 8;
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
        Err(ParseError::Malformed(Malformed::LateChecksum, family)) => LATE | pack_family(family),
        // The other way in which a link layer is malformed.
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
        LATE => Err(ParseError::Malformed(Malformed::LateChecksum, family)),
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
