//! Following control groups as they come and go.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tracing::warn;

use super::directory::{Directory, unless_closed};
use super::interest::{Interest, Place};
use super::tree::{Node, Tree, View, unreadable};
use super::{Cgroup, CgroupError, CgroupEvent, Hierarchy};
use crate::chain::in_full;
use crate::kernel::readiness::readable;
use crate::policy::Pattern;

/// A subscription to what happens to control groups.
///
/// What it reports is always a difference to what it said before: nothing older than a snapshot
/// follows it, and a cgroup that was replaced under its path is reported as gone and created.
#[derive(Debug)]
pub struct Cgroups {
    hierarchy: Hierarchy,
    interest: Interest,
    inotify: AsyncFd<Instance>,
    tree: Tree,
    queue: VecDeque<CgroupEvent>,
    /// [`CgroupEvent::WatchLimit`] was said since the last snapshot.
    limit_told: bool,
}

/// Every control group at or below one that `roots` match, at most `depth` components below the
/// mount (the roots themselves however deep), parents first: for callers that do not watch.
///
/// # Errors
/// [`CgroupError::Read`] when the kernel refuses a look at one.
pub fn list(
    hierarchy: &Hierarchy,
    roots: Vec<Pattern>,
    depth: usize,
) -> Result<Vec<Cgroup>, CgroupError> {
    let mut tree = Tree::default();
    let found = tree.plant(View {
        hierarchy,
        interest: &Interest::new(roots, depth),
        inotify: None,
    })?;
    Ok(cgroups(&tree, &found))
}

impl Cgroups {
    /// Prepares to follow what [`list`] would list; nothing is watched before the first
    /// [`Cgroups::snapshot`]. Wants a tokio runtime.
    ///
    /// # Errors
    /// [`CgroupError::Watch`] when the kernel has no inotify instance for us.
    pub fn open(
        hierarchy: &Hierarchy,
        roots: Vec<Pattern>,
        depth: usize,
    ) -> Result<Self, CgroupError> {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = Inotify::init(flags).map_err(|error| CgroupError::Watch(error.into()))?;
        Ok(Self {
            hierarchy: hierarchy.clone(),
            interest: Interest::new(roots, depth),
            inotify: readable(Instance(inotify)).map_err(CgroupError::Watch)?,
            tree: Tree::default(),
            queue: VecDeque::new(),
            limit_told: false,
        })
    }

    /// Follows the cgroups below the roots down to `depth` components below the mount, as of the
    /// next snapshot.
    pub fn set_depth(&mut self, depth: usize) {
        self.interest.set_depth(depth);
    }

    /// Every cgroup followed, parents first. Blocks, for some 20 us a cgroup.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when the kernel refuses a look at one: what was followed before still
    /// is.
    pub fn snapshot(&mut self) -> Result<Vec<Cgroup>, CgroupError> {
        let inotify = &self.inotify.get_ref().0;
        let mut tree = Tree::default();
        let planted = tree.plant(View {
            hierarchy: &self.hierarchy,
            interest: &self.interest,
            inotify: Some(inotify),
        });
        let found = match planted {
            Ok(found) => found,
            Err(error) => {
                tree.yield_to(&self.tree, inotify);
                return Err(error);
            }
        };
        self.tree.yield_to(&tree, inotify);
        self.tree = tree;
        self.queue.clear();
        self.limit_told = false;
        self.tell_of_limit();
        Ok(cgroups(&self.tree, &found))
    }

    /// Directories on the way to roots that were closed to this user: the roots below them were not listed.
    #[must_use]
    pub fn unseen(&self) -> &BTreeSet<PathBuf> {
        &self.tree.closed
    }

    /// The next event. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`CgroupError::Watch`] when the subscription is beyond use: open another one.
    pub async fn next(&mut self) -> Result<CgroupEvent, CgroupError> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            let mut ready = self.inotify.readable().await.map_err(CgroupError::Watch)?;
            let read = ready.try_io(|instance| Ok(instance.get_ref().0.read_events()?));
            match read {
                Ok(Ok(events)) => self.take_in(events)?,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(CgroupError::Watch(error)),
                Err(_would_block) => {}
            }
            if self.queue.is_empty() {
                // Whoever makes changes that say nothing keeps no others of this task from their turn.
                yield_now().await;
            }
        }
    }

    fn take_in(&mut self, events: Vec<InotifyEvent>) -> Result<(), CgroupError> {
        let lost = AddWatchFlags::IN_Q_OVERFLOW | AddWatchFlags::IN_UNMOUNT;
        if events.iter().any(|event| event.mask.intersects(lost)) {
            self.discard()?;
            self.queue.push_back(CgroupEvent::Lost);
            return Ok(());
        }
        let mut refreshed = BTreeSet::new();
        let closed = self.tree.closed.len();
        for event in events {
            let Some(id) = self.tree.watched(event.wd) else {
                continue;
            };
            let outcome = match event.name {
                Some(name) if event.mask.contains(AddWatchFlags::IN_ISDIR) => {
                    self.settle(id, &name)
                }
                // What is read now is no older than the last of these events.
                None if refreshed.insert(id) => self.refresh(id),
                Some(_) | None => Ok(()),
            };
            if let Err(error) = outcome {
                warn!(error = in_full(&error), "cgroup event lost");
                self.queue.push_back(CgroupEvent::Lost);
            }
        }
        if self.tree.closed.len() > closed {
            // What it hides is told of by whoever lists.
            self.queue.push_back(CgroupEvent::Lost);
        }
        Ok(())
    }

    /// Empties the kernel's queue, which predates the loss.
    fn discard(&self) -> Result<(), CgroupError> {
        loop {
            match self.inotify.get_ref().0.read_events() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(CgroupError::Watch(error.into())),
            }
        }
    }

    /// Compares the child `name` of `parent` as known with what there is. An event only says where
    /// to look: what it was about may have been removed or replaced since.
    fn settle(&mut self, parent: u64, name: &OsStr) -> Result<(), CgroupError> {
        let Some(node) = self.tree.get(parent) else {
            return Ok(());
        };
        let path = node.path.join(name);
        let Some(directory) = reopen(&self.hierarchy, parent, node)? else {
            // It went with its parent.
            return match node.parent.clone() {
                Some((above, own)) => self.settle(above, &own),
                None => Ok(()),
            };
        };
        let current = match Directory::open(directory.as_fd(), Path::new(name)) {
            Ok(current) => current,
            // What is known of it stays until it can be looked at.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if node.place == Place::Way && self.interest.place(&path, Place::Way).is_some() {
                    let above = node.path.clone();
                    self.tree.closed.insert(above);
                }
                return Ok(());
            }
            Err(error) => return Err(unreadable(&path)(error)),
        };
        let known = self.tree.child(parent, name);
        if known == current.as_ref().map(Directory::id) {
            return Ok(());
        }
        if let Some(id) = known {
            self.forget(id);
        }
        let Some(current) = current else {
            return Ok(());
        };
        let mut grown = Vec::new();
        let view = View {
            hierarchy: &self.hierarchy,
            interest: &self.interest,
            inotify: Some(&self.inotify.get_ref().0),
        };
        let adopted = self
            .tree
            .adopt(view, parent, name.to_owned(), &current, &mut grown);
        self.announce(&grown);
        self.tell_of_limit();
        adopted
    }

    fn announce(&mut self, grown: &[u64]) {
        for id in grown {
            let Some(node) = self.tree.get(*id) else {
                continue;
            };
            let Some(cgroup) = node.cgroup(*id) else {
                continue;
            };
            let populated = node.state.populated.then(|| CgroupEvent::Populated {
                id: *id,
                path: cgroup.path.clone(),
            });
            self.queue.push_back(CgroupEvent::Created(cgroup));
            self.queue.extend(populated);
        }
    }

    fn forget(&mut self, id: u64) {
        for (id, node) in self.tree.remove(&self.inotify.get_ref().0, id) {
            if let Some(Cgroup { id, path, role: _ }) = node.cgroup(id) {
                self.queue.push_back(CgroupEvent::Gone { id, path });
            }
        }
    }

    /// Reads what changed in `cgroup.events`.
    fn refresh(&mut self, id: u64) -> Result<(), CgroupError> {
        let Some(node) = self.tree.get(id) else {
            return Ok(());
        };
        let Some(directory) = reopen(&self.hierarchy, id, node)? else {
            return Ok(());
        };
        let state = directory.state().map_err(unreadable(&node.path))?;
        let path = node.path.clone();
        let Some(node) = self.tree.get_mut(id) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut node.state, state);
        // Changed, yet the same: it was empty for a moment.
        let again = before == state;
        if state.populated && (!before.populated || again) {
            self.queue.push_back(CgroupEvent::Populated { id, path });
        }
        Ok(())
    }

    fn tell_of_limit(&mut self) {
        if self.tree.refused && !self.limit_told {
            self.limit_told = true;
            self.queue.push_back(CgroupEvent::WatchLimit);
        }
    }
}

fn cgroups(tree: &Tree, found: &[u64]) -> Vec<Cgroup> {
    let known = found.iter().filter_map(|id| tree.get(*id)?.cgroup(*id));
    known.collect()
}

/// The directory of a known control group, unless it is gone, replaced, or below one that is closed.
fn reopen(hierarchy: &Hierarchy, id: u64, node: &Node) -> Result<Option<Directory>, CgroupError> {
    let opened = Directory::open(hierarchy.directory(), &node.path);
    let opened = unless_closed(opened, None).map_err(unreadable(&node.path))?;
    Ok(opened.filter(|directory| directory.id() == id))
}

/// What tokio needs to watch an inotify instance.
#[derive(Debug)]
struct Instance(Inotify);

impl AsFd for Instance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
