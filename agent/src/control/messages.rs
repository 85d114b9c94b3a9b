//! What goes over the control socket, and what `--json` prints. Names are stable: new ones may be
//! added. Times are RFC 3339 in UTC.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::doctor::Finding;

/// Who tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Teller {
    /// The running agent.
    Running,
    /// Nobody: this is what a stopped agent left in the kernel.
    Stopped,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// In words.
    pub error: String,
}

/// How the agent is: `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who tells.
    pub agent: Teller,
    /// The agent's version.
    pub version: String,
    /// When the agent started.
    pub started: Timestamp,
    /// What `hosts:` is matched against.
    pub host: String,
    /// Whether refusals are carried out, everywhere.
    pub enforcing: bool,
    /// `observe` or `policy`.
    pub mode: Mode,
    /// A time in which nothing is refused, whatever the mode; none, most of the time.
    pub bypass: Option<Bypass>,
    /// What enforces.
    pub backend: Backend,
    /// The running policy.
    pub policy: RunningPolicy,
    /// Workloads by kind and state.
    pub workloads: BTreeMap<Kind, BTreeMap<State, u64>>,
    /// Cgroups whose programs judge all below them.
    pub cgroup_roots: u64,
    /// Packets that come back to guests from guarded ports.
    pub returns: Returns,
    /// Attempts to load the files.
    pub reload: Reloads,
    /// Whether what runs is on trial, or was gone back to; none of both, most of the time.
    pub trial: Option<OnTrial>,
    /// Times that somebody else's change was put right.
    pub repairs: u64,
    /// Times that somebody else's change of the guard was put right.
    pub guard_repairs: u64,
    /// Entries that the kernel's tables hold.
    pub tables: BTreeMap<String, u64>,
    /// Connection attempts on this host by verdict; none where the kernel does not tell.
    pub connections: Option<BTreeMap<String, u64>>,
    /// Where the SMTP notice listens, or not.
    pub notice: Vec<NoticeListener>,
    /// Why enforcement is not complete.
    pub problems: Vec<String>,
    /// What else somebody should look at.
    pub warnings: Vec<String>,
}

/// Whether refusals are carried out on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing is refused, whatever the policy says.
    Observe,
    /// The policy decides.
    Policy,
}

/// What enforces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `ebpf` or `nftables`.
    pub name: String,
    /// Why it was chosen.
    pub reason: String,
    /// How programs are attached to interfaces.
    pub hook: String,
}

/// Packets that come back to guests from guarded ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returns {
    /// Interfaces on which they are judged; none unless `block_return` is on.
    pub interfaces: u64,
    /// How many there were, by what became of them; none where the kernel does not tell.
    pub packets: Option<BTreeMap<String, u64>>,
}

/// An address of the SMTP notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeListener {
    /// The address and port.
    pub address: String,
    /// Whether it is listened on.
    pub listening: bool,
    /// Why not; none while it was not tried yet.
    pub error: Option<String>,
}

/// The running policy in figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningPolicy {
    /// Where the agent reads files.
    pub directory: String,
    /// `files`, `kernel`, `builtin`, ...
    pub source: String,
    /// How often a policy was put into the kernel since the start.
    pub generation: u64,
    /// Identifies the files.
    pub hash: Option<String>,
    /// Customers, the built-in one not counted.
    pub customers: u64,
    /// Exemptions by state.
    pub exemptions: BTreeMap<Term, u64>,
}

/// Attempts to load the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    /// All of them.
    pub attempts: u64,
    /// Those that were refused.
    pub failures: u64,
    /// Whether the last one succeeded.
    pub successful: bool,
    /// When one last succeeded.
    pub last_success: Option<Timestamp>,
    /// Why the last one was refused; none if it was not.
    pub refusal: Option<String>,
}

/// What a workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A host interface.
    Interface,
    /// A container's cgroup.
    Cgroup,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::Cgroup => "cgroup",
        }
    }
}

/// Whether a workload is under the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Unassigned => "unassigned",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

/// Where an exemption is in its term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// Not begun.
    Scheduled,
    /// Holds.
    Active,
    /// Over.
    Expired,
}

impl Term {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Scheduled, Self::Active, Self::Expired];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Active => "active",
            Self::Expired => "expired",
        }
    }

    /// Where a term is at `now`.
    #[must_use]
    pub fn at(now: Timestamp, starts: Option<Timestamp>, expires: Timestamp) -> Self {
        if expires <= now {
            Self::Expired
        } else if starts.is_some_and(|starts| starts > now) {
            Self::Scheduled
        } else {
            Self::Active
        }
    }
}

/// `GET /v1/workloads`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workloads {
    /// Who tells.
    pub agent: Teller,
    /// What `hosts:` is matched against.
    pub host: String,
    /// By kind and number.
    pub workloads: Vec<Workload>,
}

/// What sends packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// What it is.
    pub kind: Kind,
    /// An interface's index, a cgroup's id.
    pub number: u64,
    /// An interface's name, a cgroup's path; none where nobody knows.
    pub name: Option<String>,
    /// Whether it is under the policy.
    pub state: State,
    /// Whose it is; none where it is nobody's, or nobody knows the name.
    pub customer: Option<String>,
    /// Its owner's number in the kernel's tables, 16 hexadecimal digits.
    pub customer_number: String,
    /// Who claims it, where several do.
    pub claims: Vec<Claim>,
}

/// A customer that claims a workload, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its id.
    pub customer: String,
    /// The policy's file.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
}

/// `GET /v1/customers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Customers {
    /// Who tells.
    pub agent: Teller,
    /// By id; the built-in one, `unassigned`, is among them.
    pub customers: Vec<Customer>,
}

/// Who owns workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Customer {
    /// Its id; none where nobody knows it.
    pub id: Option<String>,
    /// Its number in the kernel's tables, 16 hexadecimal digits.
    pub number: String,
    /// Workloads on this host.
    pub workloads: u64,
    /// Exemptions that hold now.
    pub exemptions: u64,
    /// Connection attempts by verdict; none if it never had a workload here.
    pub connections: Option<BTreeMap<String, u64>>,
}

/// `GET /v1/exemptions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exemptions {
    /// Who tells.
    pub agent: Teller,
    /// By customer and id.
    pub exemptions: Vec<Exemption>,
}

/// A permission to send, for one customer and a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exemption {
    /// Its id; none where nobody knows it.
    pub id: Option<String>,
    /// The customer's id; none where nobody knows it.
    pub customer: Option<String>,
    /// The customer's number in the kernel's tables, 16 hexadecimal digits.
    pub customer_number: String,
    /// Where it is in its term.
    pub state: Term,
    /// First moment at which it holds; none if it has always held.
    pub starts: Option<Timestamp>,
    /// First moment at which it holds no longer.
    pub expires: Timestamp,
}

/// What the agent found wrong with the coverage of workloads: `GET /v1/findings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// When it last looked; none before the first time.
    pub looked: Option<Timestamp>,
    /// Errors first.
    pub findings: Vec<Finding>,
}

/// The running set: `GET /v1/policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `files`, `kernel`, `builtin`, ...
    pub source: String,
    /// How often a policy was put into the kernel since the start.
    pub generation: u64,
    /// Identifies the files.
    pub hash: Option<String>,
    /// Verbatim, by path.
    pub files: Vec<File>,
}

/// A policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Relative to the policy directory.
    pub path: String,
    /// Its contents.
    pub text: String,
}

/// `POST /v1/reload`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    /// Take a set over even if it lost much.
    #[serde(default)]
    pub accept_shrink: bool,
    /// Only say what would come of it.
    #[serde(default)]
    pub dry_run: bool,
    /// Answer when the files are in force or refused, not when the attempt begins.
    #[serde(default)]
    pub wait: bool,
    /// Take over files that were undone.
    #[serde(default)]
    pub take_undone: bool,
}

/// `POST /v1/confirm`, `POST /v1/undo`: a body may be left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionRequest {
    /// Only say what would come of it.
    #[serde(default)]
    pub dry_run: bool,
}

/// The longest trial, in seconds: a week.
pub const LONGEST_TRIAL: u64 = 7 * 24 * 3600;
/// The longest bypass, in seconds: a day.
pub const LONGEST_BYPASS: u64 = 24 * 3600;

/// `POST /v1/trial`: the files are read, and gone back from unless somebody confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialRequest {
    /// How long there is to confirm: 1 to [`LONGEST_TRIAL`].
    pub seconds: u64,
    /// Take a set over even if it lost much.
    #[serde(default)]
    pub accept_shrink: bool,
}

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Reload {
    /// The agent will read the files; nobody waited.
    Accepted {
        /// What they join, or are held back by; none of both, most of the time.
        #[serde(default)]
        trial: Option<OnTrial>,
    },
    /// The files are in force.
    Applied {
        /// Of the policy now running.
        generation: u64,
        /// Identifies the files.
        hash: String,
        /// Table entries that were written.
        writes: u64,
    },
    /// The files are in force until somebody confirms, or the time is up.
    OnTrial {
        /// Of the policy now running.
        generation: u64,
        /// Identifies the files.
        hash: String,
        /// Table entries that were written.
        writes: u64,
        /// When the set before runs again.
        ends: Timestamp,
        /// Identifies that set.
        base: String,
    },
    /// The files would be taken over.
    WouldApply {
        /// Identifies the files.
        hash: String,
        /// Table entries that would be written.
        writes: u64,
    },
    /// The files are those that run.
    Unchanged,
    /// The files are those that were undone, and stay so.
    Held {
        /// Since when.
        since: Timestamp,
    },
    /// The files are refused; the running policy stays.
    Refused {
        /// Why, in one line.
        message: String,
        /// Everything that is wrong.
        diagnostics: Vec<Diagnostic>,
    },
    /// The files lost too much of the running policy, which stays.
    Shrunk {
        /// What was lost.
        message: String,
    },
}

/// `POST /v1/bypass`: a time in which this host only observes; nothing of it to end that now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BypassRequest {
    /// How long it is: 1 to [`LONGEST_BYPASS`].
    pub seconds: Option<u64>,
    /// Under which ticket.
    pub ticket: Option<String>,
}

/// This host only observes for a time, whatever its settings say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypass {
    /// When it refuses again.
    pub ends: Timestamp,
    /// Since when it does not.
    pub since: Timestamp,
    /// Under which ticket.
    pub ticket: String,
}

/// What became of a set on trial: `POST /v1/confirm`, `POST /v1/undo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Trial {
    /// It stays.
    Confirmed,
    /// The set before runs.
    Undone {
        /// Identifies it.
        hash: String,
    },
    /// It would stay.
    WouldConfirm,
    /// The set before would run.
    WouldUndo {
        /// Identifies it.
        hash: String,
        /// When it was accepted.
        accepted: Timestamp,
    },
    /// Nothing has changed.
    Refused {
        /// Why, in one line.
        message: String,
    },
}

/// A set on trial, or gone back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum OnTrial {
    /// The files run.
    Running {
        /// When the set before runs again, unless somebody confirms.
        ends: Timestamp,
    },
    /// The set before the files runs.
    Undone {
        /// Since when.
        at: Timestamp,
    },
}

/// One thing that is wrong with the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// `error` or `warning`.
    pub severity: String,
    /// Stable short name of the rule.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The file.
    pub file: String,
    /// From 1; none for the whole file.
    pub line: Option<u32>,
    /// From 1.
    pub column: Option<u32>,
    /// All of it as people read it, the source line included.
    pub text: String,
}
