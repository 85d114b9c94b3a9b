//! Containers that are masters of their own network, and connections that the other side begins.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use gate25_common::testing::frames::{IPV4, IPV6, Ipv4, Ipv6, Tcp, ethernet_to};
use gate25_tests::{
    Agent, Container, Guest, Hosting, MEETING_PORT, NetNs, Network, Offload, Outcome, Tap, Trick,
    Tried, Witness, World, poll,
};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt,
    socket, sockopt,
};

use super::packets::packet_v4;
use super::tenants::{Player, start};

const LIMIT: Duration = Duration::from_secs(5);
/// For connects whose packets are dropped.
const BRIEF: Duration = Duration::from_millis(300);
/// What a container connects to, and has turned into port 25.
const HARMLESS: u16 = 2525;
const LISTENING: u16 = 4000;
/// The core's address on the way to the hypervisor.
const CORE: ([u8; 4], [u16; 8]) = ([192, 0, 2, 130], [0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 2]);
const TAP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

#[test]
fn nat_of_a_containers_own_leads_nowhere() {
    let what = "a container's own NAT from another port to 25";
    try_rewriting(what, Outcome::Connected, |guest| {
        let to = Hosting::EXCHANGER;
        let rules = format!(
            "table inet own {{ chain out {{ type nat hook output priority -100;
             ip daddr {} tcp dport {HARMLESS} dnat ip to {}:25
             ip6 daddr {} tcp dport {HARMLESS} dnat ip6 to [{}]:25; }}; }}",
            to.v4, to.v4, to.v6, to.v6
        );
        guest.ns.exec("nft", &[&rules]).map(drop)
    });
}

#[test]
fn port_rewritten_behind_the_programs_on_the_cgroup_leads_nowhere() {
    let what = "a port rewritten as the packet leaves the container";
    // What answers it comes from a port that the socket does not know.
    try_rewriting(what, Outcome::TimedOut, |guest| {
        let rules = format!(
            "table netdev own {{ chain out {{ type filter hook egress device eth0 priority 0;
             tcp dport {HARMLESS} tcp dport set 25; }}; }}"
        );
        guest.ns.exec("nft", &[&rules]).map(drop)
    });
}

/// A container that has packets for `HARMLESS` turned into ones for port 25. By itself a connect
/// ends as given.
#[track_caller]
fn try_rewriting(what: &str, by_itself: Outcome, rewrite: impl Fn(&Guest) -> anyhow::Result<()>) {
    let world = World::new().unwrap();
    let _agent = start(&world, world.settings());
    let [closed, watched] = pair(&world);
    for container in [&watched, &closed] {
        rewrite(container.guest().unwrap()).unwrap();
    }
    let player = Player::new(&world, &watched).unwrap();
    for target in player.aimed_at(HARMLESS) {
        let before = world.witness.settled().unwrap();
        let attempt = player.play(Trick::Device, &target).unwrap();
        poll("a rewritten packet", LIMIT, || {
            Ok((world.witness.packets()? > before).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{}: {attempt}: {error:#}", target.to));
        assert_eq!(attempt.outcome, by_itself, "{}", target.to);
    }
    let player = Player::new(&world, &closed).unwrap();
    let before = world.witness.settled().unwrap();
    let targets = player.aimed_at(HARMLESS);
    for target in &targets {
        let attempt = player.play(Trick::Device, target).unwrap();
        let refused = matches!(attempt.outcome, Outcome::Refused | Outcome::TimedOut);
        assert!(refused, "{}: {attempt}", target.to);
    }
    let leaked = world.witness.settled().unwrap() - before;
    judge(what, targets.len() as u64, leaked);
}

#[test]
fn packets_that_a_container_forwards_for_others_get_nowhere() {
    let world = World::new().unwrap();
    let agent = start(&world, world.settings());
    let [closed, watched] = pair(&world);
    let to = Hosting::EXCHANGER;
    let frames = [forwarded(to.v4.into()), forwarded(to.v6.into())];
    for (container, may_send) in [(&watched, true), (&closed, false)] {
        let ns = &container.guest().unwrap().ns;
        let mut tap = Tap::new(ns, "tap7", Offload::None).unwrap();
        ns.ip("link set tap7 address 02:00:00:00:00:07 up").unwrap();
        ns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
            .unwrap();
        let start = world.witness.settled().unwrap();
        let mut sent = 0;
        for frame in &frames {
            // A new link takes a moment, and what was refused was counted at the veth.
            let seen = || match may_send {
                true => world.witness.packets(),
                false => refused(&agent),
            };
            // None of the other family's may still be on its way.
            world.witness.settled().unwrap();
            let before = seen().unwrap();
            poll("a forwarded packet", LIMIT, || {
                tap.send(frame)?;
                sent += 1;
                Ok((seen()? > before).then_some(()))
            })
            .unwrap();
        }
        if !may_send {
            let leaked = world.witness.settled().unwrap() - start;
            judge("packets that a container forwards for others", sent, leaked);
        }
    }
}

fn refused(agent: &Agent) -> anyhow::Result<u64> {
    let verdict = [("verdict", "reject")];
    let refused = agent.metrics()?.sum("gate25_connections_total", &verdict);
    Ok(refused.unwrap_or_default() as u64)
}

/// A SYN from somebody behind a container.
fn forwarded(to: IpAddr) -> Vec<u8> {
    let syn = Tcp::syn(25).bytes();
    match to {
        IpAddr::V4(to) => ethernet_to(TAP_MAC, &[], IPV4, &packet_v4(&Ipv4::to(to.octets()), &syn)),
        IpAddr::V6(to) => ethernet_to(TAP_MAC, &[], IPV6, &Ipv6::to(to.octets()).with(&syn)),
    }
}

#[test]
fn connection_that_the_other_side_begins_from_port_25_is_not_answered() {
    let world = World::new().unwrap();
    let _agent = start(&world, world.settings());
    let core = &world.hosting.core;
    let witness = Witness::start(core).unwrap();
    let containers = [
        ("watched", Network::own(105, "veth105i0")),
        ("watched-shared", Network::Hypervisor),
        ("closed", Network::own(104, "veth104i0")),
        ("closed-shared", Network::Hypervisor),
    ];
    for (name, network) in containers {
        let container = world.container(name, &network).unwrap();
        world.settle(&container).unwrap();
        // Each another port: those on the hypervisor's network share its addresses.
        let port = LISTENING + u16::from(name.starts_with("closed"));
        container.tenant.greet(port).unwrap();
        let player = Player::new(&world, &container).unwrap();
        let before = witness.settled().unwrap();
        let ends = player.own().map(|own| {
            let to = SocketAddr::new(own, port);
            connect_from_guarded(core, to, BRIEF)
        });
        if name.starts_with("watched") {
            assert!(
                ends.iter().all(|end| *end == Outcome::Connected),
                "{name}: {ends:?}"
            );
        } else {
            assert!(
                ends.iter().all(|end| *end != Outcome::Connected),
                "{name}: {ends:?}"
            );
            let leaked = witness.settled().unwrap() - before;
            judge("answers to connections that come from port 25", 2, leaked);
        }
    }
}

#[test]
fn connection_that_both_sides_begin_at_once_does_not_come_about() {
    let world = World::new().unwrap();
    let _agent = start(&world, world.settings());
    let core = &world.hosting.core;
    let witness = Witness::start(core).unwrap();
    for (name, number) in [("watched", 105), ("silent", 108)] {
        let network = Network::own(number, &format!("veth{number}i0"));
        let container = world.container(name, &network).unwrap();
        world.settle(&container).unwrap();
        let player = Player::new(&world, &container).unwrap();
        let before = witness.settled().unwrap();
        for mut target in player.aimed_at(25) {
            let own = SocketAddr::new(target.own, MEETING_PORT);
            target.to = SocketAddr::new(address_of_core(target.own), 25);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        connect_from_guarded(core, own, BRIEF);
                    }
                });
                let met = || {
                    let attempt = player.play(Trick::Meeting, &target)?;
                    Ok((attempt.outcome == Outcome::Connected).then_some(()))
                };
                let result = if name == "watched" {
                    poll("both to meet", LIMIT, met).map(Some)
                } else {
                    met()
                };
                stop.store(true, Ordering::Relaxed);
                let expected = (name == "watched").then_some(());
                assert_eq!(result.unwrap(), expected, "{name}: {}", target.to);
            });
        }
        if name == "silent" {
            let leaked = witness.settled().unwrap() - before;
            judge(Trick::Meeting.words(), 2, leaked);
        }
    }
}

#[test]
fn frame_that_a_container_on_the_hosts_network_sends_below_ip_is_not_seen() {
    let world = World::new().unwrap();
    let _agent = start(&world, world.settings());
    let container = world.container("closed", &Network::Hypervisor).unwrap();
    world.check_contained(&container.tenant).unwrap();
    let player = Player::new(&world, &container).unwrap();
    for target in player.aimed_at(25) {
        let before = world.witness.settled().unwrap();
        player.play(Trick::FramePastQueues, &target).unwrap();
        poll("the frame", LIMIT, || {
            Ok((world.witness.packets()? > before).then_some(()))
        })
        .unwrap();
    }
}

/// Connects from port 25 of a namespace.
fn connect_from_guarded(ns: &NetNs, to: SocketAddr, limit: Duration) -> Outcome {
    let body = || -> io::Result<TcpStream> {
        let (family, from) = match to {
            SocketAddr::V4(_) => (AddressFamily::Inet, "0.0.0.0:25"),
            SocketAddr::V6(_) => (AddressFamily::Inet6, "[::]:25"),
        };
        let from: SocketAddr = from.parse().map_err(io::Error::other)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        // Closed with a reset: its address and port are wanted again.
        setsockopt(
            &socket,
            sockopt::Linger,
            &nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            },
        )?;
        finish(&socket, to, limit)?;
        Ok(TcpStream::from(socket))
    };
    match ns.run(body).unwrap() {
        Ok(_closed_at_once) => Outcome::Connected,
        Err(error) => error.into(),
    }
}

/// Connects a socket that does not wait, within a limit.
fn finish(socket: &OwnedFd, to: SocketAddr, limit: Duration) -> io::Result<()> {
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(nix::Error::EINPROGRESS) => {}
        other => return Ok(other?),
    }
    let timeout = PollTimeout::try_from(limit).map_err(io::Error::other)?;
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match nix::poll::poll(&mut ready, timeout)? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => match getsockopt(socket, sockopt::SocketError)? {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        },
    }
}

fn address_of_core(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => CORE.0.into(),
        IpAddr::V6(_) => CORE.1.into(),
    }
}

/// One that may not send, and one that is watched, each in a network of its own.
#[track_caller]
fn pair(world: &World) -> [Container; 2] {
    [("closed", 104), ("watched", 105)].map(|(name, number)| {
        let network = Network::own(number, &format!("veth{number}i0"));
        let container = world.container(name, &network).unwrap();
        world.settle(&container).unwrap();
        container
    })
}

#[track_caller]
fn judge(what: &str, sent: u64, leaked: u64) {
    Tried::evasion(what, sent, leaked).judge().unwrap();
}
