//! The lab itself: without an agent, mail and connections pass everywhere.
#![cfg(feature = "root")]

use std::time::Duration;

use gate25_tests::{Hosting, Lab, Link, Outcome, Postfix, Role, connect, send};

const LIMIT: Duration = Duration::from_secs(3);

#[test]
fn mail_without_agent_reaches_the_exchanger_from_every_guest() {
    let lab = Lab::for_test().unwrap();
    let hosting = Hosting::new(&lab).unwrap();
    let exchanger = Role::Exchanger {
        domain: "example.org".to_owned(),
    };
    let server = Postfix::start(&hosting.exchanger, &exchanger).unwrap();
    let links = [
        (101, "tap101i0", Link::BridgedVeth),
        (102, "tap102i0", Link::BridgedTap),
        (103, "veth103i0", Link::RoutedVeth),
    ];
    for (number, interface, link) in links {
        let guest = hosting.guest(&lab, number, interface, link).unwrap();
        for to in [
            Hosting::EXCHANGER.v4_port(25),
            Hosting::EXCHANGER.v6_port(25),
        ] {
            let attempt = connect(&guest.ns, to, LIMIT).unwrap();
            assert_eq!(attempt.outcome, Outcome::Connected, "{interface} to {to}");
            let subject = format!("{interface} {to}");
            let delivery = send(&guest.ns, to, "user@example.org", &subject).unwrap();
            assert!(delivery.accepted, "{}", delivery.transcript);
            server.wait_for_mail(&subject, LIMIT).unwrap();
        }
    }
}

#[test]
fn mail_without_agent_reaches_the_exchanger_through_the_relay() {
    let lab = Lab::for_test().unwrap();
    let hosting = Hosting::new(&lab).unwrap();
    let exchanger = Role::Exchanger {
        domain: "example.org".to_owned(),
    };
    let server = Postfix::start(&hosting.exchanger, &exchanger).unwrap();
    let relay = Role::Relay {
        networks: Hosting::GUEST_NETWORKS.to_owned(),
        next_hop: format!("[{}]:25", Hosting::EXCHANGER.v4),
    };
    let relay = Postfix::start(&hosting.relay, &relay).unwrap();
    let guest = hosting
        .guest(&lab, 101, "tap101i0", Link::BridgedVeth)
        .unwrap();
    for to in [Hosting::RELAY.v4_port(25), Hosting::RELAY.v6_port(25)] {
        let subject = format!("through {}", to.ip());
        let delivery = send(&guest.ns, to, "user@example.org", &subject).unwrap();
        assert!(delivery.accepted, "{}", delivery.transcript);
        server
            .wait_for_mail(&subject, LIMIT)
            .unwrap_or_else(|error| {
                panic!("{error:#}\nthe relay's log:\n{}", relay.log());
            });
    }
}
