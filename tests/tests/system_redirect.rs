//! Connections that are redirected to the provider's relay, a real Postfix.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use gate25_tests::{
    Agent, Containers, Feature, Guest, Held, Hosting, Lab, Link, Network, Outcome, PolicyText,
    Postfix, Role, Settings, Witness, World, connect, greet, poll, send, tenant_program,
};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect as connect_socket,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn mail_of_a_routed_guest_reaches_the_relay_with_the_guests_address() {
    redirected(Link::RoutedVeth);
}

#[test]
fn mail_of_a_bridged_guest_reaches_the_relay_with_the_guests_address() {
    redirected(Link::BridgedVeth);
}

#[test]
fn mail_of_a_guest_behind_a_tap_reaches_the_relay_with_the_guests_address() {
    redirected(Link::BridgedTap);
}

fn redirected(link: Link) {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let scene = Scene::new();
    let guest = scene.world.guest_by(101, "tap101i0", link).unwrap();
    let agent = scene.world.agent(&policy()).unwrap();
    scene.world.wait_replies(&agent, "tap101i0").unwrap();
    scene.check_redirected(&guest);
    let sent = [("verdict", "redirect"), ("reason", "profile")];
    let counted = agent
        .metrics()
        .unwrap()
        .sum("gate25_connections_total", &sent);
    assert!(counted >= Some(2.0), "{counted:?}");
}

fn policy() -> PolicyText {
    PolicyText::default()
        .redirecting("mailers")
        .customer_of("mailers", "c-101", "tap101i0")
}

/// A world whose relay is a Postfix, which discards what it takes.
struct Scene {
    relay: Postfix,
    world: World,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::for_test().unwrap();
        let hosting = Hosting::new(&lab).unwrap();
        greet(&hosting.exchanger, 25).unwrap();
        greet(&hosting.exchanger, 587).unwrap();
        greet(&hosting.relay, 587).unwrap();
        let witness = Witness::start(&hosting.exchanger).unwrap();
        let program = tenant_program().unwrap().to_string_lossy().into_owned();
        let containers = Containers::new(&lab, &hosting, "machine", vec![program]).unwrap();
        let role = Role::Relay {
            networks: Hosting::GUEST_NETWORKS.to_owned(),
            // Nothing listens there: what the relay has taken stays in its queue.
            next_hop: "[203.0.113.25]:26".to_owned(),
        };
        let relay = Postfix::start(&hosting.relay, &role).unwrap();
        let world = World {
            hosting,
            witness,
            refusal: Outcome::Refused,
            containers,
            lab,
        };
        Self { relay, world }
    }

    /// Mail for the exchanger's addresses is taken by the relay, which sees the guest's, and
    /// nothing of it arrives at the exchanger.
    #[track_caller]
    fn check_redirected(&self, guest: &Guest) {
        let before = self.world.witness.packets().unwrap();
        for (to, address) in [
            (
                Hosting::EXCHANGER.v4_port(25),
                guest.addresses.v4.to_string(),
            ),
            (
                Hosting::EXCHANGER.v6_port(25),
                guest.addresses.v6.to_string(),
            ),
        ] {
            let mail = send(&guest.ns, to, "somebody@mx.example", "redirected").unwrap();
            assert!(mail.accepted, "{to}: {}", mail.transcript);
            poll("the relay to name the guest", LIMIT, || {
                Ok(self
                    .relay
                    .log()
                    .contains(&format!("[{address}]"))
                    .then_some(()))
            })
            .unwrap();
        }
        let after = self.world.witness.settled().unwrap();
        assert_eq!(after, before, "packets arrived at the exchanger");
    }
}

#[test]
fn container_is_connected_to_the_relay_and_told_the_exchanger() {
    let scene = Scene::new();
    let world = &scene.world;
    let text = PolicyText::default().redirecting("mailers").container_of(
        "mailers",
        "c-1",
        &world.below("box"),
    );
    let agent = world.agent_with(world.settings(), &text).unwrap();
    for (name, network) in [
        ("box", Network::Hypervisor),
        ("box", Network::own(104, "veth104i0")),
    ] {
        let container = world.container(name, &network).unwrap();
        let before = world.witness.settled().unwrap();
        for to in [
            Hosting::EXCHANGER.v4_port(25),
            Hosting::EXCHANGER.v6_port(25),
            Hosting::EXCHANGER.mapped_port(25),
        ] {
            let greeting = container.tenant.hold("one", to).unwrap();
            assert!(greeting.contains("ESMTP"), "{to}: {greeting}");
            container.tenant.say("one", "QUIT").unwrap();
            assert_eq!(container.tenant.peer(to).unwrap(), to);
            let fast = container.tenant.fast_open(to).unwrap();
            assert_eq!(fast.outcome, Outcome::Connected, "{to}");
        }
        // Where it goes by itself it is told the truth.
        let relay = Hosting::RELAY.v4_port(25);
        assert_eq!(container.tenant.peer(relay).unwrap(), relay);
        assert_eq!(world.witness.settled().unwrap(), before);
        drop(container);
    }
    let redirected = [("verdict", "redirect")];
    let counted = agent.metrics().unwrap();
    let counted = counted.sum("gate25_connections_total", &redirected);
    // Three kinds of connections to three addresses, of two containers.
    assert!(counted >= Some(18.0), "{counted:?}");
}

#[test]
fn redirection_goes_on_without_the_agent_and_ends_with_the_policy() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let scene = Scene::new();
    let world = &scene.world;
    let guest = world.guest_by(101, "tap101i0", Link::RoutedVeth).unwrap();
    let mut agent = world.agent(&policy()).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    let mut held = Held::open(&guest.ns, to, LIMIT).unwrap();
    agent.signal(Signal::SIGKILL).unwrap();
    scene.check_redirected(&guest);
    assert!(held.command("NOOP").unwrap().starts_with("250"));
    agent.restart().unwrap();
    scene.check_redirected(&guest);
    assert!(held.command("NOOP").unwrap().starts_with("250"));
    // Exempt: straight to the exchanger, and what was redirected before is cut.
    let text = policy().exempt("c-101").text();
    agent.apply_policy("policy.yaml", &text).unwrap();
    world.wait_open(&guest).unwrap();
    assert!(world.witness.settled().unwrap() > 0);
    held.write_until_cut(LIMIT).unwrap();
    // Revoked: redirected again, from the next packet on.
    let mut direct = Held::open(&guest.ns, to, LIMIT).unwrap();
    assert_eq!(direct.greeting(), "220 greeter");
    agent.apply_policy("policy.yaml", &policy().text()).unwrap();
    let cut = direct.write_until_cut(LIMIT).unwrap();
    assert_eq!(cut.outcome, Outcome::Reset);
    scene.check_redirected(&guest);
    // Rejected instead.
    let text = PolicyText::default().customer("c-101", "tap101i0").text();
    agent.apply_policy("policy.yaml", &text).unwrap();
    let attempt = connect(&guest.ns, to, LIMIT).unwrap();
    assert_eq!(attempt.outcome, Outcome::Refused);
}

#[test]
fn relay_that_is_not_there_opens_nothing() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let scene = Scene::new();
    let world = &scene.world;
    let guest = world.guest_by(101, "tap101i0", Link::RoutedVeth).unwrap();
    let agent = world.agent(&policy()).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    let before = world.witness.settled().unwrap();
    world.hosting.relay.ip("link set eth0 down").unwrap();
    for to in [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ] {
        let attempt = connect(&guest.ns, to, Duration::from_secs(5)).unwrap();
        assert_ne!(attempt.outcome, Outcome::Connected, "{to}");
    }
    assert_eq!(world.witness.settled().unwrap(), before);
}

#[test]
fn relay_behind_a_workload_gets_nobodys_connections() {
    let scene = Scene::new();
    let world = &scene.world;
    let guest = world.guest_by(101, "tap101i0", Link::RoutedVeth).unwrap();
    let other = world.guest_by(102, "tap102i0", Link::RoutedVeth).unwrap();
    greet(&other.ns, 25).unwrap();
    let v4 = other.addresses.v4;
    let text = format!(
        "schema: 1\nprofiles:\n  - {{name: default, blocked: redirect, relay: [{v4}, \"2001:db8:25::25\"]}}\n"
    );
    let files = [("policy.yaml", text)];
    let agent = Agent::start(&world.hosting.hypervisor, Settings::default(), &files).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    let attempt = connect(&guest.ns, Hosting::EXCHANGER.v4_port(25), LIMIT).unwrap();
    assert_eq!(attempt.outcome, Outcome::Refused);
    let attempt = connect(&guest.ns, Hosting::EXCHANGER.v6_port(25), LIMIT).unwrap();
    assert_eq!(attempt.outcome, Outcome::Connected);
    let status = agent.command(&["status"]).unwrap().out;
    let wanted = format!("{v4} is behind tap102i0, a workload");
    assert!(status.contains(&wanted), "{status}");
    assert_eq!(world.witness.settled().unwrap(), 0);
}

#[test]
fn relay_whose_route_changes_is_left_and_taken_again_at_once() {
    let scene = Scene::new();
    let world = &scene.world;
    let guest = world.guest_by(101, "tap101i0", Link::RoutedVeth).unwrap();
    let other = world.guest_by(102, "tap102i0", Link::RoutedVeth).unwrap();
    greet(&other.ns, 25).unwrap();
    let agent = world.agent(&policy()).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    scene.check_redirected(&guest);
    let host = &world.hosting.hypervisor;
    let to = Hosting::EXCHANGER.v4_port(25);
    let relay = Hosting::RELAY.v4;
    let before = world.witness.settled().unwrap();
    for (route, why) in [
        ("dev tap102i0", "is behind tap102i0, a workload"),
        ("unreachable", "there is no route to"),
    ] {
        let route = match route {
            "unreachable" => format!("unreachable {relay}"),
            way => format!("{relay} {way}"),
        };
        host.ip(&format!("route add {route}")).unwrap();
        poll("a refusal", LIMIT, || {
            let attempt = connect(&guest.ns, to, Duration::from_secs(2))?;
            Ok((attempt.outcome == Outcome::Refused).then_some(()))
        })
        .unwrap();
        let status = agent.command(&["status"]).unwrap().out;
        assert!(status.contains(why), "{why}: {status}");
        host.ip(&format!("route del {route}")).unwrap();
        poll("the relay", LIMIT, || {
            let attempt = connect(&guest.ns, to, Duration::from_secs(2))?;
            Ok((attempt.outcome == Outcome::Connected).then_some(()))
        })
        .unwrap();
    }
    scene.check_redirected(&guest);
    assert_eq!(world.witness.settled().unwrap(), before);
}

#[test]
fn guest_that_was_redirected_reaches_the_relay_itself_from_the_same_port() {
    let scene = Scene::new();
    let world = &scene.world;
    let guest = world.guest_by(101, "tap101i0", Link::RoutedVeth).unwrap();
    let agent = world.agent(&policy()).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    for (exchanger, relay) in [
        (Hosting::EXCHANGER.v4_port(25), Hosting::RELAY.v4_port(25)),
        (Hosting::EXCHANGER.v6_port(25), Hosting::RELAY.v6_port(25)),
    ] {
        for to in [exchanger, relay] {
            // The port is free for another one as soon as the relay has closed the connection.
            poll("a greeting", LIMIT, || {
                Ok(guest.ns.run(|| greeting(to, 40_025))?.ok())
            })
            .unwrap();
        }
    }
    assert_eq!(world.witness.settled().unwrap(), 0);
}

/// Connects from a port of one's own, which is free again at once, and says farewell.
fn greeting(to: SocketAddr, from: u16) -> anyhow::Result<()> {
    let (family, own) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        SocketAddr::V6(_) => (AddressFamily::Inet6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(own, from)),
    )?;
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(5))?;
    connect_socket(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let mut stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(LIMIT))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    anyhow::ensure!(line.starts_with("220 "), "{line}");
    stream.write_all(b"QUIT\r\n")?;
    lines.read_line(&mut line)?;
    // The relay closes first, so that no port waits here.
    let closed = lines.read_line(&mut line)?;
    anyhow::ensure!(closed == 0, "{line}");
    Ok(())
}
