//! A local user who has nothing to do with gate25 tries what he can.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    time::Duration,
};

use gate25_tests::{NetNs, PolicyText, Privileges, Said, User, World, binary};

const LIMIT: Duration = Duration::from_secs(10);
const PINS: &str = "/sys/fs/bpf/gate25";

#[test]
fn stranger_reads_and_changes_nothing_of_gate25s() {
    let world = World::new().unwrap();
    let closed = world.guest(101, "tap101i0").unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let mut agent = world.agent(&policy).unwrap();
    let host = &world.hosting.hypervisor;
    let pid = agent.process().id().to_string();
    let config = agent.config();
    let program = binary().unwrap();
    let link = world.pinned_link("tap101i0").unwrap();
    let table = link
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("CUSTOMERS");
    let (program, config) = (program.to_str().unwrap(), config.to_str().unwrap());
    let (link, table) = (link.to_str().unwrap(), table.to_str().unwrap());
    let policy_file = agent.policy_dir().join("policy.yaml");
    let another = agent.policy_dir().join("more.yaml");
    let kept = "/var/lib/gate25/last-known-good.json";
    let memory = format!("/proc/{pid}/mem");
    let variables = format!("/proc/{pid}/environ");
    let before = fs::read(&policy_file).unwrap();
    for attempt in [
        // Tables and programs.
        vec!["ls", "/sys/fs/bpf"],
        vec!["ls", PINS],
        vec!["bpftool", "map", "dump", "pinned", table],
        vec!["bpftool", "link", "detach", "pinned", link],
        vec!["bpftool", "map", "show", "id", "1"],
        vec!["rm", "--", link],
        vec!["mkdir", "/sys/fs/bpf/gate26"],
        // The control socket.
        vec![program, "status", "--config", config],
        vec![
            program,
            "reload",
            "--wait",
            "--accept-shrink",
            "--config",
            config,
        ],
        vec!["rm", "/run/gate25/control.sock"],
        vec!["mv", "/run/gate25", "/run/gate26"],
        // What is kept, and the policy.
        vec!["ls", "/var/lib/gate25"],
        vec!["cat", kept],
        vec!["rm", kept],
        vec!["cp", "/dev/null", policy_file.to_str().unwrap()],
        vec!["touch", another.to_str().unwrap()],
        vec!["cp", "/dev/null", config],
        // The agent.
        vec!["kill", "-KILL", &pid],
        vec!["cat", &memory],
        vec!["cat", &variables],
        vec!["strace", "-p", &pid],
        // Commands that act on the kernel.
        vec![program, "teardown", "--config", config],
        vec![program, "prepare", "--config", config],
        vec![program, "run", "--config", config],
        vec!["nft", "flush", "ruleset"],
        vec!["ip", "link", "set", "tap101i0", "name", "other0"],
    ] {
        let said = as_stranger(host, &attempt);
        // Neither done, nor never tried for want of the program.
        assert!(
            said.code.is_some_and(|code| !matches!(code, 0 | 126 | 127)),
            "{attempt:?}: {said:?}"
        );
        let quotes_policy = said.out.contains("c-1") || said.err.contains("c-1");
        assert!(!quotes_policy, "{attempt:?}: {said:?}");
    }
    assert_eq!(fs::read(&policy_file).unwrap(), before);
    assert!(!another.exists());
    assert!(agent.process().status().unwrap().is_none());
    world.check_closed(&closed).unwrap();
    let status = agent.command(&["status"]).unwrap();
    assert_eq!(status.code, Some(0), "{status:?}");
}

#[test]
fn stranger_cannot_read_a_policy_as_the_package_lays_it_out() {
    let postinst = include_str!("../../../deploy/debian/postinst");
    assert!(postinst.contains("install -d -m 0750 -g gate25 /etc/gate25/policy.d"));
    let world = World::new().unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let agent = world.agent(&policy).unwrap();
    let host = &world.hosting.hypervisor;
    let folder = agent.policy_dir();
    chown(&folder, Some(0), Some(User::AGENT)).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o750)).unwrap();
    let words = [
        "exempt",
        "add",
        "news",
        "--customer",
        "c-1",
        "--reason",
        "PTR checked",
        "--ticket",
        "NOC-1",
        "--approved-by",
        "noc",
        "--for",
        "1h",
        "--to",
        "any",
        "--file",
        "exemptions.yaml",
        "--wait",
    ];
    // The agent reads it, and whoever looks for it does not.
    let added = agent.command(&words).unwrap();
    assert_eq!(added.code, Some(0), "{added:?}");
    let file = folder.join("exemptions.yaml");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o640, 0, User::AGENT)
    );
    for file in [file, folder.join("policy.yaml"), folder] {
        let path = file.to_str().unwrap();
        for attempt in [["cat", path], ["ls", path]] {
            let said = as_stranger(host, &attempt);
            assert!(
                said.code.is_some_and(|code| !matches!(code, 0 | 126 | 127)),
                "{attempt:?}: {said:?}"
            );
        }
    }
}

#[test]
fn file_of_root_that_a_group_may_write_is_left_and_its_owner_is_named() {
    const NOC: u32 = 59_030;
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1");
    let agent = world.agent(&policy).unwrap();
    let folder = agent.policy_dir();
    let file = folder.join("policy.yaml");
    for (path, mode) in [(&folder, 0o2775), (&file, 0o664)] {
        chown(path, Some(0), Some(NOC)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let before = fs::read(&file).unwrap();
    let member = Privileges::User(User {
        id: User::STRANGER,
        groups: vec![NOC],
        capabilities: Vec::new(),
    });
    let mut words = member.command();
    words.push(binary().unwrap().to_str().unwrap().to_owned());
    words.extend(["exempt", "revoke", "c-1-exemption", "--config"].map(str::to_owned));
    words.push(agent.config().to_str().unwrap().to_owned());
    let mut command = world.hosting.hypervisor.command(&words[0]);
    command.args(&words[1..]);
    let said = world.hosting.hypervisor.ask(command, LIMIT).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("belongs to user 0"), "{said:?}");
    assert!(said.err.contains("owner or root"), "{said:?}");
    assert_eq!(fs::read(&file).unwrap(), before);
    let names = fs::read_dir(&folder).unwrap();
    assert_eq!(names.count(), 1);
}

#[track_caller]
fn as_stranger(host: &NetNs, words: &[&str]) -> Said {
    let before = Privileges::none().command();
    let mut command = host.command(&before[0]);
    command.args(&before[1..]).args(words);
    // Somebody's shell: where administrators' programs are found.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    host.ask(command, LIMIT).unwrap()
}
