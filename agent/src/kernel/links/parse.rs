//! Reading interface and qdisc messages.

use super::{Interface, Kind, LinkEvent, Peer};
use crate::kernel::netlink::{NetlinkError, attributes, lossless, number, split, text};

/// Bytes of `ifinfomsg`.
pub(super) const IFINFO: usize = 16;
/// Bytes of `tcmsg`.
const TCMSG: usize = 20;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_DELQDISC: u16 = 37;
const RTM_DELTFILTER: u16 = 45;

const AF_UNSPEC: u8 = 0;
const ARPHRD_ETHER: u16 = 1;

const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
pub(super) const IFLA_INFO_KIND: u16 = 1;

/// Parent of the ingress and clsact qdiscs.
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// Parent of a clsact qdisc's ingress filters; an ingress qdisc's have `TC_H_INGRESS`'s major.
const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;
/// Parent of an ingress qdisc's filters, as the kernel reports it.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// The events in one datagram of notifications.
pub(super) fn events(datagram: &[u8]) -> Result<Vec<LinkEvent>, NetlinkError> {
    let mut events = Vec::new();
    for message in split(datagram) {
        let message = message?;
        let payload = message.payload();
        match message.message_type() {
            RTM_NEWLINK => events.extend(interface(payload)?.map(LinkEvent::Upsert)),
            RTM_DELLINK => events.extend(gone(payload)?),
            RTM_DELQDISC | RTM_DELTFILTER => events.extend(qdisc_gone(payload)?),
            _ => {}
        }
    }
    Ok(events)
}

/// The interface that a `RTM_NEWLINK` describes; none for a bridge's own view of its port, which
/// comes on the same group and says nothing that the interface's own messages do not.
pub(super) fn interface(payload: &[u8]) -> Result<Option<Interface>, NetlinkError> {
    let (header, rest) = header(payload)?;
    if header.family != AF_UNSPEC {
        return Ok(None);
    }
    let mut name = String::new();
    let mut kind: &[u8] = &[];
    let mut link = None;
    let mut link_netns = None;
    let mut master = None;
    for attribute in attributes(rest) {
        match attribute? {
            (IFLA_IFNAME, value) => name = lossless(text(value)),
            (IFLA_LINK, value) => link = Some(number(value, 0)?),
            (IFLA_LINK_NETNSID, value) => link_netns = Some(number(value, 0)? as i32),
            (IFLA_MASTER, value) => master = Some(number(value, 0)?),
            (IFLA_LINKINFO, value) => kind = info_kind(value)?,
            _ => {}
        }
    }
    let kind = match kind {
        b"tun" if header.hardware == ARPHRD_ETHER => Kind::Tap,
        b"tun" => Kind::Tun,
        // Unlike any other interface's, a veth's link is its peer.
        b"veth" => Kind::Veth {
            peer: link.filter(|index| *index != 0).map(|index| Peer {
                index,
                netns: link_netns,
            }),
        },
        b"bridge" => Kind::Bridge,
        _ => Kind::Other,
    };
    Ok(Some(Interface {
        index: header.index,
        name,
        kind,
        master,
    }))
}

fn info_kind(info: &[u8]) -> Result<&[u8], NetlinkError> {
    for attribute in attributes(info) {
        if let (IFLA_INFO_KIND, value) = attribute? {
            return Ok(text(value));
        }
    }
    Ok(&[])
}

/// `RTM_DELLINK` from a bridge means that the port left it: the interface itself lives on, and its
/// own message says so.
fn gone(payload: &[u8]) -> Result<Option<LinkEvent>, NetlinkError> {
    let (header, _) = header(payload)?;
    Ok((header.family == AF_UNSPEC).then_some(LinkEvent::Gone {
        index: header.index,
    }))
}

fn qdisc_gone(payload: &[u8]) -> Result<Option<LinkEvent>, NetlinkError> {
    if payload.len() < TCMSG {
        return Err(NetlinkError::Malformed);
    }
    let index = number(payload, 4)?;
    Ok(match number(payload, 12)? {
        TC_H_INGRESS | TC_H_MIN_INGRESS | INGRESS_HANDLE => Some(LinkEvent::QdiscGone { index }),
        _ => None,
    })
}

struct Header {
    family: u8,
    hardware: u16,
    index: u32,
}

fn header(payload: &[u8]) -> Result<(Header, &[u8]), NetlinkError> {
    let Some((fixed, rest)) = payload.split_at_checked(IFINFO) else {
        return Err(NetlinkError::Malformed);
    };
    let hardware = u16::from_ne_bytes([fixed[2], fixed[3]]);
    Ok((
        Header {
            family: fixed[0],
            hardware,
            index: number(fixed, 4)?,
        },
        rest,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    #[test]
    fn interface_truncated_header_is_an_error() {
        assert!(matches!(interface(&[0; 15]), Err(NetlinkError::Malformed)));
    }

    proptest! {
        #[test]
        fn events_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _events = events(&bytes);
            let _interface = interface(&bytes);
            let _gone = qdisc_gone(&bytes);
        }
    }
}
