//! Redirected connections: where they may be sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gate25_common::abi::Blocked;
use gate25_common::address::Family;

use super::{Noted, Reconciler};
use crate::dataplane::{Dataplane, Led, MapImage};
use crate::kernel::routes::Way;
use crate::status::Subject;

/// Where connections are to be led, and where the ways went when that was last looked at.
#[derive(Debug, Default)]
pub(super) struct Ways {
    wanted: BTreeSet<Led>,
    unfit: BTreeMap<Led, String>,
}

impl<D: Dataplane> Reconciler<D> {
    /// Has rejected what cannot be redirected.
    pub(super) fn check_redirects(&mut self, wanted: &mut MapImage) {
        let mut why = BTreeSet::new();
        let targets = wanted.targets();
        match self.dataplane.replies() {
            Ok(()) => {
                why.extend(unanswered(wanted));
                let unfit = self.unfit(&targets);
                wanted.keep_targets(|led| !unfit.contains_key(led) && self.answers(led));
                why.extend(unfit.values().cloned());
                self.led = Ways {
                    wanted: targets,
                    unfit,
                };
            }
            Err(reason) => {
                wanted.keep_targets(|_| false);
                if !targets.is_empty() {
                    why.insert(reason.to_owned());
                }
                self.led = Ways::default();
            }
        }
        let why: Vec<String> = why.into_iter().collect();
        let complaint = (!why.is_empty()).then(|| {
            let why = why.join("; ");
            format!("connections that are to be led elsewhere are rejected: {why}")
        });
        self.complain(Subject::Redirect, complaint);
    }

    /// Looks whether the ways to where connections are to be led have changed.
    pub fn ways(&self) -> Noted {
        if self.unfit(&self.led.wanted) == self.led.unfit {
            Noted::Known
        } else {
            Noted::News
        }
    }

    /// Whether somebody is there. Where the agent cannot listen, its responder complains.
    fn answers(&self, led: &Led) -> bool {
        match led {
            Led::Relay(_) => true,
            Led::Notice(address) => self.told.contains(address),
        }
    }

    /// Where nothing is sent, and why: a customer would get other customers' mail, or nobody would get
    /// it.
    fn unfit(&self, targets: &BTreeSet<Led>) -> BTreeMap<Led, String> {
        let unfit = targets.iter().filter_map(|led| {
            let why = match led {
                Led::Relay(address) => self.keeps_from_relay(address.ip()),
                Led::Notice(address) => self.keeps_from_notice(address.ip()),
            };
            Some((*led, why?))
        });
        unfit.collect()
    }

    fn keeps_from_relay(&self, relay: IpAddr) -> Option<String> {
        match (self.circumstances.way_to)(relay) {
            Ok(Way::By(index)) => {
                let workload = self.workloads.interfaces.get(&index)?;
                Some(format!("{relay} is behind {}, a workload", workload.name))
            }
            Ok(Way::Here) => None,
            Ok(Way::Nowhere) => Some(format!("there is no route to {relay}")),
            Err(why) => Some(why),
        }
    }

    fn keeps_from_notice(&self, notice: IpAddr) -> Option<String> {
        match (self.circumstances.way_to)(notice) {
            Ok(Way::Here) => None,
            Ok(Way::By(_) | Way::Nowhere) => {
                Some(format!("{notice} is not an address of this host"))
            }
            Err(why) => Some(why),
        }
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
