//! Canonical addresses: one form for every table and event.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
const NAT64_PREFIX: [u8; 12] = [0x00, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Address([u8; 16]);

impl Address {
    /// The canonical form of four bytes of IPv4 address.
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
        ])
    }

    /// The canonical form of sixteen bytes of IPv6 address.
    #[inline(always)]
    pub fn from_v6(v6: [u8; 16]) -> Self {
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            a8,
            a9,
            a10,
            a11,
            b0,
            b1,
            b2,
            b3,
        ] = v6;
        if [a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11] == NAT64_PREFIX {
            Self::from_v4([b0, b1, b2, b3])
        } else {
            Self(v6)
        }
    }

    /// The sixteen bytes in network order.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        self.0
    }

    /// Whether the address stands for an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.0.first_chunk() == Some(&MAPPED_PREFIX)
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
        let [.., a, b, c, d] = address.0;
        if address.is_v4() {
            Self::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            Self::V6(Ipv6Addr::from(address.0))
        }
    }
}
