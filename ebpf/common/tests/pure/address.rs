//! Canonical addresses.

use std::net::IpAddr;

use gate25_common::address::Address;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

#[track_caller]
fn canonical(text: &str, octets: [u8; 16]) {
    let parsed: IpAddr = text.parse().expect("an address");
    assert_eq!(Address::from(parsed).octets(), octets, "{text}");
}

const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 25];

#[test]
fn ipv4_becomes_mapped() {
    canonical("192.0.2.25", MAPPED);
}

#[test]
fn mapped_stays_as_it_is() {
    canonical("::ffff:192.0.2.25", MAPPED);
}

#[test]
fn nat64_of_the_well_known_prefix_becomes_ipv4() {
    canonical("64:ff9b::192.0.2.25", MAPPED);
}

#[test]
fn nat64_of_the_local_prefix_stays_ipv6() {
    canonical(
        "64:ff9b:1::c000:219",
        [0, 0x64, 0xff, 0x9b, 0, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 25],
    );
}

#[test]
fn bits_between_the_nat64_prefix_and_the_address_keep_it_ipv6() {
    canonical(
        "64:ff9b::1:c000:219",
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 1, 192, 0, 2, 25],
    );
}

#[test]
fn ipv6_stays_as_it_is() {
    canonical(
        "2001:db8::25",
        [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x25],
    );
}

#[test]
fn ipv4_compatible_is_not_ipv4() {
    canonical(
        "::192.0.2.25",
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 25],
    );
}

proptest! {
    #[test]
    fn ipv4_reads_back(octets in any::<[u8; 4]>()) {
        let address = Address::from_v4(octets);
        prop_assert!(address.is_v4());
        prop_assert_eq!(IpAddr::from(address), IpAddr::from(octets));
    }

    #[test]
    fn every_spelling_of_an_ipv4_address_is_one_address(octets in any::<[u8; 4]>()) {
        let v4 = std::net::Ipv4Addr::from(octets);
        let [a, b, c, d] = octets;
        let nat64 = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d];
        prop_assert_eq!(Address::from_v6(v4.to_ipv6_mapped().octets()), Address::from_v4(octets));
        prop_assert_eq!(Address::from_v6(nat64), Address::from_v4(octets));
    }

    #[test]
    fn canonical_form_is_reached_in_one_step(octets in any::<[u8; 16]>()) {
        let address = Address::from_v6(octets);
        prop_assert_eq!(Address::from_v6(address.octets()), address);
    }
}

#[test]
fn loopback_is_what_a_connect_takes_for_the_host_itself() {
    for own in [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
    ] {
        let address: std::net::IpAddr = own.parse().unwrap();
        assert!(Address::from(address).is_loopback(), "{own}");
    }
    for other in [
        "126.0.0.1",
        "128.0.0.1",
        "0.0.0.1",
        "10.0.0.1",
        "::2",
        "1::1",
        "fe80::1",
    ] {
        let address: std::net::IpAddr = other.parse().unwrap();
        assert!(!Address::from(address).is_loopback(), "{other}");
    }
}
