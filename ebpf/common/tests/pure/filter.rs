//! Filters of sets: what a set holds is never ruled out, and most of the rest is.

use gate25_common::address::Address;
use gate25_common::filter::{Beginning, SetFilter};
use proptest::prelude::*;

/// A prefix: its first address in canonical form, and the bits of it that count.
type Prefix = (u128, u8);

const MAPPED: u128 = 0xffff_0000_0000;

fn address(bits: u128) -> Address {
    Address::from_v6(bits.to_be_bytes())
}

fn beginning(bits: u128) -> Beginning {
    Beginning::of(&address(bits))
}

fn filter(prefixes: &[Prefix]) -> SetFilter {
    SetFilter::of(
        prefixes
            .iter()
            .map(|(bits, length)| (address(*bits), *length)),
    )
}

/// Where prefixes are dense, so that they are in each other and share beginnings.
fn any_prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (any::<u32>(), 0..=32u8).prop_map(|(bits, length)| {
        let bits = MAPPED | u128::from(bits & 0x0f0f_ff0f);
        (bits, length + 96)
    });
    let v6 = (any::<u128>(), 0..=128u8).prop_map(|(bits, length)| (bits, length));
    let around = (any::<u128>(), 0..96u8).prop_map(|(_, length)| (MAPPED, length));
    let prefix = prop_oneof![4 => v4, 4 => v6, 1 => around];
    prefix.prop_map(|(bits, length)| (bits & mask(length), length))
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

proptest! {
    #[test]
    fn filter_of_a_set_may_hold_whatever_is_in_a_prefix(
        prefixes in prop::collection::vec(any_prefix(), 1..40),
        of in any::<prop::sample::Index>(),
        low in any::<u128>(),
    ) {
        let (bits, length) = *of.get(&prefixes);
        let inside = bits | low & !mask(length);
        prop_assert!(filter(&prefixes).may_hold(beginning(inside)));
    }

    #[test]
    fn filter_of_a_set_may_hold_ipv4_addresses_of_its_prefixes(
        prefixes in prop::collection::vec(any_prefix(), 1..40),
        low in any::<u32>(),
    ) {
        let inside = MAPPED | u128::from(low);
        let held = prefixes.iter().any(|(bits, length)| inside & mask(*length) == *bits);
        prop_assert!(!held || filter(&prefixes).may_hold(beginning(inside)));
    }
}

#[test]
fn filter_without_prefixes_rules_everything_out() {
    let empty = filter(&[]);
    assert!(!empty.may_hold(beginning(MAPPED | 1)));
    assert!(!empty.may_hold(beginning(1)));
}

#[test]
fn filter_of_one_family_rules_the_other_out() {
    let v6 = filter(&[(0x2001_0db8 << 96, 32)]);
    assert!(!v6.may_hold(beginning(MAPPED | 0x0a00_0001)));
    let v4 = filter(&[(MAPPED | 0x0a00_0000, 104)]);
    assert!(!v4.may_hold(beginning(0x2001_0db8 << 96)));
}

/// Ten prefixes take at most ten of the 256 bits, so that 246 of 256 destinations are ruled out.
#[test]
fn filter_of_ten_prefixes_rules_out_nine_of_ten_destinations() {
    let prefixes: Vec<Prefix> = (0..10)
        .map(|number| (MAPPED | 0x0a00_0000 | number << 5, 123))
        .collect();
    let filter = filter(&prefixes);
    let passed = (0..10_000u128)
        .filter(|number| filter.may_hold(beginning(MAPPED | 0x0b00_0000 | number << 5)))
        .count();
    assert!(passed < 1_000, "{passed} of 10,000 are looked up");
}
