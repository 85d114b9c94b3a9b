//! The control groups known, with their watches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, Inotify, WatchDescriptor};

use super::directory::{Directory, State, unless_closed};
use super::interest::{Interest, Place};
use super::{Cgroup, CgroupError, Hierarchy};

/// What to look at, and how to be told of changes.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) hierarchy: &'a Hierarchy,
    pub(super) interest: &'a Interest,
    /// None for a look without watching.
    pub(super) inotify: Option<&'a Inotify>,
}

/// Control groups by id.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    watched: HashMap<WatchDescriptor, u64>,
    /// The kernel refused a watch.
    pub(super) refused: bool,
    /// On the way to roots, and closed to this user: which there are below is not known.
    pub(super) closed: BTreeSet<PathBuf>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) place: Place,
    pub(super) state: State,
    /// None for the mount's own.
    pub(super) parent: Option<(u64, OsString)>,
    children: BTreeMap<OsString, u64>,
    watches: Vec<WatchDescriptor>,
}

impl Tree {
    /// Everything that matters, from the mount down, with the ids in the order found.
    pub(super) fn plant(&mut self, view: View<'_>) -> Result<Vec<u64>, CgroupError> {
        let mut grown = Vec::new();
        let opened = Directory::open(view.hierarchy.directory(), Path::new(""));
        if let Some(directory) = opened.map_err(unreadable(Path::new("")))? {
            let node = Node::new(PathBuf::new(), Place::Way, None);
            self.grow(view, &directory, node, &mut grown)?;
        }
        Ok(grown)
    }

    pub(super) fn get(&self, id: u64) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    /// The control group that a watch is on.
    pub(super) fn watched(&self, watch: WatchDescriptor) -> Option<u64> {
        self.watched.get(&watch).copied()
    }

    /// The child of `parent` known by this name.
    pub(super) fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// Takes in the child `directory` of `parent`, and what is below it, if they matter.
    pub(super) fn adopt(
        &mut self,
        view: View<'_>,
        parent: u64,
        name: OsString,
        directory: &Directory,
        grown: &mut Vec<u64>,
    ) -> Result<(), CgroupError> {
        let Some(above) = self.nodes.get_mut(&parent) else {
            return Ok(());
        };
        let path = above.path.join(&name);
        let Some(place) = view.interest.place(&path, above.place) else {
            return Ok(());
        };
        above.children.insert(name.clone(), directory.id());
        let node = Node::new(path, place, Some((parent, name)));
        self.grow(view, directory, node, grown)
    }

    /// Watches before it looks: what comes in between is seen twice rather than never. Recursion
    /// is as deep as the interest.
    fn grow(
        &mut self,
        view: View<'_>,
        directory: &Directory,
        mut node: Node,
        grown: &mut Vec<u64>,
    ) -> Result<(), CgroupError> {
        let id = directory.id();
        let path = node.path.clone();
        let place = node.place;
        let follows = view.interest.follows(&path, place);
        if let Place::Member(_) = place {
            self.watch(view, directory, Watch::State, &mut node)?;
            node.state = directory.state().map_err(unreadable(&path))?;
        }
        if follows {
            self.watch(view, directory, Watch::Children, &mut node)?;
        }
        for watch in &node.watches {
            self.watched.insert(*watch, id);
        }
        self.nodes.insert(id, node);
        grown.push(id);
        if !follows {
            return Ok(());
        }
        let children = self.unless_closed(&path, place, directory.children(), Vec::new());
        for name in children.map_err(unreadable(&path))? {
            let below = path.join(&name);
            // Before it is opened: most of what a host has does not matter.
            if view.interest.place(&below, place).is_none() {
                continue;
            }
            let opened = Directory::open(directory.as_fd(), Path::new(&name));
            let opened = self.unless_closed(&path, place, opened, None);
            if let Some(child) = opened.map_err(unreadable(&below))? {
                self.adopt(view, id, name, &child, grown)?;
            }
        }
        Ok(())
    }

    /// What the owner of a control group at or below a root has closed is no reason to see nothing of the others.
    /// Above, whole roots may be hidden.
    fn unless_closed<T>(
        &mut self,
        path: &Path,
        place: Place,
        result: io::Result<T>,
        nothing: T,
    ) -> io::Result<T> {
        let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        if place == Place::Way && result.as_ref().is_err_and(is_closed) {
            self.closed.insert(path.to_owned());
        }
        unless_closed(result, nothing)
    }

    fn watch(
        &mut self,
        view: View<'_>,
        directory: &Directory,
        what: Watch,
        node: &mut Node,
    ) -> Result<(), CgroupError> {
        let Some(inotify) = view.inotify else {
            return Ok(());
        };
        let (path, flags) = match what {
            Watch::Children => (
                directory.link(),
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR,
            ),
            // On the file itself: an event for its directory's watch is only made while something
            // else happens to hold the file's inode.
            Watch::State => (
                directory.link().join("cgroup.events"),
                AddWatchFlags::IN_MODIFY,
            ),
        };
        match inotify.add_watch(&path, flags) {
            Ok(watch) => node.watches.push(watch),
            Err(Errno::ENOSPC) => self.refused = true,
            // Gone, or closed to this user.
            Err(Errno::ENOENT | Errno::ENODEV | Errno::EACCES) => {}
            Err(error) => return Err(unreadable(&node.path)(error.into())),
        }
        Ok(())
    }

    /// Forgets a control group and all below it; returns what is forgotten, the deepest first.
    pub(super) fn remove(&mut self, inotify: &Inotify, id: u64) -> Vec<(u64, Node)> {
        let mut order = vec![id];
        let mut at = 0;
        while let Some(id) = order.get(at) {
            at += 1;
            if let Some(node) = self.nodes.get(id) {
                order.extend(node.children.values());
            }
        }
        let gone: Vec<_> = order
            .into_iter()
            .rev()
            .filter_map(|id| Some((id, self.nodes.remove(&id)?)))
            .collect();
        for watch in gone.iter().flat_map(|(_, node)| &node.watches) {
            self.watched.remove(watch);
            unwatch(inotify, *watch);
        }
        let above = gone.last().and_then(|(_, node)| node.parent.as_ref());
        if let Some((parent, name)) = above
            && let Some(parent) = self.nodes.get_mut(parent)
        {
            parent.children.remove(name);
        }
        gone
    }

    /// Drops the watches that `other` does not have.
    pub(super) fn yield_to(&self, other: &Self, inotify: &Inotify) {
        for watch in self.watched.keys() {
            if !other.watched.contains_key(watch) {
                unwatch(inotify, *watch);
            }
        }
    }
}

impl Node {
    fn new(path: PathBuf, place: Place, parent: Option<(u64, OsString)>) -> Self {
        Self {
            path,
            place,
            state: State::default(),
            parent,
            children: BTreeMap::new(),
            watches: Vec::new(),
        }
    }

    /// As others see it; none if it only leads to a root.
    pub(super) fn cgroup(&self, id: u64) -> Option<Cgroup> {
        match self.place {
            Place::Way => None,
            Place::Member(role) => Some(Cgroup {
                id,
                path: self.path.clone(),
                role,
            }),
        }
    }
}

#[derive(Clone, Copy)]
enum Watch {
    Children,
    State,
}

/// A removed cgroup's inodes live for as long as they are watched: the kernel never lets go by
/// itself.
fn unwatch(inotify: &Inotify, watch: WatchDescriptor) {
    // It fails only for a watch that is gone already.
    let _gone = inotify.rm_watch(watch);
}

pub(super) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Read { path, source }
}
