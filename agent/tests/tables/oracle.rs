//! Explanations of random policies against the order of decision as the design words it, written
//! here once more in the plainest way.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use gate25::explain::report::{Entry, Explanation, Outcome};
use gate25::explain::{Host, Question, explain};
use gate25::policy::{Blocked, Customer, Destinations, Exemption, Mode, Policy, Selector};
use gate25::settings::{Enforcement, Settings};
use jiff::Timestamp;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::sample::{select, subsequence};

use super::{allowlist, at, customer, exemption, listed, policy, profile};

const NETS: [&str; 7] = [
    "192.0.2.0/24",
    "192.0.2.0/28",
    "192.0.2.1/32",
    "198.51.0.0/16",
    "198.51.100.0/24",
    "2001:db8::/32",
    "2001:db8:1::/48",
];
pub(super) const ADDRESSES: [&str; 7] = [
    "192.0.2.1",
    "192.0.2.200",
    "198.51.100.1",
    "203.0.113.1",
    "2001:db8:1::1",
    "2001:db8:2::1",
    "64:ff9b::192.0.2.1",
];
const LISTS: [&str; 3] = ["l0", "l1", "l2"];
pub(super) const CUSTOMERS: [&str; 3] = ["c0", "c1", "c2"];
const INTERFACES: [&str; 3] = ["tap0", "tap1", "tap*"];
const SUBJECTS: [&str; 7] = ["c0", "c1", "c2", "unassigned", "tap0", "tap1", "tap2"];

proptest! {
    // Ties between exemptions are rare.
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn explanation_of_any_policy_is_what_the_design_says(
        policy in any_policy(),
        subject in select(&SUBJECTS[..]),
        address in select(&ADDRESSES[..]),
        second in 0i64..12,
        observe in any::<bool>(),
    ) {
        let settings = Settings {
            enforcement: if observe { Enforcement::Observe } else { Enforcement::Policy },
            ..Settings::default()
        };
        let host = Host {
            name: "hv-1",
            settings: &settings,
            interfaces: &BTreeSet::new(),
            directory: Path::new("/policy"),
        };
        let question = Question {
            subject: subject.to_owned(),
            destination: address.parse().unwrap(),
            port: None,
            at: at(second),
        };
        let found = judged(&explain(&policy, &host, &question).unwrap());
        let expected = oracle(&policy, subject, address, at(second), observe);
        prop_assert_eq!((&*found.0, &*found.1), (expected.verdict, expected.reason));
        prop_assert!(expected.entries.contains(&found.2), "{:?} not of {:?}", found.2, expected.entries);
    }
}

pub(super) struct Expected {
    pub(super) verdict: &'static str,
    reason: &'static str,
    /// Any of these may be named.
    entries: Vec<String>,
}

pub(super) fn oracle(
    policy: &Policy,
    subject: &str,
    address: &str,
    now: Timestamp,
    observe: bool,
) -> Expected {
    let address = match address.strip_prefix("64:ff9b::") {
        Some(v4) => v4.parse().unwrap(),
        None => address.parse().unwrap(),
    };
    let owner = owner(policy, subject);
    let customer = owner.map(|id| &policy.customers[id]);
    let name = customer.map_or("default", |customer| &customer.profile);
    let profile = &policy.profiles[name];
    let own = customer.map_or(&[][..], |customer| &customer.allow);
    let entries: Vec<String> = profile
        .allow
        .iter()
        .chain(own)
        .filter(|list| longest(policy, &listed(&[], &[list]), address).is_some())
        .cloned()
        .collect();
    if !entries.is_empty() {
        let (verdict, reason) = ("allow", "allowlist");
        return Expected {
            verdict,
            reason,
            entries,
        };
    }
    let mut open: Vec<_> = policy
        .exemptions
        .iter()
        .filter(|(_, one)| owner == Some(&one.customer) && holds(one, now))
        .filter_map(|(id, one)| Some((longest(policy, &one.to, address)?, id)))
        .collect();
    // The longest prefix, then the id.
    open.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    if let Some((_, id)) = open.first() {
        let entries = vec![(*id).clone()];
        let (verdict, reason) = ("allow", "exemption");
        return Expected {
            verdict,
            reason,
            entries,
        };
    }
    Expected {
        verdict: match (profile.mode, profile.blocked) {
            _ if observe => "observe",
            (Mode::Observe, _) => "observe",
            (Mode::Enforce, Blocked::Reject) => "reject",
            (Mode::Enforce, Blocked::Drop) => "drop",
            // None of these policies has a relay, nor its host a notice.
            (Mode::Enforce, Blocked::Redirect | Blocked::Notice) => "reject",
        },
        reason: if owner.is_some() {
            "profile"
        } else {
            "unassigned"
        },
        entries: vec![name.to_owned()],
    }
}

fn holds(exemption: &Exemption, now: Timestamp) -> bool {
    exemption.starts.is_none_or(|starts| now >= starts) && now < exemption.expires
}

/// The only customer that claims the interface.
fn owner<'p>(policy: &'p Policy, subject: &str) -> Option<&'p String> {
    if let Some((id, _)) = policy.customers.get_key_value(subject) {
        return Some(id);
    }
    let claims = |customer: &Customer| {
        customer.workloads.iter().any(|workload| {
            let (Selector::Interface(pattern) | Selector::Cgroup(pattern)) = &workload.selector;
            pattern.as_str() == subject
                || (pattern.as_str() == "tap*" && subject.starts_with("tap"))
        })
    };
    let mut owners = policy.customers.iter().filter(|(_, one)| claims(one));
    match (owners.next(), owners.next()) {
        (Some((id, _)), None) => Some(id),
        (Some(_), Some(_)) | (None, _) => None,
    }
}

/// How long the longest prefix is that holds the address; 0 for any address.
fn longest(policy: &Policy, to: &Destinations, address: IpAddr) -> Option<u8> {
    let Destinations::Listed {
        prefixes,
        allowlists,
    } = to
    else {
        return Some(0);
    };
    let lists = allowlists
        .iter()
        .flat_map(|name| policy.allowlists[name].to.iter());
    prefixes
        .iter()
        .chain(lists)
        .filter(|net| net.contains(&address))
        .map(|net| net.prefix_len())
        .max()
}

fn judged(answer: &Explanation) -> (String, String, String) {
    match &answer.decision {
        Outcome::Judged {
            verdict,
            reason,
            entry: Some(Entry { name, .. }),
            redirected_to: _,
        } => ((*verdict).to_owned(), (*reason).to_owned(), name.clone()),
        other => panic!("{other:?}"),
    }
}

pub(super) fn any_policy() -> impl Strategy<Value = Policy> {
    let lists = proptest::collection::vec(nets(), 3);
    let profiles = proptest::collection::vec((any::<bool>(), any::<bool>(), lists_of()), 2);
    let customers = proptest::collection::vec(any_customer(), 3);
    let exemptions = proptest::collection::vec(any_exemption(), 0..12);
    (lists, profiles, customers, exemptions).prop_map(|(lists, profiles, customers, exemptions)| {
        let mut policy = policy();
        for (name, nets) in LISTS.iter().zip(lists) {
            policy.allowlists.insert((*name).into(), allowlist(&nets));
        }
        for (name, (observe, drop, allow)) in ["default", "p1"].iter().zip(profiles) {
            let mode = if observe {
                Mode::Observe
            } else {
                Mode::Enforce
            };
            let mut profile = profile(mode, &allow);
            if drop {
                profile.blocked = Blocked::Drop;
            }
            policy.profiles.insert((*name).into(), profile);
        }
        for (id, customer) in CUSTOMERS.iter().zip(customers) {
            policy.customers.insert((*id).into(), customer);
        }
        for (number, exemption) in exemptions.into_iter().enumerate() {
            policy.exemptions.insert(format!("e{number}"), exemption);
        }
        policy
    })
}

fn any_customer() -> impl Strategy<Value = Customer> {
    let interfaces = subsequence(&INTERFACES[..], 0..=2);
    (select(&["default", "p1"][..]), lists_of(), interfaces)
        .prop_map(|(profile, allow, interfaces)| customer(profile, &allow, &interfaces))
}

fn any_exemption() -> impl Strategy<Value = Exemption> {
    let to = prop_oneof![
        Just(Destinations::Any),
        (nets(), lists_of()).prop_map(|(nets, lists)| listed(&nets, &lists)),
    ];
    let starts = proptest::option::of(0i64..10);
    (select(&CUSTOMERS[..]), starts, 1i64..10, to).prop_map(|(customer, starts, length, to)| {
        let expires = at(starts.unwrap_or_default() + length);
        exemption(customer, starts.map(at), expires, to)
    })
}

fn nets() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(&NETS[..], 0..=3)
}

fn lists_of() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(&LISTS[..], 0..=2)
}
