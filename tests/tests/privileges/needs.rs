//! What each capability is for: what is said, and what goes on without it.

use std::{collections::BTreeSet, fs, os::unix::fs::chown, time::Duration};

use gate25_tests::{
    Agent, Feature, ForeignLink, Hosting, NetNs, Network, Outcome, PolicyText, Privileges,
    Settings, User, World, binary, paced, poll,
};

const LIMIT: Duration = Duration::from_secs(10);
/// Sockets that are to be ended are, by then.
const SOON: Duration = Duration::from_secs(2);
/// Numbers of include/uapi/linux/capability.h.
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const BPF: u32 = 39;

#[test]
fn agent_runs_as_its_user_with_what_it_needs_and_gives_up_loading() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = world
        .agent_with(world.settings(), &PolicyText::default())
        .unwrap();
    world.check_closed(&guest).unwrap();
    let container = world.container("closed", &Network::Hypervisor).unwrap();
    world.wait_contained(&container.tenant).unwrap();
    for thread in threads(&mut agent) {
        assert_eq!(thread.users, BTreeSet::from([User::AGENT]));
        assert_eq!(thread.permitted, bits(&[BPF, NET_ADMIN]));
        assert_eq!(thread.effective, bits(&[BPF, NET_ADMIN]));
        assert_eq!(thread.ambient, bits(&[NET_ADMIN]));
        assert!(thread.gains_nothing);
    }
}

#[test]
fn agent_as_root_enforces_and_gives_up_what_it_does_not_use() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let settings = Settings {
        privileges: Privileges::Root,
        ..world.settings()
    };
    let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    world.check_closed(&guest).unwrap();
    for thread in threads(&mut agent) {
        assert_eq!(thread.users, BTreeSet::from([0]));
        // Files of other users, ports below 1024, what is needed, and no more.
        let most = bits(&[0, 1, 2, 10, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, BPF]);
        assert_eq!(thread.permitted & !most, 0, "{:x}", thread.permitted);
        let least = bits(&[NET_ADMIN, SYS_PTRACE, SYS_ADMIN, BPF]);
        assert_eq!(thread.permitted & least, least, "{:x}", thread.permitted);
        assert_eq!(thread.ambient, bits(&[NET_ADMIN]));
        assert!(thread.gains_nothing);
    }
}

#[test]
fn programs_that_the_agent_runs_have_one_capability_whoever_it_is() {
    let more = ["sys_admin", "sys_ptrace", "dac_read_search"];
    for privileges in [Privileges::and(&more), Privileges::Root] {
        let world = World::for_nftables().unwrap();
        let guest = world.guest(101, "tap101i0").unwrap();
        // An nft that writes down what it may before it does what it is asked for.
        let told = world.lab.folder("told").unwrap();
        world.lab.folder("bin").unwrap();
        let script = world.lab.dir().join("bin/nft");
        let told = told.display();
        let text = format!(
            "#!/bin/sh\ngrep Cap /proc/self/status >{told}/$$\nexec /usr/sbin/nft \"$@\"\n"
        );
        fs::write(&script, text).unwrap();
        let host = &world.hosting.hypervisor;
        host.exec("chmod", &["755", script.to_str().unwrap()])
            .unwrap();
        host.exec("chmod", &["1777", &told.to_string()]).unwrap();
        let bin = script.parent().unwrap().display();
        let settings = Settings {
            privileges,
            more: "backend: nftables\n".to_owned(),
            env: vec![("PATH".to_owned(), format!("{bin}:/usr/sbin:/usr/bin:/bin"))],
            ..Settings::default()
        };
        let _agent = world.agent_with(settings, &PolicyText::default()).unwrap();
        world.check_closed(&guest).unwrap();
        let mut seen = 0;
        for entry in fs::read_dir(told.to_string()).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            // One that is just being written.
            if text.lines().count() < 5 {
                continue;
            }
            seen += 1;
            for set in ["CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(set_of(&text, set), bits(&[NET_ADMIN]), "{set} {text}");
            }
        }
        assert!(seen > 0);
    }
}

#[test]
fn start_without_a_capability_that_it_needs_says_which_and_what_for() {
    let world = World::new().unwrap();
    let all = ["bpf", "perfmon", "net_admin"];
    for (missing, purpose) in [
        ("bpf", "loading programs and making their tables"),
        ("perfmon", "loading programs that compare addresses"),
        ("net_admin", "attaching programs"),
    ] {
        let kept: Vec<_> = all.into_iter().filter(|it| *it != missing).collect();
        let settings = Settings {
            privileges: Privileges::of_agent(&kept),
            more: "backend: ebpf\n".to_owned(),
            ..Settings::default()
        };
        let mut agent = start(&world, settings);
        let status = agent.process().wait(LIMIT).unwrap();
        assert_eq!(status.code(), Some(1));
        let log = agent.log();
        let name = format!("CAP_{} (", missing.to_uppercase());
        assert!(log.contains(&name) && log.contains(purpose), "{log}");
        for other in all.into_iter().filter(|it| *it != missing) {
            let name = format!("CAP_{} (", other.to_uppercase());
            assert!(!log.contains(&name), "{log}");
        }
    }
}

#[test]
fn host_without_the_capabilities_for_programs_is_enforced_by_nftables() {
    let world = World::new().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let settings = Settings {
        privileges: Privileges::of_agent(&["net_admin"]),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    world.check_closed(&guest).unwrap();
    let metrics = agent.metrics().unwrap();
    let fallback = [("backend", "nftables"), ("reason", "fallback")];
    assert_eq!(metrics.sum("gate25_backend_info", &fallback), Some(1.0));
    let log = agent.log();
    assert!(
        log.contains("CAP_BPF (") && log.contains("CAP_PERFMON ("),
        "{log}"
    );
}

#[test]
fn revocation_without_leave_to_enter_networks_ends_the_hosts_connections_and_tells_of_others() {
    for missing in ["sys_admin", "sys_ptrace"] {
        let world = World::new().unwrap();
        let policy = PolicyText::default().container("c-1", &world.below("free*"));
        // One of the two is no use without the other.
        let other = ["sys_admin", "sys_ptrace"]
            .into_iter()
            .find(|it| *it != missing);
        let settings = Settings {
            privileges: Privileges::and(&[other.unwrap()]),
            ..world.settings()
        };
        let exempt = policy.clone().exempt("c-1");
        let agent = world.agent_with(settings, &exempt).unwrap();
        let here = world.container("free-here", &Network::Hypervisor).unwrap();
        world.wait_free(&here.tenant).unwrap();
        assert_eq!(warning(&agent, "hang"), None);
        let own = Network::own(104, "veth104i0");
        let own = world.container("free-own", &own).unwrap();
        world.wait_free(&own.tenant).unwrap();
        let to = Hosting::EXCHANGER.v4_port(25);
        here.tenant.hold("held", to).unwrap();
        own.tenant.hold("held", to).unwrap();
        agent.apply_policy("policy.yaml", &policy.text()).unwrap();
        let cut = here.tenant.wait_cut("held").unwrap();
        let ended = matches!(cut.outcome, Outcome::Aborted | Outcome::Reset);
        assert!(ended && cut.took < SOON, "{cut}");
        let text = poll("a warning", LIMIT, || Ok(warning(&agent, "hang"))).unwrap();
        assert!(text.contains("CAP_SYS_ADMIN and CAP_SYS_PTRACE"), "{text}");
        // Its packets are dropped all the same.
        world.wait_contained(&own.tenant).unwrap();
        let before = world.witness.settled().unwrap();
        let hangs = own.tenant.write_until_cut("held").unwrap();
        assert_eq!(hangs.outcome, Outcome::TimedOut, "{hangs}");
        assert_eq!(world.witness.settled().unwrap(), before);
    }
}

#[test]
fn container_that_closes_its_cgroup_is_judged_and_hides_nobody_else() {
    // With a root above the containers, and with containers that are roots of their own. Closed whole, or so
    // that others may list what is in there and not enter it.
    for (roots, mode) in [("", "0700"), ("/*", "0700"), ("", "0744"), ("/*", "0744")] {
        let world = World::new().unwrap();
        let policy = PolicyText::default()
            .container("c-1", &world.below("free"))
            .exempt("c-1");
        let settings = |privileges| Settings {
            cgroups: vec![world.containers.root.path() + roots],
            privileges,
            ..world.settings()
        };
        let network = Network::own(104, "ct104");
        let closed = world.container("closed", &network).unwrap();
        let folder = closed.cgroup.dir();
        chown(folder, Some(User::STRANGER), None).unwrap();
        let _inside = closed.cgroup.child("inside").unwrap();
        let chmod = [mode, folder.to_str().unwrap()];
        world.hosting.hypervisor.exec("chmod", &chmod).unwrap();
        let mut agent = world
            .agent_with(settings(Privileges::default()), &policy)
            .unwrap();
        world.wait_contained(&closed.tenant).unwrap();
        // What happens in there is no reason to lose sight of the rest.
        let _later = closed.cgroup.child("later").unwrap();
        let free = world.container("free", &Network::Hypervisor).unwrap();
        world.wait_free(&free.tenant).unwrap();
        let text = poll("a warning", LIMIT, || {
            Ok(warning(&agent, "CAP_DAC_READ_SEARCH"))
        });
        let text = text.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        assert!(text.contains(&closed.cgroup.path()), "{text}");
        *agent.settings() = settings(Privileges::and(&["dac_read_search"]));
        agent.restart().unwrap();
        world.settle(&closed).unwrap();
        poll("the end of the warning", LIMIT, || {
            Ok(warning(&agent, "CAP_DAC_READ_SEARCH")
                .is_none()
                .then_some(()))
        })
        .unwrap();
        world.check_contained(&closed.tenant).unwrap();
    }
}

#[test]
fn closed_directory_on_the_way_to_roots_is_told_of_and_lets_no_root_go() {
    for mode in ["0700", "0744"] {
        let world = World::new().unwrap();
        let way = world.containers.root.child("way").unwrap();
        let rescan = paced(Duration::from_secs(1)).as_secs();
        let settings = Settings {
            cgroups: vec![way.path() + "/*"],
            more: format!("reload: {{rescan: {rescan}s}}\n"),
            ..world.settings()
        };
        let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
        let contained = world.container_in(way.child("contained").unwrap()).unwrap();
        world.wait_contained(&contained.tenant).unwrap();
        let folder = way.dir().to_str().unwrap();
        let host = &world.hosting.hypervisor;
        let is_told = || {
            let status = agent.command(&["status"])?;
            Ok::<_, anyhow::Error>(
                status
                    .out
                    .contains(&format!("below cgroup {} are not seen", way.path())),
            )
        };
        for (mode, told) in [(mode, true), ("0755", false)] {
            host.exec("chmod", &[mode, folder]).unwrap();
            poll("what is told of it", LIMIT, || {
                Ok((is_told()? == told).then_some(()))
            })
            .unwrap_or_else(|error| panic!("{mode}: {error:#}\n{}", agent.log()));
            world.check_contained(&contained.tenant).unwrap();
        }
    }
}

#[test]
fn processes_that_are_hidden_are_told_of_and_their_container_is_judged() {
    let world = World::new().unwrap();
    let network = Network::own(104, "veth104i0");
    let closed = world.container("closed", &network).unwrap();
    let host = &world.hosting.hypervisor;
    let options = ["-t", "proc", "-o", "hidepid=invisible", "proc", "/proc"];
    host.exec("mount", &options).unwrap();
    let agent = world
        .agent_with(world.settings(), &PolicyText::default())
        .unwrap();
    world.wait_contained(&closed.tenant).unwrap();
    poll("a warning", LIMIT, || Ok(warning(&agent, "hidepid")))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
}

#[test]
fn agents_user_may_reload_where_he_is_not_in_the_group() {
    let world = World::new().unwrap();
    // There is no group gate25 on the machine.
    let agent = world.agent(&PolicyText::default()).unwrap();
    let host = &world.hosting.hypervisor;
    for (words, code) in [(&["reload", "--wait"][..], 0), (&["bypass", "end"], 1)] {
        let before = Privileges::default().command();
        let mut command = host.command(&before[0]);
        command
            .args(&before[1..])
            .arg(binary().unwrap())
            .args(words);
        command.arg("--config").arg(agent.config());
        let said = host.ask(command, LIMIT).unwrap();
        assert_eq!(
            said.code,
            Some(code),
            "{words:?}: {said:?}\n{}",
            agent.log()
        );
    }
}

#[test]
fn socket_goes_to_its_group_if_the_agent_is_a_member_and_to_nobody_else_if_not() {
    let world = World::new().unwrap();
    let (name, group) = some_group(&world.hosting.hypervisor);
    for (groups, owner, mode) in [(vec![group], group, "660"), (vec![], User::AGENT, "600")] {
        let privileges = match Privileges::default() {
            Privileges::User(user) => Privileges::User(User { groups, ..user }),
            Privileges::Root => panic!("the agent's user is root"),
        };
        let settings = Settings {
            privileges,
            more: format!("control: {{group: {name}}}\n"),
            ..Settings::default()
        };
        let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
        let status = agent.command(&["status"]).unwrap();
        assert_eq!(status.code, Some(0), "{status:?}");
        let socket = ["-c", "%g %a", "/run/gate25/control.sock"];
        let seen = world.hosting.hypervisor.exec("stat", &socket).unwrap();
        assert_eq!(seen.trim(), format!("{owner} {mode}"));
        let warned = agent.log().contains("is not a member of the group");
        assert_eq!(warned, mode == "600", "{}", agent.log());
        agent.stop().unwrap();
    }
}

#[test]
fn findings_of_an_agent_that_is_not_root_are_told_and_leave_nothing_out() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let settings = Settings {
        // Nobody is told of a program before ours.
        more: "reload: {rescan: 1s}\n".to_owned(),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    let name = "gate25_coverage_findings";
    let index = world.index("tap101i0").unwrap();
    let _before = ForeignLink::tcx_first(&world.hosting.hypervisor, index).unwrap();
    let found = [("kind", "program-not-first")];
    agent
        .wait_metric(name, &found, LIMIT, |count| count == 1.0)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let unseen = [("kind", "not-examined")];
    assert_eq!(agent.metrics().unwrap().sum(name, &unseen), Some(0.0));
}

#[test]
fn ports_below_1024_take_a_capability_and_nothing_else_waits_for_them() {
    let world = World::new().unwrap();
    let closed = world.guest(101, "tap101i0").unwrap();
    let listen = Hosting::GATEWAY.v4_port(925);
    let settings = |privileges| Settings {
        privileges,
        more: format!("notice: {{listen: [\"{listen}\"], text: closed}}\n"),
        ..Settings::default()
    };
    let policy = PolicyText::default();
    let mut agent = world
        .agent_with(settings(Privileges::default()), &policy)
        .unwrap();
    world.check_closed(&closed).unwrap();
    let told = |agent: &Agent, state: &str| {
        let line = format!("{state} on {listen}");
        let status = agent.command(&["status"])?;
        Ok(status.out.contains(&line).then_some(()))
    };
    poll("the refusal", LIMIT, || told(&agent, "not listening")).unwrap();
    *agent.settings() = settings(Privileges::and(&["net_bind_service"]));
    agent.restart().unwrap();
    poll("the listener", LIMIT, || told(&agent, "\tlistening")).unwrap();
}

/// What a thread may do.
struct Thread {
    users: BTreeSet<u32>,
    permitted: u64,
    effective: u64,
    ambient: u64,
    gains_nothing: bool,
}

#[track_caller]
fn threads(agent: &mut Agent) -> Vec<Thread> {
    let folder = format!("/proc/{}/task", agent.process().id());
    let mut threads = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        // One that was just working for a moment is gone.
        let Ok(text) = fs::read_to_string(entry.unwrap().path().join("status")) else {
            continue;
        };
        let line = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap()
        };
        let users = line("Uid:").split_whitespace();
        threads.push(Thread {
            users: users.map(|user| user.parse().unwrap()).collect(),
            permitted: set_of(&text, "CapPrm:"),
            effective: set_of(&text, "CapEff:"),
            ambient: set_of(&text, "CapAmb:"),
            gains_nothing: line("NoNewPrivs:").trim() == "1",
        });
    }
    assert!(threads.len() > 2, "{}", threads.len());
    threads
}

#[track_caller]
fn set_of(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

fn bits(capabilities: &[u32]) -> u64 {
    capabilities
        .iter()
        .fold(0, |bits, number| bits | 1 << number)
}

/// The warning of the status that holds this.
fn warning(agent: &Agent, part: &str) -> Option<String> {
    let status = agent.command(&["status"]).ok()?;
    let mut lines = status.out.lines();
    let line = lines.find(|line| line.starts_with("warning") && line.contains(part));
    line.map(str::to_owned)
}

/// A group of the machine that is not root's.
#[track_caller]
fn some_group(host: &NetNs) -> (String, u32) {
    let groups = host.exec("cat", &["/etc/group"]).unwrap();
    let parsed = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?.parse().ok()?;
        (number != 0).then(|| (name.to_owned(), number))
    });
    parsed.unwrap()
}

#[track_caller]
fn start(world: &World, settings: Settings) -> Agent {
    let files = [("policy.yaml", PolicyText::default().text())];
    Agent::start_unready(&world.hosting.hypervisor, settings, &files).unwrap()
}
