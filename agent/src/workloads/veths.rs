//! Who is at the other ends of veths.
//!
//! The kernel numbers the namespaces that veths lead to, and gives the lowest free number again as soon
//! as a namespace has gone (`net/core/net_namespace.c`). So what was found by a number is remembered
//! of the veths that led there at that moment, and says nothing of one that leads there later.

use std::collections::{BTreeMap, BTreeSet};

use gate25_common::abi::{Counting, CustomerId, InterfaceOwner};

use crate::kernel::links::Interface;

/// Control groups by this host's number for a network namespace that they have processes in.
pub type Inside = BTreeMap<i32, BTreeSet<u64>>;

/// Control groups whose processes a look has not, or not all, seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// Every one: the look failed.
    All,
    /// These.
    These(BTreeSet<u64>),
}

/// What is known of the other ends of veths.
#[derive(Debug, Clone, Default)]
pub struct Veths {
    /// The numbers that led to containers at the last look, those included at which nobody was found any more.
    led_to: BTreeSet<i32>,
    /// Who was last found at the other end, by the veth's index.
    behind: BTreeMap<u32, BTreeSet<u64>>,
    /// Veths that led to the same place as a container's at a look, with nobody found there.
    beside: BTreeSet<u32>,
    /// Indexes that an interface has left since the tables were last written: what the tables say of
    /// one is about that interface, and not about the next.
    vacated: BTreeSet<u32>,
}

/// Who is at the other end of an interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Behind<'v> {
    /// No container that is known of.
    Nobody,
    /// Whoever it is, by a number that led to a container at the last look.
    Somebody,
    /// Whoever it is, in the namespace of a container that was not found there any more.
    Hidden,
    /// These control groups.
    Containers(&'v BTreeSet<u64>),
    /// A container of this owner, or of nobody, that is not found there any more.
    Left(CustomerId),
}

impl Veths {
    /// Takes note of what a look has found, with the interfaces as they were while what it found kept its
    /// numbers, and returns whether somebody else is behind one now. What was known of control groups
    /// that could not be read stays. Where none was found, whoever was stays, and by what is `installed`
    /// somebody: sockets may be open in that namespace that belong to processes elsewhere.
    #[must_use]
    pub(super) fn looked<'i>(
        &mut self,
        interfaces: impl IntoIterator<Item = &'i Interface>,
        inside: Inside,
        unread: &Unread,
        installed: &BTreeMap<u32, InterfaceOwner>,
    ) -> bool {
        let ends = interfaces.into_iter().filter_map(|interface| {
            let index = interface.index;
            interface.other_end().map(|netns| (index, netns))
        });
        let ends: Vec<(u32, i32)> = ends.collect();
        let mut led_to: BTreeSet<i32> = inside.keys().copied().collect();
        let mut behind = BTreeMap::new();
        for (index, netns) in ends.iter().copied() {
            let found = inside.get(&netns);
            let before = self.behind.get(&index).into_iter().flatten();
            let stays = |id: &&u64| match (found, unread) {
                (Some(_), Unread::These(unread)) => unread.contains(id),
                (None, _) | (_, Unread::All) => true,
            };
            let found = found.into_iter().flatten();
            let all: BTreeSet<u64> = found.chain(before.filter(stays)).copied().collect();
            if !all.is_empty() {
                behind.insert(index, all);
                led_to.insert(netns);
            } else if self.left(index, installed.get(&index)).is_some() {
                led_to.insert(netns);
            }
        }
        // The kernel's number for a namespace that has none.
        led_to.remove(&-1);
        // At one moment equal numbers are of one namespace. Such a veth stays a container's when the others,
        // or the agent, have gone.
        let is_beside = |(index, netns): &(u32, i32)| {
            !behind.contains_key(index) && (led_to.contains(netns) || self.beside.contains(index))
        };
        let beside = ends.iter().filter(|end| is_beside(end));
        let beside: BTreeSet<u32> = beside.map(|(index, _)| *index).collect();
        if *unread == Unread::All {
            led_to.append(&mut self.led_to);
        }
        self.led_to = led_to;
        let changed = self.behind != behind || self.beside != beside;
        self.behind = behind;
        self.beside = beside;
        changed
    }

    /// Forgets an interface, and what the tables say of its index.
    pub(super) fn gone(&mut self, index: u32) {
        self.behind.remove(&index);
        self.beside.remove(&index);
        self.vacated.insert(index);
    }

    /// Forgets control groups that there are not.
    pub(super) fn forget_all_but(&mut self, exists: impl Fn(u64) -> bool) {
        self.behind.retain(|_, ids| {
            ids.retain(|id| exists(*id));
            !ids.is_empty()
        });
    }

    /// Takes note that the tables are about the interfaces that there are.
    pub(crate) fn written(&mut self) {
        self.vacated.clear();
    }

    /// Whether what the tables say of this index is about an interface that has gone.
    pub(crate) fn is_vacated(&self, index: u32) -> bool {
        self.vacated.contains(&index)
    }

    /// Who is behind an interface, of which the tables say this.
    pub(super) fn behind(
        &self,
        interface: &Interface,
        installed: Option<&InterfaceOwner>,
    ) -> Behind<'_> {
        let Some(netns) = interface.other_end() else {
            return Behind::Nobody;
        };
        let index = interface.index;
        if let Some(cgroups) = self.behind.get(&index) {
            return Behind::Containers(cgroups);
        }
        match self.left(index, installed) {
            Some(owner) => Behind::Left(owner),
            None if self.beside.contains(&index) => Behind::Hidden,
            None if self.led_to.contains(&netns) => Behind::Somebody,
            None => Behind::Nobody,
        }
    }

    /// Of whom the tables say that a veth is his container's.
    fn left(&self, index: u32, installed: Option<&InterfaceOwner>) -> Option<CustomerId> {
        let is_containers = |owner: &&InterfaceOwner| {
            owner.counting() == Counting::Refused && !self.is_vacated(index)
        };
        installed
            .filter(is_containers)
            .map(InterfaceOwner::customer)
    }
}
