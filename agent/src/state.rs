//! What the agent keeps on disk, and what keeps a second agent away.
//!
//! The last set of policy files that was accepted is kept, so that a start that finds invalid files,
//! or none, goes on with it.

mod format;
pub mod lock;
pub mod trial;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use crate::policy::directory::{Links, open_regular};
use crate::policy::loader::{SetHash, SourceFile};
use crate::trust::{Keepers, Trust, TrustError};
use format::FormatError;

/// The file in the state directory.
pub const FILE_NAME: &str = "last-known-good.json";
/// The name under which it is written. One name is enough: only one agent runs on a host.
const TEMPORARY_NAME: &str = ".last-known-good.json.new";
/// The set before that one.
const PREVIOUS_NAME: &str = "previous.json";
const PREVIOUS_TEMPORARY_NAME: &str = ".previous.json.new";
const TRIAL_NAME: &str = "trial.json";
const TRIAL_TEMPORARY_NAME: &str = ".trial.json.new";
/// All that is kept in the directory.
pub(crate) const NAMES: [&str; 6] = [
    FILE_NAME,
    TEMPORARY_NAME,
    PREVIOUS_NAME,
    PREVIOUS_TEMPORARY_NAME,
    TRIAL_NAME,
    TRIAL_TEMPORARY_NAME,
];
/// The largest file that is written or read, in bytes. Ten thousand customers take 3 MB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A set of policy files that was accepted, as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSet {
    /// The files.
    pub files: Arc<[SourceFile]>,
    /// Identifies them.
    pub hash: SetHash,
    /// When they were accepted.
    pub accepted: Timestamp,
}

/// Why the stored set could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be made or opened.
    #[error("opening the state directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could have put a policy there.
    #[error("what is kept must be writable by nobody but root and the agent's user")]
    Exposed(#[from] TrustError),
    /// A symbolic link, a directory, a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What was to be the file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More than [`MAX_FILE_BYTES`].
    #[error("{} is larger than {} MiB", path.display(), MAX_FILE_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file does not hold what was written.
    #[error("{} cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
    /// The set has no form as JSON.
    #[error("the policy set cannot be put into a file")]
    Encode(#[source] serde_json::Error),
    /// The file cannot be written; the earlier one, if any, is untouched.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What became of a set that was to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// It is on disk now.
    Written,
    /// It was there already; nothing was written.
    Unchanged,
}

/// Where the last accepted set is kept.
#[derive(Debug, Clone)]
pub struct LastKnownGood {
    directory: PathBuf,
}

impl LastKnownGood {
    /// The store in `directory`, which is made with mode 0700 if it is missing. The directory
    /// itself may be a symbolic link.
    ///
    /// # Errors
    /// [`StateError::Directory`], [`StateError::Exposed`].
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let store = Self {
            directory: directory.to_owned(),
        };
        store.folder()?;
        Ok(store)
    }

    /// The file that holds the set.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    /// The set that was saved last; `None` if none ever was.
    ///
    /// # Errors
    /// [`StateError`]: a set that is not whole is never returned.
    pub fn load(&self) -> Result<Option<StoredSet>, StateError> {
        self.folder()?;
        self.stored(FILE_NAME, &Trust::Keepers(keepers()))
    }

    /// The set that was saved before that one; `None` if there was none.
    ///
    /// # Errors
    /// As [`LastKnownGood::load`].
    pub fn previous(&self) -> Result<Option<StoredSet>, StateError> {
        self.folder()?;
        self.stored(PREVIOUS_NAME, &Trust::Keepers(keepers()))
    }

    /// The set that an agent of any user has kept in `directory`, for commands that change nothing;
    /// `None` if none has.
    ///
    /// # Errors
    /// As [`LastKnownGood::load`].
    pub fn look(directory: &Path) -> Result<Option<StoredSet>, StateError> {
        let store = Self {
            directory: directory.to_owned(),
        };
        store.stored(FILE_NAME, &Trust::Anybody)
    }

    fn stored(&self, name: &str, trust: &Trust) -> Result<Option<StoredSet>, StateError> {
        let path = self.directory.join(name);
        let Some(bytes) = read(&path, trust)? else {
            return Ok(None);
        };
        let decoded = format::decode(&bytes);
        let set = decoded.map_err(|source| StateError::Unusable { path, source })?;
        Ok(Some(set))
    }

    /// Keeps `set` instead of the one before, unless that has the same hash. After a crash at any
    /// moment the file holds either of the two.
    ///
    /// # Errors
    /// [`StateError`]; the earlier set then stays, except that after a failure to synchronize the
    /// directory either may be found after a crash.
    pub fn save(&self, set: &StoredSet) -> Result<Saved, StateError> {
        self.replace(set, None)
    }

    /// As [`LastKnownGood::save`]. The set before stays as the previous one, unless `base` says
    /// that another one has to stay that.
    ///
    /// # Errors
    /// As [`LastKnownGood::save`].
    pub fn replace(&self, set: &StoredSet, base: Option<SetHash>) -> Result<Saved, StateError> {
        let folder = self.folder()?;
        let temporary = self.directory.join(TEMPORARY_NAME);
        remove(&temporary).map_err(|source| self.unwritten(source))?;
        // What cannot be read is written anew.
        let stored = read(&self.path(), &Trust::Keepers(keepers()))
            .ok()
            .flatten();
        let stored = stored.and_then(|bytes| {
            let hash = format::hash(&bytes).ok()?;
            Some((hash, bytes))
        });
        if stored.as_ref().is_some_and(|(hash, _)| *hash == set.hash) {
            return Ok(Saved::Unchanged);
        }
        let bytes = format::encode(set).map_err(StateError::Encode)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(StateError::TooLarge { path: self.path() });
        }
        let moved = write(&temporary, &bytes)
            .and_then(|()| match &stored {
                Some((hash, bytes)) if base.is_none_or(|base| base == *hash) => {
                    self.keep_previous(bytes)
                }
                Some(_) | None => Ok(()),
            })
            .and_then(|()| fs::rename(&temporary, self.path()));
        if let Err(source) = moved {
            // A full disk gets its room back. That failing too, the next save tries again.
            let _removed = remove(&temporary);
            return Err(self.unwritten(source));
        }
        folder.sync_all().map_err(|source| self.unwritten(source))?;
        Ok(Saved::Written)
    }

    /// The set that is about to be replaced stays under another name: a copy, since no file is given
    /// to another user that has a second name.
    fn keep_previous(&self, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.directory.join(PREVIOUS_TEMPORARY_NAME);
        remove(&temporary)?;
        let moved = write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, self.directory.join(PREVIOUS_NAME)));
        if moved.is_err() {
            // As above: a full disk gets its room back.
            let _removed = remove(&temporary);
        }
        moved
    }

    /// Opens the directory, made if it is missing: whoever may write there decides what a start
    /// with invalid policy files opens.
    fn folder(&self) -> Result<File, StateError> {
        let failed = |source| StateError::Directory {
            path: self.directory.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&self.directory)
            .map_err(failed)?;
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&self.directory)
            .map_err(failed)?;
        let metadata = folder.metadata().map_err(failed)?;
        let judged = keepers().judge(&self.directory, &metadata);
        judged.map_err(TrustError::from)?;
        keepers().judge_way(&self.directory)?;
        Ok(folder)
    }

    fn unwritten(&self, source: io::Error) -> StateError {
        let path = self.path();
        StateError::Write { path, source }
    }
}

/// The file's contents; `None` if there is no file.
fn read(path: &Path, trust: &Trust) -> Result<Option<Vec<u8>>, StateError> {
    let owned = || path.to_owned();
    let file = match open_regular(path, Links::Refused) {
        Ok(Some(file)) => file,
        Ok(None) => return Err(StateError::NotAFile { path: owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(StateError::NotAFile { path: owned() });
        }
        Err(source) => {
            return Err(StateError::Read {
                path: owned(),
                source,
            });
        }
    };
    let metadata = file.metadata().map_err(|source| StateError::Read {
        path: owned(),
        source,
    })?;
    if let Trust::Keepers(keepers) = trust {
        keepers.judge(path, &metadata).map_err(TrustError::from)?;
    }
    let read = || -> io::Result<Option<Vec<u8>>> {
        if metadata.len() > MAX_FILE_BYTES {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        // One byte more than may be, so that a file that grows is noticed.
        (&file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= MAX_FILE_BYTES).then_some(bytes))
    };
    match read() {
        Ok(Some(bytes)) => Ok(Some(bytes)),
        Ok(None) => Err(StateError::TooLarge { path: owned() }),
        Err(source) => Err(StateError::Read {
            path: owned(),
            source,
        }),
    }
}

/// Who may have written what is kept: an agent, and no group.
fn keepers() -> Keepers {
    Keepers::of_process().alone()
}

/// Writes a file that was not there, down to the disk.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes a file that may not be there. Looking first spares an error on a file system that is
/// read-only.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
