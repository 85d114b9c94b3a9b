//! What a run of events amounts to.

use std::collections::BTreeMap;

use super::{Interface, Kind, LinkEvent, Peer};

/// The interfaces known, by number: what a snapshot would say, except that a veth's peer in
/// another namespace may be missing, since the kernel does not announce it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    interfaces: BTreeMap<u32, Interface>,
}

/// What one event changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An interface appeared.
    Appeared(Interface),
    /// An interface is not what it was.
    Changed {
        /// As it was.
        before: Interface,
        /// As it is.
        after: Interface,
    },
    /// An interface went.
    Vanished(Interface),
    /// The ingress qdisc or a filter of a known interface went.
    Unhooked(Interface),
    /// Only [`Inventory::replace`] with a snapshot tells.
    Unknown,
}

impl Inventory {
    /// The inventory of a snapshot.
    #[must_use]
    pub fn from_snapshot(snapshot: Vec<Interface>) -> Self {
        let interfaces = snapshot
            .into_iter()
            .map(|interface| (interface.index, interface));
        Self {
            interfaces: interfaces.collect(),
        }
    }

    /// Takes one event in and says what it changed.
    pub fn apply(&mut self, event: LinkEvent) -> Vec<Change> {
        match event {
            LinkEvent::Upsert(after) => {
                let index = after.index;
                let announced = local_peer(&after);
                let mut changes: Vec<_> = self.upsert(after).into_iter().collect();
                // A veth pair is announced before its two ends are joined: the first one's event
                // knows no peer, and no other follows.
                changes.extend(announced.and_then(|peer| self.join(peer, Some(index))));
                changes
            }
            LinkEvent::Gone { index } => {
                let Some(gone) = self.interfaces.remove(&index) else {
                    return Vec::new();
                };
                let widow = local_peer(&gone).and_then(|peer| self.join(peer, None));
                std::iter::once(Change::Vanished(gone))
                    .chain(widow)
                    .collect()
            }
            LinkEvent::QdiscGone { index } => self
                .interfaces
                .get(&index)
                .cloned()
                .map(Change::Unhooked)
                .into_iter()
                .collect(),
            LinkEvent::Lost => vec![Change::Unknown],
        }
    }

    /// Takes a snapshot's word for everything and says what differs from what was known: what
    /// vanished first, since a name may be in use again.
    pub fn replace(&mut self, snapshot: Vec<Interface>) -> Vec<Change> {
        let next = Self::from_snapshot(snapshot);
        let mut changes: Vec<Change> = self
            .interfaces
            .values()
            .filter(|interface| !next.interfaces.contains_key(&interface.index))
            .cloned()
            .map(Change::Vanished)
            .collect();
        for after in next.interfaces.values() {
            match self.interfaces.get(&after.index) {
                None => changes.push(Change::Appeared(after.clone())),
                Some(before) if before != after => {
                    changes.push(Change::Changed {
                        before: before.clone(),
                        after: after.clone(),
                    });
                }
                Some(_) => {}
            }
        }
        *self = next;
        changes
    }

    /// The interface with this number.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Interface> {
        self.interfaces.get(&index)
    }

    /// Every interface, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.values()
    }

    fn upsert(&mut self, after: Interface) -> Option<Change> {
        match self.interfaces.insert(after.index, after.clone()) {
            None => Some(Change::Appeared(after)),
            Some(before) if before == after => None,
            Some(before) => Some(Change::Changed { before, after }),
        }
    }

    /// Notes that the other end of the veth `index` is `peer`, or not known.
    fn join(&mut self, index: u32, peer: Option<u32>) -> Option<Change> {
        let mut after = self.interfaces.get(&index)?.clone();
        let Kind::Veth { peer: known } = &mut after.kind else {
            return None;
        };
        *known = peer.map(|index| Peer { index, netns: None });
        self.upsert(after)
    }
}

/// The other end of a veth pair, if it is in the same namespace.
fn local_peer(interface: &Interface) -> Option<u32> {
    match interface.kind {
        Kind::Veth {
            peer: Some(Peer { index, netns: None }),
        } => Some(index),
        Kind::Veth { .. } | Kind::Tap | Kind::Tun | Kind::Bridge | Kind::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, prop, prop_assert_eq, prop_oneof, proptest};

    use super::*;
    use crate::kernel::links::Kind;

    #[test]
    fn apply_renamed_interface_reports_both_names() {
        let mut inventory = Inventory::from_snapshot(vec![tap(7, "tap7")]);
        let change = inventory.apply(LinkEvent::Upsert(tap(7, "vm7")));
        assert_eq!(
            change,
            [Change::Changed {
                before: tap(7, "tap7"),
                after: tap(7, "vm7")
            }]
        );
        assert_eq!(inventory.apply(LinkEvent::Upsert(tap(7, "vm7"))), []);
    }

    #[test]
    fn apply_event_of_unknown_interface_changes_nothing() {
        let mut inventory = Inventory::default();
        assert_eq!(inventory.apply(LinkEvent::Gone { index: 3 }), []);
        assert_eq!(inventory.apply(LinkEvent::QdiscGone { index: 3 }), []);
    }

    #[test]
    fn apply_veth_pair_announced_one_by_one_joins_both_ends() {
        let veth = |index, peer: Option<u32>| Interface {
            kind: Kind::Veth {
                peer: peer.map(|index| Peer { index, netns: None }),
            },
            ..tap(index, "veth")
        };
        let mut inventory = Inventory::default();
        inventory.apply(LinkEvent::Upsert(veth(3, None)));
        let changes = inventory.apply(LinkEvent::Upsert(veth(4, Some(3))));
        let joined = Change::Changed {
            before: veth(3, None),
            after: veth(3, Some(4)),
        };
        assert_eq!(changes, [Change::Appeared(veth(4, Some(3))), joined]);
        let changes = inventory.apply(LinkEvent::Gone { index: 4 });
        let widowed = Change::Changed {
            before: veth(3, Some(4)),
            after: veth(3, None),
        };
        assert_eq!(changes, [Change::Vanished(veth(4, Some(3))), widowed]);
    }

    proptest! {
        #[test]
        fn replace_reports_exactly_what_turns_the_old_into_the_new(
            old in interfaces(), new in interfaces()
        ) {
            let mut replaced = Inventory::from_snapshot(old.clone());
            let mut folded = Inventory::from_snapshot(old);
            for change in replaced.replace(new.clone()) {
                let event = match change.clone() {
                    Change::Appeared(after) | Change::Changed { after, .. } => {
                        LinkEvent::Upsert(after)
                    }
                    Change::Vanished(before) => LinkEvent::Gone { index: before.index },
                    Change::Unhooked(_) | Change::Unknown => LinkEvent::Lost,
                };
                prop_assert_eq!(folded.apply(event), [change]);
            }
            prop_assert_eq!(&folded, &replaced);
            prop_assert_eq!(replaced, Inventory::from_snapshot(new));
        }
    }

    fn interfaces() -> impl Strategy<Value = Vec<Interface>> {
        let one = (1u32..6, prop_oneof![Just("tap0"), Just("tap1")]).prop_map(|(i, n)| tap(i, n));
        prop::collection::vec(one, 0..6)
    }

    fn tap(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            kind: Kind::Tap,
            master: None,
        }
    }
}
