//! Whose the control groups are.

use std::collections::BTreeMap;
use std::path::Path;

use gate25_common::abi::CustomerId;

use super::{CgroupWorkload, Claim, Claimants, claimants};
use crate::kernel::cgroups::{Cgroup, Role};
use crate::policy::Pattern;
use crate::policy::ownership::{Owner, Ownership};

/// The control groups at and below the roots.
pub(super) struct Containers<'p> {
    groups: BTreeMap<u64, Group<'p>>,
}

struct Group<'p> {
    path: String,
    root: u64,
    /// By patterns that match this very group.
    own: Option<Claimants<'p>>,
    /// By the deepest pattern that matches it or one above it.
    claimants: Option<Claimants<'p>>,
    extent: Extent,
}

/// Whether a control group is a container, as far as its place tells.
#[derive(PartialEq, Eq)]
enum Extent {
    /// It has none below that are followed, so it is somebody's container.
    Leaf,
    /// It holds others, or is there to hold others.
    Folder,
}

impl<'p> Containers<'p> {
    pub(super) fn resolve(
        cgroups: &BTreeMap<u64, Cgroup>,
        roots: &[Pattern],
        ownership: Option<&Ownership<'p>>,
    ) -> Self {
        let mut sorted: Vec<&Cgroup> = cgroups.values().collect();
        // What is above comes before what is below.
        sorted.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        let mut groups: BTreeMap<u64, Group<'p>> = BTreeMap::new();
        let mut above: Vec<(&Path, u64)> = Vec::new();
        for cgroup in sorted {
            while above
                .pop_if(|(path, _)| !cgroup.path.starts_with(path))
                .is_some()
            {}
            let parent = match cgroup.role {
                Role::Root => None,
                Role::Below => above.last().and_then(|(_, id)| groups.get_mut(id)),
            };
            let group = group(cgroup, parent, roots, ownership);
            groups.insert(cgroup.id, group);
            above.push((&cgroup.path, cgroup.id));
        }
        Self { groups }
    }

    /// Who claims the control group of this number, itself or with one above it.
    pub(super) fn claimants(&self, id: u64) -> Claimants<'p> {
        self.groups
            .get(&id)
            .and_then(|group| group.claimants.clone())
            .unwrap_or_default()
    }

    pub(super) fn claims(&self) -> BTreeMap<u64, CustomerId> {
        self.groups
            .iter()
            .filter_map(|(id, group)| Some((*id, Claim::from(group.own.clone()?).customer())))
            .collect()
    }

    /// Those that somebody claims, and those that may be containers and that nobody claims.
    pub(super) fn into_workloads(self) -> BTreeMap<u64, CgroupWorkload> {
        self.groups
            .into_iter()
            .filter_map(|(id, group)| {
                let Group {
                    path,
                    root,
                    own,
                    claimants,
                    extent,
                } = group;
                let claim = match (own, claimants, extent) {
                    (Some(own), _, _) => own.into(),
                    (None, None, Extent::Leaf) => Claim::Unassigned,
                    (None, Some(_), _) | (None, None, Extent::Folder) => return None,
                };
                let name = path;
                Some((id, CgroupWorkload { name, claim, root }))
            })
            .collect()
    }
}

fn group<'p>(
    cgroup: &Cgroup,
    parent: Option<&mut Group<'p>>,
    roots: &[Pattern],
    ownership: Option<&Ownership<'p>>,
) -> Group<'p> {
    let name = cgroup.path.to_str();
    // A name that is not text matches no pattern.
    let own = ownership
        .zip(name)
        .and_then(|(ownership, name)| match cgroup.role {
            // What is above a root has no entry of its own: the root stands in for it.
            Role::Root => match ownership.of_cgroup(name) {
                Owner::Unassigned => None,
                owner @ (Owner::Customer(..) | Owner::Conflict(_)) => Some(owner),
            },
            Role::Below => ownership.claim_of_cgroup(name),
        })
        .map(claimants);
    let inherited = parent.as_ref().and_then(|parent| parent.claimants.clone());
    let root = parent.as_ref().map_or(cgroup.id, |parent| parent.root);
    if let Some(parent) = parent {
        parent.extent = Extent::Folder;
    }
    let is_named_root = roots.iter().any(|root| Some(root.as_str()) == name);
    Group {
        path: cgroup.path.to_string_lossy().into_owned(),
        root,
        claimants: own.clone().or(inherited),
        own,
        extent: if is_named_root {
            Extent::Folder
        } else {
            Extent::Leaf
        },
    }
}
