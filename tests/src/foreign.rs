//! Programs of somebody else on cgroups and interfaces.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;
use nix::libc;

use crate::{Cgroup, NetNs};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_CGROUP_INET_EGRESS: u32 = 1;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_BEFORE: u32 = 1 << 3;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// What lets a packet pass: on a cgroup, by XDP, by tcx.
const PASS: i32 = 1;
const XDP_PASS: i32 = 2;
const TCX_NEXT: i32 = -1;

/// A program that lets every packet out, attached to a cgroup. It goes with this value.
#[derive(Debug)]
pub struct ForeignProgram {
    program: OwnedFd,
    cgroup: File,
}

/// A program that lets every packet pass, attached to an interface. It goes with this value.
#[derive(Debug)]
pub struct ForeignLink {
    #[expect(dead_code, reason = "kept for what its drop does")]
    link: OwnedFd,
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The same for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
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

impl ForeignProgram {
    /// Attaches one to what the sockets of `cgroup` send, as some do: without leave for others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(cgroup: &Cgroup) -> anyhow::Result<Self> {
        Self::attach_with(cgroup, 0)
    }

    /// The same beside others, and with leave for more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_beside(cgroup: &Cgroup) -> anyhow::Result<Self> {
        Self::attach_with(cgroup, BPF_F_ALLOW_MULTI)
    }

    fn attach_with(cgroup: &Cgroup, flags: u32) -> anyhow::Result<Self> {
        let foreign = Self {
            program: load(BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS, PASS)?,
            cgroup: File::open(cgroup.dir()).context("open a cgroup")?,
        };
        bpf(BPF_PROG_ATTACH, &mut foreign.place(flags)).context("attach a foreign program")?;
        Ok(foreign)
    }

    fn place(&self, flags: u32) -> Attach {
        Attach {
            target: self.cgroup.as_raw_fd() as u32,
            program: self.program.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_INET_EGRESS,
            flags,
        }
    }
}

impl ForeignLink {
    /// Puts a tcx program before all others on what arrives by an interface of `ns`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tcx_first(ns: &NetNs, interface: u32) -> anyhow::Result<Self> {
        let program = load(BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_INGRESS, TCX_NEXT)?;
        Self::create(ns, &program, interface, BPF_TCX_INGRESS, BPF_F_BEFORE)
    }

    /// Puts one behind all others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tcx_last(ns: &NetNs, interface: u32) -> anyhow::Result<Self> {
        let program = load(BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_INGRESS, TCX_NEXT)?;
        Self::create(ns, &program, interface, BPF_TCX_INGRESS, 0)
    }

    /// Puts an XDP program of the generic kind on an interface of `ns`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn xdp(ns: &NetNs, interface: u32) -> anyhow::Result<Self> {
        let program = load(BPF_PROG_TYPE_XDP, BPF_XDP, XDP_PASS)?;
        Self::create(ns, &program, interface, BPF_XDP, XDP_FLAGS_SKB_MODE)
    }

    fn create(
        ns: &NetNs,
        program: &OwnedFd,
        interface: u32,
        attach_type: u32,
        flags: u32,
    ) -> anyhow::Result<Self> {
        let mut link = Link {
            program: program.as_raw_fd() as u32,
            target: interface,
            attach_type,
            flags,
            relative: 0,
            revision: 0,
        };
        let link = ns
            .run(|| bpf(BPF_LINK_CREATE, &mut link))?
            .context("attach a foreign program to an interface")?;
        Ok(Self {
            link: descriptor(link)?,
        })
    }
}

/// Loads `r0 = verdict; exit`.
fn load(kind: u32, attach_type: u32, verdict: i32) -> anyhow::Result<OwnedFd> {
    let verdict = u64::from(verdict as u32) << 32;
    let instructions = [verdict | 0xb7, 0x95];
    let mut load = Load {
        kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log: [0; 2],
        kernel_version: 0,
        flags: 0,
        name: *b"theirs\0\0\0\0\0\0\0\0\0\0",
        interface: 0,
        attach_type,
    };
    descriptor(bpf(BPF_PROG_LOAD, &mut load).context("load a foreign program")?)
}

fn descriptor(number: libc::c_long) -> anyhow::Result<OwnedFd> {
    let number = i32::try_from(number).context("a descriptor")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

impl Drop for ForeignProgram {
    fn drop(&mut self) {
        // Gone with its cgroup, if not now.
        drop(bpf(BPF_PROG_DETACH, &mut self.place(0)));
    }
}

/// Calls bpf(2). What `attr` points to lives through the call.
pub(crate) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live `repr(C)` prefix of `union bpf_attr` of the length given, and what
    // it points to lives through the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
