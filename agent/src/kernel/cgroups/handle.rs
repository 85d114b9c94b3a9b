//! From a control group's id to its path.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::PathBuf;

use super::Hierarchy;
use super::directory::Directory;

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
    let Some(opened) = open(hierarchy, id)? else {
        return Ok(None);
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
