//! nft as the agent runs it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gate25::kernel::nft::{Nft, NftError};
use gate25::netfilter::{Commands, Family, Signature, Table};
use gate25::notify::{Environment, Notifier};
use gate25::{guard, kernel::nftables};
use tempfile::TempDir;

use crate::netns::{LIMIT, run, within};

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
fn service_manager_is_told_that_the_caller_lives_while_nft_is_slow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let environment = Environment {
        notify_socket: Some(path.into()),
        watchdog_usec: Some("200000".into()),
        watchdog_pid: None,
    };
    let notifier = Notifier::from_environment(&environment, std::process::id()).unwrap();
    // As long as it takes until somebody has heard enough.
    let (scripts, slow) = script("while [ ! -e $0.heard ]; do sleep 0.05; done; cat >/dev/null");
    let nft = Nft::new(&slow).watched_by(Arc::new(notifier));
    thread::scope(|scope| {
        let applied = scope.spawn(|| nft.apply(&commands()));
        for _ in 0..5 {
            let mut message = [0; 256];
            let read = socket.recv(&mut message).unwrap();
            let message = String::from_utf8_lossy(&message[..read]);
            assert_eq!(message, "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=200000\n");
        }
        fs::write(scripts.path().join("nft.heard"), "").unwrap();
        applied.join().unwrap().unwrap();
    });
    // Others wait as well, and tell nobody.
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 256]).is_ok() {}
    nft.for_others(LIMIT).apply(&commands()).unwrap();
    assert!(socket.recv(&mut [0; 256]).is_err());
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
