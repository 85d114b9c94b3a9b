//! What two policies say differently, whatever files and order it is written in. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    Allowlist, Customer, Destinations, Exemption, Mode, Policy, Profile, Rules, Selector, Workload,
};

/// An object that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where it belongs.
    pub section: Section,
    /// Its name or id.
    pub name: String,
    /// What happens to it.
    pub change: Kind,
    /// What differs in it; everything that it says where it is added or removed.
    pub fields: Vec<FieldChange>,
}

/// A part of the policy language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// Limits on what a policy may say.
    Rules,
    /// Named sets of destinations.
    Allowlists,
    /// What happens to what nothing allows.
    Profiles,
    /// Who owns workloads.
    Customers,
    /// Permissions for a time.
    Exemptions,
}

impl Section {
    /// What one of its objects is called.
    #[must_use]
    pub const fn object(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Allowlists => "allowlist",
            Self::Profiles => "profile",
            Self::Customers => "customer",
            Self::Exemptions => "exemption",
        }
    }
}

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Only the later policy has it.
    Added,
    /// Only the earlier policy has it.
    Removed,
    /// Both have it, and it says something else.
    Changed,
}

/// A field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Its name.
    pub field: &'static str,
    /// What it said and no longer says.
    pub removed: Vec<String>,
    /// What it says now.
    pub added: Vec<String>,
}

/// What an object says: values by field.
type Fields = BTreeMap<&'static str, BTreeSet<String>>;
/// Reads the objects of a section by name.
type Objects = fn(&Policy) -> BTreeMap<&str, Fields>;

/// What `after` says differently from `before`, by section and name.
#[must_use]
pub fn compare(before: &Policy, after: &Policy) -> Vec<Change> {
    let sections = [
        (Section::Rules, rules as Objects),
        (Section::Allowlists, allowlists),
        (Section::Profiles, profiles),
        (Section::Customers, customers),
        (Section::Exemptions, exemptions),
    ];
    let mut changes = Vec::new();
    for (section, objects) in sections {
        let (before, after) = (objects(before), objects(after));
        let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
        for name in names {
            let change = match (before.get(name), after.get(name)) {
                (Some(_), Some(_)) => Kind::Changed,
                (None, _) => Kind::Added,
                (Some(_), None) => Kind::Removed,
            };
            let none = Fields::new();
            let said = before.get(name).unwrap_or(&none);
            let says = after.get(name).unwrap_or(&none);
            let fields = differing(said, says);
            if change != Kind::Changed || !fields.is_empty() {
                changes.push(Change {
                    section,
                    name: name.to_owned(),
                    change,
                    fields,
                });
            }
        }
    }
    changes
}

fn differing(before: &Fields, after: &Fields) -> Vec<FieldChange> {
    let names: BTreeSet<&'static str> = before.keys().chain(after.keys()).copied().collect();
    let none = BTreeSet::new();
    names
        .into_iter()
        .filter_map(|field| {
            let said = before.get(field).unwrap_or(&none);
            let says = after.get(field).unwrap_or(&none);
            (said != says).then(|| FieldChange {
                field,
                removed: said.difference(says).cloned().collect(),
                added: says.difference(said).cloned().collect(),
            })
        })
        .collect()
}

fn rules(policy: &Policy) -> BTreeMap<&str, Fields> {
    let Rules {
        max_exemption_days,
        min_prefix_v4,
        min_prefix_v6,
    } = &policy.rules;
    let fields = Fields::from([
        ("max_exemption_days", one(max_exemption_days)),
        ("min_prefix_v4", one(min_prefix_v4)),
        ("min_prefix_v6", one(min_prefix_v6)),
    ]);
    BTreeMap::from([("rules", fields)])
}

fn allowlists(policy: &Policy) -> BTreeMap<&str, Fields> {
    let fields = |allowlist: &Allowlist| {
        let Allowlist {
            description,
            to,
            origin: _,
        } = allowlist;
        Fields::from([("description", text(description)), ("to", many(to))])
    };
    objects(&policy.allowlists, fields)
}

/// With the prefixes that a profile opens, so that an allowlist's change shows where it matters.
fn profiles(policy: &Policy) -> BTreeMap<&str, Fields> {
    let fields = |profile: &Profile| {
        let Profile {
            mode,
            blocked,
            relay,
            allow,
            origin: _,
        } = profile;
        let mode = match mode {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        };
        let lists = allow.iter().filter_map(|name| policy.allowlists.get(name));
        let prefixes = lists.flat_map(|list| list.to.iter().map(ToString::to_string));
        Fields::from([
            ("mode", one(mode)),
            ("blocked", one(blocked.as_str())),
            (
                "relay",
                relay.addresses().map(|it| it.to_string()).collect(),
            ),
            ("allow", many(allow)),
            ("prefixes", prefixes.collect()),
        ])
    };
    objects(&policy.profiles, fields)
}

fn customers(policy: &Policy) -> BTreeMap<&str, Fields> {
    let fields = |customer: &Customer| {
        let Customer {
            name,
            profile,
            allow,
            workloads,
            origin: _,
        } = customer;
        Fields::from([
            ("name", text(name)),
            ("profile", one(profile)),
            ("allow", many(allow)),
            ("workloads", workloads.iter().map(workload).collect()),
        ])
    };
    objects(&policy.customers, fields)
}

fn workload(workload: &Workload) -> String {
    let Workload {
        selector,
        hosts,
        origin: _,
    } = workload;
    let selector = match selector {
        Selector::Interface(pattern) => format!("interface {pattern}"),
        Selector::Cgroup(pattern) => format!("cgroup {pattern}"),
    };
    if hosts.is_empty() {
        return selector;
    }
    let mut hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
    hosts.sort_unstable();
    format!("{selector} on {}", hosts.join(" "))
}

fn exemptions(policy: &Policy) -> BTreeMap<&str, Fields> {
    let fields = |exemption: &Exemption| {
        let Exemption {
            customer,
            reason,
            ticket,
            approved_by,
            starts,
            expires,
            to,
            origin: _,
        } = exemption;
        let to = match to {
            Destinations::Any => one(super::ANY),
            Destinations::Listed {
                prefixes,
                allowlists,
            } => many(prefixes).into_iter().chain(many(allowlists)).collect(),
        };
        Fields::from([
            ("customer", one(customer)),
            ("reason", text(reason)),
            ("ticket", text(ticket)),
            ("approved_by", text(approved_by)),
            ("starts", starts.iter().map(ToString::to_string).collect()),
            ("expires", one(expires)),
            ("to", to),
        ])
    };
    objects(&policy.exemptions, fields)
}

fn objects<T>(all: &BTreeMap<String, T>, fields: impl Fn(&T) -> Fields) -> BTreeMap<&str, Fields> {
    all.iter()
        .map(|(name, object)| (name.as_str(), fields(object)))
        .collect()
}

fn one(value: impl ToString) -> BTreeSet<String> {
    BTreeSet::from([value.to_string()])
}

fn many(values: &[impl ToString]) -> BTreeSet<String> {
    values.iter().map(ToString::to_string).collect()
}

/// Free text; none where none was written.
fn text(value: &str) -> BTreeSet<String> {
    let written = (!value.is_empty()).then(|| value.to_owned());
    written.into_iter().collect()
}
