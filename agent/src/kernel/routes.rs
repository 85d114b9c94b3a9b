//! Which way packets for an address go, and what decides it.

use std::net::IpAddr;
use std::{fmt, io};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{self, NetlinkError, Request, Requests};
use super::ruleset::Changes;

const RTM_GETROUTE: u16 = 26;
/// Bytes of `rtmsg`.
const RTMSG: usize = 12;
/// `rtm_type` within `rtmsg`.
const RTM_TYPE: usize = 7;
const RTN_LOCAL: u8 = 2;
const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;

/// Why the way could not be found out.
#[derive(Debug, thiserror::Error)]
#[error("ask the kernel for the route to {address}")]
pub struct RouteError {
    /// Where to.
    address: IpAddr,
    /// What the kernel said.
    source: NetlinkError,
}

/// Where packets from this host to an address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is an address of this host.
    Here,
    /// They leave by the interface with this index.
    By(u32),
    /// There is no route.
    Nowhere,
}

/// Where packets from this host to `address` go.
///
/// # Errors
///
/// [`RouteError`].
pub fn way_to(address: IpAddr) -> Result<Way, RouteError> {
    ask(address).map_err(|source| RouteError { address, source })
}

/// Asks for the route to `address`.
pub(super) fn route_to(address: IpAddr) -> Request {
    let mut fixed = [0; RTMSG];
    match address {
        IpAddr::V4(v4) => {
            fixed[..2].copy_from_slice(&[libc::AF_INET as u8, 32]);
            Request::new(RTM_GETROUTE, 0, &fixed).attribute(RTA_DST, &v4.octets())
        }
        IpAddr::V6(v6) => {
            fixed[..2].copy_from_slice(&[libc::AF_INET6 as u8, 128]);
            Request::new(RTM_GETROUTE, 0, &fixed).attribute(RTA_DST, &v6.octets())
        }
    }
}

fn ask(address: IpAddr) -> Result<Way, NetlinkError> {
    let mut way = None;
    let outcome = Requests::open()?.get(route_to(address), |payload| {
        way = Some(way_of(payload)?);
        Ok(())
    });
    match (outcome, way) {
        (Ok(()), Some(way)) => Ok(way),
        (Ok(()), None) => Err(NetlinkError::Malformed),
        (Err(error), _) if is_no_route(&error) => Ok(Way::Nowhere),
        (Err(error), _) => Err(error),
    }
}

/// What an answer to [`route_to`] says.
fn way_of(route: &[u8]) -> Result<Way, NetlinkError> {
    if is_local(route)? {
        return Ok(Way::Here);
    }
    let attributes = route.get(RTMSG..).ok_or(NetlinkError::Malformed)?;
    for attribute in netlink::attributes(attributes) {
        if let (RTA_OIF, value) = attribute? {
            return Ok(Way::By(netlink::number(value, 0)?));
        }
    }
    Ok(Way::Nowhere)
}

/// Whether an answer to [`route_to`] says that the address is the namespace's own.
pub(super) fn is_local(route: &[u8]) -> Result<bool, NetlinkError> {
    let kind = route.get(RTM_TYPE).ok_or(NetlinkError::Malformed)?;
    Ok(*kind == RTN_LOCAL)
}

/// Whether the kernel says that there is no route; routes that refuse (`prohibit`, `blackhole`) have
/// other words.
fn is_no_route(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH))
}

/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV4_RULE`, `RTNLGRP_IPV6_ROUTE` and `RTNLGRP_IPV6_RULE`
/// (linux/rtnetlink.h).
const CHANGES: [u32; 4] = [7, 8, 11, 19];

/// Subscribes to changes of the routes, and of the rules that choose between them, in the network
/// namespace of the calling thread.
///
/// # Errors
/// When the kernel refuses it.
pub fn changes() -> io::Result<Changes> {
    Changes::of(NETLINK_ROUTE, &CHANGES)
}

const RTM_GETRULE: u16 = 34;
/// Bytes of `fib_rule_hdr`.
const RULE: usize = 12;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;

/// Why the routing rules could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("ask the kernel for the routing rules")]
pub struct RuleError(#[from] NetlinkError);

/// A routing rule that looks at the mark (ip-rule(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkRule {
    /// Where it stands among the others.
    pub priority: u32,
    /// What is compared.
    pub mark: u32,
    /// Which bits are.
    pub mask: u32,
}

impl MarkRule {
    /// Whether it looks at these bits.
    #[must_use]
    pub fn looks_at(&self, bits: u32) -> bool {
        let compared = if self.mask == u32::MAX {
            self.mark
        } else {
            self.mask
        };
        compared & bits != 0
    }
}

impl fmt::Display for MarkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            priority,
            mark,
            mask,
        } = self;
        write!(f, "routing rule {priority} (fwmark {mark:#x}/{mask:#x})")
    }
}

/// The routing rules of both families that look at the mark.
///
/// # Errors
///
/// [`RuleError`].
pub fn mark_rules() -> Result<Vec<MarkRule>, RuleError> {
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut fixed = [0; RULE];
        fixed[0] = family as u8;
        let request = Request::new(RTM_GETRULE, 0, &fixed);
        Requests::open()?.list(request, |payload| {
            let attributes = payload.get(RULE..).ok_or(NetlinkError::Malformed)?;
            let (mut priority, mut mark, mut mask) = (0, None, u32::MAX);
            for attribute in netlink::attributes(attributes) {
                match attribute? {
                    (FRA_PRIORITY, value) => priority = netlink::number(value, 0)?,
                    (FRA_FWMARK, value) => mark = Some(netlink::number(value, 0)?),
                    (FRA_FWMASK, value) => mask = netlink::number(value, 0)?,
                    _ => {}
                }
            }
            rules.extend(mark.map(|mark| MarkRule {
                priority,
                mark,
                mask,
            }));
            Ok(())
        })?;
    }
    Ok(rules)
}
