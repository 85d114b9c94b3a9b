//! What is kept on disk of a change that undoes itself, so that it does whatever becomes of the agent.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{StateError, TRIAL_NAME, TRIAL_TEMPORARY_NAME, format, remove, write};
use crate::policy::loader::SetHash;

const VERSION: u64 = 1;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A set on trial, or one that was undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Identifies the set that is gone back to.
    pub base: SetHash,
    /// Identifies the files that are on trial, or that are not taken over again unasked.
    pub files: SetHash,
    /// How far it is.
    pub phase: Phase,
}

/// How far a trial is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The files run.
    Running(Deadline),
    /// The set before runs again.
    Undone {
        /// Since when.
        at: Timestamp,
    },
}

/// When a trial ends. The wall clock may be set meanwhile: what counts is the time since the boot,
/// suspended time included, and a boot ends every trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadline {
    /// Tells this boot from others.
    pub boot: String,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub at: i64,
    /// The same by the wall clock, as it was at the beginning: for people.
    pub ends: Timestamp,
}

impl Deadline {
    /// Whether it is over at `now`, in nanoseconds of the clock of `boot`.
    #[must_use]
    pub fn is_over(&self, boot: &str, now: i64) -> bool {
        self.boot != boot || self.at <= now
    }
}

/// What tells this boot from others.
///
/// # Errors
/// The kernel does not say.
pub fn boot_id() -> io::Result<String> {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u64,
    base: String,
    files: String,
    running: Option<Running>,
    undone: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Running {
    boot: String,
    at: i64,
    ends: Timestamp,
}

impl Trial {
    /// What is kept in `directory`, if anything is.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn load(directory: &Path) -> Result<Option<Self>, StateError> {
        let path = directory.join(TRIAL_NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        let decoded = decode(&bytes);
        decoded
            .map(Some)
            .map_err(|source| StateError::Unusable { path, source })
    }

    /// Keeps it instead of what was kept before. After a crash at any moment either of the two is.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save(&self, directory: &Path) -> Result<(), StateError> {
        let path = directory.join(TRIAL_NAME);
        let bytes = serde_json::to_vec(&self.record()).map_err(StateError::Encode)?;
        let temporary = directory.join(TRIAL_TEMPORARY_NAME);
        remove(&temporary)
            .and_then(|()| write(&temporary, &bytes))
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| sync(directory))
            .map_err(|source| StateError::Write { path, source })
    }

    /// Keeps nothing.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget(directory: &Path) -> Result<(), StateError> {
        let path = directory.join(TRIAL_NAME);
        remove(&path)
            .and_then(|()| sync(directory))
            .map_err(|source| StateError::Write { path, source })
    }

    fn record(&self) -> Record {
        let Self { base, files, phase } = self;
        let (running, undone) = match phase {
            Phase::Running(Deadline { boot, at, ends }) => (
                Some(Running {
                    boot: boot.clone(),
                    at: *at,
                    ends: *ends,
                }),
                None,
            ),
            Phase::Undone { at } => (None, Some(*at)),
        };
        Record {
            version: VERSION,
            base: base.to_string(),
            files: files.to_string(),
            running,
            undone,
        }
    }
}

fn decode(bytes: &[u8]) -> Result<Trial, format::FormatError> {
    let Record {
        version,
        base,
        files,
        running,
        undone,
    } = serde_json::from_slice(bytes)?;
    if version != VERSION {
        return Err(format::FormatError::Version(version));
    }
    let phase = match (running, undone) {
        (Some(Running { boot, at, ends }), None) => Phase::Running(Deadline { boot, at, ends }),
        (None, Some(at)) => Phase::Undone { at },
        (Some(_), Some(_)) | (None, None) => {
            return Err(format::FormatError::Field("the phase"));
        }
    };
    Ok(Trial {
        base: format::set_hash(&base)?,
        files: format::set_hash(&files)?,
        phase,
    })
}

fn sync(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn trial(phase: Phase) -> Trial {
        Trial {
            base: SetHash([1; 32]),
            files: SetHash([0xf0; 32]),
            phase,
        }
    }

    fn deadline() -> Deadline {
        Deadline {
            boot: "one".to_owned(),
            at: 1000,
            ends: "2026-11-23T08:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn trial_that_is_saved_is_loaded_until_it_is_forgotten() {
        let dir = TempDir::new().unwrap();
        assert_eq!(Trial::load(dir.path()).unwrap(), None);
        let at = "2026-11-23T09:00:00Z".parse().unwrap();
        for phase in [Phase::Running(deadline()), Phase::Undone { at }] {
            let trial = trial(phase);
            trial.save(dir.path()).unwrap();
            assert_eq!(Trial::load(dir.path()).unwrap(), Some(trial));
        }
        Trial::forget(dir.path()).unwrap();
        Trial::forget(dir.path()).unwrap();
        assert_eq!(Trial::load(dir.path()).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn trial_that_is_damaged_or_of_another_version_is_an_error() {
        let dir = TempDir::new().unwrap();
        trial(Phase::Running(deadline())).save(dir.path()).unwrap();
        let path = dir.path().join(TRIAL_NAME);
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            text[..text.len() / 2].to_owned(),
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("0101", "01"),
            text.replace("\"boot\":\"one\",", ""),
        ] {
            fs::write(&path, &damaged).unwrap();
            assert!(Trial::load(dir.path()).is_err(), "{damaged}");
        }
    }

    #[test]
    fn deadline_is_over_at_its_time_and_after_any_boot() {
        let deadline = deadline();
        assert!(!deadline.is_over("one", 999));
        assert!(deadline.is_over("one", 1000));
        assert!(deadline.is_over("one", i64::MAX));
        assert!(deadline.is_over("other", 0));
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
