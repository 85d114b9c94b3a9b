//! The command as people start it: what it prints and how it exits.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};

use tempfile::TempDir;

const POLICY: &str = "schema: 1
allowlists:
  - name: relays
    to: [192.0.2.25]
profiles:
  - name: default
    allow: [relays]
customers:
  - id: acme
    name: ACME GmbH
    workloads:
      - interface: \"tap1i*\"
      - cgroup: 'lxc/my\\x2dweb *'
exemptions:
  - id: news
    customer: acme
    reason: newsletter
    ticket: NOC-1
    approved_by: noc
    starts: 2026-11-01T00:00:00Z
    expires: 2026-12-01T00:00:00Z
    to: any
";
const DURING: &str = "2026-11-15T00:00:00Z";

#[test]
fn guard_that_is_kept_is_printed_where_the_settings_are_not_valid() {
    let guard = KeptGuard::new();
    let valid = "schema: 1\nguarded_ports: [25, 2525]\n";
    let (of_nobody, code) = guard.print(BROKEN);
    assert_eq!(code, Some(1));
    assert!(
        of_nobody.contains("tap*") && of_nobody.contains("\"set\":[25]"),
        "{of_nobody}"
    );
    assert!(
        !guard.file.exists(),
        "settings that are not valid leave nothing"
    );
    let (own, code) = guard.print(valid);
    assert_eq!(code, Some(0));
    assert!(own.contains("\"set\":[25,2525]"), "{own}");
    assert_eq!(std::fs::read_to_string(&guard.file).unwrap(), own);
    assert_eq!(guard.print(BROKEN), (own.clone(), Some(1)));
    // A guard that nobody wants is kept as that.
    let (removal, code) = guard.print("schema: 1\nguard: false\n");
    assert_eq!(code, Some(0));
    assert!(!removal.contains("tap*"), "{removal}");
    assert_eq!(guard.print(BROKEN), (removal, Some(1)));
}

#[test]
fn guard_that_is_kept_without_printing_is_that_of_the_last_valid_settings() {
    let guard = KeptGuard::new();
    let policy = "schema: 1\nguarded_ports: [25, 2525]\n";
    let (expected, _) = guard.print(policy);
    std::fs::remove_file(&guard.file).unwrap();
    assert_eq!(guard.run(&[], policy), (String::new(), Some(0)));
    assert_eq!(std::fs::read_to_string(&guard.file).unwrap(), expected);
    assert_eq!(guard.run(&[], BROKEN), (String::new(), Some(1)));
    assert_eq!(std::fs::read_to_string(&guard.file).unwrap(), expected);
}

#[test]
fn guard_of_an_observing_host_refuses_where_broken_settings_do_not_say_observe() {
    const RULES: &str = "interfaces: {match: [\"nic*\"]}\n";
    let guard = KeptGuard::new();
    let observing = format!("schema: 1\nenforcement: observe\n{RULES}");
    let (printed, code) = guard.print(&observing);
    assert_eq!(code, Some(0));
    assert!(!printed.contains("drop"), "{printed}");
    // Somebody has mistyped something on a host that never refused anything.
    let (kept, code) = guard.print(&format!("{observing}guard_mark: 3\n"));
    assert_eq!((kept, code), (printed, Some(1)));
    // Or has just told it to refuse, or nobody knows.
    for broken in [
        format!("schema: 1\nenforcement: policy\n{RULES}guard_mark: 3\n"),
        BROKEN.to_owned(),
        "schema: 1\nenforcement: [\n".to_owned(),
        String::new(),
    ] {
        let (kept, code) = guard.print(&broken);
        assert_eq!(code, Some(1), "{broken}");
        assert!(
            kept.contains("drop") && kept.contains("nic*"),
            "{broken}: {kept}"
        );
    }
    // Once it has refused, it refuses.
    let policy = format!("schema: 1\nenforcement: policy\n{RULES}");
    let (refusing, _) = guard.print(&policy);
    let (kept, _) = guard.print(&format!("{observing}guard_mark: 3\n"));
    assert_eq!(kept, refusing);
}

#[test]
fn settings_that_others_may_write_are_not_kept() {
    use std::os::unix::fs::PermissionsExt as _;
    let guard = KeptGuard::new();
    let (refusing, _) = guard.print("schema: 1\n");
    std::fs::set_permissions(&guard.config, std::fs::Permissions::from_mode(0o666)).unwrap();
    for theirs in [
        "schema: 1\nguard: false\n",
        "schema: 1\nenforcement: observe\n",
    ] {
        assert_eq!(guard.print(theirs), (refusing.clone(), Some(1)));
        assert_eq!(std::fs::read_to_string(&guard.file).unwrap(), refusing);
    }
}

const BROKEN: &str = "schema: 1\nguard_mark: 3\n";

/// Settings, and where the guard is kept.
struct KeptGuard {
    config: std::path::PathBuf,
    file: std::path::PathBuf,
    #[expect(dead_code, reason = "kept for what its drop does")]
    dir: TempDir,
}

impl KeptGuard {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        Self {
            config: dir.path().join("gate25.yaml"),
            file: dir.path().join("var/guard.json"),
            dir,
        }
    }

    fn print(&self, settings: &str) -> (String, Option<i32>) {
        self.run(&["--print"], settings)
    }

    fn run(&self, words: &[&str], settings: &str) -> (String, Option<i32>) {
        std::fs::write(&self.config, settings).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_gate25"))
            .arg("guard")
            .args(words)
            .arg("--config")
            .arg(&self.config)
            .arg("--keep")
            .arg(&self.file)
            .output()
            .unwrap();
        let code = output.status.code();
        (stdout(&output), code)
    }
}

#[test]
fn explain_prints_the_chain_with_file_and_line() {
    let lab = Lab::new(POLICY);
    let file = lab.dir.path().join("policy.d/policy.yaml");
    let file = file.display();
    let expected = format!(
        "question: tap1i0 to 203.0.113.7 port 25 at 2026-11-15T00:00:00Z
workload: tap1i0 on hv-1 is claimed by `tap1i*` of customer acme ({file}:12)
customer: acme, ACME GmbH ({file}:9)
allowlist: relays (of the profile): no match ({file}:3)
exemption: news (NOC-1): active until 2026-12-01T00:00:00Z; any matches ({file}:15)
profile: default (the default profile): mode enforce, blocked reject ({file}:6)
host: hv-1, enforcement policy
verdict: allow, reason exemption: exemption news, any ({file}:15)
"
    );
    let output = lab.explain(&["tap1i0", "203.0.113.7:25", "--at", DURING]);
    assert_eq!(stdout(&output), expected);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn explain_of_a_cgroup_says_whose_it_is_and_which_root_holds_it() {
    let lab = Lab::new(POLICY);
    let file = lab.dir.path().join("policy.d/policy.yaml");
    let file = file.display();
    let below = "lxc/my\\x2dweb 1/init";
    let output = lab.explain(&[below, "203.0.113.7", "--at", DURING]);
    let text = stdout(&output);
    let expected = format!(
        "workload: {below} on hv-1 is claimed by `lxc/my\\x2dweb *` of customer acme, \
         with all of lxc/my\\x2dweb 1 ({file}:13)
root: lxc, by `lxc` of `cgroups.roots`
customer: acme, ACME GmbH ({file}:9)
"
    );
    assert!(text.contains(&expected), "{text}");
    assert_eq!(output.status.code(), Some(0));

    let output = lab.explain(&["/system.slice/cron.service", "203.0.113.7", "--at", DURING]);
    let text = stdout(&output);
    let expected = "workload: system.slice/cron.service is none here: `cgroups.roots` has only \
                    `machine.slice`, `lxc`, `lxc.payload.*`, `kubepods.slice`, `docker`
verdict: passes, not judged: not a workload on this host
";
    assert!(text.ends_with(expected), "{text}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn explain_after_the_exemption_ended_refuses_and_exits_0() {
    let lab = Lab::new(POLICY);
    let output = lab.explain(&["acme", "203.0.113.7", "--at", "2026-12-01T00:00:00Z", "-j"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json.pointer("/decision/verdict").unwrap(), "reject");
    assert_eq!(json.pointer("/decision/entry/place/line").unwrap(), 6);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn explain_of_an_invalid_policy_prints_what_is_wrong_and_exits_1() {
    let lab = Lab::new("schema: 1\nprofiles: [{name: default, alow: []}]\n");
    let output = lab.explain(&["acme", "203.0.113.7"]);
    let text = stdout(&output);
    assert!(text.contains("unknown-key"), "{text}");
    assert!(text.contains("policy.d/policy.yaml:2"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn explain_of_nonsense_exits_2() {
    let lab = Lab::new(POLICY);
    for words in [
        &["amce", "203.0.113.7", "--at", DURING][..],
        &["acme", "mx.example"],
        &["lxc/../x", "203.0.113.7", "--at", DURING],
        &["acme", "203.0.113.7", "--at", "2026-11-15"],
        &["acme", "203.0.113.7", "--at", "1960-01-01T00:00:00Z"],
    ] {
        let output = lab.explain(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert_eq!(stdout(&output), "", "{words:?}");
    }
    let output = lab.explain(&["amce", "203.0.113.7", "--at", DURING]);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("did you mean `acme`?"), "{complaint}");
}

#[test]
fn metrics_list_names_type_labels_and_help() {
    let output = gate25(&["metrics", "--list"]);
    let text = stdout(&output);
    let lines = [
        "gate25_bytes_total{verdict,family} counter: Bytes of packets to guarded ports, headers included.",
        "gate25_policy_customers gauge: Customers in the running policy.",
    ];
    for line in lines {
        assert!(text.lines().any(|one| one == line), "{text}");
    }
    let json: Vec<serde_json::Value> =
        serde_json::from_slice(&gate25(&["metrics", "--list", "--json"]).stdout).unwrap();
    assert_eq!(json.len(), text.lines().count());
    assert_eq!(json[1].pointer("/labels/1").unwrap(), "hook");
    assert_eq!(gate25(&["metrics"]).status.code(), Some(2));
}

/// A host with settings and one policy file.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("policy.d")).unwrap();
        std::fs::write(dir.path().join("policy.d/policy.yaml"), policy).unwrap();
        let policy_dir = dir.path().join("policy.d");
        let settings = format!(
            "schema: 1\nhost: hv-1\npolicy_dir: {}\n",
            policy_dir.display()
        );
        std::fs::write(dir.path().join("gate25.yaml"), settings).unwrap();
        Self { dir }
    }

    fn explain(&self, words: &[&str]) -> Output {
        let config = self.dir.path().join("gate25.yaml");
        let config = config.to_str().unwrap();
        gate25(&[&["--config", config, "explain"], words].concat())
    }
}

fn gate25(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gate25"))
        .args(words)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
