//! Customers whose patterns can claim the same interface on the same host.

use std::collections::{BTreeMap, BTreeSet};

use super::{Customer, Origin, Pattern, Selector, Workload};
use crate::diagnostic::{Diagnostic, Location, Position, Problems, quoted};

/// Longest name of a network interface in bytes.
const MAX_INTERFACE: usize = 15;

/// Reports every pair of customers that can claim the same interface, once for each pair.
///
/// Two patterns can only meet where what one starts with begins what the other starts with: in the
/// order of those beginnings, the candidates of a pattern are a short stack.
pub(super) fn find(customers: &BTreeMap<String, Customer>, problems: &mut Problems) {
    let mut claims: Vec<Claim<'_>> = customers
        .iter()
        .flat_map(|(id, customer)| {
            customer
                .workloads
                .iter()
                .map(move |workload| (id, workload))
        })
        .map(|(id, workload)| claim(id, workload))
        .collect();
    claims.sort_by_key(|claim| (claim.prefix, &claim.workload.origin));

    let mut reported = BTreeSet::new();
    let mut stack: Vec<&Claim<'_>> = Vec::new();
    for claim in &claims {
        while stack
            .last()
            .is_some_and(|below| !claim.prefix.starts_with(below.prefix))
        {
            stack.pop();
        }
        for other in &stack {
            if other.customer != claim.customer
                && meets(other, claim)
                && reported.insert(ordered(other.customer, claim.customer))
            {
                problems.push(conflict(other, claim));
            }
        }
        stack.push(claim);
    }
}

#[derive(Clone, Copy)]
struct Claim<'p> {
    customer: &'p str,
    pattern: &'p Pattern,
    prefix: &'p str,
    workload: &'p Workload,
}

fn claim<'p>(customer: &'p str, workload: &'p Workload) -> Claim<'p> {
    let Selector::Interface(pattern) = &workload.selector;
    Claim {
        customer,
        pattern,
        prefix: pattern.literal_prefix(),
        workload,
    }
}

fn ordered<'p>(a: &'p str, b: &'p str) -> (&'p str, &'p str) {
    if a < b { (a, b) } else { (b, a) }
}

fn meets(a: &Claim<'_>, b: &Claim<'_>) -> bool {
    a.pattern
        .shortest_common(b.pattern)
        .is_some_and(|shortest| shortest <= MAX_INTERFACE)
        && hosts_meet(&a.workload.hosts, &b.workload.hosts)
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
        "{} of customer {} and {} of customer {} can match the same interface",
        quoted(second.pattern.as_str()),
        quoted(second.customer),
        quoted(first.pattern.as_str()),
        quoted(first.customer),
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
