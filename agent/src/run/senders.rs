//! Whose connections reach the notice.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use gate25_common::abi::CustomerId;
use gate25_common::address::Family;
use gate25_common::redirect::{Endpoint, Flow};
use tracing::warn;

use crate::chain::in_full;
use crate::figures::Figures;
use crate::kernel::routes::way_to;
use crate::notice::{Customers, Sender};
use crate::status::Shared;
use crate::workloads::WorkloadId;

/// Knows senders by what the kernel remembers of their connections, or else by the interface that
/// leads to them.
pub(super) struct Senders {
    pub(super) status: Shared,
    pub(super) figures: Arc<dyn Figures>,
}

impl Customers for Senders {
    fn of(&self, peer: SocketAddr, local: SocketAddr) -> Option<Sender> {
        let customer = self
            .by_connection(peer, local)
            .or_else(|| self.by_interface(peer.ip()))?;
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
    /// tells nothing.
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
        let flows = interfaces
            .into_iter()
            .map(|interface| Flow::new(interface, family, guest, target));
        flows
            .map(|flow| self.figures.redirected(&flow))
            .find_map(|found| known(found).flatten())
    }

    /// A container's connections are led elsewhere before there are packets.
    fn by_interface(&self, peer: IpAddr) -> Option<CustomerId> {
        let interface = known(way_to(peer)).flatten()?;
        self.status.read(|status| {
            let workload = status.workloads.get(&WorkloadId::Interface(interface))?;
            Some(workload.claim.customer())
        })
    }
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
