//! Notices when somebody, ourselves included, changes the nftables ruleset, or something else of which
//! it does not matter what the change was.

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::io::unix::AsyncFd;

use super::readiness::readable;

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const NFNLGRP_NFTABLES: u32 = 7;
/// What a change was does not matter, so this much of each message is enough.
const GLIMPSE: usize = 16;

/// A subscription to changes in one network namespace.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<Socket>,
}

impl Changes {
    /// Subscribes to changes of the ruleset in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses it: without nf_tables, or without `CAP_NET_ADMIN`.
    pub fn subscribe() -> io::Result<Self> {
        Self::of(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])
    }

    /// Subscribes to multicast groups of a protocol of netlink.
    pub(super) fn of(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self {
            socket: readable(socket)?,
        })
    }

    /// Returns once there was a change, and takes note of all that were announced so far. Dropping
    /// the future loses nothing.
    ///
    /// # Errors
    /// When the subscription is beyond use.
    pub async fn next(&mut self) -> io::Result<()> {
        let mut seen = false;
        loop {
            let mut ready = self.socket.readable().await?;
            let mut message = Vec::with_capacity(GLIMPSE);
            match ready.try_io(|socket| socket.get_ref().recv(&mut message, 0)) {
                Ok(Ok(_)) => seen = true,
                // More was announced than the kernel keeps for us: there was a change.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => seen = true,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) if seen => return Ok(()),
                Err(_would_block) => {}
            }
        }
    }
}
