//! Folders made ready for the agent's user, and what is in them.

use std::{collections::BTreeSet, fs, time::Duration};

use gate25_tests::Hosting;
use gate25_tests::{
    Agent, NetNs, PolicyText, Privileges, Said, Sender, Settings, User, World, binary, poll,
};

const LIMIT: Duration = Duration::from_secs(10);
const PINS: &str = "/sys/fs/bpf/gate25";

#[test]
fn pins_state_and_socket_are_the_agents_users_alone() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    let host = &world.hosting.hypervisor;
    poll("the policy to be kept", LIMIT, || {
        Ok(agent.log().contains("policy kept").then_some(()))
    })
    .unwrap();
    let own = User::AGENT;
    let pins = modes(host, PINS);
    assert!(pins.len() > 20, "{pins:?}");
    for (kind, owner, group, mode) in pins {
        assert_eq!((owner, group), (own, own));
        let right = if kind == "d" { "700" } else { "600" };
        assert_eq!(mode, right, "{kind}");
    }
    for (path, right) in [
        ("/var/lib/gate25", format!("d {own} {own} 700")),
        (
            "/var/lib/gate25/last-known-good.json",
            format!("f {own} {own} 600"),
        ),
        ("/run/gate25", format!("d {own} {own} 711")),
        // There is no group gate25 on the machine.
        ("/run/gate25/control.sock", format!("s {own} {own} 600")),
        // The agent's group may pass, and see nothing. The kernel adds the sticky bit.
        ("/sys/fs/bpf", format!("d 0 {own} 1710")),
    ] {
        let seen = host.exec("find", &[path, "-maxdepth", "0", "-printf", "%y %U %G %m"]);
        assert_eq!(seen.unwrap(), right, "{path}");
    }
    agent.stop().unwrap();
}

#[test]
fn agent_that_was_root_goes_on_as_its_user_and_back_without_a_gap() {
    let world = World::new().unwrap();
    let closed = world.guest(101, "tap101i0").unwrap();
    let host = &world.hosting.hypervisor;
    let mut agent = agent_of_root(&world);
    world.check_closed(&closed).unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    let forbidden = Sender::start(&closed.ns, to, Duration::from_millis(3)).unwrap();
    let links = world.covered_interfaces().unwrap();
    let before = agent.metrics().unwrap();
    agent.stop().unwrap();
    agent.settings().privileges = Privileges::default();
    agent.restart().unwrap();
    assert_eq!(owners(host), BTreeSet::from([User::AGENT]));
    agent.stop().unwrap();
    // Root does not go by what another user may have pinned, unless it is told to.
    agent.settings().privileges = Privileges::Root;
    agent.restart_unready().unwrap();
    let status = agent.process().wait(LIMIT).unwrap();
    assert_eq!(status.code(), Some(1));
    let log = agent.log();
    assert!(
        log.contains("prepare --user") && log.contains(PINS),
        "{log}"
    );
    let said = prepare(&agent, host, &["--user", "0", "--group", "0"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    agent.restart().unwrap();
    assert_eq!(owners(host), BTreeSet::from([0]));
    assert_eq!(world.covered_interfaces().unwrap(), links);
    agent.metrics().unwrap().check_not_below(&before).unwrap();
    let tally = forbidden.tally();
    assert!(tally.attempts() > 50, "{tally:?}");
    assert_eq!(tally.refused, tally.attempts(), "{tally:?}");
    world.check_closed(&closed).unwrap();
}

#[test]
fn pins_folder_taken_away_is_told_and_filled_again_once_root_has_made_it() {
    let world = World::new().unwrap();
    let closed = world.guest(101, "tap101i0").unwrap();
    let host = &world.hosting.hypervisor;
    let settings = Settings {
        more: "reload: {rescan: 1s}\n".to_owned(),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    let pinned = || {
        world
            .pinned_objects()
            .map(|pins| pins.into_keys().collect::<Vec<_>>())
    };
    let pins = pinned().unwrap();
    host.exec("umount", &["--lazy", "/sys/fs/bpf"]).unwrap();
    let text = poll("a warning", LIMIT, || {
        let status = agent.command(&["status"])?;
        let line = |line: &&str| line.contains("enforcement would end with this agent");
        Ok(status.out.lines().find(line).map(str::to_owned))
    })
    .unwrap();
    assert!(text.contains("gate25 prepare"), "{text}");
    world.check_closed(&closed).unwrap();
    // Made, and not given away yet.
    host.exec(
        "mount",
        &["-t", "bpf", "-o", "mode=755", "bpf", "/sys/fs/bpf"],
    )
    .unwrap();
    host.exec("mkdir", &["-m", "700", PINS]).unwrap();
    poll("another warning", LIMIT, || {
        let status = agent.command(&["status"])?;
        let told = status.out.contains("other agents are not kept away");
        Ok(told.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    world.check_closed(&closed).unwrap();
    let id = User::AGENT.to_string();
    let said = prepare(&agent, host, &["--user", &id, "--group", &id]);
    assert_eq!(said.code, Some(0), "{said:?}");
    poll("the pins", LIMIT, || {
        Ok((pinned().ok().as_ref() == Some(&pins)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    poll("no warning", LIMIT, || {
        let status = agent.command(&["status"])?;
        let told = status.out.contains("other agents are not kept away");
        Ok((!told).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
}

#[test]
fn start_on_a_host_that_nobody_has_prepared_says_what_to_do() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let config = world.lab.dir().join("gate25.yaml");
    fs::write(&config, "schema: 1\nbackend: ebpf\n").unwrap();
    let words = Privileges::default().command();
    let mut command = host.command(&words[0]);
    command.args(&words[1..]).arg(binary().unwrap());
    command.args(["run", "--config"]).arg(&config);
    let said = host.ask(command, LIMIT).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    let told = said.out + &said.err;
    assert!(told.contains("/sys/fs/bpf/gate25"), "{told}");
    assert!(told.contains("`gate25 prepare`, run by root"), "{told}");
}

#[test]
fn folders_that_others_use_are_not_given_away() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let agent = world.agent(&PolicyText::default()).unwrap();
    let config = agent.config();
    let rest = fs::read_to_string(&config).unwrap();
    host.exec("mkdir", &["/run/shared"]).unwrap();
    host.exec("touch", &["/run/shared/others"]).unwrap();
    for line in ["state_dir: /run/shared", "control: {socket: /run/shared/s}"] {
        fs::write(&config, format!("{rest}{line}\n")).unwrap();
        let id = User::AGENT.to_string();
        let said = prepare(&agent, host, &["--user", &id, "--group", &id]);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains("/run/shared holds"), "{said:?}");
        let owner = host.exec("stat", &["-c", "%u", "/run/shared"]).unwrap();
        assert_eq!(owner.trim(), "0");
    }
}

#[test]
fn pins_that_the_agents_user_has_led_elsewhere_are_not_given_away() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    agent.stop().unwrap();
    // A link to somebody else's folder, and another name of somebody else's pin.
    host.exec("mkdir", &["/sys/fs/bpf/others"]).unwrap();
    let link = format!("{PINS}/v0");
    host.exec("ln", &["-s", "/sys/fs/bpf/others", &link])
        .unwrap();
    let id = User::AGENT.to_string();
    let identity = ["--user", &id, "--group", &id];
    let said = prepare(&agent, host, &identity);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains(&link), "{said:?}");
    host.exec("rm", &[&link]).unwrap();
    let pin = format!("{}/HOST_COUNTERS", version(host));
    host.exec("mv", &[&pin, "/sys/fs/bpf/others/pin"]).unwrap();
    host.exec("chown", &["0:0", "/sys/fs/bpf/others/pin"])
        .unwrap();
    host.exec("ln", &["/sys/fs/bpf/others/pin", &pin]).unwrap();
    let said = prepare(&agent, host, &identity);
    assert_eq!(said.code, Some(1), "{said:?}");
    let owner = host
        .exec("stat", &["-c", "%u", "/sys/fs/bpf/others/pin"])
        .unwrap();
    assert_eq!(owner.trim(), "0");
}

#[test]
fn folders_that_the_agents_user_can_lead_to_are_not_given_away() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let agent = agent_of_root(&world);
    let config = agent.config();
    let rest = fs::read_to_string(&config).unwrap();
    // In a folder of the user's: a link of his to root's folder, one on the way to it, and one by his
    // name for a folder that is to be made. In a folder that everybody may write: another's.
    host.exec(
        "sh",
        &[
            "-ec",
            "mkdir /run/theirs /run/owned /run/owned/inner /run/open
             ln -s /run/owned /run/theirs/link
             ln -s /run/owned /run/root-link
             chown -h 59025:59025 /run/theirs /run/theirs/link
             chmod 1777 /run/open
             mkdir /run/open/strangers && chown 59026:59026 /run/open/strangers",
        ],
    )
    .unwrap();
    let id = User::AGENT.to_string();
    for folder in [
        "/run/theirs/link",
        "/run/theirs/link/inner",
        "/run/theirs/new",
        "/run/theirs/link/new",
        "/run/root-link",
        "/run/open/strangers",
    ] {
        for line in [
            format!("state_dir: {folder}"),
            format!("control: {{socket: {folder}/s}}"),
        ] {
            fs::write(&config, format!("{rest}{line}\n")).unwrap();
            let said = prepare(&agent, host, &["--user", &id, "--group", &id]);
            assert_eq!(said.code, Some(1), "{line}: {said:?}");
        }
    }
    let owners = host.exec("stat", &["-c", "%u", "/run/owned", "/run/owned/inner"]);
    assert_eq!(owners.unwrap(), "0\n0\n");
    let stranger = host.exec("stat", &["-c", "%u", "/run/open/strangers"]);
    assert_eq!(stranger.unwrap().trim(), User::STRANGER.to_string());
    // Folders of root's on the way are made.
    fs::write(&config, format!("{rest}state_dir: /run/new/state\n")).unwrap();
    let said = prepare(&agent, host, &["--user", &id, "--group", &id]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let made = host.exec("stat", &["-c", "%u %a", "/run/new", "/run/new/state"]);
    assert_eq!(made.unwrap(), format!("0 755\n{id} 700\n"));
}

#[test]
fn pins_folder_that_leads_elsewhere_is_not_given_away() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let mut agent = agent_of_root(&world);
    agent.stop().unwrap();
    // As whoever may, where the filesystem is mounted for everybody.
    host.exec(
        "sh",
        &[
            "-ec",
            &format!("mv {PINS} /sys/fs/bpf/others && ln -s /sys/fs/bpf/others {PINS}"),
        ],
    )
    .unwrap();
    let id = User::AGENT.to_string();
    let said = prepare(&agent, host, &["--user", &id, "--group", &id]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let owner = host.exec("stat", &["-c", "%u", "/sys/fs/bpf/others"]);
    assert_eq!(owner.unwrap().trim(), "0");
}

#[test]
fn settings_of_the_agents_user_say_nothing_of_what_root_gives_away() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let agent = agent_of_root(&world);
    let config = agent.config();
    host.exec("mkdir", &["/run/wanted"]).unwrap();
    let rest = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{rest}state_dir: /run/wanted\n")).unwrap();
    let id = User::AGENT.to_string();
    std::os::unix::fs::chown(&config, Some(User::AGENT), None).unwrap();
    let said = prepare(&agent, host, &["--user", &id, "--group", &id]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("chown root"), "{said:?}");
    let owner = host.exec("stat", &["-c", "%u", "/run/wanted"]).unwrap();
    assert_eq!(owner.trim(), "0");
}

#[test]
fn pins_folder_that_somebody_else_made_is_not_gone_by() {
    for (mode, owner) in [("0777", "0"), ("0700", "59026")] {
        let world = World::new().unwrap();
        let host = &world.hosting.hypervisor;
        host.exec("mkdir", &["-m", mode, PINS]).unwrap();
        host.exec("chown", &[owner, PINS]).unwrap();
        let settings = Settings {
            privileges: Privileges::Root,
            more: "backend: ebpf\n".to_owned(),
            ..Settings::default()
        };
        let files = [("policy.yaml", PolicyText::default().text())];
        let mut agent = Agent::start_unready(host, settings, &files).unwrap();
        let status = agent.process().wait(LIMIT).unwrap();
        assert_eq!(status.code(), Some(1));
        let log = agent.log();
        assert!(log.contains("the pins are not gone by"), "{log}");
        assert!(log.contains(PINS), "{log}");
    }
}

/// One that needs no preparation.
fn agent_of_root(world: &World) -> Agent {
    let settings = Settings {
        privileges: Privileges::Root,
        ..Settings::default()
    };
    world.agent_with(settings, &PolicyText::default()).unwrap()
}

#[track_caller]
fn prepare(agent: &Agent, host: &NetNs, identity: &[&str]) -> Said {
    let mut command = host.command(binary().unwrap());
    command.arg("prepare").args(identity);
    command.arg("--config").arg(agent.config());
    host.ask(command, LIMIT).unwrap()
}

#[track_caller]
fn owners(host: &NetNs) -> BTreeSet<u32> {
    modes(host, PINS)
        .into_iter()
        .map(|(_, owner, ..)| owner)
        .collect()
}

/// Kinds, owners, groups and modes of all that is in a folder, and of itself.
#[track_caller]
fn modes(host: &NetNs, folder: &str) -> Vec<(String, u32, u32, String)> {
    let listed = host.exec("find", &[folder, "-printf", "%y %U %G %m\\n"]);
    let listed = listed.unwrap();
    let parsed = listed.lines().map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [kind, owner, group, mode] = fields[..] else {
            panic!("{line}")
        };
        let number = |text: &str| text.parse().unwrap();
        (
            kind.to_owned(),
            number(owner),
            number(group),
            mode.to_owned(),
        )
    });
    parsed.collect()
}

/// The folder of the layout that the agent uses.
#[track_caller]
fn version(host: &NetNs) -> String {
    let found = host.exec(
        "find",
        &[PINS, "-name", "HOST_COUNTERS", "-printf", "%h\\n"],
    );
    found.unwrap().trim().to_owned()
}
