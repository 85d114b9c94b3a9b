//! Cgroups come and go, many and fast: a container is closed from its first packet on.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use gate25_tests::{Agent, Hosting, Network, Outcome, PolicyText, Settings, World, poll};
use nix::unistd::truncate;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn container_that_sends_at_once_leaks_nothing() {
    const BIRTHS: u32 = 300;
    let world = World::new().unwrap();
    let _agent = start(&world, &exempt(&world, "free"));
    let to = Hosting::EXCHANGER;
    let to = [to.v4_port(25), to.v6_port(25), to.mapped_port(25)];
    for number in 0..BIRTHS {
        let outcomes = world.connect_at_birth(&format!("b{number}"), &to).unwrap();
        assert_eq!(
            outcomes,
            [Outcome::Refused, Outcome::Refused, Outcome::Refused]
        );
    }
    assert_eq!(world.witness.packets().unwrap(), 0);
}

#[test]
fn cgroup_removed_and_made_again_belongs_to_its_customer_each_time() {
    const ROUNDS: u32 = 30;
    let world = World::new().unwrap();
    let agent = start(&world, &exempt(&world, "free"));
    let entries = |agent: &Agent| {
        let map = [("map", "CGROUPS")];
        agent.metrics().unwrap().sum("gate25_map_entries", &map)
    };
    let before = entries(&agent);
    let to = Hosting::EXCHANGER.v4_port(25);
    for round in 0..ROUNDS {
        let container = world.container("free", &Network::Hypervisor).unwrap();
        world
            .wait_free(&container.tenant)
            .unwrap_or_else(|error| panic!("round {round}: {error:#}\n{}", agent.log()));
        drop(container);
        // Gone before anybody can look at it.
        drop(world.containers.root.child("free").unwrap());
        // Its number may be given to another one, which is not the customer's.
        let other = world.connect_at_birth("closed", &[to]).unwrap();
        assert_eq!(other, [Outcome::Refused], "round {round}");
    }
    poll("the tables to forget removed cgroups", LIMIT, || {
        Ok((entries(&agent) == before).then_some(()))
    })
    .unwrap();
}

#[test]
fn root_that_appears_after_the_start_is_judged() {
    let world = World::new().unwrap();
    let mut settings = world.settings();
    settings
        .cgroups
        .push(format!("{}-later*", world.containers.root.path()));
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    for round in 0..3 {
        let root = world.lab.containers("machine-later.slice").unwrap();
        let container = world.container_in(root.child("web").unwrap()).unwrap();
        world
            .wait_contained(&container.tenant)
            .unwrap_or_else(|error| panic!("round {round}: {error:#}\n{}", agent.log()));
        drop(container);
        root.remove().unwrap();
    }
}

#[test]
fn container_that_makes_cgroups_all_the_time_keeps_nobody_else_from_being_judged() {
    judged_beside(|folder| {
        fs::create_dir(folder).unwrap();
        fs::remove_dir(folder).unwrap();
    });
}

#[test]
fn container_whose_cgroups_always_seem_to_change_keeps_nobody_else_from_being_judged() {
    judged_beside(|folder| {
        // Two, since the kernel makes one event of several in a row of one file.
        for folder in [folder, &folder.with_extension("twin")] {
            let file = folder.join("cgroup.events");
            if !folder.exists() {
                fs::create_dir(folder).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            }
            truncate(&file, 0).unwrap();
        }
    });
}

/// Starts guests and containers while a container does this again and again, each time given one of a few
/// folders in its cgroup.
#[track_caller]
fn judged_beside(work: fn(&Path)) {
    const IDLE: u32 = 5000;
    const WORKERS: u32 = 3;
    let world = World::new().unwrap();
    let settings = Settings {
        cgroups: vec![world.containers.root.path() + "/*"],
        ..world.settings()
    };
    let busy = world.containers.root.child("busy").unwrap();
    for number in 0..IDLE {
        fs::create_dir(busy.dir().join(format!("idle-{number}"))).unwrap();
    }
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let folder = busy.dir().join(format!("made-{worker}"));
            let ended = &ended;
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    work(&folder);
                }
            });
        }
        // Failing before the workers are told to end would wait for them for ever.
        let judged = judged_meanwhile(&world);
        ended.store(true, Ordering::Relaxed);
        judged.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    });
}

/// A guest and a container that come now, a few times.
fn judged_meanwhile(world: &World) -> anyhow::Result<()> {
    for number in 101..104 {
        let name = format!("tap{number}i0");
        let _guest = world.guest(number, &name)?;
        let link = world.pinned_link(&name)?;
        poll("the guest's program", LIMIT, || {
            let host = &world.hosting.hypervisor;
            Ok(host.run(|| link.exists())?.then_some(()))
        })?;
        let container = world.container(&format!("later-{number}"), &Network::Hypervisor)?;
        world.wait_refused(&container.tenant)?;
    }
    Ok(())
}

#[test]
fn start_that_runs_the_set_before_its_files_follows_cgroups_as_deep_as_that_needs() {
    let world = World::new().unwrap();
    let reseller = world.containers.root.child("reseller").unwrap();
    let closed = world.container_in(reseller.child("tenant").unwrap());
    let closed = closed.unwrap();
    let free = world.container_in(reseller.child("own").unwrap()).unwrap();
    let shallow = PolicyText::default()
        .container("c-1", &world.below("reseller"))
        .exempt("c-1");
    let deep = shallow
        .clone()
        .container("c-2", &world.below("reseller/tenant"));
    let mut agent = start(&world, &deep);
    world.check_contained(&closed.tenant).unwrap();
    // Files that need less depth are there, valid, and held.
    agent.apply_policy("policy.yaml", &shallow.text()).unwrap();
    let undone = agent.command(&["undo"]).unwrap();
    assert_eq!(undone.code, Some(0), "{undone:?}");
    world.check_contained(&closed.tenant).unwrap();
    agent.stop().unwrap();
    let before = world.witness.settled().unwrap();
    agent.restart().unwrap();
    world
        .check_contained(&closed.tenant)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    assert_eq!(world.witness.packets().unwrap(), before);
    world.check_free(&free.tenant).unwrap();
}

#[test]
fn ten_thousand_cgroups_are_found_and_followed() {
    const COUNT: usize = 10_000;
    let world = World::new().unwrap();
    let root = world.containers.root.dir();
    for number in 0..COUNT {
        fs::create_dir(root.join(format!("vps-{number}"))).unwrap();
    }
    let closed = world
        .container_in(world.containers.root.below("vps-77"))
        .unwrap();
    let policy = PolicyText::default()
        .container("c-1", &world.below("vps-*"))
        .container("c-2", &world.below("free"))
        .exempt("c-2");
    let started = Instant::now();
    let agent = start(&world, &policy);
    println!("{COUNT} cgroups judged after {:?}", started.elapsed());
    world.check_contained(&closed.tenant).unwrap();
    agent
        .wait_metric(
            "gate25_map_entries",
            &[("map", "CGROUPS")],
            LIMIT,
            |count| count == COUNT as f64,
        )
        .unwrap();
    let free = world.container("free", &Network::Hypervisor).unwrap();
    let made = Instant::now();
    world.wait_free(&free.tenant).unwrap();
    println!("one more is its customer's after {:?}", made.elapsed());
    for number in 0..COUNT {
        if number != 77 {
            fs::remove_dir(root.join(format!("vps-{number}"))).unwrap();
        }
    }
    agent
        .wait_metric(
            "gate25_map_entries",
            &[("map", "CGROUPS")],
            LIMIT,
            |count| count == 2.0,
        )
        .unwrap();
    world.check_contained(&closed.tenant).unwrap();
    world.check_free(&free.tenant).unwrap();
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
