//! What an operator meets when something around the agent is wrong.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _, time::Duration};

use gate25_tests::{Agent, ForeignProgram, Network, PolicyText, Privileges, Settings, World, poll};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn program_attached_exclusively_by_others_is_told_and_enforcement_follows_when_it_goes() {
    let world = World::new().unwrap();
    let foreign = ForeignProgram::attach(&world.containers.root).unwrap();
    let mut agent = start_unready(&world, world.settings());
    poll("the foreign program to be told", LIMIT, || {
        let log = agent.log();
        let told = |line: &str| line.contains("ERROR") && line.contains("attached exclusively");
        Ok(log.lines().any(told).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let root = world.containers.root.path();
    let (code, page) = agent.get("/readyz").unwrap();
    assert_eq!(code, 503, "{page}");
    assert!(
        page.contains(&root) && page.contains("attached exclusively"),
        "{page}"
    );
    let said = agent.command(&["status"]).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("attached exclusively"), "{said:?}");
    // Connects are refused all the same: that hook is free.
    let container = world.container("closed", &Network::Hypervisor).unwrap();
    world.wait_contained(&container.tenant).unwrap();
    drop(foreign);
    agent.wait_ready(LIMIT).unwrap();
    world.check_contained(&container.tenant).unwrap();
    assert_eq!(agent.command(&["status"]).unwrap().code, Some(0));
    // It was said once, not at every try.
    let log = agent.log();
    assert_eq!(log.matches("without its program").count(), 1, "{log}");
}

#[test]
fn names_with_control_characters_reach_no_terminal_and_forge_no_line() {
    let world = World::new().unwrap();
    let agent = world
        .agent_with(world.settings(), &PolicyText::default())
        .unwrap();
    // What a tenant may call a cgroup: anything but a line break and a slash.
    let evil = b"e\x1b[2J\x1b]0;x\x07\r\x08\xc2\x9b31m\xe2\x80\xae\xff\t.scope";
    let folder = world.containers.root.dir().join(OsStr::from_bytes(evil));
    fs::create_dir(&folder).unwrap();
    poll("the cgroup to be listed", LIMIT, || {
        let said = agent.command(&["list", "workloads"])?;
        Ok(said.out.contains(".scope").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let below = world.below(&name);
    let commands: [&[&str]; 6] = [
        &["list", "workloads"],
        &["list", "workloads", "-j"],
        &["list", "workloads", "--unassigned", "--as-yaml"],
        &["status"],
        &["status", "-j"],
        &["explain", &below, "203.0.113.25"],
    ];
    for args in commands {
        let said = agent.command(args).unwrap();
        harmless(&said.out, args);
        harmless(&said.err, args);
    }
    for page in ["/metrics", "/metrics/customers", "/readyz"] {
        harmless(&agent.get(page).unwrap().1, &[page]);
    }
    harmless(&agent.log(), &["log"]);
    fs::remove_dir(&folder).unwrap();
}

#[test]
fn roots_that_changed_between_starts_are_judged_and_the_others_no_longer() {
    let world = World::new().unwrap();
    let settings = |name: &str| Settings {
        cgroups: vec![world.below(name)],
        ..Settings::default()
    };
    let roots = ["one", "other"].map(|name| world.containers.root.child(name).unwrap());
    let [one, other] = [0, 1].map(|number: usize| {
        let cgroup = roots[number].child("c").unwrap();
        world.container_in(cgroup).unwrap()
    });
    let mut agent = world
        .agent_with(settings("one"), &PolicyText::default())
        .unwrap();
    world.wait_contained(&one.tenant).unwrap();
    world.check_free(&other.tenant).unwrap();
    *agent.settings() = settings("other");
    agent.restart().unwrap();
    world.check_contained(&other.tenant).unwrap();
    world.check_free(&one.tenant).unwrap();
    // Without roots nobody's cgroup is judged.
    *agent.settings() = Settings::default();
    agent.restart().unwrap();
    world.check_free(&one.tenant).unwrap();
    world.check_free(&other.tenant).unwrap();
}

#[test]
fn service_manager_that_is_not_there_is_told_once_and_missed_by_nobody() {
    let world = World::new().unwrap();
    let mut settings = world.settings();
    let nowhere = world
        .lab
        .dir()
        .join("nowhere")
        .to_string_lossy()
        .into_owned();
    settings.env = vec![
        ("NOTIFY_SOCKET".to_owned(), nowhere.clone()),
        ("WATCHDOG_USEC".to_owned(), "100000".to_owned()),
    ];
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    for name in ["closed", "another"] {
        let container = world.container(name, &Network::Hypervisor).unwrap();
        world.wait_contained(&container.tenant).unwrap();
    }
    let log = agent.log();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("service manager"))
        .collect();
    assert_eq!(told.len(), 1, "{log}");
    // With what the kernel says.
    assert!(told[0].contains("No such file or directory"), "{told:?}");
}

#[test]
fn state_directory_that_is_put_right_gets_the_policy_at_the_next_rescan() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let folder = "/var/lib/state25";
    for (wrong, right) in [
        // Whoever may write there could have put a policy there.
        (["mkdir", "-m", "0777"], ["chmod", "0700", folder]),
        // No directory.
        (["touch", "--", "--"], ["rm", "--", folder]),
    ] {
        host.exec(wrong[0], &[&wrong[1..], &[folder][..]].concat())
            .unwrap();
        let mut settings = world.settings();
        settings.more = format!("state_dir: {folder}\nreload: {{rescan: 1s}}\n");
        // For another user `gate25 prepare` puts it right.
        settings.privileges = Privileges::Root;
        let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
        let container = world.container("closed", &Network::Hypervisor).unwrap();
        world.wait_contained(&container.tenant).unwrap();
        let status = agent.command(&["status", "-j"]).unwrap();
        assert_eq!(status.code, Some(0), "{status:?}");
        assert!(status.out.contains("not kept"), "{status:?}");
        assert!(status.out.contains(folder), "{status:?}");
        host.exec(right[0], &right[1..]).unwrap();
        poll("the policy to be kept", LIMIT, || {
            let status = agent.command(&["status", "-j"])?;
            Ok((!status.out.contains("not kept")).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        let kept = format!("{folder}/last-known-good.json");
        assert!(host.run(|| fs::exists(&kept)).unwrap().unwrap());
        // Nothing is repeated every second.
        let log = agent.log();
        let lines = log.lines().filter(|line| line.contains("is not kept"));
        assert_eq!(lines.count(), 1, "{log}");
        agent.stop().unwrap();
        host.exec("rm", &["-r", folder]).unwrap();
    }
}

#[track_caller]
fn start_unready(world: &World, settings: Settings) -> Agent {
    let files = [("policy.yaml", PolicyText::default().text())];
    Agent::start_unready(&world.hosting.hypervisor, settings, &files).unwrap()
}

/// Checks that text holds nothing that a terminal acts upon.
#[track_caller]
fn harmless(text: &str, source: &[&str]) {
    let bad = |one: &char| {
        let reorders = matches!(one, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}');
        reorders || (one.is_control() && !matches!(one, '\n' | '\t'))
    };
    let found: Vec<char> = text.chars().filter(bad).collect();
    assert!(found.is_empty(), "{source:?}: {found:?} in {text:?}");
}
