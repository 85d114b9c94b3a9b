//! Where programs are attached.

use std::fmt;

use gate25_common::names;

use crate::dataplane::Site;

/// A hook of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CgroupHook {
    /// What its sockets send.
    Egress,
    /// Sockets that are made.
    Socket,
    /// Connections over IPv4.
    Connect4,
    /// Connections over IPv6.
    Connect6,
}

impl CgroupHook {
    /// Every hook, the one that closes first.
    pub(super) const ALL: [Self; 4] = [Self::Egress, Self::Socket, Self::Connect4, Self::Connect6];

    /// `enum bpf_attach_type` (include/uapi/linux/bpf.h).
    pub(super) const fn attach_type(self) -> u32 {
        match self {
            Self::Egress => 1,
            Self::Socket => 2,
            Self::Connect4 => 10,
            Self::Connect6 => 11,
        }
    }

    /// The program that belongs there.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Egress => names::PROGRAM_CGROUP_EGRESS,
            Self::Socket => names::PROGRAM_CGROUP_SOCKET,
            Self::Connect4 => names::PROGRAM_CGROUP_CONNECT4,
            Self::Connect6 => names::PROGRAM_CGROUP_CONNECT6,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Socket => "socket",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
        }
    }
}

/// What a link holds on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The ingress of the interface with this index.
    Interface(u32),
    /// A hook of the cgroup with this number.
    Cgroup(u64, CgroupHook),
}

impl Place {
    /// The program that belongs there.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Interface(_) => names::PROGRAM_TC_INGRESS,
            Self::Cgroup(_, hook) => hook.program(),
        }
    }

    /// What it is a part of.
    pub(super) const fn site(self) -> Site {
        match self {
            Self::Interface(index) => Site::Interface(index),
            Self::Cgroup(id, _) => Site::Root(id),
        }
    }
}

/// The name of its pin.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(index) => write!(f, "interface-{index}"),
            Self::Cgroup(id, hook) => write!(f, "cgroup-{id}-{}", hook.word()),
        }
    }
}
