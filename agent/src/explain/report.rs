//! The chain of a decision as data: what `explain` prints, and its JSON.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::policy::Origin;
use crate::settings::Enforcement;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What was asked.
    pub question: Asked,
    /// The interface or cgroup, where one was asked about.
    pub workload: Option<WorkloadStep>,
    /// What was looked at, in the order of the decision; `None` for what is not judged.
    pub chain: Option<Chain>,
    /// What it comes to.
    pub decision: Outcome,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// The customer, interface or cgroup, as asked.
    pub subject: String,
    /// Where the connection goes.
    pub destination: IpAddr,
    /// The address that the tables are asked for: the IPv4 one inside a mapped or NAT64 address.
    pub judged_as: IpAddr,
    /// The destination's port.
    pub port: u16,
    /// When.
    #[serde(serialize_with = "text")]
    pub at: Timestamp,
}

/// How a workload found its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkloadStep {
    /// What it is, and its name.
    #[serde(flatten)]
    pub name: WorkloadName,
    /// The root that makes a cgroup a workload; `None` for interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<RootStep>,
    /// What came of it.
    #[serde(flatten)]
    pub state: WorkloadState,
}

/// What kind of workload was asked about, and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadName {
    /// An interface's name.
    Interface(String),
    /// A cgroup's path below the mount.
    Cgroup(String),
}

/// A root of `cgroups.roots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RootStep {
    /// The cgroup asked about, or the one above it that the pattern matches.
    pub cgroup: String,
    /// The pattern.
    pub pattern: String,
}

/// Whose a workload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum WorkloadState {
    /// A customer's.
    Customer {
        /// The customer.
        customer: String,
        /// The pattern that claims it.
        pattern: String,
        /// The cgroup asked about, or the one above it that the pattern matches; `None` for
        /// interfaces.
        #[serde(skip_serializing_if = "Option::is_none")]
        claimed: Option<String>,
        /// Where the pattern was written.
        place: Place,
    },
    /// Nobody's.
    Unassigned,
    /// Nobody's until somebody decides.
    Conflict {
        /// Who claims it.
        claims: Vec<ClaimStep>,
        /// The cgroup that they claim, as above.
        #[serde(skip_serializing_if = "Option::is_none")]
        claimed: Option<String>,
    },
    /// No workload on this host: a cgroup that lies below no root.
    OutsideRoots {
        /// The patterns of `cgroups.roots`.
        roots: Vec<String>,
        /// Who claims it, in vain.
        claims: Vec<ClaimStep>,
    },
    /// Left alone on this host.
    Ignored {
        /// The pattern of `interfaces.ignore` that says so.
        pattern: String,
    },
    /// No workload on this host.
    Unmatched {
        /// The patterns of `interfaces.match`, none of which matches.
        patterns: Vec<String>,
    },
}

/// One of several claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClaimStep {
    /// Who claims the workload.
    pub customer: String,
    /// Where the pattern was written.
    pub place: Place,
}

/// What a decision looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// Whose connection it is.
    pub customer: CustomerStep,
    /// The profile's allowlists, then the customer's own; those after the one that decided too.
    pub allowlists: Vec<AllowlistStep>,
    /// The customer's exemptions in the order of their ids.
    pub exemptions: Vec<ExemptionStep>,
    /// What happens where nothing allows it.
    pub profile: ProfileStep,
    /// What this host makes of refusals.
    pub host: HostStep,
}

/// The owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CustomerStep {
    /// Its id.
    pub id: String,
    /// Free text for people; `None` for the built-in customer.
    pub name: Option<String>,
    /// Where it was written; `None` for the built-in customer.
    pub place: Option<Place>,
}

/// Who brings an allowlist in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// The customer's profile.
    Profile,
    /// The customer.
    Customer,
}

/// One allowlist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AllowlistStep {
    /// Its name.
    pub name: String,
    /// Who brings it in.
    pub of: Of,
    /// Its longest prefix that holds the destination.
    #[serde(rename = "match")]
    pub matched: Option<String>,
    /// Where it was written.
    pub place: Place,
}

/// Where an exemption is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExemptionState {
    /// It has not started.
    NotStarted,
    /// It holds.
    Active,
    /// It has ended.
    Expired,
}

/// One exemption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExemptionStep {
    /// Its id.
    pub id: String,
    /// Where it is in its life.
    pub state: ExemptionState,
    /// First moment at which it holds; `None` means it always did.
    #[serde(serialize_with = "optional_text")]
    pub starts: Option<Timestamp>,
    /// First moment at which it holds no longer.
    #[serde(serialize_with = "text")]
    pub expires: Timestamp,
    /// The ticket it was granted under.
    pub ticket: String,
    /// Its longest prefix that holds the destination, or `any`.
    #[serde(rename = "match")]
    pub matched: Option<String>,
    /// Where it was written.
    pub place: Place,
}

/// The profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProfileStep {
    /// Its name.
    pub name: String,
    /// Whether it is the one that governs whatever has no other.
    pub default: bool,
    /// Whether refusals are carried out: `enforce` or `observe`.
    pub mode: &'static str,
    /// How: `reject`, `drop`, `redirect` or `notice`.
    pub blocked: &'static str,
    /// The relay that connections are redirected to, or that the notice names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relay: Vec<IpAddr>,
    /// Where it was written.
    pub place: Place,
}

/// This host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostStep {
    /// What `hosts:` was matched against.
    pub name: String,
    /// Whether refusals are carried out here.
    pub enforcement: Enforcement,
}

/// What a connection comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The kernel's decision.
    Judged {
        /// What happens.
        verdict: &'static str,
        /// Why.
        reason: &'static str,
        /// The entry of the policy that decided.
        entry: Option<Entry>,
        /// Where it is sent instead.
        #[serde(skip_serializing_if = "Option::is_none")]
        redirected_to: Option<SocketAddr>,
    },
    /// Passes unseen: the port is not guarded on this host.
    PortNotGuarded {
        /// The ports that are.
        guarded_ports: Vec<u16>,
    },
    /// Passes unseen: what was asked about is no workload on this host.
    NotAWorkload,
}

/// What an entry of the policy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// An allowlist.
    Allowlist,
    /// An exemption.
    Exemption,
    /// A profile.
    Profile,
}

/// The entry of the policy that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Its name or id.
    pub name: String,
    /// Its prefix that holds the destination, or `any`; `None` for a profile.
    #[serde(rename = "match")]
    pub matched: Option<String>,
    /// Where it was written.
    pub place: Place,
}

/// A place in the policy's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file, below the policy directory.
    pub file: String,
    /// Line, counted from 1.
    pub line: u32,
    /// Column in characters, counted from 1.
    pub column: u32,
}

impl Place {
    /// The place of `origin` in the files of `directory`.
    pub fn new(directory: &Path, origin: &Origin) -> Self {
        let Origin { file, line, column } = origin;
        Self {
            file: directory.join(file).to_string_lossy().into_owned(),
            line: *line,
            column: *column,
        }
    }
}

fn text<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

fn optional_text<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}
