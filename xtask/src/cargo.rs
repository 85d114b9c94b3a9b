//! Cargo, run from the workspace's root with a deadline and its tests counted.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// Longer than a cold build on two slow cores takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(20 * 60);

/// What a run of tests came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Count {
    pub(crate) fn add(&mut self, other: Self) {
        let Self {
            passed,
            failed,
            skipped,
        } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// What could not be run.
    pub(crate) fn failure() -> Self {
        Self {
            failed: 1,
            ..Self::default()
        }
    }

    /// Shows the tests that noted that they were skipped, a line each.
    pub(crate) fn skip(&mut self, noted: &str) {
        for line in noted.lines() {
            println!("skipped: {line}");
        }
        self.note_skips(noted);
    }

    /// Counts the tests that noted that they were skipped. libtest took them for passed.
    pub(crate) fn note_skips(&mut self, noted: &str) {
        for _ in noted.lines() {
            self.passed = self.passed.saturating_sub(1);
            self.skipped += 1;
        }
    }

    pub(crate) fn total(self) -> u32 {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        passed + failed + skipped
    }
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this program, started in the workspace's root.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).current_dir(root());
    // What cargo sets for this program would make it build others anew.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Builds the agent and returns its path.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let mut command = cargo("build");
    command.args(["--release", "--package", "gate25"]);
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .context("start cargo")?;
    let status = wait(&mut child, LIMIT)?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    let binary = target().join("release/gate25");
    binary
        .canonicalize()
        .with_context(|| format!("no {} was built", binary.display()))
}

/// How many tests a `cargo test` with `-- --list` lists.
pub(crate) fn listed_tests(mut command: Command) -> anyhow::Result<u64> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!("list the tests: {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let tests = text.lines().filter(|line| line.ends_with(": test"));
    Ok(tests.count() as u64)
}

/// Runs `cargo test`, showing its output, and counts what libtest reports.
///
/// A run that fails without a failed test (it does not compile, it was killed) counts as one.
pub(crate) fn count_tests(mut command: Command, limit: Duration) -> anyhow::Result<Count> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo")?;
    let output = child.stdout.take().context("cargo's output")?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut count = Count::default();
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if let Some(found) = summary(&line) {
                count.add(found);
            }
        }
        // The receiver is gone only when the deadline has passed.
        send.send(count).ok();
    });
    let status = wait(&mut child, limit);
    let mut count = receive
        .recv_timeout(Duration::from_secs(5))
        .unwrap_or_default();
    if !status?.success() && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// Prints the last line of a run, and says how it ends: a run without a test has failed.
pub(crate) fn close(count: Count) -> ExitCode {
    println!("{}", closing_line(count));
    if count.failed == 0 && count.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The last line of a command's output.
pub(crate) fn closing_line(count: Count) -> String {
    let Count {
        passed,
        failed,
        skipped,
    } = count;
    let skips = if skipped == 0 {
        String::new()
    } else {
        format!(", {skipped} skipped")
    };
    format!("{passed} passed, {failed} failed{skips}")
}

/// Reads libtest's `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
pub(crate) fn summary(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?;
    let (_, rest) = rest.split_once(". ")?;
    let mut values = BTreeMap::new();
    for part in rest.split("; ") {
        let (number, word) = part.split_once(' ')?;
        if let Ok(number) = number.parse::<u32>() {
            values.insert(word, number);
        }
    }
    let (passed, failed) = (*values.get("passed")?, *values.get("failed")?);
    Some(Count {
        passed,
        failed,
        skipped: *values.get("ignored")?,
    })
}

/// Runs a command of the workspace's to its end.
pub(crate) fn finish(command: &mut Command) -> anyhow::Result<()> {
    command.current_dir(root());
    let shown = display(command);
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    let status = wait(&mut child, LIMIT)?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Waits for a child; at the deadline it and all below it are killed.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<ExitStatus> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().context("wait for a command")? {
            return Ok(status);
        }
        if Instant::now() >= end {
            kill_tree(child.id());
            let status = child.wait().context("wait for a killed command")?;
            println!("killed after {limit:?}: {status}");
            return Ok(status);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Kills a process of ours, its children and theirs.
fn kill_tree(pid: u32) {
    let mut pending = vec![pid];
    let mut found = Vec::new();
    while let Some(pid) = pending.pop() {
        found.push(pid);
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            pending.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    for pid in found {
        let Ok(pid) = i32::try_from(pid) else {
            continue;
        };
        let pid = nix::unistd::Pid::from_raw(pid);
        // It may have ended by itself.
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    }
}

/// A command as one would type it.
pub(crate) fn display(command: &Command) -> String {
    let mut words: Vec<OsString> = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(OsString::from));
    let words: Vec<_> = words
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_libtest_counts_ignored_as_skipped() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.00s";
        assert_eq!(
            summary(line),
            Some(Count {
                passed: 3,
                failed: 1,
                skipped: 2
            })
        );
        assert_eq!(summary("test result_is_ok ... ok"), None);
    }

    #[test]
    fn closing_line_without_skips_has_two_numbers() {
        let count = Count {
            passed: 12,
            failed: 0,
            skipped: 0,
        };
        assert_eq!(closing_line(count), "12 passed, 0 failed");
        let count = Count {
            passed: 12,
            failed: 1,
            skipped: 2,
        };
        assert_eq!(closing_line(count), "12 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn skip_takes_noted_tests_from_those_that_passed() {
        let mut count = Count {
            passed: 3,
            ..Count::default()
        };
        count.skip("a_test: no tcx before Linux 6.6\n");
        assert_eq!((count.passed, count.skipped), (2, 1));
    }

    #[test]
    fn wait_past_the_deadline_kills_the_children_too() {
        let start = Instant::now();
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60; true"])
            .spawn()
            .unwrap();
        let status = wait(&mut child, Duration::from_millis(50)).unwrap();
        assert!(!status.success());
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
