//! Every trick with sockets, by containers, and by guests who have an interface alone.

use std::time::Duration;

use gate25_tests::{Agent, Container, Network, Settings, World, poll};
use nix::sys::signal::Signal;

use super::tenants::{Player, closed, open, prepare, start};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn tricks_of_containers_get_nothing_out() {
    let world = World::new().unwrap();
    prepare(&world).unwrap();
    let _agent = start(&world, world.settings());
    let shared = ["closed-shared", "watched-shared"]
        .map(|name| world.container(name, &Network::Hypervisor).unwrap());
    let own = [("closed", 104, "veth104i0"), ("watched", 105, "veth105i0")].map(
        |(name, number, interface)| {
            let network = Network::own(number, interface);
            let container = world.container(name, &network).unwrap();
            world.settle(&container).unwrap();
            container
        },
    );
    let player = |container| Player::new(&world, container).unwrap();
    open(&world, &[player(&shared[1]), player(&own[1])]).unwrap();
    closed(&world, &[player(&shared[0]), player(&own[0])]).unwrap();
}

#[test]
fn tricks_of_guests_get_past_no_rule_of_backend_nftables() {
    let world = World::for_nftables().unwrap();
    prepare(&world).unwrap();
    let settings = Settings {
        more: "backend: nftables\n".to_owned(),
        ..Settings::default()
    };
    let agent = start(&world, settings);
    let (open_one, closed_one) = guests(&world, &agent);
    let player = |container| Player::new(&world, container).unwrap();
    open(&world, &[player(&open_one)]).unwrap();
    closed(&world, &[player(&closed_one)]).unwrap();
}

#[test]
fn tricks_of_guests_get_nothing_out() {
    let world = World::new().unwrap();
    prepare(&world).unwrap();
    // Without roots of control groups these are guests behind an interface and nothing more.
    let mut agent = start(&world, Settings::default());
    let (open_one, closed_one) = guests(&world, &agent);
    let player = |container| Player::new(&world, container).unwrap();
    open(&world, &[player(&open_one)]).unwrap();
    closed(&world, &[player(&closed_one)]).unwrap();
    // One that appears while nobody attaches programs: the guard alone stops it.
    poll("the guard", LIMIT, || {
        let host = &world.hosting.hypervisor;
        let tables = host.exec("nft", &["list", "tables"])?;
        Ok(tables.contains("bridge gate25_guard").then_some(()))
    })
    .unwrap();
    agent.signal(Signal::SIGSTOP).unwrap();
    let late = guest(&world, "c", 106, "vnet106");
    closed(&world, &[player(&late)]).unwrap();
}

/// One that is watched and one that may not send, whom the agent has seen.
#[track_caller]
fn guests(world: &World, agent: &Agent) -> (Container, Container) {
    let pair = (
        guest(world, "a", 109, "veth109i0"),
        guest(world, "b", 104, "veth104i0"),
    );
    world.wait_workloads(agent, "enforced", 1).unwrap();
    world.wait_workloads(agent, "unassigned", 1).unwrap();
    pair
}

#[track_caller]
fn guest(world: &World, name: &str, number: u8, interface: &str) -> Container {
    let network = Network::own(number, interface);
    world.container(name, &network).unwrap()
}
