//! Which interfaces are workloads, and whose. Pure.

use std::collections::BTreeMap;

use gate25_common::abi::CustomerId;

use crate::kernel::links::{Interface, Kind};
use crate::policy::ownership::{Owner, Ownership};
use crate::policy::{Origin, Policy};
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
        .filter(|(_, interface)| is_workload(interfaces, &interface.name))
        .map(|(index, interface)| {
            let claim = match &ownership {
                Some(ownership) => claim(ownership.of_interface(&interface.name)),
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

fn is_workload(interfaces: &Interfaces, name: &str) -> bool {
    let Interfaces { matched, ignored } = interfaces;
    matched.iter().any(|pattern| pattern.matches(name))
        && !ignored.iter().any(|pattern| pattern.matches(name))
}

fn claim(owner: Owner<'_>) -> Claim {
    match owner {
        Owner::Customer(id, _) => Claim::Customer(id.to_owned()),
        Owner::Unassigned => Claim::Unassigned,
        Owner::Conflict(claims) => Claim::Conflict(
            claims
                .into_iter()
                .map(|(id, origin)| (id.to_owned(), origin.clone()))
                .collect(),
        ),
    }
}
