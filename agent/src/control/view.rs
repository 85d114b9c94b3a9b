//! The agent's own types as messages.

use std::collections::BTreeMap;

use gate25_common::abi::CustomerId;
use gate25_common::address::Family;
use gate25_common::bypass;
use gate25_common::counters::{CustomerCounters, HostCounters};
use gate25_common::decide::{Reason, Verdict};
use gate25_common::returns::{Fate, ReturnCounters};
use jiff::Timestamp;

use super::messages::{
    Backend, Bypass, Claim, Customer, Customers, Diagnostic, Exemption, Exemptions, File, Findings,
    Kind, Mode, NoticeListener, OnTrial, Policy, Reload, Reloads, Returns, RunningPolicy, State,
    Status, Teller, Term, Trial, Workload, Workloads,
};
use super::{Constants, ReloadOutcome, TrialOutcome};
use crate::clock;
use crate::diagnostic::terminal::{Colour, render};
use crate::diagnostic::{self, escape};
use crate::notice::server::{Listener, Listening};
use crate::policy::Origin;
use crate::settings::Enforcement;
use crate::status::{self, ExemptionStatus, PolicyStatus, WorkloadStatus};
use crate::workloads::{self, WorkloadId};

/// Verdicts that are counted.
const VERDICTS: [Verdict; 6] = [
    Verdict::Allow,
    Verdict::Observe,
    Verdict::Reject,
    Verdict::Drop,
    Verdict::Redirect,
    Verdict::Notice,
];

/// What the agent found wrong with the coverage of workloads.
pub(super) fn findings(status: &status::Status) -> Findings {
    let status::Examined { looked, findings } = &status.examined;
    Findings {
        looked: *looked,
        findings: findings.clone(),
    }
}

/// How the agent is.
pub(super) fn status(
    status: status::Status,
    constants: &Constants,
    counters: Option<&(HostCounters, ReturnCounters)>,
    bypass: Result<bypass::Bypass, String>,
    now: Timestamp,
) -> Status {
    let status::Status {
        source,
        policy,
        generation,
        hash,
        reloads,
        reload_failures,
        reload_successful,
        reload_success,
        refusal,
        workloads,
        repairs,
        guard_repairs,
        guard_in_place: _,
        entries,
        roots,
        returns,
        notice,
        mut problems,
        in_force: _,
        trial,
        warnings,
        complained_of: _,
        examined: _,
    } = status;
    let Constants {
        host,
        enforcement,
        backend: (backend, reason),
        hook,
        policy_dir,
        started,
    } = constants;
    let mode = mode(*enforcement);
    let bypass = match bypass {
        Ok(bypass) => bypassed(&bypass, now),
        Err(why) => {
            problems.push(format!("whether this host is bypassed is not known: {why}"));
            None
        }
    };
    Status {
        agent: Teller::Running,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: *started,
        host: host.clone(),
        enforcing: mode == Mode::Policy && problems.is_empty() && bypass.is_none(),
        mode,
        bypass,
        backend: Backend {
            name: (*backend).to_owned(),
            reason: (*reason).to_owned(),
            hook: (*hook).to_owned(),
        },
        policy: RunningPolicy {
            directory: policy_dir.to_string_lossy().into_owned(),
            source: source.as_str().to_owned(),
            generation,
            hash: hash.map(|hash| hash.to_string()),
            customers: named(&policy),
            exemptions: terms(&policy, now),
        },
        workloads: counts(&workloads),
        cgroup_roots: roots as u64,
        returns: Returns {
            interfaces: returns as u64,
            packets: counters.map(|(_, returns)| fates(returns)),
        },
        reload: Reloads {
            attempts: reloads,
            failures: reload_failures,
            successful: reload_successful,
            last_success: reload_success,
            refusal,
        },
        trial: trial.map(phase),
        repairs,
        guard_repairs,
        tables: tables(&entries),
        connections: counters.map(|(host, _)| host_connections(host)),
        notice: notice.into_iter().map(listener).collect(),
        problems,
        warnings,
    }
}

fn listener(Listener { address, state }: Listener) -> NoticeListener {
    let (listening, error) = match state {
        Listening::Starting => (false, None),
        Listening::Yes => (true, None),
        Listening::No(why) => (false, Some(why)),
    };
    NoticeListener {
        address: address.to_string(),
        listening,
        error,
    }
}

/// The workloads of a host.
pub(super) fn workloads(status: &status::Status, constants: &Constants) -> Workloads {
    let workload = |(id, workload): (&WorkloadId, &WorkloadStatus)| {
        let (kind, number) = identity(*id);
        let WorkloadStatus {
            name,
            claim,
            state: how,
        } = workload;
        Workload {
            kind,
            number,
            name: Some(name.clone()),
            state: state(*how),
            customer: match claim {
                workloads::Claim::Customer(id) => Some(id.clone()),
                workloads::Claim::Unassigned | workloads::Claim::Conflict(_) => None,
            },
            customer_number: number_of(claim.customer()),
            claims: claims(claim),
        }
    };
    Workloads {
        agent: Teller::Running,
        host: constants.host.clone(),
        workloads: status.workloads.iter().map(workload).collect(),
    }
}

fn claims(claim: &workloads::Claim) -> Vec<Claim> {
    let workloads::Claim::Conflict(claims) = claim else {
        return Vec::new();
    };
    let place = |(customer, origin): &(String, Origin)| {
        let Origin { file, line, column } = origin;
        Claim {
            customer: customer.clone(),
            file: escape(&file.to_string_lossy()),
            line: *line,
            column: *column,
        }
    };
    claims.iter().map(place).collect()
}

/// The customers of the running policy; `counters` reads what the kernel counted for one.
pub(super) fn customers<E>(
    status: &status::Status,
    now: Timestamp,
    counters: impl Fn(CustomerId) -> Result<Option<CustomerCounters>, E>,
) -> Result<Customers, E> {
    let mut present: BTreeMap<CustomerId, u64> = BTreeMap::new();
    for workload in status.workloads.values() {
        *present.entry(workload.claim.customer()).or_default() += 1;
    }
    let mut active: BTreeMap<&str, u64> = BTreeMap::new();
    for exemption in &status.policy.exemptions {
        if Term::at(now, exemption.starts, exemption.expires) == Term::Active {
            *active.entry(&exemption.customer).or_default() += 1;
        }
    }
    let mut customers = Vec::new();
    for (number, id) in &status.policy.customers {
        customers.push(Customer {
            id: Some(id.clone()),
            number: number_of(*number),
            workloads: present.get(number).copied().unwrap_or_default(),
            exemptions: active.get(id.as_str()).copied().unwrap_or_default(),
            connections: counters(*number)?.as_ref().map(customer_connections),
        });
    }
    customers.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(Customers {
        agent: Teller::Running,
        customers,
    })
}

/// The exemptions of the running policy.
pub(super) fn exemptions(policy: &PolicyStatus, now: Timestamp) -> Exemptions {
    let exemption = |one: &ExemptionStatus| {
        let ExemptionStatus {
            customer,
            id,
            starts,
            expires,
        } = one;
        Exemption {
            id: Some(id.clone()),
            customer: Some(customer.clone()),
            customer_number: number_of(CustomerId::from_name(customer)),
            state: Term::at(now, *starts, *expires),
            starts: *starts,
            expires: *expires,
        }
    };
    let mut exemptions: Vec<Exemption> = policy.exemptions.iter().map(exemption).collect();
    exemptions.sort_by(|a, b| (&a.customer, &a.id).cmp(&(&b.customer, &b.id)));
    Exemptions {
        agent: Teller::Running,
        exemptions,
    }
}

/// The running set.
pub(super) fn policy(policy: super::RunningPolicy) -> Policy {
    let super::RunningPolicy {
        source,
        generation,
        hash,
        files,
    } = policy;
    Policy {
        source: source.as_str().to_owned(),
        generation,
        hash: hash.map(|hash| hash.to_string()),
        files: files
            .iter()
            .map(|file| File {
                path: file.path.to_string_lossy().into_owned(),
                // A set that runs is UTF-8.
                text: String::from_utf8_lossy(&file.bytes).into_owned(),
            })
            .collect(),
    }
}

/// What became of a reload.
pub(super) fn reload(outcome: ReloadOutcome) -> Reload {
    match outcome {
        ReloadOutcome::Applied {
            generation,
            hash,
            writes,
        } => Reload::Applied {
            generation,
            hash: hash.to_string(),
            writes: writes as u64,
        },
        ReloadOutcome::OnTrial {
            generation,
            hash,
            writes,
            ends,
            base,
        } => Reload::OnTrial {
            generation,
            hash: hash.to_string(),
            writes: writes as u64,
            ends,
            base: base.to_string(),
        },
        ReloadOutcome::WouldApply { hash, writes } => Reload::WouldApply {
            hash: hash.to_string(),
            writes: writes as u64,
        },
        ReloadOutcome::Unchanged => Reload::Unchanged,
        ReloadOutcome::Held { since } => Reload::Held { since },
        ReloadOutcome::Refused {
            message,
            diagnostics,
        } => Reload::Refused {
            message,
            diagnostics: diagnostics.iter().map(diagnostic).collect(),
        },
        ReloadOutcome::Shrunk { message } => Reload::Shrunk { message },
    }
}

/// A bypass that is not over, by the wall clock; none where no clock can be read.
pub(crate) fn bypassed(bypass: &bypass::Bypass, now: Timestamp) -> Option<Bypass> {
    let boot = clock::boot().ok()?.unsigned_abs();
    if !bypass.is_active(boot) {
        return None;
    }
    let at = |moment: u64| {
        let nanoseconds = i128::from(moment) - i128::from(boot);
        let moment = Timestamp::from_nanosecond(now.as_nanosecond() + nanoseconds);
        moment.unwrap_or(Timestamp::MAX)
    };
    Some(Bypass {
        ends: at(bypass.until()),
        since: at(bypass.since()),
        ticket: bypass.ticket().to_owned(),
    })
}

/// Whether what runs is on trial, or was gone back to.
pub(super) fn on_trial(status: &status::Status) -> Option<OnTrial> {
    status.trial.map(phase)
}

fn phase(trial: status::Trial) -> OnTrial {
    match trial {
        status::Trial::Running { ends } => OnTrial::Running { ends },
        status::Trial::Undone { at } => OnTrial::Undone { at },
    }
}

/// What became of a set on trial.
pub(super) fn trial(outcome: TrialOutcome) -> Trial {
    match outcome {
        TrialOutcome::Confirmed => Trial::Confirmed,
        TrialOutcome::Undone { hash } => Trial::Undone {
            hash: hash.to_string(),
        },
        TrialOutcome::WouldConfirm => Trial::WouldConfirm,
        TrialOutcome::WouldUndo { hash, accepted } => Trial::WouldUndo {
            hash: hash.to_string(),
            accepted,
        },
        TrialOutcome::Refused(message) => Trial::Refused { message },
    }
}

fn diagnostic(one: &diagnostic::Diagnostic) -> Diagnostic {
    let diagnostic::Diagnostic {
        severity,
        code,
        message,
        help,
        primary,
        related: _,
    } = one;
    Diagnostic {
        severity: severity.to_string(),
        code: (*code).to_owned(),
        message: message.clone(),
        help: help.clone(),
        file: escape(&primary.file.to_string_lossy()),
        line: primary.position.map(|position| position.line),
        column: primary.position.map(|position| position.column),
        text: render(one, Colour::Never),
    }
}

/// A customer's number as people and files have it.
pub(crate) fn number_of(customer: CustomerId) -> String {
    format!("{:016x}", customer.get())
}

/// Connection attempts of a host by verdict.
pub(crate) fn host_connections(counters: &HostCounters) -> BTreeMap<String, u64> {
    let all = |verdict| {
        let reasons = Reason::ALL.iter().flat_map(|reason| {
            let families = Family::ALL.iter();
            families.map(move |family| counters.connections(verdict, *reason, *family))
        });
        (verdict.as_str().to_owned(), reasons.sum())
    };
    VERDICTS.map(all).into()
}

/// Packets that came back, by what became of them.
fn fates(counters: &ReturnCounters) -> BTreeMap<String, u64> {
    let all = |fate: Fate| (fate.as_str().to_owned(), counters.of(fate));
    Fate::ALL.map(all).into()
}

/// Connection attempts of a customer by verdict.
pub(crate) fn customer_connections(counters: &CustomerCounters) -> BTreeMap<String, u64> {
    let all = |verdict: Verdict| (verdict.as_str().to_owned(), counters.connections(verdict));
    VERDICTS.map(all).into()
}

fn identity(id: WorkloadId) -> (Kind, u64) {
    match id {
        WorkloadId::Interface(index) => (Kind::Interface, u64::from(index)),
        WorkloadId::Cgroup(number) => (Kind::Cgroup, number),
    }
}

fn state(state: status::State) -> State {
    match state {
        status::State::Enforced => State::Enforced,
        status::State::Unassigned => State::Unassigned,
        status::State::Conflict => State::Conflict,
        status::State::Failed => State::Failed,
    }
}

fn mode(enforcement: Enforcement) -> Mode {
    match enforcement {
        Enforcement::Observe => Mode::Observe,
        Enforcement::Policy => Mode::Policy,
    }
}

/// Workloads by kind and state; what there is none of counts 0.
fn counts(
    workloads: &BTreeMap<WorkloadId, WorkloadStatus>,
) -> BTreeMap<Kind, BTreeMap<State, u64>> {
    let none = || State::ALL.map(|state| (state, 0)).into();
    let mut counts: BTreeMap<Kind, BTreeMap<State, u64>> = [Kind::Interface, Kind::Cgroup]
        .map(|kind| (kind, none()))
        .into();
    for (id, workload) in workloads {
        let (kind, _) = identity(*id);
        let states = counts.entry(kind).or_default();
        *states.entry(state(workload.state)).or_default() += 1;
    }
    counts
}

fn tables(entries: &BTreeMap<&'static str, usize>) -> BTreeMap<String, u64> {
    let entries = entries.iter();
    entries
        .map(|(table, entries)| ((*table).to_owned(), *entries as u64))
        .collect()
}

/// Customers, the built-in one not counted.
fn named(policy: &PolicyStatus) -> u64 {
    let numbers = policy.customers.keys();
    numbers
        .filter(|number| **number != CustomerId::UNASSIGNED)
        .count() as u64
}

fn terms(policy: &PolicyStatus, now: Timestamp) -> BTreeMap<Term, u64> {
    let mut terms = BTreeMap::from(Term::ALL.map(|term| (term, 0)));
    for exemption in &policy.exemptions {
        let term = Term::at(now, exemption.starts, exemption.expires);
        *terms.entry(term).or_default() += 1;
    }
    terms
}
