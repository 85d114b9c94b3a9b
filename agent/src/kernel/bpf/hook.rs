//! Where the program is attached, and what an earlier agent left there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::programs::SchedClassifier;

use super::pins::Pins;
use super::{Attachment, BpfError, link, program_error};
use crate::dataplane::Attached;
use crate::kernel::filter::{Filters, Placement};

/// How the program is attached to interfaces.
pub(super) enum Hook {
    Tcx {
        pins: Pins,
        links: BTreeMap<u32, OwnedFd>,
    },
    Filter {
        filters: Filters,
        interfaces: BTreeMap<u32, ()>,
    },
}

impl Hook {
    pub(super) fn open(
        program: &mut SchedClassifier,
        pins: Pins,
        attachment: Attachment,
    ) -> Result<Self, BpfError> {
        let fd = program.fd().map_err(program_error)?;
        match attachment {
            Attachment::Auto if link::tcx_supported(fd.as_fd()) => {
                let links = adopt(fd.as_fd(), &pins)?;
                Ok(Self::Tcx { pins, links })
            }
            Attachment::Auto | Attachment::Filter => Ok(Self::Filter {
                filters: Filters::open()?,
                interfaces: BTreeMap::new(),
            }),
        }
    }

    pub(super) fn attach(
        &mut self,
        program: BorrowedFd<'_>,
        index: u32,
    ) -> Result<Attached, BpfError> {
        match self {
            Self::Tcx { pins, links } => attach_link(program, pins, links, index),
            Self::Filter {
                filters,
                interfaces,
            } => match filters.attach(index, program) {
                Ok(()) => {
                    interfaces.insert(index, ());
                    Ok(Attached::Yes)
                }
                Err(error) if error.is_gone() => Ok(Attached::Vanished),
                Err(error) => Err(error.into()),
            },
        }
    }

    pub(super) fn detach(&mut self, index: u32) -> Result<(), BpfError> {
        match self {
            Self::Tcx { pins, links } => {
                pins.remove_link(index)?;
                links.remove(&index);
                Ok(())
            }
            Self::Filter {
                filters,
                interfaces,
            } => {
                match filters.detach(index) {
                    Err(error) if !error.is_gone() => return Err(error.into()),
                    _ => {}
                }
                interfaces.remove(&index);
                Ok(())
            }
        }
    }

    /// Covered interfaces `among` these on which the program with this number is not first any
    /// more.
    pub(super) fn displaced(
        &mut self,
        program: u32,
        among: &BTreeSet<u32>,
    ) -> Result<Vec<u32>, BpfError> {
        let mut displaced = Vec::new();
        match self {
            Self::Tcx { links, .. } => {
                for index in links.keys().filter(|index| among.contains(index)) {
                    match link::programs(*index) {
                        Ok(programs) if programs.first() == Some(&program) => {}
                        // Gone with its interface: the event of that is on its way.
                        Err(error) if vanished(&error) => {}
                        Ok(_) => displaced.push(*index),
                        Err(source) => {
                            return Err(BpfError::Link {
                                action: "look for",
                                interface: *index,
                                source,
                            });
                        }
                    }
                }
            }
            Self::Filter {
                filters,
                interfaces,
            } => {
                for index in interfaces.keys().filter(|index| among.contains(index)) {
                    match filters.placement(*index) {
                        Ok(Placement::First { program: found }) if found == program => {}
                        Err(error) if error.is_gone() => {}
                        Ok(_) => displaced.push(*index),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(displaced)
    }
}

/// Takes over pinned links, giving each the new program at once.
fn adopt(program: BorrowedFd<'_>, pins: &Pins) -> Result<BTreeMap<u32, OwnedFd>, BpfError> {
    let mut links = BTreeMap::new();
    for interface in pins.links()? {
        let failed = |action| {
            move |source| BpfError::Link {
                action,
                interface,
                source,
            }
        };
        let link = link::open(&pins.link(interface)).map_err(failed("open"))?;
        let info = link::info(link.as_fd()).map_err(failed("look at"))?;
        if info.interface == interface {
            link::update(link.as_fd(), program).map_err(failed("replace"))?;
            links.insert(interface, link);
        } else {
            // The interface is gone, or its index is another's now: nothing is covered by it.
            pins.remove_link(interface)?;
        }
    }
    Ok(links)
}

fn attach_link(
    program: BorrowedFd<'_>,
    pins: &Pins,
    links: &mut BTreeMap<u32, OwnedFd>,
    index: u32,
) -> Result<Attached, BpfError> {
    let link = match link::create(program, index) {
        Ok(link) => link,
        Err(error) if vanished(&error) => return Ok(Attached::Vanished),
        Err(source) => {
            return Err(BpfError::Link {
                action: "attach",
                interface: index,
                source,
            });
        }
    };
    pins.remove_link(index)?;
    link::pin(link.as_fd(), &pins.link(index)).map_err(|source| BpfError::Link {
        action: "pin",
        interface: index,
        source,
    })?;
    links.insert(index, link);
    Ok(Attached::Yes)
}

fn vanished(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}
