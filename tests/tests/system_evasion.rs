//! What tenants try in order to be overlooked.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_tests::{Agent, Container, Frame, Hosting, Network, PolicyText, World, poll};
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
    check(&world, &agent, &closed, &free);
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
        check(&world, &agent, &closed, &free);
    }
    see_again(&world);
    check(&world, &agent, &closed, &free);
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
    check(&world, &agent, &closed, &free);
    agent.restart().unwrap();
    check(&world, &agent, &closed, &free);
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
fn check(world: &World, agent: &Agent, closed: &Container, free: &Container) {
    let witness = &world.witness;
    let before = (witness.settled().unwrap(), refused(agent));
    send_frame(world, closed);
    poll("the refusal to be counted", LIMIT, || {
        Ok((refused(agent) - before.1 == 1.0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    assert_eq!(witness.settled().unwrap(), before.0, "{}", agent.log());
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
