//! The commands: what they print and how they exit.

use std::fs;
use std::path::Path;
use std::process::{Command as Process, Output};
use std::sync::Arc;

use gate25::control::{Command, Execution, ReloadOutcome, RunningPolicy, TrialOutcome, Undone};
use gate25::policy::loader::{SetHash, SourceFile};
use gate25::settings::Enforcement;
use gate25::state::lock::ExclusiveLock;
use gate25::state::{LastKnownGood, StoredSet};
use gate25::status::Source;
use gate25::workloads::WorkloadId;
use gate25_common::abi::CustomerId;
use jiff::{SignedDuration, Timestamp};

use crate::lab::{Lab, configure};

const BASE: &str = "schema: 1
allowlists: [{name: relays, to: [192.0.2.25]}]
profiles: [{name: default, allow: [relays]}]
customers:
  - id: acme
    workloads: [{interface: tap7i0}]
";

#[tokio::test(flavor = "multi_thread")]
async fn status_exits_0_when_enforcing_and_1_when_not() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let output = lab.gate25(&["status"]).await;
    let text = stdout(&output);
    assert!(text.contains("enforcing\tyes\n"), "{text}");
    assert!(
        text.contains("exemptions\t0 scheduled, 1 active, 1 expired\n"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(0));
    lab.status
        .update(|status| status.problems.push("a\u{1b}[2Jb".to_owned()));
    let output = lab.gate25(&["status"]).await;
    let text = stdout(&output);
    assert!(text.contains("problem\ta\\u{1b}[2Jb\n"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_json_is_what_the_agent_says() {
    let lab = Lab::with(Enforcement::Observe, |_| {}).await;
    let output = lab.gate25(&["status", "--json"]).await;
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, lab.get("/v1/status").await.1);
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn list_prints_fields_between_tabs_and_names_of_tenants_escaped() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    lab.status.update(|status| {
        let workloads = Arc::make_mut(&mut status.workloads);
        if let Some(workload) = workloads.get_mut(&WorkloadId::Interface(6)) {
            workload.name = "tap\t\u{1b}[31m\u{202e}".to_owned();
        }
    });
    let text = stdout(&lab.gate25(&["list", "workloads"]).await);
    let expected = "interface\t4\ttap101i0\tunassigned\tunassigned
interface\t5\ttap101i1\tunassigned\tunassigned
interface\t6\ttap\\t\\u{1b}[31m\\u{202e}\tenforced\tacme
interface\t7\ttap8i0\tconflict\tacme,blue
cgroup\t9000000001\tlxc/it's \\x2d\tunassigned\tunassigned
";
    assert_eq!(text, expected);
    let text = stdout(&lab.gate25(&["list", "exemptions"]).await);
    let expected = "news\tacme\tactive\t-\t2999-01-01T00:00:00Z
past\tacme\texpired\t2020-01-01T00:00:00Z\t2020-02-01T00:00:00Z
";
    assert_eq!(text, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_customers_tells_what_passed_what_would_be_refused_and_what_was() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let number = |id: CustomerId| format!("{:016x}", id.get());
    let expected = format!(
        "acme\t{}\t1\t1\t1\t2\t120\n\
         blue\t{}\t0\t0\t-\t-\t-\n\
         unassigned\t{}\t4\t0\t-\t-\t-\n",
        number(CustomerId::from_name("acme")),
        number(CustomerId::from_name("blue")),
        number(CustomerId::UNASSIGNED),
    );
    let text = stdout(&lab.gate25(&["list", "customers"]).await);
    assert_eq!(text, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_unassigned_as_yaml_is_a_policy_once_the_ids_are_filled_in() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    lab.status.update(|status| {
        let odd = ["it's", "tap*", "tap{1}", "a#b", "tap\u{1b}"];
        for (index, name) in (20..).zip(odd) {
            let mut workload = status.workloads[&WorkloadId::Interface(4)].clone();
            workload.name = name.to_owned();
            Arc::make_mut(&mut status.workloads).insert(WorkloadId::Interface(index), workload);
        }
    });
    let output = lab
        .gate25(&["list", "workloads", "--unassigned", "--as-yaml"])
        .await;
    let stanzas = stdout(&output);
    let dir = lab.dir.path().join("filled");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("base.yaml"), BASE).unwrap();
    fs::write(dir.join("new.yaml"), &stanzas).unwrap();
    let check = |word: &str| {
        let mut process = Process::new(env!("CARGO_BIN_EXE_gate25"));
        process.arg("check").arg(&dir).arg(word).output().unwrap()
    };
    assert_eq!(
        check("--json").status.code(),
        Some(1),
        "unfilled stanzas are refused"
    );
    let mut filled = String::new();
    for (number, part) in stanzas.split("- id:\n").enumerate() {
        if number > 0 {
            filled.push_str(&format!("- id: c-{number}\n"));
        }
        filled.push_str(part);
    }
    fs::write(dir.join("new.yaml"), &filled).unwrap();
    let checked = check("--json");
    assert_eq!(
        checked.status.code(),
        Some(0),
        "{filled}{}",
        stdout(&checked)
    );
    let report: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    // Guest 101 with both its cards, `it's`, `a#b` and the container, beside the one that was there.
    assert_eq!(report["policy"]["customers"], 5, "{filled}");
    assert!(
        !filled.contains("tap8i0"),
        "a conflict is not unassigned: {filled}"
    );
    assert!(!filled.contains('\u{1b}'), "{filled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn list_as_yaml_of_assigned_workloads_is_misuse() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let output = lab.gate25(&["list", "workloads", "--as-yaml"]).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_exits_by_what_came_of_it() {
    let lab = Lab::with(Enforcement::Policy, |command| {
        let Command::Reload { reply, .. } = command else {
            return;
        };
        let _gone = reply.send(ReloadOutcome::Shrunk {
            message: "60 of 100 customers went".to_owned(),
        });
    })
    .await;
    let output = lab.gate25(&["reload", "--wait"]).await;
    let text = stdout(&output);
    assert!(text.contains("60 of 100 customers went"), "{text}");
    assert!(text.contains("--accept-shrink"), "{text}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lab.gate25(&["reload"]).await.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_that_nobody_answers_exits_4() {
    let (lab, _asked) = Lab::silent().await;
    assert_eq!(
        lab.gate25(&["reload", "--wait"]).await.status.code(),
        Some(4)
    );
    let dir = lab.stop().await;
    let config = configure(dir.path(), &dir.path().join("run/control.sock"));
    let output = gate25(&config, &["reload", "--wait"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot reach the agent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_of_files_that_were_undone_fails_and_says_how_to_take_them() {
    let lab = Lab::with(Enforcement::Policy, |command| {
        let Command::Reload { undone, reply, .. } = command else {
            return;
        };
        let since = "2026-11-23T08:00:00Z".parse().unwrap();
        let _gone = reply.send(match undone {
            Undone::Held => ReloadOutcome::Held { since },
            Undone::Taken => ReloadOutcome::Unchanged,
        });
    })
    .await;
    let held = lab.gate25(&["reload", "--wait"]).await;
    assert_eq!(held.status.code(), Some(1));
    let text = stdout(&held);
    assert!(
        text.contains("undone at 2026-11-23T08:00:00Z") && text.contains("--take-undone"),
        "{text}"
    );
    let taken = lab.gate25(&["reload", "--wait", "--take-undone"]).await;
    assert_eq!(taken.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn confirm_and_undo_exit_by_what_came_of_it() {
    let lab = Lab::with(Enforcement::Policy, |command| match command {
        Command::Confirm { execution, reply } => {
            let _gone = reply.send(match execution {
                Execution::Apply => TrialOutcome::Confirmed,
                Execution::DryRun => TrialOutcome::WouldConfirm,
            });
        }
        Command::Undo {
            execution: Execution::DryRun,
            reply,
        } => {
            let _gone = reply.send(TrialOutcome::WouldUndo {
                hash: SetHash([1; 32]),
                accepted: "2026-11-23T08:00:00Z".parse().unwrap(),
            });
        }
        Command::Undo { reply, .. } => {
            let why = "nothing is on trial".to_owned();
            let _gone = reply.send(TrialOutcome::Refused(why));
        }
        other @ (Command::Reload { .. } | Command::Bypass { .. } | Command::Policy { .. }) => {
            panic!("{other:?}")
        }
    })
    .await;
    assert_eq!(lab.gate25(&["confirm"]).await.status.code(), Some(0));
    let undone = lab.gate25(&["undo"]).await;
    assert_eq!(undone.status.code(), Some(1));
    let said = String::from_utf8_lossy(&undone.stderr);
    assert!(said.contains("nothing is on trial"), "{said}");
    for (words, told) in [
        (["undo", "--dry-run"], "accepted at 2026-11-23T08:00:00Z"),
        (["confirm", "--dry-run"], "would stay in force"),
    ] {
        let output = lab.gate25(&words).await;
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains(told), "{output:?}");
    }
    for (term, more) in [("5m", "--dry-run"), ("5m", "--wait"), ("8d", "--json")] {
        let output = lab
            .gate25(&["reload", "--confirm-within", term, more])
            .await;
        assert_eq!(output.status.code(), Some(2), "{term} {more}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_that_may_be_bypassed_is_not_said_to_enforce() {
    let lab = Lab::without_its_bypass().await;
    let (code, status) = lab.get("/v1/status").await;
    assert_eq!(code, 200);
    assert_eq!(status["enforcing"], false);
    let problems = status["problems"].as_array().unwrap();
    let told = "whether this host is bypassed is not known: no such table";
    assert!(problems.iter().any(|it| it == told), "{status:#}");
    // What could be read is there.
    assert!(status["connections"].is_object(), "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bypass_that_is_only_tried_out_says_what_would_come_of_it() {
    let lab = Lab::with(Enforcement::Policy, |command| panic!("{command:?}")).await;
    let rehearse = |term| {
        [
            "bypass",
            "--for",
            term,
            "--ticket",
            "NOC-1",
            "--dry-run",
            "-j",
        ]
    };
    let output = lab.gate25(&rehearse("30d")).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let output = lab.gate25(&rehearse("30m")).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (_, mut status) = lab.get("/v1/status").await;
    let bypass = &printed["bypass"];
    let time = |of: &str| bypass[of].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert_eq!(
        time("ends").duration_since(time("since")),
        SignedDuration::from_mins(30)
    );
    assert_eq!(bypass["ticket"], "NOC-1");
    // For the rest it is how the agent is.
    status["bypass"] = bypass.clone();
    status["enforcing"] = false.into();
    assert_eq!(printed, status);
    let observing = Lab::with(Enforcement::Observe, |command| panic!("{command:?}")).await;
    let output = observing.gate25(&rehearse("30m")).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let dir = observing.stop().await;
    let config = configure(dir.path(), &dir.path().join("run/control.sock"));
    let output = gate25(&config, &rehearse("30m"));
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_tells_what_the_files_would_change() {
    let lab = Lab::with(Enforcement::Policy, |command| {
        let Command::Policy { reply } = command else {
            return;
        };
        let _gone = reply.send(RunningPolicy {
            source: Source::Files,
            generation: 1,
            hash: None,
            files: base_files(),
        });
    })
    .await;
    let dir = lab.dir.path().join("policy.d");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("same-in-another-file.yaml"), BASE).unwrap();
    assert_eq!(stdout(&lab.gate25(&["diff"]).await), "no difference\n");
    let other = BASE
        .replace("[192.0.2.25]", "[192.0.2.26]")
        .replace("id: acme", "id: blue");
    fs::write(dir.join("same-in-another-file.yaml"), other).unwrap();
    let expected = "~ allowlist relays
    - to: 192.0.2.25/32
    + to: 192.0.2.26/32
~ profile default
    - prefixes: 192.0.2.25/32
    + prefixes: 192.0.2.26/32
- customer acme
    - profile: default
    - workloads: interface tap7i0
+ customer blue
    + profile: default
    + workloads: interface tap7i0
";
    let output = lab.gate25(&["diff"]).await;
    assert_eq!(stdout(&output), expected);
    assert_eq!(output.status.code(), Some(0));
    fs::write(
        dir.join("same-in-another-file.yaml"),
        "schema: 1\nprofils: []\n",
    )
    .unwrap();
    assert_eq!(lab.gate25(&["diff"]).await.status.code(), Some(1));
}

#[test]
fn diff_without_an_agent_takes_what_it_last_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let config = configure(dir.path(), &dir.path().join("control.sock"));
    fs::create_dir(dir.path().join("policy.d")).unwrap();
    fs::write(
        dir.path().join("policy.d/a.yaml"),
        BASE.replace("acme", "blue"),
    )
    .unwrap();
    let filesystem = dir.path().join("bpf");
    let bpffs = filesystem.to_str().unwrap();
    let diff = ["diff", "--json", "--bpffs", bpffs];
    assert_eq!(gate25(&config, &diff).status.code(), Some(4));
    assert!(
        !dir.path().join("state").exists(),
        "a command that reads makes nothing"
    );
    let stored = StoredSet {
        files: base_files(),
        hash: SetHash([7; 32]),
        accepted: "2026-11-23T08:00:00Z".parse().unwrap(),
    };
    let store = LastKnownGood::open(&dir.path().join("state")).unwrap();
    store.save(&stored).unwrap();
    let output = gate25(&config, &diff);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["agent"], "stopped");
    let told = |at: usize| {
        let change = &report["changes"][at];
        (
            change["name"].as_str().unwrap(),
            change["change"].as_str().unwrap(),
        )
    };
    assert_eq!((told(0), told(1)), (("acme", "removed"), ("blue", "added")));
    // An agent that nobody reaches may run something else.
    fs::create_dir_all(filesystem.join("gate25")).unwrap();
    let _held = ExclusiveLock::acquire(&filesystem.join("gate25")).unwrap();
    let output = gate25(&config, &diff);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("nobody serves"), "{said}");
}

fn base_files() -> Arc<[SourceFile]> {
    Arc::from([SourceFile {
        path: Arc::from(Path::new("policy.yaml")),
        bytes: BASE.as_bytes().into(),
    }])
}

fn gate25(config: &Path, words: &[&str]) -> Output {
    Process::new(env!("CARGO_BIN_EXE_gate25"))
        .arg("--config")
        .arg(config)
        .args(words)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
