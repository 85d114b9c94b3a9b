//! Processes of a lab: started inside its namespaces and cgroup, killed by number.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::paced;

/// A running process; it is killed when this value goes.
#[derive(Debug)]
pub struct Process {
    child: Child,
    label: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn new(child: Child, label: String, log: PathBuf) -> Self {
        Self {
            child,
            label,
            log,
            ended: None,
        }
    }

    /// The process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that takes its stdout and stderr.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written to stdout and stderr so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if let Some(status) = self.status()? {
            bail!("{} has ended already: {status}", self.label);
        }
        let pid = i32::try_from(self.child.id()).context("process number")?;
        signal::kill(Pid::from_raw(pid), signal)
            .with_context(|| format!("send {signal} to {}", self.label))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub fn status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .with_context(|| format!("wait for {}", self.label))?;
        }
        Ok(self.ended)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs at the deadline; it is killed then.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let limit = paced(limit);
        let end = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.status()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                self.kill()?;
                bail!(
                    "{} still ran after {limit:?}; it wrote:\n{}",
                    self.label,
                    tail(&self.log())
                );
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills it with SIGKILL and collects it.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.ended.is_none() {
            self.child
                .kill()
                .with_context(|| format!("kill {}", self.label))?;
            self.ended = Some(
                self.child
                    .wait()
                    .with_context(|| format!("wait for {}", self.label))?,
            );
        }
        Ok(())
    }

    /// Lets it run on when this value goes; the lab's end ends it.
    pub fn leave(mut self) {
        self.ended = Some(ExitStatus::from_raw(0));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            // Nothing else can be done here, and the lab's guardian kills it anyway.
            drop(error);
        }
    }
}

/// Asks again and again until the answer is there or the time is up, which is longer where
/// [`paced`] makes it so.
///
/// # Errors
/// At the deadline, naming what was waited for; at once when asking fails.
pub fn poll<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let limit = paced(limit);
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}

/// The last lines of a log, for a message.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
