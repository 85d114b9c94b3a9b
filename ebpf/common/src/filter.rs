//! Says of most destinations that a set does not hold them, without a look at the set.
//!
//! Most packets for a guarded port are refused, and a trie tells that no prefix matches only at the
//! end of a long walk. A filter is part of the policy, which has been read by then.

use crate::address::Address;

const WORDS: usize = 4;
/// Bits of an address that are told apart.
const TOLD: u8 = 64;
/// In place of a length: no prefix of the family.
const ABSENT: u8 = u8::MAX;
/// 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// So that addresses of the two families do not fall on the same bits.
const V6_MARK: u64 = 0x5851_f42d_4c95_7f2d;

/// Which destinations a set of prefixes may hold: a Bloom filter over the first bits of addresses,
/// as many as the shortest prefix of the family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SetFilter {
    bits: [u64; WORDS],
    v4: u8,
    v6: u8,
    pad: [u8; 6],
}

/// The first bits of an address, from the highest bit on, and whether it is IPv4.
#[inline(always)]
fn beginning(address: &Address) -> (u64, bool) {
    let [a, b, c, d] = address.words().map(u32::from_be);
    if a == 0 && b == 0 && c == 0xffff {
        (u64::from(d) << 32, true)
    } else {
        (u64::from(a) << 32 | u64::from(b), false)
    }
}

/// The first `length` bits, at most 64.
#[inline(always)]
const fn cut(beginning: u64, length: u8) -> u64 {
    match length {
        0 => 0,
        length => beginning & (u64::MAX << (64 - length as u32 & 63)),
    }
}

/// The word and the bit that stand for these bits of an address.
#[inline(always)]
const fn place(cut: u64, is_v4: bool) -> (usize, u64) {
    let family = if is_v4 { 0 } else { V6_MARK };
    let hash = (cut ^ family).wrapping_mul(SPREAD);
    ((hash >> 62) as usize, 1 << (hash >> 56 & 63))
}

impl SetFilter {
    /// Rules nothing out.
    pub const ALL: Self = Self {
        bits: [u64::MAX; WORDS],
        v4: 0,
        v6: 0,
        pad: [0; 6],
    };

    /// The filter of a set with these prefixes: first address, and how many of its 128 bits count.
    pub fn of(prefixes: impl Iterator<Item = (Address, u8)> + Clone) -> Self {
        let mut filter = Self {
            bits: [0; WORDS],
            v4: ABSENT,
            v6: ABSENT,
            pad: [0; 6],
        };
        let whole = Address::from_v4([0; 4]);
        let parts = |(address, length): (Address, u8)| {
            let (bits, is_v4) = beginning(&address);
            let own = match is_v4 {
                true => (bits, length.saturating_sub(96), true),
                false => (bits, length.min(TOLD), false),
            };
            // Shorter than what IPv4 addresses begin with, and all of them are in it.
            let all_of_v4 = length < 96 && covers((address, length), &whole);
            [Some(own), all_of_v4.then_some((0, 0, true))]
        };
        let parts = || prefixes.clone().flat_map(parts).flatten();
        for (_, length, is_v4) in parts() {
            let shortest = if is_v4 {
                &mut filter.v4
            } else {
                &mut filter.v6
            };
            *shortest = length.min(*shortest);
        }
        for (bits, _, is_v4) in parts() {
            let length = if is_v4 { filter.v4 } else { filter.v6 };
            let (word, bit) = place(cut(bits, length), is_v4);
            if let Some(word) = filter.bits.get_mut(word) {
                *word |= bit;
            }
        }
        filter
    }

    /// Whether the set may hold `address`; if not, it certainly does not.
    #[inline(always)]
    pub fn may_hold(&self, address: &Address) -> bool {
        let (bits, is_v4) = beginning(address);
        let length = if is_v4 { self.v4 } else { self.v6 };
        if length == ABSENT {
            return false;
        }
        let (word, bit) = place(cut(bits, length), is_v4);
        match self.bits.get(word) {
            Some(word) => word & bit != 0,
            // There is no such word.
            None => true,
        }
    }
}

fn covers((prefix, length): (Address, u8), address: &Address) -> bool {
    let distance = u128::from_be_bytes(prefix.octets()) ^ u128::from_be_bytes(address.octets());
    distance.leading_zeros() >= u32::from(length)
}

const _: () = assert!(size_of::<SetFilter>() == 40);
