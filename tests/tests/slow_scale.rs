//! Many containers, interfaces and customers.
#![cfg(feature = "root")]

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gate25_tests::{Agent, Hosting, Outcome, PolicyText, World, customers_text, paced};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);

/// Each of these keeps the whole machine busy: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn ten_thousand_customers_who_all_have_a_container_are_all_known_after_the_start() {
    const CUSTOMERS: usize = 10_000;
    let _alone = alone();
    let world = World::new().unwrap();
    let mut policy = PolicyText::default();
    for number in 0..CUSTOMERS {
        let name = format!("c{number}");
        std::fs::create_dir(world.containers.root.dir().join(&name)).unwrap();
        policy = policy.container(&name, &world.below(&name));
    }
    let agent = world.agent_with(world.settings(), &policy).unwrap();
    let enforced = [("kind", "cgroup"), ("state", "enforced")];
    let all = |count: f64| count >= CUSTOMERS as f64;
    agent
        .wait_metric("gate25_workloads", &enforced, LIMIT, all)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
}

#[test]
fn ten_thousand_containers_that_send_at_once_leak_nothing() {
    const BIRTHS: usize = 10_000;
    const AT_ONCE: usize = 4;
    let _alone = alone();
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .container("c-1", &world.below("b-*-web"))
        .container("c-2", &world.below("free"))
        .exempt("c-2");
    let agent = world.agent_with(world.settings(), &policy).unwrap();
    let to = Hosting::EXCHANGER;
    let to = [to.v4_port(25), to.v6_port(25), to.mapped_port(25)];
    thread::scope(|scope| {
        for lane in 0..AT_ONCE {
            let (world, to) = (&world, &to);
            scope.spawn(move || {
                for number in (lane..BIRTHS).step_by(AT_ONCE) {
                    // Every other one is a customer's.
                    let kind = if number % 2 == 0 { "web" } else { "db" };
                    let name = format!("b-{number}-{kind}");
                    let outcomes = world.connect_at_birth(&name, to).unwrap();
                    assert_eq!(outcomes, [const { Outcome::Refused }; 3], "{name}");
                }
            });
        }
    });
    assert_eq!(world.witness.packets().unwrap(), 0);
    let refused = [("verdict", "reject")];
    let counted = agent.metrics().unwrap();
    let counted = counted.sum("gate25_connections_total", &refused);
    assert_eq!(counted, Some((BIRTHS * to.len()) as f64));
}

#[test]
fn restart_with_a_thousand_interfaces_changes_nothing_and_is_quick() {
    const INTERFACES: usize = 1_000;
    const CUSTOMERS: usize = 10_000;
    let _alone = alone();
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    // The first one: the kernel takes in a hundred new links a second.
    let closed = world.guest(101, "tap101i0").unwrap();
    let lines: String = (0..INTERFACES)
        .map(|number| format!("link add tap9{number:05}i0 up type veth peer name other{number}\n"))
        .collect();
    host.ip(&lines).unwrap();
    let base = PolicyText::default().customer("c-1", "tap101i0");
    let mut files = vec![("base.yaml".to_owned(), base.text())];
    files.extend((0..100).map(|file| {
        let (first, count) = (file * CUSTOMERS / 100, CUSTOMERS / 100);
        (
            format!("customers-{file:02}.yaml"),
            customers_text(first, count),
        )
    }));
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let started = Instant::now();
    let mut agent = Agent::start_unready(host, world.settings(), &files).unwrap();
    agent.wait_ready(Duration::from_secs(120)).unwrap();
    println!("first start: {:?}", started.elapsed());
    world.check_closed(&closed).unwrap();
    assert_eq!(world.covered_interfaces().unwrap().len(), INTERFACES + 1);
    let before = world.pinned_objects().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        agent.signal(signal).unwrap();
        agent.process().wait(LIMIT).unwrap();
        let started = Instant::now();
        agent.restart().unwrap();
        let took = started.elapsed();
        println!("restart after {signal}: {took:?}");
        assert!(world.pinned_objects().unwrap() == before, "{signal}");
        let log = agent.log();
        let applied = log.lines().find(|line| line.contains("policy applied"));
        let applied = applied.unwrap_or_else(|| panic!("{log}"));
        assert!(applied.contains("writes=0 "), "{signal}: {applied}");
        assert!(!log.contains("programs of this version"), "{signal}: {log}");
        assert!(took < paced(Duration::from_secs(2)), "{signal}: {took:?}");
        world.check_closed(&closed).unwrap();
    }
}
