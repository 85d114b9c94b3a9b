//! Policies as tables.

use std::net::IpAddr;
use std::sync::Arc;

use gate25::compile::{CompileError, Compiled, Image, compile, compile_after, longest};
use gate25::policy::{Destinations, Mode, Policy};
use gate25_common::abi::{self, CustomerId, SetId};
use gate25_common::address::Address;
use gate25_common::decide::CUSTOMER_SET;
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use proptest::sample::subsequence;

use super::oracle::{CUSTOMERS, any_policy};
use super::{allowlist, at, customer, exemption, listed, policy, profile};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn image_made_after_another_is_the_one_made_from_nothing(
        before in any_policy(),
        mut after in any_policy(),
        lists in subsequence(&["l0", "l1", "l2"][..], 0..=3),
        owners in subsequence(&CUSTOMERS[..], 0..=3),
        second in 0i64..12,
    ) {
        for name in lists {
            after.allowlists.insert(name.into(), before.allowlists[name].clone());
        }
        for id in owners {
            after.customers.insert(id.into(), before.customers[id].clone());
        }
        let image = Arc::new(compile(&before, at(second)).unwrap());
        let before = Compiled { policy: Arc::new(before), image };
        let now = at(second + 1);
        prop_assert_eq!(compile_after(&after, now, Some(&before)), compile(&after, now));
    }
}

#[test]
fn image_made_after_another_shares_the_sets_that_stay() {
    let mut policy = policy();
    for (list, id, net) in [("l", "c", "192.0.2.0/24"), ("m", "d", "198.51.100.0/24")] {
        policy.allowlists.insert(list.into(), allowlist(&[net]));
        let owner = customer("default", &[list], &[]);
        policy.customers.insert(id.into(), owner);
    }
    let image = Arc::new(compile(&policy, at(0)).unwrap());
    let before = Compiled {
        policy: Arc::new(policy.clone()),
        image: Arc::clone(&image),
    };
    let edited = allowlist(&["203.0.113.0/24"]);
    policy.allowlists.insert("m".into(), edited);
    let after = compile_after(&policy, at(0), Some(&before)).unwrap();
    let set = |image: &Image, id: &str| image.customers[&CustomerId::from_name(id)].customer_set;
    let kept = set(&after, "c");
    assert!(Arc::ptr_eq(&after.sets[&kept], &image.sets[&kept]));
    assert_ne!(set(&after, "d"), set(&image, "d"));
    assert_eq!(after.sets.len(), 2);
}

#[test]
fn prefix_of_ipv4_is_mapped_and_of_ipv6_kept() {
    let mut policy = policy();
    let nets = ["192.0.2.0/24", "2001:db8::/48"];
    policy.allowlists.insert("l".into(), allowlist(&nets));
    policy
        .customers
        .insert("c".into(), customer("default", &["l"], &[]));
    let image = compile(&policy, at(0)).unwrap();
    let set = &image.sets[&image.customers[&CustomerId::from_name("c")].customer_set];
    let found: Vec<_> = set
        .prefixes
        .iter()
        .map(|prefix| (prefix.address.octets(), prefix.length))
        .collect();
    let v4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 0];
    let v6 = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(found, [(v4, 120), (v6, 48)]);
}

#[test]
fn longest_of_nested_prefixes_is_found() {
    let mut policy = policy();
    policy
        .allowlists
        .insert("a".into(), allowlist(&["10.0.0.0/8"]));
    policy
        .allowlists
        .insert("b".into(), allowlist(&["10.1.0.0/16"]));
    policy
        .customers
        .insert("c".into(), customer("default", &["a", "b"], &[]));
    let image = compile(&policy, at(0)).unwrap();
    let set = &image.sets[&image.customers[&CustomerId::from_name("c")].customer_set];
    let entry = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        longest(&set.prefixes, &Address::from(address)).map(|prefix| prefix.entry)
    };
    assert_eq!(
        [entry("10.1.0.1"), entry("10.2.0.1"), entry("11.0.0.1")],
        [Some(1), Some(0), None]
    );
}

#[test]
fn set_of_equal_lists_is_shared() {
    let image = compile(&two_lists("192.0.2.1/32"), at(0)).unwrap();
    let set = |id| image.customers[&CustomerId::from_name(id)].customer_set;
    assert_eq!(set("a"), set("b"));
    assert_ne!(set("a"), set("c"));
    assert_eq!(image.sets.len(), 2);
}

#[test]
fn allowlist_changed_changes_only_its_users() {
    let before = compile(&two_lists("192.0.2.1/32"), at(0)).unwrap();
    let after = compile(&two_lists("192.0.2.2/32"), at(0)).unwrap();
    let changed: Vec<_> = after
        .customers
        .iter()
        .filter(|(id, customer)| before.customers[id] != **customer)
        .map(|(_, customer)| customer.id.as_str())
        .collect();
    let mut expected = ["a", "b"];
    expected.sort_by_key(|id| CustomerId::from_name(id));
    assert_eq!(changed, expected);
    let old = before.customers[&CustomerId::from_name("a")].customer_set;
    assert!(!after.sets.contains_key(&old), "the old number lives on");
}

#[test]
fn exemption_with_prefixes_in_place_has_a_nameless_source() {
    let mut policy = policy();
    policy
        .allowlists
        .insert("l".into(), allowlist(&["10.0.0.0/8"]));
    policy
        .customers
        .insert("c".into(), customer("default", &[], &[]));
    let to = listed(&["192.0.2.0/24"], &["l"]);
    policy
        .exemptions
        .insert("e".into(), exemption("c", None, at(10), to));
    let image = compile(&policy, at(0)).unwrap();
    let set = &image.sets[&image.customers[&CustomerId::from_name("c")].exemptions[0].set];
    assert_eq!(set.sources, [None, Some("l".to_owned())]);
}

#[test]
fn exemption_expired_is_left_out_with_its_set() {
    let mut policy = policy();
    policy
        .customers
        .insert("c".into(), customer("default", &[], &[]));
    // Names that lead nowhere are allowed in expired exemptions.
    let to = listed(&["192.0.2.0/24"], &["gone"]);
    policy
        .exemptions
        .insert("e".into(), exemption("c", None, at(10), to));
    let image = compile(&policy, at(10)).unwrap();
    assert!(
        image.customers[&CustomerId::from_name("c")]
            .exemptions
            .is_empty()
    );
    assert!(image.sets.is_empty());
}

#[test]
fn exemption_from_everything_needs_no_set() {
    let mut policy = policy();
    policy
        .customers
        .insert("c".into(), customer("default", &[], &[]));
    let any = exemption("c", Some(at(20)), at(30), Destinations::Any);
    policy.exemptions.insert("e".into(), any);
    let image = compile(&policy, at(10)).unwrap();
    let exemptions = &image.customers[&CustomerId::from_name("c")].exemptions;
    assert_eq!(exemptions[0].set, SetId::ANY);
    assert!(image.sets.is_empty());
}

#[test]
fn unassigned_has_the_default_profile() {
    let mut policy = policy();
    policy
        .allowlists
        .insert("l".into(), allowlist(&["10.0.0.0/8"]));
    policy
        .profiles
        .insert("default".into(), profile(Mode::Observe, &["l"]));
    let image = compile(&policy, at(0)).unwrap();
    let unassigned = &image.customers[&CustomerId::UNASSIGNED];
    assert_eq!(
        (unassigned.id.as_str(), unassigned.mode),
        ("unassigned", Mode::Observe)
    );
    assert!(image.sets.contains_key(&unassigned.profile_set));
    assert_eq!(unassigned.customer_set, SetId::NONE);
}

#[test]
fn default_profile_missing_is_an_error() {
    assert_eq!(
        unknown(&Policy::default()),
        ("profile", "default".to_owned())
    );
}

#[test]
fn profile_unknown_is_an_error() {
    let mut policy = policy();
    policy
        .customers
        .insert("c".into(), customer("gone", &[], &[]));
    assert_eq!(unknown(&policy), ("profile", "gone".to_owned()));
}

#[test]
fn allowlist_unknown_is_an_error() {
    let mut policy = policy();
    policy
        .customers
        .insert("c".into(), customer("default", &["gone"], &[]));
    assert_eq!(unknown(&policy), ("allowlist", "gone".to_owned()));
}

#[test]
fn exemptions_beyond_the_tables_room_are_an_error() {
    let with = |count: usize| {
        let mut policy = policy();
        policy
            .customers
            .insert("c".into(), customer("default", &[], &[]));
        for number in 0..count {
            let any = exemption("c", None, at(10), Destinations::Any);
            policy.exemptions.insert(format!("e{number}"), any);
        }
        compile(&policy, at(0)).map(|image: Image| image.customers.len())
    };
    assert_eq!(with(abi::MAX_EXEMPTIONS), Ok(2));
    let refusal = CompileError::TooManyExemptions("c".to_owned());
    assert_eq!(with(abi::MAX_EXEMPTIONS + 1), Err(refusal));
}

#[test]
fn customers_with_one_number_are_an_error() {
    // Two of the published collisions of 64-bit FNV-1a.
    let (one, other) = ("8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ");
    assert_eq!(CustomerId::from_name(one), CustomerId::from_name(other));
    let mut policy = policy();
    for id in [one, other] {
        policy
            .customers
            .insert(id.into(), customer("default", &[], &[]));
    }
    let refusal = CompileError::CustomerCollision(one.to_owned(), other.to_owned());
    assert_eq!(compile(&policy, at(0)), Err(refusal));
}

#[test]
fn sources_beyond_the_index_are_an_error() {
    let mut policy = policy();
    let lists: Vec<String> = (0..=CUSTOMER_SET).map(|n| format!("l{n}")).collect();
    for name in &lists {
        policy.allowlists.insert(name.clone(), allowlist(&[]));
    }
    let mut owner = customer("default", &[], &[]);
    owner.allow = lists;
    policy.customers.insert("c".into(), owner);
    let refusal = CompileError::TooManySources("c".to_owned());
    assert_eq!(compile(&policy, at(0)), Err(refusal));
}

/// Customers a and b share a list, c has one of its own.
fn two_lists(shared: &str) -> Policy {
    let mut policy = policy();
    policy.allowlists.insert("l".into(), allowlist(&[shared]));
    policy
        .allowlists
        .insert("other".into(), allowlist(&["198.51.100.0/24"]));
    for (id, list) in [("a", "l"), ("b", "l"), ("c", "other")] {
        policy
            .customers
            .insert(id.into(), customer("default", &[list], &[]));
    }
    policy
}

#[track_caller]
fn unknown(policy: &Policy) -> (&'static str, String) {
    match compile(policy, at(0)) {
        Err(CompileError::Unknown { kind, name, .. }) => (kind, name),
        other => panic!("{other:?}"),
    }
}
