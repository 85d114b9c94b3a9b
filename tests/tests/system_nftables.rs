//! Backend nftables: the same as the programs do, by rules.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};
use std::{fs, mem};

use gate25_tests::{
    Agent, Guest, Hosting, Link, Network, Outcome, PolicyText, Sender, Settings, World, after,
    connect, paced, poll,
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
    let resetting = world.refusal == Outcome::Refused;
    assert_eq!(resets, Some(f64::from(u8::from(resetting))));
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
    let term = paced(Duration::from_secs(5));
    let ends = Instant::now() + term;
    let policy = policy.exempt_until("c-1", after(term));
    agent.apply_policy("policy.yaml", &policy.text()).unwrap();
    world.check_open(&guest).unwrap();
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    let sender = Sender::start(&guest.ns, EXCHANGER[0](), PAUSE).unwrap();
    let enough = refused_attempts(&world, 20);
    let tally = sender
        .until("refusals", LIMIT, |tally| {
            tally.refusals(&world.refusal) > enough
        })
        .unwrap();
    let last = tally.last_connected.unwrap();
    // nft takes whole seconds, and is given one.
    let early = ends.saturating_duration_since(last);
    let coarse = Duration::from_secs(2) + paced(Duration::from_millis(500));
    assert!(early < coarse, "{early:?} early");
    let late = last.saturating_duration_since(ends);
    assert!(late < paced(Duration::from_millis(200)), "{late:?} late");
    drop(sender);
    agent.restart().unwrap();
    world.check_closed(&guest).unwrap();
}

#[test]
fn exemption_begins_when_it_should() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let wait = paced(Duration::from_secs(4));
    let begins = Instant::now() + wait;
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt_from("c-1", after(wait));
    let agent = start(&world, &policy);
    let sender = Sender::start(&guest.ns, EXCHANGER[0](), PAUSE).unwrap();
    let tally = sender
        .until("a connection", LIMIT, |tally| tally.connected > 0)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let first = tally.first_connected.unwrap();
    assert!(first > begins, "too early");
    // Where nothing answers, the attempt that was under way is lost.
    let lost = if world.refusal == Outcome::TimedOut {
        Sender::LIMIT
    } else {
        Duration::ZERO
    };
    let late = first - begins;
    assert!(late < paced(Duration::from_secs(1)) + lost, "{late:?} late");
    assert!(tally.refusals(&world.refusal) > 0, "{tally:?}");
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
    let several = refused_attempts(&world, 50);
    let mut page = agent.metrics().unwrap();
    for round in 0..3 {
        agent.signal(Signal::SIGKILL).unwrap();
        agent.process().wait(LIMIT).unwrap();
        sender.more(several).unwrap();
        agent.restart().unwrap();
        let other = policy.clone().customer(&format!("c-1{round}"), "tap900i0");
        agent.apply_policy("policy.yaml", &other.text()).unwrap();
        sender.more(several).unwrap();
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
    assert_eq!(
        tally.refusals(&world.refusal),
        tally.attempts(),
        "{tally:?}"
    );
    assert_eq!(world.witness.packets().unwrap(), before);
}

/// Since Linux 6.16 a chain is on the interface of a name, whichever that is at the moment.
#[test]
fn interface_renamed_has_its_chain_and_the_policy_of_its_new_name() {
    let world = World::for_nftables().unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0")
        .customer("c-3", "tap103i0")
        .exempt("c-3");
    let guest = world.guest(101, "tap101i0").unwrap();
    let mut settings = settings("nftables");
    settings.more.push_str("guard: false\n");
    let agent = world.agent_with(settings, &policy).unwrap();
    world.check_closed(&guest).unwrap();
    let log = |error: anyhow::Error| panic!("{error:#}\n{}", agent.log());
    world.rename("tap101i0", "tap102i0").unwrap();
    world.wait_closed(&guest).unwrap_or_else(log);
    let refused = attempts(&agent, &[("verdict", "reject")]);
    world.check_closed(&guest).unwrap_or_else(log);
    let now = attempts(&agent, &[("verdict", "reject")]);
    assert_eq!(now - refused, 2.0, "it is the chain that refuses");
    world.rename("tap102i0", "tap103i0").unwrap();
    world.wait_open(&guest).unwrap_or_else(log);
    world.rename("tap103i0", "tap101i0").unwrap();
    world.wait_closed(&guest).unwrap_or_else(log);
}

#[test]
fn switch_between_backends_opens_nothing() {
    let mut world = World::for_nftables().unwrap();
    let by_rules = mem::replace(&mut world.refusal, Outcome::Refused);
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
        world.refusal = match backend {
            "nftables" => by_rules.clone(),
            _ => Outcome::Refused,
        };
        sender.more(refused_attempts(&world, 50)).unwrap();
    }
    let tally = sender.tally();
    let unanswered = if by_rules == Outcome::TimedOut {
        tally.timed_out
    } else {
        0
    };
    assert_eq!(tally.refused + unanswered, tally.attempts(), "{tally:?}");
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
fn nft_that_is_slow_gets_no_agent_killed_by_its_service_manager() {
    let world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let path = world.lab.dir().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    // Whoever says nothing for so long is killed.
    let watchdog = Duration::from_secs(4);
    manager.set_read_timeout(Some(watchdog)).unwrap();
    let mut settings = settings("nftables");
    let slow = "while [ -e $0.slow ] && [ \"$1\" = -e ]; do /bin/sleep 0.1; done";
    settings.env = world.nft_that(slow).unwrap();
    settings.env.extend([
        (
            "NOTIFY_SOCKET".to_owned(),
            path.to_string_lossy().into_owned(),
        ),
        ("WATCHDOG_USEC".to_owned(), watchdog.as_micros().to_string()),
    ]);
    let agent = world.agent_with(settings, &policy).unwrap();
    // What was said at the start, when nothing was slow.
    manager.set_nonblocking(true).unwrap();
    while manager.recv(&mut [0; 4096]).is_ok() {}
    manager.set_nonblocking(false).unwrap();
    let slow = world.nft().with_extension("slow");
    fs::write(&slow, "").unwrap();
    let exempt = policy.exempt("c-1");
    agent.write_policy("policy.yaml", &exempt.text()).unwrap();
    let mut said = String::new();
    // Once as it begins to wait, and three times while it does.
    while said.matches("EXTEND_TIMEOUT_USEC=").count() < 4 {
        let mut message = [0; 4096];
        let read = manager.recv(&mut message);
        let read = read.unwrap_or_else(|error| panic!("{error}: {said}\n{}", agent.log()));
        said.push_str(&String::from_utf8_lossy(&message[..read]));
    }
    world.check_closed(&guest).unwrap();
    fs::remove_file(&slow).unwrap();
    world.wait_open(&guest).unwrap();
}

#[test]
fn rules_of_the_other_backend_that_stay_are_told_and_tried_again() {
    let mut world = World::for_nftables().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let mut agent = start(&world, &policy);
    world.check_closed(&guest).unwrap();
    agent.stop().unwrap();
    // Removals are refused; what the guard writes is told again.
    let line =
        "[ ! -e $0.mended ] && [ \"$1 $2\" = \"-j -f\" ] && { echo 'Error: no' >&2; exit 1; }";
    agent.settings().env = world.nft_that(line).unwrap();
    agent.settings().more = settings("ebpf").more;
    agent.restart().unwrap();
    let subject = [("subject", "other backend")];
    let complained = |wanted: f64| {
        agent.wait_metric("gate25_complaints", &subject, LIMIT, |value| {
            value == wanted
        })
    };
    complained(1.0).unwrap();
    let status = agent.command(&["status"]).unwrap().out;
    let told = "rules of the other backend are not removed";
    assert!(
        status.contains(told) && status.contains("Error: no"),
        "{status}"
    );
    assert_eq!(agent.log().matches(told).count(), 1, "{}", agent.log());
    let host = &world.hosting.hypervisor;
    let has_table = || {
        let tables = host.exec("nft", &["list", "tables"]).unwrap();
        tables.contains("netdev gate25\n")
    };
    assert!(has_table());
    std::fs::write(world.nft().with_extension("mended"), "").unwrap();
    complained(0.0).unwrap();
    assert!(!has_table());
    world.refusal = Outcome::Refused;
    world.check_closed(&guest).unwrap();
}

#[test]
fn status_and_lists_after_a_kill_know_what_goes_on() {
    let world = World::for_nftables().unwrap();
    let mut agent = start(&world, &PolicyText::default());
    let guard = [("subject", "guard")];
    agent
        .wait_metric("gate25_guard_in_place", &[], LIMIT, |value| value == 1.0)
        .unwrap();
    let complaints = agent.metrics().unwrap().sum("gate25_complaints", &guard);
    assert_eq!(complaints, Some(0.0));
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    let status = agent.command(&["status"]).unwrap();
    assert_eq!(status.code, Some(4), "{status:?}");
    for told in [
        "goes on without the agent: nftables table netdev gate25;",
        "in place: nftables tables inet gate25_guard, bridge gate25_guard",
    ] {
        assert!(status.out.contains(told), "{status:?}");
    }
    let listed = agent.command(&["list", "workloads"]).unwrap();
    assert_eq!(listed.code, Some(4), "{listed:?}");
    let told = "backend nftables, which goes on, does not know names";
    assert!(listed.err.contains(told), "{listed:?}");
    assert_eq!(agent.command(&["teardown"]).unwrap().code, Some(0));
    let status = agent.command(&["status"]).unwrap();
    assert_eq!(status.code, Some(1), "{status:?}");
    assert!(
        status.out.contains("nothing of gate25 is in the kernel"),
        "{status:?}"
    );
}

#[test]
fn table_that_cannot_be_put_back_is_a_problem_until_it_is() {
    let world = World::for_nftables().unwrap();
    let policy = [("policy.yaml", PolicyText::default().text())];
    let host = &world.hosting.hypervisor;
    let line = "[ -e $0.broken ] && [ \"$1\" = -e ] && { echo 'Error: no' >&2; exit 1; }";
    let broken = Settings {
        env: world.nft_that(line).unwrap(),
        ..settings("nftables")
    };
    let guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = Agent::start(host, broken, &policy).unwrap();
    world.check_closed(&guest).unwrap();
    let flag = world.nft().with_extension("broken");
    std::fs::write(&flag, "").unwrap();
    host.exec("nft", &["flush ruleset"]).unwrap();
    let enforcing = [("hook", "netdev")];
    let enforces = |wanted: f64| {
        agent.wait_metric("gate25_enforcing", &enforcing, LIMIT, |value| {
            value == wanted
        })
    };
    enforces(0.0).unwrap();
    let (ready, page) = agent.get("/readyz").unwrap();
    assert_eq!(ready, 503);
    assert!(page.contains("cannot be put back"), "{page}");
    assert_eq!(agent.command(&["status"]).unwrap().code, Some(1));
    std::fs::remove_file(&flag).unwrap();
    enforces(1.0).unwrap();
    world.wait_closed(&guest).unwrap();
    agent.wait_ready(LIMIT).unwrap();
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
        assert!(
            took < paced(Duration::from_secs(1)),
            "round {round}: {took:?}"
        );
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

/// So many attempts, or a few where each waits for an answer in vain.
fn refused_attempts(world: &World, attempts: u64) -> u64 {
    if world.refusal == Outcome::TimedOut {
        3
    } else {
        attempts
    }
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
