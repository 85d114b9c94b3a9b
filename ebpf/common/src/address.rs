//! Canonical addresses: one form for every table and event.

use core::cmp::Ordering;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAPPED_WORD: u32 = 0xffffu32.to_be();
const NAT64_WORD: u32 = 0x0064_ff9bu32.to_be();

/// Which protocol family a packet belongs to; the index of the counters' last dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

impl Family {
    /// Every family, in the order of the counters.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// An address in network byte order, IPv4 as `::ffff:a.b.c.d`.
///
/// NAT64 addresses of the well-known prefix `64:ff9b::/96` (RFC 6052) become the IPv4 address
/// inside, so that a translator is no way around an IPv4 rule.
///
/// Four words rather than sixteen bytes: the compiler would keep each byte on the kernel
/// program's small stack by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Address([u32; 4]);

impl Address {
    /// The canonical form of four bytes of IPv4 address.
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self([0, 0, MAPPED_WORD, u32::from_ne_bytes(v4)])
    }

    /// The canonical form of sixteen bytes of IPv6 address.
    #[inline(always)]
    pub const fn from_v6(v6: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = v6;
        Self::from_v6_words([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The canonical form of an IPv6 address of four words, each in network order.
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        match words {
            [NAT64_WORD, 0, 0, v4] => Self([0, 0, MAPPED_WORD, v4]),
            words => Self(words),
        }
    }

    /// The sixteen bytes in network order.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let [a0, a1, a2, a3] = a.to_ne_bytes();
        let [b0, b1, b2, b3] = b.to_ne_bytes();
        let [c0, c1, c2, c3] = c.to_ne_bytes();
        let [d0, d1, d2, d3] = d.to_ne_bytes();
        [
            a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3,
        ]
    }

    /// The address with these words, each in network order, which must be canonical already.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The four words, each in network order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// Whether it always means the host itself: 127/8 and `::1`, and the unspecified addresses,
    /// which a connect turns into these.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.0 {
            [0, 0, MAPPED_WORD, v4] => v4 == 0 || v4.to_ne_bytes()[0] == 127,
            [0, 0, 0, last] => last == 0 || last == 1u32.to_be(),
            _ => false,
        }
    }

    /// Whether the address stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        matches!(self.0, [0, 0, MAPPED_WORD, _])
    }
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let [.., a, b, c, d] = address.octets();
        if address.is_v4() {
            Self::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            Self::V6(Ipv6Addr::from(address.octets()))
        }
    }
}
