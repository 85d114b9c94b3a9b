//! What our table counts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gate25_common::abi::CustomerId;
use gate25_common::address::Family;
use gate25_common::bypass::Bypass;
use gate25_common::counters::{CustomerCounters, HostCounters, Sketch};
use gate25_common::decide::{Reason, Verdict};
use gate25_common::packet::{Malformed, Tunnel};
use gate25_common::redirect::{Flow, Hindrances, Redirected};
use gate25_common::returns::ReturnCounters;

use super::names::{self, TABLE};
use crate::figures::{Figures, FiguresError};
use crate::kernel::tally::{Count, Tally};

/// How long a reading for the host serves customers: nft tells of all at once.
const FRESH: Duration = Duration::from_millis(500);
/// Of the Ethernet header, which is no part of what nftables counts on ingress.
const ETHERNET_HEADER: u64 = 14;

/// The counters, for whoever reports them while the backend works.
#[derive(Clone)]
pub struct Counters(Arc<Mutex<Tally>>);

impl Counters {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Tally::new(TABLE))))
    }

    /// The table is gone: counting begins anew.
    pub(super) fn lost(&self) {
        self.tally().lost();
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Nothing is left half-done when a reader panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_older_than(&self, age: Duration) -> Result<MutexGuard<'_, Tally>, FiguresError> {
        let mut tally = self.tally();
        if tally.age().is_none_or(|it| it >= age) {
            tally.read().map_err(FiguresError::new)?;
        }
        Ok(tally)
    }
}

impl Figures for Counters {
    fn host(&self) -> Result<HostCounters, FiguresError> {
        let reading = self.not_older_than(Duration::ZERO)?;
        let mut host = HostCounters::ZERO;
        for family in Family::ALL {
            for verdict in Verdict::ALL {
                for reason in Reason::ALL {
                    let attempts = reading.packets(&names::connections(verdict, reason, family));
                    host.put_connections(verdict, reason, family, attempts);
                }
                let Count { packets, bytes } = reading.sum(&names::packets(verdict, family));
                let bytes = bytes + packets * ETHERNET_HEADER;
                host.put_packets(verdict, family, packets, bytes);
            }
        }
        for kind in Malformed::ALL {
            host.put_malformed(kind, reading.packets(&names::malformed(kind)));
        }
        for tunnel in Tunnel::ALL {
            host.put_tunnels(tunnel, reading.packets(&names::tunnel(tunnel)));
        }
        Ok(host)
    }

    fn customer(&self, id: CustomerId) -> Result<Option<CustomerCounters>, FiguresError> {
        let reading = self.not_older_than(FRESH)?;
        let known = names::of_customer(id, names::ALLOWLIST);
        if !reading.has(&known) {
            return Ok(None);
        }
        let of = |what: &str| reading.packets(&names::of_customer(id, what));
        let mut customer = CustomerCounters::ZERO;
        customer.add_attempts(Verdict::Allow, of(names::ALLOWLIST), 0);
        let exempt = of(names::EXEMPTION);
        customer.add_attempts(Verdict::Allow, exempt, exempt);
        for verdict in [Verdict::Observe, Verdict::Reject, Verdict::Drop] {
            let attempts = of(verdict.as_str());
            customer.add_attempts(verdict, attempts, attempts);
        }
        Ok(Some(customer))
    }

    /// Nobody's: destinations are not counted here.
    fn sketch(&self, _id: CustomerId) -> Result<Option<Sketch>, FiguresError> {
        Ok(None)
    }

    /// None: what goes to guests is not looked at here.
    fn returns(&self) -> Result<ReturnCounters, FiguresError> {
        Ok(ReturnCounters::ZERO)
    }

    fn customer_returns(&self, _id: CustomerId) -> Result<Option<ReturnCounters>, FiguresError> {
        Ok(None)
    }

    /// Nobody's: connections are not led elsewhere here.
    fn redirected(&self, _flow: &Flow) -> Result<Option<Redirected>, FiguresError> {
        Ok(None)
    }

    fn hindrances(&self) -> Result<Hindrances, FiguresError> {
        Ok(Hindrances::ZERO)
    }

    fn bypass(&self) -> Result<Bypass, FiguresError> {
        Ok(Bypass::NONE)
    }

    fn clear_sketch(&self, _id: CustomerId) -> Result<(), FiguresError> {
        Ok(())
    }
}
