//! Keeps the kernel as the policy wants it: level-triggered, from whatever it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25_common::abi::CustomerId;
use gate25_common::names;
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
use crate::status::{ExemptionStatus, PolicyStatus, Shared, Source, State, WorkloadStatus};
use crate::workloads::{Claim, Framing, Workload, resolve};

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
}

struct Failure {
    why: String,
    retry: Instant,
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
        })
    }

    /// Takes note of an interface that is new or has changed.
    pub fn interface(&mut self, interface: Interface, now: Instant) {
        self.first_seen.entry(interface.index).or_insert(now);
        self.inventory.insert(interface.index, interface);
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
                Outcome::Refused
            }
        }
    }

    /// Leads everything but new attachments to where it should be.
    pub fn converge(&mut self) {
        if let Err(error) = self.write_tables() {
            error!(
                error = &error as &dyn Error,
                "tables not brought up to date"
            );
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
                if let Some(seen) = self.first_seen.get(&index) {
                    self.timings.enforced_after(seen.elapsed());
                }
            }
            // Its event is on the way.
            Ok(Attached::Vanished) => {}
            Err(error) => {
                let name = self
                    .workloads
                    .get(&index)
                    .map(|workload| workload.name.as_str());
                error!(
                    index,
                    name,
                    error = &error as &dyn Error,
                    "interface without its program"
                );
                self.failed.insert(
                    index,
                    Failure {
                        why: error.to_string(),
                        retry: now + RETRY,
                    },
                );
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

    /// Whether anything has failed.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
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
            .map(|(index, workload)| (*index, workload.claim.customer()))
            .collect();
        let wanted = self.wanted(owners)?;
        let applied = self
            .dataplane
            .apply(&wanted)
            .map_err(ReconcileError::Dataplane)?;
        Ok(applied.writes)
    }

    fn wanted(&self, mut owners: BTreeMap<u32, CustomerId>) -> Result<MapImage, CapacityError> {
        let installed = self.dataplane.installed();
        match &self.policy {
            Some(accepted) => MapImage::new(&accepted.image, self.offset.nanoseconds(), owners),
            None if installed.customers.contains_key(&CustomerId::UNASSIGNED) => {
                // An earlier agent's policy goes on; interfaces it did not know are nobody's.
                for (index, owner) in &mut owners {
                    if let Some(known) = installed.workloads.get(index) {
                        *owner = *known;
                    }
                }
                Ok(MapImage {
                    workloads: owners,
                    ..installed.clone()
                })
            }
            None => MapImage::new(&self.builtin, self.offset.nanoseconds(), owners),
        }
    }

    fn report_policy(&self, writes: usize) {
        let Some(Accepted {
            policy,
            image,
            hash,
        }) = &self.policy
        else {
            return;
        };
        let report = PolicyStatus {
            customers: image
                .customers
                .iter()
                .map(|(number, customer)| (*number, customer.id.clone()))
                .collect(),
            exemptions: policy
                .exemptions
                .iter()
                .map(|(id, exemption)| ExemptionStatus {
                    customer: exemption.customer.clone(),
                    id: id.clone(),
                    starts: exemption.starts,
                    expires: exemption.expires,
                })
                .collect(),
        };
        let mut generation = 0;
        self.status.update(|status| {
            status.generation += 1;
            status.hash = Some(*hash);
            status.source = Source::Files;
            status.policy = Arc::new(report);
            generation = status.generation;
        });
        info!(
            generation,
            customers = policy.customers.len(),
            exemptions = policy.exemptions.len(),
            writes,
            %hash,
            "policy applied"
        );
    }

    fn report_workloads(&self) {
        let covered: BTreeSet<u32> = self.dataplane.covered().into_iter().collect();
        let workloads: BTreeMap<u32, WorkloadStatus> = self
            .workloads
            .iter()
            .map(
                |(
                    index,
                    Workload {
                        name,
                        claim,
                        framing: _,
                    },
                )| {
                    let state = if !covered.contains(index) || self.failed.contains_key(index) {
                        State::Failed
                    } else {
                        match claim {
                            Claim::Customer(_) => State::Enforced,
                            Claim::Unassigned => State::Unassigned,
                            Claim::Conflict(_) => State::Conflict,
                        }
                    };
                    let (name, claim) = (name.clone(), claim.clone());
                    (*index, WorkloadStatus { name, claim, state })
                },
            )
            .collect();
        let installed = self.dataplane.installed();
        let entries = BTreeMap::from([
            (names::MAP_WORKLOADS, installed.workloads.len()),
            (names::MAP_CUSTOMERS, installed.customers.len()),
            (
                names::MAP_PREFIXES,
                installed.sets.values().map(|set| set.len()).sum(),
            ),
        ]);
        let source = match &self.policy {
            Some(_) => Source::Files,
            None if installed.customers.len() > 1 => Source::Kernel,
            None => Source::Builtin,
        };
        let problems = self.problems(&workloads, source);
        let before = self.status.get().workloads;
        report_changes(&before, &workloads);
        self.status.update(|status| {
            status.source = source;
            status.workloads = workloads;
            status.entries = entries;
            status.problems = problems;
        });
    }

    fn problems(&self, workloads: &BTreeMap<u32, WorkloadStatus>, source: Source) -> Vec<String> {
        let without = workloads
            .iter()
            .filter(|(_, workload)| workload.state == State::Failed);
        let mut problems: Vec<String> = without
            .map(|(index, workload)| {
                let why = match (self.failed.get(index), self.workloads.get(index)) {
                    (Some(failure), _) => failure.why.as_str(),
                    (
                        None,
                        Some(Workload {
                            framing: Framing::Ip,
                            ..
                        }),
                    ) => "its packets have no Ethernet header, which the program needs",
                    (None, _) => "not attached yet",
                };
                format!("interface {} is without its program: {why}", workload.name)
            })
            .collect();
        match source {
            Source::Files => {}
            Source::Kernel => problems
                .push("no valid policy files: the policy of an earlier start goes on".to_owned()),
            Source::Builtin => {
                problems.push("no valid policy files: everything guarded is refused".to_owned());
            }
        }
        problems
    }
}

enum Outcome {
    Applied,
    Refused,
}

/// Logs what became of workloads that are new or have changed.
fn report_changes(before: &BTreeMap<u32, WorkloadStatus>, after: &BTreeMap<u32, WorkloadStatus>) {
    for (index, workload) in after
        .iter()
        .filter(|(index, now)| before.get(index) != Some(*now))
    {
        let WorkloadStatus { name, claim, state } = workload;
        let state = state.as_str();
        match claim {
            Claim::Customer(customer) => info!(index, name, state, customer, "workload"),
            Claim::Unassigned => info!(index, name, state, "workload"),
            Claim::Conflict(claims) => {
                let claims: Vec<String> = claims
                    .iter()
                    .map(|(customer, Origin { file, line, column })| {
                        format!("{customer} at {}:{line}:{column}", file.display())
                    })
                    .collect();
                error!(
                    index,
                    name,
                    state,
                    ?claims,
                    "workload claimed by several customers"
                );
            }
        }
    }
    for (index, workload) in before
        .iter()
        .filter(|(index, _)| !after.contains_key(index))
    {
        info!(index, name = workload.name, "workload gone");
    }
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
