//! Connections that are led to the notice: `blocked: notice`.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_tests::{
    Feature, Held, Hosting, Link, Network, Outcome, PolicyText, Postfix, Role, Settings, World,
    connect, poll, send,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const PORT: u16 = 2525;

#[test]
fn routed_guest_is_told_the_notice_in_its_customers_name() {
    told(Link::RoutedVeth);
}

#[test]
fn bridged_guest_is_told_the_notice_in_its_customers_name() {
    told(Link::BridgedVeth);
}

#[test]
fn guest_behind_a_tap_is_told_the_notice_in_its_customers_name() {
    told(Link::BridgedTap);
}

fn told(link: Link) {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let guest = world.guest_by(101, "tap101i0", link).unwrap();
    let agent = world.agent_with(settings(""), &policy()).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    for to in exchangers() {
        let delivery = send(&guest.ns, to, "somebody@example.org", "news").unwrap();
        assert!(!delivery.accepted, "{to}");
        check_told(&delivery.transcript, "c-101");
    }
    assert_eq!(world.witness.settled().unwrap(), 0);
    let page = agent.metrics().unwrap();
    let led = [("verdict", "notice"), ("reason", "profile")];
    let counted = page.sum("gate25_connections_total", &led);
    assert!(counted >= Some(2.0), "{counted:?}");
    // An exemption opens the way, and its end closes it.
    let text = policy().exempt("c-101").text();
    agent.apply_policy("policy.yaml", &text).unwrap();
    world.wait_open(&guest).unwrap();
    agent.apply_policy("policy.yaml", &policy().text()).unwrap();
    let delivery = send(&guest.ns, exchangers()[0], "somebody@example.org", "news").unwrap();
    check_told(&delivery.transcript, "c-101");
}

#[test]
fn postfix_of_a_guest_bounces_with_its_customers_notice() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent_with(settings(""), &policy()).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    let role = Role::Relay {
        networks: "127.0.0.0/8".to_owned(),
        next_hop: format!("[{}]:25", Hosting::EXCHANGER.v4),
    };
    let server = Postfix::start(&guest.ns, &role).unwrap();
    let local = ([127, 0, 0, 1], 25).into();
    let delivery = send(&guest.ns, local, "somebody@example.org", "news").unwrap();
    assert!(delivery.accepted, "{}", delivery.transcript);
    let line = server.outcome_for("somebody@example.org", LIMIT).unwrap();
    for part in [
        "dsn=5.7.1",
        "status=bounced",
        "Port 25 is closed for c-101.",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(world.witness.settled().unwrap(), 0);
}

#[test]
fn container_is_told_the_notice() {
    let world = World::new().unwrap();
    let text =
        PolicyText::default()
            .noticing("told")
            .container_of("told", "c-1", &world.below("box"));
    let settings = Settings {
        cgroups: world.settings().cgroups,
        ..settings("")
    };
    let agent = world.agent_with(settings, &text).unwrap();
    let container = world
        .container("box", &Network::own(104, "veth104i0"))
        .unwrap();
    // The group and, once its threads have been looked at, the veth.
    world.wait_workloads(&agent, "enforced", 2).unwrap();
    for to in exchangers() {
        poll("the notice", LIMIT, || {
            let greeting = container.tenant.hold("one", to)?;
            Ok(greeting.starts_with("220 hv1").then_some(()))
        })
        .unwrap();
        let refusal = container
            .tenant
            .say("one", "MAIL FROM:<a@example.org>")
            .unwrap();
        assert!(
            refusal.starts_with("554-5.7.1 Port 25 is closed for c-1."),
            "{to}: {refusal}"
        );
        assert_eq!(container.tenant.peer(to).unwrap(), to);
    }
    assert_eq!(world.witness.settled().unwrap(), 0);
    let led = [("verdict", "notice")];
    let counted = agent
        .metrics()
        .unwrap()
        .sum("gate25_connections_total", &led);
    assert!(counted >= Some(4.0), "{counted:?}");
}

#[test]
fn guest_is_refused_where_nobody_tells_the_notice() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    // One connection at once, and nobody listens for IPv6.
    let more = "  max_connections: 1\n";
    let settings = Settings {
        more: format!(
            "notice:\n  listen: [\"{}\"]\n{more}",
            Hosting::GATEWAY.v4_port(PORT)
        ),
        ..Settings::default()
    };
    let mut agent = world.agent_with(settings, &policy()).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    let [v4, v6] = exchangers();
    assert_eq!(
        connect(&guest.ns, v6, LIMIT).unwrap().outcome,
        Outcome::Refused
    );
    let status = agent.command(&["status"]).unwrap().out;
    let why = "`notice.listen` has no IPv6 address";
    assert!(status.contains(why), "{status}");
    let held = Held::open(&guest.ns, v4, LIMIT).unwrap();
    assert!(
        held.greeting().starts_with("220 hv1"),
        "{}",
        held.greeting()
    );
    let delivery = send(&guest.ns, v4, "somebody@example.org", "news").unwrap();
    assert!(!delivery.accepted, "{}", delivery.transcript);
    assert!(
        !delivery.transcript.contains("554"),
        "{}",
        delivery.transcript
    );
    drop(held);
    agent.signal(Signal::SIGKILL).unwrap();
    poll("refusals", LIMIT, || {
        let attempt = connect(&guest.ns, v4, LIMIT)?;
        Ok((attempt.outcome == Outcome::Refused).then_some(()))
    })
    .unwrap();
    assert_eq!(world.witness.settled().unwrap(), 0);
}

#[test]
fn others_who_take_the_notices_port_get_nobodys_connections() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let text = policy().container_of("told", "c-1", &world.below("box"));
    let settings = Settings {
        cgroups: world.settings().cgroups,
        ..settings("")
    };
    let mut agent = world.agent_with(settings, &text).unwrap();
    let container = world
        .container("box", &Network::own(104, "veth104i0"))
        .unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    let is_told = || {
        poll("the notice", LIMIT, || {
            let said = send(&guest.ns, exchangers()[0], "somebody@example.org", "news")?;
            Ok(said.transcript.contains("closed for c-101.").then_some(()))
        })
        .unwrap();
    };
    is_told();
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    // Anybody on the host's network can listen there now...
    let squatter = world.container("squatter", &Network::Hypervisor).unwrap();
    squatter.tenant.greet(PORT).unwrap();
    for gateway in [
        Hosting::GATEWAY.v4_port(PORT),
        Hosting::GATEWAY.v6_port(PORT),
    ] {
        let held = Held::open(&guest.ns, gateway, LIMIT).unwrap();
        assert_eq!(held.greeting(), "220 greeter");
    }
    // ...and gets nothing but from those who ask for it.
    let check_refused = || {
        for to in exchangers() {
            let attempt = connect(&guest.ns, to, LIMIT).unwrap();
            assert_eq!(attempt.outcome, Outcome::Refused, "guest to {to}");
            let attempt = container.tenant.connect(to).unwrap();
            assert_eq!(attempt.outcome, Outcome::Refused, "container to {to}");
        }
    };
    check_refused();
    agent.restart().unwrap();
    check_refused();
    let status = agent.command(&["status"]).unwrap().out;
    assert!(status.contains("senders get no notice"), "{status}");
    let hindered = [("reason", "not_listening")];
    let hindered = agent
        .metrics()
        .unwrap()
        .sum("gate25_redirects_refused_total", &hindered);
    assert!(hindered >= Some(4.0), "{hindered:?}");
    drop(squatter);
    is_told();
    assert_eq!(world.witness.settled().unwrap(), 0);
}

#[test]
fn notice_at_an_address_of_others_is_told_nobody() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    gate25_tests::greet(&world.hosting.relay, PORT).unwrap();
    let host = &world.hosting.hypervisor;
    host.sysctl(&[("ipv4/ip_nonlocal_bind", "1")]).unwrap();
    let settings = Settings {
        more: format!(
            "notice:\n  listen: [\"{}\"]\n",
            Hosting::RELAY.v4_port(PORT)
        ),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &policy()).unwrap();
    world.wait_replies(&agent, "tap101i0").unwrap();
    let there = Held::open(&guest.ns, Hosting::RELAY.v4_port(PORT), LIMIT).unwrap();
    assert_eq!(there.greeting(), "220 greeter");
    let attempt = connect(&guest.ns, exchangers()[0], LIMIT).unwrap();
    assert_eq!(attempt.outcome, Outcome::Refused);
    let status = agent.command(&["status"]).unwrap().out;
    let why = format!("{} is not an address of this host", Hosting::RELAY.v4);
    assert!(status.contains(&why), "{status}");
    assert!(
        status.contains(&format!("listening on {}", Hosting::RELAY.v4_port(PORT))),
        "{status}"
    );
}

fn check_told(transcript: &str, customer: &str) {
    for line in [
        format!("554-5.7.1 Port 25 is closed for {customer}."),
        "554-5.7.1 Use 192.0.2.25 or 2001:db8:25::25.".to_owned(),
        "554 5.7.1 Ask at https://noc.example.net/25".to_owned(),
    ] {
        assert!(transcript.contains(&line), "{line}: {transcript}");
    }
}

fn exchangers() -> [std::net::SocketAddr; 2] {
    [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ]
}

fn policy() -> PolicyText {
    PolicyText::default()
        .noticing("told")
        .customer_of("told", "c-101", "tap101i0")
}

fn settings(more: &str) -> Settings {
    Settings {
        more: format!(
            "notice:\n  listen: [\"{}\", \"{}\"]\n  text: |\n    Port 25 is closed for {{customer}}.\n    \
             Use {{relay}}.\n    Ask at {{url}}\n  url: https://noc.example.net/25\n{more}",
            Hosting::GATEWAY.v4_port(PORT),
            Hosting::GATEWAY.v6_port(PORT),
        ),
        ..Settings::default()
    }
}
