//! A stored set goes the way of files.

use std::fs;
use std::path::Path;

use gate25::policy::directory::DirectoryError;
use gate25::source::{PolicyFiles, SourceError};
use gate25::state::{LastKnownGood, Saved};
use gate25::status::Source;
use jiff::Timestamp;
use tempfile::TempDir;

use super::{NOW, stored};

const BASE: &str = "schema: 1\nprofiles: [{name: default}]\n";
const CUSTOMERS: &str = "schema: 1\ncustomers: [{id: c-1}, {id: c-2}]\nexemptions:\n\
    - {id: e, customer: c-1, reason: r, ticket: t, approved_by: n, to: any,\n\
    \x20  starts: 2026-11-01T00:00:00Z, expires: 2026-12-01T00:00:00Z}\n";

#[test]
fn set_kept_and_loaded_by_a_later_start_is_the_same_policy() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &[("base.yaml", BASE), ("sub/c.yml", CUSTOMERS)]);
    let store = LastKnownGood::open(&dir.path().join("state")).unwrap();
    let files = dir.path().join("policy.d");
    let from_files = PolicyFiles::new(files.clone()).load(now()).unwrap();
    assert_eq!(from_files.source, Source::Files);
    assert_eq!(
        store.save(&from_files.stored(now())).unwrap(),
        Saved::Written
    );

    fs::remove_dir_all(&files).unwrap();
    let mut later = PolicyFiles::new(files);
    let refused = later.load(now()).unwrap_err();
    assert!(matches!(
        refused,
        SourceError::Directory(DirectoryError::Missing { .. })
    ));
    let kept = store.load().unwrap().unwrap();
    let from_store = later.load_stored(&kept, now()).unwrap();
    assert_eq!(from_store.source, Source::LastKnownGood);
    assert_eq!(from_store.policy, from_files.policy);
    assert_eq!(from_store.image, from_files.image);
    assert_eq!(from_store.hash, from_files.hash);
    assert_eq!(from_store.files, from_files.files);
    assert_eq!(
        store.save(&from_store.stored(now())).unwrap(),
        Saved::Unchanged
    );
}

#[test]
fn stored_set_that_is_invalid_by_now_is_refused_with_its_place() {
    let set = stored(
        1,
        &[
            (b"sub/old.yaml", b"schema: 1\nretired: []\n"),
            (b"b.yaml", BASE.as_bytes()),
        ],
    );
    let refused = PolicyFiles::new("/nonexistent".into())
        .load_stored(&set, now())
        .unwrap_err();
    let SourceError::Refused(refused) = refused else {
        panic!("{refused:?}")
    };
    let place = refused.diagnostics[0].primary.to_string();
    assert!(place.starts_with("sub/old.yaml:2:1"), "{place}");
}

#[test]
fn stored_exemption_that_ended_meanwhile_leaves_no_trace_in_the_tables() {
    let set = stored(
        1,
        &[
            (b"b.yaml", BASE.as_bytes()),
            (b"c.yaml", CUSTOMERS.as_bytes()),
        ],
    );
    let exemptions = |now: &str| {
        let mut files = PolicyFiles::new("/nonexistent".into());
        let accepted = files.load_stored(&set, now.parse().unwrap()).unwrap();
        let customers = accepted.image.customers.values();
        customers
            .map(|customer| customer.exemptions.len())
            .sum::<usize>()
    };
    assert_eq!(exemptions(NOW), 1);
    assert_eq!(exemptions("2026-12-01T00:00:00Z"), 0);
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join("policy.d").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}
