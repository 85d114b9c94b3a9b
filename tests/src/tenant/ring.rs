//! Connects by io_uring.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue, types};
use nix::{
    libc,
    sys::socket::{SockaddrLike as _, SockaddrStorage},
};

use super::sockets;

/// How a ring is served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// By whoever submits.
    Plain,
    /// By a thread of the kernel's, on a socket that it has made.
    OwnThread,
}

/// Connects, waiting at most so long.
pub(super) fn connect(to: SocketAddr, limit: Duration, kind: Kind) -> io::Result<()> {
    let mut ring = match kind {
        Kind::Plain => IoUring::new(4)?,
        Kind::OwnThread => IoUring::builder().setup_sqpoll(100).build(4)?,
    };
    let socket = match kind {
        Kind::Plain => sockets::tcp(to)?,
        Kind::OwnThread => {
            let (family, kind) = (sockets::family(to), libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
            let entry = opcode::Socket::new(family, kind, 0).build();
            let made = complete(&mut ring, entry, limit)?;
            // SAFETY: the kernel has just made this descriptor for us.
            unsafe { OwnedFd::from_raw_fd(made) }
        }
    };
    let address = SockaddrStorage::from(to);
    let fd = types::Fd(socket.as_raw_fd());
    let entry = opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build();
    complete(&mut ring, entry, limit).map(drop)
}

/// Sends data with the SYN.
pub(super) fn fast_open(to: SocketAddr, data: &[u8], limit: Duration) -> io::Result<()> {
    let mut ring = IoUring::new(4)?;
    let socket = sockets::tcp(to)?;
    let mut address = SockaddrStorage::from(to);
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: all zero is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_namelen = address.len();
    message.msg_name = (&raw mut address).cast();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let entry = opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), &raw const message)
        .flags(libc::MSG_FASTOPEN as u32)
        .build();
    complete(&mut ring, entry, limit).map(drop)
}

/// Submits an entry, whose memory the caller keeps, and waits for its end or for the deadline.
fn complete(ring: &mut IoUring, entry: squeue::Entry, limit: Duration) -> io::Result<RawFd> {
    const WANTED: u64 = 1;
    const DEADLINE: u64 = 2;
    let time = types::Timespec::from(limit);
    let entry = entry.flags(squeue::Flags::IO_LINK).user_data(WANTED);
    let deadline = opcode::LinkTimeout::new(&raw const time)
        .build()
        .user_data(DEADLINE);
    // SAFETY: what both refer to lives until both have ended, which is waited for below.
    unsafe { ring.submission().push_multiple(&[entry, deadline]) }.map_err(io::Error::other)?;
    ring.submit_and_wait(2)?;
    let mut result = Err(io::Error::other("the ring has lost an entry"));
    for completion in ring.completion() {
        if completion.user_data() == WANTED {
            result = match completion.result() {
                value @ 0.. => Ok(value),
                error if -error == libc::ECANCELED => Err(io::ErrorKind::TimedOut.into()),
                error => Err(io::Error::from_raw_os_error(-error)),
            };
        }
    }
    result
}
