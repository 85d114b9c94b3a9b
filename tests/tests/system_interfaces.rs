//! Interfaces come, go, change their names and places: whoever sends through them stays judged.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_tests::{
    Agent, Feature, Guest, Hosting, Link, Outcome, PolicyText, Sender, Settings, World, connect,
    poll,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(3);

#[test]
fn interface_created_while_the_agent_runs_is_closed_and_its_customers() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0");
    let agent = world.agent(&policy).unwrap();
    let veth = world.guest(101, "tap101i0").unwrap();
    world.wait_workloads(&agent, "enforced", 1).unwrap();
    world.check_closed(&veth).unwrap();
    let tap = world.guest_by(102, "tap102i0", Link::BridgedTap).unwrap();
    let routed = world.guest_by(103, "veth103i0", Link::RoutedVeth).unwrap();
    world.wait_workloads(&agent, "enforced", 2).unwrap();
    world.wait_workloads(&agent, "unassigned", 1).unwrap();
    world.check_closed(&tap).unwrap();
    world.check_closed(&routed).unwrap();
    let metrics = agent.metrics().unwrap();
    for customer in ["c-1", "c-2", "unassigned"] {
        let labels = [("customer", customer), ("verdict", "reject")];
        let refused = metrics.sum("gate25_customer_connections_total", &labels);
        assert_eq!(refused, Some(2.0), "{customer}");
    }
}

#[test]
fn interface_that_is_ignored_is_let_alone() {
    let world = World::new().unwrap();
    let settings = Settings {
        interfaces: vec!["tap*".to_owned()],
        ..Settings::default()
    };
    let veth = world.guest(101, "veth101i0").unwrap();
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    world.check_open(&veth).unwrap();
    assert!(world.covered_interfaces().unwrap().is_empty());
    world.wait_workloads(&agent, "unassigned", 0).unwrap();
}

#[test]
fn interface_renamed_follows_the_policy_of_its_new_name() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0")
        .exempt("c-2");
    let guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent(&policy).unwrap();
    world.check_closed(&guest).unwrap();
    world.rename("tap101i0", "tap102i0").unwrap();
    world.wait_open(&guest).unwrap();
    world.rename("tap102i0", "tap101i0").unwrap();
    world.wait_closed(&guest).unwrap();
    // Beyond all patterns it is no workload.
    world.rename("tap101i0", "other0").unwrap();
    world.wait_open(&guest).unwrap();
    assert!(world.covered_interfaces().unwrap().is_empty());
    world.wait_workloads(&agent, "enforced", 0).unwrap();
    world.rename("other0", "tap101i0").unwrap();
    world.wait_closed(&guest).unwrap();
}

#[test]
fn interface_recreated_quickly_under_the_same_name_is_closed_each_time() {
    let world = World::new().unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent(&policy).unwrap();
    for _ in 0..20 {
        recreate(&world, &guest, "tap101i0", None);
    }
    world.wait_closed(&guest).unwrap();
    world.wait_workloads(&agent, "enforced", 1).unwrap();
    wait_covered(&world, &["tap101i0"]);
}

/// The kernel gives an index twice only when it is asked to, or when they wrap.
#[test]
fn interface_recreated_with_the_index_of_an_exempt_one_is_closed() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1")
        .customer("c-2", "tap102i0");
    let guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = world.agent(&policy).unwrap();
    world.check_open(&guest).unwrap();
    let index = world.index("tap101i0").unwrap();
    for round in 0..3 {
        // Stopped, it gets to see both changes at once, as it may when it is busy.
        agent.signal(Signal::SIGSTOP).unwrap();
        recreate(&world, &guest, "tap102i0", Some(index));
        agent.signal(Signal::SIGCONT).unwrap();
        world
            .wait_closed(&guest)
            .unwrap_or_else(|error| panic!("round {round}: {error:#}\n{}", agent.log()));
        recreate(&world, &guest, "tap101i0", Some(index));
        world
            .wait_open(&guest)
            .unwrap_or_else(|error| panic!("round {round}: {error:#}\n{}", agent.log()));
    }
}

#[test]
fn interface_moved_to_another_namespace_and_back_is_closed() {
    let world = World::new().unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent(&policy).unwrap();
    world.check_closed(&guest).unwrap();
    let elsewhere = world.lab.netns("elsewhere").unwrap();
    let host = &world.hosting.hypervisor;
    for wait_until_noticed in [true, false, false, false] {
        host.ip(&format!("link set tap101i0 netns {}", elsewhere.holder()))
            .unwrap();
        if wait_until_noticed {
            world.wait_workloads(&agent, "enforced", 0).unwrap();
        }
        elsewhere
            .ip(&format!("link set tap101i0 netns {}", host.holder()))
            .unwrap();
        host.ip("link set tap101i0 master vmbr0 up").unwrap();
        world
            .wait_closed(&guest)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        world.wait_workloads(&agent, "enforced", 1).unwrap();
        wait_covered(&world, &["tap101i0"]);
    }
}

/// The kernel leaves a tcx link where it is when its interface changes namespaces.
#[test]
fn interface_moved_away_and_back_before_the_agent_looks_lets_nothing_through() {
    let world = World::new().unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = world.agent(&policy).unwrap();
    world.check_closed(&guest).unwrap();
    let elsewhere = world.lab.netns("elsewhere").unwrap();
    let host = &world.hosting.hypervisor;
    let before = world.witness.packets().unwrap();
    let sender = Sender::start(&guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    agent.signal(Signal::SIGSTOP).unwrap();
    host.ip(&format!("link set tap101i0 netns {}", elsewhere.holder()))
        .unwrap();
    elsewhere
        .ip(&format!("link set tap101i0 netns {}", host.holder()))
        .unwrap();
    host.ip("link set tap101i0 master vmbr0 up").unwrap();
    sender.more(10).unwrap();
    agent.signal(Signal::SIGCONT).unwrap();
    let tally = sender.more(200).unwrap();
    assert_eq!(tally.connected, 0, "{tally:?}");
    assert_eq!(world.witness.packets().unwrap(), before);
    world.wait_workloads(&agent, "enforced", 1).unwrap();
    world.check_closed(&guest).unwrap();
    wait_covered(&world, &["tap101i0"]);
}

#[test]
fn program_taken_off_by_somebody_else_is_put_back_at_the_next_rescan() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let (guest, agent) = without_its_program(&world);
    let repairs = |value| value == 1.0;
    agent
        .wait_metric("gate25_drift_repairs_total", &[], LIMIT, repairs)
        .unwrap();
    world.wait_closed(&guest).unwrap();
    assert!(
        agent.log().contains("removed or displaced"),
        "{}",
        agent.log()
    );
    wait_covered(&world, &["tap101i0"]);
}

#[test]
fn program_taken_off_is_put_back_although_the_policys_files_change_all_the_time() {
    const WRITES: Duration = Duration::from_millis(200);
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let (guest, agent) = without_its_program(&world);
    let mut written = 0;
    poll("the program to be put back", LIMIT, || {
        // As a portal does that writes its file once more, whatever is in it.
        agent.write_policy("portal.yaml", &format!("schema: 1\n# {written}\n"))?;
        written += 1;
        std::thread::sleep(WRITES);
        let metrics = agent.metrics()?;
        let repairs = metrics.sum("gate25_drift_repairs_total", &[]);
        Ok((repairs == Some(1.0)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    assert!(written > 1, "it was put back before anything was written");
    world.wait_closed(&guest).unwrap();
}

/// A guest whose program has just been taken off, under an agent that looks every second.
#[track_caller]
fn without_its_program(world: &World) -> (Guest, Agent) {
    let guest = world.guest(101, "tap101i0").unwrap();
    let settings = Settings {
        more: "reload: {rescan: 1s}\n".to_owned(),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    world.check_closed(&guest).unwrap();
    let host = &world.hosting.hypervisor;
    let pin = world.pinned_link("tap101i0").unwrap();
    let pin = pin.to_str().unwrap();
    host.exec("bpftool", &["link", "detach", "pinned", pin])
        .unwrap();
    (guest, agent)
}

#[test]
fn interface_taken_in_and_out_of_a_bridge_stays_closed_to_a_continuous_sender() {
    let world = World::new().unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent(&policy).unwrap();
    let sender = Sender::start(&guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    let before = world.witness.packets().unwrap();
    let host = &world.hosting.hypervisor;
    for _ in 0..10 {
        host.ip("link set tap101i0 nomaster").unwrap();
        host.ip("link set tap101i0 master vmbr0").unwrap();
        sender.more(5).unwrap();
    }
    let tally = sender.more(20).unwrap();
    assert_eq!(tally.connected, 0, "{tally:?}\n{}", agent.log());
    assert_eq!(world.witness.packets().unwrap(), before);
    world.wait_workloads(&agent, "enforced", 1).unwrap();
    world.check_closed(&guest).unwrap();
}

#[test]
fn interfaces_created_and_destroyed_in_a_burst_leave_nothing_behind() {
    const COUNT: usize = 200;
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    let host = &world.hosting.hypervisor;
    let lines = |line: &dyn Fn(usize) -> String| (0..COUNT).map(line).collect::<String>();
    host.ip(&lines(&|n| {
        format!("link add tap{n}i0 type veth peer name peer{n}\n")
    }))
    .unwrap();
    world.wait_workloads(&agent, "unassigned", COUNT).unwrap();
    assert_eq!(world.covered_interfaces().unwrap().len(), COUNT);
    host.ip(&lines(&|n| format!("link del tap{n}i0\n")))
        .unwrap();
    // A second burst that is gone before the agent has attached it.
    host.ip(&lines(&|n| {
        format!("link add tap{n}i1 type veth peer name peer{n}\nlink del tap{n}i1\n")
    }))
    .unwrap();
    settled_empty(&world, &agent);
}

#[test]
fn interface_that_vanishes_during_attachment_leaves_the_agent_well() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    let host = &world.hosting.hypervisor;
    let pairs: String = (0..150)
        .map(|n| format!("link add tap{n}i0 type veth peer name peer{n}\nlink del tap{n}i0\n"))
        .collect();
    for _ in 0..3 {
        host.ip(&pairs).unwrap();
    }
    settled_empty(&world, &agent);
    let guest = world.guest(101, "tap101i0").unwrap();
    world.wait_workloads(&agent, "unassigned", 1).unwrap();
    world.check_closed(&guest).unwrap();
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
}

#[test]
fn rescan_of_changes_nobody_announced_converges_to_what_events_would_have_led_to() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0");
    let guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = world.agent(&policy).unwrap();
    let other = world.guest(102, "tap102i0").unwrap();
    let nobodys = world.guest(103, "tap103i0").unwrap();
    world.rename("tap101i0", "vnet7").unwrap();
    world.wait_workloads(&agent, "enforced", 1).unwrap();
    world.wait_workloads(&agent, "unassigned", 2).unwrap();
    let followed = workloads(&agent);
    let covered = world.covered_interfaces().unwrap();
    // A start reads a snapshot and no events.
    agent.stop().unwrap();
    world.rename("vnet7", "tap101i0").unwrap();
    world.rename("tap102i0", "tap104i0").unwrap();
    world.rename("tap101i0", "vnet7").unwrap();
    world.rename("tap104i0", "tap102i0").unwrap();
    agent.restart().unwrap();
    assert_eq!(workloads(&agent), followed);
    assert_eq!(world.covered_interfaces().unwrap(), covered);
    for guest in [&guest, &other, &nobodys] {
        world.check_closed(guest).unwrap();
    }
}

#[test]
fn patterns_of_two_customers_that_meet_refuse_the_set_and_open_nothing() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let agent = world.agent(&policy).unwrap();
    let failures = |agent: &Agent| {
        let metrics = agent.metrics().unwrap();
        metrics.sum("gate25_config_reload_failures_total", &[])
    };
    assert_eq!(failures(&agent), Some(0.0));
    // The second customer may send everywhere, but whose the guest is is not clear.
    let both = policy.customer("c-2", "tap1?1i0").exempt("c-2");
    agent.write_policy("policy.yaml", &both.text()).unwrap();
    poll("the refusal", LIMIT, || {
        Ok((failures(&agent) == Some(1.0)).then_some(()))
    })
    .unwrap();
    let log = agent.log();
    let line = log
        .lines()
        .find(|line| line.contains("ERROR") && line.contains("policy.yaml:"))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("c-1") && line.contains("c-2"), "{line}");
    world.check_closed(&guest).unwrap();
}

/// Deletes the guest's veth and makes another one at once, with the same addresses in the guest.
#[track_caller]
fn recreate(world: &World, guest: &Guest, name: &str, index: Option<u32>) {
    let host = &world.hosting.hypervisor;
    let before = if host.exec("ip", &["link", "show", "tap101i0"]).is_ok() {
        "tap101i0"
    } else {
        "tap102i0"
    };
    let index = index.map_or(String::new(), |index| format!("index {index}"));
    let (v4, v6, gateway) = (guest.addresses.v4, guest.addresses.v6, Hosting::GATEWAY);
    host.ip(&format!(
        "link del {before}
         link add {name} {index} type veth peer name eth0 netns {}
         link set {name} master vmbr0 up",
        guest.ns.holder()
    ))
    .unwrap();
    guest
        .ns
        .ip(&format!(
            "addr add {v4}/24 dev eth0
             addr add {v6}/64 dev eth0 nodad
             link set eth0 up
             route add default via {}
             route add default via {}",
            gateway.v4, gateway.v6
        ))
        .unwrap();
    let up = poll("the guest's link", LIMIT, || {
        let to = Hosting::EXCHANGER.v6_port(587);
        let attempt = connect(&guest.ns, to, LIMIT)?;
        Ok((attempt.outcome == Outcome::Connected).then_some(()))
    });
    up.unwrap();
}

#[track_caller]
fn wait_covered(world: &World, interfaces: &[&str]) {
    let wanted: Vec<u32> = interfaces
        .iter()
        .map(|name| world.index(name).unwrap())
        .collect();
    let mut seen = Vec::new();
    let settled = poll("the programs", LIMIT, || {
        seen = world.covered_interfaces()?;
        Ok((seen == wanted).then_some(()))
    });
    assert!(settled.is_ok(), "covered {seen:?}, wanted {wanted:?}");
}

#[track_caller]
fn settled_empty(world: &World, agent: &Agent) {
    let settled = poll(
        "no workload and no program",
        Duration::from_secs(15),
        || {
            let metrics = agent.metrics()?;
            let workloads = metrics.sum("gate25_workloads", &[]);
            let entries = metrics.sum("gate25_map_entries", &[("map", "INTERFACES")]);
            let covered = world.covered_interfaces()?;
            Ok(
                (workloads == Some(0.0) && entries == Some(0.0) && covered.is_empty())
                    .then_some(()),
            )
        },
    );
    settled.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    assert_eq!(agent.get("/readyz").unwrap().0, 200);
    assert_eq!(agent.get("/healthz").unwrap().0, 200);
}

fn workloads(agent: &Agent) -> Vec<(String, f64)> {
    let metrics = agent.metrics().unwrap();
    metrics
        .series("gate25_workloads")
        .map(|(labels, value)| (format!("{labels:?}"), value))
        .collect()
}
