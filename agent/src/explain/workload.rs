//! What a word of the question is, and whose.

use std::collections::BTreeSet;
use std::path::Path;

use gate25_common::abi::CustomerId;

use super::report::{ClaimStep, Place, RootStep, WorkloadName, WorkloadState, WorkloadStep};
use super::{ExplainError, Host};
use crate::policy::ownership::{Owner, Ownership};
use crate::policy::{Pattern, Policy, Selector, UNASSIGNED, Workload};
use crate::workloads::{Standing, claim_of, standing};
use crate::yaml::read::close;

/// Names that an unknown word is answered with at most.
const MAX_CLOSE: usize = 5;
/// Where cgroup2 is mounted on hosts as they come, longest first: paths that are copied from a
/// shell begin so.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// Whose connection it is; no owner for what is no workload.
pub(super) fn resolve(
    policy: &Policy,
    host: &Host<'_>,
    word: &str,
) -> Result<(Option<WorkloadStep>, Option<CustomerId>), ExplainError> {
    if word == UNASSIGNED {
        return Ok((None, Some(CustomerId::UNASSIGNED)));
    }
    if policy.customers.contains_key(word) {
        return Ok((None, Some(CustomerId::from_name(word))));
    }
    let ownership = Ownership::new(policy, host.name);
    let (step, customer) = match kind(policy, host, word)? {
        Kind::Interface => interface(host, &ownership, word),
        Kind::Cgroup(path) => cgroup(host, &ownership, path),
    };
    Ok((Some(step), customer))
}

enum Kind<'w> {
    Interface,
    Cgroup(&'w str),
}

/// What the word names. No interface has a `/` in its name; without one, what exists or is a
/// workload here comes before what only a pattern of the policy knows.
fn kind<'w>(policy: &Policy, host: &Host<'_>, word: &'w str) -> Result<Kind<'w>, ExplainError> {
    if word.contains('/') {
        let path = below_mount(word);
        return if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            Err(ExplainError::Path(word.to_owned()))
        } else {
            Ok(Kind::Cgroup(path))
        };
    }
    let selectors = || {
        let customers = policy.customers.values();
        let workloads = customers.flat_map(|customer| customer.workloads.iter());
        workloads.map(|workload| &workload.selector)
    };
    let claims_interface = |selector: &Selector| match selector {
        Selector::Interface(pattern) => pattern.matches(word),
        Selector::Cgroup(_) => false,
    };
    let claims_cgroup = |selector: &Selector| match selector {
        Selector::Interface(_) => false,
        Selector::Cgroup(pattern) => pattern.matches(word),
    };
    if standing(&host.settings.interfaces, word) != Standing::Unmatched
        || host.interfaces.contains(word)
    {
        return Ok(Kind::Interface);
    }
    if host.settings.cgroups.root_of(word).is_some() {
        return Ok(Kind::Cgroup(word));
    }
    if selectors().any(claims_interface) {
        return Ok(Kind::Interface);
    }
    if selectors().any(claims_cgroup) {
        return Ok(Kind::Cgroup(word));
    }
    Err(unknown(policy, host, word))
}

/// The path as patterns are written, of one as a shell or `/proc/PID/cgroup` shows it.
fn below_mount(word: &str) -> &str {
    let path = MOUNTS
        .into_iter()
        .filter_map(|mount| word.strip_prefix(mount))
        .find(|path| path.starts_with('/'))
        .unwrap_or(word);
    let path = path.strip_prefix('/').unwrap_or(path);
    path.strip_suffix('/').unwrap_or(path)
}

fn unknown(policy: &Policy, host: &Host<'_>, word: &str) -> ExplainError {
    let ids = policy.customers.keys().map(String::as_str);
    let names = host.interfaces.iter().map(String::as_str);
    let known: BTreeSet<&str> = ids.chain(names).chain([UNASSIGNED]).collect();
    let close = close(word, known.into_iter()).into_iter();
    ExplainError::Unknown {
        word: word.to_owned(),
        close: close.take(MAX_CLOSE).map(str::to_owned).collect(),
    }
}

fn interface(
    host: &Host<'_>,
    ownership: &Ownership<'_>,
    name: &str,
) -> (WorkloadStep, Option<CustomerId>) {
    let (state, customer) = match standing(&host.settings.interfaces, name) {
        Standing::Workload(_) => {
            let owner = ownership.of_interface(name);
            let customer = claim_of(owner.clone()).customer();
            (owner_state(host.directory, owner, None), Some(customer))
        }
        Standing::Ignored(pattern) => {
            let pattern = pattern.to_string();
            (WorkloadState::Ignored { pattern }, None)
        }
        Standing::Unmatched => {
            let patterns = texts(&host.settings.interfaces.matched);
            (WorkloadState::Unmatched { patterns }, None)
        }
    };
    let step = WorkloadStep {
        name: WorkloadName::Interface(name.to_owned()),
        root: None,
        state,
    };
    (step, customer)
}

fn cgroup(
    host: &Host<'_>,
    ownership: &Ownership<'_>,
    path: &str,
) -> (WorkloadStep, Option<CustomerId>) {
    let claim = ownership.nearest_claim(path);
    let claimed = claim.as_ref().map(|(ancestor, _)| *ancestor);
    let owner = claim.map_or(Owner::Unassigned, |(_, owner)| owner);
    let root = host.settings.cgroups.root_of(path);
    let (state, customer) = match root {
        Some(_) => {
            let customer = claim_of(owner.clone()).customer();
            (owner_state(host.directory, owner, claimed), Some(customer))
        }
        None => {
            let state = WorkloadState::OutsideRoots {
                roots: texts(&host.settings.cgroups.roots),
                claims: claims(host.directory, owner),
            };
            (state, None)
        }
    };
    let step = WorkloadStep {
        name: WorkloadName::Cgroup(path.to_owned()),
        root: root.map(|(root, pattern)| RootStep {
            cgroup: root.to_owned(),
            pattern: pattern.to_string(),
        }),
        state,
    };
    (step, customer)
}

fn texts(patterns: &[Pattern]) -> Vec<String> {
    patterns.iter().map(ToString::to_string).collect()
}

fn owner_state(directory: &Path, owner: Owner<'_>, claimed: Option<&str>) -> WorkloadState {
    let claimed = claimed.map(str::to_owned);
    match owner {
        Owner::Customer(customer, workload) => {
            let Workload {
                selector,
                hosts: _,
                origin,
            } = workload;
            let (Selector::Interface(pattern) | Selector::Cgroup(pattern)) = selector;
            WorkloadState::Customer {
                customer: customer.to_owned(),
                pattern: pattern.to_string(),
                claimed,
                place: Place::new(directory, origin),
            }
        }
        Owner::Unassigned => WorkloadState::Unassigned,
        Owner::Conflict(_) => WorkloadState::Conflict {
            claims: claims(directory, owner),
            claimed,
        },
    }
}

fn claims(directory: &Path, owner: Owner<'_>) -> Vec<ClaimStep> {
    let claims = match owner {
        Owner::Customer(customer, workload) => vec![(customer, &workload.origin)],
        Owner::Unassigned => Vec::new(),
        Owner::Conflict(claims) => claims,
    };
    let claims = claims.into_iter().map(|(customer, origin)| ClaimStep {
        customer: customer.to_owned(),
        place: Place::new(directory, origin),
    });
    claims.collect()
}
