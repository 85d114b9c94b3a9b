//! What the agent knows of itself, shared with whoever reports it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use gate25_common::abi::CustomerId;
use jiff::Timestamp;

use crate::doctor::Finding;
use crate::notice::server::Listener;
use crate::policy::Relay;
use crate::policy::loader::SetHash;
use crate::workloads::{Claim, WorkloadId};

/// Where the running policy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The files of the policy directory.
    Files,
    /// The last files that were accepted, kept for when those in the directory are not.
    LastKnownGood,
    /// What an earlier agent left in the kernel's tables.
    Kernel,
    /// Nothing: nothing guarded is allowed to anybody.
    Builtin,
    /// The files that ran before a change that was undone.
    Undone,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 5] = [
        Self::Files,
        Self::LastKnownGood,
        Self::Kernel,
        Self::Builtin,
        Self::Undone,
    ];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::LastKnownGood => "last_known_good",
            Self::Kernel => "kernel",
            Self::Builtin => "builtin",
            Self::Undone => "undone",
        }
    }
}

macro_rules! subjects {
    ($($(#[$what:meta])* $name:ident = $word:literal,)*) => {
        /// What can be complained of besides enforcement.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Subject {
            $($(#[$what])* $name,)*
        }

        impl Subject {
            /// Every subject.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word for it in metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

subjects! {
    /// What the backend that runs cannot do.
    Backend = "backend",
    /// The kernel refuses watches on control groups.
    CgroupWatches = "cgroup watches",
    /// Whether sockets are counted for their control group is not known.
    Cgroups = "cgroups",
    /// The guard is not as it should be.
    Guard = "guard",
    /// Other agents are not kept away.
    Lock = "lock",
    /// It is not known any more what was on trial.
    LostTrial = "lost trial",
    /// Network namespaces of containers cannot be looked into.
    Namespaces = "namespaces",
    /// The SMTP notice is not listened for.
    Notice = "notice",
    /// The other backend's rules are there.
    OtherBackend = "other backend",
    /// Enforcement would end with this agent.
    Pins = "pins",
    /// Connections cannot be led elsewhere.
    Redirect = "redirect",
    /// Packets that come back cannot be judged.
    Returns = "returns",
    /// Sockets of revoked connections are not ended.
    Sockets = "sockets",
    /// The accepted set is not kept.
    State = "state",
    /// A set is on trial, or was undone.
    Trial = "trial",
}

/// Whether a workload is under the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A customer's, with its program in place.
    Enforced,
    /// Nobody's, with its program in place.
    Unassigned,
    /// Several customers', with its program in place.
    Conflict,
    /// Without its program.
    Failed,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 4] = [
        Self::Enforced,
        Self::Unassigned,
        Self::Conflict,
        Self::Failed,
    ];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Unassigned => "unassigned",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

/// A workload and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadStatus {
    /// The interface's name, or the control group's path below the mount.
    pub name: String,
    /// Whose it is.
    pub claim: Claim,
    /// Whether it is under the policy.
    pub state: State,
}

/// An exemption's times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExemptionStatus {
    /// The customer's id.
    pub customer: String,
    /// The exemption's id.
    pub id: String,
    /// First moment at which it holds.
    pub starts: Option<Timestamp>,
    /// First moment at which it holds no longer.
    pub expires: Timestamp,
}

/// The running policy, as far as it is reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyStatus {
    /// Customers' ids by their number in the tables.
    pub customers: BTreeMap<CustomerId, String>,
    /// The relays of their profiles, where those have any.
    pub relays: BTreeMap<CustomerId, Relay>,
    /// Exemptions, expired ones included.
    pub exemptions: Vec<ExemptionStatus>,
}

/// Everything that is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where the running policy comes from.
    pub source: Source,
    /// The running policy.
    pub policy: Arc<PolicyStatus>,
    /// How often a policy was put into the kernel since the start.
    pub generation: u64,
    /// Identifies the running files.
    pub hash: Option<SetHash>,
    /// Attempts to load the files.
    pub reloads: u64,
    /// Those that were refused.
    pub reload_failures: u64,
    /// Whether the last attempt succeeded.
    pub reload_successful: bool,
    /// When an attempt last succeeded.
    pub reload_success: Option<Timestamp>,
    /// Why the last attempt was refused, if it was.
    pub refusal: Option<String>,
    /// Everything that is judged. Copies of the status share it.
    pub workloads: Arc<BTreeMap<WorkloadId, WorkloadStatus>>,
    /// Times that somebody else's change was put right.
    pub repairs: u64,
    /// Times that somebody else's change of the guard was put right.
    pub guard_repairs: u64,
    /// Whether the guard is there, as far as the last look told.
    pub guard_in_place: bool,
    /// Entries that the kernel's tables hold, by table.
    pub entries: BTreeMap<&'static str, usize>,
    /// Control groups that carry the programs for all below them.
    pub roots: usize,
    /// Interfaces on which packets that come back from guarded ports are judged.
    pub returns: usize,
    /// Where the SMTP notice listens, or not.
    pub notice: Vec<Listener>,
    /// Why enforcement is not complete; empty when it is.
    pub problems: Vec<String>,
    /// Whether the tables are as they should be, and guests' interfaces, if there are any, go by them.
    pub in_force: bool,
    /// Whether what runs is on trial, or was gone back to.
    pub trial: Option<Trial>,
    /// What else somebody should look at.
    pub warnings: Vec<String>,
    /// What the warnings are about.
    pub complained_of: BTreeSet<Subject>,
    /// What is wrong with the coverage of workloads.
    pub examined: Examined,
}

/// Of a change that undoes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// The files run until then, unless somebody confirms.
    Running {
        /// When the set before runs again.
        ends: Timestamp,
    },
    /// The set before the files runs.
    Undone {
        /// Since when.
        at: Timestamp,
    },
}

/// What was found when the kernel was last asked what covers workloads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Examined {
    /// When that was; `None` before the first time.
    pub looked: Option<Timestamp>,
    /// Errors first.
    pub findings: Vec<Finding>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            source: Source::Builtin,
            policy: Arc::default(),
            generation: 0,
            hash: None,
            reloads: 0,
            reload_failures: 0,
            reload_successful: false,
            reload_success: None,
            refusal: None,
            workloads: Arc::default(),
            repairs: 0,
            guard_repairs: 0,
            guard_in_place: false,
            entries: BTreeMap::new(),
            roots: 0,
            returns: 0,
            notice: Vec::new(),
            problems: vec!["the first policy is not in place yet".to_owned()],
            in_force: false,
            trial: None,
            warnings: Vec::new(),
            complained_of: BTreeSet::new(),
            examined: Examined::default(),
        }
    }
}

/// The status, shared.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Status>>);

impl Shared {
    /// A copy of the status as it is now.
    pub fn get(&self) -> Status {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads the status; whoever reports waits meanwhile.
    pub fn read<T>(&self, read: impl FnOnce(&Status) -> T) -> T {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
