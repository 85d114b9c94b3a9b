//! TCP sockets of a network namespace: which of them send to a port, and ending those.
//!
//! A packet that a cgroup hook drops leaves its sender waiting; a destroyed socket tells at once.

mod diag;
mod enter;
mod route;

use std::os::fd::BorrowedFd;

use gate25_common::address::Address;
use thiserror::Error;

use super::netlink::{NetlinkError, Requests};
use diag::Found;
use route::Routes;

pub(super) use diag::listener_cgroup;

/// A TCP socket that may send; a subflow of MPTCP is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSocket {
    /// The id of the cgroup that it was made in.
    pub cgroup: u64,
    /// Its own address.
    pub source: Address,
    /// Where it sends to.
    pub destination: Address,
    /// The port that it sends to, in host order.
    pub port: u16,
    /// What the kernel calls it.
    identity: diag::Identity,
}

/// A network namespace.
#[derive(Debug, Clone, Copy)]
pub enum Within<'a> {
    /// The calling thread's.
    Own,
    /// This one, which takes `CAP_SYS_ADMIN`.
    Other(BorrowedFd<'a>),
}

/// What [`destroy`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destroyed {
    /// The socket's owner gets `ECONNABORTED` from now on.
    Yes,
    /// It had ended by itself.
    AlreadyGone,
}

/// Why sockets could not be listed or destroyed.
#[derive(Debug, Error)]
pub enum SocketsError {
    /// No thread in the namespace.
    #[error("cannot enter the network namespace")]
    Enter(#[source] std::io::Error),
    /// The kernel lacks what it takes: `CONFIG_INET_DIAG` to list, with the cgroup since Linux 5.8,
    /// `CONFIG_INET_DIAG_DESTROY` to destroy.
    #[error("this kernel cannot {attempted}")]
    Unsupported {
        /// What was attempted.
        attempted: &'static str,
    },
    /// The kernel did not list them.
    #[error("cannot list TCP sockets")]
    List(#[source] NetlinkError),
    /// The kernel did not say where a destination is.
    #[error("cannot ask for a route")]
    Route(#[source] NetlinkError),
    /// The kernel did not destroy one.
    #[error("cannot destroy a TCP socket")]
    Destroy(#[source] NetlinkError),
    /// A socket of our own could not be made.
    #[error("cannot make a TCP socket")]
    Make(#[source] std::io::Error),
}

impl SocketsError {
    /// Whether the privilege to enter the namespace is missing.
    #[must_use]
    pub fn is_no_entry(&self) -> bool {
        match self {
            Self::Enter(source) => source.kind() == std::io::ErrorKind::PermissionDenied,
            Self::Unsupported { .. }
            | Self::List(_)
            | Self::Route(_)
            | Self::Destroy(_)
            | Self::Make(_) => false,
        }
    }
}

/// The TCP sockets of `namespace` that may still send to one of `ports` (host order) on another
/// machine or namespace. What connects while they are listed may be missed.
///
/// # Errors
/// When the namespace cannot be entered or the kernel refuses to list; Linux 5.8 or later.
pub fn to_ports(namespace: Within<'_>, ports: &[u16]) -> Result<Vec<TcpSocket>, SocketsError> {
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    let (mut requests, mut routes) = enter::within(namespace, || {
        let requests = Requests::open_sock_diag().map_err(SocketsError::List)?;
        let routes = Requests::open().map_err(SocketsError::Route)?;
        Ok((requests, Routes::new(routes)))
    })?;
    let mut sockets = Vec::new();
    for found in listed(&mut requests, ports)? {
        let Found {
            cgroup,
            destination,
            identity,
            ..
        } = found;
        let Some(cgroup) = cgroup else {
            continue;
        };
        if routes.is_local(destination, identity.interface())? {
            continue;
        }
        sockets.push(TcpSocket {
            cgroup,
            source: diag::canonical(found.source),
            destination: diag::canonical(destination),
            port: found.port,
            identity,
        });
    }
    Ok(sockets)
}

/// Ends this very socket of `namespace`: another that took its place is left alone.
///
/// # Errors
/// [`SocketsError::Unsupported`] on a kernel without `CONFIG_INET_DIAG_DESTROY`, others when the
/// namespace cannot be entered or `CAP_NET_ADMIN` is missing.
pub fn destroy(namespace: Within<'_>, socket: &TcpSocket) -> Result<Destroyed, SocketsError> {
    let mut requests = enter::within(namespace, || {
        Requests::open_sock_diag().map_err(SocketsError::Destroy)
    })?;
    match requests.change(diag::destruction(&socket.identity)) {
        Ok(()) => Ok(Destroyed::Yes),
        Err(error) => match error.errno() {
            // ESTALE: another socket has its addresses and ports.
            Some(libc::ENOENT | libc::ESTALE) => Ok(Destroyed::AlreadyGone),
            Some(libc::EOPNOTSUPP) => Err(SocketsError::Unsupported {
                attempted: "destroy TCP sockets",
            }),
            Some(_) | None => Err(SocketsError::Destroy(error)),
        },
    }
}

fn listed(requests: &mut Requests, ports: &[u16]) -> Result<Vec<Found>, SocketsError> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let outcome = requests.list(diag::listing(family as u8, ports), |payload| {
            found.extend(diag::found(payload)?);
            Ok(())
        });
        outcome.map_err(|error| match error.errno() {
            Some(libc::ENOENT) => SocketsError::Unsupported {
                attempted: "list TCP sockets",
            },
            Some(_) | None => SocketsError::List(error),
        })?;
    }
    // What has no owner any more has no cgroup either; everything else has one since Linux 5.8.
    if found
        .iter()
        .any(|found| found.cgroup.is_none() && !found.is_remnant())
    {
        return Err(SocketsError::Unsupported {
            attempted: "tell the cgroup of a TCP socket",
        });
    }
    Ok(found)
}
