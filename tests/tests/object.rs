//! The built objects against the names and types that the agent relies on. Needs no kernel.

use std::{collections::BTreeSet, fs, mem::size_of};

use aya_obj::Object as Parsed;
use gate25_common::{
    abi::{CustomerId, CustomerPolicy, PrefixKey, PrefixValue},
    counters::{CustomerCounters, HostCounters, Sketch},
    names,
};
use gate25_tests::Object;

#[test]
fn maps_of_the_plain_object_are_the_listed_ones() {
    let found: BTreeSet<String> = parse(Object::Plain)
        .maps
        .into_keys()
        .filter(|name| !name.starts_with('.'))
        .collect();
    let listed: BTreeSet<String> = names::MAPS.map(str::to_owned).into();
    assert_eq!(found, listed);
}

#[test]
fn maps_of_both_objects_hold_the_shared_types() {
    let expected = [
        (names::MAP_WORKLOADS, 4, size_of::<CustomerId>()),
        (
            names::MAP_CUSTOMERS,
            size_of::<CustomerId>(),
            size_of::<CustomerPolicy>(),
        ),
        // The kernel's key begins with the prefix length.
        (
            names::MAP_PREFIXES,
            4 + size_of::<PrefixKey>(),
            size_of::<PrefixValue>(),
        ),
        (names::MAP_HOST_COUNTERS, 4, size_of::<HostCounters>()),
        (
            names::MAP_CUSTOMER_COUNTERS,
            size_of::<CustomerId>(),
            size_of::<CustomerCounters>(),
        ),
        (
            names::MAP_SKETCHES,
            size_of::<CustomerId>(),
            size_of::<Sketch>(),
        ),
    ];
    for object in [Object::Plain, Object::Log] {
        let maps = parse(object).maps;
        for (name, key, value) in expected {
            let map = &maps[name];
            let sizes = (map.key_size() as usize, map.value_size() as usize);
            assert_eq!(sizes, (key, value), "{name} in {object:?}");
        }
    }
}

#[test]
fn programs_of_both_objects_are_the_listed_ones() {
    for object in [Object::Plain, Object::Log] {
        let found: Vec<String> = parse(object).programs.into_keys().collect();
        assert_eq!(found, [names::PROGRAM_TC_INGRESS], "{object:?}");
    }
}

#[test]
fn license_of_both_objects_lets_the_kernel_lend_its_helpers() {
    for object in [Object::Plain, Object::Log] {
        assert_eq!(
            parse(object).license.to_str(),
            Ok("Dual MIT/GPL"),
            "{object:?}"
        );
    }
}

#[test]
fn names_of_maps_and_programs_fit_into_the_kernels_fifteen_bytes() {
    for name in names::MAPS.into_iter().chain([names::PROGRAM_TC_INGRESS]) {
        assert!(name.len() <= 15, "{name}");
    }
}

#[track_caller]
fn parse(object: Object) -> Parsed {
    let read = || {
        let path = object.path()?;
        anyhow::Ok(Parsed::parse(&fs::read(path)?)?)
    };
    read().unwrap_or_else(|error| panic!("{object:?}: {error:#}"))
}
