//! A policy file gets new contents in one step, and only if nobody else has changed it meanwhile.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use crate::policy::directory::DirectoryError;

/// How long others may be at it: a command that asks questions has not locked yet.
const GRACE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
/// Of files that are new: what their folder lets its owner, its group and others do.
const MODE: u32 = 0o666;

/// Why a file was not written; it is as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("{} was changed by somebody else meanwhile: nothing was written, run it again", .0.display())]
    Changed(PathBuf),
    #[error("{} cannot be read again: nothing was written", .0.display())]
    Unread(PathBuf, #[source] DirectoryError),
    #[error(
        "{} belongs to user {owner} and group {group}, and only its owner or root can replace it with a file \
         of theirs: nothing was written", path.display()
    )]
    NotYours {
        path: PathBuf,
        owner: u32,
        group: u32,
    },
    #[error("{action} {}: nothing was written", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Keeps other commands that edit the same directory away while it lives. Editors do not ask, and
/// whoever may look into the directory can hold its lock: what they change is found by [`replace`].
pub(super) struct Turn {
    directory: Option<Flock<File>>,
}

impl Turn {
    /// Waits for others, but not for ever.
    pub(super) fn wait(directory: &Path) -> Result<Self, WriteError> {
        let end = Instant::now() + GRACE;
        loop {
            let file = File::open(directory).map_err(failed("open", directory))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => {
                    let directory = Some(locked);
                    return Ok(Self { directory });
                }
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() < end => thread::sleep(PAUSE),
                Err((_, Errno::EWOULDBLOCK)) => return Ok(Self { directory: None }),
                Err((_, error)) => return Err(failed("lock", directory)(error.into())),
            }
        }
    }

    /// Whether other commands are kept away.
    pub(super) fn is_alone(&self) -> bool {
        self.directory.is_some()
    }
}

/// Writes `after` beside the file and renames it there, with the owner and mode that the file has; a
/// new file gets the owner of its folder. A symbolic link stays one: what it leads to is replaced.
/// `before` is what the file must still hold, `None` that there must be none.
pub(super) fn replace(path: &Path, before: Option<&[u8]>, after: &[u8]) -> Result<(), WriteError> {
    let Some(before) = before else {
        return create(path, after);
    };
    let target = path.canonicalize().map_err(failed("find", path))?;
    let metadata = fs::metadata(&target).map_err(failed("look at", &target))?;
    let mode = metadata.mode() & 0o7777;
    let new = Beside::write(&target, after, (metadata.uid(), metadata.gid()), mode)?;
    if read(&target)? != before {
        return Err(WriteError::Changed(target));
    }
    // Exchanged rather than renamed: what was there is looked at once more, now that nobody can
    // rename another file to it unnoticed.
    match exchange(&new.path, &target) {
        Ok(()) => {}
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            let renamed = fs::rename(&new.path, &target);
            renamed.map_err(failed("rename to", &target))?;
            new.finish();
            return Ok(());
        }
        Err(error) => return Err(failed("rename to", &target)(error.into())),
    }
    if read(&new.path)? != before {
        exchange(&new.path, &target).map_err(|error| failed("put back", &target)(error.into()))?;
        return Err(WriteError::Changed(target));
    }
    new.finish();
    Ok(())
}

fn create(path: &Path, contents: &[u8]) -> Result<(), WriteError> {
    let folder = path.parent().unwrap_or(path);
    let metadata = fs::metadata(folder).map_err(failed("look at", folder))?;
    let mode = metadata.mode() & MODE;
    let new = Beside::write(path, contents, (metadata.uid(), metadata.gid()), mode)?;
    let flags = RenameFlags::RENAME_NOREPLACE;
    match renameat2(AT_FDCWD, &new.path, AT_FDCWD, path, flags) {
        Ok(()) => {
            new.finish();
            Ok(())
        }
        Err(Errno::EEXIST) => Err(WriteError::Changed(path.to_owned())),
        Err(error) => Err(failed("rename to", path)(error.into())),
    }
}

fn exchange(one: &Path, other: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
}

/// A file with the new contents beside the one that it is to replace, under a name that no policy
/// is read from. It goes with this value.
struct Beside {
    path: PathBuf,
    folder: File,
}

impl Beside {
    fn write(
        target: &Path,
        contents: &[u8],
        (owner, group): (u32, u32),
        mode: u32,
    ) -> Result<Self, WriteError> {
        let parent = target.parent().unwrap_or(target);
        let folder = File::open(parent).map_err(failed("open", parent))?;
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".gate25-{}", std::process::id()));
        let path = parent.join(name);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let mut file = made.map_err(failed("write beside", target))?;
        let new = Self { path, folder };
        let failed_beside = || failed("write beside", target);
        let made = file.metadata().map_err(failed_beside())?;
        if (made.uid(), made.gid()) != (owner, group) {
            fchown(&file, Some(owner), Some(group)).map_err(|error| {
                if error.kind() != io::ErrorKind::PermissionDenied {
                    return failed_beside()(error);
                }
                WriteError::NotYours {
                    path: target.to_owned(),
                    owner,
                    group,
                }
            })?;
        }
        let written = file.write_all(contents).and_then(|()| {
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()
        });
        written.map_err(failed_beside())?;
        Ok(new)
    }

    /// After the rename.
    fn finish(self) {
        // What was replaced goes with `self`. The change is in force, be it on disk or not.
        let _unsynced = self.folder.sync_all();
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a rename that was no exchange there is none.
        let _gone = fs::remove_file(&self.path);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, WriteError> {
    fs::read(path).map_err(failed("read", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn replace_keeps_mode_and_links_and_leaves_nothing_beside() {
        let dir = TempDir::new().unwrap();
        let (file, link) = (dir.path().join("a.yaml"), dir.path().join("l.yaml"));
        fs::write(&file, "one").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        symlink("a.yaml", &link).unwrap();
        replace(&link, Some(b"one"), b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(names(&dir), ["a.yaml", "l.yaml"]);
    }

    #[test]
    fn replace_of_what_was_changed_meanwhile_writes_nothing() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, "theirs").unwrap();
        let refused = replace(&file, Some(b"one"), b"two");
        assert!(
            matches!(refused, Err(WriteError::Changed(_))),
            "{refused:?}"
        );
        let refused = replace(&file, None, b"two");
        assert!(
            matches!(refused, Err(WriteError::Changed(_))),
            "{refused:?}"
        );
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
        assert_eq!(names(&dir), ["a.yaml"]);
    }

    #[test]
    fn replace_of_nothing_makes_a_file_for_those_whom_its_folder_is_for() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("a.yaml");
        replace(&file, None, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(names(&dir), ["a.yaml"]);
        for (folder, expected) in [
            (0o755, 0o644),
            (0o750, 0o640),
            (0o2770, 0o660),
            (0o700, 0o600),
        ] {
            fs::set_permissions(dir.path(), Permissions::from_mode(folder)).unwrap();
            fs::remove_file(&file).unwrap();
            replace(&file, None, b"new").unwrap();
            let mode = fs::metadata(&file).unwrap().mode() & 0o7777;
            assert_eq!(mode, expected, "{folder:o}");
        }
    }

    #[test]
    fn turn_that_somebody_holds_for_ever_is_gone_on_without() {
        let dir = TempDir::new().unwrap();
        let held = Turn::wait(dir.path()).unwrap();
        assert!(held.is_alone());
        assert!(!Turn::wait(dir.path()).unwrap().is_alone());
        drop(held);
        assert!(Turn::wait(dir.path()).unwrap().is_alone());
    }

    #[test]
    fn writers_at_once_replace_one_after_the_other() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, "").unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let turn = Turn::wait(dir.path()).unwrap();
                    let before = fs::read(&file).unwrap();
                    replace(&file, Some(&before), &[&before[..], b"x"].concat()).unwrap();
                    drop(turn);
                });
            }
        });
        assert_eq!(fs::read(&file).unwrap(), b"xxxxxxxx");
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}
