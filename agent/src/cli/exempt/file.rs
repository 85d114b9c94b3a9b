//! A policy file gets new contents in one step, and only if nobody else has changed it meanwhile.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

/// How long others may be at it: a command that asks questions has not locked yet.
const GRACE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
/// Of files that are new.
const MODE: u32 = 0o644;

/// Why a file was not written; it is as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("{} was changed by somebody else meanwhile: nothing was written, run it again", .0.display())]
    Changed(PathBuf),
    #[error("another gate25 edits {}", .0.display())]
    Busy(PathBuf),
    #[error("{action} {}: nothing was written", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Keeps other commands that edit the same directory away while it lives. Editors do not ask: what
/// they change is found by [`replace`].
pub(super) struct Turn {
    _directory: Flock<File>,
}

impl Turn {
    pub(super) fn wait(directory: &Path) -> Result<Self, WriteError> {
        let end = Instant::now() + GRACE;
        loop {
            let file = File::open(directory).map_err(failed("open", directory))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Ok(Self { _directory: locked }),
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() < end => thread::sleep(PAUSE),
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(WriteError::Busy(directory.to_owned()));
                }
                Err((_, error)) => return Err(failed("lock", directory)(error.into())),
            }
        }
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
    let new = Beside::write(path, contents, (metadata.uid(), metadata.gid()), MODE)?;
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
        let written = file.write_all(contents).and_then(|()| {
            let made = file.metadata()?;
            if (made.uid(), made.gid()) != (owner, group) {
                fchown(&file, Some(owner), Some(group))?;
            }
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()
        });
        written.map_err(failed("write beside", target))?;
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
    fn replace_of_nothing_makes_a_file_that_others_read() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("a.yaml");
        replace(&file, None, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(names(&dir), ["a.yaml"]);
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
