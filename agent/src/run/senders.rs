//! Whose connections reach the notice.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use gate25_common::abi::CustomerId;
use gate25_common::address::Family;
use gate25_common::redirect::{Endpoint, Flow};
use tracing::warn;

use crate::chain::in_full;
use crate::clock;
use crate::figures::Figures;
use crate::kernel::routes::{Way, way_to};
use crate::notice::{Customers, Sender};
use crate::status::Shared;
use crate::workloads::WorkloadId;

/// Knows senders by the interface that leads to them, or else, behind a bridge, by what the kernel
/// remembers of their connections.
pub(super) struct Senders {
    pub(super) status: Shared,
    pub(super) figures: Arc<dyn Figures>,
}

impl Customers for Senders {
    fn of(&self, peer: SocketAddr, local: SocketAddr) -> Option<Sender> {
        let customer = self
            .by_interface(peer.ip())
            .or_else(|| self.by_connection(peer, local))?;
        self.status.read(|status| {
            let relay = status.policy.relays.get(&customer);
            Some(Sender {
                customer: status.policy.customers.get(&customer)?.clone(),
                relay: relay.map(|relay| {
                    let addresses = relay.addresses().map(|address| address.to_string());
                    addresses.collect::<Vec<_>>().join(" or ")
                }),
            })
        })
    }
}

impl Senders {
    /// Guests' connections are remembered by the interface that they come from, of which a bridge
    /// tells nothing. Any guest can send packets by the name of another one's connection: where several
    /// customers have one by it, nobody is named.
    fn by_connection(&self, peer: SocketAddr, local: SocketAddr) -> Option<CustomerId> {
        let (guest, target) = (endpoint(peer), endpoint(local));
        let family = match peer.ip().to_canonical() {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let interfaces: Vec<u32> = self.status.read(|status| {
            let workloads = status.workloads.keys();
            workloads.filter_map(|it| it.interface()).collect()
        });
        let now = u64::try_from(known(clock::boot())?).ok()?;
        let has_it = |interface: &u32| {
            let flow = Flow::new(*interface, family, guest, target);
            let found = known(self.figures.redirected(&flow)).flatten();
            found.is_some_and(|found| !found.is_over(now))
        };
        let owners = interfaces
            .into_iter()
            .filter(has_it)
            .map(|interface| self.owner(interface));
        the_only(owners).flatten()
    }

    /// Whom the host's answers reach, who has the connection. A container's are led elsewhere before
    /// there are packets.
    fn by_interface(&self, peer: IpAddr) -> Option<CustomerId> {
        match known(way_to(peer))? {
            Way::By(interface) => self.owner(interface),
            Way::Here | Way::Nowhere => None,
        }
    }

    fn owner(&self, interface: u32) -> Option<CustomerId> {
        self.status.read(|status| {
            let workload = status.workloads.get(&WorkloadId::Interface(interface))?;
            Some(workload.claim.customer())
        })
    }
}

/// What all of them are; `None` if they differ, or there are none.
fn the_only<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.all(|it| it == first).then_some(first)
}

fn known<T, E: std::error::Error + 'static>(found: Result<T, E>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(error) => {
            let error = in_full(&error);
            warn!(error, "the sender of a connection is not known");
            None
        }
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    let port = address.port().to_be_bytes();
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => Endpoint::v4(u32::from_ne_bytes(v4.octets()), port),
        IpAddr::V6(v6) => Endpoint::v6(words(v6.octets()), port),
    }
}

/// In network order.
fn words(octets: [u8; 16]) -> [u32; 4] {
    let (words, _) = octets.as_chunks::<4>();
    std::array::from_fn(|at| words.get(at).copied().map_or(0, u32::from_ne_bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
    use gate25_common::redirect::{Hindrances, Motion, QUIET_NS, Redirected};
    use gate25_common::returns::ReturnCounters;

    use super::*;
    use crate::figures::FiguresError;
    use crate::status::{State, WorkloadStatus};
    use crate::workloads::Claim;

    /// Behind a bridge: no route leads to a single guest.
    const GUEST: &str = "[::ffff:192.0.2.7]:40123";
    const NOTICE: &str = "[::ffff:198.51.100.1]:2525";
    const EXCHANGER: Endpoint = Endpoint::v4(0x0100_0000, [0, 25]);

    /// What a kernel would remember, by interface.
    struct Remembered(BTreeMap<u32, Redirected>);

    impl Figures for Remembered {
        fn host(&self) -> Result<HostCounters, FiguresError> {
            Ok(HostCounters::ZERO)
        }

        fn customer(&self, _: CustomerId) -> Result<Option<CustomerCounters>, FiguresError> {
            Ok(None)
        }

        fn sketch(&self, _: CustomerId) -> Result<Option<Sketch>, FiguresError> {
            Ok(None)
        }

        fn returns(&self) -> Result<ReturnCounters, FiguresError> {
            Ok(ReturnCounters::ZERO)
        }

        fn customer_returns(&self, _: CustomerId) -> Result<Option<ReturnCounters>, FiguresError> {
            Ok(None)
        }

        fn redirected(&self, flow: &Flow) -> Result<Option<Redirected>, FiguresError> {
            let is_its = |interface: u32| {
                let (guest, target) = (address(GUEST), address(NOTICE));
                *flow == Flow::new(interface, Family::V4, endpoint(guest), endpoint(target))
            };
            let mut known = self.0.iter();
            Ok(known
                .find(|(index, _)| is_its(**index))
                .map(|(_, known)| *known))
        }

        fn hindrances(&self) -> Result<Hindrances, FiguresError> {
            Ok(Hindrances::ZERO)
        }

        fn bypass(&self) -> Result<gate25_common::bypass::Bypass, FiguresError> {
            Ok(gate25_common::bypass::Bypass::NONE)
        }

        fn clear_sketch(&self, _: CustomerId) -> Result<(), FiguresError> {
            Ok(())
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn id(name: &str) -> CustomerId {
        CustomerId::from_name(name)
    }

    /// Who is named where these interfaces remember the connection: `a` owns 3 and 4, `b` owns 5.
    fn named(remembered: &[(u32, Redirected)]) -> Option<CustomerId> {
        let status = Shared::default();
        status.update(|status| {
            for (index, owner) in [(3, "a"), (4, "a"), (5, "b")] {
                let workload = WorkloadStatus {
                    name: format!("tap{index}i0"),
                    claim: Claim::Customer(owner.to_owned()),
                    state: State::Enforced,
                };
                Arc::make_mut(&mut status.workloads).insert(WorkloadId::Interface(index), workload);
            }
        });
        let senders = Senders {
            status,
            figures: Arc::new(Remembered(remembered.iter().copied().collect())),
        };
        senders.by_connection(address(GUEST), address(NOTICE))
    }

    #[test]
    fn guest_behind_a_bridge_is_named_by_the_owner_of_its_interface() {
        let now = u64::try_from(clock::boot().unwrap()).unwrap();
        let known = Redirected::new(id("a"), EXCHANGER, now);
        assert_eq!(named(&[]), None);
        assert_eq!(named(&[(3, known)]), Some(id("a")));
        assert_eq!(named(&[(3, known), (4, known)]), Some(id("a")));
        // Whoever had the interface when it began.
        assert_eq!(named(&[(5, known)]), Some(id("b")));
    }

    #[test]
    fn guest_whose_connection_another_customers_guest_has_made_up_is_not_named() {
        let now = u64::try_from(clock::boot().unwrap()).unwrap();
        let known = Redirected::new(id("a"), EXCHANGER, now);
        assert_eq!(named(&[(3, known), (5, known)]), None);
        // What is over says nothing: addresses move.
        let mut ended = known;
        ended.follow(Motion::Ends, now);
        assert_eq!(named(&[(3, known), (5, ended)]), Some(id("a")));
        if let Some(long_ago) = now.checked_sub(QUIET_NS + 1) {
            let silent = Redirected::new(id("b"), EXCHANGER, long_ago);
            assert_eq!(named(&[(3, known), (5, silent)]), Some(id("a")));
        }
    }

    #[test]
    fn customer_is_named_only_where_there_is_no_other() {
        for (found, named) in [
            (&[][..], None),
            (&[1], Some(1)),
            (&[1, 1], Some(1)),
            (&[1, 2], None),
            (&[1, 1, 2], None),
        ] {
            assert_eq!(the_only(found.iter().copied()), named, "{found:?}");
        }
    }
}
