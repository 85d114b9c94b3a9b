//! Tells the status and the log what became of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gate25_common::names;
use tracing::{error, info};

use super::Reconciler;
use crate::dataplane::{Dataplane, Site};
use crate::policy::{Origin, Relay};
use crate::source::Accepted;
use crate::status::{ExemptionStatus, PolicyStatus, Source, State, WorkloadStatus};
use crate::workloads::{Claim, Framing, WorkloadId};

impl<D: Dataplane> Reconciler<D> {
    pub(super) fn report_policy(&self, writes: usize) {
        let Some(Accepted {
            policy,
            image,
            hash,
            files: _,
            source,
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
            relays: image
                .customers
                .iter()
                .filter(|(_, customer)| customer.relay != Relay::default())
                .map(|(number, customer)| (*number, customer.relay))
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
        self.circumstances.status.update(|status| {
            status.generation += 1;
            status.hash = Some(*hash);
            status.source = *source;
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

    pub(super) fn report_workloads(&self) {
        let covered = self.dataplane.covered();
        let workloads = self.workload_states(&covered);
        let installed = self.dataplane.installed();
        let entries = BTreeMap::from([
            (names::MAP_INTERFACES, installed.interfaces.len()),
            (names::MAP_CGROUPS, installed.cgroups.len()),
            (names::MAP_CUSTOMERS, installed.customers.len()),
            (
                names::MAP_PREFIXES,
                installed.sets.values().map(|set| set.len()).sum(),
            ),
        ]);
        let source = match &self.policy {
            Some(accepted) => accepted.source,
            None if installed.customers.len() > 1 => Source::Kernel,
            None => Source::Builtin,
        };
        let sites = self.sites();
        let roots = covered
            .intersection(&sites)
            .filter(|site| matches!(site, Site::Root(_)))
            .count();
        let returns = self.return_sites(&covered);
        let problems = self.problems(&covered, source);
        let is_guests = |site: &&Site| matches!(site, Site::Interface(_));
        let mut guests = sites.iter().filter(is_guests).peekable();
        let in_force = self.is_in_force()
            && (guests.peek().is_none() || guests.any(|site| covered.contains(site)));
        let status = &self.circumstances.status;
        let before = status.read(|status| Arc::clone(&status.workloads));
        report_changes(&before, &workloads);
        status.update(|status| {
            status.source = source;
            status.workloads = Arc::new(workloads);
            status.entries = entries;
            status.problems = problems;
            status.in_force = in_force;
            status.roots = roots;
            status.returns = returns;
        });
    }

    pub(super) fn report_complaints(&self) {
        let warnings: Vec<String> = self.complaints.values().cloned().collect();
        let subjects = self.complaints.keys().copied().collect();
        self.circumstances.status.update(|status| {
            status.warnings = warnings;
            status.complained_of = subjects;
        });
    }

    fn workload_states(&self, covered: &BTreeSet<Site>) -> BTreeMap<WorkloadId, WorkloadStatus> {
        let status = |site, name: &String, claim: &Claim| {
            let failed = self.attachments.failure(site).is_some();
            let state = if !covered.contains(&site) || failed {
                State::Failed
            } else {
                match claim {
                    Claim::Customer(_) => State::Enforced,
                    Claim::Unassigned => State::Unassigned,
                    Claim::Conflict(_) => State::Conflict,
                }
            };
            let (name, claim) = (name.clone(), claim.clone());
            WorkloadStatus { name, claim, state }
        };
        let interfaces = self.workloads.interfaces.iter().map(|(index, workload)| {
            let status = status(Site::Interface(*index), &workload.name, &workload.claim);
            (WorkloadId::Interface(*index), status)
        });
        let cgroups = self.workloads.cgroups.iter().map(|(id, workload)| {
            let status = status(Site::Root(workload.root), &workload.name, &workload.claim);
            (WorkloadId::Cgroup(*id), status)
        });
        interfaces.chain(cgroups).collect()
    }

    fn problems(&self, covered: &BTreeSet<Site>, source: Source) -> Vec<String> {
        let framed = self
            .workloads
            .interfaces
            .iter()
            .filter(|(_, workload)| workload.framing == Framing::Ip)
            .map(|(_, workload)| {
                format!(
                    "interface {} is without its program: its packets have no Ethernet header, which the program needs",
                    workload.name
                )
            });
        let without = self.sites().into_iter().filter_map(|site| {
            let why = match self.attachments.failure(site) {
                Some(why) => why,
                None if covered.contains(&site) => return None,
                None => "not attached yet",
            };
            let name = self.name(site).unwrap_or_default();
            Some(format!("{name} is without its program: {why}"))
        });
        let mut problems: Vec<String> = framed.chain(without).collect();
        problems.extend(self.attachments.stale.clone());
        problems.extend(self.attachments.lost.clone());
        problems.extend(self.unjudged.clone());
        match source {
            // A warning tells of what was undone.
            Source::Files | Source::Undone => {}
            Source::LastKnownGood => problems
                .push("no valid policy files: the policy that was last accepted runs".to_owned()),
            Source::Kernel => problems
                .push("no valid policy files: the policy of an earlier start goes on".to_owned()),
            Source::Builtin => {
                problems.push("no valid policy files: nothing is allowed to anybody".to_owned());
            }
        }
        problems
    }
}

/// Logs what became of workloads that are new or have changed.
fn report_changes(
    before: &BTreeMap<WorkloadId, WorkloadStatus>,
    after: &BTreeMap<WorkloadId, WorkloadStatus>,
) {
    for (id, workload) in after
        .iter()
        .filter(|(id, now)| before.get(id) != Some(*now))
    {
        let WorkloadStatus { name, claim, state } = workload;
        let state = state.as_str();
        match claim {
            Claim::Customer(customer) => info!(?id, name, state, customer, "workload"),
            Claim::Unassigned => info!(?id, name, state, "workload"),
            Claim::Conflict(claims) => {
                let claims: Vec<String> = claims
                    .iter()
                    .map(|(customer, Origin { file, line, column })| {
                        format!("{customer} at {}:{line}:{column}", file.display())
                    })
                    .collect();
                error!(
                    ?id,
                    name,
                    state,
                    ?claims,
                    "workload claimed by several customers"
                );
            }
        }
    }
    for (id, workload) in before.iter().filter(|(id, _)| !after.contains_key(id)) {
        info!(?id, name = workload.name, "workload gone");
    }
}
