//! What the agent keeps on disk, what it makes of damaged and vanished files, and what it tells
//! the service manager.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::Path,
    time::Duration,
};

use gate25_tests::{Agent, Container, Network, PolicyText, Privileges, World, poll};

const LIMIT: Duration = Duration::from_secs(10);
const KEPT: &str = "/var/lib/gate25/last-known-good.json";
const SOURCE: &str = "gate25_policy_source";

#[test]
fn broken_files_at_the_start_leave_the_set_that_was_last_accepted() {
    let mut scene = Scene::new();
    scene.stop_with_broken_files();
    scene.forget_pins();
    scene.agent.restart_unready().unwrap();
    scene.wait_source("last_known_good");
    scene.check_as_before();
    assert!(
        scene.agent.log().contains("policy refused"),
        "{}",
        scene.agent.log()
    );
    // Mended, they run without another start.
    scene
        .agent
        .write_policy("policy.yaml", &scene.policy.text())
        .unwrap();
    scene.agent.wait_ready(LIMIT).unwrap();
    scene.wait_source("files");
    scene.check_as_before();
}

#[test]
fn broken_files_at_a_first_start_close_everything() {
    let world = World::new().unwrap();
    let container = world.container("free", &Network::Hypervisor).unwrap();
    let files = [("policy.yaml", "schema: 1\nnonsense: [\n")];
    let host = &world.hosting.hypervisor;
    let agent = Agent::start_unready(host, world.settings(), &files).unwrap();
    world
        .wait_refused(&container.tenant)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let builtin = [("source", "builtin")];
    agent
        .wait_metric(SOURCE, &builtin, LIMIT, |value| value == 1.0)
        .unwrap();
}

#[test]
fn damaged_last_accepted_set_is_told_and_never_run() {
    let mut scene = Scene::new();
    let whole = scene.read_kept();
    scene.stop_with_broken_files();
    let half = whole[..whole.len() / 2].to_vec();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("half", half),
        ("one bit flipped", flipped),
        ("something else", b"{\"version\": 1}".to_vec()),
    ] {
        scene.write_kept(&bytes);
        // With what is in the kernel, that stays.
        scene.agent.restart_unready().unwrap();
        scene.wait_source("kernel");
        scene.check_as_before();
        let log = scene.agent.log();
        assert!(log.contains(KEPT), "{what}: {log}");
        scene.agent.stop().unwrap();
        // Without, all is closed.
        scene.write_kept(&bytes);
        scene.forget_pins();
        scene.agent.restart_unready().unwrap();
        scene.wait_source("builtin");
        scene.world.wait_refused(&scene.free.tenant).unwrap();
        scene.agent.stop().unwrap();
        // As it was, for the next one.
        scene.write_kept(&whole);
        scene.agent.restart_unready().unwrap();
        scene.wait_source("last_known_good");
        scene.agent.stop().unwrap();
    }
}

#[test]
fn full_disk_is_told_and_holds_nothing_up() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let folder = "/var/lib/full";
    host.exec("mkdir", &[folder]).unwrap();
    host.exec(
        "mount",
        &["-t", "tmpfs", "-o", "size=64k,mode=0700", "none", folder],
    )
    .unwrap();
    let ballast = Path::new(folder).join("ballast");
    // Until nothing more fits.
    host.run(|| fs::write(&ballast, vec![0; 1 << 20]))
        .unwrap()
        .unwrap_err();
    let mut settings = world.settings();
    settings.more = format!("state_dir: {folder}\n");
    // A folder that holds anything else is not given to another user.
    settings.privileges = Privileges::Root;
    let policy = exempt(&world);
    let mut agent = world.agent_with(settings, &policy).unwrap();
    let free = world.container("free", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    poll("the full disk to be told", LIMIT, || {
        let log = agent.log();
        let told = |line: &str| line.contains("ERROR") && line.contains("not kept");
        Ok(log.lines().any(told).then_some(()))
    })
    .unwrap();
    let said = agent.command(&["status", "-j"]).unwrap();
    assert!(said.out.contains("not kept"), "{said:?}");
    agent
        .apply_policy("policy.yaml", &closed(&world).text())
        .unwrap();
    world.wait_contained(&free.tenant).unwrap();
    // With room again the next set is kept.
    host.run(|| fs::remove_file(&ballast)).unwrap().unwrap();
    agent.apply_policy("policy.yaml", &policy.text()).unwrap();
    let mut names = String::new();
    poll("the policy to be kept", LIMIT, || {
        names = host.exec("ls", &["-A", folder])?;
        Ok((names.trim() == "last-known-good.json").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {names}\n{}", agent.log()));
    world.wait_free(&free.tenant).unwrap();
    agent.stop().unwrap();
}

#[test]
fn set_that_lost_most_of_itself_is_refused_until_somebody_accepts_it() {
    let world = World::new().unwrap();
    let many = many(&world, 30);
    let mut agent = world.agent_with(world.settings(), &many).unwrap();
    let free = world.container("free", &Network::Hypervisor).unwrap();
    world.wait_free(&free.tenant).unwrap();
    wait_kept(&world);
    agent
        .write_policy("policy.yaml", &closed(&world).text())
        .unwrap();
    let refused = "gate25_config_reload_failures_total";
    agent
        .wait_metric(refused, &[], LIMIT, |value| value == 1.0)
        .unwrap();
    world.check_free(&free.tenant).unwrap();
    let said = agent.command(&["reload", "--wait"]).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("--accept-shrink"), "{said:?}");
    world.check_free(&free.tenant).unwrap();
    // Neither does a start take it, nor a directory without files, nor none at all.
    agent.stop().unwrap();
    agent.restart_unready().unwrap();
    let left = [("source", "last_known_good")];
    agent
        .wait_metric(SOURCE, &left, LIMIT, |value| value == 1.0)
        .unwrap();
    world.check_free(&free.tenant).unwrap();
    let aside = agent.policy_dir().with_extension("aside");
    fs::rename(agent.policy_dir(), &aside).unwrap();
    for made in [false, true] {
        if made {
            fs::create_dir(agent.policy_dir()).unwrap();
        }
        let said = agent
            .command(&["reload", "--wait", "--accept-shrink"])
            .unwrap();
        assert_eq!(said.code, Some(1), "{said:?}");
        world.check_free(&free.tenant).unwrap();
    }
    fs::remove_dir(agent.policy_dir()).unwrap();
    fs::rename(&aside, agent.policy_dir()).unwrap();
    let said = agent
        .command(&["reload", "--wait", "--accept-shrink"])
        .unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    world.check_contained(&free.tenant).unwrap();
}

#[test]
fn service_manager_is_told_of_readiness_life_and_end() {
    let world = World::new().unwrap();
    let path = world.lab.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    // As systemd's: whoever runs the service may write to it.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut settings = world.settings();
    settings.env = vec![
        (
            "NOTIFY_SOCKET".to_owned(),
            path.to_string_lossy().into_owned(),
        ),
        ("WATCHDOG_USEC".to_owned(), "400000".to_owned()),
    ];
    let mut agent = world.agent_with(settings, &closed(&world)).unwrap();
    let ready = message(&socket, "READY=1");
    assert!(!ready.contains("WATCHDOG=1\nREADY"), "{ready}");
    let container = world.container("closed", &Network::Hypervisor).unwrap();
    world.check_contained(&container.tenant).unwrap();
    for _ in 0..3 {
        message(&socket, "WATCHDOG=1");
    }
    agent.stop().unwrap();
    message(&socket, "STOPPING=1");
}

/// An agent with an exempt container and a closed one, whose policy is kept.
struct Scene {
    agent: Agent,
    free: Container,
    closed: Container,
    policy: PolicyText,
    world: World,
}

impl Scene {
    #[track_caller]
    fn new() -> Self {
        let world = World::new().unwrap();
        let policy = exempt(&world);
        let agent = world.agent_with(world.settings(), &policy).unwrap();
        let free = world.container("free", &Network::Hypervisor).unwrap();
        let closed = world.container("closed", &Network::Hypervisor).unwrap();
        world.wait_free(&free.tenant).unwrap();
        wait_kept(&world);
        Self {
            agent,
            free,
            closed,
            policy,
            world,
        }
    }

    #[track_caller]
    fn stop_with_broken_files(&mut self) {
        self.agent.stop().unwrap();
        let broken = "schema: 1\nnonsense: [\n";
        self.agent.write_policy("policy.yaml", broken).unwrap();
    }

    /// What a reboot does.
    #[track_caller]
    fn forget_pins(&self) {
        let host = &self.world.hosting.hypervisor;
        host.exec("umount", &["--lazy", "/sys/fs/bpf"]).unwrap();
    }

    #[track_caller]
    fn wait_source(&self, source: &str) {
        self.agent
            .wait_metric(SOURCE, &[("source", source)], LIMIT, |value| value == 1.0)
            .unwrap_or_else(|error| panic!("{source}: {error:#}\n{}", self.agent.log()));
    }

    #[track_caller]
    fn check_as_before(&self) {
        self.world.check_free(&self.free.tenant).unwrap();
        self.world.check_contained(&self.closed.tenant).unwrap();
    }

    #[track_caller]
    fn read_kept(&self) -> Vec<u8> {
        let host = &self.world.hosting.hypervisor;
        host.run(|| fs::read(KEPT)).unwrap().unwrap()
    }

    #[track_caller]
    fn write_kept(&self, bytes: &[u8]) {
        let host = &self.world.hosting.hypervisor;
        host.run(|| fs::write(KEPT, bytes)).unwrap().unwrap();
    }
}

#[track_caller]
fn wait_kept(world: &World) {
    let host = &world.hosting.hypervisor;
    poll("the policy to be kept", LIMIT, || {
        Ok(host.run(|| fs::exists(KEPT))??.then_some(()))
    })
    .unwrap();
}

/// The next message that holds this line.
#[track_caller]
fn message(socket: &UnixDatagram, line: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let count = socket
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("no {line}: {error}"));
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if text.lines().any(|found| found == line) {
            return text;
        }
    }
}

fn closed(world: &World) -> PolicyText {
    PolicyText::default().container("c-1", &world.below("free"))
}

fn exempt(world: &World) -> PolicyText {
    closed(world).exempt("c-1")
}

/// The same with so many customers more.
fn many(world: &World, count: u32) -> PolicyText {
    (0..count).fold(exempt(world), |policy, number| {
        policy.customer(&format!("more-{number}"), &format!("tap7{number:03}i*"))
    })
}
