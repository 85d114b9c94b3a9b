//! The pages of the manual that are written by hand.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use gate25::policy::language;
use gate25::settings;
use serde_json::Value;

use super::text;

/// The keys that a page has a paragraph for: `.TP`, then `.B KEY`.
#[track_caller]
fn documented(page: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = page.lines().collect();
    let mut keys = BTreeSet::new();
    for pair in lines.windows(2) {
        if pair[0] == ".TP"
            && let Some(key) = pair[1].strip_prefix(".B ")
        {
            assert!(keys.insert(key.to_owned()), "{key} twice");
        }
    }
    keys
}

/// The keys that the settings' reader knows in a map, as it tells whoever writes another one.
#[track_caller]
fn known_in(map: Option<&str>) -> Vec<String> {
    let text = match map {
        None => "schema: 1\nzzzzzzzzzz: x\n".to_owned(),
        Some(map) => format!("schema: 1\n{map}: {{zzzzzzzzzz: x}}\n"),
    };
    let path: Arc<Path> = Arc::from(Path::new("gate25.yaml"));
    let diagnostics = settings::parse(&path, text.as_bytes()).unwrap_err();
    let unknown = diagnostics.iter().find(|one| one.code == "unknown-key");
    let help = unknown
        .and_then(|one| one.help.as_deref())
        .unwrap_or_default();
    let Some(known) = help.strip_prefix("known here: ") else {
        return Vec::new();
    };
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn manual_of_the_settings_has_every_key_that_is_read_and_no_other() {
    let mut keys = BTreeSet::new();
    for key in known_in(None) {
        let below = known_in(Some(&key));
        if below.is_empty() {
            keys.insert(key);
        } else {
            keys.extend(below.iter().map(|inner| format!("{key}.{inner}")));
        }
    }
    assert!(keys.len() > 25, "{keys:?}");
    assert_eq!(documented(&text("man/gate25.yaml.5")), keys);
}

#[test]
fn manual_of_the_policy_has_every_key_of_the_schema_and_no_other() {
    let schema = language::json_schema();
    let mut keys = BTreeSet::new();
    collect(&schema, &schema, "", &mut keys);
    assert!(keys.len() > 25, "{keys:?}");
    assert_eq!(documented(&text("man/gate25-policy.5")), keys);
}

/// The keys of a map and, with dots, of those in it.
fn collect(schema: &Value, map: &Value, before: &str, keys: &mut BTreeSet<String>) {
    for (key, value) in map["properties"].as_object().into_iter().flatten() {
        let name = format!("{before}{key}");
        for inner in maps_in(schema, value) {
            collect(schema, inner, &format!("{name}."), keys);
        }
        keys.insert(name);
    }
}

/// The maps that a value may be, or is a list of.
fn maps_in<'s>(schema: &'s Value, value: &'s Value) -> Vec<&'s Value> {
    let mut found = Vec::new();
    if let Some(name) = value["$ref"].as_str() {
        let name = name.strip_prefix("#/definitions/").unwrap();
        found.push(&schema["definitions"][name]);
    }
    if value["properties"].is_object() {
        found.push(value);
    }
    found.extend(
        value
            .get("items")
            .into_iter()
            .flat_map(|items| maps_in(schema, items)),
    );
    for key in ["anyOf", "allOf", "oneOf"] {
        let choices = value[key].as_array().into_iter().flatten();
        found.extend(choices.flat_map(|choice| maps_in(schema, choice)));
    }
    found
}

#[test]
fn pages_are_roff_that_man_reads_without_a_warning() {
    for page in ["man/gate25.yaml.5", "man/gate25-policy.5"] {
        let mut man = std::process::Command::new("man");
        let output = man
            .args(["--warnings", "--local-file"])
            .arg(super::deploy(page))
            .env("LC_ALL", "C.UTF-8")
            .env("MANWIDTH", "80")
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && complaint.is_empty(),
            "{page}: {complaint}"
        );
    }
}
