//! What the kernel says is attached to interfaces and cgroups.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use gate25_common::abi::CustomerId;

use crate::chain::in_full;
use crate::doctor::facts::{Covering, Look, Owner, Root, RootHook};
use crate::kernel::bpf::hooks::{self, Catalogue};
use crate::kernel::bpf::leftover::Pinned;
use crate::kernel::bpf::place::{CgroupHook, Place};
use crate::kernel::cgroups::{self, Hierarchy, Role};
use crate::kernel::filter::{Filter, Filters};
use crate::kernel::links::Detail;
use crate::policy::Pattern;

/// Looks at interfaces.
pub(super) struct Attached<'a> {
    pub(super) pinned: &'a Pinned,
    /// Owners by interface index; `None` without tables.
    pub(super) owners: &'a Look<Option<BTreeMap<u32, CustomerId>>>,
    pub(super) programs: &'a mut Catalogue,
}

impl Attached<'_> {
    /// Whether the tables name an owner of the interface.
    pub(super) fn owns(&self, index: u32) -> bool {
        matches!(self.owners, Ok(Some(owners)) if owners.contains_key(&index))
    }

    /// What is attached to an interface; `None` if it is gone.
    pub(super) fn to(&mut self, detail: &Detail) -> Look<Option<Covering>> {
        let index = detail.interface.index;
        let mut covering = match self.look(detail) {
            Ok(covering) => covering,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(in_full(&error)),
        };
        covering.owner = match self.owners {
            Ok(Some(owners)) if owners.contains_key(&index) => Owner::Known,
            Ok(Some(_)) => Owner::Missing,
            Ok(None) => Owner::NoTables,
            Err(why) => return Err(why.clone()),
        };
        if !self.has_ours_first(&covering) {
            covering.filters = filters(index)?;
        }
        Ok(Some(covering))
    }

    fn look(&mut self, detail: &Detail) -> io::Result<Covering> {
        let index = detail.interface.index;
        // A kernel without tcx has none.
        let arriving = hooks::arriving(index)?.unwrap_or_default();
        let rewrites_replies = self.pinned.places.contains(&Place::Replies(index));
        let leaving = if rewrites_replies {
            hooks::leaving(index)?.unwrap_or_default()
        } else {
            Vec::new()
        };
        Ok(Covering {
            arriving: self.programs.programs(arriving)?,
            leaving: self.programs.programs(leaving)?,
            rewrites_replies,
            xdp: self
                .programs
                .programs(detail.xdp.iter().copied().collect())?,
            filters: Vec::new(),
            owner: Owner::NoTables,
        })
    }

    /// Filters run behind all tcx programs, and cost a listing.
    fn has_ours_first(&self, covering: &Covering) -> bool {
        let first = covering.arriving.first();
        first.is_some_and(|it| self.pinned.programs.contains_key(&it.number))
    }
}

fn filters(index: u32) -> Look<Vec<Filter>> {
    let mut filters = Filters::open().map_err(|error| in_full(&error))?;
    match filters.list(index) {
        Ok(filters) => Ok(filters),
        Err(error) if error.is_gone() => Ok(Vec::new()),
        Err(error) => Err(in_full(&error)),
    }
}

/// The roots that there are, and what is attached to each.
pub(super) fn roots(patterns: &[Pattern], programs: &mut Catalogue) -> Look<Vec<Root>> {
    let Some(depth) = patterns.iter().map(Pattern::components).max() else {
        return Ok(Vec::new());
    };
    let hierarchy = match Hierarchy::find() {
        Ok(hierarchy) => hierarchy,
        Err(cgroups::CgroupError::NotMounted) => return Ok(Vec::new()),
        Err(error) => return Err(in_full(&error)),
    };
    let listed = cgroups::list(&hierarchy, patterns.to_vec(), depth);
    let mut roots = Vec::new();
    for cgroup in listed.map_err(|error| in_full(&error))? {
        if cgroup.role != Role::Root {
            continue;
        }
        let hooks = match File::open(hierarchy.mount().join(&cgroup.path)) {
            Ok(directory) => hooks_of(&directory, programs).map_err(|error| in_full(&error)),
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(in_full(&error)),
        };
        roots.push(Root {
            path: cgroup.path.to_string_lossy().into_owned(),
            hooks,
        });
    }
    Ok(roots)
}

fn hooks_of(directory: &File, programs: &mut Catalogue) -> io::Result<Vec<RootHook>> {
    let hooks = CgroupHook::ALL.into_iter();
    hooks
        .map(|hook| {
            let numbers = hooks::on_cgroup(directory.as_fd(), hook)?;
            Ok(RootHook {
                hook,
                program: hook.program(),
                programs: programs.programs(numbers)?,
            })
        })
        .collect()
}
