//! Where programs look at what goes to guests, and whether they can.

use std::collections::BTreeSet;

use gate25_common::abi::{Blocked, InterfaceOwner, Mode};
use gate25_common::address::Family;
use tracing::warn;

use super::Reconciler;
use crate::dataplane::{Dataplane, Returns, Site};
use crate::status::Subject;
use crate::workloads::Framing;

impl<D: Dataplane> Reconciler<D> {
    /// Every guest's interface where what comes back is judged, else those of customers whose
    /// connections are led elsewhere.
    pub(super) fn replies(&self) -> BTreeSet<Site> {
        let interfaces = self.workloads.interfaces.iter();
        interfaces
            .filter(|(_, workload)| workload.framing == Framing::Ethernet)
            .filter(|(index, _)| self.judges_returns() || self.is_led_elsewhere(**index))
            .map(|(index, _)| Site::Replies(*index))
            .collect()
    }

    /// Interfaces, `covered` ones, where what comes back is judged.
    pub(super) fn return_sites(&self, covered: &BTreeSet<Site>) -> usize {
        if self.judges_returns() {
            covered.intersection(&self.replies()).count()
        } else {
            0
        }
    }

    /// Says so where packets that come back are to be judged and cannot be.
    pub(super) fn check_returns(&mut self) {
        let complaint = match (self.circumstances.returns, self.dataplane.replies()) {
            (Returns::Open, _) | (Returns::Judged, Ok(())) => None,
            (Returns::Judged, Err(why)) => Some(format!(
                "`block_return` is without effect, packets from guarded ports reach guests: {why}"
            )),
        };
        if let Some(complaint) = &complaint
            && self.complaint(Subject::Returns) != Some(complaint)
        {
            warn!("{complaint}");
        }
        self.complain(Subject::Returns, complaint);
    }

    fn judges_returns(&self) -> bool {
        match self.circumstances.returns {
            Returns::Open => false,
            Returns::Judged => self.dataplane.replies().is_ok(),
        }
    }

    /// Whether connections of the interface's owner go to a relay or to the notice, as the tables
    /// have it. Where the notice is not told at the moment, it soon will be.
    fn is_led_elsewhere(&self, index: u32) -> bool {
        let installed = self.dataplane.installed();
        let is_told = !self.circumstances.notice.is_empty() && self.dataplane.replies().is_ok();
        let owner = installed
            .interfaces
            .get(&index)
            .map(InterfaceOwner::customer);
        let policy = owner.and_then(|it| installed.customers.get(&it));
        policy.is_some_and(|policy| match (policy.mode(), policy.blocked()) {
            (Some(Mode::Enforce), Some(Blocked::Redirect)) => Family::ALL
                .into_iter()
                .any(|family| policy.target(family).is_some()),
            (Some(Mode::Enforce), Some(Blocked::Notice)) => is_told,
            (Some(Mode::Observe) | None, _) | (_, Some(Blocked::Reject | Blocked::Drop) | None) => {
                false
            }
        })
    }
}
