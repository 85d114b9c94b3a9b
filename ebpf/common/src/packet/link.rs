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
const LLC_SNAP: [u8; 3] = [0xaa, 0xaa, 0x03];

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
                let llc: [u8; 3] = frame.load(network).ok_or(ParseError::ShortLink)?;
                if llc != LLC_SNAP {
                    return Ok(Link::Other);
                }
                ethertype = self::ethertype(frame, network + LLC_SNAP_HEADER - 2)?;
                network += LLC_SNAP_HEADER;
                form = Form::Unusual;
                continue;
            }
            _ => return Ok(Link::Other),
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

#[inline(always)]
fn ethertype<F: Frame>(frame: &F, offset: usize) -> Result<u16, ParseError> {
    frame
        .load(offset)
        .map(u16::from_be_bytes)
        .ok_or(ParseError::ShortLink)
}
