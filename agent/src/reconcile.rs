//! Keeps the kernel as the policy wants it: level-triggered, from whatever it finds.

mod attachments;
pub mod files;
mod redirects;
mod replies;
mod report;
mod settled;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25_common::abi::{CustomerId, InterfaceOwner};
use gate25_common::bypass::Bypass;
use jiff::Timestamp;
use tracing::{error, info, warn};

use crate::chain::in_full;
use crate::clock::{Offset, drifted};
use crate::compile::{CompileError, Image, compile};
use crate::dataplane::{BypassError, CapacityError, Dataplane, Lost, MapImage, Returns, Site};
use crate::kernel::cgroups::Cgroup;
use crate::kernel::links::{Interface, Snapshot};
use crate::kernel::routes::Way;
use crate::metrics::Timings;
use crate::policy::loader::SetHash;
use crate::policy::shrink::Limits;
use crate::policy::{Blocked, DEFAULT_PROFILE, Mode, Origin, Policy, Profile, Relay};
use crate::reconcile::attachments::Attachments;
use crate::reconcile::redirects::Ways;
use crate::reconcile::settled::Settled;
use crate::source::Accepted;
use crate::status::{Shared, Subject};
use crate::workloads::{Framing, Host, Inside, Inventory, Unread, Workloads, resolve};

/// How far the kernel's deadlines may be off before they are written again.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(100);
/// How long an attachment that failed, or a qdisc that was taken away, is left alone.
pub const RETRY: Duration = Duration::from_secs(1);

/// Why the kernel is not as the policy wants it.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError<E: Error + 'static> {
    /// The policy does not fit.
    #[error("the policy does not fit into the kernel's tables")]
    Capacity(#[from] CapacityError),
    /// The backend failed.
    #[error("the kernel's tables were not changed")]
    Dataplane(#[source] E),
    /// The policy that refuses everything has no tables.
    #[error("the built-in policy has no form as tables")]
    Builtin(#[from] CompileError),
}

/// What the reconciler needs to know besides what it is told.
pub struct Circumstances {
    /// The host and its settings.
    pub host: Host,
    /// Where control groups are mounted; `None` without them.
    pub cgroup_mount: Option<PathBuf>,
    /// Where the policy's files are.
    pub policy_dir: PathBuf,
    /// How much a set may lose unasked.
    pub shrink: Limits,
    /// Where the notice is to be told, at most once a family.
    pub notice: Vec<SocketAddr>,
    /// What becomes of packets that come back to guests from guarded ports.
    pub returns: Returns,
    /// Where packets to an address go; why that is not known.
    pub way_to: fn(IpAddr) -> Result<Way, String>,
    /// Where it reports to.
    pub status: Shared,
    /// Where it reports times to.
    pub timings: Timings,
}

/// The state that is kept, and where it is kept.
pub struct Reconciler<D: Dataplane> {
    dataplane: D,
    circumstances: Circumstances,
    offset: Offset,
    inventory: Inventory,
    listed: Listed,
    /// Roots that an earlier agent covered, and that may be where this one has never been able to look.
    inherited: BTreeSet<u64>,
    first_seen: BTreeMap<Site, Instant>,
    workloads: Workloads,
    policy: Option<Accepted>,
    /// The set that was last accepted before this start.
    last_known_good: Option<Accepted>,
    builtin: Arc<Image>,
    /// What the policy has come to in the tables.
    settled: Option<Settled>,
    last_attempt: Option<SetHash>,
    /// Files that were undone: not taken over again unasked.
    held: Option<SetHash>,
    attachments: Attachments,
    /// Where the notice is told at present.
    told: BTreeSet<SocketAddr>,
    /// Where connections would be led, and why they are not.
    led: Ways,
    /// What keeps containers from being judged.
    unjudged: Option<String>,
    /// What else is wrong, by subject.
    complaints: BTreeMap<Subject, String>,
    /// Whether sockets may be open that the tables now refuse.
    revoked: bool,
}

/// Whether control groups were ever listed: until then, what an earlier agent left is all that is
/// known of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    NotYet,
    Yes,
}

/// Whether an event says anything new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// Something to converge to.
    News,
    /// As it was.
    Known,
}

impl<D: Dataplane> Reconciler<D> {
    /// A reconciler that has done nothing yet.
    ///
    /// # Errors
    ///
    /// [`ReconcileError::Builtin`].
    pub fn new(
        dataplane: D,
        circumstances: Circumstances,
        offset: Offset,
    ) -> Result<Self, ReconcileError<D::Error>> {
        Ok(Self {
            dataplane,
            circumstances,
            offset,
            inventory: Inventory::default(),
            listed: Listed::NotYet,
            inherited: BTreeSet::new(),
            first_seen: BTreeMap::new(),
            workloads: Workloads::default(),
            policy: None,
            last_known_good: None,
            builtin: Arc::new(builtin()?),
            settled: None,
            last_attempt: None,
            held: None,
            attachments: Attachments::default(),
            told: BTreeSet::new(),
            led: Ways::default(),
            unjudged: None,
            complaints: BTreeMap::new(),
            revoked: true,
        })
    }

    /// Takes note of an interface, and tells whether it is new or has changed: a guest that flaps
    /// its link makes events by the thousand that say nothing new.
    pub fn interface(&mut self, interface: Interface, now: Instant) -> Noted {
        let index = interface.index;
        self.first_seen.entry(Site::Interface(index)).or_insert(now);
        let known = self.inventory.interfaces.get(&index);
        if known == Some(&interface) {
            return Noted::Known;
        }
        if known.is_some_and(|known| known.name != interface.name) {
            self.attachments.doubt(index);
        }
        self.inventory.interfaces.insert(index, interface);
        Noted::News
    }

    /// Takes note of an interface that is gone.
    pub fn interface_gone(&mut self, index: u32) {
        self.inventory.interface_gone(index);
        self.first_seen.remove(&Site::Interface(index));
        self.attachments.doubt(index);
    }

    /// Takes note of every interface that there is, and of those that there were meanwhile.
    pub fn interfaces(&mut self, snapshot: Snapshot, now: Instant) {
        let Snapshot { gone, interfaces } = snapshot;
        for index in gone {
            self.interface_gone(index);
        }
        let present: BTreeSet<u32> = interfaces.iter().map(|interface| interface.index).collect();
        let known = self.inventory.interfaces.keys().copied();
        let gone: Vec<u32> = known.filter(|index| !present.contains(index)).collect();
        for index in gone {
            self.interface_gone(index);
        }
        for interface in interfaces {
            self.interface(interface, now);
        }
    }

    /// Takes note of a control group.
    pub fn cgroup(&mut self, cgroup: Cgroup, now: Instant) {
        self.first_seen.entry(Site::Root(cgroup.id)).or_insert(now);
        self.inventory.cgroups.insert(cgroup.id, cgroup);
    }

    /// Takes note of a control group that is gone.
    pub fn cgroup_gone(&mut self, id: u64) {
        self.inventory.cgroup_gone(id);
        self.inherited.remove(&id);
        self.first_seen.remove(&Site::Root(id));
    }

    /// Takes note of every control group that there is at and below the roots. Before the first
    /// time, roots that an earlier agent covered stay covered and owned. What is known of those below `unseen`
    /// directories stays, since none of them can be listed.
    pub fn cgroups(&mut self, cgroups: Vec<Cgroup>, unseen: &BTreeSet<PathBuf>, now: Instant) {
        if self.listed == Listed::NotYet {
            self.inherited = self.covered_roots().collect();
        }
        if unseen.is_empty() {
            self.inherited.clear();
        }
        self.listed = Listed::Yes;
        let is_unseen = |cgroup: &Cgroup| unseen.iter().any(|dir| cgroup.path.starts_with(dir));
        self.inventory.cgroups.retain(|_, cgroup| is_unseen(cgroup));
        for cgroup in cgroups {
            self.inherited.remove(&cgroup.id);
            self.cgroup(cgroup, now);
        }
        self.inventory.forget_gone();
        let known = &self.inventory.cgroups;
        self.first_seen.retain(|site, _| match site {
            Site::Interface(_) | Site::Replies(_) => true,
            Site::Root(id) => known.contains_key(id),
        });
    }

    /// Takes note of the network namespaces that control groups have processes in, as
    /// [`Inventory::looked`] does.
    pub fn namespaces(&mut self, inside: Inside, unread: &Unread) -> Noted {
        let installed = &self.dataplane.installed().interfaces;
        if self.inventory.looked(inside, unread, installed) {
            Noted::News
        } else {
            Noted::Known
        }
    }

    /// Takes note of where the notice is told. Nobody is led elsewhere for it: whoever else listens
    /// there would be sent customers' mail.
    pub fn notice_told(&mut self, told: BTreeSet<SocketAddr>) -> Noted {
        if self.told == told {
            return Noted::Known;
        }
        self.told = told;
        Noted::News
    }

    /// What there is, as far as it was told.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The workloads as they were last resolved.
    pub fn workloads(&self) -> &Workloads {
        &self.workloads
    }

    /// The kernel's tables.
    pub fn installed(&self) -> &MapImage {
        self.dataplane.installed()
    }

    /// The policy that runs, if it comes from files.
    pub fn policy(&self) -> Option<&Accepted> {
        self.policy.as_ref()
    }

    /// When tables are to be written although nothing new is wanted.
    pub fn due(&self) -> Option<Instant> {
        self.dataplane.due()
    }

    /// Whether the tables are written and every interface of a guest has its programs.
    pub fn covers_interfaces(&self) -> bool {
        let covered = self.dataplane.covered();
        let sites = self.sites();
        let mut interfaces = sites
            .iter()
            .filter(|site| matches!(site, Site::Interface(_)));
        self.attachments.stale.is_none()
            && interfaces
                .all(|site| covered.contains(site) && self.attachments.failure(*site).is_none())
    }

    /// Whether the tables are written, and programs of this start read them.
    pub fn is_in_force(&self) -> bool {
        self.attachments.stale.is_none() && self.attachments.lost.is_none()
    }

    /// Has the kernel only observe for a time.
    ///
    /// # Errors
    ///
    /// [`BypassError`].
    pub fn bypass(&mut self, bypass: &Bypass) -> Result<(), BypassError<D::Error>> {
        self.dataplane.bypass(bypass)
    }

    /// Whether something was revoked since the last time that this was asked.
    pub fn take_revoked(&mut self) -> bool {
        std::mem::take(&mut self.revoked)
    }

    /// What is said to be wrong with something around enforcement.
    pub fn complaint(&self, subject: Subject) -> Option<&str> {
        self.complaints.get(&subject).map(String::as_str)
    }

    /// Says, or takes back, that something around enforcement is wrong.
    pub fn complain(&mut self, subject: Subject, complaint: Option<String>) {
        let before = match &complaint {
            Some(complaint) => self.complaints.insert(subject, complaint.clone()),
            None => self.complaints.remove(&subject),
        };
        if before != complaint {
            self.report_complaints();
        }
    }

    /// Says, or takes back, that containers may get past the policy.
    pub fn containers_unjudged(&mut self, why: Option<String>) {
        if self.unjudged != why {
            self.unjudged = why;
            self.report_workloads();
        }
    }

    /// Leads everything but new attachments to where it should be.
    pub fn converge(&mut self) {
        let written = self.write_tables();
        let stale = match &written {
            Ok(_) => None,
            Err(error) => {
                let error = in_full(error);
                Some(format!("the kernel's tables are not up to date: {error}"))
            }
        };
        if let Some(stale) = stale
            .as_ref()
            .filter(|it| self.attachments.stale.as_ref() != Some(*it))
        {
            error!("{stale}");
        }
        self.attachments.stale = stale;
        if written.is_ok() {
            self.adopt();
        } else {
            self.forget_vacated();
        }
        self.place();
    }

    /// Takes entries of interfaces that have gone out of tables that cannot be written otherwise, which needs
    /// no room there: one that comes with such an index would be judged by its predecessor's.
    fn forget_vacated(&mut self) {
        let is_vacated = |index: &u32| self.inventory.veths.is_vacated(*index);
        let installed = self.dataplane.installed();
        if !installed.interfaces.keys().any(is_vacated) {
            return;
        }
        let mut without = installed.clone();
        without.interfaces.retain(|index, _| !is_vacated(index));
        match self.dataplane.apply(&without) {
            Ok(_) => self.inventory.veths.written(),
            Err(error) => {
                let error = in_full(&error);
                error!(error, "tables keep entries of interfaces that are gone");
            }
        }
    }

    /// The first tables that are right let this agent's programs take over.
    fn adopt(&mut self) {
        match self.dataplane.adopt() {
            Ok(0) => {}
            Ok(changed) => info!(changed, "attachments have the programs of this version"),
            Err(error) => {
                let error = in_full(&error);
                error!(error, "attachments keep the programs of an earlier start");
                let why = format!("programs of an earlier start go on: {error}");
                self.attachments.stale = Some(why);
            }
        }
    }

    /// Compares the kernel with what was put there, and has repaired what differs.
    pub fn verify(&mut self, offset: Offset) {
        self.clock(offset);
        self.verify_pins();
        self.verify_attachments();
    }

    /// Sees to it that everything would still be there without this agent.
    pub fn verify_pins(&mut self) {
        let before = (
            self.complaint(Subject::Pins).map(str::to_owned),
            self.attachments.lost.take(),
        );
        let failure = match self.dataplane.repin() {
            Ok(0) => None,
            Ok(missing) => {
                warn!(missing, "what was removed by somebody else is put back");
                self.circumstances
                    .status
                    .update(|status| status.repairs += missing as u64);
                None
            }
            Err(error) => Some(in_full(&error)),
        };
        let complaint = match D::LOST {
            Lost::WithTheAgent => {
                failure.map(|why| format!("enforcement would end with this agent: {why}"))
            }
            Lost::AtOnce => {
                self.attachments.lost = failure.map(|why| {
                    format!(
                        "somebody else has changed what enforces, which cannot be put back: {why}"
                    )
                });
                None
            }
        };
        self.complain(Subject::Pins, complaint);
        let after = (
            self.complaint(Subject::Pins).map(str::to_owned),
            self.attachments.lost.clone(),
        );
        if before != after {
            for wrong in [&after.0, &after.1].into_iter().flatten() {
                error!("{wrong}");
            }
            self.report_workloads();
        }
    }

    /// Moves the deadlines if the clocks have moved against each other.
    pub fn clock(&mut self, offset: Offset) {
        if drifted(self.offset, offset, CLOCK_TOLERANCE) {
            info!(
                from = self.offset.nanoseconds(),
                to = offset.nanoseconds(),
                "clock was set, deadlines move"
            );
            self.offset = offset;
            self.recompile();
        }
    }

    /// Exemptions that had expired by the old clock may hold by the new one.
    fn recompile(&mut self) {
        let Some(accepted) = &mut self.policy else {
            return;
        };
        match compile(&accepted.policy, Timestamp::now()) {
            Ok(image) => accepted.image = Arc::new(image),
            Err(error) => error!(error = in_full(&error), "policy not compiled again"),
        }
    }

    /// The sites that should be covered.
    fn sites(&self) -> BTreeSet<Site> {
        let Workloads {
            interfaces,
            cgroups: _,
            claims: _,
        } = &self.workloads;
        let interfaces = interfaces
            .iter()
            .filter(|(_, workload)| workload.framing == Framing::Ethernet)
            .map(|(index, _)| Site::Interface(*index));
        let mut sites: BTreeSet<Site> = match self.listed {
            Listed::Yes => {
                let listed = self.inventory.roots().map(|root| root.id);
                listed
                    .chain(self.inherited.iter().copied())
                    .map(Site::Root)
                    .collect()
            }
            Listed::NotYet => self.covered_roots().map(Site::Root).collect(),
        };
        sites.extend(interfaces);
        sites.extend(self.replies());
        sites
    }

    fn covered_roots(&self) -> impl Iterator<Item = u64> {
        let covered = self.dataplane.covered().into_iter();
        covered.filter_map(|site| match site {
            Site::Root(id) => Some(id),
            Site::Interface(_) | Site::Replies(_) => None,
        })
    }

    fn write_tables(&mut self) -> Result<usize, ReconcileError<D::Error>> {
        self.workloads = resolve(
            &self.inventory,
            &self.circumstances.host,
            self.policy.as_ref().map(|accepted| &*accepted.policy),
            &self.dataplane.installed().interfaces,
        );
        let wanted = self.settle()?;
        self.check_returns();
        let applied = self
            .dataplane
            .apply(&wanted)
            .map_err(ReconcileError::Dataplane)?;
        self.inventory.veths.written();
        self.revoked |= applied.writes > 0;
        Ok(applied.writes)
    }

    /// The tables that the policy comes to, by what can be had of it at present.
    fn settle(&mut self) -> Result<MapImage, CapacityError> {
        if let Some(settled) = self.settled.as_ref().filter(|it| self.still_holds(it)) {
            return Ok(MapImage {
                customers: settled.customers.clone(),
                sets: Arc::clone(&settled.sets),
                ..self.owners()
            });
        }
        self.settled = None;
        let mut wanted = self.wanted()?;
        self.check_redirects(&mut wanted);
        wanted.keep_times(self.dataplane.installed(), CLOCK_TOLERANCE);
        self.settled = self.image().map(|image| Settled {
            image: Arc::clone(image),
            offset: self.offset,
            told: self.told.clone(),
            has_replies: self.dataplane.replies().is_ok(),
            customers: wanted.customers.clone(),
            sets: Arc::clone(&wanted.sets),
        });
        Ok(wanted)
    }

    /// Whether the tables that the policy came to are those that it would come to now.
    fn still_holds(&self, settled: &Settled) -> bool {
        let Settled {
            image,
            offset,
            told,
            has_replies,
            customers: _,
            sets: _,
        } = settled;
        self.image().is_some_and(|now| Arc::ptr_eq(now, image))
            && *offset == self.offset
            && *told == self.told
            && *has_replies == self.dataplane.replies().is_ok()
            && self.ways() == Noted::Known
    }

    /// The policy that runs; `None` while that of an earlier agent goes on.
    fn image(&self) -> Option<&Arc<Image>> {
        match &self.policy {
            Some(accepted) => Some(&accepted.image),
            None if self.has_leftover() => None,
            None => Some(&self.builtin),
        }
    }

    fn wanted(&self) -> Result<MapImage, CapacityError> {
        let MapImage {
            interfaces,
            cgroups,
            customers,
            sets,
        } = self.owners();
        match self.image() {
            // An earlier agent's policy goes on.
            None => Ok(MapImage {
                customers,
                sets,
                interfaces,
                cgroups,
            }),
            Some(image) => MapImage::new(
                image,
                self.offset.nanoseconds(),
                &self.circumstances.notice,
                interfaces,
                cgroups,
            ),
        }
    }

    /// The tables as they are, but for who owns what.
    fn owners(&self) -> MapImage {
        let installed = self.dataplane.installed();
        let mut interfaces: BTreeMap<u32, InterfaceOwner> = self
            .workloads
            .interfaces
            .iter()
            .map(|(index, workload)| {
                let owner = InterfaceOwner::new(workload.claim.customer(), workload.counting);
                (*index, owner)
            })
            .collect();
        let mut left = installed.cgroups.clone();
        let cgroups = match (self.image(), self.listed) {
            (None, listed) => {
                // What an earlier agent did not know is nobody's.
                for (index, owner) in &mut interfaces {
                    let known = installed.interfaces.get(index);
                    if let Some(known) = known.filter(|_| !self.inventory.veths.is_vacated(*index))
                    {
                        *owner = *known;
                    }
                }
                match listed {
                    Listed::Yes => left.retain(|id, _| self.inventory.cgroups.contains_key(id)),
                    Listed::NotYet => {}
                }
                left
            }
            (Some(_), Listed::Yes) => self.workloads.claims.clone(),
            (Some(image), Listed::NotYet) => {
                left.retain(|_, owner| image.customers.contains_key(owner));
                left
            }
        };
        MapImage {
            interfaces,
            cgroups,
            ..installed.clone()
        }
    }

    /// Whether an earlier agent has left a policy in the tables.
    fn has_leftover(&self) -> bool {
        let customers = &self.dataplane.installed().customers;
        customers.contains_key(&CustomerId::UNASSIGNED)
    }
}

/// The policy that refuses everything.
fn builtin() -> Result<Image, CompileError> {
    let profile = Profile {
        mode: Mode::Enforce,
        blocked: Blocked::Reject,
        relay: Relay::default(),
        allow: Vec::new(),
        origin: Origin {
            file: Arc::from(std::path::Path::new("(built in)")),
            line: 1,
            column: 1,
        },
    };
    let profiles = BTreeMap::from([(DEFAULT_PROFILE.to_owned(), profile)]);
    compile(
        &Policy {
            profiles,
            ..Policy::default()
        },
        Timestamp::UNIX_EPOCH,
    )
}
