//! Who is at the other end of a Unix socket.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

/// Groups that a process may have (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Whose process connected, as it was at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The user.
    pub(crate) user: u32,
    /// The group, and the supplementary ones.
    pub(crate) groups: Vec<u32>,
}

/// Asks the kernel (4.13 for the groups).
///
/// # Errors
/// What the kernel said.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = getsockopt(&socket, PeerCredentials)?;
    let mut groups = supplementary(socket)?;
    groups.push(credentials.gid());
    Ok(Peer {
        user: credentials.uid(),
        groups,
    })
}

fn supplementary(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the pointer and the length describe `groups`, which lives through the call.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let found = length as usize / size_of::<u32>();
        if outcome == 0 {
            groups.truncate(found);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || found > MAX_GROUPS {
            return Err(error);
        }
        // The kernel has told how many there are.
        groups.resize(found, 0);
    }
}
