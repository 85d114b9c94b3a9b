//! A real Prometheus scrapes the agent, on the rules, the alerts and the queries of dashboards that are shipped.
#![cfg(feature = "root")]

#[path = "prometheus/dashboard.rs"]
mod dashboard;
#[path = "prometheus/picture.rs"]
mod picture;
#[path = "prometheus/server.rs"]
mod server;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use gate25_tests::{Hosting, Outcome, PolicyText, Sender, World, connect};

use dashboard::Dashboard;
use server::Prometheus;

const ATTEMPT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(1);
/// Whom the dashboard of a customer shows.
const SPAMMER: &str = "c-spam";

/// Panels that have something to show, by dashboard.
const SHOWING: [(&str, &[&str]); 3] = [
    (
        "host",
        &[
            "Enforces",
            "Connection attempts by verdict",
            "Customers that try and may not",
            "Destinations of customers, this hour",
        ],
    ),
    (
        "fleet",
        &[
            "Policies in force",
            "Refused",
            "Customers that try and may not",
            "Exemptions that end within two weeks",
        ],
    ),
    (
        "customer",
        &[
            "Attempts that were not allowed",
            "Attempts by verdict",
            "Destinations",
        ],
    ),
];

#[test]
fn prometheus_tells_of_a_burst_of_many_destinations_of_drift_and_of_a_refused_policy() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .customer(SPAMMER, "tap101i*")
        .customer("c-exempt", "tap102i*")
        .exempt("c-exempt");
    let spammer = world.guest(11, "tap101i0").unwrap();
    let exempt = world.guest(12, "tap102i0").unwrap();
    let agent = world.agent(&policy).unwrap();
    world.wait_closed(&spammer).unwrap();
    world.wait_open(&exempt).unwrap();
    let host = &world.hosting.hypervisor;
    let prometheus = Prometheus::start(host, world.lab.dir()).unwrap();
    prometheus.wait_rules().unwrap();
    // An exemption for a day ends soon; nothing else is the matter.
    let calm = BTreeSet::from([("Gate25ExemptionEndsSoon".to_owned(), "c-exempt".to_owned())]);
    prometheus.wait_firing(&calm).unwrap();

    let burst = Sender::start(&spammer.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    for last in 1..=250 {
        let to = SocketAddr::from((Ipv4Addr::new(203, 0, 113, last), 25));
        let attempt = connect(&spammer.ns, to, ATTEMPT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Refused, "{to}");
    }
    host.exec("nft", &["flush ruleset"]).unwrap();
    agent
        .write_policy("broken.yaml", "schema: 1\nnonsense: 1\n")
        .unwrap();
    let mut troubled = calm;
    for (alert, customer) in [
        ("Gate25CustomerBurst", SPAMMER),
        ("Gate25CustomerManyDestinations", SPAMMER),
        ("Gate25Drift", ""),
        ("Gate25PolicyRefused", ""),
    ] {
        troubled.insert((alert.to_owned(), customer.to_owned()));
    }
    prometheus.wait_firing(&troubled).unwrap();
    for (name, panels) in SHOWING {
        let dashboard = Dashboard::read(name, SPAMMER).unwrap();
        dashboard.wait_data(&prometheus, panels).unwrap();
        picture::publish(&dashboard, &prometheus).unwrap();
    }
    assert_eq!(burst.finish().connected, 0);
}
