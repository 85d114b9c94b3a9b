//! How things are called in our table.

use gate25_common::abi::{CustomerId, SetId};
use gate25_common::address::Family;
use gate25_common::decide::{Reason, Verdict};
use gate25_common::packet::{Malformed, Tunnel};

use crate::netfilter::{self, Table};

/// The table.
pub const TABLE: Table = Table {
    family: netfilter::Family::Netdev,
    name: "gate25",
};
/// A chain of this name, with the version behind it, says that the table is ours.
pub(super) const MARKER: &str = "gate25_v";
/// Raised when a counter of the same name would mean something else.
pub(super) const VERSION: u32 = 1;

/// What every covered interface's chain calls.
pub(super) const GUEST: &str = "guest";
/// Asks whose a guarded packet is.
pub(super) const JUDGE: &str = "judge";
/// Asks whose a guarded packet is whose true destination may be another.
pub(super) const ROUTED: &str = "routed";
/// Asks whose a packet is that is refused for its form.
pub(super) const SUSPECT: &str = "suspect";
/// Lets go what the guard would stop.
pub(super) const PASS: &str = "pass";

pub(super) fn marker() -> String {
    format!("{MARKER}{VERSION}")
}

/// What a customer's packets go to, by what asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// For guarded packets.
    Judge,
    /// For those with a source route.
    Routed,
    /// For those refused for their form.
    Suspect,
}

impl Asked {
    pub(super) const ALL: [Self; 3] = [Self::Judge, Self::Routed, Self::Suspect];

    /// The map from interfaces to customers' chains.
    pub(super) const fn map(self) -> &'static str {
        match self {
            Self::Judge => "owners",
            Self::Routed => "owners_of_routed",
            Self::Suspect => "owners_of_suspect",
        }
    }

    /// The chain that asks it.
    pub(super) const fn chain(self) -> &'static str {
        match self {
            Self::Judge => JUDGE,
            Self::Routed => ROUTED,
            Self::Suspect => SUSPECT,
        }
    }

    /// A customer's chain.
    pub(super) fn of(self, customer: CustomerId) -> String {
        let letter = match self {
            Self::Judge => 'c',
            Self::Routed => 'r',
            Self::Suspect => 's',
        };
        format!("{letter}_{:016x}", customer.get())
    }
}

/// Where packets of a customer go that are allowed for this reason.
pub(super) fn allowed_chain(customer: CustomerId, reason: &str) -> String {
    format!("{reason}_{:016x}", customer.get())
}

pub(super) fn set(family: Family, id: SetId) -> String {
    format!("s{}_{:016x}", digit(family), id.get())
}

/// Holds something while the exemption in this slot does.
pub(super) fn gate(customer: CustomerId, slot: usize) -> String {
    format!("e_{:016x}_{slot}", customer.get())
}

/// The chain of the interface with this index.
#[must_use]
pub fn interface_chain(index: u32) -> String {
    format!("i_{index}")
}

/// The interface whose chain has this name.
pub(super) fn interface_of(chain: &str) -> Option<u32> {
    chain.strip_prefix("i_")?.parse().ok()
}

pub(super) fn verdict_chain(verdict: Verdict) -> String {
    format!("do_{}", verdict.as_str())
}

pub(super) fn outcome_chain(verdict: Verdict, reason: Reason) -> String {
    format!("{}_{}", verdict.as_str(), reason.as_str())
}

pub(super) fn malformed_chain(kind: Malformed) -> String {
    format!("malformed_{}", kind.as_str())
}

pub(super) fn malformed(kind: Malformed) -> String {
    format!("m_{}", kind.as_str())
}

pub(super) fn tunnel(tunnel: Tunnel) -> String {
    format!("t_{}", tunnel.protocol())
}

pub(super) fn connections(verdict: Verdict, reason: Reason, family: Family) -> String {
    let digit = digit(family);
    format!("n_{}_{}_{digit}", verdict.as_str(), reason.as_str())
}

pub(super) fn packets(verdict: Verdict, family: Family) -> String {
    format!("p_{}_{}", verdict.as_str(), digit(family))
}

/// Attempts of a customer; `what` is one of [`OF_CUSTOMER`].
pub(super) fn of_customer(customer: CustomerId, what: &str) -> String {
    format!("c_{:016x}_{what}", customer.get())
}

pub(super) const ALLOWLIST: &str = "allowlist";
pub(super) const EXEMPTION: &str = "exemption";
/// What is counted of a customer: the two ways to be allowed, and the verdicts that refuse.
pub(super) const OF_CUSTOMER: [&str; 5] = [
    ALLOWLIST,
    EXEMPTION,
    Verdict::Observe.as_str(),
    Verdict::Reject.as_str(),
    Verdict::Drop.as_str(),
];

const fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}
