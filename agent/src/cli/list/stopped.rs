//! Lists out of what a stopped agent left in the kernel. Names come from the policy's files, where
//! they can be read: the kernel knows numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gate25_common::abi::{self, CustomerId};
use jiff::Timestamp;

use crate::cli::console::Surroundings;
use crate::cli::files;
use crate::clock::Offset;
use crate::control::messages::{
    Customer, Customers, Exemption, Exemptions, Kind, State, Teller, Term, Workload, Workloads,
};
use crate::control::{customer_connections, number_of};
use crate::kernel::bpf::leftover::{Contents, Leftover, LeftoverError};
use crate::kernel::bpf::place::{CgroupHook, Place};
use crate::kernel::links;
use crate::policy::loader::{Circumstances, Purpose};
use crate::policy::{Policy, UNASSIGNED};
use crate::settings::Settings;

/// How far a deadline in the kernel may be off the one in the files, in milliseconds.
const TOLERANCE: i64 = 1000;

/// A host whose agent is stopped.
pub(super) struct Stopped<'a> {
    leftover: Leftover,
    policy: Policy,
    names: BTreeMap<CustomerId, String>,
    host: &'a str,
    now: Timestamp,
}

impl<'a> Stopped<'a> {
    pub(super) fn new(
        filesystem: &Path,
        settings: &'a Settings,
        surroundings: &Surroundings<'a>,
    ) -> Self {
        let circumstances = Circumstances {
            purpose: Purpose::Run,
            now: surroundings.now,
            customer_key: |id| CustomerId::from_name(id).get(),
        };
        // Without files, or with invalid ones, there are numbers only.
        let set = files::policy(&settings.policy_dir, &circumstances);
        let policy = set.policy.unwrap_or_default();
        let mut names: BTreeMap<CustomerId, String> = policy
            .customers
            .keys()
            .map(|id| (CustomerId::from_name(id), id.clone()))
            .collect();
        names.insert(CustomerId::UNASSIGNED, UNASSIGNED.to_owned());
        Self {
            leftover: Leftover::at(filesystem),
            policy,
            names,
            host: settings.host.as_deref().unwrap_or(surroundings.hostname),
            now: surroundings.now,
        }
    }

    pub(super) fn workloads(&self) -> Result<Option<Workloads>, LeftoverError> {
        let Some(contents) = self.leftover.contents()? else {
            return Ok(None);
        };
        let covered = self.covered()?;
        let interfaces: BTreeMap<u32, String> = links::snapshot()?
            .into_iter()
            .map(|interface| (interface.index, interface.name))
            .collect();
        let Contents {
            interfaces: owners,
            cgroups,
            customers: _,
        } = contents;
        let on_interfaces = owners.into_iter().map(|(index, owner)| {
            let name = interfaces.get(&index).cloned();
            self.workload(Place::Interface(index), name, owner, &covered)
        });
        // Cgroups have their program from a root above them, as long as any has one.
        let in_cgroups = cgroups.into_iter().map(|(id, owner)| {
            self.workload(Place::Cgroup(id, CgroupHook::Egress), None, owner, &covered)
        });
        Ok(Some(Workloads {
            agent: Teller::Stopped,
            host: self.host.to_owned(),
            workloads: on_interfaces.chain(in_cgroups).collect(),
        }))
    }

    fn workload(
        &self,
        place: Place,
        name: Option<String>,
        owner: CustomerId,
        covered: &BTreeSet<Place>,
    ) -> Workload {
        let (kind, number, is_covered) = match place {
            Place::Interface(index) | Place::Replies(index) => {
                let is_covered = covered.contains(&place);
                (Kind::Interface, u64::from(index), is_covered)
            }
            Place::Cgroup(id, hook) => {
                let by_root = |one: &Place| matches!(one, Place::Cgroup(_, it) if *it == hook);
                (Kind::Cgroup, id, covered.iter().any(by_root))
            }
        };
        let state = match (is_covered, owner) {
            (false, _) => State::Failed,
            (true, CustomerId::UNASSIGNED) => State::Unassigned,
            (true, _) => State::Enforced,
        };
        let customer = match owner {
            CustomerId::UNASSIGNED => None,
            owner => self.names.get(&owner).cloned(),
        };
        Workload {
            kind,
            number,
            name,
            state,
            customer,
            customer_number: number_of(owner),
            claims: Vec::new(),
        }
    }

    /// Where programs are in place.
    fn covered(&self) -> Result<BTreeSet<Place>, LeftoverError> {
        let filtered = Leftover::filtered()?;
        let links = self.leftover.links()?;
        Ok(filtered
            .into_iter()
            .map(|interface| Place::Interface(interface.index))
            .chain(links)
            .collect())
    }

    pub(super) fn customers(&self) -> Result<Option<Customers>, LeftoverError> {
        let Some(contents) = self.leftover.contents()? else {
            return Ok(None);
        };
        let Contents {
            interfaces,
            cgroups,
            customers,
        } = contents;
        let mut present: BTreeMap<CustomerId, u64> = BTreeMap::new();
        for owner in interfaces.values().chain(cgroups.values()) {
            *present.entry(*owner).or_default() += 1;
        }
        let counters = self.leftover.customers(customers.keys().copied())?;
        let now = boot_now();
        let mut customers: Vec<Customer> = customers
            .iter()
            .map(|(number, policy)| Customer {
                id: self.names.get(number).cloned(),
                number: number_of(*number),
                workloads: present.get(number).copied().unwrap_or_default(),
                exemptions: slots(policy)
                    .filter(|exemption| now.is_some_and(|now| exemption.active(now)))
                    .count() as u64,
                connections: counters.get(number).map(customer_connections),
            })
            .collect();
        customers.sort_by(|a, b| (&a.id, &a.number).cmp(&(&b.id, &b.number)));
        Ok(Some(Customers {
            agent: Teller::Stopped,
            customers,
        }))
    }

    pub(super) fn exemptions(&self) -> Result<Option<Exemptions>, LeftoverError> {
        let Some(contents) = self.leftover.contents()? else {
            return Ok(None);
        };
        let offset = Offset::sample()?;
        let mut exemptions: Vec<Exemption> = contents
            .customers
            .iter()
            .flat_map(|(number, policy)| slots(policy).map(|exemption| (*number, exemption)))
            .map(|(number, exemption)| self.exemption(number, exemption, offset))
            .collect();
        exemptions.sort_by(|a, b| {
            let key = |one: &Exemption| (one.customer.clone(), one.id.clone(), one.expires);
            key(a).cmp(&key(b))
        });
        Ok(Some(Exemptions {
            agent: Teller::Stopped,
            exemptions,
        }))
    }

    fn exemption(
        &self,
        number: CustomerId,
        exemption: &abi::Exemption,
        offset: Offset,
    ) -> Exemption {
        // 0 stands for a start before boot.
        let starts = (exemption.starts() > 0).then(|| wall(exemption.starts(), offset));
        let expires = wall(exemption.expires(), offset);
        let customer = self.names.get(&number).cloned();
        let mut ids = self.policy.exemptions.iter().filter(|(_, written)| {
            let off = written.expires.as_millisecond() - expires.as_millisecond();
            Some(&written.customer) == customer.as_ref() && off.abs() <= TOLERANCE
        });
        // Two that end at the same time cannot be told apart.
        let id = match (ids.next(), ids.next()) {
            (Some((id, written)), None) => Some((id.clone(), written)),
            _ => None,
        };
        Exemption {
            state: Term::at(self.now, starts, expires),
            // As written, where that is known: the kernel's clocks drift.
            starts: id.as_ref().map_or(starts, |(_, written)| written.starts),
            expires: id.as_ref().map_or(expires, |(_, written)| written.expires),
            id: id.map(|(id, _)| id),
            customer,
            customer_number: number_of(number),
        }
    }
}

fn slots(policy: &abi::CustomerPolicy) -> impl Iterator<Item = &abi::Exemption> {
    (0..abi::MAX_EXEMPTIONS).map_while(|slot| policy.exemption(slot))
}

fn boot_now() -> Option<u64> {
    u64::try_from(crate::clock::boot().ok()?).ok()
}

/// The time that the wall clock shows at a time since boot.
fn wall(boot: u64, offset: Offset) -> Timestamp {
    let nanoseconds = i128::from(boot) + i128::from(offset.nanoseconds());
    Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::MAX)
}
