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
    raw_of(to, libc::IPPROTO_RAW)
}

/// A socket whose packets are the program's own from the IP header's end on.
pub(super) fn raw_of(to: SocketAddr, protocol: i32) -> io::Result<OwnedFd> {
    open(family(to), libc::SOCK_RAW, protocol)
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
    fast_open_on(&socket, to, b"EHLO tenant\r\n", limit)?;
    Ok(socket)
}

/// The same on a socket that there is.
pub(super) fn fast_open_on(
    socket: &OwnedFd,
    to: SocketAddr,
    data: &[u8],
    limit: Duration,
) -> io::Result<()> {
    nonblocking(socket)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    match sendto(socket.as_raw_fd(), data, &SockaddrStorage::from(to), flags) {
        Err(nix::Error::EINPROGRESS) => settle(socket, limit)?,
        other => drop(other?),
    }
    Ok(())
}

/// Takes a socket's connection away.
pub(super) fn disconnect(socket: &OwnedFd) -> io::Result<()> {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as u16,
        sa_data: [0; 14],
    };
    let length = size_of::<libc::sockaddr>() as u32;
    // SAFETY: the address lives through the call and has the length given.
    match unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes to a connected socket.
pub(super) fn write(socket: &OwnedFd, data: &[u8]) -> io::Result<()> {
    nix::unistd::write(socket, data)?;
    Ok(())
}

/// Writes to a connected socket what lies in the pages of a pipe.
pub(super) fn splice(socket: &OwnedFd, data: &[u8]) -> io::Result<()> {
    use nix::fcntl::{SpliceFFlags, splice, vmsplice};
    let (read, write) = nix::unistd::pipe()?;
    vmsplice(&write, &[IoSlice::new(data)], SpliceFFlags::empty())?;
    splice(read, None, socket, None, data.len(), SpliceFFlags::empty())?;
    Ok(())
}

/// Sets an option of a socket.
pub(super) fn set_bytes(socket: &OwnedFd, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let length = value.len() as u32;
    let (fd, value) = (socket.as_raw_fd(), value.as_ptr().cast());
    // SAFETY: the value lives through the call and has the length given.
    match unsafe { libc::setsockopt(fd, level, option, value, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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

/// Has frames leave past queueing disciplines and what is attached there.
pub(super) fn past_queues(wire: &Wire) -> io::Result<()> {
    let yes = 1i32.to_ne_bytes();
    set_bytes(
        &wire.socket,
        libc::SOL_PACKET,
        libc::PACKET_QDISC_BYPASS,
        &yes,
    )
}

/// Has frames begin with a virtio header.
pub(super) fn with_virtio_headers(wire: &Wire) -> io::Result<()> {
    let yes = 1i32.to_ne_bytes();
    set_bytes(&wire.socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &yes)
}

/// Sends a frame as it is.
pub(crate) fn send_frame(wire: &Wire, frame: &[u8]) -> io::Result<()> {
    let destination = frame.get(..6).ok_or(io::ErrorKind::InvalidInput)?;
    send_bytes(wire, destination, frame)
}

/// Sends a frame to `destination`, behind whatever header the socket expects.
pub(super) fn send_bytes(wire: &Wire, destination: &[u8], frame: &[u8]) -> io::Result<()> {
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

/// Sends a frame that lies in memory shared with the kernel: but for its Ethernet header, it leaves in
/// pages of ours.
pub(super) fn send_from_ring(wire: &Wire, frame: &[u8]) -> io::Result<()> {
    const SIZE: usize = 4096;
    /// `TPACKET_HDRLEN` less the address behind it (include/uapi/linux/if_packet.h).
    const DATA: usize = 32;
    const SEND: usize = 1;
    let numbers = [SIZE as u32, 1, SIZE as u32, 1];
    let request: Vec<u8> = numbers.iter().flat_map(|it| it.to_ne_bytes()).collect();
    set_bytes(
        &wire.socket,
        libc::SOL_PACKET,
        libc::PACKET_TX_RING,
        &request,
    )?;
    let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, wire.socket.as_raw_fd());
    // SAFETY: a new mapping, wherever the kernel wants it.
    let ring = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, access, libc::MAP_SHARED, fd, 0) };
    if ring == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut slot = vec![0; DATA];
    slot[..8].copy_from_slice(&SEND.to_ne_bytes());
    slot[8..12].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    slot.extend(frame);
    if slot.len() > SIZE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the mapping is larger, and nobody else has it.
    unsafe { std::ptr::copy_nonoverlapping(slot.as_ptr(), ring.cast::<u8>(), slot.len()) };
    let sent = send_bytes(wire, &frame[..6], &[]);
    // SAFETY: the mapping is ours, and is not used any more.
    unsafe { libc::munmap(ring, SIZE) };
    sent
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

/// The number of the address's family.
pub(super) fn family(to: SocketAddr) -> i32 {
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
