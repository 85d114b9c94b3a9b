//! Programs that somebody takes off by hand.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use gate25_tests::{
    Agent, Feature, Guest, Hosting, Link, May, Meter, Network, PolicyText, Rounds, Settings, Tally,
    Trial, Tried, World, paced,
};

use super::scene::{LIMIT, judge_guarded, repairs, wait_repairs, watchful};

/// Two rescans, and something for a busy machine.
const SOON: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);
/// Where containers may not connect to.
const TO: [fn() -> SocketAddr; 3] = [
    || Hosting::EXCHANGER.v4_port(25),
    || Hosting::EXCHANGER.v6_port(25),
    || Hosting::EXCHANGER.mapped_port(25),
];
const GUESTS: [(u8, &str, Link); 3] = [
    (101, "tap101i0", Link::BridgedVeth),
    (102, "tap102i0", Link::BridgedTap),
    (103, "tap103i0", Link::RoutedVeth),
];

/// Takes the programs off interfaces. The guard stands until the next rescan.
#[track_caller]
pub(crate) fn detached_from_interfaces(times: u64) {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let what = "program taken off an interface by hand";
    taken_off(times, what, &[], |world, guest, _| {
        let pin = world.pinned_link(&guest.interface).unwrap();
        let pin = pin.to_string_lossy();
        let host = &world.hosting.hypervisor;
        host.exec("bpftool", &["link", "detach", "pinned", &pin])
            .unwrap();
    });
}

/// The same where it is a filter: the filter or its qdisc goes.
#[track_caller]
pub(crate) fn filter_deleted(times: u64) {
    let what = "filter or qdisc deleted by hand where there is no tcx";
    taken_off(
        times,
        what,
        &["--attach", "filter"],
        |world, guest, round| {
            let device = guest.interface.as_str();
            let words: &[&str] = match round % 2 {
                0 => &["filter", "del", "dev", device, "ingress"],
                _ => &["qdisc", "del", "dev", device, "ingress"],
            };
            world.hosting.hypervisor.exec("tc", words).unwrap();
        },
    );
}

#[track_caller]
fn taken_off(times: u64, what: &str, args: &[&str], off: impl Fn(&World, &Guest, u64)) {
    let world = World::new().unwrap();
    let mut meter = Meter::bare(&world).unwrap();
    let mut policy = PolicyText::default();
    let mut guests = Vec::new();
    for (number, name, link) in GUESTS {
        let guest = world.guest_by(number, name, link).unwrap();
        let owner = format!("c-{number}");
        meter
            .guest_by_frames(&world, &guest, Some(&owner), May::RelayOnly)
            .unwrap();
        policy = policy.customer(&owner, name);
        guests.push(guest);
    }
    let settings = Settings {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        ..watchful(&world, "")
    };
    let agent = world.agent_with(settings, &policy).unwrap();
    meter.attack(&world, &agent).unwrap();
    let mut rounds = Rounds::of(times).unwrap();
    for round in rounds.by_ref() {
        meter.phase(&format!("taken off, round {round}")).unwrap();
        for guest in &guests {
            off(&world, guest, round);
        }
        for guest in &guests {
            wait_counted(&agent, &guest.interface);
        }
        meter.check().unwrap();
    }
    meter.wait_all_relayed().unwrap();
    let times = rounds.begun() * guests.len() as u64;
    judge_guarded(&mut meter, &agent, what, times);
}

/// Waits until the program of this interface counts again: what the guard stops is not counted. It
/// has been taken off before.
#[track_caller]
fn wait_counted(agent: &Agent, interface: &str) {
    let customer = format!("c-{}", &interface[3..6]);
    let labels = [("customer", customer.as_str()), ("verdict", "reject")];
    let name = "gate25_customer_connections_total";
    let before = agent.metrics().unwrap().sum(name, &labels).unwrap();
    agent
        .wait_metric(name, &labels, LIMIT, |now| now > before + 20.0)
        .unwrap_or_else(|error| panic!("{interface}: {error:#}\n{}", agent.log()));
}

/// Takes the programs off the containers' root. What a container sends through a veth is judged
/// there meanwhile; the agent ends connects that had begun when the programs came back.
#[track_caller]
pub(crate) fn detached_from_the_root_of_containers_with_veths(times: u64) {
    let world = World::new().unwrap();
    let containers = [(104, "own-1"), (105, "own-2")].map(|(number, name)| {
        let network = Network::own(number, &format!("veth{number}i0"));
        world.container(name, &network).unwrap()
    });
    let policy = PolicyText::default().container("c-1", &world.below("own-1"));
    let agent = world.agent_with(watchful(&world, ""), &policy).unwrap();
    for container in &containers {
        world.settle(container).unwrap();
        world.check_contained(&container.tenant).unwrap();
    }
    let arrived = world.witness.settled().unwrap();
    for container in &containers {
        for to in TO {
            container
                .tenant
                .hammer(&to().to_string(), to(), PAUSE)
                .unwrap();
        }
    }
    let mut rounds = Rounds::of(times).unwrap();
    for _ in rounds.by_ref() {
        let before = repairs(&agent);
        detach_from_root(&world);
        wait_repairs(&agent, before, 1);
    }
    let mut sent = 0;
    for container in &containers {
        for to in TO {
            let tally = container.tenant.rest(&to().to_string()).unwrap();
            assert_eq!(tally.connected, 0, "{tally:?}");
            sent += tally.attempts();
        }
        world.check_refused(&container.tenant).unwrap();
    }
    let tried = Tried {
        trial: Trial::Fault,
        what: "programs taken off the containers' root by hand, containers behind a veth"
            .to_owned(),
        times: rounds.begun(),
        sent,
        leaked: world.witness.settled().unwrap() - arrived,
    };
    tried.judge().unwrap();
}

/// Takes the programs off the root of a container on the host's network, where nothing else stands:
/// closed again soon. How long it took, and what became of attempts meanwhile.
#[track_caller]
pub(crate) fn detached_from_the_root_of_containers_without_a_network() -> (Duration, Tally) {
    let world = World::new().unwrap();
    let container = world.container("shared", &Network::Hypervisor).unwrap();
    let policy = PolicyText::default().container("c-1", &world.below("shared"));
    let agent = world.agent_with(watchful(&world, ""), &policy).unwrap();
    world.check_contained(&container.tenant).unwrap();
    let [to, ..] = TO;
    container.tenant.hammer("knock", to(), PAUSE).unwrap();
    let before = repairs(&agent);
    let detached = Instant::now();
    detach_from_root(&world);
    wait_repairs(&agent, before, 1);
    world.wait_refused(&container.tenant).unwrap();
    let took = detached.elapsed();
    let tally = container.tenant.rest("knock").unwrap();
    assert!(took < paced(SOON), "{took:?}");
    world.check_contained(&container.tenant).unwrap();
    (took, tally)
}

/// All at once: the agent may look at any moment.
#[track_caller]
fn detach_from_root(world: &World) {
    let links = world.pinned_root_links().unwrap();
    assert_eq!(links.len(), 6, "{links:?}");
    let lines: String = links
        .values()
        .map(|pin| format!("link detach pinned {}\n", pin.display()))
        .collect();
    let file = world.lab.dir().join("detach");
    fs::write(&file, lines).unwrap();
    let host = &world.hosting.hypervisor;
    host.exec("bpftool", &["batch", "file", &file.to_string_lossy()])
        .unwrap();
}
