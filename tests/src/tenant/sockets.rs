//! Sockets that are used in other ways than most programs do.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::Duration,
};

use nix::{
    cmsg_space, libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, bind, connect, getsockopt,
        recvmsg, sendmsg, sendto, setsockopt, sockopt,
    },
};

/// A TCP socket of the address's family that nothing was done with.
pub(crate) fn tcp(to: SocketAddr) -> io::Result<OwnedFd> {
    open(family(to), libc::SOCK_STREAM, 0)
}

/// A TCP socket that offers the other side several paths.
pub(crate) fn mptcp(to: SocketAddr) -> io::Result<OwnedFd> {
    open(family(to), libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
}

/// A socket whose packets, IP header included, are the program's own.
pub(crate) fn raw(to: SocketAddr) -> io::Result<OwnedFd> {
    open(family(to), libc::SOCK_RAW, libc::IPPROTO_RAW)
}

/// Connects a socket, waiting at most so long.
pub(crate) fn connect_within(socket: &OwnedFd, to: SocketAddr, limit: Duration) -> io::Result<()> {
    nonblocking(socket)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(nix::Error::EINPROGRESS) => settle(socket, limit),
        other => Ok(other?),
    }
}

/// Sends data with the SYN, which takes the place of a connect.
pub(crate) fn fast_open(to: SocketAddr, limit: Duration) -> io::Result<OwnedFd> {
    let socket = tcp(to)?;
    nonblocking(&socket)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let address = SockaddrStorage::from(to);
    match sendto(socket.as_raw_fd(), b"EHLO tenant\r\n", &address, flags) {
        Err(nix::Error::EINPROGRESS) => settle(&socket, limit)?,
        other => drop(other?),
    }
    Ok(socket)
}

/// Binds a socket to an interface.
pub(crate) fn bind_to_device(socket: &OwnedFd, device: &str) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::BindToDevice, &device.into())?)
}

/// Binds a socket to an address, and to a port when it connects.
pub(crate) fn bind_to_address(socket: &OwnedFd, address: IpAddr) -> io::Result<()> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    let address = SockaddrStorage::from(SocketAddr::from((address, 0)));
    Ok(bind(socket.as_raw_fd(), &address)?)
}

/// Sends an IP packet as it is.
pub(crate) fn send_packet(to: SocketAddr, packet: &[u8]) -> io::Result<()> {
    send_packet_by(&raw(to)?, to, packet)
}

/// The same through a socket of [`raw`].
pub(crate) fn send_packet_by(socket: &OwnedFd, to: SocketAddr, packet: &[u8]) -> io::Result<()> {
    // A port is none of a raw socket's business.
    let address = SockaddrStorage::from(SocketAddr::from((to.ip(), 0)));
    sendto(socket.as_raw_fd(), packet, &address, MsgFlags::empty())?;
    Ok(())
}

/// A way past IP out of an interface.
pub(crate) struct Wire {
    socket: OwnedFd,
    index: u32,
}

/// Opens an interface to frames; they leave by it wherever the process goes.
pub(crate) fn wire(device: &str) -> io::Result<Wire> {
    let index = nix::net::if_::if_nametoindex(device)?;
    let socket = open(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    Ok(Wire { socket, index })
}

/// Sends a frame as it is.
pub(crate) fn send_frame(wire: &Wire, frame: &[u8]) -> io::Result<()> {
    let Wire { socket, index } = wire;
    let mut address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: *index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let destination = frame.get(..6).ok_or(io::ErrorKind::InvalidInput)?;
    address.sll_addr[..6].copy_from_slice(destination);
    // SAFETY: the frame and the address live through the call and have the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Hands a socket to whoever connects to the path.
pub(crate) fn give(path: &Path, socket: &OwnedFd) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let (stream, _) = listener.accept()?;
    let sockets = [socket.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&sockets)];
    let data = [IoSlice::new(b"x")];
    sendmsg::<()>(stream.as_raw_fd(), &data, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Takes the socket that is handed over at the path.
pub(crate) fn take(path: &Path) -> io::Result<OwnedFd> {
    let stream = UnixStream::connect(path)?;
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(sockets) = control
            && let Some(socket) = sockets.first()
        {
            // SAFETY: the kernel has just made this descriptor for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(*socket) });
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn nonblocking(socket: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Waits for the end of a connect.
fn settle(socket: &OwnedFd, limit: Duration) -> io::Result<()> {
    let timeout = PollTimeout::try_from(limit).map_err(io::Error::other)?;
    let count = poll(
        &mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)],
        timeout,
    )?;
    if count == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn family(to: SocketAddr) -> i32 {
    match to {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    }
}

fn open(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: three numbers, no memory.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}
