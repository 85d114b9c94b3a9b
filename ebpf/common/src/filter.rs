//! Says of most destinations that a set does not hold them, without a look at the set.
//!
//! Most packets for a guarded port are refused, and a trie tells that no prefix matches only at the
//! end of a long walk. A filter is part of the policy, which has been read by then.

use crate::address::{Address, Family};

const WORDS: usize = 4;
/// Bits of an address that are told apart.
const TOLD: u8 = 64;
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
    /// Bits of an IPv4 address that count, from the highest on.
    v4: u64,
    /// The same of an IPv6 address.
    v6: u64,
}

/// What filters look at of an address.
#[derive(Debug, Clone, Copy)]
pub struct Beginning {
    bits: u64,
    /// All ones for IPv6, 0 for IPv4.
    v6: u64,
}

impl Beginning {
    /// The first bits of an address, from the highest bit on.
    #[inline(always)]
    pub fn of(address: &Address) -> Self {
        let [a, b, c, d] = address.words().map(|word| u64::from(u32::from_be(word)));
        let unlike_v4 = a | b | (c ^ 0xffff);
        let v6 = ((unlike_v4 | unlike_v4.wrapping_neg()) >> 63).wrapping_neg();
        Self {
            bits: d << 32 & !v6 | (a << 32 | b) & v6,
            v6,
        }
    }

    /// As two numbers, for [`Self::from_parts`].
    #[inline(always)]
    pub const fn parts(self) -> (u64, u64) {
        (self.bits, self.v6)
    }

    /// What [`Self::parts`] took apart.
    #[inline(always)]
    pub const fn from_parts((bits, v6): (u64, u64)) -> Self {
        Self { bits, v6 }
    }

    const fn family(self) -> Family {
        match self.v6 {
            0 => Family::V4,
            _ => Family::V6,
        }
    }
}

/// The first `length` bits, at most 64.
const fn first(length: u8) -> u64 {
    match length {
        0 => 0,
        length => u64::MAX << (64 - length as u32),
    }
}

/// The word and the bit that stand for these bits of an address.
#[inline(always)]
const fn place(bits: u64, v6: u64) -> (usize, u64) {
    let hash = (bits ^ V6_MARK & v6).wrapping_mul(SPREAD);
    ((hash >> 62) as usize, 1 << (hash >> 56 & 63))
}

impl SetFilter {
    /// Rules nothing out.
    pub const ALL: Self = Self {
        bits: [u64::MAX; WORDS],
        v4: 0,
        v6: 0,
    };

    /// The filter of a set with these prefixes: first address, and how many of its 128 bits count.
    pub fn of(prefixes: impl Iterator<Item = (Address, u8)> + Clone) -> Self {
        // All of an address counts where the family has no prefix.
        let mut filter = Self {
            bits: [0; WORDS],
            v4: first(32),
            v6: first(TOLD),
        };
        let whole = Address::from_v4([0; 4]);
        let parts = |(address, length): (Address, u8)| {
            let beginning = Beginning::of(&address);
            let own = match beginning.family() {
                Family::V4 => length.saturating_sub(96),
                Family::V6 => length.min(TOLD),
            };
            // Shorter than what IPv4 addresses begin with, and all of them are in it.
            let all_of_v4 = length < 96 && covers((address, length), &whole);
            let of_v4 = Beginning { bits: 0, v6: 0 };
            [Some((beginning, own)), all_of_v4.then_some((of_v4, 0))]
        };
        let parts = || prefixes.clone().flat_map(parts).flatten();
        for (beginning, length) in parts() {
            let counting = match beginning.family() {
                Family::V4 => &mut filter.v4,
                Family::V6 => &mut filter.v6,
            };
            *counting &= first(length);
        }
        for (beginning, _) in parts() {
            let (word, bit) = filter.place_of(beginning);
            if let Some(word) = filter.bits.get_mut(word) {
                *word |= bit;
            }
        }
        filter
    }

    #[inline(always)]
    const fn place_of(&self, Beginning { bits, v6 }: Beginning) -> (usize, u64) {
        let counting = self.v4 & !v6 | self.v6 & v6;
        place(bits & counting, v6)
    }

    /// Whether the set may hold the address that begins so; if not, it certainly does not.
    #[inline(always)]
    pub fn may_hold(&self, beginning: Beginning) -> bool {
        let (word, bit) = self.place_of(beginning);
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

const _: () = assert!(size_of::<SetFilter>() == 48);
