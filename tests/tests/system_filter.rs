//! Hosts without tcx: the program is a tc filter on an `ingress` qdisc, which others delete.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::{Duration, Instant};

use gate25_tests::{Agent, Held, Hosting, Outcome, PolicyText, Sender, Settings, World};

const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(3);

#[test]
fn filter_enforces_like_tcx() {
    let world = World::new().unwrap();
    let open = world.guest(101, "tap101i0").unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let agent = start(&world);
    world.check_open(&open).unwrap();
    world.check_closed(&closed).unwrap();
    let hook = [("hook", "tc")];
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("gate25_enforcing", &hook), Some(1.0));
    let later = world.guest(103, "tap103i0").unwrap();
    world.wait_workloads(&agent, "unassigned", 1).unwrap();
    world.check_closed(&later).unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    let mut held = Held::open(&open.ns, to, LIMIT).unwrap();
    let revoked = PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0");
    agent.apply_policy("policy.yaml", &revoked.text()).unwrap();
    let cut = held.write_until_cut(LIMIT).unwrap();
    assert_eq!(cut.outcome, Outcome::Reset);
    world.check_closed(&open).unwrap();
}

#[test]
fn qdisc_deleted_by_somebody_else_is_put_back_with_the_filter() {
    let world = World::new().unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let agent = start(&world);
    world.check_closed(&closed).unwrap();
    let host = &world.hosting.hypervisor;
    for round in 1..=3 {
        host.exec("tc", &["qdisc", "del", "dev", "tap102i0", "ingress"])
            .unwrap();
        let deleted = Instant::now();
        // Something else happens meanwhile.
        host.ip("link set tap102i0 mtu 1400\nlink set tap102i0 mtu 1500")
            .unwrap();
        world
            .wait_closed(&closed)
            .unwrap_or_else(|error| panic!("round {round}: {error:#}\n{}", agent.log()));
        let took = deleted.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
}

#[test]
fn qdisc_replaced_for_a_bandwidth_limit_keeps_the_limit_and_gets_the_filter() {
    let world = World::new().unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let host = &world.hosting.hypervisor;
    limit_bandwidth(&world);
    let agent = start(&world);
    world.check_closed(&closed).unwrap();
    // Proxmox sets a rate anew by deleting the qdisc and adding it again.
    host.exec("tc", &["qdisc", "del", "dev", "tap102i0", "ingress"])
        .unwrap();
    limit_bandwidth(&world);
    world
        .wait_closed(&closed)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let filters = host
        .exec("tc", &["filter", "show", "dev", "tap102i0", "ingress"])
        .unwrap();
    assert!(
        filters.contains("gate25") && filters.contains("u32"),
        "{filters}"
    );
}

#[test]
fn filter_adopted_by_the_next_start_is_never_away() {
    let world = World::new().unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let mut agent = start(&world);
    world.check_closed(&closed).unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    let sender = Sender::start(&closed.ns, to, PAUSE).unwrap();
    for _ in 0..5 {
        agent.stop().unwrap();
        agent.restart().unwrap();
    }
    let tally = sender.more(10).unwrap();
    assert_eq!(tally.refused, tally.attempts(), "{tally:?}");
    let filters = world
        .hosting
        .hypervisor
        .exec("tc", &["filter", "show", "dev", "tap102i0", "ingress"])
        .unwrap();
    assert_eq!(filters.matches("gate25").count(), 1, "{filters}");
}

#[test]
fn host_that_has_observed_refuses_by_filter_as_soon_as_it_is_said_to_enforce() {
    let world = World::new().unwrap();
    let guest = world.guest(102, "tap102i0").unwrap();
    let mut settings = by_filter();
    settings.more = "enforcement: observe\n".to_owned();
    let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    world.check_open(&guest).unwrap();
    world.wait_workloads(&agent, "unassigned", 1).unwrap();
    agent.stop().unwrap();
    agent.settings().more = String::new();
    agent.restart().unwrap();
    // Without waiting: it has told that it is ready.
    world.check_closed(&guest).unwrap();
}

#[test]
fn redirection_without_tcx_is_a_refusal_and_status_says_so() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default()
        .redirecting("mailers")
        .customer_of("mailers", "c-1", "tap101i0");
    let agent = world.agent_with(by_filter(), &policy).unwrap();
    world.check_closed(&guest).unwrap();
    let status = agent.command(&["status"]).unwrap();
    assert!(status.out.contains("without tcx"), "{status:?}");
}

fn by_filter() -> Settings {
    Settings {
        args: ["--attach", "filter"].map(str::to_owned).into(),
        ..Settings::default()
    }
}

#[track_caller]
fn start(world: &World) -> Agent {
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1")
        .customer("c-2", "tap102i0");
    world.agent_with(by_filter(), &policy).unwrap()
}

/// What libvirt does for `<bandwidth>` (virNetDevBandwidthSet), without the policer, which not
/// every kernel has.
#[track_caller]
fn limit_bandwidth(world: &World) {
    let host = &world.hosting.hypervisor;
    let qdisc = "qdisc add dev tap102i0 ingress";
    let filter =
        "filter add dev tap102i0 parent ffff: protocol all prio 50 u32 match u32 0 0 classid :1";
    for line in [qdisc, filter] {
        let words: Vec<&str> = line.split(' ').collect();
        host.exec("tc", &words).unwrap();
    }
}
