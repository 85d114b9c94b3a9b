//! Exemptions granted, prolonged and ended by the command, with the agent at work.
#![cfg(feature = "root")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use gate25_tests::{Agent, PolicyText, Said, World};

const FILE: &str = "policy.yaml";
const GRANT: [&str; 13] = [
    "exempt",
    "add",
    "news",
    "--customer",
    "c-1",
    "--reason",
    "newsletter: opt-in",
    "--ticket",
    "NOC-1",
    "--approved-by",
    "duty",
    "--to",
    "any",
];

#[test]
fn exemption_granted_opens_one_revoked_closes_and_the_agent_says_that_it_has_taken_it() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent(&base()).unwrap();
    world.check_closed(&guest).unwrap();
    let text = format!(
        "# by hand\n{}exemptions:  # none yet\n# end\n",
        base().text()
    );
    agent.apply_policy(FILE, &text).unwrap();
    let path = agent.policy_dir().join(FILE);
    // The group of the NOC keeps the file.
    chown(&path, None, Some(1)).unwrap();
    let granted = agent
        .command(&[&GRANT[..], &["--for", "1h", "--wait"]].concat())
        .unwrap();
    in_force(&granted);
    world.check_open(&guest).unwrap();
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.starts_with("# by hand\n"), "{written}");
    assert!(
        written.contains("exemptions:  # none yet\n  - id: news\n"),
        "{written}"
    );
    assert!(written.ends_with("    to: any\n# end\n"), "{written}");
    assert_eq!(fs::metadata(&path).unwrap().gid(), 1);
    let extended = agent
        .command(&["exempt", "extend", "news", "--by", "1h", "--wait"])
        .unwrap();
    in_force(&extended);
    world.check_open(&guest).unwrap();
    let revoked = agent
        .command(&["exempt", "revoke", "news", "--wait"])
        .unwrap();
    in_force(&revoked);
    world.check_closed(&guest).unwrap();
    let deleted = agent
        .command(&["exempt", "revoke", "news", "--delete", "--wait"])
        .unwrap();
    in_force(&deleted);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    world.check_closed(&guest).unwrap();
}

#[test]
fn directory_that_cannot_be_written_is_told_and_left_as_it_was() {
    let world = World::new().unwrap();
    let text = base().text() + "exemptions:\n";
    let files = [(FILE, &text)];
    let agent = Agent::start(&world.hosting.hypervisor, world.settings(), &files).unwrap();
    let host = &world.hosting.hypervisor;
    let dir = agent.policy_dir();
    let dir = dir.to_str().unwrap();
    host.exec("mount", &["--bind", dir, dir]).unwrap();
    host.exec("mount", &["-o", "remount,bind,ro", dir]).unwrap();
    let granted = agent
        .command(&[&GRANT[..], &["--for", "1h"]].concat())
        .unwrap();
    assert_eq!(granted.code, Some(1), "{granted:?}");
    assert!(granted.err.contains("Read-only file system"), "{granted:?}");
    assert!(granted.err.contains("nothing was written"), "{granted:?}");
    // What is only shown needs nothing.
    let shown = agent
        .command(&[&GRANT[..], &["--for", "1h", "--dry-run"]].concat())
        .unwrap();
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.out.contains("+  - id: news"), "{shown:?}");
    host.exec("umount", &[dir]).unwrap();
    assert_eq!(
        fs::read_to_string(agent.policy_dir().join(FILE)).unwrap(),
        text
    );
    assert_eq!(fs::read_dir(agent.policy_dir()).unwrap().count(), 1);
}

fn base() -> PolicyText {
    PolicyText::default().customer("c-1", "tap101i0")
}

/// The agent may have seen the file before it was asked.
#[track_caller]
fn in_force(said: &Said) {
    assert_eq!(said.code, Some(0), "{said:?}");
    let is_in_force = said.out.contains("applied: generation") || said.out.contains("are in force");
    assert!(is_in_force, "{said:?}");
}
