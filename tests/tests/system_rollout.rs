//! The first week on a hypervisor, step by step as the README has it.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use gate25_tests::{Agent, Guest, Hosting, Outcome, PolicyText, Settings, World, connect};
use serde_json::Value;
use std::time::Duration;

const BASE: &str = "base.yaml";
const GUESTS: &str = "guests.yaml";
const NO_POLICY: &[(&str, &str)] = &[];
const LIMIT: Duration = Duration::from_secs(4);

#[test]
fn host_that_observes_names_who_would_be_refused_and_then_refuses_all_but_the_exempt() {
    let world = World::new().unwrap();
    let mailer = world.guest(101, "tap101i0").unwrap();
    let infected = world.guest(102, "tap102i0").unwrap();
    let settings = Settings {
        more: "enforcement: observe\n".to_owned(),
        ..Settings::default()
    };
    let host = &world.hosting.hypervisor;
    let mut agent = Agent::start_unready(host, settings, NO_POLICY).unwrap();
    world.wait_workloads(&agent, "unassigned", 2).unwrap();
    for guest in [&mailer, &infected] {
        world.check_open(guest).unwrap();
    }
    // Without a policy, it is not known whose they are.
    let nobodys = [("verdict", "observe"), ("reason", "unassigned")];
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("gate25_connections_total", &nobodys), Some(4.0));

    let listed = agent
        .command(&["list", "workloads", "--unassigned", "--as-yaml"])
        .unwrap();
    assert_eq!(listed.code, Some(0), "{}", listed.err);
    let owners = [("tap101i0", "mailer"), ("tap102i0", "infected")];
    agent
        .write_policy(GUESTS, &with_owners(&listed.out, &owners))
        .unwrap();
    agent
        .apply_policy(BASE, &PolicyText::default().text())
        .unwrap();
    world.check_open(&mailer).unwrap();
    for _ in 0..3 {
        world.check_open(&infected).unwrap();
    }
    assert_eq!(would_be_refused(&agent, "mailer"), 2);
    assert_eq!(would_be_refused(&agent, "infected"), 6);

    // He asked, and qualifies.
    agent
        .apply_policy(BASE, &PolicyText::default().exempt("mailer").text())
        .unwrap();
    world.check_open(&mailer).unwrap();
    assert_eq!(would_be_refused(&agent, "mailer"), 2);

    agent.settings().more = String::new();
    agent.restart().unwrap();
    world.check_open(&mailer).unwrap();
    world.check_closed(&infected).unwrap();
    check_relay(&infected);
    assert_eq!(would_be_refused(&agent, "infected"), 6);
}

/// A policy of the stanzas, each with the name of whoever owns its interface.
fn with_owners(stanzas: &str, owners: &[(&str, &str)]) -> String {
    let mut parts = stanzas.split("- id:\n");
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        let (_, owner) = owners
            .iter()
            .find(|(interface, _)| part.contains(interface))
            .unwrap_or_else(|| panic!("whose is this?\n{part}"));
        text.push_str(&format!("- id: {owner}\n{part}"));
    }
    text
}

/// What a customer's workloads tried and would have been refused.
fn would_be_refused(agent: &Agent, customer: &str) -> u64 {
    let said = agent.command(&["list", "customers", "-j"]).unwrap();
    let listed: Value = serde_json::from_str(&said.out).unwrap();
    let customers = listed["customers"].as_array().unwrap();
    let found = customers.iter().find(|it| it["id"] == customer);
    found.unwrap_or_else(|| panic!("{customer} in {}", said.out))["connections"]["observe"]
        .as_u64()
        .unwrap()
}

/// The way that is left to it.
fn check_relay(guest: &Guest) {
    for to in [Hosting::RELAY.v4_port(25), Hosting::RELAY.v6_port(25)] {
        let attempt = connect(&guest.ns, to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected, "{to}");
    }
}
