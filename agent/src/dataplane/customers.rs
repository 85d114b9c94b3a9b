//! Customers' entries as they are in the tables, in little room.

use std::collections::BTreeMap;
use std::sync::Arc;

use gate25_common::abi::{Blocked, CustomerId, CustomerPolicy, Mode, Quarantine, SetId};
use gate25_common::address::Family;
use gate25_common::filter::SetFilter;
use gate25_common::redirect::Target;

/// Policies by customer. A clone shares them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Customers(Arc<BTreeMap<CustomerId, Entry>>);

/// Room for exemptions is most of a policy, and few customers have any. Equal policies are the same
/// kind of entry.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Plain(Plain),
    Whole(Box<CustomerPolicy>),
}

/// A policy without exemptions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plain {
    mode: Mode,
    blocked: Blocked,
    quarantine: Quarantine,
    profile_set: SetId,
    customer_set: SetId,
    profile_filter: SetFilter,
    customer_filter: SetFilter,
    /// By [`Family`].
    targets: [Target; 2],
}

impl Entry {
    fn of(policy: &CustomerPolicy) -> Self {
        match Plain::of(policy) {
            // Whatever a table holds comes out as it went in.
            Some(plain) if plain.policy() == *policy => Self::Plain(plain),
            Some(_) | None => Self::Whole(Box::new(*policy)),
        }
    }

    /// Whether it says so, or has a target that is left from before.
    fn may_lead(&self) -> bool {
        match self {
            Self::Plain(plain) => match plain.blocked {
                Blocked::Redirect | Blocked::Notice => true,
                Blocked::Reject | Blocked::Drop => plain.targets != [Target::NONE; 2],
            },
            Self::Whole(_) => true,
        }
    }

    fn policy(&self) -> CustomerPolicy {
        match self {
            Self::Plain(plain) => plain.policy(),
            Self::Whole(policy) => **policy,
        }
    }
}

impl Plain {
    /// `None` for bytes that no agent of this version writes.
    fn of(policy: &CustomerPolicy) -> Option<Self> {
        let target = |family| policy.target(family).copied().unwrap_or(Target::NONE);
        Some(Self {
            mode: policy.mode()?,
            blocked: policy.blocked()?,
            quarantine: policy.quarantine()?,
            profile_set: policy.profile_set(),
            customer_set: policy.customer_set(),
            profile_filter: *policy.profile_filter(),
            customer_filter: *policy.customer_filter(),
            targets: [target(Family::V4), target(Family::V6)],
        })
    }

    fn policy(&self) -> CustomerPolicy {
        let Self {
            mode,
            blocked,
            quarantine,
            profile_set,
            customer_set,
            profile_filter,
            customer_filter,
            targets: [v4, v6],
        } = self;
        CustomerPolicy::new(*mode, *blocked, *quarantine, *profile_set, *customer_set)
            .with_filters(*profile_filter, *customer_filter)
            .with_targets(*v4, *v6)
    }
}

impl Customers {
    /// A customer's policy.
    #[must_use]
    pub fn get(&self, id: &CustomerId) -> Option<CustomerPolicy> {
        self.0.get(id).map(Entry::policy)
    }

    /// Whether a customer has a policy.
    #[must_use]
    pub fn contains_key(&self, id: &CustomerId) -> bool {
        self.0.contains_key(id)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The customers in their order.
    pub fn keys(&self) -> impl Iterator<Item = &CustomerId> {
        self.0.keys()
    }

    /// The policies in the order of their customers.
    pub fn values(&self) -> impl Iterator<Item = CustomerPolicy> {
        self.0.values().map(Entry::policy)
    }

    /// Customers and their policies, in order.
    pub fn iter(&self) -> impl Iterator<Item = (CustomerId, CustomerPolicy)> {
        self.0.iter().map(|(id, entry)| (*id, entry.policy()))
    }

    /// Gives a customer a policy.
    pub fn insert(&mut self, id: CustomerId, policy: &CustomerPolicy) {
        Arc::make_mut(&mut self.0).insert(id, Entry::of(policy));
    }

    /// Forgets a customer.
    pub fn remove(&mut self, id: &CustomerId) {
        Arc::make_mut(&mut self.0).remove(id);
    }

    /// Policies by which connections may be led elsewhere.
    pub(crate) fn leading(&self) -> impl Iterator<Item = CustomerPolicy> {
        let leading = self.0.values().filter(|entry| entry.may_lead());
        leading.map(Entry::policy)
    }

    /// Changes the policies by which connections may be led elsewhere.
    pub(super) fn change_leading(&mut self, change: impl Fn(CustomerPolicy) -> CustomerPolicy) {
        if !self.0.values().any(Entry::may_lead) {
            return;
        }
        let entries = Arc::make_mut(&mut self.0).values_mut();
        for entry in entries.filter(|entry| entry.may_lead()) {
            *entry = Entry::of(&change(entry.policy()));
        }
    }

    /// Takes policies from `known` where the two differ and are `alike`.
    pub(super) fn keep(
        &mut self,
        known: &Self,
        alike: impl Fn(&CustomerPolicy, &CustomerPolicy) -> bool,
    ) {
        let kept: Vec<(CustomerId, Entry)> = self
            .differing(known)
            .filter_map(|(id, entry, known)| {
                let known = known?;
                alike(&entry.policy(), &known.policy()).then(|| (*id, known.clone()))
            })
            .collect();
        if !kept.is_empty() {
            Arc::make_mut(&mut self.0).extend(kept);
        }
    }

    /// Those that have another policy in `before`, or none.
    pub(super) fn differing_from<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (CustomerId, CustomerPolicy)> + 'a {
        self.differing(before)
            .map(|(id, entry, _)| (*id, entry.policy()))
    }

    /// Those that `other` does not have.
    pub(super) fn missing_in<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = CustomerId> + 'a {
        self.beside(other)
            .filter(|(_, _, known)| known.is_none())
            .map(|(id, _, _)| *id)
    }

    fn differing<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (&'a CustomerId, &'a Entry, Option<&'a Entry>)> {
        self.beside(other)
            .filter(|(_, entry, known)| *known != Some(*entry))
    }

    /// All of them, each with what `other` has; none where both are the same ones.
    fn beside<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (&'a CustomerId, &'a Entry, Option<&'a Entry>)> {
        let is_shared = Arc::ptr_eq(&self.0, &other.0);
        let own = (!is_shared).then_some(&*self.0).into_iter().flatten();
        // Both are sorted: nothing is looked for.
        let mut others = other.0.iter().peekable();
        own.map(move |(id, entry)| {
            while others.next_if(|(other, _)| *other < id).is_some() {}
            let known = others.next_if(|(other, _)| *other == id);
            (id, entry, known.map(|(_, known)| known))
        })
    }
}

impl FromIterator<(CustomerId, CustomerPolicy)> for Customers {
    fn from_iter<I: IntoIterator<Item = (CustomerId, CustomerPolicy)>>(policies: I) -> Self {
        let entries = policies
            .into_iter()
            .map(|(id, policy)| (id, Entry::of(&policy)));
        Self(Arc::new(entries.collect()))
    }
}

impl<const N: usize> From<[(CustomerId, CustomerPolicy); N]> for Customers {
    fn from(policies: [(CustomerId, CustomerPolicy); N]) -> Self {
        policies.into_iter().collect()
    }
}
