//! The link layer: Ethernet, VLAN tags, LLC/SNAP.

use super::{Form, Frame, Malformed, ParseError};
use crate::address::Family;

pub(super) const ETHERNET_HEADER: usize = 14;
const LLC_SNAP_HEADER: usize = 8;
const VLAN_TAG: usize = 4;

/// Tags that may stand before an IP header.
const MAX_VLAN_TAGS: u32 = 2;
/// Link-layer steps (tags, SNAP headers) that are looked through to learn that there are too many.
const MAX_LINK_STEPS: u32 = 4;

const ETHERTYPE_MIN: u16 = 0x0600;
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const ETHERTYPE_OLD_QINQ: u16 = 0x9100;
const LLC_SNAP: u8 = 0xaa;
/// What the kernel calls frames with an LLC header (`ETH_P_802_2`).
pub const PROTOCOL_LLC: u16 = 0x0004;
/// Ethertypes of tags. The kernel takes one off each frame, unless it is the last of these.
pub const ETHERTYPES_OF_TAGS: [u16; 3] =
    [ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_OLD_QINQ];

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// No IP packet.
    Other,
    /// An IP packet.
    Ip {
        /// Its family.
        family: Family,
        /// Offset of its header.
        network: usize,
        /// Whether its link header has the form that a reset can answer.
        form: Form,
    },
}

/// What [`link`] says of most frames that it finds IP in, told by one comparison.
#[inline(always)]
pub fn plain_link<F: Frame>(frame: &F) -> Option<Link> {
    // More would be too many together with those that the frame may have had.
    if frame.stripped_tags() > MAX_VLAN_TAGS {
        return None;
    }
    let family = match ethertype(frame, ETHERNET_HEADER - 2) {
        Ok(ETHERTYPE_IPV4) => Family::V4,
        Ok(ETHERTYPE_IPV6) => Family::V6,
        Ok(_) | Err(_) => return None,
    };
    Some(Link::Ip {
        family,
        network: ETHERNET_HEADER,
        form: Form::Plain,
    })
}

/// The first half of [`parse`]: looks through tags and SNAP headers.
///
/// # Errors
///
/// [`ParseError`].
#[inline(always)]
pub fn link<F: Frame>(frame: &F) -> Result<Link, ParseError> {
    let mut ethertype = ethertype(frame, ETHERNET_HEADER - 2)?;
    let mut network = ETHERNET_HEADER;
    let mut tags = frame.stripped_tags();
    let mut form = Form::Plain;
    for _ in 0..MAX_LINK_STEPS {
        let family = match ethertype {
            ETHERTYPE_IPV4 => Family::V4,
            ETHERTYPE_IPV6 => Family::V6,
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_OLD_QINQ => {
                ethertype = self::ethertype(frame, network + VLAN_TAG - 2)?;
                network += VLAN_TAG;
                tags += 1;
                continue;
            }
            length if length < ETHERTYPE_MIN => {
                let llc: [u8; 3] = load(frame, network)?;
                if !is_snap(llc) {
                    return other(frame, network);
                }
                ethertype = self::ethertype(frame, network + LLC_SNAP_HEADER - 2)?;
                network += LLC_SNAP_HEADER;
                form = Form::Unusual;
                continue;
            }
            _ => return other(frame, network),
        };
        if tags > MAX_VLAN_TAGS {
            return Err(ParseError::Malformed(Malformed::VlanDepth, family));
        }
        return Ok(Link::Ip {
            family,
            network,
            form,
        });
    }
    // So many steps that what is inside, IP or not, is no guest's ordinary traffic.
    Err(ParseError::Malformed(Malformed::VlanDepth, Family::V4))
}

/// No IP, unless a checksum is still to be written over what says so.
#[inline(always)]
fn other<F: Frame>(frame: &F, judged: usize) -> Result<Link, ParseError> {
    if frame.settled(judged) {
        Ok(Link::Other)
    } else {
        Err(ParseError::Malformed(Malformed::LateChecksum, Family::V4))
    }
}

#[inline(always)]
fn ethertype<F: Frame>(frame: &F, offset: usize) -> Result<u16, ParseError> {
    load(frame, offset).map(u16::from_be_bytes)
}

/// Bytes that are not there end the frame; bytes that are there and cannot be read may be an IP
/// header.
#[inline(always)]
fn load<F: Frame, const N: usize>(frame: &F, offset: usize) -> Result<[u8; N], ParseError> {
    frame.load(offset).ok_or(if offset + N > frame.length() {
        ParseError::ShortLink
    } else {
        ParseError::ShortNetwork(Family::V4)
    })
}

/// SNAP in an unnumbered frame, whatever the bits that tell individual from group, command from
/// response, and poll from final (IEEE 802.2): receivers differ in which of them they look at.
#[inline(always)]
const fn is_snap([destination, source, control]: [u8; 3]) -> bool {
    destination & !1 == LLC_SNAP && source & !1 == LLC_SNAP && control & 3 == 3
}
