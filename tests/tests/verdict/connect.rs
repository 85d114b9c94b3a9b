//! Real sockets of a real control group: what a refused application sees, and what is counted.

use std::io;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use gate25_common::abi::{Blocked, CustomerId, Mode, Quarantine};
use gate25_common::address::Family;
use gate25_common::decide::{HostMode, Reason, Verdict};
use gate25_common::testing::frames::Tcp;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, sendto, socket,
};

use super::cgroup::Cgroups;
use super::kernel::{Kernel, LOOPBACK, in_namespace};
use super::table::{CUSTOMER, RELAY_V4, moved, tables};

/// Long enough for an answer of the same host, and of nobody else.
const PATIENCE: Duration = Duration::from_millis(200);
const OTHER: CustomerId = CustomerId::from_name("c-7");
const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const FAR_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 99);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x99);

/// Runs `body` in a control group of `CUSTOMER`, within one of `OTHER`, that is refused
/// everything, with a way out that leads nowhere.
fn contained(blocked: Blocked, body: impl FnOnce(&Kernel, &Cgroups) + Send) {
    in_namespace(move |namespace| {
        namespace
            .ip("link add left type veth peer name right\n\
                 addr add 10.9.0.1/16 dev left\n\
                 addr add fd09::1/64 dev left nodad\n\
                 link set left mtu 60000 up\n\
                 link set right mtu 60000 up\n\
                 route add default via 10.9.0.254 dev left")
            .expect("a way out");
        let mut tables = tables(Mode::Enforce, blocked, Quarantine::No);
        let policy = tables.policies[&CUSTOMER];
        tables.policies.insert(OTHER, policy);
        let mut kernel = Kernel::load(HostMode::Policy);
        kernel.fill(LOOPBACK, &tables);
        let cgroups = Cgroups::enter();
        kernel.own_cgroup(cgroups.outer(), Some(OTHER));
        kernel.own_cgroup(cgroups.inner(), Some(CUSTOMER));
        kernel.attach(cgroups.root());
        body(&kernel, &cgroups);
    });
}

fn dial(to: impl Into<IpAddr>, port: u16) -> io::Result<()> {
    TcpStream::connect_timeout(&SocketAddr::new(to.into(), port), PATIENCE).map(drop)
}

#[track_caller]
fn check_refused(kernel: &Kernel, to: impl Into<IpAddr>, family: Family) {
    let before = kernel.host_counters();
    let error = dial(to, 25).expect_err("a refusal");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    // No packet was sent, and none is counted.
    let expected = [(format!("connections Reject Profile {family:?}"), 1)];
    assert_eq!(moved(&before, &kernel.host_counters()), expected);
}

#[test]
fn refused_connect_fails_at_once_and_is_counted_once() {
    contained(Blocked::Reject, |kernel, _| {
        check_refused(kernel, FAR_V4, Family::V4);
        check_refused(kernel, FAR_V6, Family::V6);
        check_refused(kernel, FAR_V4.to_ipv6_mapped(), Family::V4);
        let counters = kernel.customer_counters(CUSTOMER);
        assert_eq!(counters.connections(Verdict::Reject), 3);
    });
}

#[test]
fn connect_that_is_not_refused_goes_its_way_and_its_packets_are_counted() {
    contained(Blocked::Reject, |kernel, _| {
        let before = kernel.host_counters();
        let error = dial(FAR_V4, 587).expect_err("nobody is there");
        assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        assert_eq!(moved(&before, &kernel.host_counters()), []);
        let error = dial(Ipv4Addr::from(RELAY_V4), 25).expect_err("nobody is there");
        assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        let relayed =
            kernel
                .host_counters()
                .connections(Verdict::Allow, Reason::Allowlist, Family::V4);
        assert!(relayed > 0);
    });
}

#[test]
fn connect_under_drop_is_not_answered() {
    contained(Blocked::Drop, |kernel, _| {
        let error = dial(FAR_V4, 25).expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        let dropped =
            kernel
                .host_counters()
                .connections(Verdict::Drop, Reason::Profile, Family::V4);
        assert_eq!(dropped, 1);
    });
}

/// Its own mail server is no egress, on whatever address; one that listens on all addresses makes
/// no other address its own.
#[test]
fn connect_to_a_server_of_its_own_passes_uncounted() {
    contained(Blocked::Reject, |kernel, _| {
        // Nothing listens: refused, as it would be without us.
        let error = dial(OWN_V4, 25).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        for listen in [
            IpAddr::from(OWN_V4),
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::from(Ipv6Addr::UNSPECIFIED),
        ] {
            let _server = TcpListener::bind((listen, 25)).expect("a server");
            let before = kernel.host_counters();
            dial(OWN_V4, 25).expect("its own server");
            dial(OWN_V4.to_ipv6_mapped(), 25).expect("its own server");
            if listen != IpAddr::from(OWN_V4) {
                dial(Ipv4Addr::LOCALHOST, 25).expect("its own server");
                dial(Ipv4Addr::UNSPECIFIED, 25).expect("its own server");
            }
            if listen.is_ipv6() {
                dial(OWN_V6, 25).expect("its own server");
                dial(Ipv6Addr::LOCALHOST, 25).expect("its own server");
                dial(Ipv6Addr::UNSPECIFIED, 25).expect("its own server");
            }
            assert_eq!(moved(&before, &kernel.host_counters()), [], "{listen}");
            check_refused(kernel, FAR_V4, Family::V4);
            check_refused(kernel, FAR_V4.to_ipv6_mapped(), Family::V4);
            check_refused(kernel, FAR_V6, Family::V6);
        }
    });
}

#[test]
fn socket_that_was_handed_over_answers_to_its_makers_group() {
    contained(Blocked::Reject, |kernel, cgroups| {
        let made = || {
            let flags = SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None);
            socket.expect("a socket")
        };
        let dial = |socket: &std::os::fd::OwnedFd| {
            let [a, b, c, d] = FAR_V4.octets();
            connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 25))
        };
        cgroups.go_out();
        let socket = made();
        cgroups.go_in();
        assert_eq!(dial(&socket), Err(Errno::EINPROGRESS));
        assert_eq!(dial(&made()), Err(Errno::ECONNREFUSED));
        let refused = |customer| {
            kernel
                .customer_counters(customer)
                .connections(Verdict::Reject)
        };
        assert_eq!((refused(OTHER), refused(CUSTOMER)), (1, 1));
    });
}

/// More than 16 KiB from a raw socket: the IP header alone is in the linear part.
#[test]
fn headers_outside_the_linear_part_are_judged() {
    contained(Blocked::Reject, |kernel, _| {
        let raw = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::Tcp,
        )
        .expect("a raw socket");
        let [a, b, c, d] = FAR_V4.octets();
        let mut segment = Tcp::syn(25).bytes();
        segment.resize(30_000, 0);
        for (port, refused) in [(25u16, true), (587, false)] {
            segment[2..4].copy_from_slice(&port.to_be_bytes());
            let before = kernel.host_counters();
            let to = SockaddrIn::new(a, b, c, d, 0);
            let sent = sendto(raw.as_raw_fd(), &segment, &to, MsgFlags::empty());
            let moves = moved(&before, &kernel.host_counters());
            if refused {
                assert_eq!(sent, Err(Errno::EPERM));
                let expected = [
                    ("bytes Reject V4".to_owned(), 30_020),
                    ("connections Reject Profile V4".to_owned(), 1),
                    ("packets Reject V4".to_owned(), 1),
                ];
                assert_eq!(moves, expected);
            } else {
                assert_eq!((sent, moves), (Ok(30_000), Vec::new()));
            }
        }
    });
}
