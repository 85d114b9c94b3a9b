//! From a control group's id to its path.
//!
//! The kernel opens a control group by its number for those who have `CAP_DAC_READ_SEARCH`. Without it,
//! the hierarchy is looked through, as far as this user may.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::DirEntryExt as _;
use std::path::PathBuf;

use super::Hierarchy;
use super::directory::{Directory, unless_gone};

/// `FILEID_KERNFS`: the handle is the 64-bit number of a kernfs node.
const KERNFS: i32 = 0xfe;
const ID: usize = size_of::<u64>();

/// `struct file_handle` with room for a kernfs node's number.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: [u8; ID],
}

pub(super) fn path_of(hierarchy: &Hierarchy, id: u64) -> io::Result<Option<PathBuf>> {
    let opened = match open(hierarchy, id) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return search(hierarchy, id);
        }
        Err(error) => return Err(error),
    };
    let link = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))?;
    let Ok(path) = link.strip_prefix(hierarchy.mount()) else {
        return Ok(None);
    };
    // A name may end in " (deleted)" by itself: only what the path leads to tells.
    match Directory::open(hierarchy.directory(), path)? {
        Some(found) if found.id() == id => Ok(Some(path.to_owned())),
        Some(_) | None => Ok(None),
    }
}

/// Looks for the control group, nearest first.
fn search(hierarchy: &Hierarchy, id: u64) -> io::Result<Option<PathBuf>> {
    let mut closed = None;
    let mut queue = VecDeque::from([PathBuf::new()]);
    while let Some(path) = queue.pop_front() {
        let directory = match Directory::open(hierarchy.directory(), &path) {
            Ok(Some(directory)) => directory,
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                closed.get_or_insert(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        if directory.id() == id {
            return Ok(Some(path));
        }
        let listed = fs::read_dir(directory.link()).and_then(|entries| {
            entries
                .map(|entry| {
                    let entry = entry?;
                    let is_cgroup = entry.file_type()?.is_dir();
                    Ok(is_cgroup.then(|| (entry.ino(), path.join(entry.file_name()))))
                })
                .collect::<io::Result<Vec<_>>>()
        });
        match listed {
            Ok(entries) => {
                for (found, below) in entries.into_iter().flatten() {
                    if found == id {
                        return Ok(Some(below));
                    }
                    queue.push_back(below);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                closed.get_or_insert(error);
            }
            Err(error) => {
                unless_gone::<()>(error)?;
            }
        }
    }
    // It may be below one that is closed: only having looked everywhere tells that it is gone.
    closed.map_or(Ok(None), Err)
}

fn open(hierarchy: &Hierarchy, id: u64) -> io::Result<Option<OwnedFd>> {
    let mut handle = Handle {
        bytes: ID as u32,
        kind: KERNFS,
        id: id.to_ne_bytes(),
    };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: `Handle` is laid out like the kernel's file_handle and says how long its id is.
    let opened = unsafe {
        libc::open_by_handle_at(
            hierarchy.directory().as_raw_fd(),
            (&raw mut handle).cast(),
            flags,
        )
    };
    if opened < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESTALE | libc::ENOENT) => Ok(None),
            Some(_) | None => Err(error),
        };
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(opened) }))
}
