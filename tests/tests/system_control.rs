//! The commands that speak with the agent, or with what a dead one left.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    io::Write as _,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use gate25_tests::{Agent, Container, Network, PolicyText, Said, World};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOCKET: &str = "/run/gate25/control.sock";
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn client_that_says_nothing_holds_nobody_up() {
    let scene = Scene::new();
    let host = &scene.world.hosting.hypervisor;
    let mut silent = Vec::new();
    for number in 0..200 {
        let connection = host.run(|| UnixStream::connect(SOCKET)).unwrap();
        // Beyond some number they are turned away, which is right too.
        let Ok(mut connection) = connection else {
            continue;
        };
        if number % 2 == 0 {
            // Half a request, and no more.
            drop(connection.write_all(b"GET /v1/status HT"));
        }
        silent.push(connection);
    }
    assert!(!silent.is_empty());
    let begun = Instant::now();
    let status = json(&scene.agent, &["status", "-j"], 0);
    assert_eq!(status["enforcing"], true, "{status}");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    let closed = closed(&scene.world);
    scene
        .agent
        .write_policy("policy.yaml", &closed.text())
        .unwrap();
    json(&scene.agent, &["reload", "--wait", "-j"], 0);
    scene.world.check_contained(&scene.free.tenant).unwrap();
}

#[test]
fn reload_that_waits_returns_when_the_policy_is_in_force() {
    let scene = Scene::new();
    for round in 0..5 {
        for (policy, free) in [(closed(&scene.world), false), (exempt(&scene.world), true)] {
            scene
                .agent
                .write_policy("policy.yaml", &policy.text())
                .unwrap();
            let said = scene.agent.command(&["reload", "--wait"]).unwrap();
            assert_eq!(said.code, Some(0), "round {round}: {said:?}");
            let tenant = &scene.free.tenant;
            let result = match free {
                true => scene.world.check_free(tenant),
                false => scene.world.check_contained(tenant),
            };
            result.unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        }
    }
}

#[test]
fn reload_of_a_set_with_a_mistake_names_its_place() {
    let scene = Scene::new();
    let broken = exempt(&scene.world).text() + "nonsense: 1\n";
    let line = broken.lines().count();
    scene.agent.write_policy("policy.yaml", &broken).unwrap();
    let said = scene.agent.command(&["reload", "--wait"]).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    let place = format!("policy.yaml:{line}:1");
    assert!(said.out.contains(&place), "{said:?}");
    // Whoever comes later reads it, too.
    for command in ["status", "doctor"] {
        let told = scene.agent.command(&[command]).unwrap();
        assert!(told.out.contains(&place), "{told:?}");
    }
    scene.world.check_free(&scene.free.tenant).unwrap();
}

#[test]
fn list_and_status_tell_of_containers_with_the_agent_alive_and_dead() {
    let mut scene = Scene::new();
    let own = Network::own(104, "veth104i0");
    let other = scene.world.container("nobodys", &own).unwrap();
    scene.world.settle(&other).unwrap();
    let name = scene.world.below("free");
    let workload = |listed: &Value, name: &str| {
        let all = listed["workloads"].as_array().unwrap();
        all.iter()
            .find(|workload| workload["name"] == name)
            .cloned()
    };
    let listed = json(&scene.agent, &["list", "workloads", "-j"], 0);
    let free = workload(&listed, &name).unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(free["kind"], "cgroup", "{free}");
    assert_eq!(free["customer"], "c-1", "{free}");
    assert_eq!(free["state"], "enforced", "{free}");
    assert_eq!(free["number"], scene.free.cgroup.id().unwrap(), "{free}");
    let veth = workload(&listed, "veth104i0").unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(veth["state"], "unassigned", "{veth}");
    let status = json(&scene.agent, &["status", "-j"], 0);
    assert_eq!(status["enforcing"], true, "{status}");
    scene.kill();
    let listed = json(&scene.agent, &["list", "workloads", "-j"], 0);
    let number = scene.free.cgroup.id().unwrap();
    let all = listed["workloads"].as_array().unwrap();
    let found = all.iter().any(|workload| workload["number"] == number);
    assert!(found, "{listed}");
    // What it left enforces, but nobody follows what changes.
    let status = json(&scene.agent, &["status", "-j"], 4);
    assert_eq!(status["agent"], "stopped", "{status}");
    assert_eq!(status["enforcing"], true, "{status}");
    let reload = said(&scene.agent, &["reload", "--wait"]);
    assert_eq!(reload.code, Some(4), "{reload:?}");
}

#[test]
fn diff_tells_what_the_files_would_change() {
    let mut scene = Scene::new();
    let same = json(&scene.agent, &["diff", "-j"], 0);
    assert_eq!(same["changes"], Value::Array(Vec::new()), "{same}");
    let broken = "schema: 1\nnonsense: [\n";
    scene.agent.write_policy("policy.yaml", broken).unwrap();
    assert_eq!(said(&scene.agent, &["diff", "-j"]).code, Some(1));
    // The running one, then the one that a dead agent kept.
    for alive in [true, false] {
        if !alive {
            scene.kill();
        }
        // Outside the folder that the agent reads, so that it does not run it meanwhile.
        let dir = scene.world.lab.folder("proposed").unwrap();
        std::fs::write(dir.join("policy.yaml"), closed(&scene.world).text()).unwrap();
        let changes = json(&scene.agent, &["diff", dir.to_str().unwrap(), "-j"], 0);
        let text = changes["changes"].to_string();
        assert!(text.contains("c-1-exemption"), "alive {alive}: {changes}");
    }
}

#[test]
fn teardown_opens_only_after_the_agent_is_dead() {
    let mut scene = Scene::new();
    let closed = scene
        .world
        .container("closed", &Network::own(104, "veth104i0"));
    let closed = closed.unwrap();
    scene.world.check_contained(&closed.tenant).unwrap();
    let refused = said(&scene.agent, &["teardown"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    scene.world.check_contained(&closed.tenant).unwrap();
    scene.kill();
    let rehearsed = json(&scene.agent, &["teardown", "--dry-run", "-j"], 0);
    assert_ne!(
        rehearsed["removed"],
        Value::Array(Vec::new()),
        "{rehearsed}"
    );
    scene.world.check_contained(&closed.tenant).unwrap();
    let done = json(&scene.agent, &["teardown", "-j"], 0);
    assert_eq!(done["errors"], Value::Array(Vec::new()), "{done}");
    scene.world.wait_free(&closed.tenant).unwrap();
    assert!(scene.world.pinned_objects().unwrap_or_default().is_empty());
    // From nothing, as on the first day.
    scene.agent.restart().unwrap();
    scene.world.wait_contained(&closed.tenant).unwrap();
    scene.world.wait_free(&scene.free.tenant).unwrap();
}

/// An agent with an exempt container.
struct Scene {
    agent: Agent,
    free: Container,
    world: World,
}

impl Scene {
    #[track_caller]
    fn new() -> Self {
        let world = World::new().unwrap();
        let agent = world.agent_with(world.settings(), &exempt(&world)).unwrap();
        let free = world.container("free", &Network::Hypervisor).unwrap();
        world.wait_free(&free.tenant).unwrap();
        Self { agent, free, world }
    }

    #[track_caller]
    fn kill(&mut self) {
        self.agent.signal(Signal::SIGKILL).unwrap();
        self.agent.process().wait(LIMIT).unwrap();
    }
}

fn closed(world: &World) -> PolicyText {
    PolicyText::default().container("c-1", &world.below("free"))
}

fn exempt(world: &World) -> PolicyText {
    closed(world).exempt("c-1")
}

#[track_caller]
fn said(agent: &Agent, args: &[&str]) -> Said {
    agent.command(args).unwrap()
}

/// What a command prints that ends with this code.
#[track_caller]
fn json(agent: &Agent, args: &[&str], code: i32) -> Value {
    let said = said(agent, args);
    assert_eq!(said.code, Some(code), "{args:?}: {said:?}");
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}
