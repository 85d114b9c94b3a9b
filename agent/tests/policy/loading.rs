//! What a set becomes, and what a load may take over from the one before.

use std::net::IpAddr;
use std::sync::Arc;

use gate25::policy::loader::{Circumstances, Loader, Purpose};
use gate25::policy::ownership::{Owner, Ownership};
use gate25::policy::{Blocked, DEFAULT_PROFILE, Destinations, MAX_EXEMPTIONS, Mode, Policy};

use super::{DEFAULT, circumstances, file};

fn load(text: &str) -> Policy {
    let set = [file("a.yaml", text), file("default.yaml", DEFAULT)];
    match Loader::default().load(&set, &circumstances(Purpose::Check)) {
        Ok(loaded) => loaded.policy,
        Err(refused) => panic!("{:?}", refused.diagnostics),
    }
}

#[test]
fn profile_without_settings_enforces_and_rejects() {
    let policy = load("schema: 1\n");
    let profile = &policy.profiles[DEFAULT_PROFILE];
    assert_eq!(
        (profile.mode, profile.blocked),
        (Mode::Enforce, Blocked::Reject)
    );
}

#[test]
fn customer_without_profile_gets_the_default_and_its_place() {
    let policy = load("schema: 1\ncustomers:\n  - name: Somebody\n    id: 0042\n");
    let customer = &policy.customers["0042"];
    assert_eq!(customer.profile, DEFAULT_PROFILE);
    assert_eq!(customer.name, "Somebody");
    assert_eq!((customer.origin.line, customer.origin.column), (4, 9));
    assert_eq!(customer.origin.file.to_str(), Some("a.yaml"));
}

#[test]
fn destinations_are_sorted_networks() {
    let policy = load(concat!(
        "schema: 1\n",
        "allowlists: [{name: l, to: [192.0.2.9, \"2001:db8::\", 10.1.0.0/16]}]\n",
    ));
    let shown: Vec<_> = policy.allowlists["l"]
        .to
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["10.1.0.0/16", "192.0.2.9/32", "2001:db8::/128"]);
    assert!(policy.allowlists["l"].to[1].contains(&"192.0.2.9".parse::<IpAddr>().unwrap()));
}

#[test]
fn exemption_keeps_what_was_written() {
    let policy = load(concat!(
        "schema: 1\ncustomers: [{id: c}]\nallowlists: [{name: l, to: []}]\nexemptions:\n",
        "  - {id: e, customer: c, reason: why, ticket: 48213, approved_by: noc,\n",
        "     starts: 2026-11-23T10:00:00+02:00, expires: 2026-12-23T08:00:00Z,\n",
        "     to: [l, 192.0.2.0/24]}\n",
    ));
    let exemption = &policy.exemptions["e"];
    assert_eq!(exemption.ticket, "48213");
    assert_eq!(
        exemption.starts,
        Some("2026-11-23T08:00:00Z".parse().unwrap())
    );
    let Destinations::Listed {
        prefixes,
        allowlists,
    } = &exemption.to
    else {
        panic!("a list")
    };
    assert_eq!(prefixes, &["192.0.2.0/24".parse().unwrap()]);
    assert_eq!(allowlists, &["l"]);
}

fn exemptions(count: usize) -> String {
    let mut text = "schema: 1\ncustomers: [{id: c}]\nexemptions:\n".to_owned();
    for number in 0..count {
        text += &format!(
            "  - {{id: e{number:02}, customer: c, reason: r, ticket: t, approved_by: b, to: any, \
             expires: 2026-12-{:02}T00:00:00Z}}\n",
            number + 1
        );
    }
    text
}

#[test]
fn customer_with_too_many_exemptions_is_an_error_when_checked() {
    assert_eq!(
        load(&exemptions(MAX_EXEMPTIONS)).exemptions.len(),
        MAX_EXEMPTIONS
    );
    let set = [
        file("a.yaml", exemptions(MAX_EXEMPTIONS + 1)),
        file("default.yaml", DEFAULT),
    ];
    let refused = Loader::default()
        .load(&set, &circumstances(Purpose::Check))
        .unwrap_err();
    assert_eq!(refused.diagnostics[0].code, "too-many-exemptions");
    // The one that ends first, on line 4.
    assert_eq!(refused.diagnostics[0].primary.position.unwrap().line, 4);
}

#[test]
fn clock_that_is_too_early_leaves_out_what_ends_first() {
    let set = [
        file("a.yaml", exemptions(MAX_EXEMPTIONS + 2)),
        file("default.yaml", DEFAULT),
    ];
    let early = Circumstances {
        now: "1970-01-01T00:00:00Z".parse().unwrap(),
        ..circumstances(Purpose::Run)
    };
    let loaded = Loader::default().load(&set, &early).unwrap();
    assert_eq!(loaded.policy.exemptions.len(), MAX_EXEMPTIONS);
    assert!(!loaded.policy.exemptions.contains_key("e00"));
    assert!(!loaded.policy.exemptions.contains_key("e01"));
    assert_eq!(loaded.warnings.len(), 2);
}

#[test]
fn ids_with_one_number_are_an_error() {
    let set = [
        file("a.yaml", "schema: 1\ncustomers: [{id: a}, {id: b}]\n"),
        file("b.yaml", DEFAULT),
    ];
    let colliding = Circumstances {
        customer_key: |id| u64::from(id == "unassigned"),
        ..circumstances(Purpose::Run)
    };
    let refused = Loader::default().load(&set, &colliding).unwrap_err();
    let codes: Vec<_> = refused.diagnostics.iter().map(|one| one.code).collect();
    assert_eq!(codes, ["id-collision"]);
    assert_eq!(refused.diagnostics[0].related.len(), 1);

    let all_zero = Circumstances {
        customer_key: |_| 0,
        ..circumstances(Purpose::Run)
    };
    let refused = Loader::default().load(&set, &all_zero).unwrap_err();
    assert!(
        refused.diagnostics[0]
            .help
            .as_ref()
            .unwrap()
            .contains("unassigned")
    );
}

#[test]
fn loader_parses_changed_files_only_and_forgets_removed_ones() {
    let mut set = vec![
        file("a.yaml", "schema: 1\ncustomers: [{id: a}]\n"),
        file("b.yaml", "schema: 1\ncustomers: [{id: b}]\n"),
        file("default.yaml", DEFAULT),
    ];
    let mut loader = Loader::default();
    let circumstances = circumstances(Purpose::Run);
    let first = loader.load(&set, &circumstances).unwrap();
    assert_eq!(first.parsed, 3);
    set.reverse();
    let again = loader.load(&set, &circumstances).unwrap();
    assert_eq!(
        (again.parsed, again.hash, &again.policy),
        (0, first.hash, &first.policy)
    );
    let moved = set.pop().unwrap();
    let fewer = loader.load(&set, &circumstances).unwrap();
    assert_eq!((fewer.parsed, fewer.policy.customers.len()), (0, 1));
    set.push(moved);
    assert_eq!(loader.load(&set, &circumstances).unwrap().parsed, 1);
}

#[test]
fn file_that_stays_wrong_is_reported_again_with_its_source() {
    let set = [
        file("a.yaml", "schema: 1\nx: 1\n"),
        file("default.yaml", DEFAULT),
    ];
    let mut loader = Loader::default();
    let circumstances = circumstances(Purpose::Run);
    let first = loader.load(&set, &circumstances).unwrap_err();
    let second = loader.load(&set, &circumstances).unwrap_err();
    assert_eq!(first, second);
    let excerpt = first.diagnostics[0].primary.excerpt.as_ref().unwrap();
    assert_eq!(
        (excerpt.text.as_str(), excerpt.mark.clone()),
        ("x: 1", 0..1)
    );
}

#[test]
fn hash_tells_a_moved_boundary_between_files_apart() {
    let circumstances = circumstances(Purpose::Run);
    let hash = |set: &[_]| match Loader::default().load(set, &circumstances) {
        Ok(loaded) => loaded.hash,
        Err(refused) => refused.hash,
    };
    let one = hash(&[file("a", "bc"), file("d", "e")]);
    assert_ne!(one, hash(&[file("a", "b"), file("cd", "e")]));
    assert_ne!(one, hash(&[file("ab", "c"), file("d", "e")]));
    assert!(one.metric() < 1 << 48);
    assert!(
        one.to_string()
            .starts_with(&format!("{:012x}", one.metric()))
    );
}

#[test]
fn owner_of_an_interface_depends_on_the_host() {
    let policy = load(concat!(
        "schema: 1\ncustomers:\n",
        "  - {id: a, workloads: [{interface: tap1i*, hosts: [\"ams-*\"]}]}\n",
        "  - {id: b, workloads: [{interface: tap1i*, hosts: [\"fra-*\"]}, {interface: \"eth*\"}]}\n",
    ));
    let owner = |host: &str, name: &str| match Ownership::new(&policy, host).of_interface(name) {
        Owner::Customer(id, _) => id.to_owned(),
        Owner::Unassigned => "-".to_owned(),
        Owner::Conflict(ids) => ids.iter().map(|(id, _)| *id).collect::<Vec<_>>().join("+"),
    };
    assert_eq!(owner("ams-1", "tap1i0"), "a");
    assert_eq!(owner("fra-1", "tap1i0"), "b");
    assert_eq!(owner("lon-1", "tap1i0"), "-");
    assert_eq!(owner("lon-1", "ethx"), "b");
    assert_eq!(owner("ams-1", ""), "-");
}

#[test]
fn owners_that_conflict_are_all_named_with_their_places() {
    // Such a set is refused; the resolver must not rely on it.
    let mut policy =
        load("schema: 1\ncustomers:\n  - {id: a, workloads: [{interface: \"tap*\"}]}\n");
    let mut other = policy.customers["a"].clone();
    Arc::make_mut(&mut other.workloads)[0].origin.line = 9;
    policy.customers.insert("b".to_owned(), other);
    let owner = Ownership::new(&policy, "h").of_interface("tap0");
    let Owner::Conflict(owners) = owner else {
        panic!("{owner:?}")
    };
    let shown: Vec<_> = owners
        .iter()
        .map(|(id, origin)| (*id, origin.line))
        .collect();
    assert_eq!(shown, [("a", 3), ("b", 9)]);
}
