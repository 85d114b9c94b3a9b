//! What the routes answer: names and forms that others rely on.

use std::path::Path;
use std::sync::Arc;

use gate25::control::{
    Command, Execution, ReloadOutcome, RunningPolicy, Shrink, TrialOutcome, Undone,
};
use gate25::policy::loader::{SetHash, SourceFile};
use gate25::settings::Enforcement;
use gate25::source::SourceError;
use gate25::status::Source;
use serde_json::json;

use crate::lab::Lab;

#[tokio::test]
async fn status_holds_mode_backend_policy_and_workloads_by_kind_and_state() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let (code, mut status) = lab.get("/v1/status").await;
    assert_eq!(code, 200);
    status["version"] = json!("x");
    let expected = json!({
        "agent": "running",
        "version": "x",
        "started": "2026-11-23T08:00:00Z",
        "host": "hv-1",
        "enforcing": true,
        "mode": "policy",
        "bypass": null,
        "backend": {"name": "ebpf", "reason": "preferred", "hook": "tcx"},
        "policy": {
            "directory": lab.dir.path().join("policy.d"), "source": "files", "generation": 3, "hash": null, "customers": 2,
            "exemptions": {"scheduled": 0, "active": 1, "expired": 1},
        },
        "workloads": {
            "interface": {"enforced": 1, "unassigned": 2, "conflict": 1, "failed": 0},
            "cgroup": {"enforced": 0, "unassigned": 1, "conflict": 0, "failed": 0},
        },
        "reload": {
            "attempts": 4, "failures": 1, "successful": true,
            "last_success": "2026-11-23T09:30:00Z", "refusal": null,
        },
        "cgroup_roots": 2,
        "returns": {"interfaces": 3, "packets": {"allow": 1, "observe": 0, "drop": 7}},
        "trial": null,
        "repairs": 0,
        "guard_repairs": 0,
        "tables": {"CUSTOMERS": 3},
        "connections": {"allow": 2, "observe": 0, "reject": 1, "drop": 0, "redirect": 0, "notice": 0},
        "notice": [
            {"address": "192.0.2.1:25", "listening": true, "error": null},
            {"address": "[2001:db8::1]:25", "listening": false, "error": "in use"},
        ],
        "problems": [],
        "warnings": [],
    });
    assert_eq!(status, expected);
}

#[tokio::test]
async fn status_with_a_problem_or_while_observing_is_not_enforcing() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    lab.status
        .update(|status| status.problems.push("tap7i0 is bare".to_owned()));
    let (_, status) = lab.get("/v1/status").await;
    assert_eq!(status["enforcing"], false);
    assert_eq!(status["problems"], json!(["tap7i0 is bare"]));
    let observing = Lab::with(Enforcement::Observe, |_| {}).await;
    let (_, status) = observing.get("/v1/status").await;
    assert_eq!(
        (&status["enforcing"], &status["mode"]),
        (&json!(false), &json!("observe"))
    );
}

#[tokio::test]
async fn workloads_name_their_owner_and_both_sides_of_a_conflict() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let (code, listed) = lab.get("/v1/workloads").await;
    assert_eq!(code, 200);
    assert_eq!(listed["agent"], "running");
    let workloads = listed["workloads"].as_array().unwrap();
    assert_eq!(workloads.len(), 5);
    assert_eq!(
        (&workloads[4]["kind"], &workloads[4]["number"]),
        (&json!("cgroup"), &json!(9_000_000_001_u64))
    );
    let zero = "0000000000000000";
    let unassigned = json!({
        "kind": "interface", "number": 4, "name": "tap101i0", "state": "unassigned",
        "customer": null, "customer_number": zero, "claims": [],
    });
    assert_eq!(workloads[0], unassigned);
    assert_eq!(workloads[2]["customer"], "acme");
    assert_ne!(workloads[2]["customer_number"], zero);
    assert_eq!(workloads[3]["state"], "conflict");
    let claims = json!([
        {"customer": "acme", "file": "customers.yaml", "line": 5, "column": 7},
        {"customer": "blue", "file": "customers.yaml", "line": 9, "column": 7},
    ]);
    assert_eq!(workloads[3]["claims"], claims);
}

#[tokio::test]
async fn customers_and_exemptions_are_listed_by_id_with_times_in_utc() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let (_, listed) = lab.get("/v1/customers").await;
    let customers = listed["customers"].as_array().unwrap();
    let ids: Vec<_> = customers
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["acme", "blue", "unassigned"]);
    assert_eq!(
        (&customers[0]["workloads"], &customers[0]["exemptions"]),
        (&json!(1), &json!(1))
    );
    let attempts =
        json!({"allow": 1, "observe": 2, "reject": 8, "drop": 16, "redirect": 32, "notice": 64});
    assert_eq!(customers[0]["connections"], attempts);
    assert_eq!(customers[1]["connections"], json!(null));
    // Conflicting workloads are nobody's.
    assert_eq!(customers[2]["workloads"], 4);
    let (_, listed) = lab.get("/v1/exemptions").await;
    let exemptions = listed["exemptions"].as_array().unwrap();
    assert_eq!(exemptions[0]["id"], "news");
    assert_eq!(
        (&exemptions[0]["state"], &exemptions[0]["starts"]),
        (&json!("active"), &json!(null))
    );
    assert_eq!(exemptions[1]["state"], "expired");
    assert_eq!(exemptions[1]["expires"], "2020-02-01T00:00:00Z");
}

#[tokio::test]
async fn policy_is_the_running_files_verbatim() {
    let lab = Lab::with(Enforcement::Policy, |command| {
        let Command::Policy { reply } = command else {
            return;
        };
        let file = SourceFile {
            path: Arc::from(Path::new("a/b.yaml")),
            bytes: "schema: 1\n# ünd\n".as_bytes().into(),
        };
        let _gone = reply.send(RunningPolicy {
            source: Source::Files,
            generation: 3,
            hash: Some(SetHash([0xab; 32])),
            files: Arc::from([file]),
        });
    })
    .await;
    let expected = json!({
        "source": "files", "generation": 3, "hash": "ab".repeat(32),
        "files": [{"path": "a/b.yaml", "text": "schema: 1\n# ünd\n"}],
    });
    assert_eq!(lab.get("/v1/policy").await, (200, expected));
}

#[tokio::test]
async fn reload_passes_on_what_was_asked_and_answers_what_came_of_it() {
    let lab = Lab::with(Enforcement::Policy, |command| {
        let Command::Reload {
            shrink,
            execution,
            confirm_within: None,
            undone: Undone::Held,
            reply,
        } = command
        else {
            return;
        };
        let hash = SetHash([1; 32]);
        let _gone = reply.send(match (shrink, execution) {
            (Shrink::Refused, Execution::Apply) => ReloadOutcome::Shrunk {
                message: "60 of 100 customers went".to_owned(),
            },
            (Shrink::Accepted, Execution::Apply) => ReloadOutcome::Applied {
                generation: 4,
                hash,
                writes: 12,
            },
            (_, Execution::DryRun) => ReloadOutcome::WouldApply { hash, writes: 12 },
        });
    })
    .await;
    let hash = "01".repeat(32);
    let shrunk = json!({"outcome": "shrunk", "message": "60 of 100 customers went"});
    assert_eq!(
        lab.post("/v1/reload", r#"{"wait": true}"#).await,
        (200, shrunk)
    );
    let applied = json!({"outcome": "applied", "generation": 4, "hash": hash, "writes": 12});
    let body = r#"{"wait": true, "accept_shrink": true}"#;
    assert_eq!(lab.post("/v1/reload", body).await, (200, applied));
    let would = json!({"outcome": "would_apply", "hash": hash, "writes": 12});
    assert_eq!(
        lab.post("/v1/reload", r#"{"dry_run": true}"#).await,
        (200, would)
    );
    assert_eq!(
        lab.post("/v1/reload", "").await,
        (202, json!({"outcome": "accepted", "trial": null}))
    );
}

#[tokio::test]
async fn reload_that_is_refused_says_where_as_people_and_as_programs_read_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.yaml"), "schema: 1\nprofils: []\n").unwrap();
    let policy_dir = dir.path().to_owned();
    let lab = Lab::with(Enforcement::Policy, move |command| {
        let Command::Reload { reply, .. } = command else {
            return;
        };
        let mut files = gate25::source::PolicyFiles::new(policy_dir.clone());
        let error: SourceError = files.load(jiff::Timestamp::now()).unwrap_err();
        let _gone = reply.send(ReloadOutcome::refused(&error, &policy_dir));
    })
    .await;
    let (code, answer) = lab.post("/v1/reload", r#"{"wait": true}"#).await;
    assert_eq!((code, &answer["outcome"]), (200, &json!("refused")));
    let one = answer["diagnostics"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["code"] == "unknown-key")
        .expect("the misspelt key");
    let file = dir.path().join("p.yaml");
    assert_eq!(one["file"], file.to_str().unwrap());
    assert_eq!((&one["line"], &one["column"]), (&json!(2), &json!(1)));
    assert_eq!(one["severity"], "error");
    assert!(
        one["text"].as_str().unwrap().contains("profils: []"),
        "{one}"
    );
}

#[tokio::test]
async fn trial_is_begun_kept_and_undone_as_asked() {
    let lab = Lab::with(Enforcement::Policy, |command| match command {
        Command::Reload {
            confirm_within: Some(within),
            undone: Undone::Taken,
            reply,
            ..
        } => {
            let ends = "2026-11-23T09:00:00Z".parse().unwrap();
            let _gone = reply.send(ReloadOutcome::OnTrial {
                generation: 4,
                hash: SetHash([1; 32]),
                writes: within.as_secs() as usize,
                ends,
                base: SetHash([2; 32]),
            });
        }
        Command::Confirm { reply, .. } => {
            let _gone = reply.send(TrialOutcome::Confirmed);
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
    let hash = "01".repeat(32);
    let on_trial = json!({
        "outcome": "on_trial", "generation": 4, "hash": hash, "writes": 300, "ends": "2026-11-23T09:00:00Z",
        "base": "02".repeat(32),
    });
    let body = r#"{"seconds": 300}"#;
    assert_eq!(lab.post("/v1/trial", body).await, (200, on_trial));
    for wrong in [
        "",
        "{}",
        "[300, false]",
        r#"{"seconds": 0}"#,
        r#"{"seconds": 604801}"#,
        r#"{"seconds": 300, "dry_run": true}"#,
    ] {
        assert_eq!(lab.post("/v1/trial", wrong).await.0, 400, "{wrong}");
    }
    let confirmed = json!({"outcome": "confirmed"});
    assert_eq!(lab.post("/v1/confirm", "").await, (200, confirmed));
    let refused = json!({"outcome": "refused", "message": "nothing is on trial"});
    assert_eq!(lab.post("/v1/undo", "").await, (200, refused));
    assert_eq!(lab.get("/v1/undo").await.0, 405);
}
