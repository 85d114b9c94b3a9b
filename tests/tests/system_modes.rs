//! What a profile's mode and refusal mean for those who send.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_tests::{
    Agent, Hosting, Link, Offload, Outcome, PolicyText, Settings, Tap, World, connect, greet,
};

/// Within it, three SYNs are sent.
const LIMIT: Duration = Duration::from_secs(4);
const VERDICTS: [&str; 2] = ["reject", "drop"];

#[test]
fn host_that_observes_drops_nothing_and_counts_everything() {
    let world = World::new().unwrap();
    let settings = Settings {
        more: "enforcement: observe\n".to_owned(),
        ..Settings::default()
    };
    let rejected = world.guest(101, "tap101i0").unwrap();
    let dropped = world.guest(102, "tap102i0").unwrap();
    let nobodys = world.guest(103, "tap103i0").unwrap();
    let policy = PolicyText::default()
        .profile("silent", "enforce", "drop")
        .customer("c-1", "tap101i0")
        .customer_of("silent", "c-2", "tap102i0");
    let agent = world.agent_with(settings, &policy).unwrap();
    for guest in [&rejected, &dropped, &nobodys] {
        world.check_open(guest).unwrap();
    }
    let attempts = connections(&agent, &[("verdict", "observe")]);
    assert_eq!(attempts, 6.0);
    assert_eq!(connections(&agent, &[("reason", "unassigned")]), 2.0);
    for verdict in VERDICTS {
        assert_eq!(connections(&agent, &[("verdict", verdict)]), 0.0);
    }
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("gate25_enforcing", &[]), Some(0.0));
    let observe = [("mode", "observe")];
    assert_eq!(metrics.sum("gate25_host_mode", &observe), Some(1.0));
}

#[test]
fn malformed_packets_pass_where_nothing_is_refused_and_nowhere_else() {
    for (enforcement, passed) in [("policy", 0), ("observe", 2)] {
        let world = World::new().unwrap();
        let host = &world.hosting.hypervisor;
        let mut tap = Tap::new(host, "tap101i0", Offload::None).unwrap();
        host.ip("link set tap101i0 up").unwrap();
        // It sees what tc has let pass.
        let table = "table netdev seen { counter passed {}; chain c { type filter hook ingress device tap101i0 priority 0; ether type ip counter name passed; }; }";
        host.exec("nft", &[table]).unwrap();
        let settings = Settings {
            more: format!("enforcement: {enforcement}\n"),
            ..Settings::default()
        };
        let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
        // A first fragment too short for a TCP header, and one that could rewrite its flags.
        tap.send(&fragment(0x2000)).unwrap();
        tap.send(&fragment(0x0001)).unwrap();
        for kind in ["short_fragment", "overlapping_fragment"] {
            let one = |count| count == 1.0;
            agent
                .wait_metric("gate25_malformed_total", &[("kind", kind)], LIMIT, one)
                .unwrap();
        }
        let metrics = agent.metrics().unwrap();
        let observed = metrics.sum("gate25_packets_total", &[("verdict", "observe")]);
        assert_eq!(observed, Some(f64::from(passed)), "{enforcement}");
        let counted = host
            .exec("nft", &["list counter netdev seen passed"])
            .unwrap();
        assert!(
            counted.contains(&format!("packets {passed} ")),
            "{enforcement}: {counted}"
        );
    }
}

#[test]
fn profile_that_observes_lets_its_own_customer_through_and_no_other() {
    let world = World::new().unwrap();
    let watched = world.guest(101, "tap101i0").unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let policy = PolicyText::default()
        .profile("watch", "observe", "reject")
        .customer_of("watch", "c-1", "tap101i0")
        .customer("c-2", "tap102i0");
    let agent = world.agent(&policy).unwrap();
    world.check_open(&watched).unwrap();
    world.check_closed(&closed).unwrap();
    assert_eq!(connections(&agent, &[("verdict", "observe")]), 2.0);
    assert_eq!(connections(&agent, &[("verdict", "reject")]), 2.0);
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("gate25_enforcing", &[]), Some(1.0));
    let series = [("customer", "c-1"), ("verdict", "observe")];
    let value = metrics.sum("gate25_customer_connections_total", &series);
    assert_eq!(value, Some(2.0));
}

#[test]
fn profile_that_drops_answers_nothing_and_touches_no_other_port() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::with_default("enforce", "drop").customer("c-1", "tap101i0");
    let agent = world.agent(&policy).unwrap();
    let before = world.witness.packets().unwrap();
    for to in [
        Hosting::EXCHANGER.v4_port(25),
        Hosting::EXCHANGER.v6_port(25),
    ] {
        let attempt = connect(&guest.ns, to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::TimedOut, "{to}");
    }
    assert_eq!(world.witness.packets().unwrap(), before);
    for to in [
        Hosting::EXCHANGER.v4_port(587),
        Hosting::EXCHANGER.v6_port(587),
        Hosting::RELAY.v4_port(25),
        Hosting::RELAY.v6_port(25),
    ] {
        let attempt = connect(&guest.ns, to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected, "{to}");
    }
    // Retransmissions count: at least a SYN and two more for each connect.
    assert!(connections(&agent, &[("verdict", "drop")]) >= 6.0);
    assert_eq!(connections(&agent, &[("verdict", "reject")]), 0.0);
}

#[test]
fn guests_and_the_host_are_destinations_like_any_other() {
    let world = World::new().unwrap();
    let sender = world.guest(101, "tap101i0").unwrap();
    let bridged = world.guest(102, "tap102i0").unwrap();
    let routed = world.guest_by(103, "veth103i0", Link::RoutedVeth).unwrap();
    // The routed guest's IPv4 address is one of the bridge's subnet.
    let proxy = [("ipv4/conf/vmbr0/proxy_arp", "1")];
    world.hosting.hypervisor.sysctl(&proxy).unwrap();
    for ns in [&bridged.ns, &routed.ns, &world.hosting.hypervisor] {
        greet(ns, 25).unwrap();
    }
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0")
        .exempt("c-2");
    let _agent = world.agent(&policy).unwrap();
    let targets = [
        bridged.addresses.v4_port(25),
        bridged.addresses.v6_port(25),
        routed.addresses.v4_port(25),
        routed.addresses.v6_port(25),
        Hosting::GATEWAY.v4_port(25),
        Hosting::GATEWAY.v6_port(25),
    ];
    for to in targets {
        let attempt = connect(&sender.ns, to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Refused, "{to}");
    }
    // The exempt one reaches them, and its own port 25 answers others: replies pass.
    for to in [routed.addresses.v4_port(25), Hosting::GATEWAY.v6_port(25)] {
        let attempt = connect(&bridged.ns, to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected, "{to}");
    }
    for to in [bridged.addresses.v4_port(25), routed.addresses.v6_port(25)] {
        let attempt = connect(&world.hosting.exchanger, to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected, "{to}");
    }
}

#[test]
fn guarded_ports_are_those_of_the_settings() {
    let world = World::new().unwrap();
    let settings = Settings {
        more: "guarded_ports: [587, 2525]\n".to_owned(),
        ..Settings::default()
    };
    let guest = world.guest(101, "tap101i0").unwrap();
    let _agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    for (port, outcome) in [
        (25, Outcome::Connected),
        (587, Outcome::Refused),
        (2525, Outcome::Refused),
    ] {
        let attempt = connect(&guest.ns, Hosting::EXCHANGER.v4_port(port), LIMIT).unwrap();
        assert_eq!(attempt.outcome, outcome, "{port}");
    }
}

fn connections(agent: &Agent, labels: &[(&str, &str)]) -> f64 {
    let metrics = agent.metrics().unwrap();
    metrics.sum("gate25_connections_total", labels).unwrap()
}

/// Eight bytes of a TCP packet to the exchanger's port 25 in a fragment of this offset and flag.
fn fragment(field: u16) -> Vec<u8> {
    let [high, low] = field.to_be_bytes();
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 8, 0];
    let mut ip = vec![
        0x45, 0, 0, 28, 0, 1, high, low, 64, 6, 0, 0, 198, 51, 100, 101,
    ];
    ip.extend(Hosting::EXCHANGER.v4.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);
    frame.extend([0x9c, 0x40, 0, 25, 0, 0, 0, 1]);
    frame
}
