//! Which way packets for an address go.

use std::net::IpAddr;

use super::netlink::{self, NetlinkError, Request, Requests};

const RTM_GETROUTE: u16 = 26;
/// Bytes of `rtmsg`.
const RTMSG: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;

/// Why the way could not be found out.
#[derive(Debug, thiserror::Error)]
#[error("ask the kernel for the route to {address}")]
pub struct RouteError {
    /// Where to.
    address: IpAddr,
    /// What the kernel said.
    source: NetlinkError,
}

/// The index of the interface by which packets from this host to `address` leave; `None` where
/// there is no route.
///
/// # Errors
///
/// [`RouteError`].
pub fn way_to(address: IpAddr) -> Result<Option<u32>, RouteError> {
    ask(address).map_err(|source| RouteError { address, source })
}

fn ask(address: IpAddr) -> Result<Option<u32>, NetlinkError> {
    let mut fixed = [0; RTMSG];
    let request = match address {
        IpAddr::V4(v4) => {
            fixed[..2].copy_from_slice(&[libc::AF_INET as u8, 32]);
            Request::new(RTM_GETROUTE, 0, &fixed).attribute(RTA_DST, &v4.octets())
        }
        IpAddr::V6(v6) => {
            fixed[..2].copy_from_slice(&[libc::AF_INET6 as u8, 128]);
            Request::new(RTM_GETROUTE, 0, &fixed).attribute(RTA_DST, &v6.octets())
        }
    };
    let mut interface = None;
    let outcome = Requests::open()?.get(request, |payload| {
        let attributes = payload.get(RTMSG..).ok_or(NetlinkError::Malformed)?;
        for attribute in netlink::attributes(attributes) {
            let (kind, value) = attribute?;
            if kind == RTA_OIF {
                interface = Some(netlink::number(value, 0)?);
            }
        }
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(interface),
        // No way there.
        Err(NetlinkError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
