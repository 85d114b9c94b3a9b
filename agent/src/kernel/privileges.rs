//! What this process may do (capabilities(7)), and giving up what it does not need.
//!
//! Capabilities belong to threads: what is given up here must be given up before there are others.

use std::fmt;
use std::io;

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits.
const VERSION: u32 = 0x2008_0522;
/// A user 0 has no capabilities for being user 0, and nobody may change that again.
const NO_ROOT: libc::c_ulong = 1 << 0 | 1 << 1;

/// What the agent can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// `CAP_CHOWN`.
    Chown,
    /// `CAP_DAC_OVERRIDE`.
    DacOverride,
    /// `CAP_DAC_READ_SEARCH`.
    DacReadSearch,
    /// `CAP_NET_BIND_SERVICE`.
    NetBindService,
    /// `CAP_NET_ADMIN`.
    NetAdmin,
    /// `CAP_SYS_PTRACE`.
    SysPtrace,
    /// `CAP_SYS_ADMIN`.
    SysAdmin,
    /// `CAP_PERFMON` (5.8).
    Perfmon,
    /// `CAP_BPF` (5.8).
    Bpf,
}

impl Capability {
    /// Every one that is kept where it is granted.
    const ALL: [Self; 9] = [
        Self::Chown,
        Self::DacOverride,
        Self::DacReadSearch,
        Self::NetBindService,
        Self::NetAdmin,
        Self::SysPtrace,
        Self::SysAdmin,
        Self::Perfmon,
        Self::Bpf,
    ];

    /// Its number (include/uapi/linux/capability.h).
    const fn number(self) -> u32 {
        match self {
            Self::Chown => 0,
            Self::DacOverride => 1,
            Self::DacReadSearch => 2,
            Self::NetBindService => 10,
            Self::NetAdmin => 12,
            Self::SysPtrace => 19,
            Self::SysAdmin => 21,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }

    const fn bit(self) -> u64 {
        1 << self.number()
    }

    /// What it is for.
    const fn purpose(self) -> &'static str {
        match self {
            Self::Chown => "giving files to a group that this user is not in",
            Self::DacOverride => "using what belongs to another user",
            Self::DacReadSearch => "looking into directories of control groups that are closed",
            Self::NetBindService => "listening on ports below 1024",
            Self::NetAdmin => "attaching programs, and changing rules of nftables",
            Self::SysPtrace | Self::SysAdmin => "entering containers' network namespaces",
            Self::Perfmon => "loading programs that compare addresses and read kernel memory",
            Self::Bpf => "loading programs and making their tables",
        }
    }
}

/// As capabilities(7) names it.
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chown => "CAP_CHOWN",
            Self::DacOverride => "CAP_DAC_OVERRIDE",
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        })
    }
}

/// What loading the programs and attaching them takes.
pub const FOR_EBPF: [Capability; 3] = [Capability::Bpf, Capability::Perfmon, Capability::NetAdmin];
/// What changing rules of nftables takes.
pub const FOR_NFTABLES: [Capability; 1] = [Capability::NetAdmin];

/// Why privileges are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegesError {
    /// Some are not granted.
    #[error("not allowed: {} missing", listed(.0))]
    Missing(Vec<Capability>),
    /// The kernel does not tell them.
    #[error("ask for this process' capabilities")]
    Ask(#[source] io::Error),
    /// The kernel does not take them away.
    #[error("give up {what}")]
    GiveUp {
        /// What was to be given up.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn listed(missing: &[Capability]) -> String {
    let each = missing
        .iter()
        .map(|capability| format!("{capability} ({}) is", capability.purpose()));
    each.collect::<Vec<_>>().join(", ")
}

/// Refuses to go on without these.
///
/// # Errors
/// [`PrivilegesError::Missing`] with all that are.
pub fn require(needed: &[Capability]) -> Result<(), PrivilegesError> {
    let held = Sets::of_thread().map_err(PrivilegesError::Ask)?.effective();
    let missing = needed.iter().copied();
    let missing: Vec<_> = missing.filter(|it| held & it.bit() == 0).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(PrivilegesError::Missing(missing))
    }
}

/// Gives up everything that no part of the agent uses, and leaves the programs that it runs (nft
/// alone) nothing but `CAP_NET_ADMIN`, whoever the user is.
///
/// # Errors
/// [`PrivilegesError`]; what was given up by then is.
pub fn confine() -> Result<(), PrivilegesError> {
    let failed = |what| move |source| PrivilegesError::GiveUp { what, source };
    let mut sets = Sets::of_thread().map_err(PrivilegesError::Ask)?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(failed("gaining privileges by programs"))?;
    // Where these two are not allowed, the user is not 0 or has been confined by somebody else.
    if sets.effective() & SETPCAP != 0 {
        prctl(libc::PR_SET_SECUREBITS, NO_ROOT, 0).map_err(failed("the privileges of user 0"))?;
    }
    let ours = Capability::ALL
        .iter()
        .fold(0, |bits, capability| bits | capability.bit());
    let inherited = Capability::NetAdmin.bit();
    sets.restrict(ours, inherited);
    sets.apply().map_err(failed("capabilities"))?;
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
        0,
    )
    .map_err(failed("inherited capabilities"))?;
    if sets.permitted() & inherited != 0 {
        prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
            libc::c_ulong::from(Capability::NetAdmin.number()),
        )
        .map_err(failed("inherited capabilities but CAP_NET_ADMIN"))?;
    }
    Ok(())
}

/// Gives up, for the calling thread and those that it starts, what only loading programs takes.
///
/// # Errors
/// [`PrivilegesError`].
pub fn confine_to_enforcing() -> Result<(), PrivilegesError> {
    let mut sets = Sets::of_thread().map_err(PrivilegesError::Ask)?;
    sets.restrict(!Capability::Perfmon.bit(), Capability::NetAdmin.bit());
    sets.apply().map_err(|source| PrivilegesError::GiveUp {
        what: "loading programs",
        source,
    })
}

/// `CAP_SETPCAP`.
const SETPCAP: u64 = 1 << 8;

/// `struct __user_cap_data_struct`, for the lower and the upper 32 capabilities.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Sets {
    halves: [Half; 2],
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    thread: i32,
}

impl Header {
    const OWN: Self = Self {
        version: VERSION,
        thread: 0,
    };
}

impl Sets {
    fn of_thread() -> io::Result<Self> {
        let mut header = Header::OWN;
        let mut sets = Self::default();
        // SAFETY: both are laid out as the kernel's version 3 of them and live through the call.
        let outcome = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) };
        check(outcome).map(|()| sets)
    }

    fn apply(&self) -> io::Result<()> {
        let mut header = Header::OWN;
        // SAFETY: both are laid out as the kernel's version 3 of them and live through the call.
        let outcome = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, self) };
        check(outcome)
    }

    fn effective(&self) -> u64 {
        self.joined(|half| half.effective)
    }

    fn permitted(&self) -> u64 {
        self.joined(|half| half.permitted)
    }

    fn joined(&self, of: impl Fn(&Half) -> u32) -> u64 {
        let [low, high] = &self.halves;
        u64::from(of(low)) | u64::from(of(high)) << 32
    }

    /// Keeps of what is permitted what is in `kept`, has all of it effective, and hands on of that
    /// what is in `inherited`.
    fn restrict(&mut self, kept: u64, inherited: u64) {
        let [low, high] = &mut self.halves;
        for (half, shift) in [(low, 0), (high, 32)] {
            let part = |bits: u64| (bits >> shift) as u32;
            half.permitted &= part(kept);
            half.effective = half.permitted;
            half.inheritable = half.permitted & part(inherited);
        }
    }
}

fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<()> {
    let unused: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers alone.
    let outcome = unsafe { libc::prctl(option, first, second, unused, unused) };
    check(outcome.into())
}

fn check(outcome: libc::c_long) -> io::Result<()> {
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_what_the_kernel_says_of_the_thread() {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let told = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        let sets = Sets::of_thread().unwrap();
        assert_eq!(sets.effective(), told("CapEff:"));
        assert_eq!(sets.permitted(), told("CapPrm:"));
    }

    #[test]
    fn restriction_keeps_no_more_than_there_is() {
        let half = |bits| Half {
            effective: 0,
            permitted: bits,
            inheritable: 0,
        };
        let mut sets = Sets {
            halves: [half(1 << 12 | 1 << 3), half(1 << 7)],
        };
        let kept = Capability::NetAdmin.bit() | Capability::Bpf.bit() | Capability::SysAdmin.bit();
        sets.restrict(kept, Capability::NetAdmin.bit());
        let left = Capability::NetAdmin.bit() | Capability::Bpf.bit();
        assert_eq!((sets.permitted(), sets.effective()), (left, left));
        let inherited = sets.joined(|half| half.inheritable);
        assert_eq!(inherited, Capability::NetAdmin.bit());
    }

    #[test]
    fn complaint_names_each_capability_and_what_it_is_for() {
        let missing = vec![Capability::Bpf, Capability::Perfmon];
        let text = PrivilegesError::Missing(missing).to_string();
        assert!(text.contains("CAP_BPF (loading programs"), "{text}");
        assert!(
            text.contains("CAP_PERFMON (loading programs that"),
            "{text}"
        );
    }
}
