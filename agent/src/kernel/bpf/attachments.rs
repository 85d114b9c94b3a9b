//! Where the programs are attached, and what an earlier agent left there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use gate25_common::names;

use super::link::Direction;
use super::link::Object;
use super::pins::{self, Pins};
use super::place::{CgroupHook, Place};
use super::programs::{Program, Programs};
use super::{Attachment, BpfError, link};
use crate::dataplane::{Attached, Site};
use crate::kernel::filter::{FilterError, Filters, Placement};

/// Everything that is attached.
pub(super) struct Attachments {
    pins: Pins,
    links: BTreeMap<Place, Held>,
    filters: Option<ByFilter>,
}

/// A link that this process holds as well.
struct Held {
    link: OwnedFd,
    program: u32,
    pin: PathBuf,
}

/// Interfaces of a kernel without tcx.
struct ByFilter {
    filters: Filters,
    interfaces: BTreeSet<u32>,
}

impl Attachments {
    /// Takes stock of the pinned links. Their programs are left as they are.
    pub(super) fn open(
        programs: &Programs,
        pins: Pins,
        attachment: Attachment,
    ) -> Result<Self, BpfError> {
        let program = programs.get(names::PROGRAM_TC_INGRESS)?;
        let filters = match attachment {
            Attachment::Auto if link::tcx_supported(program.fd()) => None,
            Attachment::Auto | Attachment::Filter => Some(ByFilter {
                filters: Filters::open()?,
                interfaces: BTreeSet::new(),
            }),
        };
        let mut attachments = Self {
            pins,
            links: BTreeMap::new(),
            filters,
        };
        for path in attachments.pins.links()? {
            attachments.find(path)?;
        }
        Ok(attachments)
    }

    fn find(&mut self, pin: PathBuf) -> Result<(), BpfError> {
        let failed = |source| BpfError::Pin {
            path: pin.clone(),
            source,
        };
        let link = link::open(&pin).map_err(failed)?;
        if link::kind(link.as_fd()).map_err(failed)? != Some(Object::Link) {
            tracing::warn!(pin = %pin.display(), "a pin that is no link is left alone");
            return Ok(());
        }
        let info = match link::info(link.as_fd()) {
            Ok(info) => info,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(pin = %pin.display(), "a link that is not gate25's is left alone");
                return Ok(());
            }
            Err(source) => return Err(failed(source)),
        };
        let by_filter = self.filters.is_some();
        match info.place {
            Some(Place::Interface(_) | Place::Replies(_)) if by_filter => Ok(()),
            Some(place) if !self.links.contains_key(&place) => {
                let program = info.program;
                self.links.insert(place, Held { link, program, pin });
                Ok(())
            }
            // Gone with its interface or cgroup; or there is a newer one in the same place.
            Some(_) | None => Ok(pins::remove(&pin)?),
        }
    }

    /// Gives every link and every filter its program of `programs`, and every pin its name. Returns how
    /// many had another one.
    pub(super) fn adopt(&mut self, programs: &Programs) -> Result<usize, BpfError> {
        let links = self.adopt_links(programs)?;
        let Some(by_filter) = &mut self.filters else {
            return Ok(links);
        };
        let program = programs.get(names::PROGRAM_TC_INGRESS)?;
        Ok(links + by_filter.adopt(program)?)
    }

    fn adopt_links(&mut self, programs: &Programs) -> Result<usize, BpfError> {
        let mut changed = 0;
        for (place, held) in &mut self.links {
            let program = programs.get(place.program())?;
            if held.program != program.id() {
                match link::update(held.link.as_fd(), program.fd()) {
                    Ok(()) => {}
                    // What it was on has gone meanwhile, and nothing meets it any more.
                    Err(_) if link::info(held.link.as_fd()).is_ok_and(|it| it.place.is_none()) => {}
                    Err(source) => return Err(failed("replace", *place, source)),
                }
                held.program = program.id();
                changed += 1;
            }
            let pin = self.pins.link(*place);
            if held.pin != pin {
                tracing::info!(from = %held.pin.display(), %place, "attachment of another version taken over");
                pins::remove(&pin)?;
                link::pin(held.link.as_fd(), &pin)
                    .map_err(|source| failed("pin", *place, source))?;
                pins::remove(&held.pin)?;
                held.pin = pin;
            }
        }
        Ok(changed)
    }

    /// Pins again what is not pinned any more. Returns how many pins were missing.
    pub(super) fn repin(&self) -> Result<usize, BpfError> {
        let mut missing = 0;
        for (place, held) in &self.links {
            if !held.pin.exists() {
                link::pin(held.link.as_fd(), &held.pin)
                    .map_err(|source| failed("pin", *place, source))?;
                missing += 1;
            }
        }
        Ok(missing)
    }

    /// Looks which of these interfaces have our filter from an earlier start.
    pub(super) fn discover(&mut self, interfaces: &BTreeSet<u32>) -> Result<(), BpfError> {
        let Some(ByFilter {
            filters,
            interfaces: known,
        }) = &mut self.filters
        else {
            return Ok(());
        };
        for index in interfaces {
            match filters.placement(*index) {
                Ok(Placement::First { .. } | Placement::Behind { .. }) => {
                    known.insert(*index);
                }
                Ok(Placement::Absent) => {}
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) fn hook(&self) -> &'static str {
        match self.filters {
            None => "tcx",
            Some(_) => "tc",
        }
    }

    /// A root counts once all of its hooks have their links.
    pub(super) fn covered(&self) -> BTreeSet<Site> {
        let mut sites: BTreeSet<Site> = self
            .links
            .keys()
            .filter(|place| match place {
                Place::Interface(_) | Place::Replies(_) => true,
                Place::Cgroup(id, _) => CgroupHook::ALL
                    .iter()
                    .all(|hook| self.links.contains_key(&Place::Cgroup(*id, *hook))),
            })
            .map(|place| place.site())
            .collect();
        let filtered = self.filters.iter().flat_map(|it| &it.interfaces);
        sites.extend(filtered.map(|index| Site::Interface(*index)));
        sites
    }

    pub(super) fn attach_interface(
        &mut self,
        programs: &Programs,
        index: u32,
    ) -> Result<Attached, BpfError> {
        let program = programs.get(names::PROGRAM_TC_INGRESS)?;
        let Some(ByFilter {
            filters,
            interfaces,
        }) = &mut self.filters
        else {
            let place = Place::Interface(index);
            return match link::attach_interface(program.fd(), index, Direction::FromGuest) {
                Ok(link) => self.hold(place, link, program.id()),
                Err(error) if vanished(&error) => Ok(Attached::Vanished),
                Err(source) => Err(failed("attach", place, source)),
            };
        };
        match filters.attach(index, program.fd()) {
            Ok(()) => {
                interfaces.insert(index);
                Ok(Attached::Yes)
            }
            Err(error) if error.is_gone() => Ok(Attached::Vanished),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is a hook for replies.
    pub(super) fn has_replies(&self) -> bool {
        self.filters.is_none()
    }

    /// Without tcx it is never asked for ([`Self::has_replies`]).
    pub(super) fn attach_replies(
        &mut self,
        programs: &Programs,
        index: u32,
    ) -> Result<Attached, BpfError> {
        let program = programs.get(names::PROGRAM_TC_EGRESS)?;
        let place = Place::Replies(index);
        match link::attach_interface(program.fd(), index, Direction::ToGuest) {
            Ok(link) => self.hold(place, link, program.id()),
            Err(error) if vanished(&error) => Ok(Attached::Vanished),
            Err(source) => Err(failed("attach", place, source)),
        }
    }

    /// Adds the programs that the cgroup `id`, whose directory is `cgroup`, does not have. One hook
    /// that fails does not keep the others from theirs.
    pub(super) fn attach_root(
        &mut self,
        programs: &Programs,
        id: u64,
        cgroup: BorrowedFd<'_>,
    ) -> Result<Attached, BpfError> {
        let mut outcome = Ok(Attached::Yes);
        for hook in CgroupHook::ALL {
            let place = Place::Cgroup(id, hook);
            match self.attach_hook(programs, place, hook, cgroup) {
                Ok(Attached::Yes) => {}
                Ok(Attached::Vanished) => return Ok(Attached::Vanished),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    fn attach_hook(
        &mut self,
        programs: &Programs,
        place: Place,
        hook: CgroupHook,
        cgroup: BorrowedFd<'_>,
    ) -> Result<Attached, BpfError> {
        if let Some(held) = self.links.get(&place) {
            let info = link::info(held.link.as_fd());
            if info.is_ok_and(|info| info.place == Some(place)) {
                return Ok(Attached::Yes);
            }
        }
        let program = programs.get(hook.program())?;
        match link::attach_cgroup(program.fd(), cgroup, hook) {
            Ok(link) => self.hold(place, link, program.id()),
            // The directory is still open, the cgroup is not there any more.
            Err(error) if vanished(&error) => Ok(Attached::Vanished),
            Err(source) if source.raw_os_error() == Some(libc::EPERM) => {
                let hook = hook.program();
                Err(BpfError::Exclusive { hook, source })
            }
            Err(source) => Err(failed("attach", place, source)),
        }
    }

    /// The new link's pin takes the place of the old one's in one step: whoever dies in between
    /// leaves one of the two.
    fn hold(&mut self, place: Place, link: OwnedFd, program: u32) -> Result<Attached, BpfError> {
        let (pin, new) = (self.pins.link(place), self.pins.new_link(place));
        pins::remove(&new)?;
        link::pin(link.as_fd(), &new)
            .and_then(|()| std::fs::rename(&new, &pin))
            .map_err(|source| failed("pin", place, source))?;
        self.links.insert(place, Held { link, program, pin });
        Ok(Attached::Yes)
    }

    /// Whether sockets may still meet programs on the cgroup `id`. The kernel takes these off once
    /// the cgroup is removed and the last of its sockets is closed.
    pub(super) fn are_in_use(&self, id: u64) -> Result<bool, BpfError> {
        for (place, held) in &self.links {
            if place.site() == Site::Root(id) {
                let info = link::info(held.link.as_fd());
                let info = info.map_err(|source| failed("look for", *place, source))?;
                if info.place.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    pub(super) fn detach(&mut self, site: Site) -> Result<(), BpfError> {
        if let (Site::Interface(index), Some(by_filter)) = (site, &mut self.filters) {
            match by_filter.filters.detach(index) {
                Err(error) if !error.is_gone() => return Err(error.into()),
                _ => {}
            }
            by_filter.interfaces.remove(&index);
        }
        let places: Vec<Place> = self
            .links
            .keys()
            .filter(|place| place.site() == site)
            .copied()
            .collect();
        for place in places {
            if let Some(held) = self.links.get(&place) {
                pins::remove(&held.pin)?;
            }
            self.links.remove(&place);
        }
        Ok(())
    }

    /// Covered sites `among` these on which the kernel no longer has the program, or has another
    /// one before it.
    pub(super) fn displaced(
        &mut self,
        programs: &Programs,
        among: &BTreeSet<Site>,
    ) -> Result<BTreeSet<Site>, BpfError> {
        let tc = programs.get(names::PROGRAM_TC_INGRESS)?.id();
        let replies = programs.get(names::PROGRAM_TC_EGRESS)?.id();
        let mut displaced = BTreeSet::new();
        for (place, held) in &self.links {
            let site = place.site();
            if !among.contains(&site) {
                continue;
            }
            let in_place = match place {
                Place::Interface(index) => is_first(*index, Direction::FromGuest, tc)
                    .map_err(|source| failed("look for", *place, source))?,
                Place::Replies(index) => is_first(*index, Direction::ToGuest, replies)
                    .map_err(|source| failed("look for", *place, source))?,
                Place::Cgroup(..) => link::info(held.link.as_fd())
                    .map_err(|source| failed("look for", *place, source))?
                    .place
                    .is_some(),
            };
            if !in_place {
                displaced.insert(site);
            }
        }
        if let Some(by_filter) = &mut self.filters {
            by_filter.displaced(tc, among, &mut displaced)?;
        }
        Ok(displaced)
    }
}

impl ByFilter {
    /// Has every filter of ours run this program. Returns how many ran another one, as those of an earlier
    /// start do. One that cannot be changed keeps no other from it.
    fn adopt(&mut self, program: &Program) -> Result<usize, BpfError> {
        let mut outcome = Ok(0);
        for index in &self.interfaces {
            match replace(&mut self.filters, *index, program) {
                Ok(Replaced::Yes) => outcome = outcome.map(|changed| changed + 1),
                Ok(Replaced::Needless) => {}
                Err(error) if error.is_gone() => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        Ok(outcome?)
    }

    fn displaced(
        &mut self,
        program: u32,
        among: &BTreeSet<Site>,
        displaced: &mut BTreeSet<Site>,
    ) -> Result<(), BpfError> {
        for index in &self.interfaces {
            let site = Site::Interface(*index);
            if !among.contains(&site) {
                continue;
            }
            match self.filters.placement(*index) {
                Ok(Placement::First { program: found }) if found == program => {}
                Err(error) if error.is_gone() => {}
                Ok(_) => {
                    displaced.insert(site);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether a filter got another program.
enum Replaced {
    Yes,
    Needless,
}

fn replace(filters: &mut Filters, index: u32, program: &Program) -> Result<Replaced, FilterError> {
    match filters.placement(index)? {
        Placement::First { program: found } if found == program.id() => Ok(Replaced::Needless),
        Placement::First { .. } | Placement::Behind { .. } | Placement::Absent => {
            filters.attach(index, program.fd())?;
            Ok(Replaced::Yes)
        }
    }
}

fn is_first(index: u32, direction: Direction, program: u32) -> io::Result<bool> {
    match link::programs(index, direction) {
        Ok(programs) => Ok(programs.first() == Some(&program)),
        // Gone with its interface: the event of that is on its way.
        Err(error) if vanished(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

fn failed(action: &'static str, place: Place, source: io::Error) -> BpfError {
    BpfError::Link {
        action,
        place: place.to_string(),
        source,
    }
}

fn vanished(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}
