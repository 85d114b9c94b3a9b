//! Tells the status and the log what became of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gate25_common::names;
use tracing::{error, info};

use super::Reconciler;
use crate::dataplane::Dataplane;
use crate::policy::Origin;
use crate::source::Accepted;
use crate::status::{ExemptionStatus, PolicyStatus, Source, State, WorkloadStatus};
use crate::workloads::{Claim, Framing, Workload};

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
            Some(accepted) => accepted.source,
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
        if let Some(why) = &self.stale {
            problems.push(format!("the kernel's tables are not up to date: {why}"));
        }
        match source {
            Source::Files => {}
            Source::LastKnownGood => problems
                .push("no valid policy files: the last set that was accepted goes on".to_owned()),
            Source::Kernel => problems
                .push("no valid policy files: the policy of an earlier start goes on".to_owned()),
            Source::Builtin => {
                problems.push("no valid policy files: everything guarded is refused".to_owned());
            }
        }
        problems
    }
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
