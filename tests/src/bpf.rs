//! bpf(2) by hand: programs and tables of the lab's own, and those that an agent has pinned.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::Context as _;
use nix::libc;

use crate::NetNs;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
pub(crate) const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
pub(crate) const BPF_PROG_TYPE_XDP: u32 = 6;
pub(crate) const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
pub(crate) const BPF_CGROUP_INET_EGRESS: u32 = 1;
pub(crate) const BPF_XDP: u32 = 37;
pub(crate) const BPF_TCX_INGRESS: u32 = 46;
/// The kernel keeps this much of a name, and a zero.
const NAME: usize = 15;
/// Room for what the verifier says of a program that it refuses.
const LOG: usize = 1 << 16;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME + 1],
    interface: u32,
    attach_type: u32,
}

/// The same for `BPF_MAP_CREATE`.
#[repr(C)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u64,
    revision: u64,
}

/// The same for `BPF_OBJ_GET`.
#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Ask {
    fd: u32,
    length: u32,
    info: u64,
}

/// The same for `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for `BPF_PROG_QUERY`.
#[derive(Default)]
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    attach_flags_of: u64,
    links: u64,
    attach_flags_of_links: u64,
    revision: u64,
}

/// The beginning of `struct bpf_map_info`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
}

/// `r0 = verdict; exit`.
pub(crate) fn returning(verdict: i32) -> [u64; 2] {
    [u64::from(verdict as u32) << 32 | 0xb7, 0x95]
}

/// Loads a program of these instructions.
///
/// # Errors
/// When the kernel refuses; with what its verifier said, if it said anything.
pub(crate) fn load(
    kind: u32,
    attach_type: u32,
    name: &str,
    instructions: &[u64],
) -> anyhow::Result<OwnedFd> {
    let mut log = vec![0u8; LOG];
    let mut short = [0; NAME + 1];
    for (to, from) in short.iter_mut().take(NAME).zip(name.bytes()) {
        *to = from;
    }
    let mut attr = Load {
        kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log_level: 1,
        log_size: LOG as u32,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
        name: short,
        interface: 0,
        attach_type,
    };
    let loaded = call(BPF_PROG_LOAD, &mut attr).with_context(|| {
        let said = String::from_utf8_lossy(&log);
        format!("load {name}: {}", said.trim_end_matches('\0'))
    })?;
    descriptor(loaded)
}

/// Makes a table.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn create(
    kind: u32,
    (key_size, value_size): (u32, u32),
    max_entries: u32,
) -> anyhow::Result<OwnedFd> {
    let mut attr = Create {
        kind,
        key_size,
        value_size,
        max_entries,
        flags: 0,
    };
    descriptor(call(BPF_MAP_CREATE, &mut attr).context("make a table")?)
}

/// Attaches a program to an interface of `ns` until the result goes.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn link(
    ns: &NetNs,
    program: &OwnedFd,
    interface: u32,
    attach_type: u32,
    flags: u32,
) -> anyhow::Result<OwnedFd> {
    let mut attr = Link {
        program: program.as_raw_fd() as u32,
        target: interface,
        attach_type,
        flags,
        relative: 0,
        revision: 0,
    };
    descriptor(ns.run(|| call(BPF_LINK_CREATE, &mut attr))??)
}

/// How many programs look at what arrives by an interface of the calling thread's namespace (tcx).
pub(crate) fn programs_on(interface: u32) -> io::Result<u32> {
    let mut attr = Query {
        target: interface,
        attach_type: BPF_TCX_INGRESS,
        ..Query::default()
    };
    match call(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => Ok(attr.count),
        // Nothing was ever attached there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Opens what is pinned at `pin`, which the calling thread must see.
///
/// # Errors
/// When there is nothing.
pub(crate) fn open(pin: &Path) -> anyhow::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes()).context("a pin's path")?;
    let mut attr = Get {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let opened = call(BPF_OBJ_GET, &mut attr);
    descriptor(opened.with_context(|| format!("open {}", pin.display()))?)
}

/// What the kernel tells of a table.
pub(crate) fn map_info(map: &OwnedFd) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut attr = Ask {
        fd: map.as_raw_fd() as u32,
        length: size_of::<MapInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Writes an entry.
pub(crate) fn put(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = element(map, key);
    attr.value = value.as_ptr() as u64;
    call(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Takes an entry out.
pub(crate) fn delete(map: &OwnedFd, key: &[u8]) -> io::Result<()> {
    call(BPF_MAP_DELETE_ELEM, &mut element(map, key)).map(drop)
}

fn element(map: &OwnedFd, key: &[u8]) -> Element {
    Element {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: key.as_ptr() as u64,
        value: 0,
        flags: 0,
    }
}

fn descriptor(number: libc::c_long) -> anyhow::Result<OwnedFd> {
    let number = i32::try_from(number).context("a descriptor")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Calls bpf(2). What `attr` points to lives through the call.
pub(crate) fn call<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live `repr(C)` prefix of `union bpf_attr` of the length given, and what
    // it points to lives through the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
