//! A network namespace for one test, entered by a thread of its own: both end with the test.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gate25_tests::paced;
use nix::sched::{CloneFlags, unshare};

/// How long anything may take on an ordinary machine before a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The same on this machine.
pub(crate) fn deadline() -> Duration {
    paced(LIMIT)
}

/// Runs `test` in a fresh network namespace, inside a single-threaded runtime.
pub(crate) fn within<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let outside = here();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert_ne!(
            here(),
            outside,
            "refusing to run in the machine's own namespace"
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let outcome =
            runtime.block_on(async { tokio::time::timeout(deadline() * 3, test()).await });
        outcome.unwrap();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command in the namespace; panics with what it said if it fails.
#[track_caller]
pub(crate) fn run(command: &str) {
    let (said, succeeded) = output(command);
    assert!(succeeded, "{command}: {said}");
}

/// Runs a command in the namespace and says what it wrote and whether it succeeded.
#[track_caller]
pub(crate) fn output(command: &str) -> (String, bool) {
    let mut words = command.split_whitespace();
    let done = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    (
        String::from_utf8_lossy(&said).into_owned(),
        done.status.success(),
    )
}

/// Runs many `ip` commands at once.
#[track_caller]
pub(crate) fn ip_batch(lines: &str) {
    use std::io::Write as _;
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}

/// The number of the interface `name`.
#[track_caller]
pub(crate) fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Another network namespace, held open by a process that sleeps in it.
pub(crate) struct Elsewhere(Child);

impl Elsewhere {
    pub(crate) fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .spawn()
            .unwrap();
        let theirs = format!("/proc/{}/ns/net", child.id());
        let deadline = Instant::now() + deadline();
        while fs::read_link(&theirs).unwrap() == here() {
            assert!(
                Instant::now() < deadline,
                "unshare did not enter a namespace"
            );
            std::thread::yield_now();
        }
        Self(child)
    }

    /// What `ip` calls it.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn here() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").unwrap()
}
