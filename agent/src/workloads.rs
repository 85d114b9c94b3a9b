//! Which interfaces are workloads, and whose. Pure.

use std::collections::BTreeMap;

use gate25_common::abi::CustomerId;

use crate::kernel::links::{Interface, Kind};
use crate::policy::ownership::{Owner, Ownership};
use crate::policy::{Origin, Pattern, Policy};
use crate::settings::Interfaces;

/// An interface that is a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The interface's name.
    pub name: String,
    /// Whose it is.
    pub claim: Claim,
    /// Whether the program can read what leaves it.
    pub framing: Framing,
}

/// Whose a workload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// This customer's, by its id in the policy.
    Customer(String),
    /// Nobody's.
    Unassigned,
    /// Several customers': nobody's until somebody decides. Ids and where each claims it.
    Conflict(Vec<(String, Origin)>),
}

impl Claim {
    /// The owner in the kernel's tables.
    pub fn customer(&self) -> CustomerId {
        match self {
            Self::Customer(id) => CustomerId::from_name(id),
            Self::Unassigned | Self::Conflict(_) => CustomerId::UNASSIGNED,
        }
    }
}

/// Whether an interface is a workload, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'s> {
    /// It is, by this pattern of `interfaces.match`.
    Workload(&'s Pattern),
    /// It would be, but for this pattern of `interfaces.ignore`.
    Ignored(&'s Pattern),
    /// It is none: no pattern of `interfaces.match` matches.
    Unmatched,
}

/// What packets begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// An Ethernet header.
    Ethernet,
    /// An IP header, which the program does not read.
    Ip,
}

/// The workloads among `inventory`.
pub fn resolve(
    inventory: &BTreeMap<u32, Interface>,
    interfaces: &Interfaces,
    policy: Option<&Policy>,
    host: &str,
) -> BTreeMap<u32, Workload> {
    let ownership = policy.map(|policy| Ownership::new(policy, host));
    inventory
        .iter()
        .filter(
            |(_, interface)| match standing(interfaces, &interface.name) {
                Standing::Workload(_) => true,
                Standing::Ignored(_) | Standing::Unmatched => false,
            },
        )
        .map(|(index, interface)| {
            let claim = match &ownership {
                Some(ownership) => ownership.of_interface(&interface.name).into(),
                None => Claim::Unassigned,
            };
            let framing = match interface.kind {
                Kind::Tun => Framing::Ip,
                Kind::Tap | Kind::Veth { .. } | Kind::Bridge | Kind::Other => Framing::Ethernet,
            };
            (
                *index,
                Workload {
                    name: interface.name.clone(),
                    claim,
                    framing,
                },
            )
        })
        .collect()
}

/// Whether an interface of this name is a workload, and what says so.
pub fn standing<'s>(interfaces: &'s Interfaces, name: &str) -> Standing<'s> {
    let Interfaces { matched, ignored } = interfaces;
    let first = |patterns: &'s [Pattern]| patterns.iter().find(|pattern| pattern.matches(name));
    match (first(matched), first(ignored)) {
        (None, _) => Standing::Unmatched,
        (Some(_), Some(pattern)) => Standing::Ignored(pattern),
        (Some(pattern), None) => Standing::Workload(pattern),
    }
}

impl From<Owner<'_>> for Claim {
    fn from(owner: Owner<'_>) -> Self {
        match owner {
            Owner::Customer(id, _) => Self::Customer(id.to_owned()),
            Owner::Unassigned => Self::Unassigned,
            Owner::Conflict(claims) => Self::Conflict(
                claims
                    .into_iter()
                    .map(|(id, origin)| (id.to_owned(), origin.clone()))
                    .collect(),
            ),
        }
    }
}
