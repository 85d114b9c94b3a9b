//! Keeps a second agent away.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long a program that an agent was about to start may outlive it: until its exec(2).
/// On a busy machine that takes a while.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "another gate25 runs on this host: it holds the lock on {}; `systemctl status gate25` and \
         `fuser -v {}` tell which", directory.display(), directory.display()
    )]
    Held {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory cannot be opened.
    #[error("opening {} to lock it", directory.display())]
    Open {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses the lock for another reason.
    #[error("locking {}", directory.display())]
    Lock {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: Errno,
    },
}

/// Held by the one agent of a host for as long as it lives.
///
/// A directory is locked, since ordinary files cannot be made on the BPF filesystem: flock(2) works
/// on every open file. The kernel releases the lock when the process ends, however it ends. Programs
/// that the agent starts do not inherit it: the descriptor is close-on-exec.
#[derive(Debug)]
pub struct ExclusiveLock {
    _locked: Flock<File>,
}

impl ExclusiveLock {
    /// Locks `directory`, which nobody keeps longer than [`GRACE`] who is not an agent that runs.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let end = Instant::now() + GRACE;
        loop {
            match Self::try_acquire(directory) {
                Err(LockError::Held { .. }) if Instant::now() < end => thread::sleep(PAUSE),
                outcome => return outcome,
            }
        }
    }

    /// Whether somebody holds the lock on `directory`. Whoever wants it at this very moment tries
    /// again.
    ///
    /// # Errors
    /// [`LockError::Open`], [`LockError::Lock`].
    pub fn is_held(directory: &Path) -> Result<bool, LockError> {
        match Self::try_acquire(directory) {
            Ok(_at_once_released) => Ok(false),
            Err(LockError::Held { .. }) => Ok(true),
            Err(error @ (LockError::Open { .. } | LockError::Lock { .. })) => Err(error),
        }
    }

    fn try_acquire(directory: &Path) -> Result<Self, LockError> {
        // The standard library opens everything close-on-exec.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(directory)
            .map_err(|source| LockError::Open {
                directory: directory.to_owned(),
                source,
            })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Self { _locked: locked }),
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Held {
                directory: directory.to_owned(),
            }),
            Err((_, source)) => Err(LockError::Lock {
                directory: directory.to_owned(),
                source,
            }),
        }
    }
}
