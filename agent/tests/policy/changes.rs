//! What two policies say differently.

use gate25::policy::Policy;
use gate25::policy::changes::{Change, Kind, Section, compare};
use gate25::policy::loader::{Loader, Purpose};

use super::{circumstances, file};

const BEFORE: &str = "schema: 1
allowlists:
  - {name: relays, description: ours, to: [192.0.2.25, 192.0.2.26]}
profiles: [{name: default, allow: [relays]}]
customers:
  - id: acme
    workloads: [{interface: \"tap7i*\", hosts: [hv-2, hv-1]}, {cgroup: lxc/7}]
exemptions:
  - {id: news, customer: acme, reason: r, ticket: T-1, approved_by: noc,
     expires: 2026-12-01T00:00:00Z, to: any}
";

#[test]
fn policies_that_differ_in_files_order_and_notation_do_not_differ() {
    let before = load(&[BEFORE]);
    let elsewhere = [
        "schema: 1
exemptions:
  - {to: any, id: news, customer: acme, reason: r, ticket: T-1, approved_by: noc,
     expires: 2026-12-01T01:00:00+01:00}
customers:
  - {id: acme, workloads: [{cgroup: lxc/7}, {interface: tap7i*, hosts: [hv-1, hv-2]}]}
",
        "schema: 1
profiles: [{name: default, mode: enforce, blocked: reject, allow: [relays]}]
allowlists: [{name: relays, description: ours, to: [192.0.2.26/32, 192.0.2.25]}]
",
    ];
    assert_eq!(compare(&before, &load(&elsewhere)), []);
}

#[test]
fn exemption_that_is_extended_and_narrowed_shows_both() {
    let after = BEFORE
        .replace("2026-12-01T00", "2026-12-24T00")
        .replace("to: any", "to: [198.51.100.0/24, relays]");
    let changes = compare(&load(&[BEFORE]), &load(&[&after]));
    let [change] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(
        (change.section, change.change),
        (Section::Exemptions, Kind::Changed)
    );
    assert_eq!(
        fields(change),
        [
            (
                "expires",
                vec!["2026-12-01T00:00:00Z"],
                vec!["2026-12-24T00:00:00Z"]
            ),
            ("to", vec!["any"], vec!["198.51.100.0/24", "relays"]),
        ]
    );
}

#[test]
fn prefix_that_leaves_an_allowlist_leaves_the_profiles_that_open_it() {
    let after = BEFORE.replace(", 192.0.2.26", "");
    let changes = compare(&load(&[BEFORE]), &load(&[&after]));
    let told: Vec<_> = changes
        .iter()
        .map(|it| (it.section, it.name.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Section::Allowlists, "relays"),
            (Section::Profiles, "default")
        ]
    );
    assert_eq!(fields(&changes[0]), [("to", vec!["192.0.2.26/32"], vec![])]);
    assert_eq!(
        fields(&changes[1]),
        [("prefixes", vec!["192.0.2.26/32"], vec![])]
    );
}

#[test]
fn customer_that_moves_and_rules_that_tighten_show() {
    let after =
        format!("{BEFORE}rules: {{max_exemption_days: 30}}\n").replace("[hv-2, hv-1]", "[hv-3]");
    let changes = compare(&load(&[BEFORE]), &load(&[&after]));
    let told: Vec<_> = changes
        .iter()
        .map(|it| (it.section, it.name.as_str()))
        .collect();
    assert_eq!(
        told,
        [(Section::Rules, "rules"), (Section::Customers, "acme")]
    );
    assert_eq!(
        fields(&changes[0]),
        [("max_exemption_days", vec!["90"], vec!["30"])]
    );
    let (was, is) = ("interface tap7i* on hv-1 hv-2", "interface tap7i* on hv-3");
    assert_eq!(fields(&changes[1]), [("workloads", vec![was], vec![is])]);
}

#[test]
fn what_comes_and_goes_is_told_with_all_that_it_says() {
    let none = "schema: 1\nprofiles: [{name: default}]\n";
    let changes = compare(&load(&[none]), &load(&[BEFORE]));
    let told: Vec<_> = changes
        .iter()
        .map(|it| (it.name.as_str(), it.change))
        .collect();
    let expected = [
        ("relays", Kind::Added),
        ("default", Kind::Changed),
        ("acme", Kind::Added),
        ("news", Kind::Added),
    ];
    assert_eq!(told, expected);
    let of_acme = fields(&changes[2]);
    let workloads = vec!["cgroup lxc/7", "interface tap7i* on hv-1 hv-2"];
    assert!(
        of_acme.contains(&("workloads", vec![], workloads)),
        "{of_acme:?}"
    );
    let back = compare(&load(&[BEFORE]), &load(&[none]));
    assert_eq!(back.len(), changes.len());
    assert_eq!(
        (back[0].change, back[3].change),
        (Kind::Removed, Kind::Removed)
    );
}

fn fields(change: &Change) -> Vec<(&str, Vec<&str>, Vec<&str>)> {
    change
        .fields
        .iter()
        .map(|it| {
            let removed = it.removed.iter().map(String::as_str).collect();
            let added = it.added.iter().map(String::as_str).collect();
            (it.field, removed, added)
        })
        .collect()
}

fn load(texts: &[&str]) -> Policy {
    let files: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(at, text)| file(&format!("{at}.yaml"), text))
        .collect();
    match Loader::default().load(&files, &circumstances(Purpose::Run)) {
        Ok(loaded) => loaded.policy,
        Err(refused) => panic!("{:?}", refused.diagnostics),
    }
}
