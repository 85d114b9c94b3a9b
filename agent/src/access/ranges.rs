//! Sets of canonical addresses as ranges.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::policy::ANY;

/// Bits before an IPv4 address in its canonical form.
const MAPPED_BITS: u8 = 96;

/// Addresses: ranges from the first to the last, sorted, none touching another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    pub(super) fn of(ranges: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let mut all: Vec<_> = ranges.into_iter().collect();
        all.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                Some(_) | None => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Every address.
    pub(super) fn all() -> Self {
        Self(vec![(0, u128::MAX)])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, other: &Self) {
        if !other.is_empty() {
            let own = std::mem::take(&mut self.0);
            *self = Self::of(own.into_iter().chain(other.0.iter().copied()));
        }
    }

    /// What is in here and not in `other`.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut others = other.0.iter().peekable();
        for &(first, last) in &self.0 {
            let mut at = Some(first);
            while others.peek().is_some_and(|(_, end)| *end < first) {
                others.next();
            }
            for &(from, to) in others.clone().take_while(|(from, _)| *from <= last) {
                let Some(begin) = at else { break };
                if begin < from {
                    left.push((begin, from - 1));
                }
                at = to.checked_add(1).filter(|next| *next <= last);
            }
            left.extend(at.map(|begin| (begin, last)));
        }
        Self(left)
    }

    /// Whether all of a piece, made by [`Self::pieces`] of these and others, is in here.
    pub(super) fn hold(&self, (first, _): (u128, u128)) -> bool {
        let after = self.0.partition_point(|(from, _)| *from <= first);
        let last = after.checked_sub(1).and_then(|index| self.0.get(index));
        last.is_some_and(|(_, to)| first <= *to)
    }

    /// The largest ranges of which each set holds all or nothing.
    pub(super) fn pieces<'r>(sets: impl Iterator<Item = &'r Self> + Clone) -> Vec<(u128, u128)> {
        // Where something begins: at a range's first address, or behind its last one.
        let mut begins: Vec<u128> = sets
            .clone()
            .flat_map(|set| &set.0)
            .flat_map(|(first, last)| [Some(*first), last.checked_add(1)])
            .flatten()
            .collect();
        begins.sort_unstable();
        begins.dedup();
        let ends = begins
            .iter()
            .skip(1)
            .map(|next| next - 1)
            .chain([u128::MAX]);
        let all = begins.iter().copied().zip(ends);
        all.filter(|piece| sets.clone().any(|set| set.hold(*piece)))
            .collect()
    }

    /// As people write it: prefixes, or `any` and the prefixes that it leaves out.
    pub(super) fn words(&self) -> (Vec<String>, Vec<String>) {
        let to = self.prefixes();
        let except = Self::all().without(self).prefixes();
        if except.len() < to.len() {
            (vec![ANY.to_owned()], except)
        } else {
            (to, Vec::new())
        }
    }

    /// The fewest prefixes that make these ranges, those of IPv4 as such.
    fn prefixes(&self) -> Vec<String> {
        let mut prefixes = Vec::new();
        for &(first, last) in &self.0 {
            let mut at = Some(first);
            while let Some(begin) = at.filter(|begin| *begin <= last) {
                // As large as its beginning and what is left allow.
                let aligned = begin.trailing_zeros().min(128);
                let mut bits = aligned;
                while bits > 0 && end(begin, bits) > last {
                    bits -= 1;
                }
                prefixes.push(word(begin, 128 - bits));
                at = end(begin, bits).checked_add(1);
            }
        }
        prefixes
    }
}

/// The last of the addresses that differ from the first in so many bits at most.
fn end(first: u128, bits: u32) -> u128 {
    match 1u128.checked_shl(bits) {
        Some(size) => first | (size - 1),
        None => u128::MAX,
    }
}

fn word(first: u128, length: u32) -> String {
    let address = Ipv6Addr::from(first);
    let length = u8::try_from(length).unwrap_or(u8::MAX);
    let net = match (address.to_ipv4_mapped(), length.checked_sub(MAPPED_BITS)) {
        (Some(v4), Some(length)) => Ipv4Net::new(v4, length).map(IpNet::from),
        (Some(_) | None, _) => Ipv6Net::new(address, length).map(IpNet::from),
    };
    match net {
        Ok(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
        Ok(net) => net.to_string(),
        Err(_) => format!("{address}/{length}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_ranges() -> impl Strategy<Value = Ranges> {
        let edge = prop_oneof![0..40_u128, (0..40_u128).prop_map(|it| u128::MAX - it)];
        let range = (edge.clone(), edge).prop_map(|(a, b)| (a.min(b), a.max(b)));
        prop::collection::vec(range, 0..6).prop_map(Ranges::of)
    }

    proptest! {
        #[test]
        fn difference_holds_what_the_one_holds_and_the_other_does_not(
            one in any_ranges(),
            other in any_ranges(),
        ) {
            let left = one.without(&other);
            for low in 0..42 {
                for address in [low, u128::MAX - low] {
                    let piece = (address, address);
                    let expected = one.hold(piece) && !other.hold(piece);
                    prop_assert_eq!(left.hold(piece), expected, "{}", address);
                }
            }
        }

        #[test]
        fn pieces_make_up_all_sets_and_are_wholly_in_each_or_not_at_all(
            one in any_ranges(),
            other in any_ranges(),
        ) {
            let pieces = Ranges::pieces([&one, &other].into_iter());
            let mut both = one.clone();
            both.add(&other);
            prop_assert_eq!(Ranges::of(pieces.iter().copied()), both);
            for set in [&one, &other] {
                let held = pieces.iter().copied().filter(|piece| set.hold(*piece));
                prop_assert_eq!(&Ranges::of(held), set);
            }
        }
    }

    #[test]
    fn words_are_the_fewest_prefixes() {
        let v4 = |text: &str| -> u128 {
            let v4: std::net::Ipv4Addr = text.parse().unwrap();
            u128::from(v4.to_ipv6_mapped())
        };
        let ranges = Ranges::of([
            (v4("192.0.2.0"), v4("192.0.2.255")),
            (v4("198.51.100.7"), v4("198.51.100.8")),
        ]);
        let words = ["192.0.2.0/24", "198.51.100.7", "198.51.100.8"].map(str::to_owned);
        assert_eq!(ranges.words(), (words.to_vec(), vec![]));
        assert_eq!(Ranges::all().words(), (vec!["any".to_owned()], vec![]));
        let hole = Ranges::all().without(&ranges);
        assert_eq!(hole.words(), (vec!["any".to_owned()], words.to_vec()));
        assert_eq!(Ranges::default().words(), (vec![], vec![]));
        let v6 = Ranges::of([(0x2001_0db8 << 96, (0x2001_0db9 << 96) - 1)]);
        assert_eq!(v6.words().0, ["2001:db8::/32"]);
    }
}
