//! What was seen of a host. No judgement, and no looking.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::Timestamp;

use crate::control::messages::Status;
use crate::kernel::bpf::features::Features;
use crate::kernel::bpf::hooks::Program;
use crate::kernel::bpf::place::CgroupHook;
use crate::kernel::filter::Filter;
use crate::kernel::functions::Function;
use crate::kernel::guard::Placement;
use crate::kernel::links::Kind;
use crate::kernel::machines::Machine;
use crate::kernel::netfilter::BaseChain;
use crate::kernel::surroundings::Capability;

/// What was seen, or why nothing could be.
pub type Look<T> = Result<T, String>;

/// Everything.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What covers workloads, and what goes by it.
    pub coverage: Coverage,
    /// What the running agent says.
    pub agent: Agent,
    /// The host itself.
    pub host: Host,
    /// nftables.
    pub nft: NftFacts,
    /// The policy's files and the agent's state.
    pub policy: Policy,
}

/// What covers workloads, and what goes by it.
#[derive(Debug, Clone)]
pub struct Coverage {
    /// Every interface of this network namespace.
    pub interfaces: Look<Vec<Interface>>,
    /// Programs that are pinned, or that pinned links attach: number and name.
    pub own: Look<BTreeMap<u32, String>>,
    /// The chains that the kernel calls.
    pub chains: Look<Vec<BaseChain>>,
    /// Interfaces whose chain in our table calls our rules; empty without such a table.
    pub chained: Look<BTreeSet<u32>>,
    /// Every root of cgroups.
    pub roots: Look<Vec<Root>>,
    /// The machine's network functions.
    pub functions: Look<Vec<Function>>,
    /// The machines that run here.
    pub machines: Look<Vec<Machine>>,
    /// What was counted within a moment; `None` where nobody counted, or the kernel does not count how
    /// often programs run.
    pub sample: Look<Option<Sample>>,
}

/// An interface.
#[derive(Debug, Clone)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What the kernel calls that.
    pub kind_name: String,
    /// Whose it is by the settings and the tables.
    pub role: Role,
    /// The interface that it is a port of.
    pub master: Option<Station>,
    /// The name of the interface that it sits on, where that is here.
    pub parent: Option<String>,
    /// Whether it is up and has somebody at its other end.
    pub carrier: bool,
    /// Packets that arrived by it.
    pub received: u64,
    /// What is attached to it; only looked at where it is a workload.
    pub covering: Option<Look<Covering>>,
}

/// Another interface that one belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Station {
    /// Its name.
    pub name: String,
    /// What the kernel calls its kind.
    pub kind: String,
}

/// Whose an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A guest's.
    Workload,
    /// Nobody's by `interfaces.ignore`.
    Ignored,
    /// Of nobody that the settings know.
    Other,
}

/// What is attached to a workload's interface.
#[derive(Debug, Clone, Default)]
pub struct Covering {
    /// tcx programs on what arrives, first to last.
    pub arriving: Vec<Program>,
    /// Filters on the same, which run after them.
    pub filters: Vec<Filter>,
    /// tcx programs on what leaves, first to last.
    pub leaving: Vec<Program>,
    /// Whether replies are to be rewritten there: a link of ours is pinned for it.
    pub rewrites_replies: bool,
    /// XDP programs.
    pub xdp: Vec<Program>,
    /// Whether the tables name its owner.
    pub owner: Owner,
}

/// What the tables say of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owner {
    /// There is an entry.
    Known,
    /// There is none.
    Missing,
    /// No tables are pinned, or they were not looked at.
    #[default]
    NoTables,
}

/// A root of cgroups.
#[derive(Debug, Clone)]
pub struct Root {
    /// Its path below the mount.
    pub path: String,
    /// What is attached to it.
    pub hooks: Look<Vec<RootHook>>,
}

/// A hook of a root.
#[derive(Debug, Clone)]
pub struct RootHook {
    /// Which.
    pub hook: CgroupHook,
    /// The name of our program for it.
    pub program: &'static str,
    /// What is attached.
    pub programs: Vec<Program>,
}

/// What was counted between two moments.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Runs of our programs on what arrives by interfaces.
    pub runs: u64,
    /// Packets that arrived, by interface.
    pub received: BTreeMap<u32, u64>,
}

/// What the running agent says.
#[derive(Debug, Clone)]
pub enum Agent {
    /// It answers.
    Running(Box<Status>),
    /// Nobody serves the control socket.
    Stopped,
    /// Somebody serves it and does not answer, for this reason.
    Silent(String),
    /// The socket may not be used by the caller.
    Hidden(String),
}

/// The host itself.
#[derive(Debug, Clone)]
pub struct Host {
    /// The time.
    pub now: Timestamp,
    /// When the program was built.
    pub built: Timestamp,
    /// The kernel's release.
    pub release: Look<String>,
    /// What the kernel can do.
    pub features: Look<Features>,
    /// Whether the eBPF backend is wanted or may be.
    pub wants_ebpf: bool,
    /// Whether the kernel shows its types.
    pub btf: bool,
    /// Whether a BPF filesystem is mounted where it should be, and where that is.
    pub bpf_filesystem: (PathBuf, Look<bool>),
    /// Permission bits of our folder there, if there is one.
    pub pins_mode: (PathBuf, Look<Option<u32>>),
    /// Privileges of the agent; `None` while there is none.
    pub capabilities: Option<Look<BTreeSet<Capability>>>,
    /// Those that it needs for what the settings ask for.
    pub needed: BTreeSet<Capability>,
    /// Where cgroup2 is mounted, and whether version 1 hierarchies are beside it.
    pub cgroups: Look<Option<(PathBuf, bool)>>,
    /// Whether sockets are counted for another cgroup than their own.
    pub misattributed: Look<bool>,
    /// Version 1 controllers `net_cls` and `net_prio` that are mounted.
    pub network_controllers: Look<BTreeSet<String>>,
    /// Whether the settings want containers judged.
    pub wants_containers: bool,
    /// Roots that the settings of this host name without wildcards and that are not there.
    pub absent_roots: Vec<String>,
    /// Services of others that change the ruleset, and start at boot.
    pub managers: Look<BTreeSet<String>>,
    /// Whether the guard is loaded at boot.
    pub guard_at_boot: bool,
}

/// nftables.
#[derive(Debug, Clone)]
pub struct NftFacts {
    /// Its version; `None` where there is no such program.
    pub version: Look<Option<String>>,
    /// Whether the settings or the backend need it.
    pub needed: bool,
    /// Why it cannot do what is needed; `None` if it can.
    pub unfit: Option<String>,
    /// Whether bridged frames can be answered by `reject`.
    pub bridge_reject: Option<bool>,
    /// The guard; `None` where the settings want none.
    pub guard: Option<Look<Placement>>,
    /// Others that use the guard's bit of the mark.
    pub mark_users: Look<Vec<String>>,
}

/// The policy's files and the agent's state.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The settings' file, and why no agent starts with it.
    pub settings: (PathBuf, Look<Option<String>>),
    /// The policy directory.
    pub folder: PathBuf,
    /// The first thing that is wrong with the files, and how many there are; `None` if they are
    /// valid.
    pub mistakes: Look<Option<(String, usize)>>,
    /// Files and folders that others than the owner and its group may write.
    pub writable: Look<Vec<PathBuf>>,
    /// The agent's folder, and why it cannot be written.
    pub state: (PathBuf, Look<Option<String>>),
    /// The control socket and its permission bits, if it is there.
    pub socket: (PathBuf, Look<Option<u32>>),
}
