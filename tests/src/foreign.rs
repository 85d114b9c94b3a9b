//! A program of somebody else on a cgroup.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;
use nix::libc;

use crate::Cgroup;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_CGROUP_INET_EGRESS: u32 = 1;
/// `r0 = 1; exit`: every packet passes.
const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// A program that lets every packet out, attached to a cgroup as some do: without leave for others.
/// It goes with this value.
#[derive(Debug)]
pub struct ForeignProgram {
    program: OwnedFd,
    cgroup: File,
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

impl ForeignProgram {
    /// Attaches one to what the sockets of `cgroup` send.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(cgroup: &Cgroup) -> anyhow::Result<Self> {
        let mut load = Load {
            kind: BPF_PROG_TYPE_CGROUP_SKB,
            count: PASS.len() as u32,
            instructions: PASS.as_ptr() as u64,
            license: c"MIT".as_ptr() as u64,
            log: [0; 2],
            kernel_version: 0,
            flags: 0,
            name: [0; 16],
            interface: 0,
            attach_type: BPF_CGROUP_INET_EGRESS,
        };
        let program = bpf(BPF_PROG_LOAD, &mut load).context("load a foreign program")?;
        let program = i32::try_from(program).context("a descriptor")?;
        let foreign = Self {
            // SAFETY: the kernel has just made this descriptor for us.
            program: unsafe { OwnedFd::from_raw_fd(program) },
            cgroup: File::open(cgroup.dir()).context("open a cgroup")?,
        };
        bpf(BPF_PROG_ATTACH, &mut foreign.place()).context("attach a foreign program")?;
        Ok(foreign)
    }

    fn place(&self) -> Attach {
        Attach {
            target: self.cgroup.as_raw_fd() as u32,
            program: self.program.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_INET_EGRESS,
            flags: 0,
        }
    }
}

impl Drop for ForeignProgram {
    fn drop(&mut self) {
        // Gone with its cgroup, if not now.
        drop(bpf(BPF_PROG_DETACH, &mut self.place()));
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
