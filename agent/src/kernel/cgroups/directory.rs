//! One control group's directory, held open: everything asked of it is asked of this very cgroup,
//! whatever has its path by now.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};

/// The directory of a control group.
#[derive(Debug)]
pub(in crate::kernel) struct Directory {
    descriptor: OwnedFd,
    id: u64,
}

/// What `cgroup.events` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Whether there is a process in it or below it.
    pub(super) populated: bool,
    /// Whether all of them are frozen.
    pub(super) frozen: bool,
}

impl State {
    /// What is taken to be so where the file is closed to this user.
    const CLOSED: Self = Self {
        populated: true,
        frozen: false,
    };
}

impl Directory {
    /// Opens `path` below `at`, the directory itself if it is empty; none if there is none.
    pub(in crate::kernel) fn open(at: BorrowedFd<'_>, path: &Path) -> io::Result<Option<Self>> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(at, path, flags, Mode::empty()) {
            Ok(descriptor) => {
                let id = fstat(&descriptor)?.st_ino;
                Ok(Some(Self { descriptor, id }))
            }
            Err(Errno::ENOTDIR) => Ok(None),
            Err(error) => unless_gone(error.into()),
        }
    }

    /// The control group's id.
    pub(in crate::kernel) fn id(&self) -> u64 {
        self.id
    }

    /// The names of the control groups directly below; none if this one was removed.
    pub(in crate::kernel) fn children(&self) -> io::Result<Vec<OsString>> {
        let entries = match fs::read_dir(self.link()) {
            Ok(entries) => entries,
            Err(error) => return unless_gone(error).map(Option::unwrap_or_default),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.push(entry.file_name());
            }
        }
        Ok(names)
    }

    /// What a file of this control group says; none if it was removed.
    pub(in crate::kernel) fn read(&self, file: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.link().join(file)) {
            Ok(text) => Ok(Some(text)),
            Err(error) => unless_gone(error),
        }
    }

    /// What `cgroup.events` says; nothing if it was removed.
    pub(super) fn state(&self) -> io::Result<State> {
        let Some(text) = unless_closed(self.read("cgroup.events").map(Some), None)? else {
            return Ok(State::CLOSED);
        };
        let text = text.unwrap_or_default();
        let holds = |line: &[u8]| text.split(|byte| *byte == b'\n').any(|found| found == line);
        Ok(State {
            populated: holds(b"populated 1"),
            frozen: holds(b"frozen 1"),
        })
    }

    /// A path to it for calls that take no descriptor.
    pub(super) fn link(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What a control group's owner has closed to this user is no reason to see nothing of the others;
/// whoever looks for its processes says so.
pub(super) fn unless_closed<T>(result: io::Result<T>, closed: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(closed),
        other => other,
    }
}

/// A removed control group answers with one of two errors, depending on whether it was open.
pub(super) fn unless_gone<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => Ok(None),
        Some(_) | None => Err(error),
    }
}
