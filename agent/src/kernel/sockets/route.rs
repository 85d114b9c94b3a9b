//! Whether an address is the namespace's own.

use std::collections::HashMap;
use std::net::IpAddr;

use super::SocketsError;
use crate::kernel::netlink::{NetlinkError, Requests};
use crate::kernel::routes::{RTA_OIF, is_local, route_to};

/// The routes of the namespace that its socket was made in.
pub(super) struct Routes {
    requests: Requests,
    known: HashMap<(IpAddr, u32), bool>,
}

impl Routes {
    pub(super) fn new(requests: Requests) -> Self {
        Self {
            requests,
            known: HashMap::new(),
        }
    }

    /// Whether what is sent to `destination` stays in the namespace; `interface` is what the
    /// sending socket is bound to, or 0.
    pub(super) fn is_local(
        &mut self,
        destination: IpAddr,
        interface: u32,
    ) -> Result<bool, SocketsError> {
        if destination.is_loopback() {
            return Ok(true);
        }
        if let Some(known) = self.known.get(&(destination, interface)) {
            return Ok(*known);
        }
        let is_local = self.ask(destination, interface)?;
        self.known.insert((destination, interface), is_local);
        Ok(is_local)
    }

    fn ask(&mut self, destination: IpAddr, interface: u32) -> Result<bool, SocketsError> {
        let request = route_to(destination);
        let request = if interface == 0 {
            request
        } else {
            request.attribute(RTA_OIF, &interface.to_ne_bytes())
        };
        let mut local = false;
        let outcome = self.requests.get(request, |payload| {
            local = is_local(payload)?;
            Ok(())
        });
        match outcome {
            Ok(()) => Ok(local),
            // No way there, or none any more.
            Err(NetlinkError::Refused { .. }) => Ok(false),
            Err(error) => Err(SocketsError::Route(error)),
        }
    }
}
