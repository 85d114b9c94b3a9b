//! More of interfaces than their followers need: for whoever looks where their packets go.

use std::collections::BTreeSet;

use super::parse::{IFINFO, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINKINFO, interface};
use super::{Interface, LinkError, listed};
use crate::kernel::netlink::{NetlinkError, attributes, lossless, number, text};

const IFLA_STATS64: u16 = 23;
const IFLA_CARRIER: u16 = 33;
const IFLA_XDP: u16 = 43;
/// Numbers of the programs: of the only one, of the driver's, of the generic one, of the card's.
const IFLA_XDP_NUMBERS: [u16; 4] = [4, 5, 6, 7];

/// An interface, and what happens to packets around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    /// As others know it.
    pub interface: Interface,
    /// What the kernel calls its kind, such as `macvtap`; empty for hardware.
    pub kind: String,
    /// The interface that it sits on, where that is in this namespace.
    pub parent: Option<u32>,
    /// The kernel's numbers of XDP programs on it.
    pub xdp: BTreeSet<u32>,
    /// Whether it is up and has somebody at its other end.
    pub carrier: bool,
    /// Packets that arrived by it.
    pub received: u64,
}

/// Every interface, as at one moment. Blocks.
///
/// # Errors
/// As [`super::snapshot`].
pub fn details() -> Result<Vec<Detail>, LinkError> {
    listed(0, detail)
}

fn detail(payload: &[u8]) -> Result<Option<Detail>, NetlinkError> {
    let Some(interface) = interface(payload)? else {
        return Ok(None);
    };
    let mut detail = Detail {
        interface,
        kind: String::new(),
        parent: None,
        xdp: BTreeSet::new(),
        carrier: false,
        received: 0,
    };
    let rest = payload.get(IFINFO..).ok_or(NetlinkError::Malformed)?;
    for attribute in attributes(rest) {
        match attribute? {
            (IFLA_LINK, value) => detail.parent = Some(number(value, 0)?).filter(|it| *it != 0),
            (IFLA_LINKINFO, value) => detail.kind = kind(value)?,
            (IFLA_CARRIER, value) => detail.carrier = value.first() == Some(&1),
            (IFLA_XDP, value) => detail.xdp = programs(value)?,
            (IFLA_STATS64, value) => detail.received = received(value)?,
            _ => {}
        }
    }
    Ok(Some(detail))
}

fn kind(info: &[u8]) -> Result<String, NetlinkError> {
    for attribute in attributes(info) {
        if let (IFLA_INFO_KIND, value) = attribute? {
            return Ok(lossless(text(value)));
        }
    }
    Ok(String::new())
}

fn programs(xdp: &[u8]) -> Result<BTreeSet<u32>, NetlinkError> {
    let mut programs = BTreeSet::new();
    for attribute in attributes(xdp) {
        let (kind, value) = attribute?;
        if IFLA_XDP_NUMBERS.contains(&kind) {
            programs.insert(number(value, 0)?);
        }
    }
    programs.remove(&0);
    Ok(programs)
}

/// `rx_packets`, with which `struct rtnl_link_stats64` begins.
fn received(stats: &[u8]) -> Result<u64, NetlinkError> {
    let packets = stats.first_chunk().ok_or(NetlinkError::Malformed)?;
    Ok(u64::from_ne_bytes(*packets))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    #[test]
    fn details_of_this_namespace_have_the_loopback() {
        let details = details().unwrap();
        let loopback = details.iter().find(|it| it.interface.index == 1).unwrap();
        assert_eq!(
            (loopback.interface.name.as_str(), loopback.kind.as_str()),
            ("lo", "")
        );
        assert!(loopback.xdp.is_empty());
    }

    proptest! {
        #[test]
        fn detail_of_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _detail = detail(&bytes);
        }
    }
}
