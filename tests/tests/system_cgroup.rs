//! Containers are judged by their cgroup: whose it is, wherever its processes and sockets go.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use gate25_tests::{
    Addresses, Agent, Container, Feature, Frame, Hosting, Network, Outcome, PolicyText, Tried,
    World, poll,
};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn container_of_a_customer_without_exemption_is_refused_at_once() {
    let world = World::new().unwrap();
    let policy = PolicyText::default().container("c-1", &world.below("mine"));
    let _agent = start(&world, &policy);
    for (number, owner) in [(104, "mine"), (105, "nobodys")] {
        for (name, network) in networks(number) {
            let container = world.container(owner, &network).unwrap();
            world
                .check_contained(&container.tenant)
                .unwrap_or_else(|error| panic!("{name}, {owner}: {error:#}"));
        }
    }
}

#[test]
fn container_of_an_exempt_customer_connects_and_others_do_not() {
    let world = World::new().unwrap();
    let agent = start(&world, &exempt(&world, "free"));
    for (name, network) in networks(104) {
        let free = world.container("free", &network).unwrap();
        world
            .wait_free(&free.tenant)
            .unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", agent.log()));
        let closed = world.container("closed", &Network::Hypervisor).unwrap();
        world.check_contained(&closed.tenant).unwrap();
    }
}

#[test]
fn nested_cgroups_belong_to_the_deepest_pattern() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .container("c-1", &world.below("outer"))
        .exempt("c-1")
        .container("c-2", &world.below("outer/inner"));
    let _agent = start(&world, &policy);
    let outer = world.container("outer", &Network::Hypervisor).unwrap();
    world.wait_free(&outer.tenant).unwrap();
    let inner = world
        .container_in(outer.cgroup.child("inner").unwrap())
        .unwrap();
    world.wait_contained(&inner.tenant).unwrap();
    let beside = world
        .container_in(outer.cgroup.child("beside").unwrap())
        .unwrap();
    world.check_free(&beside.tenant).unwrap();
    // What a tenant makes below its own cgroup changes nothing.
    for (tenant, below, free) in [
        (&inner.tenant, inner.cgroup.dir(), false),
        (&beside.tenant, beside.cgroup.dir(), true),
    ] {
        tenant.enter(&below.join("a").join("b")).unwrap();
        if free {
            world.check_free(tenant).unwrap();
        } else {
            world.check_contained(tenant).unwrap();
        }
    }
}

#[test]
fn process_moved_to_another_cgroup_is_judged_by_its_new_one() {
    let world = World::new().unwrap();
    let _agent = start(&world, &exempt(&world, "free"));
    let free = world.container("free", &Network::Hypervisor).unwrap();
    let closed = world.container("closed", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    closed.cgroup.take(free.process()).unwrap();
    world.check_contained(&free.tenant).unwrap();
    free.cgroup.take(closed.process()).unwrap();
    world.check_free(&closed.tenant).unwrap();
}

#[test]
fn socket_handed_over_is_judged_by_the_cgroup_that_made_it() {
    let world = World::new().unwrap();
    let _agent = start(&world, &exempt(&world, "free"));
    let free = world.container("free", &Network::Hypervisor).unwrap();
    let closed = world.container("closed", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    for (number, to) in addresses().into_iter().enumerate() {
        let path = world.lab.dir().join(format!("closed{number}"));
        closed.tenant.give(&path, to).unwrap();
        let before = quiet(&world);
        // The connect cannot tell whose the socket is in time to refuse it: its packets are lost.
        let attempt = free.tenant.take(&path, to).unwrap();
        assert_ne!(attempt.outcome, Outcome::Connected, "{to}");
        judge(
            "a socket that another container has made",
            1,
            quiet(&world) - before,
        );
        let path = world.lab.dir().join(format!("free{number}"));
        free.tenant.give(&path, to).unwrap();
        let attempt = closed.tenant.take(&path, to).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected, "{to}");
    }
}

#[test]
fn data_with_the_syn_is_refused_like_a_connect() {
    let world = World::new().unwrap();
    let _agent = start(&world, &exempt(&world, "free"));
    let free = world.container("free", &Network::Hypervisor).unwrap();
    let closed = world.container("closed", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    let before = quiet(&world);
    for to in addresses() {
        let attempt = closed.tenant.fast_open(to).unwrap();
        assert_eq!(attempt.outcome, Outcome::Refused, "{to}");
        assert!(attempt.took < Duration::from_millis(900), "{attempt}");
    }
    judge("TCP Fast Open", 3, quiet(&world) - before);
    for to in addresses() {
        let attempt = free.tenant.fast_open(to).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected, "{to}");
    }
}

#[test]
fn multipath_connection_is_refused_like_any_other() {
    let world = World::new().unwrap();
    if Feature::Mptcp.is_missing().unwrap() {
        return;
    }
    let _agent = start(&world, &exempt(&world, "free"));
    let free = world.container("free", &Network::Hypervisor).unwrap();
    let closed = world.container("closed", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    let before = quiet(&world);
    for to in addresses() {
        let attempt = closed.tenant.connect_mptcp(to).unwrap();
        assert_eq!(attempt.outcome, Outcome::Refused, "{to}");
    }
    judge("a multipath connection", 3, quiet(&world) - before);
    for to in addresses() {
        let attempt = free.tenant.connect_mptcp(to).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected, "{to}");
    }
}

#[test]
fn loopback_and_own_addresses_pass_uncounted() {
    let world = World::new().unwrap();
    let agent = start(&world, &PolicyText::default());
    for (name, network) in networks(104) {
        let container = world.container("closed", &network).unwrap();
        container.tenant.greet(25).unwrap();
        let before = agent.metrics().unwrap();
        let own = container.addresses().unwrap_or(Hosting::GATEWAY);
        let local = ["127.0.0.1:25", "[::1]:25", "[::ffff:127.0.0.1]:25"]
            .map(|text| text.parse::<SocketAddr>().unwrap());
        for to in local.into_iter().chain([own.v4_port(25), own.v6_port(25)]) {
            let attempt = container.tenant.connect(to).unwrap();
            assert_eq!(attempt.outcome, Outcome::Connected, "{name}: {to}");
        }
        let after = agent.metrics().unwrap();
        for counted in ["connections", "packets"] {
            let total = format!("gate25_{counted}_total");
            assert_eq!(after.sum(&total, &[]), before.sum(&total, &[]), "{name}");
        }
    }
}

#[test]
fn address_that_a_container_talks_to_itself_from_is_the_one_it_chose() {
    let world = World::new().unwrap();
    let _agent = start(&world, &PolicyText::default());
    for (name, network) in networks(104) {
        let container = world.container("closed", &network).unwrap();
        container.tenant.greet(25).unwrap();
        let own = container.addresses().unwrap_or(Hosting::GATEWAY);
        for (to, local) in [
            (own.v4_port(25), IpAddr::from([127, 0, 0, 1])),
            (own.v6_port(25), IpAddr::from(Ipv6Addr::LOCALHOST)),
        ] {
            for from in [local, to.ip()] {
                let source = container.tenant.connect_from(from, to).unwrap();
                assert_eq!(source.ip(), from, "{name}: {to}");
            }
        }
    }
}

#[test]
fn socket_bound_to_the_loopback_does_not_get_out() {
    let world = World::new().unwrap();
    let _agent = start(&world, &PolicyText::default());
    for (name, network) in networks(104) {
        let container = world.container("closed", &network).unwrap();
        let before = quiet(&world);
        for to in [
            Hosting::EXCHANGER.v4_port(25),
            Hosting::EXCHANGER.v6_port(25),
        ] {
            let attempt = container.tenant.connect_through("lo", to).unwrap();
            assert_ne!(attempt.outcome, Outcome::Connected, "{name}: {to}");
        }
        judge("a socket bound to the loopback", 2, quiet(&world) - before);
    }
}

#[test]
fn path_with_escapes_and_spaces_is_matched_as_it_is() {
    let world = World::new().unwrap();
    let name = r"machine-qemu\x2d1\x2dweb server (äöü).scope";
    let pattern = r"machine-qemu\x2d1\x2dweb server (*).scope";
    let agent = start(&world, &exempt(&world, pattern));
    let container = world.container(name, &Network::Hypervisor).unwrap();
    world
        .wait_free(&container.tenant)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let said = agent.command(&["list", "workloads", "-j"]).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    let json = serde_json::from_str::<serde_json::Value>(&said.out).unwrap();
    let names: Vec<&str> = json["workloads"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|workload| workload["name"].as_str())
        .collect();
    assert!(names.contains(&world.below(name).as_str()), "{names:?}");
}

#[test]
fn cgroup_of_two_customers_is_nobodys() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .container("c-1", &world.below("shared-*"))
        .exempt("c-1")
        .container("c-2", &world.below("*-web"))
        .exempt("c-2");
    // Found in the files alone it is a mistake: patterns that overlap are refused.
    let files = [("policy.yaml", policy.text())];
    let host = &world.hosting.hypervisor;
    let agent = Agent::start_unready(host, world.settings(), &files).unwrap();
    poll("the conflict to be told", LIMIT, || {
        let log = agent.log();
        Ok((log.contains("c-1") && log.contains("c-2")).then_some(()))
    })
    .unwrap();
    let container = world.container("shared-web", &Network::Hypervisor).unwrap();
    world.wait_refused(&container.tenant).unwrap();
}

#[test]
fn observing_counts_and_lets_everything_pass() {
    let world = World::new().unwrap();
    let policy = PolicyText::default().profile("watch", "observe", "reject");
    let policy = policy.container_of("watch", "c-1", &world.below("watched"));
    let agent = start(&world, &policy);
    for (name, network) in networks(104) {
        let container = named_container(&world, "watched", &network);
        let before = count(&agent, "observe");
        world.check_free(&container.tenant).unwrap();
        assert_eq!(count(&agent, "observe") - before, 3.0, "{name}");
    }
}

#[test]
fn attempts_are_counted_once_whatever_they_cross() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .container("c-1", &world.below("closed"))
        .container("c-2", &world.below("free"))
        .exempt("c-2")
        .profile("silent", "enforce", "drop")
        .container_of("silent", "c-3", &world.below("silent"));
    let agent = start(&world, &policy);
    for (number, name, verdict) in [
        (104, "closed", "reject"),
        (105, "free", "allow"),
        (106, "silent", "drop"),
    ] {
        for (network_name, network) in networks(number) {
            let container = named_container(&world, name, &network);
            for to in addresses() {
                let before = counts(&agent);
                if verdict == "drop" {
                    // A connect repeats its SYN.
                    let own = container.addresses().unwrap_or(Hosting::GATEWAY);
                    let from = if to.is_ipv4() {
                        own.v4_port(4000)
                    } else {
                        own.v6_port(4000)
                    };
                    if to == Hosting::EXCHANGER.mapped_port(25) {
                        continue;
                    }
                    container.tenant.forge(from, to).unwrap();
                } else {
                    container.tenant.connect(to).unwrap();
                }
                let mut expected = before;
                let place = VERDICTS.iter().position(|other| *other == verdict);
                expected[place.unwrap()] += 1.0;
                let after = counts(&agent);
                assert_eq!(
                    after, expected,
                    "{name}, {network_name}, {to}: {VERDICTS:?}"
                );
            }
        }
    }
}

#[test]
fn syn_forged_through_a_raw_socket_does_not_get_out() {
    let world = World::new().unwrap();
    let agent = start(&world, &exempt(&world, "free"));
    for (free, number) in [(false, 104), (true, 105)] {
        for (_, network) in networks(number) {
            let name = if free { "free" } else { "closed" };
            let container = if free {
                named_container(&world, name, &network)
            } else {
                settled_container(&world, name, &network)
            };
            let own = container.addresses().unwrap_or(Addresses {
                v4: [192, 0, 2, 129].into(),
                v6: "2001:db8:fffe::1".parse().unwrap(),
            });
            let to = Hosting::EXCHANGER;
            for (from, to) in [
                (own.v4_port(4000), to.v4_port(25)),
                (own.v6_port(4000), to.v6_port(25)),
            ] {
                let before = (quiet(&world), counts(&agent));
                // The sender is told at most that it was not sent.
                container.tenant.forge(from, to).unwrap();
                if free {
                    poll("a forged SYN", LIMIT, || {
                        Ok((world.witness.packets()? > before.0).then_some(()))
                    })
                    .unwrap();
                } else {
                    poll("the refusal to be counted", LIMIT, || {
                        Ok((counts(&agent) != before.1).then_some(()))
                    })
                    .unwrap();
                    judge(
                        "a raw socket with an IP header",
                        1,
                        quiet(&world) - before.0,
                    );
                }
            }
        }
    }
}

#[test]
fn frame_sent_below_ip_is_judged_on_the_containers_veth() {
    let world = World::new().unwrap();
    let agent = start(&world, &exempt(&world, "free"));
    // The second one's name matches no pattern: it is found through the container's network.
    for (name, number, interface) in [
        ("closed", 104, "veth104i0"),
        ("closed", 105, "ct105"),
        ("free", 106, "ct106"),
    ] {
        let network = Network::own(number, interface);
        let container = match name {
            "free" => named_container(&world, name, &network),
            _ => settled_container(&world, name, &network),
        };
        let own = container.addresses().unwrap();
        let to = Hosting::EXCHANGER;
        let host = &world.hosting.hypervisor;
        let gateway = world.hardware_address(host, interface).unwrap();
        let guest = container.guest().unwrap();
        let source = world.hardware_address(&guest.ns, "eth0").unwrap();
        for (from, to) in [
            (own.v4_port(4000), to.v4_port(25)),
            (own.v6_port(4000), to.v6_port(25)),
        ] {
            let before = (quiet(&world), counts(&agent));
            let frame = Frame {
                device: "eth0",
                source: &source,
                gateway: &gateway,
                from,
                to,
            };
            let sent = container.tenant.send_frame(&frame).unwrap();
            assert_eq!(sent.outcome, Outcome::Connected);
            if name == "free" {
                poll("a frame's packet", LIMIT, || {
                    Ok((world.witness.packets()? > before.0).then_some(()))
                })
                .unwrap();
            } else {
                poll("the refusal to be counted", LIMIT, || {
                    let reject = |counts: [f64; 4]| counts[1];
                    let counted = reject(counts(&agent)) - reject(before.1);
                    Ok((counted == 1.0).then_some(()))
                })
                .unwrap();
                judge("a packet socket", 1, quiet(&world) - before.0);
            }
        }
    }
}

#[track_caller]
fn judge(what: &str, sent: u64, leaked: u64) {
    Tried::evasion(what, sent, leaked).judge().unwrap();
}

/// The hypervisor's network, and one behind a veth.
fn networks(number: u8) -> [(&'static str, Network); 2] {
    [
        ("shared network", Network::Hypervisor),
        (
            "own network",
            Network::own(number, &format!("veth{number}i0")),
        ),
    ]
}

/// The exchanger's port 25 by every kind of address.
fn addresses() -> [SocketAddr; 3] {
    let to = Hosting::EXCHANGER;
    [to.v4_port(25), to.v6_port(25), to.mapped_port(25)]
}

/// A policy with one customer, who is exempt.
fn exempt(world: &World, pattern: &str) -> PolicyText {
    PolicyText::default()
        .container("c-1", &world.below(pattern))
        .exempt("c-1")
}

#[track_caller]
fn start(world: &World, policy: &PolicyText) -> Agent {
    world.agent_with(world.settings(), policy).unwrap()
}

/// The packets seen by the exchanger once closed connections have said goodbye.
#[track_caller]
fn quiet(world: &World) -> u64 {
    world.witness.settled().unwrap()
}

const VERDICTS: [&str; 4] = ["allow", "reject", "drop", "observe"];

#[track_caller]
fn counts(agent: &Agent) -> [f64; 4] {
    VERDICTS.map(|verdict| count(agent, verdict))
}

/// A container that the policy names, once the kernel's tables hold all there is of it.
#[track_caller]
fn named_container(world: &World, name: &str, network: &Network) -> Container {
    let container = settled_container(world, name, network);
    world.wait_named(&container).unwrap();
    container
}

#[track_caller]
fn settled_container(world: &World, name: &str, network: &Network) -> Container {
    let container = world.container(name, network).unwrap();
    world.settle(&container).unwrap();
    container
}

#[track_caller]
fn count(agent: &Agent, verdict: &str) -> f64 {
    let metrics = agent.metrics().unwrap();
    metrics
        .sum("gate25_connections_total", &[("verdict", verdict)])
        .unwrap()
}
