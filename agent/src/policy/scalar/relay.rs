//! Addresses of relays.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use schemars::{Schema, json_schema};

use super::{MAPPED, NAT64, not_a_prefix};
use crate::diagnostic::quoted;
use crate::yaml::read::{Fault, Scalar};
use crate::yaml::tree::Style;

/// The address of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelayAddress(pub(crate) IpAddr);

impl Scalar for RelayAddress {
    const EXPECTED: &'static str = "an address";

    fn parse(text: &str, _: Style) -> Result<Self, Fault> {
        let Ok(address) = text.parse::<IpAddr>() else {
            if text.parse::<IpNet>().is_ok() {
                let message = format!("{} is a prefix: a relay is one address", quoted(text));
                return Err(Fault::new("bad-relay", message).help("write the address alone"));
            }
            return Err(not_a_prefix(text));
        };
        if let Some(why) = unfit(address) {
            let message = format!("{} cannot be a relay: it is {why}", quoted(text));
            return Err(Fault::new("bad-relay", message)
                .help("write the address at which guests reach the relay"));
        }
        Ok(Self(address))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+$" })
    }
}

/// What keeps connections from being sent there.
fn unfit(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("no address of anybody");
    }
    if address.is_loopback() {
        return Some("the host itself, seen from the host");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        // They mean something on one link only, and which one is not said.
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if MAPPED.contains(&v6) || NAT64.contains(&v6) => {
            Some("an IPv4 address in IPv6 clothes: write that one")
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
