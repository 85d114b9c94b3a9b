//! From a policy to tables and to the owners of workloads, from tables to other tables, and from tables
//! to an explanation.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on fails"
)]

#[path = "tables/access.rs"]
mod access;
#[path = "tables/compile.rs"]
mod compile;
#[path = "tables/explain.rs"]
mod explain;
#[path = "tables/nftables.rs"]
mod nftables;
#[path = "tables/oracle.rs"]
mod oracle;
#[path = "tables/plan.rs"]
mod plan;
#[path = "tables/workloads.rs"]
mod workloads;

use std::collections::BTreeMap;
use std::path::Path;

use gate25::policy::{
    Allowlist, Blocked, Customer, Destinations, Exemption, Mode, Origin, Pattern, Policy, Profile,
    Relay, Selector, Workload,
};
use jiff::Timestamp;

/// A policy with the profile `default`, which enforces by reject and allows nothing.
fn policy() -> Policy {
    let profiles = BTreeMap::from([("default".to_owned(), profile(Mode::Enforce, &[]))]);
    Policy {
        profiles,
        ..Policy::default()
    }
}

fn allowlist(prefixes: &[&str]) -> Allowlist {
    let mut to: Vec<_> = prefixes.iter().map(|net| net.parse().unwrap()).collect();
    to.sort_unstable();
    Allowlist {
        description: String::new(),
        to: to.into(),
        origin: origin(1),
    }
}

fn profile(mode: Mode, allow: &[&str]) -> Profile {
    Profile {
        mode,
        blocked: Blocked::Reject,
        relay: Relay::default(),
        allow: names(allow),
        origin: origin(2),
    }
}

fn customer(profile: &str, allow: &[&str], interfaces: &[&str]) -> Customer {
    let workloads = interfaces.iter().map(|pattern| Workload {
        selector: Selector::Interface(Pattern::new(*pattern)),
        hosts: Vec::new(),
        origin: origin(4),
    });
    Customer {
        name: String::new(),
        profile: profile.to_owned(),
        allow: names(allow),
        workloads: workloads.collect(),
        origin: origin(3),
    }
}

fn exemption(
    customer: &str,
    starts: Option<Timestamp>,
    expires: Timestamp,
    to: Destinations,
) -> Exemption {
    Exemption {
        customer: customer.to_owned(),
        reason: "because".to_owned(),
        ticket: "NOC-1".to_owned(),
        approved_by: "noc".to_owned(),
        starts,
        expires,
        to,
        origin: origin(5),
    }
}

fn listed(prefixes: &[&str], allowlists: &[&str]) -> Destinations {
    Destinations::Listed {
        prefixes: allowlist(prefixes).to.to_vec(),
        allowlists: names(allowlists),
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn origin(line: u32) -> Origin {
    Origin {
        file: Path::new("a.yaml").into(),
        line,
        column: 1,
    }
}

/// So many seconds after 1970.
fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}
