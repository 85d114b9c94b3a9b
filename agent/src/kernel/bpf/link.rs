//! Links by interface index and by cgroup, pinned, and what else of bpf(2) aya does not do.
//!
//! aya attaches by interface name, and a name may change hands between the event that announced
//! it and the attachment; an index does not. It replaces no program of a cgroup's link. Layouts are
//! `union bpf_attr` and `struct bpf_link_info` of Linux 6.6 (include/uapi/linux/bpf.h).

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::{fs, io};

use super::place::{CgroupHook, Place};

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Before all others, where no other is named.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_TCX: u32 = 11;
const MAX_PROGRAMS: usize = 64;
/// More than any program of any version uses.
const MAX_MAPS: usize = 64;

/// What the kernel says of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// What it holds on to; `None` once that is gone.
    pub(super) place: Option<Place>,
    /// The kernel's number of the program.
    pub(super) program: u32,
}

/// What can be pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Object {
    /// A table.
    Map,
    /// A program.
    Program,
    /// An attachment.
    Link,
}

/// Whether the kernel has tcx (6.6).
pub(super) fn tcx_supported(program: BorrowedFd<'_>) -> bool {
    // No interface has the index 0, which a kernel with tcx notices and one without does not get
    // to see.
    attach_interface(program, 0, Direction::FromGuest)
        .is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// A hook of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Its ingress.
    FromGuest,
    /// Its egress.
    ToGuest,
}

impl Direction {
    const fn attach_type(self) -> u32 {
        match self {
            Self::FromGuest => BPF_TCX_INGRESS,
            Self::ToGuest => BPF_TCX_EGRESS,
        }
    }
}

/// Puts `program` in front of every other tcx program in that direction of `interface`.
pub(super) fn attach_interface(
    program: BorrowedFd<'_>,
    interface: u32,
    direction: Direction,
) -> io::Result<OwnedFd> {
    create(CreateAttr {
        program: raw(program),
        target: interface,
        attach_type: direction.attach_type(),
        flags: BPF_F_BEFORE,
        ..CreateAttr::default()
    })
}

/// Adds `program` to a hook of the cgroup whose directory `cgroup` is (kernel 5.7).
pub(super) fn attach_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
) -> io::Result<OwnedFd> {
    create(CreateAttr {
        program: raw(program),
        target: raw(cgroup),
        attach_type: hook.attach_type(),
        ..CreateAttr::default()
    })
}

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

fn create(mut attr: CreateAttr) -> io::Result<OwnedFd> {
    bpf_fd(BPF_LINK_CREATE, &mut attr)
}

/// Replaces the program of a link at once.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let mut attr = Attr {
        link: raw(link),
        program: raw(program),
        flags: 0,
        old_program: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Gives `object` a name on the BPF filesystem, under which it outlives this process.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr {
        path: path.as_ptr() as u64,
        object: raw(object),
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned at `path`, be it what it may.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    bpf_fd(BPF_OBJ_GET, &mut attr)
}

/// What `object` is, by what the kernel calls its file.
pub(super) fn kind(object: BorrowedFd<'_>) -> io::Result<Option<Object>> {
    let name = fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    Ok(match name.to_str() {
        Some("anon_inode:bpf-map") => Some(Object::Map),
        Some("anon_inode:bpf-prog") => Some(Object::Program),
        Some("anon_inode:bpf_link" | "anon_inode:bpf-link") => Some(Object::Link),
        Some(_) | None => None,
    })
}

/// What the kernel says of `link`; an error for a link of a kind that gate25 does not make.
pub(super) fn info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        details: [u32; 4],
    }
    let mut info = Info::default();
    describe(link, &mut info)?;
    let [first, second, third, _] = info.details;
    let place = match info.kind {
        BPF_LINK_TYPE_TCX if second == BPF_TCX_INGRESS => {
            (first != 0).then_some(Place::Interface(first))
        }
        BPF_LINK_TYPE_TCX if second == BPF_TCX_EGRESS => {
            (first != 0).then_some(Place::Replies(first))
        }
        BPF_LINK_TYPE_CGROUP => {
            let hook = CgroupHook::ALL
                .into_iter()
                .find(|hook| hook.attach_type() == third)
                .ok_or_else(unknown)?;
            let id = u64::from(first) | u64::from(second) << 32;
            (id != 0).then_some(Place::Cgroup(id, hook))
        }
        _ => return Err(unknown()),
    };
    Ok(LinkInfo {
        place,
        program: info.program,
    })
}

/// Has the kernel fill as much of an object's description as `info`, the beginning of its kind's
/// `struct bpf_*_info`, has room for.
pub(super) fn describe<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut attr = Attr {
        fd: raw(object),
        length: size_of::<T>() as u32,
        info: (&raw mut *info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// The kernel's numbers of a program and of the tables that it uses.
pub(super) fn program_and_maps(program: BorrowedFd<'_>) -> io::Result<(u32, Vec<u32>)> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        code_lengths: [u32; 2],
        code: [u64; 2],
        loaded: u64,
        user: u32,
        maps: u32,
        map_ids: u64,
    }
    let mut ids = vec![0u32; MAX_MAPS];
    let mut info = Info {
        maps: MAX_MAPS as u32,
        map_ids: ids.as_mut_ptr() as u64,
        ..Info::default()
    };
    describe(program, &mut info)?;
    let used = info.maps as usize;
    if used > MAX_MAPS {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    ids.truncate(used);
    Ok((info.id, ids))
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a link of gate25's")
}

/// The kernel's numbers of the tcx programs in that direction of `interface`, first to last.
pub(super) fn programs(interface: u32, direction: Direction) -> io::Result<Vec<u32>> {
    query(interface, direction.attach_type())
}

/// The kernel's numbers of the programs that are attached to a hook of the cgroup itself whose
/// directory `cgroup` is.
pub(super) fn programs_of_cgroup(cgroup: BorrowedFd<'_>, hook: CgroupHook) -> io::Result<Vec<u32>> {
    query(raw(cgroup), hook.attach_type())
}

fn query(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attr {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        pad: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }
    let mut programs = vec![0u32; MAX_PROGRAMS];
    let mut attr = Attr {
        target,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        pad: 0,
        program_flags: 0,
        links: 0,
        link_flags: 0,
        revision: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    programs.truncate(attr.count as usize);
    Ok(programs)
}

/// Opens the program of this number.
pub(super) fn open_program(number: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        number: u32,
        next: u32,
        flags: u32,
    }
    let mut attr = Attr {
        number,
        next: 0,
        flags: 0,
    };
    bpf_fd(BPF_PROG_GET_FD_BY_ID, &mut attr)
}

#[repr(C)]
struct PathAttr {
    path: u64,
    object: u32,
    flags: u32,
}

pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn bpf_fd<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned it as a new descriptor of ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A bpf(2) call with as much of `union bpf_attr` as it needs.
pub(super) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live `repr(C)` prefix of `union bpf_attr` of the length given, and what
    // it points to lives as long as the caller's borrow.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
