//! A host on which everything is right: one guest behind a tap, one root of cgroups.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use gate25::control::messages::Status;
use gate25::doctor::{
    Agent, Coverage, Covering, Facts, Host, Interface, NftFacts, Owner, Policy, Role, Root,
    RootHook, Station,
};
use gate25::kernel::bpf::features::Features;
use gate25::kernel::bpf::hooks::Program;
use gate25::kernel::bpf::place::CgroupHook;
use gate25::kernel::filter::{ALL_PROTOCOLS, Filter};
use gate25::kernel::guard::Placement;
use gate25::kernel::links::Kind;
use gate25::kernel::netfilter::{BaseChain, Device, Family};
use gate25::kernel::surroundings::Capability;
use jiff::Timestamp;
use serde_json::json;

/// The kernel's number of our program on interfaces.
pub(crate) const OURS: u32 = 7;
/// The same for replies.
pub(crate) const REPLIES: u32 = 8;
/// The index of the guest's tap.
pub(crate) const TAP: u32 = 5;

pub(crate) fn healthy() -> Facts {
    let mut own = BTreeMap::from([
        (OURS, "tc_ingress".to_owned()),
        (REPLIES, "tc_egress".to_owned()),
    ]);
    let mut hooks = Vec::new();
    for (number, hook) in (20..).zip(CgroupHook::ALL) {
        own.insert(number, hook.program().to_owned());
        hooks.push(RootHook {
            hook,
            program: hook.program(),
            programs: vec![program(number, hook.program())],
        });
    }
    Facts {
        coverage: Coverage {
            interfaces: Ok(vec![bridge(), tap()]),
            own: Ok(own),
            chains: Ok(vec![guard_chain()]),
            chained: Ok(BTreeSet::new()),
            roots: Ok(vec![Root {
                path: "machine.slice".to_owned(),
                hooks: Ok(hooks),
            }]),
            functions: Ok(Vec::new()),
            machines: Ok(Vec::new()),
            sample: Ok(None),
        },
        agent: Agent::Running(Box::new(status())),
        host: Host {
            now: "2026-06-01T00:00:00Z".parse().unwrap(),
            built: "2026-05-01T00:00:00Z".parse().unwrap(),
            release: Ok("6.12.9".to_owned()),
            features: Ok(Features {
                missing: Vec::new(),
                tcx: true,
                connect_error: true,
            }),
            wants_ebpf: true,
            btf: true,
            bpf_filesystem: (PathBuf::from("/sys/fs/bpf"), Ok(true)),
            pins_mode: (PathBuf::from("/sys/fs/bpf/gate25"), Ok(Some(0o700))),
            capabilities: Some(Ok(BTreeSet::from(Capability::ALL))),
            needed: BTreeSet::from([Capability::NetAdmin, Capability::Bpf]),
            cgroups: Ok(Some((PathBuf::from("/sys/fs/cgroup"), false))),
            misattributed: Ok(false),
            network_controllers: Ok(BTreeSet::new()),
            wants_containers: true,
            absent_roots: Vec::new(),
            managers: Ok(BTreeSet::new()),
            guard_at_boot: false,
        },
        nft: NftFacts {
            version: Ok(Some("1.0.6".to_owned())),
            needed: true,
            unfit: None,
            bridge_reject: Some(true),
            guard: Some(Ok(Placement::InPlace)),
            mark_users: Ok(Vec::new()),
        },
        policy: Policy {
            folder: PathBuf::from("/etc/gate25/policy.d"),
            settings: (PathBuf::from("/etc/gate25/gate25.yaml"), Ok(None)),
            mistakes: Ok(None),
            writable: Ok(Vec::new()),
            state: (PathBuf::from("/var/lib/gate25"), Ok(None)),
            socket: (PathBuf::from("/run/gate25/control.sock"), Ok(Some(0o660))),
        },
    }
}

pub(crate) fn program(number: u32, name: &str) -> Program {
    Program {
        number,
        name: name.to_owned(),
        tag: format!("{number:016x}"),
        runs: 0,
    }
}

/// Somebody else's.
pub(crate) fn foreign() -> Program {
    program(99, "theirs")
}

pub(crate) fn filter(priority: u16, name: &str, program: u32) -> Filter {
    Filter {
        priority,
        protocol: ALL_PROTOCOLS,
        handle: 1,
        kind: "bpf".to_owned(),
        name: Some(name.to_owned()),
        program: Some(program),
    }
}

/// Somebody else's chain in the family `netdev`, at the ingress of the guest's tap.
pub(crate) fn ingress_chain(table: &str, name: &str, priority: i32) -> BaseChain {
    BaseChain {
        family: Family::Netdev,
        table: table.to_owned(),
        name: name.to_owned(),
        hook: 0,
        priority,
        devices: vec![Device::Name("tap101i0".to_owned())],
    }
}

fn guard_chain() -> BaseChain {
    BaseChain {
        family: Family::Bridge,
        table: "gate25_guard".to_owned(),
        name: "prerouting".to_owned(),
        hook: 0,
        priority: -450,
        devices: Vec::new(),
    }
}

pub(crate) fn tap() -> Interface {
    Interface {
        index: TAP,
        name: "tap101i0".to_owned(),
        kind: Kind::Tap,
        kind_name: "tun".to_owned(),
        role: Role::Workload,
        master: Some(Station {
            name: "vmbr0".to_owned(),
            kind: "bridge".to_owned(),
        }),
        parent: None,
        carrier: true,
        received: 1000,
        covering: Some(Ok(Covering {
            arriving: vec![program(OURS, "tc_ingress")],
            filters: Vec::new(),
            leaving: Vec::new(),
            rewrites_replies: false,
            xdp: Vec::new(),
            owner: Owner::Known,
        })),
    }
}

fn bridge() -> Interface {
    Interface {
        index: 4,
        name: "vmbr0".to_owned(),
        kind: Kind::Bridge,
        kind_name: "bridge".to_owned(),
        role: Role::Other,
        master: None,
        covering: None,
        ..tap()
    }
}

/// What an agent says that enforces and has nothing to complain of.
pub(crate) fn status() -> Status {
    let status = json!({
        "agent": "running",
        "version": "0.1.0",
        "started": Timestamp::UNIX_EPOCH,
        "host": "hv1",
        "enforcing": true,
        "mode": "policy",
        "backend": {"name": "ebpf", "reason": "preferred", "hook": "tcx"},
        "policy": {
            "directory": "/etc/gate25/policy.d", "source": "files", "generation": 1, "hash": null, "customers": 1, "exemptions": {},
        },
        "workloads": {},
        "cgroup_roots": 1,
        "reload": {"attempts": 1, "failures": 0, "successful": true, "last_success": null, "refusal": null},
        "repairs": 0,
        "guard_repairs": 0,
        "tables": {},
        "connections": {},
        "returns": {"interfaces": 0, "packets": {}},
        "notice": [],
        "problems": [],
        "warnings": [],
    });
    serde_json::from_value(status).unwrap()
}

/// The guest's tap among the facts.
pub(crate) fn tap_of(facts: &mut Facts) -> &mut Interface {
    let interfaces = facts.coverage.interfaces.as_mut().unwrap();
    interfaces.iter_mut().find(|it| it.index == TAP).unwrap()
}

/// What is attached to it.
pub(crate) fn covering_of(facts: &mut Facts) -> &mut Covering {
    let covering = tap_of(facts).covering.as_mut().unwrap();
    covering.as_mut().unwrap()
}

/// What the agent says.
pub(crate) fn status_of(facts: &mut Facts) -> &mut Status {
    match &mut facts.agent {
        Agent::Running(status) => status,
        Agent::Stopped | Agent::Silent(_) | Agent::Hidden(_) => panic!("no agent runs"),
    }
}
