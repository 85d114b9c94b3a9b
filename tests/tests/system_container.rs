//! Containers of real runtimes: crun, podman and LXC from Debian's packages, and real mail.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_tests::{
    Agent, Containers, Hosting, Lab, Network, PolicyText, Postfix, Role, Runtime, Settings, World,
    poll, tenant_program,
};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn container_of_crun_is_judged_by_the_cgroup_that_crun_makes() {
    judged(Runtime::Crun, "shop", "shop*");
}

#[test]
fn container_of_podman_is_judged_by_the_cgroup_that_podman_makes() {
    judged(Runtime::Podman, "shop", "libpod-*");
}

#[test]
fn container_of_lxc_is_judged_by_the_cgroup_that_lxc_makes() {
    judged(Runtime::Lxc, "shop", "lxc.payload.shop*");
}

#[test]
fn container_of_an_exempt_customer_is_greeted_by_postfix() {
    let lab = Lab::for_test().unwrap();
    let hosting = Hosting::new(&lab).unwrap();
    let exchanger = Role::Exchanger {
        domain: "example.org".to_owned(),
    };
    let server = Postfix::start(&hosting.exchanger, &exchanger).unwrap();
    let program = tenant_program().unwrap().to_string_lossy().into_owned();
    let containers = Containers::new(&lab, &hosting, "machine", vec![program]).unwrap();
    let settings = Settings {
        cgroups: vec![containers.root.path()],
        ..Settings::default()
    };
    let pattern = format!("{}/shop*", containers.root.path());
    let policy = PolicyText::default()
        .container("c-1", &pattern)
        .exempt("c-1");
    let files = [("policy.yaml", policy.text())];
    let _agent = Agent::start(&hosting.hypervisor, settings, &files).unwrap();
    for (name, network) in [
        ("shop-shared", Network::Hypervisor),
        ("shop-own", Network::own(104, "veth104i0")),
    ] {
        let shop = containers
            .start(&lab, &hosting, name, &network, Runtime::Crun)
            .unwrap();
        for to in [
            Hosting::EXCHANGER.v4_port(25),
            Hosting::EXCHANGER.v6_port(25),
            Hosting::EXCHANGER.mapped_port(25),
        ] {
            let greeting = poll("a greeting", LIMIT, || {
                Ok(shop.tenant.hold("mail", to).ok())
            });
            let greeting = greeting.unwrap();
            assert!(greeting.starts_with("220 "), "{greeting}");
            for (command, answer) in [
                ("EHLO shop.example.com", "250"),
                ("MAIL FROM:<shop@example.com>", "250"),
            ] {
                let said = shop.tenant.say("mail", command).unwrap();
                assert!(
                    said.starts_with(answer),
                    "{command}: {said}\n{}",
                    server.log()
                );
            }
        }
    }
}

/// Closed for nobody and for a customer, open once he is exempt, over both kinds of network.
#[track_caller]
fn judged(runtime: Runtime, name: &str, pattern: &str) {
    let world = World::new().unwrap();
    let closed = PolicyText::default().container("c-1", &world.below(pattern));
    let agent = world.agent_with(world.settings(), &closed).unwrap();
    let networks = [
        (name.to_owned(), Network::Hypervisor),
        (format!("{name}-own"), Network::own(104, "ct104")),
    ];
    for (name, network) in networks {
        let container = world.container_by(runtime, &name, &network).unwrap();
        world
            .check_contained(&container.tenant)
            .unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", agent.log()));
        let free = closed.clone().exempt("c-1");
        agent.apply_policy("policy.yaml", &free.text()).unwrap();
        world
            .wait_free(&container.tenant)
            .unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", agent.log()));
        agent.apply_policy("policy.yaml", &closed.text()).unwrap();
        world.wait_contained(&container.tenant).unwrap();
    }
}
