//! Two holders of one directory. `tests/root` tries the BPF filesystem and other processes.

use std::process::Command;

use gate25::state::lock::{ExclusiveLock, LockError};
use tempfile::TempDir;

#[test]
fn lock_that_is_held_is_refused_with_what_to_do_and_free_after_it_is_dropped() {
    let dir = TempDir::new().unwrap();
    let held = ExclusiveLock::acquire(dir.path()).unwrap();
    let refused = ExclusiveLock::acquire(dir.path()).unwrap_err();
    assert!(matches!(&refused, LockError::Held { directory } if directory == dir.path()));
    let said = refused.to_string();
    assert!(
        said.starts_with("another gate25 runs on this host"),
        "{said}"
    );
    drop(held);
    ExclusiveLock::acquire(dir.path()).unwrap();
}

#[test]
fn lock_is_not_inherited_by_programs_that_are_started() {
    let dir = TempDir::new().unwrap();
    let _held = ExclusiveLock::acquire(dir.path()).unwrap();
    let open_by = |process: &str| {
        let listing = Command::new("ls")
            .args(["-l", &format!("/proc/{process}/fd")])
            .output()
            .unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        listing.contains(dir.path().to_str().unwrap())
    };
    assert!(open_by(&std::process::id().to_string()));
    assert!(!open_by("self"));
}

#[test]
fn lock_on_what_is_no_directory_is_an_error_of_its_own() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file, dir.path().join("none")] {
        let error = ExclusiveLock::acquire(&path).unwrap_err();
        assert!(matches!(error, LockError::Open { .. }), "{error:?}");
    }
}
