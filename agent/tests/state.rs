//! What the agent keeps on disk, what it tells the service manager, and the guard against sets that
//! shrink.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "state/lock.rs"]
mod lock;
#[path = "state/notify.rs"]
mod notify;
#[path = "state/sets.rs"]
mod sets;
#[path = "state/shrink.rs"]
mod shrink;
#[path = "state/store.rs"]
mod store;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use gate25::policy::loader::{SetHash, SourceFile};
use gate25::state::StoredSet;

/// The time of every test.
const NOW: &str = "2026-11-23T12:00:00Z";

/// A set as it may be stored; its hash is any.
fn stored(hash: u8, files: &[(&[u8], &[u8])]) -> StoredSet {
    let files = files.iter().map(|(path, bytes)| SourceFile {
        path: Path::new(OsStr::from_bytes(path)).into(),
        bytes: (*bytes).into(),
    });
    StoredSet {
        files: files.collect(),
        hash: SetHash([hash; 32]),
        accepted: NOW.parse().unwrap(),
    }
}
