//! The folder on the BPF filesystem that lets tables and links outlive the agent.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use gate25_common::names::ABI_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::place::{Place, canonical};
use crate::trust::{Exposed, Keepers};

/// Where the BPF filesystem is expected.
pub const DEFAULT_FILESYSTEM: &str = "/sys/fs/bpf";
pub(crate) const OWN_FOLDER: &str = "gate25";
/// Where the links of a version are.
pub(super) const LINKS: &str = "links";
/// Where the programs of a version are, each build in a folder of its own.
pub(super) const PROGRAMS: &str = "programs";

/// Why the folder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// The filesystem is not there and could not be mounted.
    #[error("mount the BPF filesystem at {path}, which only root may: `gate25 prepare` does")]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: nix::Error,
    },
    /// It is there, but not for this user.
    #[error("{path} is closed to this user: `gate25 prepare`, run by root, opens it")]
    Closed {
        /// What was to be used.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others could have pinned there what they like.
    #[error("the pins are not gone by; `gate25 prepare --user USER` gives them to USER")]
    Exposed(#[from] Exposed),
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The folder, named after the version of the tables.
#[derive(Debug, Clone)]
pub struct Pins {
    filesystem: PathBuf,
    folder: PathBuf,
}

impl Pins {
    /// The folder `gate25/v<ABI>` on the BPF filesystem at `filesystem`, which is mounted if it
    /// is not.
    ///
    /// # Errors
    ///
    /// [`PinsError`].
    pub fn open(filesystem: &Path) -> Result<Self, PinsError> {
        let pins = Self {
            filesystem: filesystem.to_owned(),
            folder: filesystem.join(OWN_FOLDER).join(format!("v{ABI_VERSION}")),
        };
        pins.ensure()?;
        Ok(pins)
    }

    /// Mounts the filesystem and makes the folders, whatever of it is missing.
    ///
    /// # Errors
    ///
    /// [`PinsError`].
    pub fn ensure(&self) -> Result<(), PinsError> {
        mount_if_missing(&self.filesystem)?;
        make_folder(&self.own_folder())?;
        self.judge()?;
        make_folder(&self.folder.join(LINKS))?;
        make_folder(&self.folder.join(PROGRAMS))
    }

    /// Refuses a folder that somebody else has made: what is pinned there decides what is open.
    fn judge(&self) -> Result<(), PinsError> {
        let folder = self.own_folder();
        let metadata = fs::symlink_metadata(&folder).map_err(|source| PinsError::Io {
            action: "look at",
            path: folder.clone(),
            source,
        })?;
        Ok(Keepers::of_process().alone().judge(&folder, &metadata)?)
    }

    /// gate25's own folder on the filesystem; one agent at a time works in it.
    pub fn own_folder(&self) -> PathBuf {
        self.filesystem.join(OWN_FOLDER)
    }

    /// Where a table is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, place: Place) -> PathBuf {
        self.folder.join(LINKS).join(place.to_string())
    }

    /// Where a link is pinned until it takes the place of another one. (The BPF filesystem takes
    /// no dots in names.)
    pub(super) fn new_link(&self, place: Place) -> PathBuf {
        self.folder.join(LINKS).join(format!("new-{place}"))
    }

    /// Where the programs of a build are pinned, by a digest of all that went into them.
    pub(super) fn programs(&self, digest: &str) -> PathBuf {
        self.folder.join(PROGRAMS).join(digest)
    }

    /// Pins of links, in the folders of all versions, this one's first.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`].
    pub(super) fn links(&self) -> Result<Vec<PathBuf>, PinsError> {
        let mut links = entries(&self.folder.join(LINKS))?;
        for folder in self.other_versions()? {
            links.extend(entries(&folder.join(LINKS))?);
        }
        Ok(links)
    }

    /// Removes the programs of other builds, and the folders of other versions.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`].
    pub(super) fn remove_leftovers(&self, digest: &str) -> Result<(), PinsError> {
        for folder in entries(&self.folder.join(PROGRAMS))? {
            if folder.file_name() != Some(OsStr::new(digest)) {
                remove_tree(&folder)?;
            }
        }
        self.other_versions()?
            .iter()
            .try_for_each(|folder| remove_tree(folder))
    }

    /// Folders of earlier versions from `since` on, the latest first.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`].
    pub(super) fn earlier(&self, since: u32) -> Result<Vec<PathBuf>, PinsError> {
        let mut folders = self.versions()?;
        folders.retain(|number, _| (since..ABI_VERSION).contains(number));
        Ok(folders.into_values().rev().collect())
    }

    fn other_versions(&self) -> Result<Vec<PathBuf>, PinsError> {
        let mut folders = self.versions()?;
        folders.remove(&ABI_VERSION);
        Ok(folders.into_values().collect())
    }

    fn versions(&self) -> Result<BTreeMap<u32, PathBuf>, PinsError> {
        let folders = entries(&self.own_folder())?.into_iter();
        Ok(folders
            .filter_map(|path| {
                let name = path.file_name().and_then(OsStr::to_str);
                Some((name.and_then(version)?, path))
            })
            .collect())
    }
}

/// Mounts the BPF filesystem at `filesystem` unless there is one.
///
/// # Errors
///
/// [`PinsError::Mount`].
pub fn mount_if_missing(filesystem: &Path) -> Result<(), PinsError> {
    let failed = |source| PinsError::Mount {
        path: filesystem.to_owned(),
        source,
    };
    let stat = statfs(filesystem).map_err(failed)?;
    if stat.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let kind = Some("bpf");
    mount(kind, filesystem, kind, flags, Some("mode=0700")).map_err(failed)?;
    tracing::info!(path = %filesystem.display(), "BPF filesystem mounted");
    Ok(())
}

/// The version whose folder has this name.
pub(super) fn version(name: &str) -> Option<u32> {
    canonical(name.strip_prefix('v')?)
}

pub(super) fn make_folder(path: &Path) -> Result<(), PinsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| {
            let path = path.to_owned();
            if source.kind() == io::ErrorKind::PermissionDenied {
                PinsError::Closed { path, source }
            } else {
                let action = "create folder";
                PinsError::Io {
                    action,
                    path,
                    source,
                }
            }
        })
}

/// What is in a folder, sorted; nothing if there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, PinsError> {
    let failed = |source| PinsError::Io {
        action: "list",
        path: folder.to_owned(),
        source,
    };
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in listing {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort_unstable();
    Ok(paths)
}

fn remove_tree(path: &Path) -> Result<(), PinsError> {
    fs::remove_dir_all(path).map_err(|source| PinsError::Io {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}

/// Removes a pin, and with it what is pinned if nobody else holds it.
///
/// # Errors
///
/// [`PinsError::Io`], except where it is gone already.
pub(super) fn remove(path: &Path) -> Result<(), PinsError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PinsError::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
