//! Pinned objects of any layout, as the kernel describes them.
//!
//! Layouts are `union bpf_attr` and `struct bpf_map_info` of Linux 6.6 (include/uapi/linux/bpf.h); the
//! kernel fills what it knows.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use crate::kernel::bpf::link::{bpf, describe, info, open, raw};
use crate::kernel::bpf::place::Place;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_PERCPU_HASH: u32 = 5;
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;

#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// Where the link pinned at `path` attaches its program; `None` for nowhere any more, or elsewhere
/// than gate25 puts programs.
pub(super) fn place(path: &Path) -> io::Result<Option<Place>> {
    match info(open(path)?.as_fd()) {
        Ok(link) => Ok(link.place),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

/// The kernel's number of the program pinned at `path`.
pub(super) fn program(path: &Path) -> io::Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct ProgramInfo {
        kind: u32,
        number: u32,
    }
    let mut info = ProgramInfo::default();
    describe(open(path)?.as_fd(), &mut info)?;
    Ok(info.number)
}

/// The kernel's number of the program of the link pinned at `path`; `None` where that is a link of a
/// kind that gate25 does not make.
pub(super) fn link(path: &Path) -> io::Result<Option<u32>> {
    match info(open(path)?.as_fd()) {
        Ok(link) => Ok(Some(link.program)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

/// Entries of the table pinned at `path`; `None` for kinds that are not filled entry by entry.
pub(super) fn entries(path: &Path) -> io::Result<Option<u64>> {
    let map = open(path)?;
    let info = map_info(map.as_fd())?;
    match info.kind {
        BPF_MAP_TYPE_HASH | BPF_MAP_TYPE_PERCPU_HASH | BPF_MAP_TYPE_LPM_TRIE => {}
        _ => return Ok(None),
    }
    let mut entries = 0;
    each_key(map.as_fd(), &info, |_| {
        entries += 1;
        Ok(())
    })?;
    Ok(Some(entries))
}

/// Keys and values of the hash table pinned at `path`.
pub(super) fn rows(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let map = open(path)?;
    let info = map_info(map.as_fd())?;
    // The values of other kinds are larger than what the kernel says.
    if info.kind != BPF_MAP_TYPE_HASH {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a hash table",
        ));
    }
    let mut rows = Vec::new();
    each_key(map.as_fd(), &info, |key| {
        if let Some(value) = look_up(map.as_fd(), &info, key)? {
            rows.push((key.to_vec(), value));
        }
        Ok(())
    })?;
    Ok(rows)
}

fn each_key(
    map: BorrowedFd<'_>,
    info: &MapInfo,
    mut see: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut key = vec![0u8; info.key_size as usize];
    let mut next = vec![0u8; info.key_size as usize];
    let mut first = true;
    // Keys that go meanwhile make the kernel begin anew: somebody is writing, and no count is right.
    for _ in 0..info.max_entries {
        let mut attr = ElementAttr {
            map: raw(map),
            pad: 0,
            key: if first { 0 } else { key.as_ptr() as u64 },
            value: next.as_mut_ptr() as u64,
            flags: 0,
        };
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error),
        }
        see(&next)?;
        std::mem::swap(&mut key, &mut next);
        first = false;
    }
    Ok(())
}

fn look_up(map: BorrowedFd<'_>, info: &MapInfo, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; info.value_size as usize];
    let mut attr = ElementAttr {
        map: raw(map),
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    describe(map, &mut info)?;
    Ok(info)
}
