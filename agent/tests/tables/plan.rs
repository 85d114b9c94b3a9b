//! Tables that turn into other tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gate25::compile::{Prefix, compile};
use gate25::dataplane::{CapacityError, Customers, MapImage, Sets, Step, plan};
use gate25::policy::{Destinations, Policy};
use gate25_common::abi::{
    Blocked, Counting, CustomerId, CustomerPolicy, Exemption, InterfaceOwner, MAX_CUSTOMERS,
    MAX_EXEMPTIONS, Mode, Quarantine, SetId,
};
use gate25_common::address::Address;
use gate25_common::filter::SetFilter;
use gate25_common::redirect::Target;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, proptest};

use super::{allowlist, at, customer, exemption, policy};

proptest! {
    #[test]
    fn plan_of_any_two_states_changes_customers_at_once(a in state(), b in state()) {
        let mut now = a.clone();
        for step in plan(&a, &b).unwrap() {
            step.apply_to(&mut now);
            for (id, policy) in now.customers.iter() {
                for set in policy.sets().filter(|set| ![SetId::NONE, SetId::ANY].contains(set)) {
                    prop_assert!(now.sets.contains_key(&set), "{id:?} without {set:?} at {step:?}");
                    prop_assert_eq!(&now.sets[&set], &contents(set));
                }
                let known = [a.customers.get(&id), b.customers.get(&id)];
                prop_assert!(known.contains(&Some(policy)), "{id:?} is neither old nor new");
            }
            for id in a.customers.keys().filter(|id| b.customers.contains_key(id)) {
                prop_assert!(now.customers.contains_key(id), "{id:?} without a policy");
            }
            for (index, owner) in &now.interfaces {
                prop_assert!(now.customers.contains_key(&owner.customer()), "{index} at {step:?}");
                let known = [a.interfaces.get(index), b.interfaces.get(index)];
                prop_assert!(known.contains(&Some(owner)), "{index} is neither old nor new");
            }
            for (id, customer) in &now.cgroups {
                prop_assert!(now.customers.contains_key(customer), "cgroup {id} at {step:?}");
                let known = [a.cgroups.get(id), b.cgroups.get(id)];
                prop_assert!(known.contains(&Some(customer)), "cgroup {id} is neither old nor new");
            }
        }
        prop_assert_eq!(now, b);
    }

    #[test]
    fn customers_come_out_of_a_table_as_they_went_in(
        customers in proptest::collection::btree_map(any::<u64>(), any_entry(), 0..6),
        owner in any::<u64>(),
        exempt in any_entry(),
    ) {
        let expected: BTreeMap<_, _> = customers
            .into_iter()
            .map(|(id, policy)| (CustomerId::from_raw(id), policy))
            .collect();
        let mut kept: Customers = expected.clone().into_iter().collect();
        let shared = kept.clone();
        prop_assert_eq!(kept.iter().collect::<BTreeMap<_, _>>(), expected.clone());
        let owner = CustomerId::from_raw(owner);
        kept.insert(owner, &exempt);
        prop_assert_eq!(kept.get(&owner), Some(exempt));
        kept.remove(&owner);
        prop_assert_eq!(kept.get(&owner), None);
        prop_assert_eq!(shared.iter().collect::<BTreeMap<_, _>>(), expected);
    }

    #[test]
    fn keep_times_keeps_a_customer_that_differs_in_near_times_only(
        (wanted, installed) in times(),
        tolerance in 0u64..20,
    ) {
        let mut kept = wanted.image();
        kept.keep_times(&installed.image(), Duration::from_nanos(tolerance));
        let expected = if wanted.is_near(&installed, tolerance) { &installed } else { &wanted };
        prop_assert_eq!(kept, expected.image());
    }

    #[test]
    fn plan_of_equal_states_is_empty(a in state()) {
        prop_assert_eq!(plan(&a, &a).unwrap(), []);
    }
}

#[test]
fn plan_with_a_half_filled_set_fills_it() {
    let set = SetId::new(7).unwrap();
    let wanted = MapImage {
        sets: Arc::new(BTreeMap::from([(set, contents(set))])),
        ..MapImage::default()
    };
    let mut current = MapImage {
        sets: Arc::new(BTreeMap::from([(set, contents(set)[..1].into())])),
        ..MapImage::default()
    };
    for step in plan(&current, &wanted).unwrap() {
        step.apply_to(&mut current);
    }
    assert_eq!(current, wanted);
}

#[test]
fn plan_beyond_the_tables_room_is_refused() {
    let customer = policy_of(Mode::Enforce, SetId::NONE, SetId::NONE, &[]);
    let states = |numbers: std::ops::Range<usize>| MapImage {
        customers: numbers
            .map(|number| (CustomerId::from_raw(number as u64), customer))
            .collect(),
        ..MapImage::default()
    };
    let full = states(0..MAX_CUSTOMERS);
    assert!(plan(&MapImage::default(), &full).is_ok());
    // Old and new ones are there at the same time.
    let refusal = CapacityError::Customers(MAX_CUSTOMERS + 1);
    assert_eq!(plan(&full, &states(1..MAX_CUSTOMERS + 1)), Err(refusal));
}

#[test]
fn exemption_edited_among_ten_thousand_customers_is_one_write() {
    let mut policy = large_policy();
    let before = tables(&policy);
    let edited = policy.exemptions.get_mut("e-4711").unwrap();
    edited.expires = at(2_000);
    let id = CustomerId::from_name("c-4711");
    assert_one_write(&before, &tables(&policy), id);

    policy.exemptions.remove("e-4711");
    assert_one_write(&before, &tables(&policy), id);

    let new = exemption("c-77", None, at(2_000), Destinations::Any);
    let mut policy = large_policy();
    policy.exemptions.insert("e-77b".into(), new);
    assert_one_write(&before, &tables(&policy), CustomerId::from_name("c-77"));
}

#[track_caller]
fn assert_one_write(before: &MapImage, after: &MapImage, id: CustomerId) {
    let steps = plan(before, after).unwrap();
    assert_eq!(
        steps,
        [Step::PutCustomer(
            id,
            Box::new(after.customers.get(&id).unwrap())
        )]
    );
    assert_eq!(steps.iter().map(Step::writes).sum::<usize>(), 1);
}

/// 10,000 customers, each with ten prefixes of its own and an exemption.
fn large_policy() -> Policy {
    let mut policy = policy();
    for number in 0..10_000u32 {
        let [_, a, b, c] = (number * 10).to_be_bytes();
        let nets: Vec<String> = (0..10)
            .map(|last| format!("{}.{b}.{}.0/24", 100 + a, c.wrapping_add(last)))
            .collect();
        let nets: Vec<&str> = nets.iter().map(String::as_str).collect();
        let list = format!("l-{number}");
        policy.allowlists.insert(list.clone(), allowlist(&nets));
        let id = format!("c-{number}");
        policy
            .customers
            .insert(id.clone(), customer("default", &[&list], &[]));
        let any = exemption(&id, None, at(1_000), Destinations::Any);
        policy.exemptions.insert(format!("e-{number}"), any);
    }
    policy
}

fn tables(policy: &Policy) -> MapImage {
    let image = compile(policy, at(100)).unwrap();
    MapImage::new(&image, 0, &[], BTreeMap::new(), BTreeMap::new()).unwrap()
}

/// Tables in which nothing refers to what is not there.
fn state() -> impl Strategy<Value = MapImage> {
    proptest::collection::btree_map(0u64..6, any_policy(), 0..6)
        .prop_flat_map(|customers| {
            let ids: Vec<u64> = customers.keys().copied().collect();
            let owners = match ids.is_empty() {
                true => Just((BTreeMap::new(), BTreeMap::new())).boxed(),
                false => {
                    let customer = proptest::sample::select(ids).prop_map(CustomerId::from_raw);
                    let counting = proptest::sample::select(vec![Counting::All, Counting::Refused]);
                    let owner = (customer.clone(), counting)
                        .prop_map(|(customer, counting)| InterfaceOwner::new(customer, counting));
                    (
                        proptest::collection::btree_map(0u32..8, owner, 0..6),
                        proptest::collection::btree_map(0u64..8, customer, 0..6),
                    )
                        .boxed()
                }
            };
            (Just(customers), owners)
        })
        .prop_map(|(customers, (interfaces, cgroups))| {
            let used: BTreeSet<SetId> = customers.values().flat_map(CustomerPolicy::sets).collect();
            let sets: Sets = used
                .into_iter()
                .filter(|set| ![SetId::NONE, SetId::ANY].contains(set))
                .map(|set| (set, contents(set)))
                .collect();
            MapImage {
                sets: Arc::new(sets),
                customers: customers
                    .into_iter()
                    .map(|(id, policy)| (CustomerId::from_raw(id), policy))
                    .collect(),
                interfaces,
                cgroups,
            }
        })
}

/// What one customer's entry is made from.
#[derive(Debug, Clone, PartialEq)]
struct Written {
    mode: u8,
    profile: u64,
    /// Sets and their two times.
    exemptions: Vec<(u64, [u64; 2])>,
}

impl Written {
    /// Everything but times the same, and no time further off than `tolerance`.
    fn is_near(&self, other: &Self, tolerance: u64) -> bool {
        let sets = |it: &Self| {
            it.exemptions
                .iter()
                .map(|(set, _)| *set)
                .collect::<Vec<_>>()
        };
        let times = |it: &Self| {
            it.exemptions
                .iter()
                .flat_map(|(_, at)| *at)
                .collect::<Vec<_>>()
        };
        let (mine, others) = (times(self), times(other));
        let mut pairs = mine.iter().zip(&others);
        (self.mode, self.profile, sets(self)) == (other.mode, other.profile, sets(other))
            && pairs.all(|(a, b)| u128::from(*a.max(b)) - u128::from(*a.min(b)) <= tolerance.into())
    }

    fn image(&self) -> MapImage {
        let mode = [Mode::Enforce, Mode::Observe][usize::from(self.mode)];
        let set = |number| SetId::new(number).unwrap();
        let exemptions: Vec<Exemption> = self
            .exemptions
            .iter()
            .map(|(number, [starts, expires])| Exemption::new(set(*number), *starts, *expires))
            .collect();
        let policy = policy_of(mode, set(self.profile), SetId::NONE, &exemptions);
        MapImage {
            customers: Customers::from([(CustomerId::from_raw(1), policy)]),
            ..MapImage::default()
        }
    }
}

/// An entry, and one that differs in little, or in nothing.
fn times() -> impl Strategy<Value = (Written, Written)> {
    let exemption = (1u64..4, [1u64 << 40..1 << 41, 1 << 41..1 << 42]);
    let written = (
        0u8..2,
        1u64..4,
        proptest::collection::vec(exemption, 0..=MAX_EXEMPTIONS),
    );
    let shifts = proptest::collection::vec([-12i64..=12, -12..=12], MAX_EXEMPTIONS);
    (written, shifts, 0u8..8).prop_map(|((mode, profile, exemptions), shifts, change)| {
        let one = Written {
            mode,
            profile,
            exemptions,
        };
        let mut other = one.clone();
        for ((_, times), shifts) in other.exemptions.iter_mut().zip(shifts) {
            *times = [0, 1].map(|at| times[at].wrapping_add_signed(shifts[at]));
        }
        match change {
            0 => other.mode = 1 - other.mode,
            1 => other.profile += 1,
            2 => drop(other.exemptions.pop()),
            3 => other.exemptions.iter_mut().take(1).for_each(|it| it.0 += 1),
            _ => {}
        }
        (one, other)
    })
}

/// As [`any_policy`], with everything else that an entry may hold.
fn any_entry() -> impl Strategy<Value = CustomerPolicy> {
    let target = |address: &'static str| {
        let address: IpAddr = address.parse().unwrap();
        let port = any::<u16>();
        proptest::option::of(port)
            .prop_map(move |port| Target::new(address.into(), port?.to_be_bytes()))
    };
    let filter = || {
        let lengths = proptest::collection::vec(0u8..=128, 0..4);
        lengths.prop_map(|lengths| {
            let address: Address = IpAddr::from([192, 0, 2, 1]).into();
            SetFilter::of(lengths.into_iter().map(|length| (address, length)))
        })
    };
    let targets = (target("192.0.2.1"), target("2001:db8::1"));
    (any_policy(), targets, filter(), filter()).prop_map(|(policy, (v4, v6), profile, own)| {
        let [v4, v6] = [v4, v6].map(|it| it.unwrap_or(Target::NONE));
        policy.with_targets(v4, v6).with_filters(profile, own)
    })
}

fn any_policy() -> impl Strategy<Value = CustomerPolicy> {
    let exemption = (any_set(), 0u64..3, 3u64..6);
    (
        any::<bool>(),
        any_set(),
        any_set(),
        proptest::collection::vec(exemption, 0..3),
    )
        .prop_map(|(observe, profile, own, exemptions)| {
            let mode = if observe {
                Mode::Observe
            } else {
                Mode::Enforce
            };
            let exemptions: Vec<_> = exemptions
                .into_iter()
                .map(|(set, starts, expires)| Exemption::new(set, starts, expires))
                .collect();
            policy_of(mode, profile, own, &exemptions)
        })
}

fn policy_of(mode: Mode, profile: SetId, own: SetId, exemptions: &[Exemption]) -> CustomerPolicy {
    CustomerPolicy::new(mode, Blocked::Reject, Quarantine::No, profile, own)
        .with_exemptions(exemptions)
        .unwrap()
}

fn any_set() -> impl Strategy<Value = SetId> {
    (0u64..8).prop_map(|number| match number {
        0 => SetId::NONE,
        1 => SetId::ANY,
        number => SetId::new(number).unwrap(),
    })
}

/// Sets are named by their contents.
fn contents(set: SetId) -> Arc<[Prefix]> {
    let [.., last] = set.get().to_be_bytes();
    [format!("10.{last}.0.0/16"), format!("10.{last}.0.0/24")]
        .iter()
        .map(|net| Prefix::new(net.parse().unwrap(), 0))
        .collect()
}
