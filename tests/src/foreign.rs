//! Programs of somebody else on cgroups and interfaces.

use std::{
    fs::File,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::Context as _;
use nix::libc;

use crate::{
    Cgroup, NetNs,
    bpf::{
        self, BPF_CGROUP_INET_EGRESS, BPF_PROG_TYPE_CGROUP_SKB, BPF_PROG_TYPE_SCHED_CLS,
        BPF_PROG_TYPE_XDP, BPF_TCX_INGRESS, BPF_XDP, call,
    },
};

const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
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

/// The beginning of `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
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
        call(BPF_PROG_ATTACH, &mut foreign.place(flags)).context("attach a foreign program")?;
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
        let link = bpf::link(ns, program, interface, attach_type, flags)
            .context("attach a foreign program to an interface")?;
        Ok(Self { link })
    }
}

fn load(kind: u32, attach_type: u32, verdict: i32) -> anyhow::Result<OwnedFd> {
    bpf::load(kind, attach_type, "theirs", &bpf::returning(verdict))
        .context("load a foreign program")
}

impl Drop for ForeignProgram {
    fn drop(&mut self) {
        // Gone with its cgroup, if not now.
        drop(call(BPF_PROG_DETACH, &mut self.place(0)));
    }
}
