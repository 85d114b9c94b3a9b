//! Which interfaces and control groups are workloads, and whose. Pure.

mod containers;
mod veths;

use std::cell::LazyCell;
use std::collections::BTreeMap;

use gate25_common::abi::{Counting, CustomerId, InterfaceOwner};

use crate::kernel::cgroups::{Cgroup, Role};
use crate::kernel::links::{Interface, Kind};
use crate::policy::ownership::{self, Owner, Ownership};
use crate::policy::{Origin, Pattern, Policy};
use crate::settings::Interfaces;
use crate::workloads::containers::Containers;
use crate::workloads::veths::Behind;

pub use veths::{Inside, Unread, Veths};

/// What the kernel calls a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkloadId {
    /// Index of the interface.
    Interface(u32),
    /// Number of the control group.
    Cgroup(u64),
}

impl WorkloadId {
    /// The index, if it is an interface.
    pub const fn interface(self) -> Option<u32> {
        match self {
            Self::Interface(index) => Some(index),
            Self::Cgroup(_) => None,
        }
    }

    /// The word for its kind in metrics.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Interface(_) => "interface",
            Self::Cgroup(_) => "cgroup",
        }
    }
}

/// What there is on the host.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Control groups at and below the roots, by number.
    pub cgroups: BTreeMap<u64, Cgroup>,
    /// Which of them are at the other ends of veths.
    pub veths: Veths,
}

impl Inventory {
    /// The control groups that carry the programs for all below them.
    pub fn roots(&self) -> impl Iterator<Item = &Cgroup> {
        self.cgroups
            .values()
            .filter(|cgroup| cgroup.role == Role::Root)
    }

    /// Takes note of an interface that is gone: the next one with its index is another.
    pub fn interface_gone(&mut self, index: u32) {
        self.interfaces.remove(&index);
        self.veths.gone(index);
    }

    /// Takes note of the network namespaces that control groups have processes in, as
    /// [`Veths::looked`] does.
    #[must_use]
    pub fn looked(
        &mut self,
        mut inside: Inside,
        unread: &Unread,
        installed: &BTreeMap<u32, InterfaceOwner>,
    ) -> bool {
        // Some may have gone since the look began.
        for ids in inside.values_mut() {
            ids.retain(|id| self.cgroups.contains_key(id));
        }
        inside.retain(|_, ids| !ids.is_empty());
        self.veths
            .looked(self.interfaces.values(), inside, unread, installed)
    }

    /// Takes note of a control group that is gone.
    pub fn cgroup_gone(&mut self, id: u64) {
        self.cgroups.remove(&id);
        self.veths.forget_all_but(|other| other != id);
    }

    /// Forgets where control groups were that there are not any more.
    pub fn forget_gone(&mut self) {
        self.veths
            .forget_all_but(|id| self.cgroups.contains_key(&id));
    }
}

/// What the host's settings say.
#[derive(Debug, Clone)]
pub struct Host {
    /// The name that `hosts:` is matched against.
    pub name: String,
    /// Which interfaces are workloads.
    pub interfaces: Interfaces,
    /// Which control groups' descendants are workloads.
    pub roots: Vec<Pattern>,
}

/// All workloads.
#[derive(Debug, Clone, Default)]
pub struct Workloads {
    /// Interfaces by index.
    pub interfaces: BTreeMap<u32, InterfaceWorkload>,
    /// Control groups by number.
    pub cgroups: BTreeMap<u64, CgroupWorkload>,
    /// Owners of the control groups that somebody claims; those below belong to the same.
    pub claims: BTreeMap<u64, CustomerId>,
}

/// An interface that is a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceWorkload {
    /// The interface's name.
    pub name: String,
    /// Whose it is.
    pub claim: Claim,
    /// Whether the program can read what leaves it.
    pub framing: Framing,
    /// What is counted here: a container's packets have been counted at its control group.
    pub counting: Counting,
}

/// A control group that is a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupWorkload {
    /// Its path below the mount.
    pub name: String,
    /// Whose it is.
    pub claim: Claim,
    /// The root that it lies below, or is.
    pub root: u64,
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

/// Customers that claim a workload, each by a pattern written at the place.
type Claimants<'p> = BTreeMap<&'p str, &'p Origin>;

/// The workloads of `inventory`. A veth that is a container's by what is `installed` stays its
/// owner's until others are found at the other end, somebody else claims the interface, or he claims no
/// control group on the host any more: to send through it, a container needs no process in that
/// namespace, only a socket from there. One that leads to a namespace by a number that
/// was a container's is judged until a look has told whose it is.
pub fn resolve(
    inventory: &Inventory,
    host: &Host,
    policy: Option<&Policy>,
    installed: &BTreeMap<u32, InterfaceOwner>,
) -> Workloads {
    let ownership = policy.map(|policy| Ownership::new(policy, &host.name));
    let containers = Containers::resolve(&inventory.cgroups, &host.roots, ownership.as_ref());
    let customers = LazyCell::new(|| cgroup_customers(policy, &host.name));
    let interfaces = inventory
        .interfaces
        .values()
        .filter_map(|interface| {
            let behind = if host.roots.is_empty() {
                Behind::Nobody
            } else {
                let installed = installed.get(&interface.index);
                inventory.veths.behind(interface, installed)
            };
            match (standing(&host.interfaces, &interface.name), &behind) {
                (Standing::Ignored(_), _) | (Standing::Unmatched, Behind::Nobody) => return None,
                (Standing::Workload(_) | Standing::Unmatched, _) => {}
            }
            let mut claimants = ownership.as_ref().map_or_else(Claimants::new, |ownership| {
                claimants(ownership.of_interface(&interface.name))
            });
            let (claim, counting) = match behind {
                Behind::Nobody | Behind::Somebody => (claimants.into(), Counting::All),
                Behind::Containers(cgroups) => {
                    for id in cgroups {
                        claimants.extend(containers.claimants(*id));
                    }
                    (claimants.into(), Counting::Refused)
                }
                Behind::Hidden => (claimants.into(), Counting::Refused),
                Behind::Left(owner) => {
                    let claim = claim_left(owner, &claimants, &customers);
                    (claim, Counting::Refused)
                }
            };
            let workload = interface_workload(interface, claim, counting);
            Some((interface.index, workload))
        })
        .collect();
    Workloads {
        interfaces,
        claims: containers.claims(),
        cgroups: containers.into_workloads(),
    }
}

fn interface_workload(
    interface: &Interface,
    claim: Claim,
    counting: Counting,
) -> InterfaceWorkload {
    InterfaceWorkload {
        name: interface.name.clone(),
        claim,
        framing: match interface.kind {
            Kind::Tun => Framing::Ip,
            Kind::Tap | Kind::Veth { .. } | Kind::Bridge | Kind::Other => Framing::Ethernet,
        },
        counting,
    }
}

/// Customers whom a container may belong to, by what the tables call them.
fn cgroup_customers<'p>(policy: Option<&'p Policy>, host: &str) -> BTreeMap<CustomerId, &'p str> {
    let ids = policy
        .into_iter()
        .flat_map(|policy| ownership::cgroup_customers(policy, host));
    ids.map(|id| (CustomerId::from_name(id), id)).collect()
}

/// The claim of the owner that the tables name, who can lose it and nobody gain it: it is his for as long as
/// some container may be, and nobody else claims the interface.
fn claim_left(
    owner: CustomerId,
    claimants: &Claimants<'_>,
    customers: &BTreeMap<CustomerId, &str>,
) -> Claim {
    let mut others = claimants.keys().copied();
    let left = match (others.next(), others.next()) {
        (None, _) => customers.get(&owner).copied(),
        (Some(id), None) if CustomerId::from_name(id) == owner => Some(id),
        (Some(_), _) => None,
    };
    left.map_or(Claim::Unassigned, |id| Claim::Customer(id.to_owned()))
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

/// Whose a workload is that `owner` owns.
pub fn claim_of(owner: Owner<'_>) -> Claim {
    claimants(owner).into()
}

fn claimants(owner: Owner<'_>) -> Claimants<'_> {
    match owner {
        Owner::Customer(id, workload) => Claimants::from([(id, &workload.origin)]),
        Owner::Unassigned => Claimants::new(),
        Owner::Conflict(claims) => claims.into_iter().collect(),
    }
}

impl From<Claimants<'_>> for Claim {
    fn from(claimants: Claimants<'_>) -> Self {
        let mut all = claimants.iter();
        match (all.next(), all.next()) {
            (None, _) => Self::Unassigned,
            (Some((id, _)), None) => Self::Customer((*id).to_owned()),
            (Some(_), Some(_)) => Self::Conflict(
                claimants
                    .into_iter()
                    .map(|(id, origin)| (id.to_owned(), origin.clone()))
                    .collect(),
            ),
        }
    }
}
