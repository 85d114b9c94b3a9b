//! Who owns an interface on a host.

use std::collections::BTreeMap;

use super::{Origin, Pattern, Policy, Selector, Workload};

/// Who owns a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner<'p> {
    /// One customer, by this pattern; the first in the order of the files where several match.
    Customer(&'p str, &'p Workload),
    /// Nobody: the built-in customer.
    Unassigned,
    /// Several customers, each by a pattern written at the place: the built-in customer's until
    /// somebody decides.
    Conflict(Vec<(&'p str, &'p Origin)>),
}

/// The patterns of a policy that apply on one host, made ready for many names.
#[derive(Debug)]
pub struct Ownership<'p> {
    /// By what a matching name starts with, so that few patterns are tried on each.
    claims: BTreeMap<&'p str, Vec<Claim<'p>>>,
    longest: usize,
}

#[derive(Debug)]
struct Claim<'p> {
    customer: &'p str,
    pattern: &'p Pattern,
    workload: &'p Workload,
}

impl<'p> Ownership<'p> {
    /// Prepares the patterns whose `hosts` match this host.
    #[must_use]
    pub fn new(policy: &'p Policy, host: &str) -> Self {
        let mut claims: BTreeMap<&str, Vec<Claim<'_>>> = BTreeMap::new();
        let mut longest = 0;
        for (customer, owner) in &policy.customers {
            for workload in &owner.workloads {
                let Workload {
                    selector,
                    hosts,
                    origin: _,
                } = workload;
                if !hosts.is_empty() && !hosts.iter().any(|pattern| pattern.matches(host)) {
                    continue;
                }
                let Selector::Interface(pattern) = selector;
                let prefix = pattern.literal_prefix();
                longest = longest.max(prefix.len());
                claims.entry(prefix).or_default().push(Claim {
                    customer,
                    pattern,
                    workload,
                });
            }
        }
        Self { claims, longest }
    }

    /// Who owns the interface of this name.
    #[must_use]
    pub fn of_interface(&self, name: &str) -> Owner<'p> {
        let mut owners: BTreeMap<&'p str, &'p Workload> = BTreeMap::new();
        for end in 0..=name.len().min(self.longest) {
            let Some(claims) = name.get(..end).and_then(|prefix| self.claims.get(prefix)) else {
                continue;
            };
            for claim in claims.iter().filter(|claim| claim.pattern.matches(name)) {
                let first = owners.entry(claim.customer).or_insert(claim.workload);
                if claim.workload.origin < first.origin {
                    *first = claim.workload;
                }
            }
        }
        let mut all = owners.iter();
        match (all.next(), all.next()) {
            (None, _) => Owner::Unassigned,
            (Some((customer, workload)), None) => Owner::Customer(customer, workload),
            (Some(_), Some(_)) => Owner::Conflict(
                owners
                    .into_iter()
                    .map(|(customer, workload)| (customer, &workload.origin))
                    .collect(),
            ),
        }
    }
}
