//! Keeps the kernel as the policy wants it: level-triggered, from whatever it finds.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25_common::abi::{Counting, CustomerId, InterfaceOwner};
use jiff::Timestamp;
use tracing::{error, info, warn};

use crate::clock::{Offset, drifted};
use crate::compile::{CompileError, Image, compile};
use crate::dataplane::{Attached, CapacityError, Dataplane, MapImage};
use crate::kernel::links::Interface;
use crate::metrics::Timings;
use crate::policy::loader::SetHash;
use crate::policy::{Blocked, DEFAULT_PROFILE, Mode, Origin, Policy, Profile};
use crate::settings::Interfaces;
use crate::source::{Accepted, SourceError, report_refusal};
use crate::status::Shared;
use crate::workloads::{Framing, Workload, resolve};

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

/// What the reconciler needs to know about its host.
#[derive(Debug, Clone)]
pub struct Host {
    /// The name that `hosts:` is matched against.
    pub name: String,
    /// Which interfaces are workloads.
    pub interfaces: Interfaces,
}

/// The state that is kept, and where it is kept.
pub struct Reconciler<D: Dataplane> {
    dataplane: D,
    host: Host,
    status: Shared,
    timings: Timings,
    offset: Offset,
    inventory: BTreeMap<u32, Interface>,
    first_seen: BTreeMap<u32, Instant>,
    workloads: BTreeMap<u32, Workload>,
    policy: Option<Accepted>,
    builtin: Image,
    last_attempt: Option<SetHash>,
    /// Interfaces that went since the tables were last written; one may have come back.
    gone: BTreeSet<u32>,
    /// Interfaces that are covered only by name: their program is to be put there again.
    displaced: BTreeSet<u32>,
    waiting: BTreeSet<u32>,
    failed: BTreeMap<u32, Failure>,
    /// Why an attachment was last said to have failed, so that it is not said every second.
    complaints: BTreeMap<u32, String>,
    /// Why the tables are not as they should be.
    stale: Option<String>,
}

struct Failure {
    why: String,
    retry: Instant,
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
        host: Host,
        status: Shared,
        timings: Timings,
        offset: Offset,
    ) -> Result<Self, ReconcileError<D::Error>> {
        Ok(Self {
            dataplane,
            host,
            status,
            timings,
            offset,
            inventory: BTreeMap::new(),
            first_seen: BTreeMap::new(),
            workloads: BTreeMap::new(),
            policy: None,
            builtin: builtin()?,
            last_attempt: None,
            gone: BTreeSet::new(),
            displaced: BTreeSet::new(),
            waiting: BTreeSet::new(),
            failed: BTreeMap::new(),
            complaints: BTreeMap::new(),
            stale: None,
        })
    }

    /// Takes note of an interface, and tells whether it is new or has changed: a guest that flaps
    /// its link makes events by the thousand that say nothing new.
    pub fn interface(&mut self, interface: Interface, now: Instant) -> Noted {
        self.first_seen.entry(interface.index).or_insert(now);
        if self.inventory.get(&interface.index) == Some(&interface) {
            return Noted::Known;
        }
        self.inventory.insert(interface.index, interface);
        Noted::News
    }

    /// Takes note of an interface that is gone.
    pub fn interface_gone(&mut self, index: u32) {
        self.inventory.remove(&index);
        self.first_seen.remove(&index);
        self.gone.insert(index);
    }

    /// Takes note of everything that there is.
    pub fn snapshot(&mut self, interfaces: Vec<Interface>, now: Instant) {
        let present: BTreeSet<u32> = interfaces.iter().map(|interface| interface.index).collect();
        self.inventory.retain(|index, _| present.contains(index));
        self.first_seen.retain(|index, _| present.contains(index));
        for interface in interfaces {
            self.interface(interface, now);
        }
    }

    /// Takes note that the attachment to an interface may be gone: it is looked at again after a
    /// time of quiet, since whoever took it is likely to be busy there.
    pub fn displaced(&mut self, index: u32, now: Instant) {
        if self.workloads.contains_key(&index) {
            let why = "its ingress qdisc or filter was removed".to_owned();
            self.failed.insert(
                index,
                Failure {
                    why,
                    retry: now + RETRY,
                },
            );
        }
    }

    /// Takes over what loading the files came to. A set that is refused, or does not fit, changes
    /// nothing.
    pub fn files(&mut self, loaded: Result<Accepted, SourceError>, now: Timestamp) {
        let hash = match &loaded {
            Ok(accepted) => Some(accepted.hash),
            Err(SourceError::Refused(refused)) => Some(refused.hash),
            Err(SourceError::Directory(_) | SourceError::Compile(_)) => None,
        };
        if hash.is_some() && hash == self.last_attempt {
            return;
        }
        self.last_attempt = hash;
        let applied = match loaded {
            Ok(accepted) => self.accept(accepted),
            Err(refusal) => {
                report_refusal(&refusal);
                Outcome::Refused
            }
        };
        self.status.update(|status| {
            status.reloads += 1;
            match applied {
                Outcome::Applied => {
                    status.reload_successful = true;
                    status.reload_success = Some(now);
                }
                Outcome::Refused => {
                    status.reload_successful = false;
                    status.reload_failures += 1;
                }
            }
        });
    }

    fn accept(&mut self, accepted: Accepted) -> Outcome {
        let started = Instant::now();
        let before = self.policy.replace(accepted);
        match self.write_tables() {
            Ok(writes) => {
                self.timings.applied(started.elapsed());
                self.report_policy(writes);
                Outcome::Applied
            }
            Err(error) => {
                error!(
                    error = &error as &dyn Error,
                    "policy refused, the running one stays"
                );
                self.policy = before;
                // The kernel's refusal may pass: the next rescan tries the same files again.
                self.last_attempt = None;
                Outcome::Refused
            }
        }
    }

    /// Leads everything but new attachments to where it should be.
    pub fn converge(&mut self) {
        match self.write_tables() {
            Ok(_) => self.stale = None,
            Err(error) => {
                error!(
                    error = &error as &dyn Error,
                    "tables not brought up to date"
                );
                self.stale = Some(error.to_string());
            }
        }
        let covered: BTreeSet<u32> = self.dataplane.covered().into_iter().collect();
        for index in covered
            .iter()
            .filter(|index| !self.workloads.contains_key(index))
        {
            if let Err(error) = self.dataplane.detach(*index) {
                error!(index, error = &error as &dyn Error, "program not taken off");
            }
        }
        self.check_returned(&covered);
        self.displaced
            .retain(|index| self.workloads.contains_key(index));
        self.failed
            .retain(|index, _| self.workloads.contains_key(index));
        self.complaints
            .retain(|index, _| self.workloads.contains_key(index));
        self.waiting = self
            .workloads
            .iter()
            .filter(|(index, workload)| {
                (!covered.contains(index) || self.displaced.contains(index))
                    && !self.failed.contains_key(index)
                    && workload.framing == Framing::Ethernet
            })
            .map(|(index, _)| *index)
            .collect();
        if self.waiting.is_empty() {
            self.report_workloads();
        }
    }

    /// An interface that went and one that came meanwhile may share an index: it is the same one,
    /// back from another namespace with its program or without, or another one without.
    fn check_returned(&mut self, covered: &BTreeSet<u32>) {
        let returned: BTreeSet<u32> = std::mem::take(&mut self.gone)
            .into_iter()
            .filter(|index| covered.contains(index) && self.workloads.contains_key(index))
            .collect();
        if returned.is_empty() {
            return;
        }
        match self.dataplane.displaced(&returned) {
            Ok(displaced) => self.displaced.extend(displaced),
            Err(error) => {
                error!(error = &error as &dyn Error, "attachments not verified");
                self.displaced.extend(returned);
            }
        }
    }

    /// Whether attachments are waiting to be made.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Makes one of the attachments that are waiting.
    pub fn attach_next(&mut self, now: Instant) {
        let Some(index) = self.waiting.pop_first() else {
            return;
        };
        match self.dataplane.attach(index) {
            Ok(Attached::Yes) => {
                self.displaced.remove(&index);
                self.complaints.remove(&index);
                if let Some(seen) = self.first_seen.get(&index) {
                    self.timings.enforced_after(seen.elapsed());
                }
            }
            // Its event is on the way.
            Ok(Attached::Vanished) => {}
            Err(error) => {
                let why = error.to_string();
                let known = self.complaints.insert(index, why.clone());
                if known.as_ref() != Some(&why) {
                    let name = self.workloads.get(&index).map(|it| it.name.as_str());
                    let error = &error as &dyn Error;
                    error!(index, name, error, "interface without its program");
                }
                let retry = now + RETRY;
                self.failed.insert(index, Failure { why, retry });
            }
        }
        if self.waiting.is_empty() {
            self.report_workloads();
        }
    }

    /// Tries again what has failed, if it is time.
    pub fn retry(&mut self, now: Instant) {
        let due: Vec<u32> = self
            .failed
            .iter()
            .filter(|(_, failure)| failure.retry <= now)
            .map(|(index, _)| *index)
            .collect();
        for index in due {
            self.failed.remove(&index);
            self.displaced.insert(index);
            self.waiting.insert(index);
        }
    }

    /// Whether anything has failed that is worth another try.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty() || self.stale.is_some()
    }

    /// Compares the kernel with what was put there, and has repaired what differs.
    pub fn verify(&mut self, offset: Offset) {
        self.clock(offset);
        let covered = self.dataplane.covered().into_iter().collect();
        match self.dataplane.displaced(&covered) {
            Ok(displaced) => {
                for index in displaced {
                    warn!(index, "program was removed or displaced by somebody else");
                    self.status.update(|status| status.repairs += 1);
                    self.displaced.insert(index);
                    self.waiting.insert(index);
                }
            }
            Err(error) => error!(error = &error as &dyn Error, "attachments not verified"),
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
            Err(error) => error!(error = &error as &dyn Error, "policy not compiled again"),
        }
    }

    fn write_tables(&mut self) -> Result<usize, ReconcileError<D::Error>> {
        let policy = self.policy.as_ref().map(|accepted| &*accepted.policy);
        self.workloads = resolve(
            &self.inventory,
            &self.host.interfaces,
            policy,
            &self.host.name,
        );
        let owners = self
            .workloads
            .iter()
            .map(|(index, workload)| {
                let owner = InterfaceOwner::new(workload.claim.customer(), Counting::All);
                (*index, owner)
            })
            .collect();
        let wanted = self.wanted(owners)?;
        let applied = self
            .dataplane
            .apply(&wanted)
            .map_err(ReconcileError::Dataplane)?;
        Ok(applied.writes)
    }

    fn wanted(&self, mut owners: BTreeMap<u32, InterfaceOwner>) -> Result<MapImage, CapacityError> {
        let installed = self.dataplane.installed();
        let offset = self.offset.nanoseconds();
        match &self.policy {
            Some(accepted) => MapImage::new(&accepted.image, offset, owners, BTreeMap::new()),
            None if installed.customers.contains_key(&CustomerId::UNASSIGNED) => {
                // An earlier agent's policy goes on; interfaces it did not know are nobody's.
                for (index, owner) in &mut owners {
                    if let Some(known) = installed.interfaces.get(index) {
                        *owner = *known;
                    }
                }
                Ok(MapImage {
                    interfaces: owners,
                    ..installed.clone()
                })
            }
            None => MapImage::new(&self.builtin, offset, owners, BTreeMap::new()),
        }
    }
}

enum Outcome {
    Applied,
    Refused,
}

/// The policy that refuses everything.
fn builtin() -> Result<Image, CompileError> {
    let profile = Profile {
        mode: Mode::Enforce,
        blocked: Blocked::Reject,
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
