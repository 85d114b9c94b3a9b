//! Who could have written what the agent goes by.
//!
//! Whoever writes the policy decides what is open, and whoever can rename the folder that it is in
//! can put another in its place. So files and directories, and what leads to them, must be writable
//! by nobody but root, the agent's user and the groups of either.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{getegid, geteuid, getgroups};

const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
/// In such a directory only its owner and an entry's may rename the entry.
const STICKY: u32 = 0o1000;
/// Links that are followed on the way to a file, as the kernel does.
const MAX_LINKS: usize = 40;

/// Whose writing is taken for what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Anybody's: for commands that change nothing.
    Anybody,
    /// Theirs.
    Keepers(Keepers),
}

/// Those who may write what the agent goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepers {
    user: u32,
    groups: Vec<u32>,
}

/// Why somebody else may have written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// It belongs to this user.
    Owner(u32),
    /// This group may write.
    Group(u32),
    /// Everybody may write.
    Everybody,
}

/// Something that others could have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {}", path.display(), told(*.exposure))]
pub struct Exposed {
    /// What it is.
    pub path: PathBuf,
    /// Why.
    pub exposure: Exposure,
}

/// Why something is not gone by.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Others could have written it, or put another in its place.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// It, or what leads to it, cannot be looked at.
    #[error("look at {}", path.display())]
    Look {
        /// What.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn told(exposure: Exposure) -> String {
    match exposure {
        Exposure::Owner(user) => {
            format!("belongs to user {user}, who is neither root nor the agent's: chown root")
        }
        Exposure::Group(group) => format!(
            "can be written by group {group}, which the agent is not in: chmod g-w, or chgrp to a group of \
             the agent's"
        ),
        Exposure::Everybody => "can be written by everybody: chmod o-w".to_owned(),
    }
}

impl Keepers {
    /// Root, this process' user, and the groups of either.
    #[must_use]
    pub fn of_process() -> Self {
        let supplementary = getgroups().unwrap_or_default();
        let groups = supplementary.into_iter().map(|group| group.as_raw());
        Self::new(
            geteuid().as_raw(),
            groups.chain([getegid().as_raw()]).collect(),
        )
    }

    /// Root and his group, this user and these groups.
    #[must_use]
    pub fn new(user: u32, mut groups: Vec<u32>) -> Self {
        groups.push(0);
        Self { user, groups }
    }

    /// The same users without their groups.
    #[must_use]
    pub fn alone(self) -> Self {
        let groups = Vec::new();
        Self { groups, ..self }
    }

    /// Judges a file or directory, `path` by name.
    ///
    /// # Errors
    /// [`Exposed`].
    pub fn judge(&self, path: &Path, metadata: &Metadata) -> Result<(), Exposed> {
        self.exposure(metadata, 0).map_or(Ok(()), |exposure| {
            let path = path.to_owned();
            Err(Exposed { path, exposure })
        })
    }

    /// Judges every directory and link that leads to `path`, which itself is left to
    /// [`Keepers::judge`].
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn judge_way(&self, path: &Path) -> Result<(), TrustError> {
        let look = |path: &Path| {
            fs::symlink_metadata(path).map_err(|source| TrustError::Look {
                path: path.to_owned(),
                source,
            })
        };
        let path = std::path::absolute(path).map_err(|source| TrustError::Look {
            path: path.to_owned(),
            source,
        })?;
        let mut links = 0;
        let mut at = PathBuf::from("/");
        let mut ahead: Vec<PathBuf> = components(&path);
        while let Some(next) = ahead.pop() {
            let metadata = look(&at)?;
            if let Some(exposure) = self.exposure(&metadata, STICKY) {
                return Err(Exposed { path: at, exposure }.into());
            }
            let step = at.join(&next);
            if next == Path::new("..") {
                at.pop();
                continue;
            }
            if !look(&step)?.is_symlink() {
                at = step;
                continue;
            }
            links += 1;
            let target = fs::read_link(&step).and_then(|target| match links {
                0..=MAX_LINKS => Ok(target),
                _ => Err(io::Error::from_raw_os_error(libc::ELOOP)),
            });
            let target = target.map_err(|source| TrustError::Look { path: step, source })?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            ahead.extend(components(&target));
        }
        Ok(())
    }

    /// Who else may write; in a directory with the bits of `harmless` it does not matter who else
    /// may add entries.
    fn exposure(&self, metadata: &Metadata, harmless: u32) -> Option<Exposure> {
        let (mode, owner, group) = (metadata.mode(), metadata.uid(), metadata.gid());
        if owner != 0 && owner != self.user {
            return Some(Exposure::Owner(owner));
        }
        if mode & harmless != 0 {
            return None;
        }
        if mode & OTHERS_WRITE != 0 {
            return Some(Exposure::Everybody);
        }
        let writes = mode & GROUP_WRITES != 0 && !self.groups.contains(&group);
        writes.then_some(Exposure::Group(group))
    }
}

/// The parts of a path after the root, the last one first.
fn components(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().rev();
    parts
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| PathBuf::from(part.as_os_str()))
        .collect()
}
