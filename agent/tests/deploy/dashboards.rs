//! Dashboards for Grafana.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::alerts::known;
use super::deploy;

#[track_caller]
fn dashboards() -> Vec<Value> {
    let entries = fs::read_dir(deploy("grafana")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|it| it == "json"));
    let found: Vec<Value> = paths
        .map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
        .collect();
    assert_eq!(found.len(), 3);
    found
}

/// The panels that show something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row")
}

/// A query as Prometheus gets it.
fn filled(query: &str) -> String {
    query
        .replace("$__rate_interval", "5m")
        .replace("$__range", "6h")
}

#[test]
fn metrics_of_every_panel_and_variable_are_those_that_the_agent_has() {
    let known = known();
    for dashboard in dashboards() {
        for panel in panels(&dashboard) {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{panel}");
            for target in targets {
                known.check(&filled(target["expr"].as_str().unwrap()));
            }
        }
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            let Some(query) = variable["query"]["query"].as_str() else {
                continue;
            };
            let inner = query.strip_prefix("label_values(").unwrap();
            let (series, label) = inner.trim_end_matches(')').rsplit_once(", ").unwrap();
            known.check(series);
            known.check(&format!("count by ({label}) ({series})"));
        }
    }
}

#[test]
fn dashboards_can_be_provisioned_on_any_grafana() {
    let (mut uids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for dashboard in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap().to_owned();
        assert!(uid.starts_with("gate25-"), "{uid}");
        // Grafana gives the number.
        assert!(dashboard.get("id").is_none(), "{uid}");
        titles.insert(dashboard["title"].as_str().unwrap().to_owned());
        uids.insert(uid);
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        assert_eq!(variables[0]["name"], "datasource");
        assert_eq!(variables[0]["type"], "datasource");
        let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
        for panel in panels(&dashboard) {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
            assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{panel}");
            assert!(names.insert(panel["title"].as_str().unwrap()), "{panel}");
            for target in panel["targets"].as_array().unwrap() {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
            }
        }
    }
    assert_eq!((uids.len(), titles.len()), (3, 3));
}

#[test]
fn panels_do_not_lie_on_one_another() {
    for dashboard in dashboards() {
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let [x, y, w, h] =
                ["x", "y", "w", "h"].map(|it| panel["gridPos"][it].as_u64().unwrap());
            assert!(x + w <= 24, "{panel}");
            for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(place), "{} at {place:?}", panel["title"]);
            }
        }
    }
}
