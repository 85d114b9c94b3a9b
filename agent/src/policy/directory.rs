//! The policy directory: which files make up the set. The one part of `policy` that reads files.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::loader::{Loader, SourceFile};
use crate::diagnostic::{Diagnostic, Location};
use crate::trust::{Trust, TrustError};
use crate::yaml::tree::MAX_BYTES;

/// Deepest directory below the policy directory.
const MAX_DEPTH: usize = 16;

/// What the directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Files of the set, sorted by path.
    pub files: Vec<SourceFile>,
    /// Names that are not read.
    pub warnings: Vec<Diagnostic>,
}

/// Why the directory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It is not there: never taken for an empty set.
    #[error("there is no policy directory {}", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What was to be a directory.
        path: PathBuf,
    },
    /// A file was there and then was not: somebody is writing. Try again after a quiet time.
    #[error("{} vanished while the policy directory was read", path.display())]
    Vanished {
        /// The file.
        path: PathBuf,
    },
    /// Something cannot be read.
    #[error("reading {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files that must not be read: links that lead outside, devices, files too large, what others
    /// could have written.
    #[error("{} files or folders of the policy directory are refused", .0.len())]
    Refused(Vec<Diagnostic>),
}

impl DirectoryError {
    /// Whether reading again a moment later may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Vanished { .. } => true,
            Self::Missing { .. }
            | Self::NotADirectory { .. }
            | Self::Io { .. }
            | Self::Refused(_) => false,
        }
    }

    /// The same as people read it, with paths that an editor finds; `dir` is the directory.
    #[must_use]
    pub fn diagnostics(&self, dir: &Path) -> Vec<Diagnostic> {
        let whole = |path: &Path, code, message| {
            Diagnostic::error(code, Location::whole(&Arc::from(path)), message)
        };
        match self {
            Self::Missing { path } => {
                vec![whole(path, "no-directory", "the directory does not exist")]
            }
            Self::NotADirectory { path } => {
                vec![whole(path, "no-directory", "this is not a directory")]
            }
            Self::Vanished { path } => vec![
                whole(path, "vanished", "the file vanished while it was read")
                    .help("check again when nobody is writing; a link may lead nowhere"),
            ],
            Self::Io { path, source } => vec![Diagnostic::unreadable(path, source)],
            Self::Refused(diagnostics) => diagnostics
                .iter()
                .map(|one| one.clone().below(dir))
                .collect(),
        }
    }
}

/// Reads every `.yaml` and `.yml` file of the directory and those below it. The directory itself
/// may be a symbolic link; links in it must stay inside. All of it must have been written by those
/// whom `trust` names. A file that is as `earlier` has loaded it takes no memory of its own.
///
/// # Errors
/// See [`DirectoryError`].
pub fn read(directory: &Path, trust: &Trust, earlier: &Loader) -> Result<Contents, DirectoryError> {
    let root = match directory.canonicalize() {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DirectoryError::Missing {
                path: directory.to_owned(),
            });
        }
        Err(source) => {
            return Err(DirectoryError::Io {
                path: directory.to_owned(),
                source,
            });
        }
    };
    let metadata = fs::metadata(&root).map_err(|error| failed(&root, error))?;
    if !metadata.is_dir() {
        return Err(DirectoryError::NotADirectory {
            path: directory.to_owned(),
        });
    }
    let mut walk = Walk {
        root: &root,
        trust,
        earlier,
        scratch: Vec::new(),
        files: Vec::new(),
        warnings: Vec::new(),
        refused: Vec::new(),
    };
    walk.judge_way(directory)?;
    walk.judge(&Arc::from(Path::new(".")), &root, &metadata);
    walk.directory(&root, Path::new(""), &mut vec![identity(&metadata)])?;
    let Walk {
        root: _,
        trust: _,
        earlier: _,
        scratch: _,
        mut files,
        warnings,
        refused,
    } = walk;
    if !refused.is_empty() {
        return Err(DirectoryError::Refused(refused));
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Contents { files, warnings })
}

/// What a name tells about a file.
enum Name {
    Policy,
    /// Hidden, or something of an editor's or a package manager's.
    Skipped,
    Other,
}

struct Walk<'r> {
    root: &'r Path,
    trust: &'r Trust,
    earlier: &'r Loader,
    /// One file after the other is read into this.
    scratch: Vec<u8>,
    files: Vec<SourceFile>,
    warnings: Vec<Diagnostic>,
    refused: Vec<Diagnostic>,
}

impl Walk<'_> {
    /// `above` holds the identities of this directory and those above it: links can make loops.
    fn directory(
        &mut self,
        path: &Path,
        relative: &Path,
        above: &mut Vec<(u64, u64)>,
    ) -> Result<(), DirectoryError> {
        let listing = fs::read_dir(path).map_err(|error| failed(path, error))?;
        let mut names = listing
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| failed(path, error))?;
        names.sort_unstable();
        for name in names {
            let class = classify(&name);
            if matches!(class, Name::Skipped) {
                continue;
            }
            let relative = relative.join(&name);
            let shown: Arc<Path> = Arc::from(relative.as_path());
            let named = path.join(&name);
            let target = named
                .canonicalize()
                .map_err(|error| failed(&named, error))?;
            let metadata = fs::metadata(&target).map_err(|error| failed(&target, error))?;
            if !metadata.is_dir() && !matches!(class, Name::Policy) {
                if matches!(class, Name::Other) {
                    self.ignored(&shown);
                }
                continue;
            }
            if !target.starts_with(self.root) {
                self.refuse(
                    &shown,
                    "link-outside",
                    "this leads outside of the policy directory",
                );
            } else if metadata.is_dir() {
                if above.len() > MAX_DEPTH || above.contains(&identity(&metadata)) {
                    self.refuse(&shown, "directory-loop", "the directories never end here");
                    continue;
                }
                if target != named {
                    self.judge_way(&named)?;
                }
                self.judge(&shown, &target, &metadata);
                above.push(identity(&metadata));
                self.directory(&target, &relative, above)?;
                above.pop();
            } else if metadata.is_file() {
                if target != named {
                    self.judge_way(&named)?;
                }
                self.file(&target, shown)?;
            } else {
                self.refuse(&shown, "not-a-file", "this is not a regular file");
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, shown: Arc<Path>) -> Result<(), DirectoryError> {
        let Some(file) = open_regular(path, Links::Refused).map_err(|error| failed(path, error))?
        else {
            self.refuse(&shown, "not-a-file", "this is not a regular file");
            return Ok(());
        };
        let metadata = file.metadata().map_err(|error| failed(path, error))?;
        self.judge(&shown, path, &metadata);
        self.scratch.clear();
        read_bounded(&file, &mut self.scratch).map_err(|error| failed(path, error))?;
        if self.scratch.len() > MAX_BYTES {
            let message = format!("the file is larger than {} MiB", MAX_BYTES >> 20);
            self.refuse(&shown, "file-too-large", message);
            return Ok(());
        }
        let same = self
            .earlier
            .contents(&shown)
            .filter(|bytes| ***bytes == *self.scratch);
        let bytes = same.map_or_else(|| Arc::from(self.scratch.as_slice()), Arc::clone);
        self.files.push(SourceFile { path: shown, bytes });
        Ok(())
    }

    /// Refuses what others could have written.
    fn judge(&mut self, shown: &Arc<Path>, path: &Path, metadata: &Metadata) {
        if let Trust::Keepers(keepers) = self.trust
            && let Err(exposed) = keepers.judge(path, metadata)
        {
            self.refuse(shown, "exposed", exposed.to_string());
        }
    }

    /// Refuses what others could have put in the place of `path`.
    fn judge_way(&mut self, path: &Path) -> Result<(), DirectoryError> {
        let Trust::Keepers(keepers) = self.trust else {
            return Ok(());
        };
        match keepers.judge_way(path) {
            Ok(()) => Ok(()),
            Err(TrustError::Exposed(exposed)) => {
                let whole = Arc::from(Path::new("."));
                self.refuse(&whole, "exposed", exposed.to_string());
                Ok(())
            }
            Err(TrustError::Look { path, source }) => Err(failed(&path, source)),
        }
    }

    fn ignored(&mut self, shown: &Arc<Path>) {
        let message = "this file is not read: its name ends in neither .yaml nor .yml";
        self.warnings.push(
            Diagnostic::warning("file-ignored", Location::whole(shown), message)
                .help("rename it, or start its name with a dot"),
        );
    }

    fn refuse(&mut self, shown: &Arc<Path>, code: &'static str, message: impl Into<String>) {
        self.refused
            .push(Diagnostic::error(code, Location::whole(shown), message));
    }
}

/// Whether a file of this path, relative to the policy directory, would be one of the set.
pub(crate) fn is_policy_path(path: &Path) -> bool {
    let Some((last, folders)) = path
        .components()
        .map(|part| match part {
            Component::Normal(name) => Some(name),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => None,
        })
        .collect::<Option<Vec<_>>>()
        .and_then(|mut parts| parts.pop().map(|last| (last, parts)))
    else {
        return false;
    };
    matches!(classify(last), Name::Policy)
        && !folders
            .iter()
            .any(|name| matches!(classify(name), Name::Skipped))
}

fn classify(name: &OsStr) -> Name {
    let name = name.as_bytes();
    let holds = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    if name.starts_with(b".")
        || name.ends_with(b"~")
        || name.ends_with(b".swp")
        || holds(b".dpkg-")
        || holds(b".rpm")
    {
        Name::Skipped
    } else if name.ends_with(b".yaml") || name.ends_with(b".yml") {
        Name::Policy
    } else {
        Name::Other
    }
}

/// Whether a symbolic link may be opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    Followed,
    Refused,
}

/// The file, or `None` where the path leads to something else: opening a pipe must not block.
pub(crate) fn open_regular(path: &Path, links: Links) -> io::Result<Option<File>> {
    let no_follow = match links {
        Links::Followed => 0,
        Links::Refused => libc::O_NOFOLLOW,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | no_follow)
        .open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

/// One byte more than may be, so that a file that grows is noticed.
pub(crate) fn read_bounded(file: &File, bytes: &mut Vec<u8>) -> io::Result<()> {
    file.take(MAX_BYTES as u64 + 1).read_to_end(bytes)?;
    Ok(())
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn failed(path: &Path, error: io::Error) -> DirectoryError {
    let path = path.to_owned();
    if error.kind() == io::ErrorKind::NotFound {
        DirectoryError::Vanished { path }
    } else {
        DirectoryError::Io {
            path,
            source: error,
        }
    }
}
