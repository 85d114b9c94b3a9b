//! TCP sockets of other namespaces, found and destroyed.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use gate25::kernel::sockets::{Destroyed, TcpSocket, Within, destroy, to_ports};
use gate25_common::address::Address;
use gate25_tests::Feature;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{SockaddrIn, bind, connect, setsockopt, sockopt};

use crate::cgroup::{Own, enter_threaded};
use crate::netns::{Elsewhere, deadline, run, within};

const CLIENT: &str = "10.25.0.1";
const SERVER: &str = "10.25.0.2";

#[test]
fn destroy_socket_to_another_namespace_ends_its_owners_read_at_once() {
    within(|| async {
        let lab = Lab::new("destroy");
        let id = lab.own.make("");
        for server in [SERVER, "fd25::2", "::ffff:10.25.0.2"] {
            let at = SocketAddr::new(server.parse().unwrap(), 25);
            let _listener = lab.server.listen(at);
            let (reader, source) = reading(lab.client.connect(at, Some(&lab.own.directory(""))));
            let sockets = lab.client.sockets(&[25]);
            let [socket] = &sockets[..] else {
                panic!("{sockets:?}")
            };
            assert_eq!(
                (
                    socket.cgroup,
                    socket.port,
                    socket.destination,
                    socket.source
                ),
                (id, 25, canonical(at.ip()), canonical(source.ip()))
            );
            let started = Instant::now();
            assert_eq!(lab.client.destroy(socket), Destroyed::Yes);
            let error = reader.join().unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{server}");
            assert!(started.elapsed() < Duration::from_secs(1));
            assert_eq!(lab.client.destroy(socket), Destroyed::AlreadyGone);
            assert_eq!(lab.client.sockets(&[25]), []);
        }
    });
}

#[test]
fn destroy_leaves_the_socket_that_took_its_place_alone() {
    within(|| async {
        let lab = Lab::new("place");
        let _listener = lab.server.listen(at(SERVER, 25));
        let make = |lab: &Lab| {
            lab.client.run(|| {
                let socket = socket(libc::IPPROTO_TCP);
                setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
                bind(socket.as_raw_fd(), &SockaddrIn::new(10, 25, 0, 1, 2525)).unwrap();
                connect(socket.as_raw_fd(), &SockaddrIn::new(10, 25, 0, 2, 25)).unwrap();
                TcpStream::from(socket)
            })
        };
        let first = make(&lab);
        let before = lab.client.sockets(&[25]);
        assert_eq!(lab.client.destroy(&before[0]), Destroyed::Yes);
        drop(first);
        let second = make(&lab);
        let after = lab.client.sockets(&[25]);
        assert_eq!(after.len(), 1);
        assert_ne!(before, after);
        assert_eq!(lab.client.destroy(&before[0]), Destroyed::AlreadyGone);
        assert_eq!(lab.client.sockets(&[25]), after);
        assert!(second.take_error().unwrap().is_none());
    });
}

#[test]
fn to_ports_connection_not_yet_answered_is_listed() {
    within(|| async {
        let lab = Lab::new("syn-sent");
        let waiting = lab
            .client
            .start(|| TcpStream::connect(at("10.25.0.99", 25)));
        let deadline = Instant::now() + deadline();
        let socket = loop {
            if let [socket] = &lab.client.sockets(&[25])[..] {
                break socket.clone();
            }
            assert!(Instant::now() < deadline, "no socket");
        };
        assert_eq!(lab.client.destroy(&socket), Destroyed::Yes);
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
    });
}

#[test]
fn to_ports_local_destinations_are_left_out() {
    within(|| async {
        let lab = Lab::new("local");
        let mut open = Vec::new();
        for local in [
            CLIENT,
            "127.0.0.1",
            "127.1.2.3",
            "::1",
            "fd25::1",
            "::ffff:127.0.0.9",
        ] {
            let listener = lab.client.listen(at(local, 25));
            open.push((lab.client.connect(at(local, 25), None), listener));
        }
        assert_eq!(lab.client.sockets(&[25]), []);
    });
}

#[test]
fn to_ports_lists_the_ports_asked_for_only() {
    within(|| async {
        let lab = Lab::new("ports");
        let mut open = Vec::new();
        for port in [24, 25, 26, 465, 587] {
            let listener = lab.server.listen(at(SERVER, port));
            open.push((lab.client.connect(at(SERVER, port), None), listener));
        }
        let ports = |asked: &[u16]| {
            let mut ports: Vec<_> = lab.client.sockets(asked).iter().map(|s| s.port).collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(ports(&[25]), [25]);
        assert_eq!(ports(&[587, 25, 1, 2, 3, 4, 5, 65535]), [25, 587]);
        assert!(ports(&[]).is_empty());
        // What the server sends comes from its port 25.
        assert_eq!(lab.server.sockets(&[25]), []);
    });
}

#[test]
fn to_ports_half_closed_sockets_are_listed_for_as_long_as_they_have_an_owner() {
    within(|| async {
        let lab = Lab::new("half");
        let listener = lab.server.listen(at(SERVER, 25));
        let client = lab.client.connect(at(SERVER, 25), None);
        let (server, _) = listener.accept().unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(lab.client.sockets(&[25]).len(), 1, "FIN_WAIT");
        drop(client);
        let deadline = Instant::now() + deadline();
        while !lab.client.sockets(&[25]).is_empty() {
            assert!(Instant::now() < deadline, "still listed");
        }
        drop(server);
        assert_eq!(lab.client.sockets(&[25]), [], "TIME_WAIT");
        let client = lab.client.connect(at(SERVER, 25), None);
        drop(listener.accept().unwrap());
        assert_eq!(lab.client.sockets(&[25]).len(), 1, "CLOSE_WAIT");
        drop(client);
    });
}

#[test]
fn destroy_subflow_of_mptcp_ends_the_connection() {
    if Feature::Mptcp.is_missing().unwrap() {
        return;
    }
    within(|| async {
        let lab = Lab::new("mptcp");
        let id = lab.own.make("");
        let _listener = lab.server.listen(at(SERVER, 25));
        let cgroup = lab.own.directory("");
        let stream = lab.client.run(move || {
            enter_threaded(&cgroup);
            let socket = socket(libc::IPPROTO_MPTCP);
            connect(socket.as_raw_fd(), &SockaddrIn::new(10, 25, 0, 2, 25)).unwrap();
            TcpStream::from(socket)
        });
        let (reader, _) = reading(stream);
        let sockets = lab.client.sockets(&[25]);
        let [subflow] = &sockets[..] else {
            panic!("{sockets:?}")
        };
        assert_eq!(subflow.cgroup, id);
        assert_eq!(lab.client.destroy(subflow), Destroyed::Yes);
        let ended = reader.join().unwrap();
        assert!(matches!(ended, Err(_) | Ok(0)), "{ended:?}");
        assert_eq!(lab.client.sockets(&[25]), []);
    });
}

/// Two namespaces joined by a veth pair, neither of them the test's, and a cgroup.
struct Lab {
    client: Namespace,
    server: Namespace,
    own: Own,
}

struct Namespace(Elsewhere);

impl Lab {
    fn new(test: &str) -> Self {
        let lab = Self {
            client: Namespace(Elsewhere::new()),
            server: Namespace(Elsewhere::new()),
            own: Own::new(test),
        };
        let (client, server) = (lab.client.0.pid(), lab.server.0.pid());
        run(&format!(
            "ip link add v netns {client} type veth peer name v netns {server}"
        ));
        for (pid, v4, v6) in [(client, CLIENT, "fd25::1"), (server, SERVER, "fd25::2")] {
            let enter = format!("nsenter -t {pid} -n ip");
            run(&format!("{enter} addr add {v4}/24 dev v"));
            run(&format!("{enter} addr add {v6}/64 dev v nodad"));
            run(&format!("{enter} link set v up"));
            run(&format!("{enter} link set lo up"));
        }
        for server in [SERVER, "fd25::2"] {
            lab.client.run(move || reach(at(server, 1)));
        }
        lab
    }
}

impl Namespace {
    fn open(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.0.pid())).unwrap()
    }

    /// Runs something on a thread in there.
    fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = self.open();
        spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).join().unwrap()
    }

    fn listen(&self, at: SocketAddr) -> TcpListener {
        self.run(move || TcpListener::bind(at).unwrap())
    }

    /// Connects, from within a cgroup if one is given.
    fn connect(&self, to: SocketAddr, cgroup: Option<&Path>) -> TcpStream {
        let cgroup = cgroup.map(Path::to_owned);
        self.run(move || {
            if let Some(cgroup) = cgroup {
                enter_threaded(&cgroup);
            }
            TcpStream::connect(to).unwrap()
        })
    }

    #[track_caller]
    fn sockets(&self, ports: &[u16]) -> Vec<TcpSocket> {
        to_ports(Within::Other(self.open().as_fd()), ports).unwrap()
    }

    #[track_caller]
    fn destroy(&self, socket: &TcpSocket) -> Destroyed {
        destroy(Within::Other(self.open().as_fd()), socket).unwrap()
    }
}

/// Waits until a closed port refuses: a new link takes a moment to carry packets.
fn reach(closed: SocketAddr) {
    let deadline = Instant::now() + deadline();
    loop {
        let error = TcpStream::connect_timeout(&closed, Duration::from_secs(1)).unwrap_err();
        if error.kind() == io::ErrorKind::ConnectionRefused {
            return;
        }
        assert!(Instant::now() < deadline, "{closed}: {error}");
    }
}

/// Starts reading from a connection; says what its own address is.
fn reading(mut stream: TcpStream) -> (JoinHandle<io::Result<usize>>, SocketAddr) {
    let source = stream.local_addr().unwrap();
    (spawn(move || stream.read(&mut [0])), source)
}

fn socket(protocol: i32) -> OwnedFd {
    // SAFETY: takes numbers only.
    let made = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, protocol) };
    assert!(made >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor for us alone.
    unsafe { OwnedFd::from_raw_fd(made) }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn canonical(address: IpAddr) -> Address {
    match address.to_canonical() {
        IpAddr::V4(v4) => Address::from_v4(Ipv4Addr::octets(&v4)),
        IpAddr::V6(v6) => Address::from_v6(v6.octets()),
    }
}
