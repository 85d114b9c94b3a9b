//! The host's network interfaces, as the kernel reports them.
//!
//! [`Links`] subscribes before it lists, so nothing falls between the two. Events only save time:
//! whoever follows them reads a [`Links::snapshot`] whenever they say that something was lost, and
//! every so often anyway.

mod detail;
mod parse;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, RawFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::netlink::{DATAGRAM, LIST_ATTEMPTS, NetlinkError, Request, Requests};
use super::readiness::readable;

use crate::chain::in_full;
pub use detail::{Detail, details};

/// Bytes the kernel may queue for us: several thousand events of some 4 KiB each.
const RECEIVE_BUFFER: libc::c_int = 32 * 1024 * 1024;

/// Lists that are made for one during which nothing changes.
const SNAPSHOTS: u32 = 5;
/// Datagrams that are received at once: more than the buffer holds.
const DATAGRAMS: u32 = 100_000;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
const RTM_GETLINK: u16 = 18;
/// Attribute that says which of the bulky parts of an interface to list.
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// An interface of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number, never used twice by the kernel until the numbers wrap.
    pub index: u32,
    /// Its name; bytes that are not UTF-8 stand as `\xNN`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
}

impl Interface {
    /// This namespace's number for the one at the other end of a veth pair, if it is another.
    #[must_use]
    pub fn other_end(&self) -> Option<i32> {
        match self.kind {
            Kind::Veth { peer: Some(peer) } => peer.netns,
            Kind::Veth { peer: None } | Kind::Tap | Kind::Tun | Kind::Bridge | Kind::Other => None,
        }
    }
}

/// What an interface is, as far as gate25 cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A tun device that carries Ethernet frames.
    Tap,
    /// A tun device that carries bare IP packets.
    Tun,
    /// One end of a veth pair.
    Veth {
        /// The other end, if the kernel tells.
        peer: Option<Peer>,
    },
    /// A Linux bridge.
    Bridge,
    /// Anything else.
    Other,
}

/// The other end of a veth pair.
///
/// An event may not know it yet, and the kernel does not announce when it moves to another
/// namespace: only a snapshot is sure of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its number in the namespace that it is in.
    pub index: u32,
    /// This namespace's number for that namespace; none when both ends are here.
    pub netns: Option<i32>,
}

/// Something that happened to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is new, or something about it changed; this is how it was at that moment.
    Upsert(Interface),
    /// It was deleted or moved to another network namespace.
    Gone {
        /// The number it had.
        index: u32,
    },
    /// Its ingress qdisc was deleted, or a filter on it: ours may have gone.
    QdiscGone {
        /// The interface's number.
        index: u32,
    },
    /// Events were lost: only a snapshot tells how things are.
    Lost,
}

/// What to be told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscription {
    /// Interfaces.
    Links,
    /// Interfaces, and qdiscs and filters that are deleted: for kernels without tcx.
    LinksAndFilters,
}

/// Why the interfaces could not be listed or watched.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The socket for events could not be set up.
    #[error("cannot subscribe to interface events")]
    Subscribe(#[source] io::Error),
    /// The kernel did not list them.
    #[error("cannot list interfaces")]
    List(#[source] NetlinkError),
    /// They changed during every attempt.
    #[error("interfaces changed during each of {LIST_ATTEMPTS} attempts to list them")]
    Unsettled,
    /// The task that lists them was cut short by the runtime's end.
    #[error("listing interfaces was cancelled")]
    Cancelled(#[source] tokio::task::JoinError),
}

/// How things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Interfaces that have gone since the last event that was reported; another one may have the number by now.
    pub gone: BTreeSet<u32>,
    /// Every interface.
    pub interfaces: Vec<Interface>,
}

/// A subscription to interface events of one network namespace.
#[derive(Debug)]
pub struct Links {
    socket: AsyncFd<Socket>,
    datagram: Vec<u8>,
    queue: VecDeque<LinkEvent>,
}

impl Links {
    /// Subscribes in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`LinkError::Subscribe`] when the socket cannot be made; no privileges are needed, but
    /// without `CAP_NET_ADMIN` the kernel queues fewer events before it drops some.
    pub fn open(subscription: Subscription) -> Result<Self, LinkError> {
        Self::with_buffer(subscription, RECEIVE_BUFFER)
    }

    /// As [`Links::open`], with a receive buffer of `bytes`.
    ///
    /// # Errors
    /// As [`Links::open`].
    pub fn with_buffer(subscription: Subscription, bytes: libc::c_int) -> Result<Self, LinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(LinkError::Subscribe)?;
        socket
            .set_non_blocking(true)
            .map_err(LinkError::Subscribe)?;
        // Beyond net.core.rmem_max needs a privilege that a test or `status` may lack.
        if force_receive_buffer(socket.as_raw_fd(), bytes).is_err() {
            socket.set_rx_buf_sz(bytes).map_err(LinkError::Subscribe)?;
        }
        socket.bind_auto().map_err(LinkError::Subscribe)?;
        socket
            .add_membership(RTNLGRP_LINK)
            .map_err(LinkError::Subscribe)?;
        match subscription {
            Subscription::Links => {}
            Subscription::LinksAndFilters => {
                socket
                    .add_membership(RTNLGRP_TC)
                    .map_err(LinkError::Subscribe)?;
            }
        }
        let socket = readable(socket).map_err(LinkError::Subscribe)?;
        Ok(Self {
            socket,
            datagram: Vec::with_capacity(DATAGRAM),
            queue: VecDeque::new(),
        })
    }

    /// The next event. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`LinkError::Subscribe`] when the subscription is beyond use: open another one.
    pub async fn next(&mut self) -> Result<LinkEvent, LinkError> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            let mut ready = self.socket.readable().await.map_err(LinkError::Subscribe)?;
            self.datagram.clear();
            let received =
                ready.try_io(|socket| socket.get_ref().recv(&mut self.datagram, libc::MSG_TRUNC));
            if let Ok(received) = received {
                self.take_in(received)?;
            }
            if self.queue.is_empty() {
                // Whoever makes changes that say nothing keeps no others of this task from their turn.
                tokio::task::yield_now().await;
            }
        }
    }

    /// The next event, if it has happened already.
    ///
    /// # Errors
    /// As [`Links::next`].
    pub fn try_next(&mut self) -> Result<Option<LinkEvent>, LinkError> {
        while self.queue.is_empty() && self.receive()? {}
        Ok(self.queue.pop_front())
    }

    /// Queues what is there to be received; returns whether anything was.
    fn receive(&mut self) -> Result<bool, LinkError> {
        self.datagram.clear();
        let socket = self.socket.get_ref();
        match socket.recv(&mut self.datagram, libc::MSG_TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            received => self.take_in(received).map(|()| true),
        }
    }

    /// Queues what was received.
    fn take_in(&mut self, received: io::Result<usize>) -> Result<(), LinkError> {
        match received {
            Ok(length) if length > DATAGRAM => self.queue.push_back(LinkEvent::Lost),
            Ok(_) => match parse::events(&self.datagram) {
                Ok(events) => self.queue.extend(events),
                Err(error) => {
                    warn!(error = in_full(&error), "unreadable interface event");
                    self.queue.push_back(LinkEvent::Lost);
                }
            },
            // Until its queue is empty the kernel goes on dropping events in silence: a snapshot empties it.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.queue.push_back(LinkEvent::Lost);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(LinkError::Subscribe(error)),
        }
        Ok(())
    }

    /// Every interface, as at one moment. No interface's change before that moment is reported after it: what was
    /// queued would lead back, step by step, to how things are. While changes come without a pause, a few may be.
    ///
    /// # Errors
    /// [`LinkError::List`] when the kernel refuses, [`LinkError::Unsettled`] when the interfaces
    /// never stood still long enough, [`LinkError::Subscribe`] as [`Links::next`].
    pub async fn snapshot(&mut self) -> Result<Snapshot, LinkError> {
        let list = async || {
            let listing = tokio::task::spawn_blocking(snapshot);
            listing.await.map_err(LinkError::Cancelled)?
        };
        let mut gone = BTreeSet::new();
        self.drain(&mut gone)?;
        let mut interfaces = list().await?;
        for _ in 1..SNAPSHOTS {
            if !self.drain(&mut gone)? {
                return Ok(Snapshot { gone, interfaces });
            }
            interfaces = list().await?;
        }
        // What else has happened may be older than the list or not: what is gone is said early rather than late.
        self.receive_all()?;
        gone.extend(self.queue.iter().filter_map(LinkEvent::gone));
        Ok(Snapshot { gone, interfaces })
    }

    /// Takes the events that a list makes up for out of the queues; returns whether there were any.
    fn drain(&mut self, gone: &mut BTreeSet<u32>) -> Result<bool, LinkError> {
        self.receive_all()?;
        let queued = self.queue.len();
        gone.extend(self.queue.iter().filter_map(LinkEvent::gone));
        self.queue.retain(|event| match event {
            LinkEvent::Upsert(_) | LinkEvent::Gone { .. } => false,
            // No list shows qdiscs; after a loss whoever follows events does more than to list.
            LinkEvent::QdiscGone { index } => !gone.contains(index),
            LinkEvent::Lost => true,
        });
        Ok(self.queue.len() < queued)
    }

    /// Queues what there is, unless it comes without an end.
    fn receive_all(&mut self) -> Result<(), LinkError> {
        for _ in 0..DATAGRAMS {
            if !self.receive()? {
                break;
            }
        }
        Ok(())
    }
}

impl LinkEvent {
    /// The number of the interface that it says is gone.
    fn gone(&self) -> Option<u32> {
        match self {
            Self::Gone { index } => Some(*index),
            Self::Upsert(_) | Self::QdiscGone { .. } | Self::Lost => None,
        }
    }
}

/// Every interface, as at one moment, for callers that may block.
///
/// # Errors
/// As [`Links::snapshot`].
pub fn snapshot() -> Result<Vec<Interface>, LinkError> {
    listed(RTEXT_FILTER_SKIP_STATS, parse::interface)
}

/// What `read` makes of every interface, as at one moment.
fn listed<T>(
    mask: u32,
    read: impl Fn(&[u8]) -> Result<Option<T>, NetlinkError>,
) -> Result<Vec<T>, LinkError> {
    let mut requests = Requests::open().map_err(LinkError::List)?;
    let request = Request::new(RTM_GETLINK, 0, &[0; parse::IFINFO])
        .attribute(IFLA_EXT_MASK, &mask.to_ne_bytes());
    match requests.list_whole(&request, read) {
        Err(NetlinkError::Interrupted) => Err(LinkError::Unsettled),
        listed => listed.map_err(LinkError::List),
    }
}

fn force_receive_buffer(socket: RawFd, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `bytes`, which lives through the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
