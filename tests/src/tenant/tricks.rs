//! Ways to reach a port that few programs use.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    str::FromStr,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    libc,
    sched::{CloneFlags, unshare},
    sys::socket::{SockaddrStorage, bind, setsockopt, sockopt},
};

use super::{packets, ring, sockets};

/// A connect that works is quicker in a lab.
const LIMIT: Duration = Duration::from_millis(300);
/// Where the other side finds [`Trick::Meeting`].
pub const MEETING_PORT: u16 = 4025;
const GREETING: &[u8] = b"EHLO tenant\r\n";

/// A way to reach a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    /// `connect()` that sends nothing until the first write (`TCP_FASTOPEN_CONNECT`).
    DeferredFastOpen,
    /// Data with the SYN, on a socket whose connect has failed.
    FastOpenAfterFailure,
    /// A socket that was connected to the allowed address, disconnected and connected again.
    Reconnect,
    /// The same by way of an IPv6 socket that became an IPv4 one (`IPV6_ADDRFORM`).
    ChangedFamily,
    /// `IORING_OP_CONNECT`.
    RingConnect,
    /// The same on a socket that the ring has made, by the kernel's own thread.
    RingThread,
    /// `IORING_OP_SENDMSG` with data for the SYN.
    RingFastOpen,
    /// A socket that may have any address, and takes the allowed one (`IP_TRANSPARENT`).
    Transparent,
    /// The same with the address that it connects to.
    AsDestination,
    /// `SO_BINDTODEVICE`.
    Device,
    /// `SO_MARK` with the bit by which the guard knows what was judged.
    Marked,
    /// To the address by way of the allowed one (`IP_OPTIONS`, `IPV6_RTHDR`).
    RoutedThroughAllowed,
    /// To the allowed address by way of this one.
    RoutedToAllowed,
    /// Connected without a handshake (`TCP_REPAIR`).
    Repaired,
    /// A socket from the network that its thread has left.
    LeftNetwork,
    /// From port 25.
    FromGuarded,
    /// From [`MEETING_PORT`], to which the other side connects at the same time.
    Meeting,
    /// A raw socket whose IP header is the kernel's.
    RawSegment,
    /// A raw socket whose TCP header is in a page of its own (`vmsplice`).
    RawSpliced,
    /// A frame past queueing disciplines (`PACKET_QDISC_BYPASS`).
    FramePastQueues,
    /// A large frame with its headers outside the first piece (`PACKET_VNET_HDR`).
    FrameInPieces,
    /// A frame of which only the Ethernet header is in the first piece (`PACKET_TX_RING`).
    FrameFromRing,
}

impl Trick {
    /// All of them that need nobody's help.
    pub const ALL: [Self; 21] = [
        Self::DeferredFastOpen,
        Self::FastOpenAfterFailure,
        Self::Reconnect,
        Self::ChangedFamily,
        Self::RingConnect,
        Self::RingThread,
        Self::RingFastOpen,
        Self::Transparent,
        Self::AsDestination,
        Self::Device,
        Self::Marked,
        Self::RoutedThroughAllowed,
        Self::RoutedToAllowed,
        Self::Repaired,
        Self::LeftNetwork,
        Self::FromGuarded,
        Self::RawSegment,
        Self::RawSpliced,
        Self::FramePastQueues,
        Self::FrameInPieces,
        Self::FrameFromRing,
    ];

    /// What an operator would call it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::DeferredFastOpen => "Fast Open that waits for the first write",
            Self::FastOpenAfterFailure => "Fast Open on a socket whose connect has failed",
            Self::Reconnect => "a socket connected to a relay, then elsewhere",
            Self::ChangedFamily => "an IPv6 socket turned into an IPv4 one",
            Self::RingConnect => "connect by io_uring",
            Self::RingThread => "connect by io_uring's own thread, on its own socket",
            Self::RingFastOpen => "Fast Open by io_uring",
            Self::Transparent => "a socket with somebody else's address",
            Self::AsDestination => "a socket with its destination's address",
            Self::Device => "a socket bound to an interface",
            Self::Marked => "a socket that sets the guard's mark",
            Self::RoutedThroughAllowed => "a source route through a relay, by a socket",
            Self::RoutedToAllowed => "a source route to a relay, by a socket",
            Self::Repaired => "a socket connected without a handshake",
            Self::LeftNetwork => "a socket whose process has left its network",
            Self::FromGuarded => "a socket bound to port 25",
            Self::Meeting => "both sides connect at once",
            Self::RawSegment => "a raw socket without an IP header",
            Self::RawSpliced => "a raw socket fed from a pipe's pages",
            Self::FramePastQueues => "a packet socket past queueing disciplines",
            Self::FrameInPieces => "a packet socket, headers outside the first piece",
            Self::FrameFromRing => "a packet socket with memory of its own (ring)",
        }
    }

    /// Whether it succeeds without an answer.
    #[must_use]
    pub fn awaits_nothing(self) -> bool {
        self.is_frame() || matches!(self, Self::RawSegment | Self::RawSpliced | Self::Repaired)
    }

    /// Whether it sends below IP: a control group's programs see none of it.
    #[must_use]
    pub fn is_frame(self) -> bool {
        matches!(
            self,
            Self::FramePastQueues | Self::FrameInPieces | Self::FrameFromRing
        )
    }

    fn name(self) -> String {
        format!("{self:?}")
    }
}

impl FromStr for Trick {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let mut all = Self::ALL.into_iter().chain([Self::Meeting]);
        let found = all.find(|trick| trick.name() == name);
        found.with_context(|| format!("no trick {name}"))
    }
}

/// Whom a trick is played on, and with what.
#[derive(Debug, Clone)]
pub struct Target {
    /// What is to be reached.
    pub to: SocketAddr,
    /// What may be reached, in the same family.
    pub allowed: SocketAddr,
    /// The tenant's own address.
    pub own: IpAddr,
    /// Its interface.
    pub device: String,
    /// Of the interface and of the gateway behind it.
    pub hardware: [String; 2],
    /// The guard's bit.
    pub mark: u32,
}

impl Target {
    pub(super) fn to_words(&self) -> Vec<String> {
        let Self {
            to,
            allowed,
            own,
            device,
            hardware: [source, gateway],
            mark,
        } = self;
        vec![
            to.to_string(),
            allowed.to_string(),
            own.to_string(),
            device.clone(),
            source.clone(),
            gateway.clone(),
            mark.to_string(),
        ]
    }

    pub(super) fn from_words(words: &[&str]) -> anyhow::Result<Self> {
        let [to, allowed, own, device, source, gateway, mark] = words else {
            bail!("not a target: {words:?}");
        };
        Ok(Self {
            to: to.parse().context("an address")?,
            allowed: allowed.parse().context("an address")?,
            own: own.parse().context("an address")?,
            device: (*device).to_owned(),
            hardware: [(*source).to_owned(), (*gateway).to_owned()],
            mark: mark.parse().context("a mark")?,
        })
    }
}

/// Plays the trick. Connected, or sent, is no error.
pub(super) fn play(trick: Trick, target: &Target) -> io::Result<()> {
    let to = target.to;
    match trick {
        Trick::DeferredFastOpen => {
            let socket = sockets::tcp(to)?;
            set(
                &socket,
                libc::IPPROTO_TCP,
                libc::TCP_FASTOPEN_CONNECT,
                &1i32,
            )?;
            sockets::connect_within(&socket, to, LIMIT)?;
            sockets::write(&socket, GREETING)
        }
        Trick::FastOpenAfterFailure => {
            let socket = sockets::tcp(to)?;
            // That it fails is the point where it does; where not, the greeting follows.
            match sockets::connect_within(&socket, to, LIMIT) {
                Ok(()) => sockets::write(&socket, GREETING),
                Err(_refused) => sockets::fast_open_on(&socket, to, GREETING, LIMIT),
            }
        }
        Trick::Reconnect => {
            let socket = sockets::tcp(to)?;
            sockets::connect_within(&socket, target.allowed, LIMIT)?;
            sockets::disconnect(&socket)?;
            sockets::connect_within(&socket, to, LIMIT)
        }
        Trick::ChangedFamily => changed_family(target),
        Trick::RingConnect => ring::connect(to, LIMIT, ring::Kind::Plain),
        Trick::RingThread => ring::connect(to, LIMIT, ring::Kind::OwnThread),
        Trick::RingFastOpen => ring::fast_open(to, GREETING, LIMIT),
        Trick::Transparent => from_address(target, target.allowed.ip()),
        Trick::AsDestination => from_address(target, to.ip()),
        Trick::Device => {
            let socket = sockets::tcp(to)?;
            sockets::bind_to_device(&socket, &target.device)?;
            sockets::connect_within(&socket, to, LIMIT)
        }
        Trick::Marked => {
            let socket = sockets::tcp(to)?;
            setsockopt(&socket, sockopt::Mark, &target.mark)?;
            sockets::connect_within(&socket, to, LIMIT)
        }
        Trick::RoutedThroughAllowed => routed(target.allowed.ip(), to),
        Trick::RoutedToAllowed => routed(to.ip(), target.allowed),
        Trick::Repaired => repaired(target),
        Trick::LeftNetwork => left_network(to),
        Trick::FromGuarded => {
            let socket = sockets::tcp(to)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(
                socket.as_raw_fd(),
                &SockaddrStorage::from(SocketAddr::new(target.own, 25)),
            )?;
            sockets::connect_within(&socket, to, LIMIT)
        }
        Trick::Meeting => {
            let own = SocketAddr::new(target.own, MEETING_PORT);
            let socket = sockets::tcp(to)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(own))?;
            sockets::connect_within(&socket, to, LIMIT * 3)
        }
        Trick::RawSegment => {
            let segment = packets::segment(SocketAddr::new(target.own, 4000), to);
            sockets::write(&raw_tcp(to)?, &segment)
        }
        Trick::RawSpliced => {
            let segment = packets::segment(SocketAddr::new(target.own, 4000), to);
            sockets::splice(&raw_tcp(to)?, &segment)
        }
        Trick::FramePastQueues => {
            let frame = frame(target, &[])?;
            let wire = sockets::wire(&target.device)?;
            sockets::past_queues(&wire)?;
            sockets::send_frame(&wire, &frame)
        }
        Trick::FrameFromRing => {
            let wire = sockets::wire(&target.device)?;
            sockets::send_from_ring(&wire, &frame(target, &[])?)
        }
        Trick::FrameInPieces => {
            let frame = frame(target, &[b'x'; 5000])?;
            let wire = sockets::wire(&target.device)?;
            sockets::with_virtio_headers(&wire)?;
            // As much as an Ethernet header in one piece.
            let mut bytes = vec![0; 10];
            bytes[2..4].copy_from_slice(&14u16.to_ne_bytes());
            bytes.extend(&frame);
            sockets::send_bytes(&wire, &frame[..6], &bytes)
        }
    }
}

fn frame(target: &Target, payload: &[u8]) -> io::Result<Vec<u8>> {
    let [source, gateway] = &target.hardware;
    let parse = |text| super::packets::hardware(text).map_err(io::Error::other);
    let from = SocketAddr::new(target.own, 4000);
    let addresses = [parse(source)?, parse(gateway)?];
    Ok(packets::segment_frame(addresses, from, target.to, payload))
}

fn raw_tcp(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = sockets::raw_of(to, libc::IPPROTO_TCP)?;
    // A port is none of a raw socket's business.
    sockets::connect_within(&socket, SocketAddr::new(to.ip(), 0), LIMIT)?;
    Ok(socket)
}

fn changed_family(target: &Target) -> io::Result<()> {
    let (IpAddr::V4(to), IpAddr::V4(allowed)) = (target.to.ip(), target.allowed.ip()) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let mapped =
        |address: std::net::Ipv4Addr, port| SocketAddr::from((address.to_ipv6_mapped(), port));
    let allowed = mapped(allowed, target.allowed.port());
    let socket = sockets::tcp(allowed)?;
    sockets::connect_within(&socket, allowed, LIMIT)?;
    set(
        &socket,
        libc::IPPROTO_IPV6,
        libc::IPV6_ADDRFORM,
        &libc::AF_INET,
    )?;
    sockets::disconnect(&socket)?;
    sockets::connect_within(&socket, SocketAddr::from((to, target.to.port())), LIMIT)
}

fn from_address(target: &Target, address: IpAddr) -> io::Result<()> {
    let socket = sockets::tcp(target.to)?;
    match address {
        IpAddr::V4(_) => set(&socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, &1i32)?,
        IpAddr::V6(_) => set(&socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, &1i32)?,
    }
    sockets::bind_to_address(&socket, address)?;
    sockets::connect_within(&socket, target.to, LIMIT)
}

/// Connects to `to` by way of `via`.
fn routed(via: IpAddr, to: SocketAddr) -> io::Result<()> {
    let socket = sockets::tcp(to)?;
    match via {
        IpAddr::V4(via) => {
            // Loose (RFC 791), filled up to words.
            let mut options = vec![131, 7, 4];
            options.extend(via.octets());
            options.push(0);
            sockets::set_bytes(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &options)?;
        }
        IpAddr::V6(via) => {
            // Two segments (RFC 8754): the kernel puts the destination into the first.
            let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
            header.extend([0; 16]);
            header.extend(via.octets());
            sockets::set_bytes(&socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header)?;
        }
    }
    sockets::connect_within(&socket, to, LIMIT)
}

fn repaired(target: &Target) -> io::Result<()> {
    let socket = sockets::tcp(target.to)?;
    set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1i32)?;
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(target.own, 0)),
    )?;
    sockets::connect_within(&socket, target.to, LIMIT)?;
    set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &0i32)?;
    sockets::write(&socket, GREETING)
}

/// The thread leaves; the process stays.
fn left_network(to: SocketAddr) -> io::Result<()> {
    let socket = sockets::tcp(to)?;
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        sockets::connect_within(&socket, to, LIMIT)
    };
    thread::spawn(body)
        .join()
        .map_err(|_panic| io::Error::other("the thread that left its network panicked"))?
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: &i32) -> io::Result<()> {
    sockets::set_bytes(socket, level, option, &value.to_ne_bytes())
}
