//! Programs run on packets of ours, by `BPF_PROG_TEST_RUN`.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    libc,
    time::{ClockId, clock_gettime},
};

use crate::{
    NetNs,
    bpf::{
        self, BPF_CGROUP_INET_EGRESS, BPF_PROG_TYPE_CGROUP_SKB, BPF_PROG_TYPE_SCHED_CLS,
        BPF_PROG_TYPE_XDP, BPF_TCX_INGRESS, BPF_XDP, call,
    },
};

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
/// Frames that are made, run and handed on together.
const BATCH: u32 = 64;
/// `struct __sk_buff` and where it holds the interface's index.
const SKB: usize = 192;
const SKB_INTERFACE: usize = 40;
const XDP_CONTEXT: usize = 24;

/// Which hook a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// tc.
    Classifier,
    /// What the sockets of a control group send.
    Cgroup,
    /// XDP.
    Xdp,
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
}

/// A program on an interface. It goes with this value.
#[derive(Debug)]
pub struct Attached {
    #[expect(dead_code, reason = "kept for what its drop does")]
    link: OwnedFd,
}

/// What a program is told of a packet besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The interface that it came by.
    pub interface: u32,
}

/// What came of a program that was run many times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ran {
    /// What it returned the last time.
    pub returned: i32,
    /// Processor time of all runs together.
    pub elapsed: Duration,
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[derive(Debug, Default)]
#[repr(C)]
struct Run {
    program: u32,
    returned: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

/// Whether an interface of the calling thread's namespace has a program on what arrives by it.
///
/// # Errors
/// When the kernel does not say.
pub fn is_watched(interface: u32) -> anyhow::Result<bool> {
    let programs = bpf::programs_on(interface);
    Ok(programs.context("ask for an interface's programs")? > 0)
}

impl Kind {
    const fn numbers(self) -> (u32, u32) {
        match self {
            Self::Classifier => (BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_INGRESS),
            Self::Cgroup => (BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS),
            Self::Xdp => (BPF_PROG_TYPE_XDP, BPF_XDP),
        }
    }
}

impl Program {
    /// Loads a program of these words.
    ///
    /// # Errors
    /// When the kernel refuses, with its verifier's words.
    pub fn load(kind: Kind, name: &str, words: &[u64]) -> anyhow::Result<Self> {
        let (program, attach) = kind.numbers();
        // Programs that tail calls may lead to each other must agree on where they attach, and the
        // agent loads its own for no place in particular.
        let attach = match kind {
            Kind::Classifier => 0,
            Kind::Cgroup | Kind::Xdp => attach,
        };
        let fd = bpf::load(program, attach, name, words)?;
        Ok(Self { fd })
    }

    /// Loads the empty program that returns this.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn returning(kind: Kind, verdict: i32) -> anyhow::Result<Self> {
        Self::load(kind, "empty", &bpf::returning(verdict))
    }

    /// The one that is pinned at `pin` in `ns`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pinned(ns: &NetNs, pin: &Path) -> anyhow::Result<Self> {
        let fd = ns.run(|| bpf::open(pin))??;
        Ok(Self { fd })
    }

    /// Puts it first on what arrives by an interface of `ns` (tcx).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&self, ns: &NetNs, interface: u32) -> anyhow::Result<Attached> {
        const BPF_F_BEFORE: u32 = 1 << 3;
        let link = bpf::link(ns, &self.fd, interface, BPF_TCX_INGRESS, BPF_F_BEFORE)
            .context("attach a program")?;
        Ok(Attached { link })
    }

    /// Runs it so many times on `frame`, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run(&self, frame: &[u8], context: Context, times: u32) -> anyhow::Result<Ran> {
        let mut skb = [0u8; SKB];
        skb[SKB_INTERFACE..SKB_INTERFACE + 4].copy_from_slice(&context.interface.to_ne_bytes());
        let mut run = Run {
            program: self.fd.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: times,
            context_size_in: SKB as u32,
            context_in: skb.as_ptr() as u64,
            ..Run::default()
        };
        let start = time_on_cpu()?;
        call(BPF_PROG_TEST_RUN, &mut run).context("run a program")?;
        Ok(Ran {
            returned: run.returned as i32,
            elapsed: time_on_cpu()?.saturating_sub(start),
        })
    }

    /// Has an XDP program send `frame` so many times into the receive path of an interface, as if
    /// it had just arrived there; how much processor time that takes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn inject(&self, frame: &[u8], interface: u32, times: u32) -> anyhow::Result<Duration> {
        ensure!(times > 0, "nothing to inject");
        let mut context = [0u8; XDP_CONTEXT];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&interface.to_ne_bytes());
        let mut run = Run {
            program: self.fd.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: times,
            context_size_in: XDP_CONTEXT as u32,
            context_in: context.as_ptr() as u64,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch: BATCH,
            ..Run::default()
        };
        let start = time_on_cpu()?;
        call(BPF_PROG_TEST_RUN, &mut run).context("inject frames")?;
        Ok(time_on_cpu()?.saturating_sub(start))
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }
}

/// Time that the calling thread has had a processor: what others take in between does not count.
fn time_on_cpu() -> anyhow::Result<Duration> {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the thread's clock")?;
    Ok(Duration::from(time))
}
