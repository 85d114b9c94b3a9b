//! Which way packets for an address go, and what decides it.

use std::fmt;
use std::net::IpAddr;

use super::netlink::{self, NetlinkError, Request, Requests};

const RTM_GETROUTE: u16 = 26;
/// Bytes of `rtmsg`.
const RTMSG: usize = 12;
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

/// The index of the interface by which packets from this host to `address` leave; `None` where
/// there is no route.
///
/// # Errors
///
/// [`RouteError`].
pub fn way_to(address: IpAddr) -> Result<Option<u32>, RouteError> {
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

fn ask(address: IpAddr) -> Result<Option<u32>, NetlinkError> {
    let mut interface = None;
    let outcome = Requests::open()?.get(route_to(address), |payload| {
        let attributes = payload.get(RTMSG..).ok_or(NetlinkError::Malformed)?;
        for attribute in netlink::attributes(attributes) {
            let (kind, value) = attribute?;
            if kind == RTA_OIF {
                interface = Some(netlink::number(value, 0)?);
            }
        }
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(interface),
        // No way there.
        Err(NetlinkError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
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
