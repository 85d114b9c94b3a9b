//! The program as a classic tc filter, for kernels without tcx (before 6.6).
//!
//! The filter hangs on an `ingress` qdisc, never on `clsact`: Proxmox and libvirt add an `ingress`
//! qdisc of their own for a guest's bandwidth limit, and with `clsact` in its place the guest does
//! not start. Both delete the qdisc first and our filter with it; the caller learns of that from
//! `LinkEvent::QdiscGone` and attaches again.
//!
//! Every call blocks for as long as the kernel holds its lock on interfaces.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use thiserror::Error;

use super::netlink::{NetlinkError, Request, Requests, attributes, number, text};

/// The name that our filter bears, by which alone it is recognised.
pub const NAME: &str = "gate25";
/// The priority of our filter: the first there is.
pub const PRIORITY: u16 = 1;
/// The handle of our filter among those of its priority.
pub const HANDLE: u32 = 0x25;

/// What [`Filter::protocol`] is where it looks at all: `ETH_P_ALL`.
pub const ALL_PROTOCOLS: u16 = 3;

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// Parent of the qdisc.
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// Handle of the qdisc.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// Parent of the filters: with `ingress` and with `clsact` it means what arrives.
const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;

const TCMSG: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's return value is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// A filter on an interface's ingress hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Lower ones run first.
    pub priority: u16,
    /// EtherType that it looks at, 3 for all.
    pub protocol: u16,
    /// Its number within the priority.
    pub handle: u32,
    /// `bpf`, `u32`, `flower`, ...
    pub kind: String,
    /// The name it was given, for `bpf`.
    pub name: Option<String>,
    /// The kernel's number of the program, for `bpf`.
    pub program: Option<u32>,
}

impl Filter {
    /// Whether gate25 made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.name.as_deref() == Some(NAME)
    }

    fn is_in_our_place(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE
    }
}

/// Where our filter stands on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// It runs before all others.
    First {
        /// The kernel's number of its program.
        program: u32,
    },
    /// It is there, but another one runs before it and may let packets pass unseen.
    Behind {
        /// The filter that runs first.
        first: Filter,
    },
    /// It is not there.
    Absent,
}

/// Why the filter could not be placed, listed or removed.
#[derive(Debug, Error)]
pub enum FilterError {
    /// No way to talk to the kernel.
    #[error("cannot talk to the kernel about filters")]
    Open(#[source] NetlinkError),
    /// The ingress qdisc could not be made.
    #[error("cannot add an ingress qdisc to interface {index}")]
    Qdisc {
        /// The interface.
        index: u32,
        /// The kernel's reason.
        source: NetlinkError,
    },
    /// The filter could not be placed.
    #[error("cannot attach the filter to interface {index}")]
    Attach {
        /// The interface.
        index: u32,
        /// The kernel's reason.
        source: NetlinkError,
    },
    /// Somebody else's filter has the priority and handle that ours needs.
    #[error("a {} filter that is not gate25's holds its place on interface {index}", .filter.kind)]
    Occupied {
        /// The interface.
        index: u32,
        /// The filter in the way.
        filter: Box<Filter>,
    },
    /// The filters could not be listed.
    #[error("cannot list the filters of interface {index}")]
    List {
        /// The interface.
        index: u32,
        /// The kernel's reason.
        source: NetlinkError,
    },
    /// The filter could not be removed.
    #[error("cannot remove the filter from interface {index}")]
    Detach {
        /// The interface.
        index: u32,
        /// The kernel's reason.
        source: NetlinkError,
    },
}

impl FilterError {
    /// Whether the interface no longer exists: nothing is left to protect.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open(_) | Self::Occupied { .. } => false,
            Self::Qdisc { source, .. }
            | Self::Attach { source, .. }
            | Self::List { source, .. }
            | Self::Detach { source, .. } => source.errno() == Some(libc::ENODEV),
        }
    }
}

/// Access to the tc filters of one network namespace.
pub struct Filters {
    requests: Requests,
}

impl Filters {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`FilterError::Open`] when there is no netlink socket to be had.
    pub fn open() -> Result<Self, FilterError> {
        Ok(Self {
            requests: Requests::open().map_err(FilterError::Open)?,
        })
    }

    /// Puts `program`, a loaded `sched_cls` program, first on the ingress hook of interface
    /// `index`. A program of ours that is there already is replaced in one step: every packet
    /// meets the one or the other.
    ///
    /// # Errors
    /// [`FilterError::Occupied`] when somebody else's filter holds our place, which is left alone;
    /// otherwise what the kernel refused.
    pub fn attach(&mut self, index: u32, program: BorrowedFd<'_>) -> Result<(), FilterError> {
        self.ensure_qdisc(index)?;
        if let Some(filter) = self.stranger(index)? {
            return Err(FilterError::Occupied {
                index,
                filter: Box::new(filter),
            });
        }
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let request = Request::new(RTM_NEWTFILTER, flags, &ours(index))
            .attribute(TCA_KIND, b"bpf\0")
            .nested(TCA_OPTIONS, |options| {
                options
                    .attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
                    .attribute(TCA_BPF_NAME, format!("{NAME}\0").as_bytes())
                    .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes())
            });
        self.requests
            .change(request)
            .map_err(|source| FilterError::Attach { index, source })
    }

    /// Where our filter stands on interface `index`.
    ///
    /// # Errors
    /// [`FilterError::List`] when the kernel does not say.
    pub fn placement(&mut self, index: u32) -> Result<Placement, FilterError> {
        let filters = self.list(index)?;
        let Some(program) = filters
            .iter()
            .find(|filter| filter.is_ours())
            .map(|f| f.program)
        else {
            return Ok(Placement::Absent);
        };
        Ok(match (filters.into_iter().next(), program) {
            (Some(first), Some(program)) if first.is_ours() => {
                let whole = first.protocol == ALL_PROTOCOLS && first.priority == PRIORITY;
                if whole {
                    Placement::First { program }
                } else {
                    Placement::Behind { first }
                }
            }
            (Some(first), _) => Placement::Behind { first },
            (None, _) => Placement::Absent,
        })
    }

    /// The filters on the ingress hook of interface `index`, in the order in which they run.
    /// Empty as well when the interface has no such hook or does not exist.
    ///
    /// # Errors
    /// [`FilterError::List`] when the kernel does not say.
    pub fn list(&mut self, index: u32) -> Result<Vec<Filter>, FilterError> {
        let request = Request::new(RTM_GETTFILTER, 0, &tcmsg(index, 0, TC_H_MIN_INGRESS, 0));
        let listed = self.requests.list_whole(&request, parse);
        listed.map_err(|source| FilterError::List { index, source })
    }

    /// Removes our filter from interface `index` and says whether there was one. The qdisc stays:
    /// others may be using it by now.
    ///
    /// # Errors
    /// [`FilterError::List`] or [`FilterError::Detach`] when the kernel refuses.
    pub fn detach(&mut self, index: u32) -> Result<Removed, FilterError> {
        let Some(filter) = self.list(index)?.into_iter().find(Filter::is_ours) else {
            return Ok(Removed::Nothing);
        };
        let info = info(filter.priority, filter.protocol);
        let fixed = tcmsg(index, filter.handle, TC_H_MIN_INGRESS, info);
        let request = Request::new(RTM_DELTFILTER, 0, &fixed).attribute(TCA_KIND, b"bpf\0");
        match self.requests.change(request) {
            Ok(()) => Ok(Removed::Filter),
            // Somebody was quicker.
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Removed::Nothing),
            Err(source) => Err(FilterError::Detach { index, source }),
        }
    }

    /// Adds an `ingress` qdisc unless there is one, or a `clsact`, which does as well.
    fn ensure_qdisc(&mut self, index: u32) -> Result<(), FilterError> {
        let fixed = tcmsg(index, INGRESS_HANDLE, TC_H_INGRESS, 0);
        let request = Request::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &fixed)
            .attribute(TCA_KIND, b"ingress\0");
        match self.requests.change(request) {
            Ok(()) => Ok(()),
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            Err(source) => Err(FilterError::Qdisc { index, source }),
        }
    }

    /// A filter in our place that is not ours.
    fn stranger(&mut self, index: u32) -> Result<Option<Filter>, FilterError> {
        let filters = self.list(index)?;
        Ok(filters
            .into_iter()
            .find(|filter| filter.is_in_our_place() && !filter.is_ours()))
    }
}

/// What [`Filters::detach`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// Our filter, now gone.
    Filter,
    /// None of ours.
    Nothing,
}

fn ours(index: u32) -> [u8; TCMSG] {
    tcmsg(
        index,
        HANDLE,
        TC_H_MIN_INGRESS,
        info(PRIORITY, ALL_PROTOCOLS),
    )
}

/// Priority and protocol as the kernel packs them: the latter in network order.
fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

fn tcmsg(index: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut fixed = [0; TCMSG];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&handle.to_ne_bytes());
    fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
    fixed[16..20].copy_from_slice(&info.to_ne_bytes());
    fixed
}

/// The filter that a message describes; none for the entry that only announces a priority.
fn parse(payload: &[u8]) -> Result<Option<Filter>, NetlinkError> {
    let Some((fixed, rest)) = payload.split_at_checked(TCMSG) else {
        return Err(NetlinkError::Malformed);
    };
    let handle = number(fixed, 8)?;
    if handle == 0 {
        return Ok(None);
    }
    let info = number(fixed, 16)?;
    let mut filter = Filter {
        priority: (info >> 16) as u16,
        protocol: u16::from_be(info as u16),
        handle,
        kind: String::new(),
        name: None,
        program: None,
    };
    let mut options: &[u8] = &[];
    for attribute in attributes(rest) {
        match attribute? {
            (TCA_KIND, value) => filter.kind = String::from_utf8_lossy(text(value)).into_owned(),
            (TCA_OPTIONS, value) => options = value,
            _ => {}
        }
    }
    // Other kinds number their options differently.
    if filter.kind == "bpf" {
        for attribute in attributes(options) {
            match attribute? {
                (TCA_BPF_NAME, value) => {
                    filter.name = Some(String::from_utf8_lossy(text(value)).into_owned());
                }
                (TCA_BPF_ID, value) => filter.program = Some(number(value, 0)?),
                _ => {}
            }
        }
    }
    Ok(Some(filter))
}
