//! The senders of most trials: every way out of a world, taken by those who may not, and those who
//! may.

use super::{May, Meter};
use crate::{Addresses, Link, Network, Offload, PolicyText, Tap, World};

/// Number, interface and customer of each virtual machine.
const BRIDGED: (u8, &str, &str) = (241, "tap241i0", "m-bridged");
const ROUTED: (u8, &str) = (242, "tap242i0");
const TAP: (u8, &str, &str) = (243, "tap243i0", "m-tap");
const EXEMPT: (u8, &str, &str) = (244, "tap244i0", "m-exempt");
/// Cgroup and customer of each container, and number and interface where it has them.
const SHARED: (&str, &str) = ("meter-shared", "m-shared");
const OWN: (&str, &str, u8, &str) = ("meter-own", "m-own", 245, "veth245i0");
const FREE: (&str, &str, u8, &str) = ("meter-free", "m-free", 246, "veth246i0");

impl Meter {
    /// Makes the senders:
    ///
    /// | who | owner | may use | sends by |
    /// |---|---|---|---|
    /// | VM, veth in the bridge | `m-bridged` | the relay | frames, sockets |
    /// | VM, routed veth | nobody | the relay | frames, sockets |
    /// | VM, tap in the bridge | `m-tap` | the relay | frames |
    /// | VM, veth in the bridge | `m-exempt` | everything | frames, sockets |
    /// | container on the host's network | `m-shared` | the relay | sockets, raw IP sockets |
    /// | container with a veth | `m-own` | the relay | sockets, raw IP sockets, frames |
    /// | container with a veth | `m-free` | everything | sockets, raw IP sockets |
    ///
    /// All of them over IPv4 and IPv6, the containers' sockets by mapped addresses as well. A policy
    /// for them is [`Meter::policy`].
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn prepare(world: &World) -> anyhow::Result<Self> {
        let mut meter = Self::bare(world)?;
        let (number, interface, customer) = BRIDGED;
        let guest = world.guest(number, interface)?;
        meter.guest(world, &guest, Some(customer), May::RelayOnly)?;
        let (number, interface) = ROUTED;
        let guest = world.guest_by(number, interface, Link::RoutedVeth)?;
        meter.guest(world, &guest, None, May::RelayOnly)?;
        let (number, interface, customer) = TAP;
        let host = &world.hosting.hypervisor;
        let tap = Tap::new(host, interface, Offload::VnetHeader)?;
        host.ip(&format!("link set {interface} master vmbr0 up"))?;
        meter.tap(world, tap, number, Some(customer), May::RelayOnly)?;
        let (number, interface, customer) = EXEMPT;
        let guest = world.guest(number, interface)?;
        meter.guest(world, &guest, Some(customer), May::Everything)?;
        let (name, customer) = SHARED;
        let container = world.container(name, &Network::Hypervisor)?;
        meter.container(world, container, Some(customer), May::RelayOnly)?;
        for (container, may) in [(OWN, May::RelayOnly), (FREE, May::Everything)] {
            let (name, customer, number, interface) = container;
            let container = world.container(name, &Network::own(number, interface))?;
            meter.container(world, container, Some(customer), may)?;
        }
        Ok(meter)
    }

    /// The policy under which the senders may do what [`Meter::prepare`] says.
    #[must_use]
    pub fn policy(world: &World) -> PolicyText {
        owned_by(world, "m", "n")
    }

    /// The same, but that those who may use the relay alone belong to others: `n-bridged` and so on.
    #[must_use]
    pub fn policy_of_others(world: &World) -> PolicyText {
        owned_by(world, "n", "m")
    }
}

/// A customer who is removed begins with new counters when he returns: `others` are customers, too.
fn owned_by(world: &World, owners: &str, others: &str) -> PolicyText {
    PolicyText::default()
        .customer(&format!("{owners}-bridged"), BRIDGED.1)
        .customer(&format!("{owners}-tap"), TAP.1)
        .container(&format!("{owners}-shared"), &world.below(SHARED.0))
        .container(&format!("{owners}-own"), &world.below(OWN.0))
        .customer(&format!("{others}-bridged"), "tap951i0")
        .customer(&format!("{others}-tap"), "tap953i0")
        .container(&format!("{others}-shared"), &world.below("elsewhere-1"))
        .container(&format!("{others}-own"), &world.below("elsewhere-2"))
        .customer(EXEMPT.2, EXEMPT.1)
        .exempt(EXEMPT.2)
        .container(FREE.1, &world.below(FREE.0))
        .exempt(FREE.1)
}

/// The hypervisor's own addresses on the way out.
pub(super) const HYPERVISOR: Addresses =
    Addresses::new([192, 0, 2, 129], [0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 1]);
