//! `gate25 doctor`: what is really broken is found and named, and nothing else is.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use gate25::control::client::Client;
use gate25::doctor::Kind;
use gate25_tests::{
    Agent, Feature, ForeignLink, ForeignProgram, Link, Network, Offload, PolicyText, Privileges,
    Pump, Settings, Tap, World, binary, poll, skip,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The agent has five seconds for an answer, and what is wrong is looked at again after one.
const LIMIT: Duration = Duration::from_secs(60);

/// What an agent says that can lead no connection elsewhere.
const LACKS: (&str, &str) = ("agent-warning", "agent");

/// What the doctor says.
struct Report {
    code: Option<i32>,
    agent: String,
    /// Kind and subject, errors first.
    findings: Vec<(String, String)>,
    text: String,
}

impl Report {
    /// A kernel without tcx leads no connection elsewhere, of which the agent warns, too.
    #[track_caller]
    fn is(&self, code: i32, findings: &[(&str, &str)]) {
        let mut found: Vec<(&str, &str)> = self
            .findings
            .iter()
            .map(|(kind, subject)| (kind.as_str(), subject.as_str()))
            .collect();
        if !Feature::Tcx.is_present().unwrap() && !findings.contains(&LACKS) {
            let count = found.len();
            found.retain(|finding| *finding != LACKS);
            assert_eq!(found.len() + 1, count, "{}", self.text);
        }
        assert_eq!(found, findings, "{}", self.text);
        assert_eq!(self.code, Some(code), "{}", self.text);
    }

    fn names(&self, kind: &str) -> bool {
        self.findings.iter().any(|(found, _)| found == kind)
    }
}

#[test]
fn doctor_of_a_healthy_host_finds_nothing() {
    let world = World::new().unwrap();
    let _veth = world.guest(101, "tap101i0").unwrap();
    let _tap = world.guest_by(102, "tap102i0", Link::BridgedTap).unwrap();
    let _routed = world.guest_by(103, "veth103i0", Link::RoutedVeth).unwrap();
    let own = Network::Own {
        number: 110,
        interface: "veth110i0".to_owned(),
        link: Link::BridgedVeth,
    };
    let container = world.container("ct1", &own).unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let settings = Settings {
        // Without them the container's connections would hang after a revocation, which is told.
        privileges: Privileges::and(&["sys_admin", "sys_ptrace"]),
        ..world.settings()
    };
    let agent = world.agent_with(settings, &policy).unwrap();
    world.settle(&container).unwrap();
    let report = healthy(&world, &agent);
    assert_eq!(report.agent, "running");
    let said = agent.command(&["doctor"]).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.ends_with("nothing is wrong\n"), "{said:?}");
}

#[test]
fn doctor_of_a_host_with_filters_finds_nothing_but_a_program_before_them() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let settings = Settings {
        args: ["--attach", "filter"].map(str::to_owned).into(),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    wait_for(&world, &agent, |report| report.findings.len() == 1).is(0, &[LACKS]);
    if !Feature::Tcx.is_present().unwrap() {
        return;
    }
    let index = world.index("tap101i0").unwrap();
    let host = &world.hosting.hypervisor;
    let _before = ForeignLink::tcx_first(host, index).unwrap();
    doctor(&world, &agent).is(1, &[("program-not-first", "tap101i0"), LACKS]);
}

#[test]
fn doctor_of_a_host_with_nftables_finds_nothing_but_what_the_backend_lacks() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let settings = Settings {
        more: "backend: nftables\n".to_owned(),
        ..Settings::default()
    };
    let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    let lacks = |report: &Report| !report.names("guard-missing");
    wait_for(&world, &agent, lacks).is(0, &[LACKS]);
    // What an agent that is dead has left covers all the same, until somebody takes it away.
    agent.stop().unwrap();
    doctor(&world, &agent).is(1, &[("agent-stopped", "agent")]);
    let host = &world.hosting.hypervisor;
    let chain = format!("i_{}", world.index("tap101i0").unwrap());
    host.exec("nft", &["flush", "chain", "netdev", "gate25", &chain])
        .unwrap();
    doctor(&world, &agent).is(
        1,
        &[("program-missing", "tap101i0"), ("agent-stopped", "agent")],
    );
}

#[test]
fn doctor_names_what_somebody_broke_behind_the_agents_back() {
    if Feature::Tcx.is_missing().unwrap() {
        return;
    }
    let world = World::new().unwrap();
    let _guests = [
        world.guest(101, "tap101i0").unwrap(),
        world.guest(102, "tap102i0").unwrap(),
        world.guest(103, "tap103i0").unwrap(),
        world.guest(104, "tap104i0").unwrap(),
    ];
    let agent = steady(&world);
    let host = &world.hosting.hypervisor;
    let index = |name| world.index(name).unwrap();

    let pin = world.pinned_link("tap101i0").unwrap();
    host.exec(
        "bpftool",
        &["link", "detach", "pinned", pin.to_str().unwrap()],
    )
    .unwrap();
    let before = ForeignLink::tcx_first(host, index("tap102i0")).unwrap();
    let xdp = ForeignLink::xdp(host, index("tap103i0")).unwrap();
    let behind = ForeignLink::tcx_last(host, index("tap104i0")).unwrap();
    doctor(&world, &agent).is(
        1,
        &[
            ("program-missing", "tap101i0"),
            ("program-not-first", "tap102i0"),
            ("xdp-program", "tap103i0"),
            ("interface-program-foreign", "tap104i0"),
        ],
    );
    drop((before, xdp));
    doctor(&world, &agent).is(
        1,
        &[
            ("program-missing", "tap101i0"),
            ("interface-program-foreign", "tap104i0"),
        ],
    );
    drop(behind);
}

#[test]
fn doctor_names_an_interface_whose_owner_is_not_in_the_tables() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let agent = steady(&world);
    let map = world.pinned_link("tap101i0").unwrap();
    let map = map.ancestors().nth(2).unwrap().join("INTERFACES");
    let key = world.index("tap101i0").unwrap().to_le_bytes();
    let mut words = vec!["map", "delete", "pinned", map.to_str().unwrap(), "key"];
    let key = key.map(|byte| byte.to_string());
    words.extend(key.iter().map(String::as_str));
    world.hosting.hypervisor.exec("bpftool", &words).unwrap();
    doctor(&world, &agent).is(1, &[("owner-missing", "tap101i0")]);
}

#[test]
fn doctor_names_programs_of_others_on_a_root() {
    let world = World::new().unwrap();
    let root = &world.containers.root;
    let agent = world
        .agent_with(world.settings(), &PolicyText::default())
        .unwrap();
    healthy(&world, &agent);
    let beside = ForeignProgram::attach_beside(root).unwrap();
    // It can open nothing.
    doctor(&world, &agent).is(0, &[("cgroup-program-foreign", &root.path())]);
    drop(beside);
    healthy(&world, &agent);
}

#[test]
fn doctor_names_a_root_that_somebody_keeps_for_himself() {
    let world = World::new().unwrap();
    let root = &world.containers.root;
    let _alone = ForeignProgram::attach(root).unwrap();
    let host = &world.hosting.hypervisor;
    let files = [("policy.yaml", PolicyText::default().text())];
    let agent = Agent::start_unready(host, world.settings(), &files).unwrap();
    poll("the agent to say so", LIMIT, || {
        let said = agent.get("/readyz").ok();
        Ok(said.filter(|(_, text)| text.contains("attached exclusively")))
    })
    .unwrap();
    let report = doctor(&world, &agent);
    assert_eq!(report.code, Some(1), "{}", report.text);
    let path = root.path();
    for kind in ["cgroup-program-missing", "cgroup-program-foreign"] {
        let finding = (kind.to_owned(), path.clone());
        assert!(report.findings.contains(&finding), "{}", report.text);
    }
}

#[test]
fn doctor_names_interfaces_that_lead_past_the_hosts_stack() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    healthy(&world, &agent);
    let host = &world.hosting.hypervisor;
    host.ip("link add mvtap0 link wan0 type macvtap mode bridge
             link add mvlan0 link wan0 type macvlan mode bridge")
        .unwrap();
    let mut expected = vec![
        ("bypassing-interface", "mvlan0"),
        ("bypassing-interface", "mvtap0"),
    ];
    // A macvlan's parent takes no ipvlan.
    host.ip("link add dummy0 type veth peer name dummy1")
        .unwrap();
    if host.ip("link add ipvl0 link dummy0 type ipvlan").is_ok() {
        expected.insert(0, ("bypassing-interface", "ipvl0"));
    } else {
        skip("this kernel has no ipvlan").unwrap();
    }
    doctor(&world, &agent).is(1, &expected);
    agent
        .wait_metric(
            "gate25_coverage_findings",
            &[("kind", "bypassing-interface")],
            LIMIT,
            |value| value == expected.len() as f64,
        )
        .unwrap();
}

#[test]
fn doctor_names_a_port_of_open_vswitch() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let host = &world.hosting.hypervisor;
    host.ip("link set tap101i0 nomaster").unwrap();
    let datapath = ["add-dp", "dp0"];
    if host.exec("ovs-dpctl", &datapath).is_err() {
        skip("no Open vSwitch: neither the module nor ovs-dpctl, or not both").unwrap();
        return;
    }
    host.exec("ovs-dpctl", &["add-if", "dp0", "tap101i0"])
        .unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    wait_for(&world, &agent, |report| !report.names("guard-missing"))
        .is(0, &[("openvswitch-port", "tap101i0")]);
}

/// A process that is called as QEMU is, and holds a tap or says what QEMU is told.
#[test]
fn doctor_names_guests_that_are_silent_or_served_by_others() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    healthy(&world, &agent);
    let host = &world.hosting.hypervisor;
    let qemu = world.lab.dir().join("qemu-system-x86_64");
    fs::copy("/bin/sh", &qemu).unwrap();
    let tap = Tap::new(host, "tap101i0", Offload::VnetHeader).unwrap();
    let other = Tap::new(host, "other0", Offload::VnetHeader).unwrap();
    // Duplicate addresses are looked for by frames that go out, not in.
    host.ip("link set tap101i0 up").unwrap();
    let words = [
        qemu.to_str().unwrap(),
        "-c",
        "sleep 600; true",
        "-name",
        "guest=web1",
        "-netdev",
        "vhost-user,id=net0,chardev=c0",
    ];
    let words = words.map(str::to_owned);
    let process = Pump::start_process(host, &words, tap, other).unwrap();
    let subject = format!("guest web1 (process {})", process.id());
    poll("the process to be called so", LIMIT, || {
        let line = fs::read(format!("/proc/{}/cmdline", process.id()))?;
        Ok(line.ends_with(b"chardev=c0\0").then_some(()))
    })
    .unwrap();
    world.wait_workloads(&agent, "unassigned", 1).unwrap();
    doctor(&world, &agent).is(1, &[("vhost-user", &subject), ("guest-silent", "tap101i0")]);
}

#[test]
fn doctor_names_a_guard_that_is_gone_or_changed() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    healthy(&world, &agent);
    agent.stop().unwrap();
    let host = &world.hosting.hypervisor;
    host.exec("nft", &["flush", "chain", "inet", "gate25_guard", "guest"])
        .unwrap();
    let stopped = ("agent-stopped", "agent");
    doctor(&world, &agent).is(1, &[stopped, ("guard-altered", "inet gate25_guard guest")]);
    host.exec("nft", &["flush", "ruleset"]).unwrap();
    doctor(&world, &agent).is(
        1,
        &[
            stopped,
            ("guard-missing", "bridge gate25_guard"),
            ("guard-missing", "inet gate25_guard"),
        ],
    );
    agent.restart().unwrap();
    healthy(&world, &agent);
}

#[test]
fn doctor_names_rules_of_others_where_guests_frames_pass() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    healthy(&world, &agent);
    let host = &world.hosting.hypervisor;
    for words in [
        "add table bridge theirs",
        "add chain bridge theirs in { type filter hook prerouting priority 0; }",
        "add table netdev theirs",
        "add chain netdev theirs in { type filter hook ingress device \"tap101i0\" priority 0; }",
        "add rule bridge theirs in meta mark & 0x10000000 == 0x10000000 counter",
    ] {
        host.exec("nft", &[words]).unwrap();
    }
    doctor(&world, &agent).is(
        0,
        &[
            ("mark-shared", "nftables bridge theirs in"),
            ("foreign-chains", "bridge theirs"),
            ("foreign-chains", "netdev theirs"),
        ],
    );
}

#[test]
fn doctor_without_an_agent_looks_at_what_it_left() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let mut agent = world
        .agent_with(world.settings(), &PolicyText::default())
        .unwrap();
    healthy(&world, &agent);
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    let report = doctor(&world, &agent);
    report.is(1, &[("agent-stopped", "agent")]);
    assert_eq!(report.agent, "stopped");
    let _new = world.guest(102, "tap102i0").unwrap();
    doctor(&world, &agent).is(
        1,
        &[("program-missing", "tap102i0"), ("agent-stopped", "agent")],
    );
    let done = agent.command(&["teardown"]).unwrap();
    assert_eq!(done.code, Some(0), "{done:?}");
    let report = doctor(&world, &agent);
    for kind in [
        "program-missing",
        "cgroup-program-missing",
        "guard-missing",
        "agent-stopped",
    ] {
        assert!(report.names(kind), "{kind}: {}", report.text);
    }
}

#[test]
fn doctor_names_a_guest_that_a_suspended_agent_does_not_see() {
    let world = World::new().unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    healthy(&world, &agent);
    agent.signal(Signal::SIGSTOP).unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let report = doctor(&world, &agent);
    report.is(
        1,
        &[("program-missing", "tap101i0"), ("agent-silent", "agent")],
    );
    assert_eq!(report.agent, "silent");
    agent.signal(Signal::SIGCONT).unwrap();
    healthy(&world, &agent);
}

#[test]
fn doctor_names_files_that_are_open_or_not_valid() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    healthy(&world, &agent);
    let folder = agent.policy_dir();
    let host = &world.hosting.hypervisor;
    let socket = Path::new("/run/gate25/control.sock");
    let pins = Path::new("/sys/fs/bpf/gate25");
    host.run(|| {
        let open = |path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        open(folder.as_path(), 0o777);
        open(socket, 0o666);
        open(pins, 0o755);
    })
    .unwrap();
    let name = folder.to_str().unwrap();
    // The agent, too, takes nothing from there now.
    let report = wait_for(&world, &agent, |report| report.names("reload-refused"));
    report.is(
        1,
        &[
            ("reload-refused", "policy"),
            ("policy-writable", name),
            ("socket-open", "/run/gate25/control.sock"),
            ("pins-open", "/sys/fs/bpf/gate25"),
        ],
    );
    host.run(|| {
        let close = |path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        close(folder.as_path(), 0o755);
        close(socket, 0o600);
        close(pins, 0o700);
    })
    .unwrap();
    let mistaken = PolicyText::default().text() + "nonsense: 7\n";
    agent.write_policy("policy.yaml", &mistaken).unwrap();
    let report = wait_for(&world, &agent, |report| report.names("reload-refused"));
    report.is(1, &[("reload-refused", "policy"), ("policy-invalid", name)]);
    assert!(report.text.contains("nonsense"), "{}", report.text);
}

#[test]
fn doctor_of_somebody_else_names_what_it_could_not_look_at() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    let copy = world.lab.dir().join("gate25");
    fs::copy(binary().unwrap(), &copy).unwrap();
    let host = &world.hosting.hypervisor;
    let mut command = host.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["doctor", "-j", "--config"])
        .arg(agent.config());
    let report = read(host.ask(command, LIMIT).unwrap());
    assert_eq!(report.code, Some(1), "{}", report.text);
    assert_eq!(report.agent, "hidden");
    let unseen: Vec<&str> = report
        .findings
        .iter()
        .filter(|(kind, _)| kind == "not-examined")
        .map(|(_, subject)| subject.as_str())
        .collect();
    for part in ["gate25's pins", "agent", "nft", "/var/lib/gate25"] {
        assert!(unseen.contains(&part), "{part}: {}", report.text);
    }
    // Nothing that it could not see is said to be wrong.
    assert_eq!(unseen.len(), report.findings.len(), "{}", report.text);
}

#[test]
fn findings_of_the_agent_are_metrics_and_are_told_to_who_asks() {
    let world = World::new().unwrap();
    let _guest = world.guest(101, "tap101i0").unwrap();
    let settings = Settings {
        // Nobody is told of an XDP program.
        more: "reload: {rescan: 1s}\n".to_owned(),
        // Whose network a virtual machine of the machine's is in, root alone sees.
        privileges: Privileges::Root,
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    let name = "gate25_coverage_findings";
    let metrics = agent.metrics().unwrap();
    for kind in ["program-missing", "xdp-program", "not-examined"] {
        let value = metrics.sum(name, &[("kind", kind)]);
        assert_eq!(value, Some(0.0), "{kind}");
    }
    agent
        .wait_metric(
            "gate25_coverage_last_look_timestamp_seconds",
            &[],
            LIMIT,
            |value| value > 0.0,
        )
        .unwrap();
    assert_eq!(agent.metrics().unwrap().sum(name, &[]), Some(0.0));
    let host = &world.hosting.hypervisor;
    let index = world.index("tap101i0").unwrap();
    let _xdp = ForeignLink::xdp(host, index).unwrap();
    let found = [("kind", "xdp-program")];
    agent
        .wait_metric(name, &found, LIMIT, |value| value == 1.0)
        .unwrap();
    assert!(agent.log().contains("xdp-program"), "{}", agent.log());
    let socket = Path::new("/run/gate25/control.sock");
    let told = host
        .run(|| Client::new(socket).findings())
        .unwrap()
        .unwrap();
    let found: Vec<_> = told
        .findings
        .iter()
        .map(|it| (it.kind, it.subject.as_str()))
        .collect();
    assert_eq!(found, [(Kind::XdpProgram, "tap101i0")]);
}

fn doctor(world: &World, agent: &Agent) -> Report {
    let host = &world.hosting.hypervisor;
    let mut command = host.command(binary().unwrap());
    command
        .args(["doctor", "-j", "--config"])
        .arg(agent.config());
    read(host.ask(command, LIMIT).unwrap())
}

#[track_caller]
fn read(said: gate25_tests::Said) -> Report {
    let report: Value =
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap();
    Report {
        code: said.code,
        agent: word(&report, "agent"),
        findings: findings
            .iter()
            .map(|finding| (word(finding, "kind"), word(finding, "subject")))
            .collect(),
        text: said.out,
    }
}

/// An agent that sees to nothing by itself for a long time, and has put everything in place.
#[track_caller]
fn steady(world: &World) -> Agent {
    let settings = Settings {
        more: "reload: {rescan: 1h}\n".to_owned(),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    healthy(world, &agent);
    agent
}

#[track_caller]
fn healthy(world: &World, agent: &Agent) -> Report {
    let report = wait_for(world, agent, |report| report.findings.is_empty());
    report.is(0, &[]);
    report
}

/// The agent puts the guard in place, and its programs, a moment after it is ready.
#[track_caller]
fn wait_for(world: &World, agent: &Agent, right: impl Fn(&Report) -> bool) -> Report {
    let mut last = String::new();
    let found = poll("the doctor to find that", LIMIT, || {
        let report = doctor(world, agent);
        last.clone_from(&report.text);
        Ok(right(&report).then_some(report))
    });
    found.unwrap_or_else(|error| panic!("{error:#}: {last}"))
}
