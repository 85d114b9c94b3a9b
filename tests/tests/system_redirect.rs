//! Connections that are redirected to the provider's relay, a real Postfix.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_tests::{
    Agent, Containers, Guest, Hosting, Lab, Link, PolicyText, Postfix, Role, Witness, World, greet,
    poll, send, tenant_program,
};

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
    let scene = Scene::new();
    let guest = scene.world.guest_by(101, "tap101i0", link).unwrap();
    let agent = scene.world.agent(&policy()).unwrap();
    wait_replies(&scene.world, &agent, "tap101i0");
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

/// Waits until replies to the guest behind `interface` are rewritten.
fn wait_replies(world: &World, agent: &Agent, interface: &str) {
    let index = world.index(interface).unwrap();
    poll("the program for replies", LIMIT, || {
        let said = agent.command(&["status"]).unwrap();
        let links = world
            .hosting
            .hypervisor
            .exec("bpftool", &["net", "show", "dev", interface])?;
        Ok(links.contains("tc_egress").then_some(said))
    })
    .unwrap_or_else(|error| panic!("interface {index}: {error:#}: {}", agent.log()));
}
