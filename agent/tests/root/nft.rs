//! nft as the agent runs it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gate25::kernel::nft::{Nft, NftError};
use gate25::netfilter::{Commands, Family, Signature, Table};
use gate25::{guard, kernel::nftables};
use tempfile::TempDir;

use crate::netns::{run, within};

const GUARD: Table = guard::TABLES[0];

#[test]
fn ruleset_that_is_applied_is_listed_again() {
    within(|| async {
        let nft = Nft::default();
        assert!(nft.table(nftables::TABLE).unwrap().is_none());
        nft.check(&nftables::hook(1, "lo")).unwrap_err();
        nft.check(&guard::removal()).unwrap();
        run("nft add table inet gate25_guard");
        assert!(nft.has_table(GUARD).unwrap());
        let bridged = Table {
            family: Family::Bridge,
            ..GUARD
        };
        assert!(!nft.has_table(bridged).unwrap());
        let listed = nft.table(GUARD).unwrap().unwrap();
        assert_ne!(Signature::listed([&listed]), Signature::default());
        nft.apply(&guard::removal()).unwrap();
        assert!(nft.table(GUARD).unwrap().is_none());
    });
}

#[test]
fn refusal_tells_what_nft_said() {
    within(|| async {
        let refused = Nft::default().apply(&nftables::hook(1, "absent"));
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("No such file or directory"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    });
}

#[test]
fn missing_program_is_named() {
    let missing = Nft::new("/nonexistent/nft").apply(&commands());
    let text = missing.as_ref().unwrap_err().to_string();
    assert_eq!(text, "run /nonexistent/nft to apply a ruleset");
    assert!(matches!(missing, Err(NftError::Run { .. })));
}

#[test]
fn program_that_hangs_is_ended_with_what_it_started() {
    let (_folder, slow) = script("sleep 1000 & wait");
    let began = Instant::now();
    let limit = Duration::from_millis(300);
    let error = Nft::new(slow).within(limit).apply(&commands()).unwrap_err();
    assert!(matches!(error, NftError::Slow { .. }), "{error}");
    assert!(!error.left_all_as_it_was());
    // The pipes that its child holds would keep us waiting.
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn program_that_writes_much_and_reads_late_is_heard() {
    let noise = "head -c 1000000 /dev/zero >&2; cat >/dev/null";
    let (_folder, talkative) = script(noise);
    let mut many = commands();
    for index in 0..10_000 {
        many.append(nftables::unhook(index));
    }
    Nft::new(talkative).apply(&many).unwrap();
}

/// A program that does what these lines of shell say.
fn script(lines: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nft");
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    (folder, path)
}

fn commands() -> Commands {
    guard::removal()
}
