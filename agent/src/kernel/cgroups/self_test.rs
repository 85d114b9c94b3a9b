//! Whether sockets are counted for the cgroup that made them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt,
    socket, sockopt,
};

use super::{CgroupError, Directory, Hierarchy};
use crate::kernel::sockets::{SocketsError, listener_cgroup};

const OWN: &str = "/proc/thread-self/cgroup";

/// What [`self_test`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribution {
    /// A socket of ours belongs to our cgroup.
    Right,
    /// It belongs to another: containers' sockets would go by unjudged.
    Wrong {
        /// The cgroup that the thread is in.
        own: u64,
        /// The cgroup that its socket belongs to.
        found: u64,
    },
    /// Nothing can be told: the thread is in the root cgroup, where a lost socket ends up too, or
    /// not below the mount, or the kernel does not tell a socket's cgroup (before 5.8).
    Inconclusive,
}

/// Makes a TCP socket and compares its cgroup with the calling thread's.
///
/// Before Linux 5.15 the version 1 controllers `net_cls` and `net_prio`, once used, made sockets
/// fall back to the root cgroup.
///
/// # Errors
/// [`CgroupError::SelfTest`] when the socket can be neither made nor found.
pub fn self_test(hierarchy: &Hierarchy) -> Result<Attribution, CgroupError> {
    let text = fs::read(OWN).map_err(|source| CgroupError::Proc { path: OWN, source })?;
    let Some(path) = hierarchy.path_in(&text) else {
        return Ok(Attribution::Inconclusive);
    };
    if path.as_os_str().is_empty() {
        return Ok(Attribution::Inconclusive);
    }
    let opened = Directory::open(hierarchy.directory(), &path);
    let Some(own) = opened.map_err(super::tree::unreadable(&path))? else {
        return Ok(Attribution::Inconclusive);
    };
    Ok(match socket_cgroup().map_err(CgroupError::SelfTest)? {
        None => Attribution::Inconclusive,
        Some(found) if found == own.id() => Attribution::Right,
        Some(found) => Attribution::Wrong {
            own: own.id(),
            found,
        },
    })
}

/// The cgroup of a socket made here and now. It listens, since sock_diag finds no idle ones, on the
/// loopback address, which it may have even while that is down.
fn socket_cgroup() -> Result<Option<u64>, SocketsError> {
    let failed = |error: nix::Error| SocketsError::Make(error.into());
    let made = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed)?;
    setsockopt(&made, sockopt::IpFreebind, &true).map_err(failed)?;
    bind(made.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).map_err(failed)?;
    let backlog = Backlog::new(0).map_err(failed)?;
    listen(&made, backlog).map_err(failed)?;
    let bound: SockaddrIn = getsockname(made.as_raw_fd()).map_err(failed)?;
    listener_cgroup(SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())))
}
