//! The validated policy: what the NOC's YAML means once every rule has been checked.
//!
//! Everything here but `directory` is pure: no files, no clocks. `loader` reads text into this type
//! and reports what is wrong with it; `compile` turns it into the kernel's tables.

pub mod changes;
mod claims;
pub mod directory;
pub mod edit;
mod join;
pub mod language;
mod listed;
pub mod loader;
mod overlap;
pub mod ownership;
mod pattern;
pub(crate) mod scalar;
pub mod shrink;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

/// The profile that governs customers without one, and whatever no customer owns.
pub const DEFAULT_PROFILE: &str = "default";
/// The built-in customer that owns every workload nobody claims.
pub const UNASSIGNED: &str = "unassigned";
/// The port of a relay: SMTP's.
pub const RELAY_PORT: u16 = 25;
/// The destination word that stands for every address.
pub const ANY: &str = "any";
/// Exemptions of one customer that may be active or scheduled at the same time.
pub use gate25_common::abi::MAX_EXEMPTIONS;
/// Components of a cgroup's path at most: as many levels as the kernel's program looks up.
pub const MAX_CGROUP_COMPONENTS: usize = 32;
/// Bytes of a cgroup's name at most (`NAME_MAX`).
pub const MAX_CGROUP_COMPONENT: usize = 255;

/// Where an object was written: shown by `explain` and by every error about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file, relative to the policy directory.
    pub file: Arc<Path>,
    /// Line of the object's name, counted from 1.
    pub line: u32,
    /// Column of the object's name in characters, counted from 1.
    pub column: u32,
}

/// A whole, valid policy set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Limits that the set was checked against.
    pub rules: Rules,
    /// Destination sets by name.
    pub allowlists: BTreeMap<String, Allowlist>,
    /// Profiles by name; holds [`DEFAULT_PROFILE`].
    pub profiles: BTreeMap<String, Profile>,
    /// Customers by id.
    pub customers: BTreeMap<String, Customer>,
    /// Exemptions by id, expired ones included.
    pub exemptions: BTreeMap<String, Exemption>,
}

/// Limits on what a policy may say; they travel with the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Longest term of an exemption, in days.
    pub max_exemption_days: u32,
    /// Shortest IPv4 prefix accepted as a destination, in bits.
    pub min_prefix_v4: u8,
    /// Shortest IPv6 prefix accepted as a destination, in bits.
    pub min_prefix_v6: u8,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_exemption_days: 90,
            min_prefix_v4: 16,
            min_prefix_v6: 32,
        }
    }
}

/// A named set of destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowlist {
    /// Free text for people.
    pub description: String,
    /// Destinations: no host bits, no duplicates, sorted; none inside or around the IPv4-mapped
    /// (`::ffff:0:0/96`) or NAT64 (`64:ff9b::/96`) ranges, which are judged as IPv4. Shared with every
    /// policy in which they are the same.
    pub to: Arc<[IpNet]>,
    /// Where it was written.
    pub origin: Origin,
}

/// What happens to guarded connections that nothing allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Whether refusals are carried out.
    pub mode: Mode,
    /// How a refusal is carried out.
    pub blocked: Blocked,
    /// Where redirected connections go with [`Blocked::Redirect`]; what [`Blocked::Notice`] names;
    /// nothing otherwise.
    pub relay: Relay,
    /// Names of allowlists open to every customer of the profile, sorted.
    pub allow: Vec<String>,
    /// Where it was written.
    pub origin: Origin,
}

/// Whether refusals are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Refuse.
    Enforce,
    /// Count what would be refused and let it pass.
    Observe,
}

/// How a refusal is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// Answer, so that the guest's connect() fails at once.
    Reject,
    /// Drop silently.
    Drop,
    /// Send it to the profile's relay; answered as by `Reject` where there is none of its family.
    Redirect,
    /// Send it to the agent's notice; answered as by `Reject` where there is none of its family.
    Notice,
}

impl Blocked {
    /// The word for it in policies and output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::Redirect => "redirect",
            Self::Notice => "notice",
        }
    }
}

/// Where redirected connections go: at most one address a family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relay {
    /// Over IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Over IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Relay {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// Somebody who owns workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    /// Free text for people; never a metric label.
    pub name: String,
    /// Name of the profile; [`DEFAULT_PROFILE`] where none was written.
    pub profile: String,
    /// Names of this customer's own allowlists, sorted.
    pub allow: Vec<String>,
    /// Patterns that claim workloads. Shared with every policy in which they are the same.
    pub workloads: Arc<[Workload]>,
    /// Where it was written.
    pub origin: Origin,
}

/// A pattern that claims workloads for a customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// What kind of workload it claims, and by which name.
    pub selector: Selector,
    /// Host name patterns; empty means every host.
    pub hosts: Vec<Pattern>,
    /// Where it was written.
    pub origin: Origin,
}

/// What a workload pattern is matched against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Names of network interfaces on the host.
    Interface(Pattern),
    /// Paths of cgroups below the cgroup2 mount, without a leading or trailing slash. What matches
    /// takes whatever lies below it, but for what a deeper match takes.
    Cgroup(Pattern),
}

/// A permission to send, for one customer and a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exemption {
    /// Id of the customer.
    pub customer: String,
    /// Why it was granted.
    pub reason: String,
    /// The ticket it was granted under.
    pub ticket: String,
    /// Who granted it.
    pub approved_by: String,
    /// First moment at which it holds; `None` means it has always held.
    pub starts: Option<Timestamp>,
    /// First moment at which it holds no longer.
    pub expires: Timestamp,
    /// Where the customer may send.
    pub to: Destinations,
    /// Where it was written.
    pub origin: Origin,
}

/// Where an exemption opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destinations {
    /// Every address.
    Any,
    /// Prefixes written in place (as in [`Allowlist::to`]) and names of allowlists, sorted. Names
    /// that lead nowhere occur in expired exemptions only.
    Listed {
        /// Prefixes written in place.
        prefixes: Vec<IpNet>,
        /// Names of allowlists.
        allowlists: Vec<String>,
    },
}

/// A glob in which `*` and `?` never match `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(pub(crate) String);
