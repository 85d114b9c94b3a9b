//! Brings the programs to where they belong, and back where they were taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tracing::{error, warn};

use super::{RETRY, Reconciler};
use crate::chain::in_full;
use crate::dataplane::{Attached, Dataplane, Site};

/// What is known of attachments besides what is covered.
#[derive(Default)]
pub(super) struct Attachments {
    /// Sites whose programs may not be there: of an interface that went, and may have come back, or that
    /// is called otherwise, since nftables binds chains to names (from Linux 6.16 on also of what is
    /// there).
    doubted: BTreeSet<Site>,
    /// Sites that are covered only by name: their programs are to be put there again.
    displaced: BTreeSet<Site>,
    waiting: BTreeSet<Site>,
    /// Roots that were removed, whose sockets are still judged.
    lingering: BTreeSet<Site>,
    failed: BTreeMap<Site, Failure>,
    /// Why an attachment was last said to have failed, so that it is not said every second.
    said: BTreeMap<Site, String>,
    /// Why tables or programs are not as they should be.
    pub(super) stale: Option<String>,
    /// Why what somebody else has changed is not put back.
    pub(super) lost: Option<String>,
}

struct Failure {
    why: String,
    retry: Instant,
}

impl Attachments {
    pub(super) fn doubt(&mut self, index: u32) {
        self.doubted
            .extend([Site::Interface(index), Site::Replies(index)]);
    }

    /// Why a site is without its programs, if a try has failed.
    pub(super) fn failure(&self, site: Site) -> Option<&str> {
        self.failed.get(&site).map(|failure| failure.why.as_str())
    }

    fn forget_all_but(&mut self, sites: &BTreeSet<Site>) {
        self.displaced.retain(|site| sites.contains(site));
        self.failed.retain(|site, _| sites.contains(site));
        self.said.retain(|site, _| sites.contains(site));
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Takes programs off sites that hold no workload any more, and finds out which ones need
    /// theirs.
    pub fn place(&mut self) {
        let covered = self.dataplane.covered();
        let sites = self.sites();
        let mut left = BTreeSet::new();
        for site in covered.difference(&sites) {
            match self.dataplane.detach(*site) {
                Ok(()) => drop(left.insert(*site)),
                Err(error) => error!(?site, error = in_full(&error), "program not taken off"),
            }
        }
        left.retain(|site| self.dataplane.covered().contains(site));
        self.attachments.lingering = left;
        self.check_doubted(&covered, &sites);
        self.attachments.forget_all_but(&sites);
        let Attachments {
            displaced, failed, ..
        } = &self.attachments;
        let waiting = sites
            .into_iter()
            .filter(|site| !covered.contains(site) || displaced.contains(site))
            .filter(|site| !failed.contains_key(site))
            .collect();
        self.attachments.waiting = waiting;
        if !self.has_waiting() {
            self.report_workloads();
        }
    }

    /// An interface that went and one that came meanwhile may share an index: it is the same one,
    /// back from another namespace with its program or without, or another one without.
    fn check_doubted(&mut self, covered: &BTreeSet<Site>, sites: &BTreeSet<Site>) {
        let doubted: BTreeSet<Site> = std::mem::take(&mut self.attachments.doubted)
            .into_iter()
            .filter(|site| covered.contains(site) && sites.contains(site))
            .collect();
        if doubted.is_empty() {
            return;
        }
        match self.dataplane.displaced(&doubted) {
            Ok(displaced) => self.attachments.displaced.extend(displaced),
            Err(error) => {
                error!(error = in_full(&error), "attachments not verified");
                self.attachments.displaced.extend(doubted);
            }
        }
    }

    /// Takes note that the attachment to an interface may be gone: it is looked at again after a
    /// time of quiet, since whoever took it is likely to be busy there.
    pub fn displaced(&mut self, index: u32, now: Instant) {
        if self.workloads.interfaces.contains_key(&index) {
            let why = "its ingress qdisc or filter was removed".to_owned();
            let retry = now + RETRY;
            let site = Site::Interface(index);
            self.attachments.failed.insert(site, Failure { why, retry });
        }
    }

    /// Whether attachments are waiting to be made.
    pub fn has_waiting(&self) -> bool {
        !self.attachments.waiting.is_empty()
    }

    /// Makes one of the attachments that are waiting.
    pub fn attach_next(&mut self, now: Instant) {
        let Some(site) = self.attachments.waiting.pop_first() else {
            return;
        };
        match self.attach(site) {
            Ok(Attached::Yes) => {
                self.attachments.displaced.remove(&site);
                self.attachments.said.remove(&site);
                if let Some(seen) = self.first_seen.get(&site) {
                    self.circumstances.timings.enforced_after(seen.elapsed());
                }
                self.revoked |= matches!(site, Site::Root(_));
            }
            // Its event is on the way.
            Ok(Attached::Vanished) => {}
            Err(error) => {
                let why = in_full(&error);
                let known = self.attachments.said.insert(site, why.clone());
                if known.as_ref() != Some(&why) {
                    let name = self.name(site);
                    error!(?site, name, error = why, "without its program");
                }
                let retry = now + RETRY;
                self.attachments.failed.insert(site, Failure { why, retry });
            }
        }
        if !self.has_waiting() {
            self.report_workloads();
        }
    }

    fn attach(&mut self, site: Site) -> Result<Attached, D::Error> {
        match site {
            Site::Interface(index) => self.dataplane.attach_interface(index),
            Site::Replies(index) => self.dataplane.attach_replies(index),
            Site::Root(id) => {
                let mount = self.circumstances.cgroup_mount.as_ref();
                let root = self.inventory.cgroups.get(&id);
                match (mount, root) {
                    (Some(mount), Some(root)) => {
                        self.dataplane.attach_root(id, &mount.join(&root.path))
                    }
                    (None, _) | (_, None) => Ok(Attached::Vanished),
                }
            }
        }
    }

    pub(super) fn name(&self, site: Site) -> Option<String> {
        match site {
            Site::Interface(index) => {
                let interface = self.inventory.interfaces.get(&index)?;
                Some(format!("interface {}", interface.name))
            }
            Site::Replies(index) => {
                let interface = self.inventory.interfaces.get(&index)?;
                Some(format!("interface {}, towards the guest,", interface.name))
            }
            Site::Root(id) => {
                let root = self.inventory.cgroups.get(&id)?;
                Some(format!("cgroup {}", root.path.display()))
            }
        }
    }

    /// Tries again what has failed, if it is time.
    pub fn retry(&mut self, now: Instant) {
        let due: Vec<Site> = self
            .attachments
            .failed
            .iter()
            .filter(|(_, failure)| failure.retry <= now)
            .map(|(site, _)| *site)
            .collect();
        for site in due {
            self.attachments.failed.remove(&site);
            self.attachments.displaced.insert(site);
            self.attachments.waiting.insert(site);
        }
        if self.attachments.lost.is_some() {
            self.verify_pins();
        }
    }

    /// Whether removed control groups have sockets that were open when this was last found out.
    pub fn has_lingering(&self) -> bool {
        !self.attachments.lingering.is_empty()
    }

    /// Whether anything has failed that is worth another try.
    pub fn has_failed(&self) -> bool {
        let Attachments {
            failed,
            stale,
            lost,
            ..
        } = &self.attachments;
        !failed.is_empty() || stale.is_some() || lost.is_some()
    }

    /// Finds out where somebody has removed or displaced a program.
    pub(super) fn verify_attachments(&mut self) {
        let covered = self.dataplane.covered();
        match self.dataplane.displaced(&covered) {
            Ok(displaced) => {
                for site in displaced {
                    let name = self.name(site);
                    warn!(
                        ?site,
                        name, "program was removed or displaced by somebody else"
                    );
                    self.circumstances
                        .status
                        .update(|status| status.repairs += 1);
                    self.attachments.displaced.insert(site);
                    self.attachments.waiting.insert(site);
                }
            }
            Err(error) => error!(error = in_full(&error), "attachments not verified"),
        }
    }
}
