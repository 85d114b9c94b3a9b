//! An exemption ends: what it had opened ends at once, and nothing else does.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{net::SocketAddr, time::Duration};

use gate25_tests::{
    Agent, Container, Hosting, Network, Outcome, PolicyText, Privileges, Settings, World, after,
    paced, poll,
};

const LIMIT: Duration = Duration::from_secs(10);
/// Connections that nobody uses are looked for.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn revocation_ends_connections_that_nobody_uses() {
    let (world, agent, container) = scene(&Network::Hypervisor);
    let own = world
        .container("free-own", &Network::own(104, "veth104i0"))
        .unwrap();
    world.wait_free(&own.tenant).unwrap();
    for tenant in [&container.tenant, &own.tenant] {
        for (name, to) in addresses() {
            tenant.hold(name, to).unwrap();
        }
    }
    agent
        .apply_policy("policy.yaml", &revoked(&world).text())
        .unwrap();
    for tenant in [&container.tenant, &own.tenant] {
        for (name, _) in addresses() {
            let cut = tenant.wait_cut(name).unwrap();
            assert!(ended(&cut.outcome), "{name}: {cut}\n{}", agent.log());
            assert!(cut.took < paced(SOON), "{name}: {cut}");
        }
        world.wait_contained(tenant).unwrap();
    }
}

#[test]
fn revocation_ends_connections_in_use_and_leaves_all_others() {
    for network in [Network::Hypervisor, Network::own(104, "veth104i0")] {
        let (world, agent, container) = scene(&network);
        let tenant = &container.tenant;
        for (name, to) in addresses() {
            tenant.hold(name, to).unwrap();
        }
        let kept = [
            ("relay v4", Hosting::RELAY.v4_port(25)),
            ("relay v6", Hosting::RELAY.v6_port(25)),
            ("submission", Hosting::EXCHANGER.v4_port(587)),
        ];
        for (name, to) in kept {
            tenant.echo(name, to).unwrap();
        }
        agent
            .apply_policy("policy.yaml", &revoked(&world).text())
            .unwrap();
        for (name, _) in addresses() {
            let cut = tenant.write_until_cut(name).unwrap();
            assert!(ended(&cut.outcome), "{name}: {cut}");
            assert!(cut.took < paced(SOON), "{name}: {cut}");
        }
        let before = world.witness.settled().unwrap();
        for (name, _) in kept {
            let seen = tenant.echoes(name).unwrap();
            poll("answers over the other connections", LIMIT, || {
                Ok((tenant.echoes(name)? > seen + 20).then_some(()))
            })
            .unwrap();
        }
        assert_eq!(world.witness.packets().unwrap(), before);
    }
}

#[test]
fn connections_of_others_survive_a_revocation() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .container("c-1", &world.below("free"))
        .container("c-2", &world.below("other"))
        .exempt("c-2");
    let agent = world
        .agent_with(world.settings(), &policy.clone().exempt("c-1"))
        .unwrap();
    let free = world.container("free", &Network::Hypervisor).unwrap();
    let other = world.container("other", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    world.wait_free(&other.tenant).unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    free.tenant.hold("held", to).unwrap();
    other.tenant.echo("kept", to).unwrap();
    agent.apply_policy("policy.yaml", &policy.text()).unwrap();
    let cut = free.tenant.wait_cut("held").unwrap();
    assert!(ended(&cut.outcome), "{cut}");
    let seen = other.tenant.echoes("kept").unwrap();
    poll("answers to the other customer", LIMIT, || {
        Ok((other.tenant.echoes("kept")? > seen + 20).then_some(()))
    })
    .unwrap();
}

#[test]
fn exemption_that_expires_ends_its_connections() {
    let world = World::new().unwrap();
    let policy = PolicyText::default().container("c-1", &world.below("free"));
    let expires = after(paced(Duration::from_secs(3)));
    let agent = world
        .agent_with(world.settings(), &policy.exempt_until("c-1", expires))
        .unwrap();
    let free = world.container("free", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    for (name, to) in addresses() {
        free.tenant.hold(name, to).unwrap();
    }
    for (name, _) in addresses() {
        let cut = free.tenant.wait_cut(name).unwrap();
        assert!(ended(&cut.outcome), "{name}: {cut}\n{}", agent.log());
    }
    world.wait_contained(&free.tenant).unwrap();
}

#[test]
fn container_moved_to_another_owner_loses_its_connections() {
    let (world, agent, container) = scene(&Network::Hypervisor);
    for (name, to) in addresses() {
        container.tenant.hold(name, to).unwrap();
    }
    let policy = PolicyText::default()
        .container("c-1", &world.below("elsewhere"))
        .exempt("c-1")
        .container("c-2", &world.below("free*"));
    agent.apply_policy("policy.yaml", &policy.text()).unwrap();
    for (name, _) in addresses() {
        let cut = container.tenant.wait_cut(name).unwrap();
        assert!(ended(&cut.outcome), "{name}: {cut}");
        assert!(cut.took < paced(SOON), "{name}: {cut}");
    }
}

/// An exempt container, and the agent.
#[track_caller]
fn scene(network: &Network) -> (World, Agent, Container) {
    let world = World::new().unwrap();
    let policy = revoked(&world).exempt("c-1");
    // Networks of their own are entered, which takes more than the agent needs otherwise.
    let settings = Settings {
        privileges: Privileges::and(&["sys_admin", "sys_ptrace"]),
        ..world.settings()
    };
    let agent = world.agent_with(settings, &policy).unwrap();
    let container = world.container("free", network).unwrap();
    world.wait_free(&container.tenant).unwrap();
    (world, agent, container)
}

fn revoked(world: &World) -> PolicyText {
    PolicyText::default().container("c-1", &world.below("free*"))
}

/// The exchanger's port 25 by every kind of address.
fn addresses() -> [(&'static str, SocketAddr); 3] {
    let to = Hosting::EXCHANGER;
    [
        ("IPv4", to.v4_port(25)),
        ("IPv6", to.v6_port(25)),
        ("mapped", to.mapped_port(25)),
    ]
}

/// Not by waiting in vain: by the kernel, or by a reset.
fn ended(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Aborted | Outcome::Reset)
}
