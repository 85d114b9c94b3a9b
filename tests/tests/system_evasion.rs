//! What tenants try in order to be overlooked.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use gate25_tests::{
    Addresses, Agent, Container, Frame, Guest, Hosting, NetNs, Network, Outcome, PolicyText,
    Process, Settings, Tried, World, connect, poll,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn container_whose_processes_leave_its_network_is_still_judged_on_its_veth() {
    let world = World::new().unwrap();
    let agent = start(&world);
    let [closed, free] = pair(&world);
    for container in [&closed, &free] {
        container.tenant.hide("eth0").unwrap();
    }
    see_again(&world);
    check(
        "a container whose processes leave its network",
        &world,
        &agent,
        &closed,
        &free,
    );
}

#[test]
fn container_that_hides_while_the_agent_is_dead_is_still_judged_on_its_veth() {
    let world = World::new().unwrap();
    let mut agent = start(&world);
    let [closed, free] = pair(&world);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        agent.signal(signal).unwrap();
        agent.process().wait(LIMIT).unwrap();
        if signal == Signal::SIGKILL {
            for container in [&closed, &free] {
                container.tenant.hide("eth0").unwrap();
            }
        }
        agent.restart().unwrap();
        check(
            "a container that hides while the agent is dead",
            &world,
            &agent,
            &closed,
            &free,
        );
    }
    see_again(&world);
    check(
        "a container that hides while the agent is dead",
        &world,
        &agent,
        &closed,
        &free,
    );
}

#[test]
fn veth_outlives_its_containers_cgroup_and_is_still_judged() {
    let world = World::new().unwrap();
    let mut agent = start(&world);
    let [closed, free] = pair(&world);
    let other = world.container("elsewhere", &Network::Hypervisor).unwrap();
    for container in [&closed, &free] {
        container.tenant.hide("eth0").unwrap();
        // As a socket does that is handed to another container.
        other.cgroup.take(container.process()).unwrap();
        std::fs::remove_dir(container.cgroup.dir()).unwrap();
    }
    see_again(&world);
    check(
        "a packet socket that outlives its container",
        &world,
        &agent,
        &closed,
        &free,
    );
    agent.restart().unwrap();
    check(
        "a packet socket that outlives its container",
        &world,
        &agent,
        &closed,
        &free,
    );
}

#[test]
fn veth_whose_other_end_moves_on_is_still_judged() {
    let world = World::new().unwrap();
    let mut agent = start(&world);
    let [closed, _free] = pair(&world);
    let decoy = move_on(&world, &closed);
    see_again(&world);
    for restarted in [false, true] {
        if restarted {
            agent.restart().unwrap();
        }
        let what = "a veth whose other end moves to another network";
        check_from(&decoy, what, &world);
    }
}

#[test]
fn second_veth_to_a_container_that_hides_is_judged_without_the_first_and_after_a_restart() {
    let world = World::new().unwrap();
    let mut agent = start(&world);
    let [closed, _free] = pair(&world);
    closed.tenant.hide("eth0").unwrap();
    let Guest {
        ns,
        addresses,
        interface,
        ..
    } = closed.guest().unwrap();
    let host = &world.hosting.hypervisor;
    let second = "ct107";
    host.ip(&format!(
        "link add {second} type veth peer name eth1 netns {}\nlink set {second} up",
        ns.holder()
    ))
    .unwrap();
    see_again(&world);
    host.ip(&format!("link del {interface}")).unwrap();
    lead_out(&world, ns, "eth1", second, *addresses);
    host.ip(&format!("route replace {}/32 dev {second}", addresses.v4))
        .unwrap();
    for restarted in [false, true] {
        if restarted {
            agent.restart().unwrap();
        }
        let what = "a second veth into the network of a container that hides";
        check_from(ns, what, &world);
    }
}

/// The kernel gives the lowest free number to the next namespace that a veth leads to.
#[test]
fn veth_whose_other_end_moves_to_a_number_that_was_an_exempt_ones_is_still_judged() {
    let world = World::new().unwrap();
    let mut agent = start(&world);
    let slice = world.containers.root.child("free").unwrap();
    let inner = slice.child("inner").unwrap();
    let mut exempt = alone(&world, "ct105");
    inner.take(exempt.id()).unwrap();
    let index = world.index("ct105").unwrap();
    poll("the exempt veth to be covered", LIMIT, || {
        let covered = world.covered_interfaces()?;
        Ok(covered.contains(&index).then_some(()))
    })
    .unwrap();
    let closed = world.container("closed", &Network::own(104, "ct104"));
    let closed = closed.unwrap();
    world.settle(&closed).unwrap();
    let number = other_end(&world, "ct105").unwrap();
    // Its network ends, and the cgroup that is claimed goes on.
    exempt.kill().unwrap();
    poll("the end of the network", LIMIT, || {
        Ok(world.index("ct105").is_err().then_some(()))
    })
    .unwrap();
    let decoy = move_on(&world, &closed);
    assert_eq!(other_end(&world, "ct104").unwrap(), number);
    let what = "a veth whose other end moves to a network with an exempt one's number";
    check_from(&decoy, what, &world);
    see_again(&world);
    check_from(&decoy, what, &world);
    drop((inner, slice));
    check_from(&decoy, what, &world);
    agent.restart().unwrap();
    check_from(&decoy, what, &world);
}

/// A process in a network of its own, which ends with it, behind a veth of this name.
fn alone(world: &World, veth: &str) -> Process {
    let host = &world.hosting.hypervisor;
    let mut command = host.command("unshare");
    command.args(["--net", "sleep", "300"]);
    let process = host.spawn("alone", command).unwrap();
    let pid = process.id();
    poll("the process to be in its network", LIMIT, || {
        let runs = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
        Ok((runs.trim() == "sleep").then_some(()))
    })
    .unwrap();
    host.ip(&format!(
        "link add {veth} type veth peer name eth0 netns {pid}\nlink set {veth} up"
    ))
    .unwrap();
    process
}

/// The hypervisor's number for the namespace that a veth leads to.
fn other_end(world: &World, veth: &str) -> anyhow::Result<i64> {
    let host = &world.hosting.hypervisor;
    let text = host.exec("ip", &["-j", "link", "show", "dev", veth])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let number = &links[0]["link_netnsid"];
    number.as_i64().context("no number of a namespace")
}

/// Moves the other end of a container's veth to a network in which nobody of a container is, and has it send
/// from there.
#[track_caller]
fn move_on(world: &World, container: &Container) -> NetNs {
    let guest = container.guest().unwrap();
    let decoy = world.lab.netns("decoy").unwrap();
    let own = guest.addresses;
    let holder = decoy.holder().to_string();
    guest
        .ns
        .exec("ip", &["link", "set", "eth0", "netns", &holder])
        .unwrap();
    lead_out(world, &decoy, "eth0", &guest.interface, own);
    decoy
}

/// Has a network send with this address through a device of its, the other end of the hypervisor's interface.
#[track_caller]
fn lead_out(world: &World, network: &NetNs, device: &str, interface: &str, own: Addresses) {
    let host = &world.hosting.hypervisor;
    let gateway = world.hardware_address(host, interface).unwrap();
    let (to, gate) = (Hosting::EXCHANGER, Hosting::GATEWAY);
    network
        .ip(&format!(
            "link set {device} up\naddress add {}/32 dev {device}\nroute add {} dev {device}\n\
             route add {} via {} dev {device}\nneighbor replace {} lladdr {gateway} dev {device}",
            own.v4, gate.v4, to.v4, gate.v4, gate.v4
        ))
        .unwrap();
}

/// Checks that whoever sends from here, in no container's cgroup, is refused.
#[track_caller]
fn check_from(decoy: &NetNs, what: &str, world: &World) {
    let attempt = |port| connect(decoy, Hosting::EXCHANGER.v4_port(port), LIMIT).unwrap();
    assert_eq!(attempt(587).outcome, Outcome::Connected);
    let before = world.witness.settled().unwrap();
    assert_eq!(attempt(25).outcome, Outcome::Refused);
    let leaked = world.witness.settled().unwrap() - before;
    Tried::evasion(what, 1, leaked).judge().unwrap();
}

#[test]
fn cgroups_nested_deeper_than_any_pattern_are_their_containers() {
    let world = World::new().unwrap();
    let _agent = start(&world);
    let free = world.container("free", &Network::Hypervisor).unwrap();
    let closed = world.container("closed", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    for container in [&free, &closed] {
        // Patterns reach 32 levels.
        let levels = PathBuf::from_iter(["n"; 40]);
        let deepest = container.cgroup.dir().join(levels);
        container.tenant.enter(&deepest).unwrap();
    }
    world.check_free(&free.tenant).unwrap();
    world.check_contained(&closed.tenant).unwrap();
}

#[test]
fn socket_that_outlives_its_cgroup_is_still_judged() {
    // The root above containers outlives them; where each is a root of its own, that goes, too.
    for roots in ["", "/*"] {
        let world = World::new().unwrap();
        let policy = PolicyText::default()
            .container("c-1", &world.below("free"))
            .exempt("c-1");
        let settings = Settings {
            cgroups: vec![world.containers.root.path() + roots],
            ..world.settings()
        };
        let mut agent = world.agent_with(settings, &policy).unwrap();
        let free = world.container("free", &Network::Hypervisor).unwrap();
        let closed = world.container("closed", &Network::Hypervisor).unwrap();
        world.wait_free(&free.tenant).unwrap();
        world.wait_contained(&closed.tenant).unwrap();
        let to = Hosting::EXCHANGER.v4_port(25);
        for restarted in [false, true] {
            let path = world.lab.dir().join(format!("socket{restarted}"));
            let name = format!("closed{restarted}");
            let closed = world.container(&name, &Network::Hypervisor).unwrap();
            world.wait_contained(&closed.tenant).unwrap();
            let id = closed.cgroup.id().unwrap();
            closed.tenant.give(&path, to).unwrap();
            free.tenant.keep(&path).unwrap();
            drop(closed);
            if restarted {
                agent.restart().unwrap();
            } else {
                // The end of the one is noticed before the beginning of the other.
                let another = world.container("another", &Network::Hypervisor).unwrap();
                world.wait_contained(&another.tenant).unwrap();
            }
            let before = world.witness.settled().unwrap();
            let attempt = free.tenant.connect_kept(to).unwrap();
            assert_ne!(attempt.outcome, Outcome::Connected, "{roots} {restarted}");
            let leaked = world.witness.settled().unwrap() - before;
            let what = "a socket that outlives its container's cgroup";
            Tried::evasion(what, 1, leaked).judge().unwrap();
            // The socket is closed now, and nothing of its cgroup is left.
            let pins = format!("/links/cgroup-{id}-");
            poll("the removed root's links to go", LIMIT, || {
                // Some go while they are being listed.
                let Ok(pinned) = world.pinned_objects() else {
                    return Ok(None);
                };
                let mut pinned = pinned.keys().map(|path| path.to_string_lossy());
                Ok((!pinned.any(|path| path.contains(&pins))).then_some(()))
            })
            .unwrap();
        }
    }
}

/// An agent on a policy that only exempts the container `free`.
#[track_caller]
fn start(world: &World) -> Agent {
    let policy = PolicyText::default()
        .container("c-1", &world.below("free"))
        .exempt("c-1");
    world.agent_with(world.settings(), &policy).unwrap()
}

/// Nobody's container and the exempt one, behind veths whose names no pattern matches.
#[track_caller]
fn pair(world: &World) -> [Container; 2] {
    [("closed", 104, "ct104"), ("free", 105, "ct105")].map(|(name, number, interface)| {
        let network = Network::own(number, interface);
        let container = world.container(name, &network).unwrap();
        world.settle(&container).unwrap();
        container
    })
}

/// Has the agent look for containers, and waits until it has.
#[track_caller]
fn see_again(world: &World) {
    let network = Network::own(106, "ct106");
    let another = world.container("another", &network).unwrap();
    world.settle(&another).unwrap();
}

/// Checks that SYNs sent below IP are judged as those of the container that sends them.
#[track_caller]
fn check(what: &str, world: &World, agent: &Agent, closed: &Container, free: &Container) {
    let witness = &world.witness;
    let before = (witness.settled().unwrap(), refused(agent));
    send_frame(world, closed);
    poll("the refusal to be counted", LIMIT, || {
        Ok((refused(agent) - before.1 == 1.0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let leaked = witness.settled().unwrap() - before.0;
    Tried::evasion(what, 1, leaked)
        .judge()
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    send_frame(world, free);
    poll("an exempt container's SYN", LIMIT, || {
        Ok((witness.packets()? > before.0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
}

/// Sends a SYN to the exchanger's port 25 below IP.
#[track_caller]
fn send_frame(world: &World, container: &Container) {
    let guest = container.guest().unwrap();
    let host = &world.hosting.hypervisor;
    let own = container.addresses().unwrap();
    let frame = Frame {
        device: "eth0",
        source: &world.hardware_address(&guest.ns, "eth0").unwrap(),
        gateway: &world.hardware_address(host, &guest.interface).unwrap(),
        from: own.v4_port(4000),
        to: Hosting::EXCHANGER.v4_port(25),
    };
    container.tenant.send_frame(&frame).unwrap();
}

#[track_caller]
fn refused(agent: &Agent) -> f64 {
    let verdict = [("verdict", "reject")];
    let metrics = agent.metrics().unwrap();
    metrics.sum("gate25_connections_total", &verdict).unwrap()
}
