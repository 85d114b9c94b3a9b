//! Where programs are attached.

use std::fmt;
use std::str::FromStr;

use gate25_common::names;

use crate::dataplane::Site;

/// A hook of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CgroupHook {
    /// What its sockets send.
    Egress,
    /// Sockets that are made.
    Socket,
    /// Connections over IPv4.
    Connect4,
    /// Connections over IPv6.
    Connect6,
    /// The other ends of its connections over IPv4, as its tasks are told them.
    Peer4,
    /// The same over IPv6.
    Peer6,
}

impl CgroupHook {
    /// Every hook, the one that closes first.
    pub const ALL: [Self; 6] = [
        Self::Egress,
        Self::Socket,
        Self::Connect4,
        Self::Connect6,
        Self::Peer4,
        Self::Peer6,
    ];

    /// `enum bpf_attach_type` (include/uapi/linux/bpf.h).
    pub(super) const fn attach_type(self) -> u32 {
        match self {
            Self::Egress => 1,
            Self::Socket => 2,
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::Peer4 => 29,
            Self::Peer6 => 30,
        }
    }

    /// The program that belongs there.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Egress => names::PROGRAM_CGROUP_EGRESS,
            Self::Socket => names::PROGRAM_CGROUP_SOCKET,
            Self::Connect4 => names::PROGRAM_CGROUP_CONNECT4,
            Self::Connect6 => names::PROGRAM_CGROUP_CONNECT6,
            Self::Peer4 => names::PROGRAM_CGROUP_PEER4,
            Self::Peer6 => names::PROGRAM_CGROUP_PEER6,
        }
    }

    /// The word for it in names of pins.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Socket => "socket",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Peer4 => "peer4",
            Self::Peer6 => "peer6",
        }
    }
}

/// What a link holds on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The ingress of the interface with this index.
    Interface(u32),
    /// The egress of the interface with this index.
    Replies(u32),
    /// A hook of the cgroup with this number.
    Cgroup(u64, CgroupHook),
}

impl Place {
    /// The program that belongs there.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Interface(_) => names::PROGRAM_TC_INGRESS,
            Self::Replies(_) => names::PROGRAM_TC_EGRESS,
            Self::Cgroup(_, hook) => hook.program(),
        }
    }

    /// What it is a part of.
    pub(super) const fn site(self) -> Site {
        match self {
            Self::Interface(index) => Site::Interface(index),
            Self::Replies(index) => Site::Replies(index),
            Self::Cgroup(id, _) => Site::Root(id),
        }
    }
}

/// The name of its pin.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(index) => write!(f, "interface-{index}"),
            Self::Replies(index) => write!(f, "replies-{index}"),
            Self::Cgroup(id, hook) => write!(f, "cgroup-{id}-{}", hook.word()),
        }
    }
}

/// A text that names no place.
#[derive(Debug, PartialEq, Eq)]
pub struct NoPlace;

/// The place that a pin's name tells.
impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(name: &str) -> Result<Self, NoPlace> {
        let interface = name.strip_prefix("interface-");
        let cgroup = name.strip_prefix("cgroup-");
        let replies = name.strip_prefix("replies-");
        let place = match (interface.or(replies), cgroup) {
            (Some(index), _) if interface.is_some() => canonical(index).map(Self::Interface),
            (Some(index), _) => canonical(index).map(Self::Replies),
            (None, Some(rest)) => rest.split_once('-').and_then(|(id, word)| {
                let mut hooks = CgroupHook::ALL.into_iter();
                let hook = hooks.find(|hook| hook.word() == word)?;
                Some(Self::Cgroup(canonical(id)?, hook))
            }),
            (None, None) => None,
        };
        place.ok_or(NoPlace)
    }
}

/// A number written the one way in which the agent writes it.
pub(super) fn canonical<N: FromStr + ToString>(text: &str) -> Option<N> {
    text.parse()
        .ok()
        .filter(|number: &N| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_read_back_from_the_name_of_its_pin() {
        let cgroups = CgroupHook::ALL.map(|hook| Place::Cgroup(u64::MAX, hook));
        for place in cgroups
            .into_iter()
            .chain([Place::Interface(7), Place::Replies(7)])
        {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
    }

    #[test]
    fn names_that_the_agent_does_not_write_are_no_places() {
        for name in [
            "",
            "7",
            "interface-",
            "interface-07",
            "interface-+7",
            "interface-4294967296",
            "cgroup-7",
            "cgroup-7-ingress",
            "cgroup--egress",
            "new-interface-7",
        ] {
            assert_eq!(name.parse::<Place>(), Err(NoPlace), "{name}");
        }
    }
}
