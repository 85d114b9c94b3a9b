//! A set of canonical prefixes as the addresses that packets carry. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use gate25_common::address::Address;

use crate::compile::Prefix;

/// `::ffff:0:0/96`, where canonical addresses have IPv4.
const MAPPED: Range<u128> = Range {
    first: 0xffff_0000_0000,
    last: 0xffff_ffff_ffff,
};
/// `64:ff9b::/96` (RFC 6052).
const NAT64: Range<u128> = Range {
    first: 0x0064_ff9b << 96,
    last: (0x0064_ff9b << 96) | 0xffff_ffff,
};

/// Addresses from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<T> {
    /// The first of them.
    pub first: T,
    /// The last of them.
    pub last: T,
}

/// Addresses as they stand in packets, sorted, no two ranges next to each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Of IPv4 packets.
    pub v4: Vec<Range<Ipv4Addr>>,
    /// Of IPv6 packets: mapped and NAT64 forms of IPv4 addresses, too.
    pub v6: Vec<Range<Ipv6Addr>>,
}

/// What `prefixes` hold.
#[must_use]
pub fn addresses(prefixes: &[Prefix]) -> Addresses {
    let canonical = merge(prefixes.iter().map(range).collect());
    let v4: Vec<Range<u128>> = canonical
        .iter()
        .filter_map(|range| range.within(MAPPED))
        .map(|range| range.moved(MAPPED.first, 0))
        .collect();
    // What a NAT64 address is judged by is the IPv4 address inside, whatever prefix of IPv6 it
    // lies in.
    let mut v6: Vec<Range<u128>> = canonical
        .iter()
        .flat_map(|range| range.without(NAT64))
        .collect();
    v6.extend(v4.iter().map(|range| range.moved(0, NAT64.first)));
    Addresses {
        v4: v4
            .iter()
            .map(|range| range.map(|bits| Ipv4Addr::from(bits as u32)))
            .collect(),
        v6: merge(v6)
            .iter()
            .map(|range| range.map(Ipv6Addr::from))
            .collect(),
    }
}

fn range(prefix: &Prefix) -> Range<u128> {
    let Prefix {
        address,
        length,
        entry: _,
    } = prefix;
    let host = u128::MAX.checked_shr((*length).into()).unwrap_or(0);
    let first = number(*address) & !host;
    Range {
        first,
        last: first | host,
    }
}

fn number(address: Address) -> u128 {
    u128::from_be_bytes(address.octets())
}

/// Sorted, with what overlaps or touches put together.
fn merge(mut ranges: Vec<Range<u128>>) -> Vec<Range<u128>> {
    ranges.sort_unstable_by_key(|range| range.first);
    let mut merged: Vec<Range<u128>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(range.last);
            }
            Some(_) | None => merged.push(range),
        }
    }
    merged
}

impl Range<u128> {
    fn within(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(Self { first, last })
    }

    fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let below = other
            .first
            .checked_sub(1)
            .map(|last| Self { first: 0, last });
        let above = other.last.checked_add(1).map(|first| Self {
            first,
            last: u128::MAX,
        });
        let parts = [below, above].into_iter().flatten();
        parts.filter_map(move |part| self.within(part))
    }

    fn moved(self, from: u128, to: u128) -> Self {
        Self {
            first: self.first - from + to,
            last: self.last - from + to,
        }
    }

    fn map<T>(self, form: impl Fn(u128) -> T) -> Range<T> {
        Range {
            first: form(self.first),
            last: form(self.last),
        }
    }
}
