//! The packages that are tried.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The package of a revision whose file ends so. `cargo xtask` builds them into the folder
/// `GATE25_PACKAGES`, a folder for each revision.
#[track_caller]
pub(crate) fn package(revision: u32, ending: &str) -> PathBuf {
    let dir = env::var_os("GATE25_PACKAGES");
    let dir = dir.unwrap_or_else(|| panic!("`./xtask/x test package` sets GATE25_PACKAGES"));
    let dir = Path::new(&dir).join(revision.to_string());
    let entries = fs::read_dir(&dir).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let mut found = files.filter(|path| path.extension().is_some_and(|it| it == ending));
    let path = found.next().unwrap();
    assert!(found.next().is_none(), "two in {}", dir.display());
    path
}
