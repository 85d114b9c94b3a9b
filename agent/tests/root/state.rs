//! What only real file systems show: full and read-only disks, locks on the BPF filesystem. Every
//! test has a mount namespace of its own, entered by a thread: the mounts end with it.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use gate25::policy::loader::{SetHash, SourceFile};
use gate25::state::lock::{ExclusiveLock, LockError};
use gate25::state::{LastKnownGood, Saved, StateError, StoredSet};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::netns::deadline;

#[test]
fn disk_that_fills_up_keeps_the_earlier_set_and_nothing_else() {
    // Three sets at once: the last one, the one before, and the new one.
    on_file_system("tmpfs", "size=64k,mode=0700", |dir| {
        let store = LastKnownGood::open(dir).unwrap();
        assert_eq!(store.save(&set(1, 6_000)).unwrap(), Saved::Written);
        let error = store.save(&set(2, 60_000)).unwrap_err();
        assert_eq!(kind(&error), io::ErrorKind::StorageFull, "{error:?}");
        assert_eq!(store.load().unwrap(), Some(set(1, 6_000)));
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
        // The room came back.
        assert_eq!(store.save(&set(2, 9_000)).unwrap(), Saved::Written);
        assert_eq!(store.load().unwrap(), Some(set(2, 9_000)));
    });
}

#[test]
fn disk_that_others_have_filled_keeps_the_earlier_set() {
    on_file_system("tmpfs", "size=32k,nr_inodes=8,mode=0700", |dir| {
        let store = LastKnownGood::open(dir).unwrap();
        store.save(&set(1, 6_000)).unwrap();
        let filled = fs::write(dir.join("log"), vec![0; 64_000]).unwrap_err();
        assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
        let error = store.save(&set(2, 10)).unwrap_err();
        assert_eq!(kind(&error), io::ErrorKind::StorageFull, "{error:?}");
        assert_eq!(store.load().unwrap(), Some(set(1, 6_000)));
        // Nor is there room for a name.
        fs::write(dir.join("log"), "").unwrap();
        let made = (0..8).find_map(|number| fs::write(dir.join(format!("{number}")), "").err());
        assert_eq!(made.unwrap().kind(), io::ErrorKind::StorageFull);
        let error = store.save(&set(2, 10)).unwrap_err();
        assert_eq!(kind(&error), io::ErrorKind::StorageFull, "{error:?}");
        assert_eq!(store.load().unwrap(), Some(set(1, 6_000)));
    });
}

#[test]
fn disk_that_is_read_only_is_read_and_needs_no_writing_while_nothing_changes() {
    on_file_system("tmpfs", "size=64k,mode=0700", |dir| {
        LastKnownGood::open(dir).unwrap().save(&set(1, 10)).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, dir, None::<&str>, flags, None::<&str>).unwrap();
        let store = LastKnownGood::open(dir).unwrap();
        assert_eq!(store.load().unwrap(), Some(set(1, 10)));
        assert_eq!(store.save(&set(1, 10)).unwrap(), Saved::Unchanged);
        let error = store.save(&set(2, 10)).unwrap_err();
        assert_eq!(kind(&error), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(store.load().unwrap(), Some(set(1, 10)));
    });
}

#[test]
fn lock_on_the_bpf_filesystem_keeps_other_processes_away_until_it_is_dropped() {
    on_file_system("bpf", "mode=0700", |dir| {
        let dir = folder(dir);
        fs::write(dir.join("lock"), "").expect_err("why a directory is locked, not a file");
        let held = ExclusiveLock::acquire(&dir).unwrap();
        assert!(!can_lock(&dir));
        drop(held);
        assert!(can_lock(&dir));
    });
}

#[test]
fn lock_of_a_process_that_is_killed_is_free() {
    on_file_system("bpf", "mode=0700", |dir| {
        let dir = folder(dir);
        let mut holder = Command::new("flock")
            .args(["--no-fork", "--exclusive"])
            .arg(&dir)
            .args(["sleep", "infinity"])
            .spawn()
            .map(Holder)
            .unwrap();
        let deadline = Instant::now() + deadline();
        loop {
            match ExclusiveLock::acquire(&dir) {
                Err(LockError::Held { directory }) => break assert_eq!(directory, dir),
                Err(error) => panic!("{error:?}"),
                Ok(_) => assert!(Instant::now() < deadline, "flock took no lock"),
            }
            std::thread::yield_now();
        }
        holder.0.kill().unwrap();
        assert_eq!(holder.0.wait().unwrap().signal(), Some(libc::SIGKILL));
        ExclusiveLock::acquire(&dir).unwrap();
    });
}

/// Ends its process where the test fails before it does.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Runs `test` with a new file system mounted on a directory of its own, where nobody else sees it.
fn on_file_system(kind: &'static str, options: &'static str, test: fn(&Path)) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_owned();
    let thread = std::thread::spawn(move || {
        let outside = here();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        assert_ne!(
            here(),
            outside,
            "refusing to mount in the machine's own namespace"
        );
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let none = MsFlags::empty();
        mount(Some(kind), &path, Some(kind), none, Some(options)).unwrap();
        test(&path);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn here() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/mnt").unwrap()
}

/// A folder as the agent makes one for its pins.
fn folder(dir: &Path) -> PathBuf {
    let folder = dir.join("gate25");
    fs::create_dir(&folder).unwrap();
    folder
}

/// Whether util-linux's flock, another process, gets the lock.
fn can_lock(dir: &Path) -> bool {
    let tried = Command::new("flock")
        .args(["--nonblock", "--conflict-exit-code", "75"])
        .arg(dir)
        .arg("true")
        .status()
        .unwrap();
    match tried.code() {
        Some(0) => true,
        Some(75) => false,
        other => panic!("flock: {other:?}"),
    }
}

/// A set of one file of `length` bytes; a third more on disk.
fn set(hash: u8, length: usize) -> StoredSet {
    let file = SourceFile {
        path: Path::new("a.yaml").into(),
        bytes: vec![hash; length].into(),
    };
    StoredSet {
        files: [file].into(),
        hash: SetHash([hash; 32]),
        accepted: "2026-11-23T12:00:00Z".parse().unwrap(),
    }
}

#[track_caller]
fn kind(error: &StateError) -> io::ErrorKind {
    let StateError::Write { path, source } = error else {
        panic!("{error:?}")
    };
    assert!(path.ends_with("last-known-good.json"));
    source.kind()
}
