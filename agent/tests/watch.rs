//! Watching a policy directory, by real files.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gate25::watch::{PolicyWatch, Reason};

const QUIET: Duration = Duration::from_millis(40);
/// Long enough that a test which needed it fails by its deadline.
const NEVER: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn changed_file_written_in_place_is_noticed_every_time() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    for content in ["1", "2", "3"] {
        fs::write(lab.policy("a.yaml"), content).unwrap();
        noticed(&mut watch).await;
    }
}

#[tokio::test]
async fn changed_file_saved_by_rename_is_noticed_every_time() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    for content in ["1", "2", "3"] {
        fs::write(lab.policy(".a.yaml.swp"), content).unwrap();
        fs::rename(lab.policy(".a.yaml.swp"), lab.policy("a.yaml")).unwrap();
        noticed(&mut watch).await;
    }
}

#[tokio::test]
async fn changed_file_in_new_subdirectories_is_noticed() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    fs::create_dir_all(lab.policy("team/mail")).unwrap();
    noticed(&mut watch).await;
    fs::write(lab.policy("team/mail/b.yaml"), "1").unwrap();
    noticed(&mut watch).await;
    fs::remove_dir_all(lab.policy("team")).unwrap();
    noticed(&mut watch).await;
}

#[tokio::test]
async fn changed_mode_of_a_file_is_noticed() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new();
    let mut watch = lab.watch();
    fs::set_permissions(lab.policy("a.yaml"), fs::Permissions::from_mode(0o600)).unwrap();
    noticed(&mut watch).await;
}

#[tokio::test]
async fn changed_reading_and_neighbours_are_not_noticed() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    fs::read(lab.policy("a.yaml")).unwrap();
    fs::read_dir(lab.policy("")).unwrap().count();
    fs::write(lab.path("etc/passwd"), "1").unwrap();
    fs::write(lab.path("neighbour"), "1").unwrap();
    let waited = tokio::time::timeout(QUIET * 6, watch.changed()).await;
    assert!(waited.is_err());
}

#[tokio::test]
async fn changed_directory_replaced_by_rename_is_noticed_and_watched() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    for round in 0..3 {
        fs::create_dir(lab.path("etc/new")).unwrap();
        fs::write(lab.path("etc/new/a.yaml"), "2").unwrap();
        fs::rename(
            lab.path("etc/policy.d"),
            lab.path(&format!("etc/old{round}")),
        )
        .unwrap();
        fs::rename(lab.path("etc/new"), lab.path("etc/policy.d")).unwrap();
        noticed(&mut watch).await;
        fs::write(lab.policy("a.yaml"), "3").unwrap();
        noticed(&mut watch).await;
        // The old one is no longer of interest.
        fs::write(lab.path(&format!("etc/old{round}/a.yaml")), "4").unwrap();
        assert!(
            tokio::time::timeout(QUIET * 4, watch.changed())
                .await
                .is_err()
        );
    }
}

#[tokio::test]
async fn changed_directory_removed_and_made_again_is_noticed_both_times() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    for _ in 0..2 {
        fs::remove_dir_all(lab.policy("")).unwrap();
        noticed(&mut watch).await;
        fs::create_dir(lab.policy("")).unwrap();
        noticed(&mut watch).await;
        fs::write(lab.policy("a.yaml"), "1").unwrap();
        noticed(&mut watch).await;
    }
}

#[tokio::test]
async fn changed_missing_parents_are_awaited() {
    let lab = Lab::new();
    let directory = lab.path("not/yet/there");
    let mut watch = PolicyWatch::new(&directory, QUIET, NEVER).unwrap();
    fs::create_dir(lab.path("not")).unwrap();
    noticed(&mut watch).await;
    fs::create_dir_all(&directory).unwrap();
    noticed(&mut watch).await;
    fs::write(directory.join("a.yaml"), "1").unwrap();
    noticed(&mut watch).await;
    fs::rename(lab.path("not"), lab.path("gone")).unwrap();
    noticed(&mut watch).await;
}

#[tokio::test]
async fn changed_symlink_to_the_directory_swapped_is_noticed() {
    let lab = Lab::new();
    for version in ["v1", "v2"] {
        fs::create_dir_all(lab.path(version)).unwrap();
        fs::write(lab.path(version).join("a.yaml"), version).unwrap();
    }
    let link = lab.path("etc/linked");
    symlink(lab.path("v1"), &link).unwrap();
    let mut watch = PolicyWatch::new(&link, QUIET, NEVER).unwrap();
    fs::write(lab.path("v1/a.yaml"), "1").unwrap();
    noticed(&mut watch).await;
    symlink(lab.path("v2"), lab.path("etc/linked.tmp")).unwrap();
    fs::rename(lab.path("etc/linked.tmp"), &link).unwrap();
    noticed(&mut watch).await;
    fs::write(lab.path("v2/a.yaml"), "1").unwrap();
    noticed(&mut watch).await;
    // The target itself replaced, the link untouched.
    fs::rename(lab.path("v2"), lab.path("v2.old")).unwrap();
    noticed(&mut watch).await;
    fs::rename(lab.path("v1"), lab.path("v2")).unwrap();
    noticed(&mut watch).await;
}

#[tokio::test]
async fn changed_data_link_of_a_config_map_swapped_is_noticed_every_time() {
    let lab = Lab::new();
    symlink("..data/b.yaml", lab.policy("b.yaml")).unwrap();
    let mut watch = lab.watch();
    for round in 0..3 {
        let version = format!("..2026_{round}");
        fs::create_dir(lab.policy(&version)).unwrap();
        fs::write(lab.policy(&version).join("b.yaml"), &version).unwrap();
        symlink(&version, lab.policy("..data_tmp")).unwrap();
        fs::rename(lab.policy("..data_tmp"), lab.policy("..data")).unwrap();
        noticed(&mut watch).await;
    }
}

#[tokio::test]
async fn changed_git_checkout_of_another_revision_is_noticed() {
    let lab = Lab::new();
    let git = |arguments: &str| {
        let mut command = std::process::Command::new("git");
        command
            .current_dir(lab.policy(""))
            .env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.args(["-c", "user.name=t", "-c", "user.email=t@example.net"]);
        assert!(
            command
                .args(arguments.split(' '))
                .output()
                .unwrap()
                .status
                .success()
        );
    };
    git("init -q -b main");
    git("add a.yaml");
    git("commit -q -m one");
    fs::create_dir(lab.policy("sub")).unwrap();
    fs::write(lab.policy("sub/b.yaml"), "1").unwrap();
    git("checkout -q -b two");
    git("add sub");
    git("commit -q -m two");
    let mut watch = lab.watch();
    for revision in ["main", "two", "main"] {
        git(&format!("checkout -q {revision}"));
        noticed(&mut watch).await;
    }
}

#[tokio::test]
async fn changed_burst_is_reported_once_and_after_the_quiet_time() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    let began = Instant::now();
    for round in 0..200 {
        fs::write(lab.policy("a.yaml"), format!("{round}")).unwrap();
    }
    let written = Instant::now();
    noticed(&mut watch).await;
    assert!(began.elapsed() >= QUIET);
    assert!(written.elapsed() < QUIET * 10);
    assert!(
        tokio::time::timeout(QUIET * 4, watch.changed())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn changed_under_writing_without_end_is_reported_within_ten_quiet_times() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    let writer = Writer::start(lab.policy("busy.yaml"));
    for _ in 0..2 {
        let began = Instant::now();
        noticed(&mut watch).await;
        let took = began.elapsed();
        // Sooner if the writer did not get to write for a quiet time.
        assert!(took < QUIET * 30, "{took:?}");
    }
    writer.stop();
}

#[tokio::test]
async fn changed_future_dropped_midway_loses_nothing() {
    let lab = Lab::new();
    let mut watch = lab.watch();
    fs::write(lab.policy("a.yaml"), "1").unwrap();
    let deadline = Instant::now() + DEADLINE;
    // Dropped again and again, as by the other branches of a `select!`.
    let reason = loop {
        assert!(Instant::now() < deadline);
        if let Ok(reason) = tokio::time::timeout(QUIET / 8, watch.changed()).await {
            break reason.unwrap();
        }
    };
    assert_eq!(reason, Reason::Changed);
}

#[tokio::test]
async fn changed_nothing_for_the_rescan_time_asks_for_a_rescan() {
    let lab = Lab::new();
    let mut watch = PolicyWatch::new(&lab.policy(""), QUIET, QUIET * 2).unwrap();
    for _ in 0..3 {
        assert_eq!(reason(&mut watch).await, Reason::Rescan);
    }
}

#[tokio::test]
async fn changed_thousands_of_files_at_once_are_noticed_and_later_changes_too() {
    let lab = Lab::new();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let files: usize = limit.trim().parse::<usize>().unwrap() / 2;
    let mut watch = lab.watch();
    for number in 0..files {
        fs::write(lab.policy(&format!("{number}.yaml")), "1").unwrap();
    }
    noticed(&mut watch).await;
    while tokio::time::timeout(QUIET * 10, watch.changed())
        .await
        .is_ok()
    {}
    fs::write(lab.policy("a.yaml"), "2").unwrap();
    noticed(&mut watch).await;
}

/// A directory with `etc/policy.d/a.yaml` in it.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let lab = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(lab.policy("")).unwrap();
        fs::write(lab.policy("a.yaml"), "0").unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn policy(&self, name: &str) -> PathBuf {
        self.path("etc/policy.d").join(name)
    }

    fn watch(&self) -> PolicyWatch {
        let watch = PolicyWatch::new(&self.path("etc/policy.d"), QUIET, NEVER).unwrap();
        assert!(watch.is_armed());
        watch
    }
}

struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    fn start(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                touch(&path);
                std::thread::yield_now();
            }
        });
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn touch(path: &Path) {
    fs::write(path, "busy").unwrap();
}

async fn noticed(watch: &mut PolicyWatch) {
    assert_eq!(reason(watch).await, Reason::Changed);
}

async fn reason(watch: &mut PolicyWatch) -> Reason {
    tokio::time::timeout(DEADLINE, watch.changed())
        .await
        .unwrap()
        .unwrap()
}
