//! Customers whose patterns can claim the same interface or cgroup on the same host.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{Customer, MAX_CGROUP_COMPONENT, Origin, Pattern, Selector, Workload};
use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};

/// Longest name of a network interface in bytes.
const MAX_INTERFACE: usize = 15;

/// Conflicts reported of one pattern: where every customer claims everything, the pairs are too
/// many to list.
const MAX_REPORTED: usize = 8;

/// Reports the patterns of different customers that can claim the same interface, or exactly the
/// same cgroup: of two that claim a cgroup and one below it, the deeper wins.
pub(super) fn find(customers: &BTreeMap<String, Customer>, problems: &mut Problems) {
    let mut alike: BTreeMap<(Kind, usize), Vec<Claim<'_>>> = BTreeMap::new();
    for (id, customer) in customers {
        for workload in customer.workloads.iter() {
            let claim = claim(id, workload);
            let depth = claim.pattern.components();
            alike.entry((claim.kind, depth)).or_default().push(claim);
        }
    }
    for ((_, depth), claims) in alike {
        compare(claims, depth, problems);
    }
}

/// Compares patterns of one kind and number of components.
///
/// Two patterns can only meet where what one's component begins with begins what the other's begins
/// with, and likewise at their ends: only such pairs are compared, by the component that tells most
/// of them apart.
fn compare(mut claims: Vec<Claim<'_>>, depth: usize, problems: &mut Problems) {
    let distinct = |at: usize| {
        let components = claims
            .iter()
            .map(|claim| ends(component(claim.pattern, at)));
        components.collect::<BTreeSet<_>>().len()
    };
    let telling = (0..depth)
        .max_by_key(|at| distinct(*at))
        .unwrap_or_default();
    for claim in &mut claims {
        let (prefix, suffix) = ends(component(claim.pattern, telling));
        claim.prefix = prefix;
        claim.suffix = suffix.bytes().rev().collect();
    }
    // Shorter beginnings come before those they begin.
    claims.sort_by_key(|claim| (claim.prefix, &claim.workload.origin));

    // The groups whose beginning begins the current claim's, shortest first.
    let mut groups: Vec<(&str, Group<'_>)> = Vec::new();
    for claim in &claims {
        while groups
            .last()
            .is_some_and(|(prefix, _)| !claim.prefix.starts_with(prefix))
        {
            groups.pop();
        }
        groups
            .iter()
            .flat_map(|(_, group)| candidates(group, &claim.suffix))
            .filter(|other| other.customer != claim.customer && meets(other, claim))
            .take(MAX_REPORTED)
            .for_each(|other| problems.push(conflict(other, claim)));
        if groups
            .last()
            .is_none_or(|(prefix, _)| *prefix != claim.prefix)
        {
            groups.push((claim.prefix, Group::new()));
        }
        if let Some((_, group)) = groups.last_mut() {
            group.entry(&claim.suffix).or_default().push(claim);
        }
    }
}

/// Claims that begin alike, by what they end with.
type Group<'c> = BTreeMap<&'c [u8], Vec<&'c Claim<'c>>>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Interface,
    Cgroup,
}

struct Claim<'p> {
    kind: Kind,
    customer: &'p str,
    pattern: &'p Pattern,
    /// What every matching name's telling component starts with.
    prefix: &'p str,
    /// What it ends with, backwards.
    suffix: Vec<u8>,
    workload: &'p Workload,
}

fn claim<'p>(customer: &'p str, workload: &'p Workload) -> Claim<'p> {
    let (kind, pattern) = match &workload.selector {
        Selector::Interface(pattern) => (Kind::Interface, pattern),
        Selector::Cgroup(pattern) => (Kind::Cgroup, pattern),
    };
    Claim {
        kind,
        customer,
        pattern,
        prefix: "",
        suffix: Vec::new(),
        workload,
    }
}

fn component(pattern: &Pattern, at: usize) -> &str {
    pattern.as_str().split('/').nth(at).unwrap_or_default()
}

/// What every name that the component matches starts and ends with.
fn ends(component: &str) -> (&str, &str) {
    let start = component.split(['*', '?']).next().unwrap_or_default();
    let end = component.rsplit(['*', '?']).next().unwrap_or_default();
    (start, end)
}

/// The claims of a group whose end is an end of this one's, or the other way round.
fn candidates<'g, 'c>(
    group: &'g Group<'c>,
    suffix: &'g [u8],
) -> impl Iterator<Item = &'c Claim<'c>> + 'g {
    let shorter = (0..suffix.len())
        .filter_map(|end| suffix.get(..end))
        .filter_map(|end| group.get(end));
    let longer = group
        .range::<[u8], _>((Bound::Included(suffix), Bound::Unbounded))
        .take_while(move |(end, _)| end.starts_with(suffix))
        .map(|(_, claims)| claims);
    shorter.chain(longer).flatten().copied()
}

fn meets(a: &Claim<'_>, b: &Claim<'_>) -> bool {
    names_meet(a, b) && hosts_meet(&a.workload.hosts, &b.workload.hosts)
}

fn names_meet(a: &Claim<'_>, b: &Claim<'_>) -> bool {
    match a.kind {
        Kind::Interface => a
            .pattern
            .shortest_common(b.pattern)
            .is_some_and(|shortest| shortest <= MAX_INTERFACE),
        Kind::Cgroup => {
            a.pattern.components() == b.pattern.components()
                && a.pattern
                    .as_str()
                    .split('/')
                    .zip(b.pattern.as_str().split('/'))
                    .all(|(a, b)| component_meets(a, b))
        }
    }
}

fn component_meets(a: &str, b: &str) -> bool {
    // Most components are words, the same ones.
    a == b
        || Pattern::new(a)
            .shortest_common(&Pattern::new(b))
            .is_some_and(|shortest| shortest <= MAX_CGROUP_COMPONENT)
}

fn hosts_meet(a: &[Pattern], b: &[Pattern]) -> bool {
    a.is_empty()
        || b.is_empty()
        || a.iter()
            .any(|a| b.iter().any(|b| a.shortest_common(b).is_some()))
}

fn conflict(a: &Claim<'_>, b: &Claim<'_>) -> Diagnostic {
    let (first, second) = if a.workload.origin <= b.workload.origin {
        (a, b)
    } else {
        (b, a)
    };
    let message = format!(
        "{} of customer {} and {} of customer {} can match the same {}",
        quoted(second.pattern.as_str()),
        quoted(second.customer),
        quoted(first.pattern.as_str()),
        quoted(first.customer),
        match a.kind {
            Kind::Interface => "interface",
            Kind::Cgroup => "cgroup",
        },
    );
    Diagnostic::error("workload-conflict", location(second), message)
        .help("make the patterns or their `hosts` exclude each other")
        .related(
            location(first),
            format!("claimed for {} here", quoted(first.customer)),
        )
}

fn location(claim: &Claim<'_>) -> Location {
    let Origin { file, line, column } = &claim.workload.origin;
    let width = u32::try_from(claim.pattern.as_str().chars().count()).unwrap_or(u32::MAX);
    Location::at(
        file,
        Position {
            line: *line,
            column: *column,
            width,
        },
    )
}
