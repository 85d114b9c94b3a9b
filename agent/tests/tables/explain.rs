//! Explanations with expectations written by hand.

use std::collections::BTreeSet;
use std::path::Path;

use gate25::cli::explain::Destination;
use gate25::explain::report::{
    Entry, ExemptionState, Explanation, Of, Outcome, Place, RootStep, WorkloadName, WorkloadState,
};
use gate25::explain::{ExplainError, Host, Question, explain};
use gate25::policy::{Destinations, Mode, Pattern, Policy, Selector};
use gate25::settings::{Enforcement, Settings};

use super::{allowlist, at, customer, exemption, listed, policy, profile};

const NOW: i64 = 1_000;

#[test]
fn relay_of_the_profile_allows() {
    let answer = ask("tap1i0", "192.0.2.25");
    assert_judged(
        &answer,
        "allow",
        "allowlist",
        "relays",
        Some("192.0.2.25/32"),
    );
    let WorkloadState::Customer {
        customer,
        pattern,
        claimed: None,
        place,
    } = &answer.workload.unwrap().state
    else {
        panic!("not owned");
    };
    assert_eq!((customer.as_str(), pattern.as_str()), ("acme", "tap1i*"));
    assert_eq!(
        place,
        &Place {
            file: "/policy/a.yaml".into(),
            line: 4,
            column: 1
        }
    );
}

#[test]
fn allowlist_of_the_customer_allows() {
    let answer = ask("acme", "198.51.100.7");
    assert_judged(
        &answer,
        "allow",
        "allowlist",
        "own",
        Some("198.51.100.0/24"),
    );
    let lists: Vec<_> = answer
        .chain
        .unwrap()
        .allowlists
        .into_iter()
        .map(|list| (list.name, list.of, list.matched))
        .collect();
    let matched = Some("198.51.100.0/24".to_owned());
    assert_eq!(
        lists,
        [
            ("relays".to_owned(), Of::Profile, None),
            ("own".to_owned(), Of::Customer, matched)
        ]
    );
}

#[test]
fn exemption_with_the_longest_prefix_decides() {
    let answer = ask("acme", "203.0.113.7");
    assert_judged(
        &answer,
        "allow",
        "exemption",
        "narrow",
        Some("203.0.113.0/24"),
    );
    let states: Vec<_> = answer
        .chain
        .unwrap()
        .exemptions
        .into_iter()
        .map(|one| (one.id, one.state, one.matched.is_some()))
        .collect();
    assert_eq!(
        states,
        [
            ("any".to_owned(), ExemptionState::Active, true),
            ("later".to_owned(), ExemptionState::NotStarted, true),
            ("narrow".to_owned(), ExemptionState::Active, true),
            ("over".to_owned(), ExemptionState::Expired, true),
        ]
    );
}

#[test]
fn exemption_with_the_first_id_decides_among_equals() {
    let mut policy = fixture();
    let same = policy.exemptions["any"].clone();
    policy.exemptions.insert("zero".into(), same.clone());
    policy.exemptions.insert("all".into(), same);
    let settings = Settings::default();
    let answer = of(&policy, &settings, "acme", "8.8.8.8", None, NOW).unwrap();
    assert_judged(&answer, "allow", "exemption", "all", Some("any"));
}

#[test]
fn exemption_opens_at_its_start_and_closes_at_its_end() {
    let verdict = |second| match question("acme", "8.8.8.8", None, second).unwrap().decision {
        Outcome::Judged { verdict, entry, .. } => (verdict, entry.unwrap().name),
        other => panic!("{other:?}"),
    };
    assert_eq!(verdict(NOW - 1), ("reject", "default".to_owned()));
    assert_eq!(verdict(NOW), ("allow", "any".to_owned()));
    assert_eq!(verdict(NOW + 99), ("allow", "any".to_owned()));
    assert_eq!(verdict(NOW + 100), ("reject", "default".to_owned()));
}

#[test]
fn exemption_that_is_over_opens_when_asked_about_its_time() {
    let answer = question("acme", "203.0.113.7", None, 10).unwrap();
    assert_judged(
        &answer,
        "allow",
        "exemption",
        "over",
        Some("203.0.113.7/32"),
    );
}

#[test]
fn workload_without_owner_meets_the_default_profile() {
    let answer = ask("tap9i0", "8.8.8.8");
    assert_judged(&answer, "reject", "unassigned", "default", None);
    assert_eq!(answer.workload.unwrap().state, WorkloadState::Unassigned);
    assert!(answer.chain.unwrap().customer.place.is_none());
}

#[test]
fn workload_of_two_customers_is_nobodys() {
    let answer = ask("tap1i0x", "198.51.100.7");
    assert_judged(&answer, "reject", "unassigned", "default", None);
    let WorkloadState::Conflict {
        claims,
        claimed: None,
    } = answer.workload.unwrap().state
    else {
        panic!("no conflict");
    };
    let ids: Vec<_> = claims.iter().map(|claim| claim.customer.as_str()).collect();
    assert_eq!(ids, ["acme", "watched"]);
}

#[test]
fn customer_with_an_observing_profile_is_observed() {
    let answer = ask("watched", "8.8.8.8");
    assert_judged(&answer, "observe", "profile", "watch", None);
    assert!(!answer.chain.unwrap().profile.default);
}

#[test]
fn host_that_observes_refuses_nothing() {
    let settings = Settings {
        enforcement: Enforcement::Observe,
        ..Settings::default()
    };
    let answer = on(&settings, "unassigned", "8.8.8.8", None, NOW).unwrap();
    assert_judged(&answer, "observe", "unassigned", "default", None);
}

#[test]
fn nat64_address_is_judged_as_the_ipv4_inside() {
    let answer = ask("acme", "64:ff9b::192.0.2.25");
    assert_judged(
        &answer,
        "allow",
        "allowlist",
        "relays",
        Some("192.0.2.25/32"),
    );
    assert_eq!(answer.question.judged_as.to_string(), "192.0.2.25");
}

#[test]
fn port_that_is_not_guarded_is_not_judged() {
    let answer = question("acme", "8.8.8.8", Some(587), NOW).unwrap();
    let guarded_ports = vec![25];
    assert_eq!(answer.decision, Outcome::PortNotGuarded { guarded_ports });
    assert_eq!((answer.question.port, answer.chain), (587, None));
}

#[test]
fn interface_that_is_no_workload_is_not_judged() {
    for (name, state) in [
        (
            "eth0",
            WorkloadState::Unmatched {
                patterns: vec!["tap*".into(), "vnet*".into(), "veth*i*".into()],
            },
        ),
        (
            "tap-host",
            WorkloadState::Ignored {
                pattern: "tap-*".into(),
            },
        ),
    ] {
        let mut settings = Settings::default();
        settings.interfaces.ignored = vec![Pattern::new("tap-*")];
        let answer = on(&settings, name, "8.8.8.8", None, NOW).unwrap();
        assert_eq!(answer.decision, Outcome::NotAWorkload);
        assert_eq!(answer.workload.unwrap().state, state);
    }
}

#[test]
fn cgroup_below_a_claimed_one_is_its_customers() {
    let answer = cgroup("machine.slice/libpod-1.scope/init", "192.0.2.25");
    assert_judged(
        &answer,
        "allow",
        "allowlist",
        "relays",
        Some("192.0.2.25/32"),
    );
    let step = answer.workload.unwrap();
    let root = RootStep {
        cgroup: "machine.slice".into(),
        pattern: "machine.slice".into(),
    };
    assert_eq!(step.root, Some(root));
    let WorkloadState::Customer {
        customer,
        pattern,
        claimed,
        place,
    } = step.state
    else {
        panic!("not owned");
    };
    assert_eq!(customer, "acme");
    assert_eq!(pattern, "machine.slice/libpod-*.scope");
    assert_eq!(claimed.as_deref(), Some("machine.slice/libpod-1.scope"));
    assert_eq!(place.line, 4);
}

#[test]
fn cgroup_claimed_deeper_is_the_deeper_customers() {
    let answer = cgroup("machine.slice/libpod-1.scope/tenant/x", "8.8.8.8");
    assert_judged(&answer, "observe", "profile", "watch", None);
}

#[test]
fn cgroup_of_two_customers_is_nobodys() {
    let answer = cgroup("lxc/two/x", "8.8.8.8");
    assert_judged(&answer, "reject", "unassigned", "default", None);
    let WorkloadState::Conflict { claims, claimed } = answer.workload.unwrap().state else {
        panic!("no conflict");
    };
    assert_eq!(claims.len(), 2);
    assert_eq!(claimed.as_deref(), Some("lxc/two"));
}

#[test]
fn cgroup_below_a_root_that_nobody_claims_meets_the_default_profile() {
    for path in ["lxc/9", "lxc", "lxc.payload.web", "docker"] {
        let answer = cgroup(path, "8.8.8.8");
        assert_judged(&answer, "reject", "unassigned", "default", None);
        assert_eq!(answer.workload.unwrap().state, WorkloadState::Unassigned);
    }
}

#[test]
fn cgroup_below_no_root_is_not_judged_whoever_claims_it() {
    for (path, claimants) in [
        ("system.slice/ssh.service", &[][..]),
        ("elsewhere/x", &["acme"]),
        ("elsewhere", &["acme"]),
    ] {
        let answer = cgroup(path, "8.8.8.8");
        assert_eq!(answer.decision, Outcome::NotAWorkload);
        assert_eq!(answer.chain, None);
        let WorkloadState::OutsideRoots { roots, claims } = answer.workload.unwrap().state else {
            panic!("below a root");
        };
        assert_eq!(roots.len(), 5);
        let ids: Vec<_> = claims.iter().map(|claim| claim.customer.as_str()).collect();
        assert_eq!(ids, claimants, "{path}");
    }
}

#[test]
fn cgroup_is_named_as_shells_and_proc_name_it() {
    for word in [
        "machine.slice/libpod-1.scope",
        "/machine.slice/libpod-1.scope",
        "/sys/fs/cgroup/machine.slice/libpod-1.scope/",
        "/sys/fs/cgroup/unified/machine.slice/libpod-1.scope",
    ] {
        let name = WorkloadName::Cgroup("machine.slice/libpod-1.scope".into());
        assert_eq!(cgroup(word, "8.8.8.8").workload.unwrap().name, name);
    }
    for word in ["/", "lxc//x", "lxc/../x", "./lxc", "/sys/fs/cgroup/"] {
        let refusal = question(word, "8.8.8.8", None, NOW).unwrap_err();
        assert_eq!(refusal, ExplainError::Path(word.into()));
    }
}

#[test]
fn interface_that_exists_comes_before_a_cgroup_of_its_name() {
    let mut settings = Settings::default();
    settings.cgroups.roots = vec![Pattern::new("eth0")];
    let answer = on(&settings, "eth0", "8.8.8.8", None, NOW).unwrap();
    let name = WorkloadName::Interface("eth0".into());
    assert_eq!(answer.workload.unwrap().name, name);
}

#[test]
fn json_of_a_cgroup_names_it_its_root_and_what_was_claimed() {
    let answer = cgroup("machine.slice/libpod-1.scope/x", "192.0.2.25");
    let json = serde_json::to_value(answer).unwrap();
    assert_eq!(
        json.pointer("/workload").unwrap(),
        &serde_json::json!({
            "cgroup": "machine.slice/libpod-1.scope/x",
            "root": {"cgroup": "machine.slice", "pattern": "machine.slice"},
            "state": "customer", "customer": "acme",
            "pattern": "machine.slice/libpod-*.scope",
            "claimed": "machine.slice/libpod-1.scope",
            "place": {"file": "/policy/a.yaml", "line": 4, "column": 1},
        })
    );
    let interface = serde_json::to_value(ask("tap9i0", "192.0.2.25")).unwrap();
    assert_eq!(
        interface.pointer("/workload").unwrap(),
        &serde_json::json!({"interface": "tap9i0", "state": "unassigned"})
    );
}

#[test]
fn word_unknown_is_answered_with_close_names() {
    let refusal = question("acmee", "8.8.8.8", None, NOW).unwrap_err();
    let close = vec!["acme".to_owned()];
    let word = "acmee".to_owned();
    assert_eq!(refusal, ExplainError::Unknown { word, close });
}

#[test]
fn time_before_the_clock_is_refused() {
    let refusal = question("acme", "8.8.8.8", None, -1).unwrap_err();
    assert_eq!(refusal, ExplainError::Time(at(-1)));
}

#[test]
fn json_keeps_its_names() {
    let answer = question("tap1i0", "192.0.2.25", None, NOW).unwrap();
    let json = serde_json::to_value(answer).unwrap();
    assert_eq!(
        json.pointer("/decision").unwrap(),
        &serde_json::json!({
            "outcome": "judged", "verdict": "allow", "reason": "allowlist",
            "entry": {
                "kind": "allowlist", "name": "relays", "match": "192.0.2.25/32",
                "place": {"file": "/policy/a.yaml", "line": 1, "column": 1},
            },
        })
    );
    assert_eq!(json.pointer("/workload/state").unwrap(), "customer");
    assert_eq!(
        json.pointer("/question/at").unwrap(),
        "1970-01-01T00:16:40Z"
    );
    assert_eq!(json.pointer("/chain/exemptions/0/state").unwrap(), "active");
}

#[test]
fn destination_is_read_with_and_without_port() {
    for (word, address, port) in [
        ("192.0.2.1", "192.0.2.1", None),
        ("192.0.2.1:25", "192.0.2.1", Some(25)),
        ("2001:db8::25", "2001:db8::25", None),
        ("[2001:db8::1]", "2001:db8::1", None),
        ("[2001:db8::1]:587", "2001:db8::1", Some(587)),
    ] {
        let address = address.parse().unwrap();
        assert_eq!(word.parse(), Ok(Destination { address, port }), "{word}");
    }
    for word in [
        "",
        "mx.example",
        "192.0.2.1:",
        "192.0.2.1:65536",
        "[192.0.2.1]:25",
        "[fe80::1%2]:25",
    ] {
        assert!(word.parse::<Destination>().is_err(), "{word}");
    }
}

/// The policy that the expectations above are about.
fn fixture() -> Policy {
    let mut policy = policy();
    let lists = [("relays", "192.0.2.25/32"), ("own", "198.51.100.0/24")];
    for (name, net) in lists {
        policy.allowlists.insert(name.into(), allowlist(&[net]));
    }
    let profiles = [
        ("default", profile(Mode::Enforce, &["relays"])),
        ("watch", profile(Mode::Observe, &[])),
    ];
    policy.profiles = profiles
        .map(|(name, profile)| (name.to_owned(), profile))
        .into();
    let customers = [
        ("acme", customer("default", &["own"], &["tap1i*"])),
        ("watched", customer("watch", &[], &["tap1i?x"])),
    ];
    policy.customers = customers
        .map(|(id, customer)| (id.to_owned(), customer))
        .into();
    let narrow = listed(&["203.0.113.0/24"], &[]);
    let over = listed(&["203.0.113.7/32"], &["gone"]);
    let (start, end) = (Some(at(NOW)), at(NOW + 100));
    let exemptions = [
        ("any", exemption("acme", start, end, Destinations::Any)),
        (
            "later",
            exemption(
                "acme",
                Some(at(NOW + 500)),
                at(NOW + 600),
                Destinations::Any,
            ),
        ),
        ("narrow", exemption("acme", start, end, narrow)),
        ("over", exemption("acme", None, at(NOW - 500), over)),
    ];
    policy.exemptions = exemptions.map(|(id, one)| (id.to_owned(), one)).into();
    policy
}

/// Asks about a cgroup, with customers that own some.
fn cgroup(path: &str, destination: &str) -> Explanation {
    let mut policy = fixture();
    for (id, pattern) in [
        ("acme", "machine.slice/libpod-*.scope"),
        ("watched", "machine.slice/libpod-*.scope/tenant"),
        ("acme", "lxc/two"),
        ("watched", "lxc/t*"),
        ("acme", "elsewhere"),
    ] {
        let customer = policy.customers.get_mut(id).unwrap();
        let mut workload = customer.workloads[0].clone();
        workload.selector = Selector::Cgroup(Pattern::new(pattern));
        customer.workloads = customer
            .workloads
            .iter()
            .cloned()
            .chain([workload])
            .collect();
    }
    of(&policy, &Settings::default(), path, destination, None, NOW).unwrap()
}

fn ask(subject: &str, destination: &str) -> Explanation {
    question(subject, destination, None, NOW).unwrap()
}

fn question(
    subject: &str,
    destination: &str,
    port: Option<u16>,
    second: i64,
) -> Result<Explanation, ExplainError> {
    on(&Settings::default(), subject, destination, port, second)
}

fn on(
    settings: &Settings,
    subject: &str,
    destination: &str,
    port: Option<u16>,
    second: i64,
) -> Result<Explanation, ExplainError> {
    let mut policy = fixture();
    if second < NOW {
        policy.allowlists.insert("gone".into(), allowlist(&[]));
    }
    of(&policy, settings, subject, destination, port, second)
}

fn of(
    policy: &Policy,
    settings: &Settings,
    subject: &str,
    destination: &str,
    port: Option<u16>,
    second: i64,
) -> Result<Explanation, ExplainError> {
    let host = Host {
        name: "hv-1",
        settings,
        interfaces: &BTreeSet::from(["eth0".to_owned()]),
        directory: Path::new("/policy"),
    };
    let question = Question {
        subject: subject.to_owned(),
        destination: destination.parse().unwrap(),
        port,
        at: at(second),
    };
    explain(policy, &host, &question)
}

#[track_caller]
fn assert_judged(
    answer: &Explanation,
    verdict: &str,
    reason: &str,
    entry: &str,
    matched: Option<&str>,
) {
    let Outcome::Judged {
        verdict: found,
        reason: why,
        redirected_to: None,
        entry: Some(Entry {
            name,
            matched: prefix,
            ..
        }),
    } = &answer.decision
    else {
        panic!("{:?}", answer.decision);
    };
    assert_eq!(
        (*found, *why, name.as_str(), prefix.as_deref()),
        (verdict, reason, entry, matched)
    );
}
