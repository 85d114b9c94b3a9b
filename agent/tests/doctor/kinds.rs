//! One thing is wrong on a host on which all else is right: that one is found, and nothing else.

use std::collections::BTreeSet;
use std::path::PathBuf;

use gate25::control::messages::Mode;
use gate25::doctor::{Agent, Facts, Kind, Owner, Sample, Station, judge};
use gate25::kernel::functions::Function;
use gate25::kernel::guard::Placement;
use gate25::kernel::links;
use gate25::kernel::machines::Machine;

use crate::facts::{
    OURS, TAP, covering_of, foreign, healthy, ingress_chain, program, status_of, tap_of,
};

/// What breaks, what is found, and about what.
type Case = (Kind, &'static str, fn(&mut Facts));

const TAP_NAME: &str = "tap101i0";
const ROOT: &str = "machine.slice";
const KERNEL: &str = "kernel 6.12.9";

const CASES: &[Case] = &[
    (Kind::ProgramMissing, TAP_NAME, |facts| {
        covering_of(facts).arriving.clear();
    }),
    (Kind::ProgramNotFirst, TAP_NAME, |facts| {
        covering_of(facts).arriving.insert(0, foreign());
    }),
    (Kind::OwnerMissing, TAP_NAME, |facts| {
        covering_of(facts).owner = Owner::Missing;
    }),
    (Kind::RepliesNotFirst, TAP_NAME, |facts| {
        covering_of(facts).rewrites_replies = true;
    }),
    (Kind::InterfaceProgramForeign, TAP_NAME, |facts| {
        covering_of(facts).arriving.push(foreign());
    }),
    (Kind::XdpProgram, TAP_NAME, |facts| {
        covering_of(facts).xdp.push(foreign());
    }),
    (Kind::NoEthernet, TAP_NAME, |facts| {
        tap_of(facts).kind = links::Kind::Tun;
    }),
    (Kind::OpenVswitch, TAP_NAME, |facts| {
        tap_of(facts).master = Some(Station {
            name: "ovs-system".to_owned(),
            kind: "openvswitch".to_owned(),
        });
    }),
    (Kind::GuestSilent, TAP_NAME, |facts| {
        tap_of(facts).received = 0;
        facts.coverage.machines = Ok(vec![machine()]);
    }),
    (Kind::ProgramNotRun, TAP_NAME, |facts| {
        facts.coverage.sample = Ok(Some(Sample {
            runs: 0,
            received: [(TAP, 10)].into(),
        }));
    }),
    (Kind::Bypass, "vmbr0", |facts| {
        let interfaces = facts.coverage.interfaces.as_mut().unwrap();
        interfaces[0].kind_name = "macvtap".to_owned();
    }),
    (Kind::VhostUser, "guest web1 (process 42)", |facts| {
        let bypasses = vec!["vhost-user".to_owned()];
        facts.coverage.machines = Ok(vec![Machine {
            bypasses,
            ..machine()
        }]);
    }),
    (Kind::VirtualFunctions, "0000:3b:00.0", |facts| {
        facts.coverage.functions = Ok(vec![function("0000:3b:00.0", "mlx5_core", 8)]);
    }),
    (Kind::HandedOn, "0000:3b:02.1", |facts| {
        facts.coverage.functions = Ok(vec![function("0000:3b:02.1", "vfio-pci", 0)]);
    }),
    (Kind::CgroupProgramMissing, ROOT, |facts| {
        let hooks = facts.coverage.roots.as_mut().unwrap()[0].hooks.as_mut();
        hooks.unwrap()[0].programs.clear();
    }),
    (Kind::CgroupProgramForeign, ROOT, |facts| {
        let hooks = facts.coverage.roots.as_mut().unwrap()[0].hooks.as_mut();
        hooks.unwrap()[0].programs.push(foreign());
    }),
    (Kind::ForeignChains, "netdev theirs", |facts| {
        let chains = facts.coverage.chains.as_mut().unwrap();
        chains.push(ingress_chain("theirs", "in", 0));
    }),
    (Kind::AgentStopped, "agent", |facts| {
        facts.agent = Agent::Stopped;
    }),
    (Kind::AgentSilent, "agent", |facts| {
        facts.agent = Agent::Silent("the agent did not answer".to_owned());
    }),
    (Kind::NotExamined, "agent", |facts| {
        facts.agent = Agent::Hidden("only root may".to_owned());
    }),
    (Kind::AgentProblem, "agent", |facts| {
        status_of(facts).problems.push("something".to_owned());
    }),
    (Kind::AgentWarning, "agent", |facts| {
        status_of(facts).warnings.push("something".to_owned());
    }),
    (Kind::ReloadRefused, "policy", |facts| {
        status_of(facts).reload.successful = false;
    }),
    (Kind::PolicySource, "policy", |facts| {
        status_of(facts).policy.source = "builtin".to_owned();
    }),
    (Kind::Observing, "settings", |facts| {
        status_of(facts).mode = Mode::Observe;
    }),
    (Kind::Bypassed, "agent", |facts| {
        let at = "2026-11-23T08:00:00Z".parse().unwrap();
        status_of(facts).bypass = Some(gate25::control::messages::Bypass {
            ends: at,
            since: at,
            ticket: "NOC-1".to_owned(),
        });
    }),
    (Kind::SettingsInvalid, "/etc/gate25/gate25.yaml", |facts| {
        facts.policy.settings.1 = Ok(Some("gate25.yaml:3: unknown".to_owned()));
    }),
    (Kind::PolicyInvalid, "/etc/gate25/policy.d", |facts| {
        facts.policy.mistakes = Ok(Some(("a.yaml:3: no such profile".to_owned(), 2)));
    }),
    (
        Kind::PolicyWritable,
        "/etc/gate25/policy.d/a.yaml",
        |facts| {
            let file = PathBuf::from("/etc/gate25/policy.d/a.yaml");
            facts.policy.writable = Ok(vec![file]);
        },
    ),
    (Kind::StateFolder, "/var/lib/gate25", |facts| {
        facts.policy.state.1 = Ok(Some("read-only file system".to_owned()));
    }),
    (Kind::SocketOpen, "/run/gate25/control.sock", |facts| {
        facts.policy.socket.1 = Ok(Some(0o666));
    }),
    (Kind::ClockBehind, "clock", |facts| {
        facts.host.now = "2026-04-30T00:00:00Z".parse().unwrap();
    }),
    (Kind::PinsMissing, "/sys/fs/bpf", |facts| {
        facts.host.bpf_filesystem.1 = Ok(false);
    }),
    (Kind::PinsOpen, "/sys/fs/bpf/gate25", |facts| {
        facts.host.pins_mode.1 = Ok(Some(0o750));
    }),
    (Kind::KernelFeature, KERNEL, |facts| {
        facts
            .host
            .features
            .as_mut()
            .unwrap()
            .missing
            .push("ring buffers");
    }),
    (Kind::NoTcx, KERNEL, |facts| {
        facts.host.features.as_mut().unwrap().tcx = false;
    }),
    (Kind::NoConnectError, KERNEL, |facts| {
        facts.host.features.as_mut().unwrap().connect_error = false;
    }),
    (Kind::NoBtf, KERNEL, |facts| facts.host.btf = false),
    (Kind::CapabilityMissing, "agent", |facts| {
        facts.host.capabilities = Some(Ok(BTreeSet::new()));
    }),
    (Kind::NftMissing, "nft", |facts| {
        facts.nft.version = Ok(None);
    }),
    (Kind::NftUnfit, "nft", |facts| {
        facts.nft.unfit = Some("refused".to_owned());
    }),
    (Kind::GuardMissing, "inet gate25_guard", |facts| {
        let table = "inet gate25_guard".to_owned();
        facts.nft.guard = Some(Ok(Placement::Missing(vec![table])));
    }),
    (Kind::GuardAltered, "inet gate25_guard guest", |facts| {
        let chain = "inet gate25_guard guest".to_owned();
        facts.nft.guard = Some(Ok(Placement::Altered(vec![chain])));
    }),
    (Kind::MarkShared, "nftables inet theirs c", |facts| {
        facts.nft.mark_users = Ok(vec!["nftables inet theirs c".to_owned()]);
    }),
    (Kind::RulesetManager, "nftables.service", |facts| {
        let manager = "nftables.service".to_owned();
        facts.host.managers = Ok(BTreeSet::from([manager]));
    }),
    (Kind::CgroupsMissing, "cgroups", |facts| {
        facts.host.cgroups = Ok(None);
    }),
    (Kind::Misattributed, "cgroups", |facts| {
        facts.host.misattributed = Ok(true);
    }),
    (Kind::NetworkControllers, "net_cls", |facts| {
        facts.host.network_controllers = Ok(BTreeSet::from(["net_cls".to_owned()]));
    }),
    (Kind::RootAbsent, "lxc", |facts| {
        facts.host.absent_roots.push("lxc".to_owned());
    }),
];

#[test]
fn healthy_host_has_no_findings() {
    assert_eq!(judge(&healthy()), []);
}

#[test]
fn every_single_fault_is_found_and_nothing_else() {
    for (kind, subject, break_it) in CASES {
        let mut facts = healthy();
        break_it(&mut facts);
        let found: Vec<_> = judge(&facts)
            .iter()
            .map(|it| (it.kind, it.subject.clone(), it.severity))
            .collect();
        let expected = (*kind, (*subject).to_owned(), kind.severity());
        assert_eq!(found, [expected]);
    }
}

/// Chains are before ours only where ours is a chain: the backend nftables, which has no programs.
#[test]
fn chain_of_somebody_else_before_ours_is_found() {
    let mut facts = healthy();
    covering_of(&mut facts).arriving.clear();
    let chains = facts.coverage.chains.as_mut().unwrap();
    chains.push(ingress_chain("gate25", &format!("i_{TAP}"), -450));
    facts.coverage.chained = Ok(BTreeSet::from([TAP]));
    assert_eq!(judge(&facts), []);
    let chains = facts.coverage.chains.as_mut().unwrap();
    chains.push(ingress_chain("theirs", "in", -500));
    let found: Vec<_> = judge(&facts).iter().map(|it| it.kind).collect();
    assert_eq!(found, [Kind::ChainNotFirst, Kind::ForeignChains]);
}

#[test]
fn every_kind_is_tried() {
    let tried: BTreeSet<Kind> = CASES.iter().map(|(kind, ..)| *kind).collect();
    let untried: Vec<Kind> = Kind::ALL
        .iter()
        .filter(|kind| !tried.contains(kind))
        .copied()
        .collect();
    // It takes two faults, and has a test of its own.
    assert_eq!(untried, [Kind::ChainNotFirst]);
}

fn machine() -> Machine {
    Machine {
        process: 42,
        name: "web1".to_owned(),
        bypasses: Vec::new(),
        functions: Vec::new(),
        taps: Some(BTreeSet::from([TAP_NAME.to_owned()])),
    }
}

fn function(address: &str, driver: &str, virtual_functions: u32) -> Function {
    Function {
        address: address.to_owned(),
        driver: Some(driver.to_owned()),
        virtual_functions,
    }
}

/// Whoever loads a program of the same name is not the pinned one.
#[test]
fn program_of_our_name_that_is_not_pinned_is_none_of_ours() {
    let mut facts = healthy();
    covering_of(&mut facts).arriving = vec![program(OURS + 90, "tc_ingress")];
    let found = judge(&facts);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, Kind::ProgramMissing);
    assert!(found[0].message.contains("97"), "{}", found[0].message);
}
