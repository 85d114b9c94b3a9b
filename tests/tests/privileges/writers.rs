//! Files that others than root and the agent could have written are not gone by.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
    time::Duration,
};

use gate25_tests::{Agent, PolicyText, User, World, binary, poll};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn policy_that_others_may_write_is_refused_and_the_running_one_stays() {
    let world = World::new().unwrap();
    let open = world.guest(101, "tap101i0").unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let agent = world.agent(&policy(&["c-1"])).unwrap();
    world.check_open(&open).unwrap();
    let folder = agent.policy_dir();
    let file = folder.join("policy.yaml");
    for (path, change, why) in [
        (&folder, Change::Mode(0o777), "can be written by everybody"),
        (&folder, Change::Mode(0o1777), "can be written by everybody"),
        (&file, Change::Mode(0o666), "can be written by everybody"),
        (
            &file,
            Change::Group(User::STRANGER),
            "can be written by group 59026",
        ),
        (
            &folder,
            Change::Group(User::STRANGER),
            "can be written by group 59026",
        ),
        (
            &file,
            Change::Owner(User::STRANGER),
            "belongs to user 59026",
        ),
        (
            &folder,
            Change::Owner(User::STRANGER),
            "belongs to user 59026",
        ),
    ] {
        // What somebody who may write there would do.
        agent
            .write_policy("policy.yaml", &policy(&["c-1", "c-2"]).text())
            .unwrap();
        change.to(path);
        let said = agent.command(&["reload", "--wait"]).unwrap();
        assert_eq!(said.code, Some(1), "{change:?} {path:?}: {said:?}");
        let told = said.out + &said.err;
        assert!(told.contains(why), "{change:?} {path:?}: {told}");
        world.check_closed(&closed).unwrap();
        world.check_open(&open).unwrap();
        Change::Owner(0).to(path);
        agent
            .write_policy("policy.yaml", &policy(&["c-1"]).text())
            .unwrap();
        let said = agent.command(&["reload", "--wait"]).unwrap();
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    // Whoever is in the agent's group may edit.
    Change::Group(User::AGENT).to(&folder);
    agent
        .write_policy("policy.yaml", &policy(&["c-1", "c-2"]).text())
        .unwrap();
    Change::Group(User::AGENT).to(&file);
    let said = agent.command(&["reload", "--wait"]).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    world.check_open(&closed).unwrap();
}

#[test]
fn policy_behind_a_way_that_others_may_change_is_refused() {
    let world = World::new().unwrap();
    let closed = world.guest(101, "tap101i0").unwrap();
    let shared = world.lab.folder("shared").unwrap();
    let inner = shared.join("policy.d");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("policy.yaml"), policy(&["c-1"]).text()).unwrap();
    let mut agent = world.agent(&policy(&[])).unwrap();
    agent.stop().unwrap();
    let folder = agent.policy_dir();
    fs::remove_dir_all(&folder).unwrap();
    symlink(&inner, &folder).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    agent.restart_unready().unwrap();
    let told = refusal(&agent);
    assert!(told.contains("can be written by everybody"), "{told}");
    assert!(told.contains("/shared "), "{told}");
    world.check_closed(&closed).unwrap();
    // Where only its owner may rename what is in it, it does not matter who else may add.
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    let said = agent.command(&["reload", "--wait"]).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    world.check_open(&closed).unwrap();
}

#[test]
fn start_on_a_policy_that_others_may_write_takes_the_one_last_accepted() {
    let world = World::new().unwrap();
    let open = world.guest(101, "tap101i0").unwrap();
    let closed = world.guest(102, "tap102i0").unwrap();
    let mut agent = world.agent(&policy(&["c-1"])).unwrap();
    poll("the policy to be kept", LIMIT, || {
        Ok(agent.log().contains("policy kept").then_some(()))
    })
    .unwrap();
    agent.stop().unwrap();
    agent
        .write_policy("policy.yaml", &policy(&["c-1", "c-2"]).text())
        .unwrap();
    Change::Mode(0o777).to(&agent.policy_dir());
    agent.restart_unready().unwrap();
    let told = refusal(&agent);
    assert!(told.contains("can be written by everybody"), "{told}");
    let source = [("source", "last_known_good")];
    agent
        .wait_metric("gate25_policy_source", &source, LIMIT, |value| value == 1.0)
        .unwrap();
    world.check_open(&open).unwrap();
    world.check_closed(&closed).unwrap();
}

#[test]
fn start_on_settings_that_others_may_write_ends_and_leaves_enforcement() {
    let world = World::new().unwrap();
    let closed = world.guest(101, "tap101i0").unwrap();
    let mut agent = world.agent(&policy(&[])).unwrap();
    agent.stop().unwrap();
    let elsewhere = world.lab.dir().join("observe.yaml");
    fs::write(&elsewhere, "schema: 1\nenforcement: observe\n").unwrap();
    Change::Mode(0o666).to(&elsewhere);
    let host = &world.hosting.hypervisor;
    let mut check = host.command(binary().unwrap());
    check.args(["check", "--config"]).arg(&elsewhere);
    let beforehand = host.ask(check, LIMIT).unwrap();
    assert_eq!(beforehand.code, Some(1), "{beforehand:?}");
    assert!(beforehand.out.contains("observe.yaml"), "{beforehand:?}");
    let mut command = host.command(binary().unwrap());
    command.args(["run", "--config"]).arg(&elsewhere);
    let said = host.ask(command, LIMIT).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("can be written by everybody"), "{said:?}");
    assert!(said.err.contains("observe.yaml"), "{said:?}");
    world.check_closed(&closed).unwrap();
}

/// What is done to a file or a folder.
#[derive(Debug, Clone, Copy)]
enum Change {
    Mode(u32),
    /// It belongs to the group, which may write.
    Group(u32),
    /// It belongs to the user, who alone may write.
    Owner(u32),
}

impl Change {
    #[track_caller]
    fn to(self, path: &Path) {
        let (owner, group, writers) = match self {
            Self::Mode(mode) => (0, 0, mode),
            Self::Group(group) => (0, group, 0o775),
            Self::Owner(owner) => (owner, 0, 0o755),
        };
        chown(path, Some(owner), Some(group)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(writers)).unwrap();
    }
}

/// What the agent says of the files that it has refused.
#[track_caller]
fn refusal(agent: &Agent) -> String {
    poll("the refusal", LIMIT, || {
        let log = agent.log();
        let line = log.lines().find(|line| line.contains("exposed"));
        Ok(line.map(str::to_owned))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()))
}

fn policy(exempt: &[&str]) -> PolicyText {
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .customer("c-2", "tap102i0");
    exempt.iter().fold(policy, |policy, id| policy.exempt(id))
}
