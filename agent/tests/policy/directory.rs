//! Which files of a directory make up the set.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use gate25::policy::directory::{self, DirectoryError};
use gate25::policy::loader::{Loader, Purpose};
use gate25::trust::Trust;
use tempfile::TempDir;

use crate::{DEFAULT, circumstances};

fn tree(files: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for name in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "schema: 1\n").unwrap();
    }
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let contents = directory::read(dir, &Trust::Anybody, &Loader::default()).unwrap();
    contents
        .files
        .iter()
        .map(|file| file.path.to_str().unwrap().to_owned())
        .collect()
}

fn refusals(dir: &Path) -> Vec<(String, &'static str)> {
    match directory::read(dir, &Trust::Anybody, &Loader::default()) {
        Err(DirectoryError::Refused(list)) => list
            .iter()
            .map(|one| (one.primary.to_string(), one.code))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_of_editors_and_package_managers_are_skipped() {
    let dir = tree(&[
        "b.yaml",
        "a.yml",
        "sub/deep/c.yaml",
        ".hidden.yaml",
        ".git/d.yaml",
        "e.yaml~",
        ".f.yaml.swp",
        "g.swp",
        "h.yaml.dpkg-dist",
        "i.yaml.dpkg-old",
        "j.yaml.rpmnew",
        "k.yaml.rpmsave",
    ]);
    assert_eq!(names(dir.path()), ["a.yml", "b.yaml", "sub/deep/c.yaml"]);
    assert_eq!(
        directory::read(dir.path(), &Trust::Anybody, &Loader::default())
            .unwrap()
            .warnings,
        []
    );
}

#[test]
fn other_names_are_warned_about() {
    let dir = tree(&["a.yaml", "README", "sub/b.json"]);
    let warnings = directory::read(dir.path(), &Trust::Anybody, &Loader::default())
        .unwrap()
        .warnings;
    let shown: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert!(
        shown[0].starts_with("README: warning[file-ignored]"),
        "{shown:?}"
    );
    assert!(shown[1].starts_with("sub/b.json: warning"), "{shown:?}");
}

#[test]
fn file_that_is_as_it_was_loaded_is_held_once_and_another_is_read() {
    let dir = tree(&["same.yaml", "other.yaml"]);
    fs::write(dir.path().join("default.yaml"), DEFAULT).unwrap();
    let mut loader = Loader::default();
    let first = directory::read(dir.path(), &Trust::Anybody, &loader).unwrap();
    let loaded = loader.load(&first.files, &circumstances(Purpose::Run));
    let loaded = loaded.unwrap();
    // Of the same length, as an edit of a digit is.
    fs::write(dir.path().join("other.yaml"), "schema: 1 ").unwrap();
    let second = directory::read(dir.path(), &Trust::Anybody, &loader).unwrap();
    let held_once: Vec<bool> = first
        .files
        .iter()
        .zip(&second.files)
        .map(|(first, second)| Arc::ptr_eq(&first.bytes, &second.bytes))
        .collect();
    assert_eq!(held_once, [true, false, true]);
    assert_eq!(*second.files[1].bytes, *b"schema: 1 ");
    let again = loader.load(&second.files, &circumstances(Purpose::Run));
    let again = again.unwrap();
    assert_eq!(again.parsed, 1);
    assert_ne!(again.hash, loaded.hash);
    let fresh = Loader::default().load(&second.files, &circumstances(Purpose::Run));
    assert_eq!(again.hash, fresh.unwrap().hash);
}

#[test]
fn directory_that_is_missing_is_no_empty_set() {
    let dir = tree(&[]);
    let error = directory::read(
        &dir.path().join("none"),
        &Trust::Anybody,
        &Loader::default(),
    )
    .unwrap_err();
    assert!(matches!(error, DirectoryError::Missing { .. }) && !error.is_transient());
    fs::write(dir.path().join("file"), "").unwrap();
    let error = directory::read(
        &dir.path().join("file"),
        &Trust::Anybody,
        &Loader::default(),
    )
    .unwrap_err();
    assert!(matches!(error, DirectoryError::NotADirectory { .. }));
}

#[test]
fn links_inside_are_followed_and_the_directory_may_be_one() {
    // As Kubernetes mounts a ConfigMap.
    let dir = tree(&["real/..2026/a.yaml"]);
    symlink("..2026", dir.path().join("real/..data")).unwrap();
    symlink("..data/a.yaml", dir.path().join("real/a.yaml")).unwrap();
    symlink("real", dir.path().join("policy.d")).unwrap();
    assert_eq!(names(&dir.path().join("policy.d")), ["a.yaml"]);
}

#[test]
fn links_that_lead_outside_are_refused() {
    let dir = tree(&["set/a.yaml", "outside/b.yaml"]);
    symlink("../outside/b.yaml", dir.path().join("set/b.yaml")).unwrap();
    symlink("../outside", dir.path().join("set/c")).unwrap();
    let expected = [
        ("b.yaml".to_owned(), "link-outside"),
        ("c".to_owned(), "link-outside"),
    ];
    assert_eq!(refusals(&dir.path().join("set")), expected);
}

#[test]
fn links_that_make_a_loop_are_refused() {
    let dir = tree(&["sub/a.yaml"]);
    symlink("..", dir.path().join("sub/up")).unwrap();
    assert_eq!(
        refusals(dir.path()),
        [("sub/up".to_owned(), "directory-loop")]
    );
}

#[test]
fn link_whose_target_is_not_there_yet_may_be_tried_again() {
    let dir = tree(&["a.yaml"]);
    symlink("later.yaml", dir.path().join("b.yaml")).unwrap();
    assert!(
        directory::read(dir.path(), &Trust::Anybody, &Loader::default())
            .unwrap_err()
            .is_transient()
    );
}

#[test]
fn pipes_and_devices_are_refused_without_blocking() {
    let dir = tree(&["a.yaml"]);
    let made = Command::new("mkfifo")
        .arg(dir.path().join("pipe.yaml"))
        .status()
        .unwrap();
    assert!(made.success());
    std::os::unix::net::UnixListener::bind(dir.path().join("socket.yaml")).unwrap();
    let expected = [
        ("pipe.yaml".to_owned(), "not-a-file"),
        ("socket.yaml".to_owned(), "not-a-file"),
    ];
    assert_eq!(refusals(dir.path()), expected);
}

#[test]
fn file_of_five_megabytes_is_refused_unread() {
    let dir = tree(&["a.yaml"]);
    fs::write(dir.path().join("big.yaml"), vec![b'\n'; 5_000_000]).unwrap();
    assert_eq!(
        refusals(dir.path()),
        [("big.yaml".to_owned(), "file-too-large")]
    );
    fs::write(dir.path().join("big.yaml"), vec![b'\n'; 4 << 20]).unwrap();
    assert_eq!(names(dir.path()), ["a.yaml", "big.yaml"]);
}
