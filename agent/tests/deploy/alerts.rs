//! Rules and alerts for Prometheus.

use std::collections::BTreeSet;
use std::process::Command;

use gate25::doctor::{Area, Kind, Severity};
use serde_json::Value;

use super::query::Known;
use super::{deploy, text};

/// The rules of a file, all groups.
#[track_caller]
fn rules(file: &str) -> Vec<Value> {
    let value: Value = serde_yaml::from_str(&text(file)).unwrap();
    let groups = value["groups"].as_array().unwrap();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap());
    rules.cloned().collect()
}

fn names(rules: &[Value]) -> BTreeSet<String> {
    let names = rules
        .iter()
        .map(|rule| rule["alert"].as_str().unwrap().to_owned());
    names.collect()
}

/// Files of promtool's tests.
const TESTS: [&str; 2] = ["tests/alerts.yaml", "tests/days.yaml"];

#[track_caller]
fn tests(file: &str) -> Vec<Value> {
    let value: Value = serde_yaml::from_str(&text(&format!("prometheus/{file}"))).unwrap();
    value["tests"].as_array().unwrap().clone()
}

/// What dashboards and alerts may name: the catalogue, and what is recorded.
#[track_caller]
pub(super) fn known() -> Known {
    let mut known = Known::of_catalogue();
    for rule in rules("prometheus/rules.yaml") {
        let query = rule["expr"].as_str().unwrap();
        known.check(query);
        known.record(rule["record"].as_str().unwrap(), query);
    }
    known
}

#[test]
fn metrics_of_every_rule_and_alert_are_those_that_the_agent_has() {
    let known = known();
    let alerts = rules("prometheus/alerts.yaml");
    assert!(alerts.len() > 20);
    for alert in alerts {
        known.check(alert["expr"].as_str().unwrap());
    }
}

#[test]
fn every_alert_says_what_it_is_and_where_to_read_what_to_do() {
    let alerts = rules("prometheus/alerts.yaml");
    assert_eq!(names(&alerts).len(), alerts.len());
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        assert!(name.starts_with("Gate25"), "{name}");
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(
            ["page", "ticket", "info"].contains(&severity),
            "{name}: {severity}"
        );
        for annotation in ["summary", "description"] {
            assert!(
                !alert["annotations"][annotation]
                    .as_str()
                    .unwrap()
                    .is_empty(),
                "{name}"
            );
        }
        let runbook = alert["annotations"]["runbook_url"].as_str().unwrap();
        let anchor = format!("deploy/prometheus/RUNBOOK.md#{}", name.to_lowercase());
        assert!(runbook.ends_with(&anchor), "{name}: {runbook}");
    }
    let runbook = text("prometheus/RUNBOOK.md");
    let headings = runbook.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(
        headings.map(str::to_owned).collect::<BTreeSet<_>>(),
        names(&alerts)
    );
}

#[test]
fn every_alert_is_shown_to_fire_and_to_be_silent_or_waiting_before() {
    let (mut fires, mut waits) = (BTreeSet::new(), BTreeSet::new());
    for test in TESTS.iter().flat_map(|file| tests(file)) {
        for asked in test["promql_expr_test"].as_array().into_iter().flatten() {
            let query = asked["expr"].as_str().unwrap();
            let Some(name) = query.strip_prefix("ALERTS{alertname=\"") else {
                continue;
            };
            let name = name.trim_end_matches("\"}").to_owned();
            let samples = asked["exp_samples"].as_array().unwrap();
            let firing = samples.iter().any(|sample| {
                let labels = sample["labels"].as_str().unwrap();
                labels.contains("alertstate=\"firing\"")
            });
            if firing {
                fires.insert(name);
            } else {
                waits.insert(name);
            }
        }
    }
    let alerts = names(&rules("prometheus/alerts.yaml"));
    assert_eq!(fires, alerts);
    assert_eq!(waits, alerts);
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() {
    for (args, file) in [
        (
            &["check", "rules", "--lint=all", "--lint-fatal"][..],
            "rules.yaml",
        ),
        (
            &["check", "rules", "--lint=all", "--lint-fatal"],
            "alerts.yaml",
        ),
        (&["check", "config", "--syntax-only"], "scrape.yaml"),
        (&["test", "rules"], TESTS[0]),
        (&["test", "rules"], TESTS[1]),
    ] {
        let mut promtool = Command::new("promtool");
        let file = deploy("prometheus").join(file);
        let output = promtool.args(args).arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{}: {text}{complaint}",
            file.display()
        );
    }
}

/// What pages somebody is what the doctor calls an error.
#[test]
fn findings_that_page_are_the_doctors_errors() {
    let alerts = rules("prometheus/alerts.yaml");
    let query = |name: &str| {
        let alert = alerts.iter().find(|alert| alert["alert"] == name).unwrap();
        alert["expr"].as_str().unwrap().to_owned()
    };
    let warnings: BTreeSet<&str> = Kind::ALL
        .iter()
        .filter(|kind| kind.area() == Area::Coverage && kind.severity() == Severity::Warning)
        .map(|kind| kind.as_str())
        .collect();
    let listed = |name: &str, operator: &str| {
        let query = query(name);
        let (_, rest) = query.split_once(&format!("kind{operator}\"")).unwrap();
        let (kinds, _) = rest.split_once('"').unwrap();
        kinds.split('|').map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let expected: BTreeSet<String> = warnings.into_iter().map(str::to_owned).collect();
    assert_eq!(listed("Gate25CoverageGap", "!~"), expected);
    assert_eq!(listed("Gate25CoverageDoubt", "=~"), expected);
}

#[test]
fn routes_of_the_example_lead_every_alert_to_somebody() {
    let config: Value = serde_yaml::from_str(&text("prometheus/alertmanager.yaml")).unwrap();
    let receivers: BTreeSet<&str> = config["receivers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|receiver| receiver["name"].as_str().unwrap())
        .collect();
    let routes = config["route"]["routes"].as_array().unwrap();
    for route in routes.iter().chain([&config["route"]]) {
        assert!(
            receivers.contains(route["receiver"].as_str().unwrap()),
            "{route}"
        );
    }
    let alerts = names(&rules("prometheus/alerts.yaml"));
    let inhibited = config["inhibit_rules"].as_array().unwrap();
    for source in inhibited.iter().map(|rule| &rule["source_matchers"][0]) {
        let name = source.as_str().unwrap();
        let name = name
            .strip_prefix("alertname=\"")
            .unwrap()
            .trim_end_matches('"');
        assert!(alerts.contains(name), "{name}");
    }
}
