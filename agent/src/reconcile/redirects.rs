//! Redirected connections: where they may be sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gate25_common::abi::Blocked;
use gate25_common::address::{Address, Family};

use super::Reconciler;
use crate::dataplane::{Dataplane, MapImage};

impl<D: Dataplane> Reconciler<D> {
    /// Has rejected what cannot be redirected.
    pub(super) fn check_redirects(&mut self, wanted: &mut MapImage) {
        let mut why = BTreeSet::new();
        let targets = wanted.targets();
        match self.dataplane.replies() {
            Ok(()) => {
                why.extend(unanswered(wanted));
                let unfit = self.unfit(&targets);
                wanted.keep_targets(|address| !unfit.contains_key(address));
                why.extend(unfit.into_values());
            }
            Err(reason) => {
                wanted.keep_targets(|_| false);
                if !targets.is_empty() {
                    why.insert(reason.to_owned());
                }
            }
        }
        let why: Vec<String> = why.into_iter().collect();
        let complaint = (!why.is_empty()).then(|| {
            let why = why.join("; ");
            format!("connections that are to be led elsewhere are rejected: {why}")
        });
        self.complain("redirect", complaint);
    }

    /// Relays that are among those whose connections are to be redirected, and why nothing is sent
    /// there: a customer would get other customers' mail.
    fn unfit(&self, targets: &BTreeSet<Address>) -> BTreeMap<Address, String> {
        let unfit = targets.iter().filter_map(|address| {
            let relay = IpAddr::from(*address);
            let why = match (self.circumstances.way_to)(relay) {
                Ok(Some(index)) => {
                    let workload = self.workloads.interfaces.get(&index)?;
                    format!("{relay} is behind {}, a workload", workload.name)
                }
                // Nobody gets anything.
                Ok(None) => return None,
                Err(why) => why,
            };
            Some((*address, why))
        });
        unfit.collect()
    }
}

/// Why nobody is told the notice over a family.
fn unanswered(wanted: &MapImage) -> impl Iterator<Item = String> {
    let is_silent = |family| {
        let mut customers = wanted.customers.values();
        customers.any(|policy| {
            policy.blocked() == Some(Blocked::Notice) && policy.target(family).is_none()
        })
    };
    let silent = Family::ALL.into_iter().filter(move |it| is_silent(*it));
    silent.map(|family| match family {
        Family::V4 => "`notice.listen` has no IPv4 address".to_owned(),
        Family::V6 => "`notice.listen` has no IPv6 address".to_owned(),
    })
}
