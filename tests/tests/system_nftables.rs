//! Backend nftables: the same as the programs do, by rules.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::{Duration, Instant};

use gate25_tests::{
    Agent, Guest, Hosting, Link, Network, Outcome, PolicyText, Sender, Settings, World, after,
    connect, poll,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);
/// Within it, three SYNs are sent.
const PATIENCE: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(3);
const EXCHANGER: [fn() -> std::net::SocketAddr; 2] = [
    || Hosting::EXCHANGER.v4_port(25),
    || Hosting::EXCHANGER.v6_port(25),
];

#[test]
fn every_kind_of_guest_is_closed_opened_by_exemption_and_counted() {
    let world = World::for_nftables().unwrap();
    let links = [(101, "tap101i0"), (102, "tap102i0"), (103, "vnet103")];
    let kinds = [Link::BridgedTap, Link::BridgedVeth, Link::RoutedVeth];
    let guests: Vec<Guest> = links
        .iter()
        .zip(kinds)
        .map(|((number, name), link)| world.guest_by(*number, name, link).unwrap())
        .collect();
    let policy = links.iter().fold(PolicyText::default(), |policy, link| {
        policy.customer(&format!("c-{}", link.0), link.1)
    });
    let agent = start(&world, &policy);
    for guest in &guests {
        world.check_closed(guest).unwrap();
    }
    assert_eq!(attempts(&agent, &[("verdict", "reject")]), 6.0);
    assert_eq!(attempts(&agent, &[("reason", "allowlist")]), 6.0);
    let exempt = links.iter().fold(policy, |policy, link| {
        policy.exempt(&format!("c-{}", link.0))
    });
    agent.apply_policy("policy.yaml", &exempt.text()).unwrap();
    for guest in &guests {
        world.check_open(guest).unwrap();
    }
    assert_eq!(attempts(&agent, &[("verdict", "reject")]), 6.0);
    assert_eq!(attempts(&agent, &[("reason", "exemption")]), 6.0);
    let metrics = agent.metrics().unwrap();
    let series = [("customer", "c-103"), ("verdict", "reject")];
    let of_customer = metrics.sum("gate25_customer_connections_total", &series);
    assert_eq!(of_customer, Some(2.0));
    let info = [("backend", "nftables"), ("reason", "configured")];
    assert_eq!(metrics.sum("gate25_backend_info", &info), Some(1.0));
    let can = |feature| metrics.sum("gate25_backend_feature", &[("feature", feature)]);
    assert_eq!(
        (can("redirection"), can("container_sockets")),
        (Some(0.0), Some(0.0))
    );
    let enforcing = [("backend", "nftables"), ("hook", "netdev")];
    assert_eq!(metrics.sum("gate25_enforcing", &enforcing), Some(1.0));
}

#[test]
fn refusals_are_resets_exactly_where_the_kernel_gives_them_and_metrics_say_so() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let agent = start(&world, &PolicyText::default());
    world.check_closed(&guest).unwrap();
    let metrics = agent.metrics().unwrap();
    let resets = metrics.sum("gate25_backend_feature", &[("feature", "resets")]);
    let expected = match world.refusal {
        Outcome::Refused => 1.0,
        _ => 0.0,
    };
    assert_eq!(resets, Some(expected));
}

#[test]
fn profiles_drop_and_observe_and_a_guest_that_nobody_owns_is_refused() {
    let world = World::for_nftables().unwrap();
    let dropped = world.guest(101, "tap101i0").unwrap();
    let watched = world.guest(102, "tap102i0").unwrap();
    let nobodys = world.guest(103, "tap103i0").unwrap();
    let policy = PolicyText::default()
        .profile("silent", "enforce", "drop")
        .profile("watch", "observe", "reject")
        .customer_of("silent", "c-1", "tap101i0")
        .customer_of("watch", "c-2", "tap102i0");
    let agent = start(&world, &policy);
    world.check_open(&watched).unwrap();
    world.check_closed(&nobodys).unwrap();
    let before = world.witness.packets().unwrap();
    for to in EXCHANGER {
        let attempt = connect(&dropped.ns, to(), PATIENCE).unwrap();
        assert_eq!(attempt.outcome, Outcome::TimedOut, "{}", to());
    }
    assert_eq!(world.witness.packets().unwrap(), before);
    assert_eq!(attempts(&agent, &[("verdict", "observe")]), 2.0);
    assert_eq!(attempts(&agent, &[("reason", "unassigned")]), 2.0);
    assert!(attempts(&agent, &[("verdict", "drop")]) >= 6.0);
}

#[test]
fn exemption_ends_on_time_with_the_agent_dead() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let mut agent = start(&world, &policy);
    let term = Duration::from_secs(5);
    let ends = Instant::now() + term;
    let policy = policy.exempt_until("c-1", after(term));
    agent.apply_policy("policy.yaml", &policy.text()).unwrap();
    world.check_open(&guest).unwrap();
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    let sender = Sender::start(&guest.ns, EXCHANGER[0](), PAUSE).unwrap();
    let tally = poll("a refusal", LIMIT, || {
        let tally = sender.tally();
        Ok((tally.refused > 20).then_some(tally))
    })
    .unwrap();
    let last = tally.last_connected.unwrap();
    // nft takes whole seconds.
    let early = ends.saturating_duration_since(last);
    assert!(early < Duration::from_millis(1500), "{early:?} early");
    let late = last.saturating_duration_since(ends);
    assert!(late < Duration::from_millis(200), "{late:?} late");
    drop(sender);
    agent.restart().unwrap();
    world.check_closed(&guest).unwrap();
}

#[test]
fn exemption_begins_when_it_should() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let wait = Duration::from_secs(4);
    let begins = Instant::now() + wait;
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt_from("c-1", after(wait));
    let agent = start(&world, &policy);
    let sender = Sender::start(&guest.ns, EXCHANGER[0](), PAUSE).unwrap();
    poll("a connection", LIMIT, || {
        Ok((sender.tally().connected > 0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    assert!(Instant::now() > begins, "too early");
    assert!(
        begins.elapsed() < Duration::from_secs(1),
        "{:?}",
        begins.elapsed()
    );
    assert!(sender.tally().refused > 0);
}

#[test]
fn kill_restart_and_reload_open_nothing_and_keep_the_counters() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let mut agent = start(&world, &policy);
    world.check_closed(&guest).unwrap();
    let before = world.witness.packets().unwrap();
    let sender = Sender::start(&guest.ns, EXCHANGER[0](), PAUSE).unwrap();
    let mut page = agent.metrics().unwrap();
    for round in 0..3 {
        agent.signal(Signal::SIGKILL).unwrap();
        agent.process().wait(LIMIT).unwrap();
        sender.more(50).unwrap();
        agent.restart().unwrap();
        let other = policy.clone().customer(&format!("c-1{round}"), "tap900i0");
        agent.apply_policy("policy.yaml", &other.text()).unwrap();
        sender.more(50).unwrap();
        let now = agent.metrics().unwrap();
        let series = "gate25_customer_connections_total";
        let refused = [("customer", "c-1"), ("verdict", "reject")];
        let (was, is) = (page.sum(series, &refused), now.sum(series, &refused));
        assert!(is > was, "{was:?} {is:?}");
        let connections = "gate25_connections_total";
        let refused = [("verdict", "reject")];
        let (was, is) = (
            page.sum(connections, &refused),
            now.sum(connections, &refused),
        );
        assert!(is > was, "{was:?} {is:?}");
        page = now;
    }
    let tally = sender.tally();
    assert_eq!((tally.connected, tally.others), (0, 0), "{tally:?}");
    assert_eq!(world.witness.packets().unwrap(), before);
}

#[test]
fn switch_between_backends_opens_nothing() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let mut agent = world.agent_with(settings("ebpf"), &policy).unwrap();
    world.check_closed(&guest).unwrap();
    let before = world.witness.packets().unwrap();
    let sender = Sender::start(&guest.ns, EXCHANGER[0](), PAUSE).unwrap();
    let host = &world.hosting.hypervisor;
    for backend in ["nftables", "ebpf", "nftables"] {
        agent.stop().unwrap();
        agent.settings().more = settings(backend).more;
        agent.restart().unwrap();
        poll("the other backend's end", LIMIT, || {
            let tables = host.exec("nft", &["list", "tables"])?;
            let has_table = tables.contains("netdev gate25");
            let status = agent.command(&["status", "-j"])?;
            let programs = links(&world);
            let gone = match backend {
                "nftables" => has_table && programs == 0,
                _ => !has_table && programs > 0,
            };
            Ok((gone && status.code == Some(0)).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{backend}: {error:#}\n{}", agent.log()));
        sender.more(50).unwrap();
    }
    let tally = sender.tally();
    assert_eq!((tally.connected, tally.others), (0, 0), "{tally:?}");
    assert_eq!(world.witness.packets().unwrap(), before);
    drop(sender);
    world.check_closed(&guest).unwrap();
    agent.stop().unwrap();
    let done = agent.command(&["teardown"]).unwrap();
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.out.contains("netdev gate25"), "{done:?}");
    world.check_open(&guest).unwrap();
}

#[test]
fn ruleset_that_others_flush_is_put_back_within_a_second() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let agent = start(&world, &policy);
    world.check_closed(&guest).unwrap();
    // What was counted since the last look goes with the table.
    assert_eq!(attempts(&agent, &[("verdict", "reject")]), 2.0);
    let host = &world.hosting.hypervisor;
    for round in 0..10 {
        host.exec("nft", &["delete", "table", "netdev", "gate25"])
            .unwrap();
        let deleted = Instant::now();
        poll("the table", LIMIT, || {
            let tables = host.exec("nft", &["list", "tables"])?;
            Ok(tables.contains("netdev gate25").then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        let took = deleted.elapsed();
        assert!(took < Duration::from_secs(1), "round {round}: {took:?}");
    }
    world.check_closed(&guest).unwrap();
    let labels = [("backend", "nftables")];
    agent
        .wait_metric("gate25_drift_repairs_total", &labels, LIMIT, |value| {
            value == 10.0
        })
        .unwrap();
    assert_eq!(attempts(&agent, &[("verdict", "reject")]), 4.0);
}

#[test]
fn host_without_ebpf_is_enforced_by_nftables_and_says_so() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let without = Settings {
        args: ["--bpffs", "/run/nowhere"].map(str::to_owned).into(),
        ..settings("auto")
    };
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let agent = world.agent_with(without.clone(), &policy).unwrap();
    world.check_closed(&guest).unwrap();
    let info = [("backend", "nftables"), ("reason", "fallback")];
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("gate25_backend_info", &info), Some(1.0));
    let status = agent.command(&["status"]).unwrap();
    assert!(status.out.contains("nftables (fallback)"), "{status:?}");
    assert!(status.out.contains("containers' sockets"), "{status:?}");
    // A second agent stays away without the BPF filesystem, too.
    let host = &world.hosting.hypervisor;
    let files = [("policy.yaml", policy.text())];
    let mut second = Agent::start_unready(host, without, &files).unwrap();
    assert!(!second.process().wait(LIMIT).unwrap().success());
    assert!(
        second.log().contains("another gate25 runs"),
        "{}",
        second.log()
    );
}

#[test]
fn container_is_judged_at_its_veth_and_its_root_is_said_to_be_without_programs() {
    let world = World::for_nftables().unwrap();
    let container = world
        .container("shop-1", &Network::own(104, "veth104i0"))
        .unwrap();
    let policy = PolicyText::default().container("c-1", &world.below("shop-*"));
    let with_roots = Settings {
        more: settings("nftables").more,
        ..world.settings()
    };
    let host = &world.hosting.hypervisor;
    let files = [("policy.yaml", policy.text())];
    let agent = Agent::start_unready(host, with_roots, &files).unwrap();
    world.wait_closed(container.guest().unwrap()).unwrap();
    let status = poll("a problem", LIMIT, || {
        let status = agent.command(&["status"])?;
        let told = status.out.contains("cannot judge the sockets of cgroup");
        Ok(told.then_some(status))
    })
    .unwrap();
    assert!(status.out.contains("no, or not everywhere"), "{status:?}");
    let series = [("customer", "c-1"), ("verdict", "reject")];
    let metrics = agent.metrics().unwrap();
    let of_customer = metrics.sum("gate25_customer_connections_total", &series);
    assert!(of_customer >= Some(2.0), "{of_customer:?}");
    let containers = [("hook", "cgroup")];
    assert_eq!(metrics.sum("gate25_enforcing", &containers), Some(0.0));
}

#[test]
fn missing_nft_is_said() {
    let world = World::for_nftables().unwrap();
    let host = &world.hosting.hypervisor;
    let without = Settings {
        env: vec![("PATH".to_owned(), "/nonexistent".to_owned())],
        ..settings("nftables")
    };
    let policy = [("policy.yaml", PolicyText::default().text())];
    let mut agent = Agent::start_unready(host, without, &policy).unwrap();
    assert!(!agent.process().wait(LIMIT).unwrap().success());
    assert!(agent.log().contains("run nft to"), "{}", agent.log());
}

#[test]
fn table_of_somebody_else_is_said_and_left_alone() {
    let world = World::for_nftables().unwrap();
    let host = &world.hosting.hypervisor;
    host.exec("nft", &["add", "table", "netdev", "gate25"])
        .unwrap();
    let policy = [("policy.yaml", PolicyText::default().text())];
    let mut agent = Agent::start_unready(host, settings("nftables"), &policy).unwrap();
    let status = agent.process().wait(LIMIT).unwrap();
    assert!(!status.success());
    assert!(agent.log().contains("is not gate25's"), "{}", agent.log());
    let tables = host.exec("nft", &["list", "tables"]).unwrap();
    assert!(tables.contains("netdev gate25"));
}

/// Links of programs that are pinned.
fn links(world: &World) -> usize {
    let host = &world.hosting.hypervisor;
    let script = "find /sys/fs/bpf/gate25 -path '*/links/*' 2>/dev/null | wc -l";
    let counted = host.exec("sh", &["-c", script]).unwrap();
    counted.trim().parse().unwrap()
}

fn start(world: &World, policy: &PolicyText) -> Agent {
    world.agent_with(settings("nftables"), policy).unwrap()
}

fn settings(backend: &str) -> Settings {
    Settings {
        more: format!("backend: {backend}\n"),
        ..Settings::default()
    }
}

fn attempts(agent: &Agent, labels: &[(&str, &str)]) -> f64 {
    let metrics = agent.metrics().unwrap();
    metrics.sum("gate25_connections_total", labels).unwrap()
}
