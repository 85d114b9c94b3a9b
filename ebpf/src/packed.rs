//! The link layer's result as one number: global functions return nothing else.

use gate25_common::address::Family;
use gate25_common::packet::{Form, Link, Malformed, ParseError};

const OTHER: u64 = 0;
const SHORT: u64 = 1;
const IP: u64 = 2;
const VLAN_DEPTH: u64 = 3;
const KIND: u64 = 0xff;
const V6: u64 = 1 << 8;
const UNUSUAL: u64 = 1 << 9;
const OFFSET_SHIFT: u64 = 16;
const OFFSET: u64 = 0xff;

#[inline(always)]
pub(crate) fn pack(link: Result<Link, ParseError>) -> u64 {
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
        // Nothing of the network layer has been read yet.
        Err(ParseError::ShortLink | ParseError::ShortNetwork(_)) => SHORT,
    }
}

#[inline(always)]
pub(crate) fn unpack(packed: u64) -> Result<Link, ParseError> {
    let family = if packed & V6 == 0 {
        Family::V4
    } else {
        Family::V6
    };
    match packed & KIND {
        OTHER => Ok(Link::Other),
        SHORT => Err(ParseError::ShortLink),
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
fn pack_family(family: Family) -> u64 {
    match family {
        Family::V4 => 0,
        Family::V6 => V6,
    }
}
