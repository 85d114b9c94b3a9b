//! Chains of nftables as the kernel has them, devices included: nft's JSON names no devices before
//! nftables 1.0.8.

use std::fmt;

use crate::netfilter::Table;

use super::netlink::{NetlinkError, Request, Requests, attributes, lossless, text};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 10 << 8 | 4;
/// Bytes of `nfgenmsg`.
pub(super) const NFGENMSG: usize = 4;

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
const NFTA_DEVICE_NAME: u16 = 1;
/// Beginning of names (Linux 6.16).
const NFTA_DEVICE_PREFIX: u16 = 2;

/// Which packets a chain is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// ARP.
    Arp,
    /// At a device.
    Netdev,
    /// Bridged frames.
    Bridge,
    /// IPv6.
    Ip6,
    /// Another one, by its number.
    Other(u8),
}

impl Family {
    /// `NFPROTO_*` (linux/netfilter.h).
    const fn of(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }
}

/// The word of nft for it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
            Self::Other(number) => return write!(f, "family {number}"),
        })
    }
}

/// A chain that the kernel calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Which packets it is for.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where in the stack, by the family's numbers: 0 in `netdev` is ingress.
    pub hook: u32,
    /// Lower ones run first.
    pub priority: i32,
    /// The devices it is for; empty where the family has none.
    pub devices: Vec<Device>,
}

impl BaseChain {
    /// Whether it is called for what arrives by the interface of this name.
    #[must_use]
    pub fn is_at_ingress_of(&self, interface: &str) -> bool {
        self.family == Family::Netdev
            && self.hook == 0
            && self.devices.iter().any(|device| device.is(interface))
    }
}

/// What names devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The one of this name.
    Name(String),
    /// All whose names begin so.
    Prefix(String),
}

impl Device {
    fn is(&self, interface: &str) -> bool {
        match self {
            Self::Name(name) => name == interface,
            Self::Prefix(prefix) => interface.starts_with(prefix),
        }
    }
}

/// Why the chains could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list the chains of nftables")]
pub struct ChainsError(#[from] NetlinkError);

/// Every chain of this network namespace that the kernel calls; none on a kernel without nf_tables.
///
/// # Errors
/// [`ChainsError`]; needs `CAP_NET_ADMIN`.
pub fn base_chains() -> Result<Vec<BaseChain>, ChainsError> {
    let request = Request::new(GET_CHAIN, 0, &[0; NFGENMSG]);
    Ok(listed(&request, base_chain)?)
}

/// Whether the kernel is known to call no chain of these tables: what a host without nft can tell.
pub(super) fn has_none_of(tables: &[Table]) -> bool {
    let is_one = |chain: &BaseChain| {
        let family = chain.family.to_string();
        let same = |table: &Table| table.name == chain.table && table.family.as_str() == family;
        tables.iter().any(same)
    };
    base_chains().is_ok_and(|chains| !chains.iter().any(is_one))
}

/// What `read` makes of the entries of a listing of nftables; none on a kernel without nf_tables.
pub(super) fn listed<T>(
    request: &Request,
    read: impl Fn(&[u8]) -> Result<Option<T>, NetlinkError>,
) -> Result<Vec<T>, NetlinkError> {
    match Requests::open_netfilter()?.list_whole(request, read) {
        // Nobody is there to ask.
        Err(error) if error.errno() == Some(libc::EINVAL) => Ok(Vec::new()),
        listed => listed,
    }
}

fn base_chain(payload: &[u8]) -> Result<Option<BaseChain>, NetlinkError> {
    let (Some(family), Some(rest)) = (payload.first(), payload.get(NFGENMSG..)) else {
        return Err(NetlinkError::Malformed);
    };
    let mut chain = BaseChain {
        family: Family::of(*family),
        table: String::new(),
        name: String::new(),
        hook: 0,
        priority: 0,
        devices: Vec::new(),
    };
    let mut is_base = false;
    for attribute in attributes(rest) {
        match attribute? {
            (NFTA_CHAIN_TABLE, value) => chain.table = lossless(text(value)),
            (NFTA_CHAIN_NAME, value) => chain.name = lossless(text(value)),
            (NFTA_CHAIN_HOOK, value) => {
                is_base = true;
                hook(value, &mut chain)?;
            }
            _ => {}
        }
    }
    Ok(is_base.then_some(chain))
}

fn hook(attribute: &[u8], chain: &mut BaseChain) -> Result<(), NetlinkError> {
    for attribute in attributes(attribute) {
        match attribute? {
            (NFTA_HOOK_HOOKNUM, value) => chain.hook = big_endian(value)?,
            (NFTA_HOOK_PRIORITY, value) => chain.priority = big_endian(value)? as i32,
            (NFTA_HOOK_DEV, value) => chain.devices.push(Device::Name(lossless(text(value)))),
            (NFTA_HOOK_DEVS, value) => {
                for device in attributes(value) {
                    match device? {
                        (NFTA_DEVICE_NAME, value) => {
                            chain.devices.push(Device::Name(lossless(text(value))));
                        }
                        (NFTA_DEVICE_PREFIX, value) => {
                            chain.devices.push(Device::Prefix(lossless(text(value))));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // With a single device the kernel tells it both ways.
    let mut seen: Vec<Device> = Vec::new();
    for device in std::mem::take(&mut chain.devices) {
        if !seen.contains(&device) {
            seen.push(device);
        }
    }
    chain.devices = seen;
    Ok(())
}

fn big_endian(value: &[u8]) -> Result<u32, NetlinkError> {
    let bytes = value.first_chunk().ok_or(NetlinkError::Malformed)?;
    Ok(u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    #[test]
    fn chain_at_a_prefix_is_at_every_interface_that_begins_so() {
        let chain = |devices: Vec<Device>, hook| BaseChain {
            family: Family::Netdev,
            table: "t".to_owned(),
            name: "c".to_owned(),
            hook,
            priority: 0,
            devices,
        };
        let prefix = chain(vec![Device::Prefix("tap".to_owned())], 0);
        assert!(prefix.is_at_ingress_of("tap1"));
        assert!(!prefix.is_at_ingress_of("veth1"));
        let egress = chain(vec![Device::Name("tap1".to_owned())], 1);
        assert!(!egress.is_at_ingress_of("tap1"));
    }

    proptest! {
        #[test]
        fn base_chain_of_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _chain = base_chain(&bytes);
        }
    }
}
