//! Notices when the policy directory changes, however that is done: files saved in place or by
//! rename, `git checkout`, rsync, a symlink swapped under it, the directory replaced, removed and
//! made again.
//!
//! inotify watches inodes, not paths, and a watch dies with what it watches. So every component of
//! the path, symlinks followed, is watched in the directory that holds its name, the directory
//! itself with all that is below it, and all of it anew after every change. What is missed all the
//! same (network file systems) the caller finds at the next [`Reason::Rescan`].

mod points;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use thiserror::Error;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use points::Points;

use crate::chain::in_full;

/// Quiet times after which a change is reported although writing goes on.
const PATIENCE: u32 = 10;

/// Changes of the path under our hands after which setting up the watches starts over from a
/// notice.
const ARM_ATTEMPTS: u32 = 10;

/// Why [`PolicyWatch::changed`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Something under the directory, or on the way to it, changed.
    Changed,
    /// Nothing was noticed for the rescan time: compare the contents.
    Rescan,
}

/// Why a directory cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// A relative path could not be completed.
    #[error("cannot tell where {path} is", path = .path.display())]
    Path {
        /// The path given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// inotify refused: most often its limits are exhausted.
    #[error("cannot watch {path}", path = .path.display())]
    Notify {
        /// The directory to be watched.
        path: PathBuf,
        /// The watcher's reason.
        source: notify::Error,
    },
    /// The task that sets up the watches was cut short by the runtime's end.
    #[error("setting up the watches was cancelled")]
    Cancelled(#[source] tokio::task::JoinError),
}

/// A watch on one directory.
#[derive(Debug)]
pub struct PolicyWatch {
    directory: PathBuf,
    quiet: Duration,
    rescan: Duration,
    sender: Sender<()>,
    receiver: Receiver<()>,
    /// Kept for as long as its watches are wanted; none while the system refuses them.
    watcher: Option<RecommendedWatcher>,
    burst: Option<Burst>,
    rescan_at: Instant,
}

/// A change that has been noticed and not yet reported.
#[derive(Debug, Clone, Copy)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl PolicyWatch {
    /// Watches `directory`, which need not exist, from now on. A change is reported once nothing
    /// more has happened for `quiet`, or for ten times that after it began.
    ///
    /// Where the system refuses the watches, that is logged and tried again at every rescan.
    ///
    /// # Errors
    /// [`WatchError::Path`] for a relative path without a working directory.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled.
    pub fn new(directory: &Path, quiet: Duration, rescan: Duration) -> Result<Self, WatchError> {
        let absolute = std::path::absolute(directory).map_err(|source| WatchError::Path {
            path: directory.to_owned(),
            source,
        })?;
        // One pending notice says as much as a thousand.
        let (sender, receiver) = channel(1);
        let watcher = logged(&absolute, arm(&absolute, &sender));
        let rescan_at = Instant::now() + rescan;
        let burst = None;
        let directory = absolute;
        Ok(Self {
            directory,
            quiet,
            rescan,
            sender,
            receiver,
            watcher,
            burst,
            rescan_at,
        })
    }

    /// Whether changes are noticed as they happen, rather than at rescans only.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.watcher.is_some()
    }

    /// Returns when the directory has changed and is quiet again, or after the rescan time. What
    /// happens to the files from before it returns on is reported by the next call. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// [`WatchError::Cancelled`] when the runtime shuts down.
    pub async fn changed(&mut self) -> Result<Reason, WatchError> {
        let reason = self.quiet_again().await;
        // Armed before it is reported, so that what is read afterwards is watched already.
        let (directory, sender) = (self.directory.clone(), self.sender.clone());
        let armed = tokio::task::spawn_blocking(move || arm(&directory, &sender)).await;
        self.watcher = logged(&self.directory, armed.map_err(WatchError::Cancelled)?);
        self.burst = None;
        self.rescan_at = Instant::now() + self.rescan;
        Ok(reason)
    }

    async fn quiet_again(&mut self) -> Reason {
        loop {
            let until = match self.burst {
                None => self.rescan_at,
                Some(Burst { first, last }) => {
                    (last + self.quiet).min(first + self.quiet * PATIENCE)
                }
            };
            // Nothing else would end a wait that notices keep interrupting.
            if Instant::now() >= until {
                return self.burst.map_or(Reason::Rescan, |_| Reason::Changed);
            }
            if let Ok(Some(())) = timeout_at(until, self.receiver.recv()).await {
                let now = Instant::now();
                let first = self.burst.map_or(now, |burst| burst.first);
                self.burst = Some(Burst { first, last: now });
            }
        }
    }
}

/// Sets up every watch afresh.
fn arm(directory: &Path, sender: &Sender<()>) -> Result<RecommendedWatcher, WatchError> {
    let refused = |source| WatchError::Notify {
        path: directory.to_owned(),
        source,
    };
    let mut points = Points::on_the_way_to(directory);
    let mut watcher = watch(&points, sender.clone()).map_err(refused)?;
    // The path may have changed while it was walked: what is watched must be what is there.
    for _ in 0..ARM_ATTEMPTS {
        let now = Points::on_the_way_to(directory);
        if now == points {
            return Ok(watcher);
        }
        points = now;
        watcher = watch(&points, sender.clone()).map_err(refused)?;
    }
    notice(sender);
    Ok(watcher)
}

/// A notice that waits already serves as well; without a receiver nobody cares.
fn notice(sender: &Sender<()>) {
    sender.try_send(()).unwrap_or_default();
}

fn watch(points: &Points, sender: Sender<()>) -> notify::Result<RecommendedWatcher> {
    let relevant = points.clone();
    let handler = move |event: notify::Result<Event>| {
        let matters = match &event {
            Ok(event) => is_change(event) && relevant.concern(event),
            Err(error) => {
                debug!(error = in_full(&error), "watching the policy directory");
                true
            }
        };
        if matters {
            notice(&sender);
        }
    };
    let config = Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(handler, config)?;
    for holder in points.holders() {
        ignore_missing(watcher.watch(holder, RecursiveMode::NonRecursive))?;
    }
    if let Some(target) = points.target() {
        ignore_missing(watcher.watch(target, RecursiveMode::Recursive))?;
    }
    Ok(watcher)
}

/// What vanishes while it is being watched shows as a change of the path or as an event.
fn ignore_missing(watched: notify::Result<()>) -> notify::Result<()> {
    match watched {
        Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => Ok(()),
        Err(notify::Error {
            kind: notify::ErrorKind::Io(error),
            ..
        }) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Reading the files is no change, or every reload would bring about the next.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

fn logged(
    directory: &Path,
    armed: Result<RecommendedWatcher, WatchError>,
) -> Option<RecommendedWatcher> {
    match armed {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            warn!(directory = %directory.display(), error = in_full(&error), "changes show at rescans only");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{Flag, ModifyKind};

    use super::*;

    #[test]
    fn overflow_of_the_queue_counts_as_a_change_of_the_directory() {
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(is_change(&overflow));
        assert!(Points::on_the_way_to(Path::new("/nowhere")).concern(&overflow));
    }

    #[test]
    fn is_change_of_reading_is_false_and_of_writing_true() {
        let access = |kind| Event::new(EventKind::Access(kind));
        assert!(!is_change(&access(AccessKind::Open(AccessMode::Any))));
        assert!(!is_change(&access(AccessKind::Close(AccessMode::Read))));
        assert!(is_change(&access(AccessKind::Close(AccessMode::Write))));
        assert!(is_change(&Event::new(EventKind::Modify(ModifyKind::Any))));
    }
}
