//! The policy language, its loader and the settings, tried through what other code uses.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "policy/cases.rs"]
mod cases;
#[path = "policy/changes.rs"]
mod changes;
#[path = "policy/directory.rs"]
mod directory;
#[path = "policy/edit.rs"]
mod edit;
#[path = "policy/examples.rs"]
mod examples;
#[path = "policy/generated.rs"]
mod generated;
#[path = "policy/hostile.rs"]
mod hostile;
#[path = "policy/loading.rs"]
mod loading;
#[path = "policy/ownership.rs"]
mod ownership;
#[path = "policy/patterns.rs"]
mod patterns;

use gate25::policy::loader::{Circumstances, Purpose, SourceFile};

/// The time of every test.
const NOW: &str = "2026-11-23T12:00:00Z";
/// What most sets need besides what they are about.
const DEFAULT: &str = "schema: 1\nprofiles: [{name: default}]\n";

fn circumstances(purpose: Purpose) -> Circumstances {
    Circumstances {
        purpose,
        now: NOW.parse().unwrap(),
        customer_key,
    }
}

/// FNV-1a: the tests need no more than few collisions.
fn customer_key(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn file(path: &str, contents: impl AsRef<[u8]>) -> SourceFile {
    let path = std::path::Path::new(path);
    SourceFile {
        path: path.into(),
        bytes: contents.as_ref().into(),
    }
}
