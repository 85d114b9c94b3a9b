//! A hosting provider in small: a hypervisor, its guests, the relay, and the Internet.
//!
//! ```text
//!  guests --- hypervisor --- core +-- relay      192.0.2.25    2001:db8:25::25
//!             (vmbr0 and          |
//!              routed guests)     +-- exchanger  203.0.113.25  2001:db8:ffff::25
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;

use crate::{Lab, NetNs, Offload, Process, Pump, Tap};

/// The provider's relay.
const RELAY: Addresses = Addresses::new([192, 0, 2, 25], [0x2001, 0xdb8, 0x25, 0, 0, 0, 0, 0x25]);
/// A mail exchanger on the Internet.
const EXCHANGER: Addresses =
    Addresses::new([203, 0, 113, 25], [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x25]);
/// The hypervisor's side of the bridge, and the gateway of every guest.
const GATEWAY: Addresses = Addresses::new([198, 51, 100, 1], [0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 1]);

/// One machine's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    pub(crate) const fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        let [a, b, c, d] = v4;
        let [s, t, u, v, w, x, y, z] = v6;
        Self {
            v4: Ipv4Addr::new(a, b, c, d),
            v6: Ipv6Addr::new(s, t, u, v, w, x, y, z),
        }
    }

    /// A port on the IPv4 address.
    #[must_use]
    pub fn v4_port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.v4, port))
    }

    /// A port on the IPv4 address as IPv6 programs write it.
    #[must_use]
    pub fn mapped_port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.v4.to_ipv6_mapped(), port))
    }

    /// A port on the IPv6 address.
    #[must_use]
    pub fn v6_port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.v6, port))
    }
}

/// How a guest is connected to the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// A veth pair in the bridge.
    BridgedVeth,
    /// A veth pair with a route of its own and no bridge.
    RoutedVeth,
    /// A tap with a virtio header in the bridge, carried to the guest by a thread.
    BridgedTap,
    /// The same carried by a process that outlives this one: a program that calls
    /// [`crate::pump_stdio`], with its arguments.
    BridgedTapBy(Vec<String>),
}

/// A guest: a namespace behind an interface of the hypervisor.
#[derive(Debug)]
pub struct Guest {
    /// Where its programs run; its own interface is `eth0`.
    pub ns: NetNs,
    /// The interface on the hypervisor.
    pub interface: String,
    /// Its addresses.
    pub addresses: Addresses,
    cable: Cable,
}

impl Guest {
    /// Lets the guest's cable live on when this value goes.
    pub fn leave(self) {
        if let Cable::Process(process) = self.cable {
            process.leave();
        }
    }
}

/// What carries a guest's frames besides the kernel; kept for what its end does.
#[derive(Debug)]
enum Cable {
    Veth,
    Thread(#[expect(dead_code, reason = "kept for what its drop does")] Pump),
    Process(Process),
}

/// The hypervisor and the network around it, without servers or guests.
#[derive(Debug)]
pub struct Hosting {
    /// Bridge `vmbr0`, uplink `wan0`; the agent runs here.
    pub hypervisor: NetNs,
    /// The router between all of them.
    pub core: NetNs,
    /// The provider's relay.
    pub relay: NetNs,
    /// The mail exchanger on the Internet.
    pub exchanger: NetNs,
}

impl Hosting {
    /// The relay's addresses.
    pub const RELAY: Addresses = RELAY;
    /// The exchanger's addresses.
    pub const EXCHANGER: Addresses = EXCHANGER;
    /// The gateway of every guest: the hypervisor itself.
    pub const GATEWAY: Addresses = GATEWAY;
    /// All guests' addresses, in Postfix's notation.
    pub const GUEST_NETWORKS: &str = "198.51.100.0/24 [2001:db8:100::]/48";

    /// Makes the namespaces, links, addresses and routes.
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn new(lab: &Lab) -> anyhow::Result<Self> {
        let hypervisor = lab.netns("hypervisor")?;
        let core = lab.netns("core")?;
        let relay = lab.netns("relay")?;
        let exchanger = lab.netns("exchanger")?;
        for router in [&hypervisor, &core] {
            router.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        }
        core.ip(&format!(
            "link add hv0 type veth peer name wan0 netns {}
             link add relay0 type veth peer name eth0 netns {}
             link add mx0 type veth peer name eth0 netns {}
             addr add 192.0.2.130/30 dev hv0
             addr add 2001:db8:fffe::2/64 dev hv0 nodad
             addr add 192.0.2.1/25 dev relay0
             addr add 2001:db8:25::1/64 dev relay0 nodad
             addr add 203.0.113.1/24 dev mx0
             addr add 2001:db8:ffff::1/64 dev mx0 nodad
             link set hv0 up
             link set relay0 up
             link set mx0 up
             route add 198.51.100.0/24 via 192.0.2.129
             route add 2001:db8:100::/48 via 2001:db8:fffe::1",
            hypervisor.holder(),
            relay.holder(),
            exchanger.holder(),
        ))?;
        // Without an address of its own a bridge takes its lowest port's, and when a guest with a
        // lower one joins, the guests that know the old one send into the void for a while.
        hypervisor.ip(&format!(
            "addr add 192.0.2.129/30 dev wan0
             addr add 2001:db8:fffe::1/64 dev wan0 nodad
             link set wan0 up
             route add default via 192.0.2.130
             route add default via 2001:db8:fffe::2
             link add vmbr0 address 02:00:5e:00:53:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
             addr add {}/24 dev vmbr0
             addr add {}/64 dev vmbr0 nodad
             link set vmbr0 up",
            GATEWAY.v4, GATEWAY.v6
        ))?;
        for (server, addresses, prefix) in [(&relay, RELAY, 25), (&exchanger, EXCHANGER, 24)] {
            let gateway4 = if prefix == 25 {
                "192.0.2.1"
            } else {
                "203.0.113.1"
            };
            let gateway6 = if prefix == 25 {
                "2001:db8:25::1"
            } else {
                "2001:db8:ffff::1"
            };
            server.ip(&format!(
                "addr add {}/{prefix} dev eth0
                 addr add {}/64 dev eth0 nodad
                 link set eth0 up
                 route add default via {gateway4}
                 route add default via {gateway6}",
                addresses.v4, addresses.v6
            ))?;
        }
        Ok(Self {
            hypervisor,
            core,
            relay,
            exchanger,
        })
    }

    /// Adds a guest. `number` becomes part of its addresses: 198.51.100.NUMBER and
    /// `2001:db8:100::NUMBER`, or `2001:db8:100:NUMBER::NUMBER` where it is routed.
    ///
    /// # Errors
    /// When its namespace or link cannot be made.
    pub fn guest(
        &self,
        lab: &Lab,
        number: u8,
        interface: &str,
        link: Link,
    ) -> anyhow::Result<Guest> {
        let ns = lab.netns(&format!("guest{number}"))?;
        let host = &self.hypervisor;
        let routed = link == Link::RoutedVeth;
        let cable = match link {
            Link::BridgedVeth | Link::RoutedVeth => {
                host.veth(interface, &ns, "eth0")?;
                Cable::Veth
            }
            Link::BridgedTap => {
                let (ours, theirs) = taps(host, interface, &ns)?;
                Cable::Thread(Pump::start(ours, theirs)?)
            }
            Link::BridgedTapBy(program) => {
                let (ours, theirs) = taps(host, interface, &ns)?;
                Cable::Process(Pump::start_process(host, &program, ours, theirs)?)
            }
        };
        let subnet = if routed { number } else { 0 };
        let addresses = guest_addresses(subnet, number);
        if routed {
            self.route(&ns, interface, addresses)?;
        } else {
            host.ip(&format!("link set {interface} master vmbr0 up"))?;
            let own = [
                (IpAddr::from(addresses.v4), 24),
                (IpAddr::from(addresses.v6), 64),
            ];
            ns.addresses("eth0", &own)?;
            ns.ip(&format!(
                "route add default via {}\nroute add default via {}",
                GATEWAY.v4, GATEWAY.v6
            ))?;
        }
        Ok(Guest {
            ns,
            interface: interface.to_owned(),
            addresses,
            cable,
        })
    }

    /// The addresses of the guest of that number in the bridge.
    #[must_use]
    pub fn bridged(number: u8) -> Addresses {
        guest_addresses(0, number)
    }

    /// The set-up of providers without a bridge: a host route, and a gateway without an address
    /// of the guest's subnet.
    fn route(&self, ns: &NetNs, interface: &str, addresses: Addresses) -> anyhow::Result<()> {
        let Addresses { v4, v6 } = addresses;
        self.hypervisor
            .ip(&format!(
                "link set {interface} up
                 addr add fe80::1/64 dev {interface} nodad
                 route add {v4}/32 dev {interface}
                 route add {v6}/128 dev {interface}"
            ))
            .context("route to the guest")?;
        self.hypervisor
            .sysctl(&[(&format!("ipv4/conf/{interface}/proxy_arp"), "1")])?;
        ns.ip(&format!(
            "addr add {v4}/32 dev eth0
             addr add {v6}/128 dev eth0 nodad
             link set eth0 up
             route add {gateway} dev eth0
             route add default via {gateway}
             route add default via fe80::1 dev eth0",
            gateway = GATEWAY.v4
        ))
        .context("route from the guest")
    }
}

fn guest_addresses(subnet: u8, number: u8) -> Addresses {
    let (subnet, last) = (u16::from(subnet), u16::from(number));
    Addresses {
        v4: Ipv4Addr::new(198, 51, 100, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x100, subnet, 0, 0, 0, last),
    }
}

fn taps(host: &NetNs, interface: &str, guest: &NetNs) -> anyhow::Result<(Tap, Tap)> {
    let ours = Tap::new(host, interface, Offload::VnetHeader)?;
    let theirs = Tap::new(guest, "eth0", Offload::VnetHeader)?;
    Ok((ours, theirs))
}
