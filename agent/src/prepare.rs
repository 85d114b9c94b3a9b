//! Folders made ready for an agent that is not root: what only root may do, before each start.
//!
//! The user may be in somebody else's hands by the second time. So root alone decides which folders
//! are his: what leads there can be written by nobody else. Whatever lies in them is held open while
//! it is looked at and given away, links are not followed, and nothing is given away that has another
//! name elsewhere.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, fchown,
};
use std::path::{Path, PathBuf};

use crate::control::FOLDER_MODE;
use crate::kernel::bpf::pins::{OWN_FOLDER, PinsError, mount_if_missing};
use crate::state;
use crate::trust::{Keepers, TrustError};

/// Levels of folders below gate25's on the BPF filesystem.
const MAX_LEVELS: usize = 8;
/// Others than the owner and the group may pass.
const PASSABLE: u32 = 0o001;
/// The group may pass.
const PASSABLE_BY_GROUP: u32 = 0o010;

/// Who is to run the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: u32,
    /// His group.
    pub group: u32,
}

/// Why a folder is not ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The BPF filesystem is not there.
    #[error(transparent)]
    Filesystem(#[from] PinsError),
    /// Somebody else has changed who may pass the BPF filesystem.
    #[error(
        "{} belongs to group {group}, which is not the agent's, and others may not pass: `chmod o+x` lets \
         the agent reach its own folder there", path.display()
    )]
    Impassable {
        /// The BPF filesystem.
        path: PathBuf,
        /// Its group.
        group: u32,
    },
    /// It may be a place that others use.
    #[error("{} holds what is not gate25's ({}): it is not given away", path.display(), other.display())]
    Shared {
        /// The folder.
        path: PathBuf,
        /// Something in it.
        other: PathBuf,
    },
    /// Something with another name elsewhere, or folders without end.
    #[error("{} is none of gate25's pins: remove it", path.display())]
    Foreign {
        /// What it is.
        path: PathBuf,
    },
    /// Somebody else may have put it there.
    #[error("what leads to a folder that is given away must be root's alone")]
    Exposed(#[from] TrustError),
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Identity {
    /// Has a BPF filesystem at `filesystem`, lets the agent's group through it, and gives gate25's
    /// folder there to the agent's user alone, with all that agents of other users have pinned.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn open_pins(self, filesystem: &Path) -> Result<(), PrepareError> {
        mount_if_missing(filesystem)?;
        self.let_through(filesystem)?;
        let folder = filesystem.join(OWN_FOLDER);
        let (way, opened) = make(&folder, 0o700)?;
        self.judge(&opened, &folder, way)?;
        self.take(&opened, &folder, 0)
    }

    /// The agent's user gets the folder in which he keeps the policy, made if it is missing.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn open_state(self, directory: &Path) -> Result<(), PrepareError> {
        let (way, folder) = make(directory, 0o700)?;
        self.judge(&folder, directory, way)?;
        self.take_flat(&folder, directory, 0o700, |name| {
            state::NAMES.iter().any(|known| name == *known)
        })
    }

    /// The agent's user gets the folder in which he makes `socket`, made if it is missing.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn open_socket_folder(self, socket: &Path) -> Result<(), PrepareError> {
        let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Ok(());
        };
        let (way, opened) = make(folder, FOLDER_MODE)?;
        self.judge(&opened, folder, way)?;
        self.take_flat(&opened, folder, FOLDER_MODE, |found| found == name)
    }

    fn let_through(self, filesystem: &Path) -> Result<(), PrepareError> {
        let metadata = look(filesystem)?;
        let mode = metadata.mode();
        let group_passes = metadata.gid() == self.group && mode & PASSABLE_BY_GROUP != 0;
        if self.user == 0 || mode & PASSABLE != 0 || group_passes {
            return Ok(());
        }
        if metadata.gid() != 0 && metadata.gid() != self.group {
            return Err(PrepareError::Impassable {
                path: filesystem.to_owned(),
                group: metadata.gid(),
            });
        }
        let mode = mode & 0o7707 | PASSABLE_BY_GROUP;
        chown(filesystem, None, Some(self.group))
            .map_err(failed("change the group of", filesystem))?;
        fs::set_permissions(filesystem, Permissions::from_mode(mode))
            .map_err(failed("let the agent's group through", filesystem))
    }

    /// Takes an open folder of pins and all that is in it; `path` is its name in messages.
    fn take(self, folder: &File, path: &Path, level: usize) -> Result<(), PrepareError> {
        if level > MAX_LEVELS {
            let path = path.to_owned();
            return Err(PrepareError::Foreign { path });
        }
        let link = descriptor(folder);
        for entry in fs::read_dir(&link).map_err(failed("list", path))? {
            let name = entry.map_err(failed("list", path))?.file_name();
            let path = path.join(&name);
            let found = open(&link.join(&name), libc::O_PATH | libc::O_NOFOLLOW)?;
            let metadata = found.metadata().map_err(failed("look at", &path))?;
            if metadata.is_dir() {
                let inner = open(&descriptor(&found), libc::O_DIRECTORY)?;
                self.take(&inner, &path, level + 1)?;
            } else if !self.has(&metadata) {
                if !metadata.is_file() || metadata.nlink() != 1 {
                    return Err(PrepareError::Foreign { path });
                }
                self.give(&found, &path)?;
            }
        }
        self.keep_to_himself(folder, path, 0o700)
    }

    /// Takes an open folder that holds nothing but files with names that are `known`.
    fn take_flat(
        self,
        folder: &File,
        path: &Path,
        mode: u32,
        known: impl Fn(&OsStr) -> bool,
    ) -> Result<(), PrepareError> {
        if self.has(&folder.metadata().map_err(failed("look at", path))?) {
            return Ok(());
        }
        let link = descriptor(folder);
        let mut files = Vec::new();
        for entry in fs::read_dir(&link).map_err(failed("list", path))? {
            let name = entry.map_err(failed("list", path))?.file_name();
            let found = open(&link.join(&name), libc::O_PATH | libc::O_NOFOLLOW)?;
            let metadata = found.metadata().map_err(failed("look at", path))?;
            if !known(&name) || metadata.is_dir() || metadata.nlink() != 1 {
                return Err(PrepareError::Shared {
                    path: path.to_owned(),
                    other: PathBuf::from(name),
                });
            }
            files.push((path.join(name), found));
        }
        for (path, file) in files {
            self.give(&file, &path)?;
        }
        self.keep_to_himself(folder, path, mode)
    }

    /// Whose a folder is was root's to say, an earlier agent's user's for example; where others add
    /// entries, it is root's, or the user's already. Nobody else may write in it.
    fn judge(self, folder: &File, path: &Path, way: Way) -> Result<(), PrepareError> {
        let metadata = folder.metadata().map_err(failed("look at", path))?;
        let owner = match way {
            Way::OfRoot => metadata.uid(),
            Way::Shared => self.user,
        };
        let keepers = Keepers::new(owner, Vec::new()).alone();
        let judged = keepers.judge(path, &metadata);
        judged.map_err(|exposed| TrustError::from(exposed).into())
    }

    fn has(self, metadata: &Metadata) -> bool {
        metadata.uid() == self.user
    }

    /// Gives away what is held open by `O_PATH`, which fchown(2) does not take.
    fn give(self, file: &File, path: &Path) -> Result<(), PrepareError> {
        chown(descriptor(file), Some(self.user), Some(self.group))
            .map_err(failed("give away", path))
    }

    fn keep_to_himself(self, folder: &File, path: &Path, mode: u32) -> Result<(), PrepareError> {
        fchown(folder, Some(self.user), Some(self.group)).map_err(failed("give away", path))?;
        folder
            .set_permissions(Permissions::from_mode(mode))
            .map_err(failed("set the mode of", path))
    }
}

/// What leads to a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Root alone adds entries to the folder that it is in.
    OfRoot,
    /// So may others, but none that has this name already.
    Shared,
}

/// Opens a folder that nobody but root can have put there or elsewhere, made if it is missing, with
/// what leads to it.
fn make(path: &Path, mode: u32) -> Result<(Way, File), PrepareError> {
    let path = std::path::absolute(path).map_err(failed("find", path))?;
    let root = Keepers::new(0, Vec::new()).alone();
    let mut missing = Vec::new();
    for folder in path.ancestors() {
        match fs::symlink_metadata(folder) {
            Ok(_) => {
                root.judge_way(folder)?;
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(folder),
            Err(source) => return Err(failed("look at", folder)(source)),
        }
    }
    for folder in missing.into_iter().rev() {
        let mode = if folder == path { mode } else { 0o755 };
        // What has come meanwhile makes it fail.
        let made = DirBuilder::new().mode(mode).create(folder);
        made.map_err(failed("create folder", folder))?;
        root.judge_way(folder)?;
        // Whatever the umask is.
        fs::set_permissions(folder, Permissions::from_mode(mode))
            .map_err(failed("set the mode of", folder))?;
    }
    root.judge_way(&path)?;
    let opened = open(&path, libc::O_DIRECTORY | libc::O_NOFOLLOW)?;
    let parent = path.parent().unwrap_or(&path);
    let way = match root.judge(parent, &look(parent)?) {
        Ok(()) => Way::OfRoot,
        Err(_exposed) => Way::Shared,
    };
    Ok((way, opened))
}

fn open(path: &Path, flags: libc::c_int) -> Result<File, PrepareError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed("open", path))
}

fn look(path: &Path) -> Result<Metadata, PrepareError> {
    fs::metadata(path).map_err(failed("look at", path))
}

/// A path to what is open, whatever has its name by now.
fn descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrepareError {
    let path = path.to_owned();
    move |source| PrepareError::Io {
        action,
        path,
        source,
    }
}
