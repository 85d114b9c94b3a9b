//! What is shipped: the examples, the schema and the command that prints and checks them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use gate25::cli::console::Console;
use gate25::cli::{check, schema};
use gate25::diagnostic::terminal::Colour;
use gate25::policy::Pattern;
use gate25::policy::language;
use gate25::policy::loader::{Loader, Purpose};
use gate25::settings::{self, Enforcement, Missing, Settings};
use gate25::trust::Trust;
use serde_json::Value;

use super::{DEFAULT, NOW, circumstances, customer_key, file};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

fn run(args: &check::Args, config: &Path, missing: Missing) -> (ExitCode, String) {
    let surroundings = check::Surroundings {
        config,
        missing,
        now: NOW.parse().unwrap(),
        customer_key,
        colour: Colour::Never,
    };
    let mut out = Vec::new();
    let mut console = Console {
        out: &mut out,
        complaints: &mut Vec::new(),
    };
    let code = check::run(args, &surroundings, &mut console).unwrap();
    (code, String::from_utf8(out).unwrap())
}

fn args(dir: Option<PathBuf>) -> check::Args {
    check::Args {
        dir,
        json: false,
        lint_fatal: false,
        diff: None,
        format: check::Format::Text,
    }
}

#[test]
fn shipped_schema_is_current() {
    let mut printed = Vec::new();
    schema::run(&mut printed).unwrap();
    let path = deploy("schema/policy.v1.json");
    if std::env::var_os("GATE25_UPDATE_SCHEMA").is_some() {
        fs::write(&path, &printed).unwrap();
    }
    let shipped: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let printed: Value = serde_json::from_slice(&printed).unwrap();
    assert!(
        shipped == printed,
        "run the test with GATE25_UPDATE_SCHEMA=1"
    );
}

#[test]
fn example_policy_is_valid_by_the_schema_and_by_check() {
    let validator = jsonschema::draft7::new(&language::json_schema()).unwrap();
    let mut files = 0;
    for entry in fs::read_dir(deploy("policy.d")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let value: Value = serde_yaml::from_str(&text).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(&value)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:?}");
        files += 1;
    }
    assert_eq!(files, 3);
    let fatal = check::Args {
        lint_fatal: true,
        ..args(Some(deploy("policy.d")))
    };
    let (code, out) = run(&fatal, Path::new("/nonexistent"), Missing::Refused);
    assert_eq!(code, ExitCode::SUCCESS, "{out}");
    assert!(out.starts_with("valid: 3 files in "), "{out}");
    assert!(
        out.ends_with(
            "3 customers, 1 exemption (1 active), 2 allowlists, 3 profiles; 0 warnings\n"
        )
    );
}

#[test]
fn schema_refuses_what_the_reader_refuses() {
    let validator = jsonschema::draft7::new(&language::json_schema()).unwrap();
    let refused = [
        "customers: []",
        "schema: 2",
        "{schema: 1, custmers: []}",
        "{schema: 1, customers: [{id: any}]}",
        "{schema: 1, customers: [{id: a b}]}",
        "{schema: 1, customers: [{id: a, workloads: [{interface: tap10*}]}]}",
        "{schema: 1, customers: [{id: a, workloads: [{interface: tap/1}]}]}",
        "{schema: 1, customers: [{id: a, workloads: [{hosts: [x]}]}]}",
        "{schema: 1, customers: [{id: a, workloads: [{cgroup: x, interface: y}]}]}",
        "{schema: 1, customers: [{id: a, workloads: [{cgroup: /x}]}]}",
        "{schema: 1, customers: [{id: a, workloads: [{cgroup: x/../y}]}]}",
        "{schema: 1, customers: [{id: a, workloads: [{cgroup: lxc/10*}]}]}",
        "{schema: 1, customers: [{id: a, workloads: [{cgroup: x10*}]}]}",
        "{schema: 1, customers: [{id: a, workloads: [{cgroup: x/**}]}]}",
        "{schema: 1, allowlists: [{name: a}]}",
        "{schema: 1, allowlists: [{name: a, to: [mail.example.net]}]}",
        "{schema: 1, profiles: [{name: a, blocked: notify}]}",
        "{schema: 1, profiles: [{name: a, blocked: redirect, relay: [192.0.2.0/24]}]}",
        "{schema: 1, profiles: [{name: a, blocked: redirect, relay: 192.0.2.25}]}",
        "{schema: 1, rules: {min_prefix_v4: 33}}",
        "{schema: 1, exemptions: [{id: e}]}",
    ];
    for text in refused {
        let value: Value = serde_yaml::from_str(text).unwrap();
        assert!(!validator.is_valid(&value), "{text}");
    }
}

#[test]
fn schema_accepts_cgroups_that_the_reader_accepts() {
    let validator = jsonschema::draft7::new(&language::json_schema()).unwrap();
    let accepted = [
        "machine.slice/libpod-*.scope",
        "lxc/101",
        "a/?1/*",
        "libpod-0123456789ab*",
        "'machine.slice/machine-qemu\\x2d1\\x2dweb*.scope'",
        "'web\\x20*'",
        "'a b/c d'",
    ];
    for pattern in accepted {
        let text =
            format!("{{schema: 1, customers: [{{id: a, workloads: [{{cgroup: {pattern}}}]}}]}}");
        let value: Value = serde_yaml::from_str(&text).unwrap();
        assert!(validator.is_valid(&value), "{text}");
        let set = [file("a.yaml", text), file("default.yaml", DEFAULT)];
        let loaded = Loader::default().load(&set, &circumstances(Purpose::Check));
        assert!(loaded.is_ok(), "{pattern}: {loaded:?}");
    }
}

#[test]
fn schema_and_reader_know_the_same_keys() {
    let schema = language::json_schema();
    let places = [
        (schema.clone(), "zzzzzzzzzz: x"),
        (
            schema["properties"]["rules"]["anyOf"][0].clone(),
            "rules: {zzzzzzzzzz: x}",
        ),
        (
            schema["definitions"]["AllowlistMap"].clone(),
            "allowlists: [{zzzzzzzzzz: x}]",
        ),
        (
            schema["definitions"]["ProfileMap"].clone(),
            "profiles: [{zzzzzzzzzz: x}]",
        ),
        (
            schema["definitions"]["CustomerMap"].clone(),
            "customers: [{zzzzzzzzzz: x}]",
        ),
        (
            schema["definitions"]["ExemptionMap"].clone(),
            "exemptions: [{zzzzzzzzzz: x}]",
        ),
        (
            schema["definitions"]["WorkloadMap"].clone(),
            "customers: [{workloads: [{zzzzzzzzzz: x}]}]",
        ),
    ];
    assert_eq!(schema["definitions"].as_object().unwrap().len(), 5);
    for (map, text) in places {
        let set = [file("a.yaml", format!("schema: 1\n{text}\n"))];
        let refused = Loader::default()
            .load(&set, &circumstances(Purpose::Check))
            .unwrap_err();
        let unknown = refused
            .diagnostics
            .iter()
            .find(|one| one.code == "unknown-key")
            .unwrap();
        let known = unknown
            .help
            .as_deref()
            .unwrap()
            .strip_prefix("known here: ")
            .unwrap();
        let mut known: Vec<_> = known.split(", ").collect();
        known.sort_unstable();
        let mut listed: Vec<_> = map["properties"].as_object().unwrap().keys().collect();
        listed.sort_unstable();
        assert_eq!(known, listed, "{text}");
        let mut required: Vec<_> = map["required"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key.as_str().unwrap())
            .collect();
        if text.starts_with("zzz") {
            required.retain(|key| *key != "schema");
        }
        let missing = refused
            .diagnostics
            .iter()
            .filter(|one| one.code == "missing-key");
        for key in required {
            let message = format!("the key `{key}` is missing");
            assert!(
                missing.clone().any(|one| one.message == message),
                "{text}: {key}"
            );
        }
        assert_eq!(map["additionalProperties"], false);
    }
}

#[test]
fn example_settings_are_the_defaults_in_observe_mode() {
    let path = deploy("gate25.yaml");
    let loaded = settings::read(&path, Missing::Refused, &Trust::Anybody).unwrap();
    assert_eq!(loaded.warnings, []);
    let expected = Settings {
        enforcement: Enforcement::Observe,
        ..Settings::default()
    };
    assert_eq!(loaded.settings, expected);
}

#[test]
fn settings_without_a_file_are_the_defaults_unless_it_was_named() {
    let none = Path::new("/nonexistent/gate25.yaml");
    assert_eq!(
        settings::read(none, Missing::Defaults, &Trust::Anybody)
            .unwrap()
            .settings,
        Settings::default()
    );
    assert!(settings::read(none, Missing::Refused, &Trust::Anybody).is_err());
}

#[test]
fn settings_given_in_full_are_all_read() {
    let text = concat!(
        "schema: 1\nenforcement: policy\nhost: hv-1\npolicy_dir: /srv/policy\nbackend: ebpf\n",
        "state_dir: /srv/state\ncgroups: {roots: [a.slice, 'b\\x2d?/c d-*']}\n",
        "guarded_ports: [2525, 25]\ninterfaces: {match: [\"a*\"], ignore: [\"ab*\"]}\n",
        "reload: {quiet_time: 1s, rescan: 5m, max_shrink_percent: 100, shrink_min_objects: 0}\n",
        "http: {listen: [], web_config: /etc/web.yaml, customer_series_limit: 7}\n",
        "control: {socket: /run/x.sock, group: noc}\n",
        "log: {level: debug, format: json}\n",
    );
    let path: Arc<Path> = Arc::from(Path::new("gate25.yaml"));
    let read = settings::parse(&path, text.as_bytes()).unwrap().settings;
    assert_eq!(read.host.as_deref(), Some("hv-1"));
    assert_eq!(read.policy_dir, Path::new("/srv/policy"));
    assert_eq!(read.state_dir, Path::new("/srv/state"));
    assert_eq!(read.guarded_ports, [25, 2525]);
    let roots: Vec<_> = read.cgroups.roots.iter().map(Pattern::as_str).collect();
    assert_eq!(roots, ["a.slice", "b\\x2d?/c d-*"]);
    assert_eq!(read.control.socket, Path::new("/run/x.sock"));
    assert_eq!(read.control.group, "noc");
    assert_eq!(read.reload.max_shrink_percent, 100);
    assert_eq!(read.reload.shrink_min_objects, 0);
    assert_eq!(read.interfaces.ignored[0].as_str(), "ab*");
    assert_eq!(read.reload.rescan.as_secs(), 300);
    assert_eq!(
        read.http.web_config.as_deref(),
        Some(Path::new("/etc/web.yaml"))
    );
    assert_eq!(read.http.customer_series_limit, 7);
    assert!(read.http.listen.is_empty());
    assert_eq!(read.log.level, settings::LogLevel::Debug);
}

#[test]
fn settings_of_the_notice_are_all_read() {
    let text = concat!(
        "schema: 1\nnotice:\n  listen: [\"192.0.2.1:26\", \"[2001:db8::1]:27\"]\n",
        "  text: |\n    Ask at {url}\n    about {customer}\n  url: https://example.com/25\n",
        "  max_connections: 5\n  max_connections_per_peer: 4\n  max_connections_per_second: 3\n",
        "  idle_time: 2s\n  connection_time: 1m\n",
    );
    let path: Arc<Path> = Arc::from(Path::new("gate25.yaml"));
    let notice = settings::parse(&path, text.as_bytes())
        .unwrap()
        .settings
        .notice;
    let listen: Vec<_> = notice.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["192.0.2.1:26", "[2001:db8::1]:27"]);
    assert_eq!(
        notice.text.reply(None),
        "554-5.7.1 Ask at https://example.com/25\r\n554 5.7.1 about unassigned\r\n"
    );
    let limits = gate25::notice::Limits {
        connections: 5,
        per_peer: 4,
        per_second: 3,
        idle: Duration::from_secs(2),
        connection: Duration::from_secs(60),
    };
    assert_eq!(notice.limits, limits);
}

#[test]
fn settings_of_the_notice_with_a_page_alone_add_it_to_the_text() {
    let text = "schema: 1\nnotice: {url: \"mailto:noc@example.com\"}\n";
    let path: Arc<Path> = Arc::from(Path::new("gate25.yaml"));
    let loaded = settings::parse(&path, text.as_bytes()).unwrap();
    assert_eq!(loaded.warnings, []);
    let reply = loaded.settings.notice.text.reply(None);
    assert!(
        reply.ends_with("\r\n554 5.7.1 See mailto:noc@example.com\r\n"),
        "{reply}"
    );
}

#[test]
fn check_of_a_set_with_errors_says_where_and_exits_with_one() {
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(
        dir.path().join("a.yaml"),
        "schema: 1\nprofiles: [{name: default, mod: x}]\n",
    )
    .unwrap();
    let (code, out) = run(
        &args(Some(dir.path().to_owned())),
        Path::new("/none"),
        Missing::Refused,
    );
    assert_eq!(code, ExitCode::from(1));
    let place = format!("{}/a.yaml:2:28", dir.path().display());
    assert!(
        out.contains(&place) && out.contains("did you mean `mode`?"),
        "{out}"
    );
    assert!(out.ends_with("refused: 1 error; 0 warnings\n"), "{out}");

    let json = check::Args {
        json: true,
        ..args(Some(dir.path().to_owned()))
    };
    let (_, out) = run(&json, Path::new("/none"), Missing::Refused);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["valid"], false);
    assert_eq!(report["diagnostics"][0]["primary"]["column"], 28);
    assert_eq!(report["diagnostics"][0]["code"], "unknown-key");
}

#[test]
fn check_with_warnings_exits_with_three_only_when_asked() {
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), super::DEFAULT).unwrap();
    fs::write(dir.path().join("README"), "").unwrap();
    let plain = args(Some(dir.path().to_owned()));
    assert_eq!(
        run(&plain, Path::new("/none"), Missing::Refused).0,
        ExitCode::SUCCESS
    );
    let fatal = check::Args {
        lint_fatal: true,
        ..plain
    };
    assert_eq!(
        run(&fatal, Path::new("/none"), Missing::Refused).0,
        ExitCode::from(3)
    );
}

#[test]
fn check_without_a_directory_takes_the_one_of_the_settings() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = dir.path().join("gate25.yaml");
    fs::write(
        &config,
        format!(
            "schema: 1\npolicy_dir: {}\n",
            dir.path().join("p").display()
        ),
    )
    .unwrap();
    let (code, out) = run(&args(None), &config, Missing::Refused);
    assert_eq!(code, ExitCode::from(1));
    assert!(out.contains("no-directory"), "{out}");
    fs::create_dir(dir.path().join("p")).unwrap();
    fs::write(dir.path().join("p/a.yaml"), super::DEFAULT).unwrap();
    assert_eq!(
        run(&args(None), &config, Missing::Refused).0,
        ExitCode::SUCCESS
    );
}
