//! Who owns an interface or a cgroup, against the words of the design taken one by one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use gate25::policy::ownership::{Owner, Ownership, cgroup_depth};
use gate25::policy::{Customer, Origin, Pattern, Policy, Selector, Workload};

use super::patterns::oracle as glob;

#[test]
fn cgroup_match_covers_its_subtree_and_no_more() {
    let policy = policy(&[("a", "machine.slice/libpod-*.scope")]);
    let ownership = Ownership::new(&policy, "hv-1");
    for (path, owners) in [
        ("machine.slice", ""),
        ("machine.slice/libpod-1.scope", "a"),
        ("machine.slice/libpod-1.scope/container/x", "a"),
        ("machine.slice/x/libpod-1.scope", ""),
        ("machine.slice/libpod-1.scope2", ""),
        ("x/machine.slice/libpod-1.scope", ""),
        ("", ""),
    ] {
        assert_eq!(shown(&ownership.of_cgroup(path)), owners, "{path}");
    }
}

#[test]
fn deepest_cgroup_match_wins() {
    let claims = [("a", "lxc"), ("b", "lxc/?"), ("c", "lxc/1/ns")];
    let policy = policy(&claims);
    let ownership = Ownership::new(&policy, "hv-1");
    for (path, owners) in [
        ("lxc", "a"),
        ("lxc/10", "a"),
        ("lxc/1", "b"),
        ("lxc/1/x/y", "b"),
        ("lxc/1/ns/y", "c"),
    ] {
        assert_eq!(shown(&ownership.of_cgroup(path)), owners, "{path}");
    }
    assert_eq!(ownership.claim_of_cgroup("lxc/1/x"), None);
    assert_eq!(ownership.claim_of_cgroup("lxc/10"), None);
    assert_eq!(shown(&ownership.claim_of_cgroup("lxc/1").unwrap()), "b");
    assert_eq!(cgroup_depth(&policy, "hv-1"), 3);
}

#[test]
fn two_customers_on_one_cgroup_conflict_whoever_owns_what_is_above() {
    let claims = [
        ("a", "lxc"),
        ("b", "lxc/1*"),
        ("c", "lxc/?"),
        ("b", "lxc/2"),
    ];
    let policy = policy(&claims);
    let ownership = Ownership::new(&policy, "hv-1");
    assert_eq!(shown(&ownership.of_cgroup("lxc/1/x")), "b c");
    assert_eq!(shown(&ownership.of_cgroup("lxc/2/x")), "b c");
    assert_eq!(shown(&ownership.of_cgroup("lxc/3")), "c");
}

#[test]
fn mount_itself_is_claimed_by_nobody() {
    let policy = policy(&[("a", "*")]);
    let ownership = Ownership::new(&policy, "hv-1");
    assert_eq!(ownership.claim_of_cgroup(""), None);
    assert_eq!(ownership.of_cgroup(""), Owner::Unassigned);
    assert_eq!(shown(&ownership.of_cgroup("x")), "a");
}

#[test]
fn cgroup_patterns_claim_no_interface_and_only_on_their_hosts() {
    let mut policy = policy(&[("a", "tap1"), ("b", "lxc/1/2")]);
    let workloads = |policy: &mut Policy, id: &str| policy.customers[id].workloads.clone();
    let mut elsewhere = workloads(&mut policy, "b");
    Arc::make_mut(&mut elsewhere)[0].hosts = vec![Pattern::new("hv-2")];
    policy.customers.get_mut("b").unwrap().workloads = elsewhere;
    let here = Ownership::new(&policy, "hv-1");
    assert_eq!(here.of_interface("tap1"), Owner::Unassigned);
    assert_eq!(here.of_cgroup("lxc/1/2"), Owner::Unassigned);
    assert_eq!(cgroup_depth(&policy, "hv-1"), 1);
    let there = Ownership::new(&policy, "hv-2");
    assert_eq!(shown(&there.of_cgroup("lxc/1/2")), "b");
    assert_eq!(cgroup_depth(&policy, "hv-2"), 3);
    assert_eq!(cgroup_depth(&Policy::default(), "x"), 0);
}

#[test]
fn cgroup_with_escapes_and_spaces_is_taken_as_it_is() {
    let name = "machine.slice/machine-qemu\\x2d1\\x2dmy web.scope";
    let policy = policy(&[("a", name)]);
    let ownership = Ownership::new(&policy, "hv-1");
    assert_eq!(
        shown(&ownership.of_cgroup(&format!("{name}/emulator"))),
        "a"
    );
    assert_eq!(
        ownership.of_cgroup("machine.slice/machine-qemu-1-my web.scope"),
        Owner::Unassigned
    );
}

/// Every shape of pattern that ten thousand customers may have in common, on as many cgroups.
#[test]
fn ten_thousand_customers_are_told_apart_quickly() {
    for shape in ["lxc/N", "lxc/N-*", "*/N", "lxc/*-N", "lxc/*/N/?"] {
        let mut all = Policy::default();
        for number in 0..10_000 {
            let pattern = shape.replace('N', &format!("c{number:05}"));
            add(&mut all, &format!("c{number:05}"), &pattern);
        }
        let begin = Instant::now();
        let ownership = Ownership::new(&all, "hv-1");
        for number in 0..10_000 {
            let id = format!("c{number:05}");
            let path = shape.replace('N', &id).replace(['*', '?'], "x") + "/below/it";
            assert_eq!(shown(&ownership.of_cgroup(&path)), id);
        }
        let elapsed = begin.elapsed();
        assert!(elapsed < Duration::from_secs(5), "{shape}: {elapsed:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn owner_of_a_cgroup_is_who_the_design_says(
        claims in prop::collection::vec(("[x-z]", "[ab*?]{1,3}(/[ab*?]{1,2}){0,3}"), 0..8),
        path in "[abä]{1,3}(/[ab]{1,2}){0,4}",
    ) {
        let claims: Vec<_> = claims.iter().map(|(id, glob)| (&**id, &**glob)).collect();
        let policy = policy(&claims);
        let ownership = Ownership::new(&policy, "hv-1");
        prop_assert_eq!(shown(&ownership.of_cgroup(&path)), owner(&claims, &path));
        let exactly = matching(&claims, &path);
        let found = ownership.claim_of_cgroup(&path);
        prop_assert_eq!(found.is_some(), !exactly.is_empty());
        prop_assert_eq!(found.as_ref().map(shown).unwrap_or_default(), exactly);
        let deepest = claims.iter().map(|(_, glob)| glob.matches('/').count() + 1).max();
        prop_assert_eq!(cgroup_depth(&policy, "hv-1"), deepest.unwrap_or_default());
    }

    #[test]
    fn owner_of_an_interface_is_whoever_matches(
        claims in prop::collection::vec(("[x-z]", "[ab*?]{1,4}"), 0..8),
        name in "[abä]{1,5}",
    ) {
        let claims: Vec<_> = claims.iter().map(|(id, glob)| (&**id, &**glob)).collect();
        let mut policy = policy(&claims);
        let workloads = policy.customers.values_mut().map(|one| Arc::make_mut(&mut one.workloads));
        for workload in workloads.flatten() {
            if let Selector::Cgroup(pattern) = &workload.selector {
                workload.selector = Selector::Interface(pattern.clone());
            }
        }
        let ownership = Ownership::new(&policy, "hv-1");
        prop_assert_eq!(shown(&ownership.of_interface(&name)), matching(&claims, &name));
    }
}

/// "A cgroup match covers its subtree, the deepest wins": the match that is nearest to the cgroup
/// counts, and those of other depths do not.
fn owner(claims: &[(&str, &str)], path: &str) -> String {
    let parts: Vec<_> = path.split('/').collect();
    let mut owners = String::new();
    for depth in 1..=parts.len() {
        let here = matching(claims, &parts[..depth].join("/"));
        if !here.is_empty() {
            owners = here;
        }
    }
    owners
}

/// Who has a pattern that matches the whole name, in order.
fn matching(claims: &[(&str, &str)], name: &str) -> String {
    let name: Vec<char> = name.chars().collect();
    let owners: BTreeSet<&str> = claims
        .iter()
        .filter(|(_, pattern)| glob(&pattern.chars().collect::<Vec<_>>(), &name))
        .map(|(id, _)| *id)
        .collect();
    owners.into_iter().collect::<Vec<_>>().join(" ")
}

fn shown(owner: &Owner<'_>) -> String {
    match owner {
        Owner::Customer(id, _) => (*id).to_owned(),
        Owner::Unassigned => String::new(),
        Owner::Conflict(claims) => {
            let ids: Vec<_> = claims.iter().map(|(id, _)| *id).collect();
            ids.join(" ")
        }
    }
}

fn policy(claims: &[(&str, &str)]) -> Policy {
    let mut policy = Policy::default();
    for (id, pattern) in claims {
        add(&mut policy, id, pattern);
    }
    policy
}

fn add(policy: &mut Policy, id: &str, pattern: &str) {
    let origin = Origin {
        file: Path::new("a.yaml").into(),
        line: 1,
        column: 1,
    };
    let customer = policy.customers.entry(id.to_owned());
    let customer = customer.or_insert_with(|| Customer {
        name: String::new(),
        profile: "default".to_owned(),
        allow: Vec::new(),
        workloads: Arc::default(),
        origin: origin.clone(),
    });
    let claim = Workload {
        selector: Selector::Cgroup(Pattern::new(pattern)),
        hosts: Vec::new(),
        origin,
    };
    customer.workloads = customer.workloads.iter().cloned().chain([claim]).collect();
}
