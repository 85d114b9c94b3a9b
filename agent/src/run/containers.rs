//! Follows control groups, and finds the network namespaces that their processes are in.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::timing::{PAUSE, until};
use crate::chain::in_full;
use crate::kernel::cgroups::{
    Attribution, Cgroup, CgroupError, CgroupEvent, Cgroups, Hierarchy, Layout, self_test,
};
use crate::kernel::links::Interface;
use crate::kernel::namespaces::{self, Namespace, NamespaceError};
use crate::policy::Pattern;
use crate::policy::ownership::cgroup_depth;
use crate::source::Accepted;
use crate::workloads::{Inside, Unread};

/// How long processes are given to get where they belong before they are looked for.
const SETTLE: Duration = Duration::from_millis(20);
/// A look is followed by a rest this many times as long, so that guests that start and stop
/// containers cannot keep the agent busy.
const REST: u32 = 5;
/// Looks in a row for a veth whose other end nobody was found at.
const LOOKS: u32 = 5;

pub(super) struct Containers {
    host: String,
    roots: Vec<Pattern>,
    hierarchy: Option<Hierarchy>,
    cgroups: Option<Cgroups>,
    depth: usize,
    /// What the kernel says of sockets cannot be relied on, for as long as it runs.
    misattributed: Option<String>,
    /// Why that is not known.
    untested: Option<String>,
    /// Control groups are not followed.
    unfollowed: Option<String>,
    /// Directories above roots that were closed to this user: the roots below them are not listed.
    unseen: BTreeSet<PathBuf>,
    reopen_at: Option<Instant>,
    look_at: Option<Instant>,
    rest_until: Option<Instant>,
    looks: u32,
    look: Option<JoinHandle<(Result<namespaces::Found, NamespaceError>, Duration)>>,
}

/// Something that the loop should know of.
pub(super) enum Happened {
    Cgroup(CgroupEvent),
    /// The subscription is beyond use, for this reason.
    Broken(String),
    /// What failed to be followed may be tried again.
    TimeToReopen,
    TimeToLook,
    Looked(Found),
}

/// Where processes of control groups were found.
pub(super) struct Found {
    pub(super) inside: Inside,
    /// Of whom not everything could be read.
    pub(super) unread: Unread,
    pub(super) complaint: Option<String>,
    /// For as long as these are held, no other namespace gets the number of one.
    _held: Vec<Namespace>,
}

impl Found {
    fn nothing(error: &dyn Error) -> Self {
        Self {
            inside: Inside::new(),
            _held: Vec::new(),
            unread: Unread::All,
            complaint: Some(in_full(error)),
        }
    }

    /// Whether the interface leads to a namespace that none of them is in.
    pub(super) fn lacks(&self, interface: &Interface) -> bool {
        interface
            .other_end()
            .is_some_and(|netns| !self.inside.contains_key(&netns))
    }
}

impl Containers {
    /// Finds the hierarchy that `roots` are in, and says how it is.
    pub(super) fn open(roots: &[Pattern], host: &str) -> Self {
        let mut containers = Self {
            host: host.to_owned(),
            roots: roots.to_vec(),
            hierarchy: None,
            cgroups: None,
            depth: 0,
            misattributed: None,
            untested: None,
            unfollowed: None,
            unseen: BTreeSet::new(),
            reopen_at: None,
            look_at: None,
            rest_until: None,
            looks: 0,
            look: None,
        };
        if roots.is_empty() {
            return containers;
        }
        match Hierarchy::find() {
            Ok(hierarchy) => {
                let layout = match hierarchy.layout() {
                    Layout::Unified => "unified",
                    Layout::Hybrid => "hybrid",
                };
                info!(mount = %hierarchy.mount().display(), layout, "cgroup v2");
                containers.check_attribution(&hierarchy);
                containers.hierarchy = Some(hierarchy);
            }
            Err(error) => {
                let why = in_full(&error);
                warn!(why, "containers are not judged");
                containers.unfollowed = Some(format!("containers are not judged: {why}"));
            }
        }
        containers
    }

    fn check_attribution(&mut self, hierarchy: &Hierarchy) {
        match self_test(hierarchy) {
            Ok(Attribution::Right) => {}
            Ok(Attribution::Inconclusive) => {
                debug!("whether sockets are counted for their cgroup could not be tested");
            }
            Ok(Attribution::Wrong { own, found }) => {
                let why = format!(
                    "sockets are counted for cgroup {found} instead of {own}: stop using the version 1 controllers net_cls and net_prio, containers are not judged"
                );
                warn!(why, "cgroup v1");
                self.misattributed = Some(why);
            }
            Err(error) => {
                let why = in_full(&error);
                self.untested = Some(format!(
                    "whether sockets are counted for their cgroup could not be tested: {why}"
                ));
            }
        }
    }

    pub(super) fn mount(&self) -> Option<PathBuf> {
        let hierarchy = self.hierarchy.as_ref()?;
        Some(hierarchy.mount().to_owned())
    }

    pub(super) fn hierarchy(&self) -> Option<&Hierarchy> {
        self.hierarchy.as_ref()
    }

    /// Directories whose roots were not seen when they were last listed.
    pub(super) fn unseen(&self) -> &BTreeSet<PathBuf> {
        &self.unseen
    }

    /// What may let containers past the policy.
    pub(super) fn problem(&self) -> Option<String> {
        let unseen = self.unseen.first().map(|path| unseen_below(path));
        let all = [&self.unfollowed, &unseen, &self.misattributed];
        let all: Vec<&str> = all.into_iter().flatten().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    pub(super) fn complaint(&self) -> Option<String> {
        self.untested.clone()
    }

    /// How deep control groups must be followed for this policy: everything that a pattern may
    /// match, and what is directly below the roots.
    pub(super) fn depth_for(&self, policy: Option<&Accepted>) -> usize {
        let roots = self.roots.iter().map(Pattern::components).max();
        let claims = policy.map_or(0, |accepted| cgroup_depth(&accepted.policy, &self.host));
        claims.max(roots.unwrap_or(0) + 1)
    }

    pub(super) fn follows_another_depth_than(&self, depth: usize) -> bool {
        self.cgroups.is_some() && self.depth != depth
    }

    /// Every control group at and below the roots, followed from now on; `None` where it cannot be
    /// known, for want of a hierarchy.
    pub(super) fn list(&mut self, depth: usize) -> Result<Option<Vec<Cgroup>>, String> {
        if self.roots.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let Some(hierarchy) = &self.hierarchy else {
            return Ok(None);
        };
        let cgroups = match &mut self.cgroups {
            Some(cgroups) => cgroups,
            empty @ None => {
                let opened = Cgroups::open(hierarchy, self.roots.clone(), depth);
                empty.insert(opened.map_err(|error| in_full(&error))?)
            }
        };
        cgroups.set_depth(depth);
        self.depth = depth;
        let listed = cgroups.snapshot().map_err(|error| in_full(&error))?;
        self.unfollowed = None;
        for path in cgroups.unseen().difference(&self.unseen) {
            let why = unseen_below(path);
            warn!(why, "cgroups are not listed");
        }
        self.unseen.clone_from(cgroups.unseen());
        Ok(Some(listed))
    }

    /// Says why control groups are not followed, which is tried again.
    pub(super) fn broken(&mut self, why: String) {
        warn!(why, "cgroups are not followed");
        self.unfollowed = Some(format!(
            "containers are not followed, and new ones may not be judged: {why}"
        ));
        self.reopen_at = Some(Instant::now() + PAUSE);
    }

    /// Gives up a subscription that is beyond use.
    pub(super) fn reopen(&mut self) {
        self.cgroups = None;
        self.reopen_at = None;
    }

    /// Whether an interface may be a container's.
    pub(super) fn concerns(&self, interface: &Interface) -> bool {
        self.hierarchy.is_some() && interface.other_end().is_some()
    }

    /// Looks for processes once they had time to get where they belong.
    pub(super) fn look_soon(&mut self) {
        self.looks = 0;
        self.look_after(SETTLE);
    }

    /// Looks again, ever later, for those that were not found.
    pub(super) fn look_again_if(&mut self, unknown: bool) {
        if unknown && self.looks < LOOKS {
            let pause = SETTLE * 4u32.pow(self.looks);
            self.looks += 1;
            self.look_after(pause);
        }
    }

    fn look_after(&mut self, pause: Duration) {
        let soon = Instant::now() + pause;
        let earliest = self.rest_until.map_or(soon, |rested| rested.max(soon));
        if self.look_at.is_none_or(|planned| earliest < planned) {
            self.look_at = Some(earliest);
        }
    }

    /// Begins to look for the processes of `cgroups`.
    pub(super) fn look(&mut self, cgroups: Vec<Cgroup>) {
        let Some(hierarchy) = self.hierarchy.clone() else {
            return;
        };
        self.look = Some(tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let found = namespaces::of_cgroups(&hierarchy, &cgroups);
            (found, started.elapsed())
        }));
    }

    /// Looks for the processes of `cgroups` and waits for the outcome; `None` without containers.
    pub(super) async fn look_now(&mut self, cgroups: Vec<Cgroup>) -> Option<Found> {
        self.look(cgroups);
        let look = self.look.take()?;
        Some(match look.await {
            Ok((found, _)) => summary(found),
            Err(error) => Found::nothing(&error),
        })
    }

    /// What happened next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Happened {
        let may_look = self.look_at.filter(|_| self.look.is_none());
        tokio::select! {
            event = event(self.cgroups.as_mut()) => match event {
                Ok(event) => Happened::Cgroup(event),
                Err(error) => Happened::Broken(in_full(&error)),
            },
            () = until(self.reopen_at) => {
                self.reopen_at = None;
                Happened::TimeToReopen
            }
            () = until(may_look) => {
                self.look_at = None;
                Happened::TimeToLook
            }
            looked = looked(&mut self.look) => {
                self.look = None;
                match looked {
                    Ok((found, took)) => {
                        self.rest_until = Some(Instant::now() + took * REST);
                        Happened::Looked(summary(found))
                    }
                    Err(error) => Happened::Looked(Found::nothing(&error)),
                }
            }
        }
    }
}

fn unseen_below(path: &Path) -> String {
    format!(
        "containers below cgroup {} are not seen, and new ones not judged: it is closed to the agent's user",
        path.display()
    )
}

async fn event(cgroups: Option<&mut Cgroups>) -> Result<CgroupEvent, CgroupError> {
    match cgroups {
        Some(cgroups) => cgroups.next().await,
        None => std::future::pending().await,
    }
}

async fn looked<T>(look: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match look {
        Some(look) => look.await,
        None => std::future::pending().await,
    }
}

fn summary(found: Result<namespaces::Found, NamespaceError>) -> Found {
    let found = match found {
        Ok(found) => found,
        Err(error) => return Found::nothing(&error),
    };
    let complaint = match (found.failed.first_key_value(), found.cut.first()) {
        (Some((_, error)), _) => Some(in_full(error)),
        (None, Some(id)) => Some(format!(
            "cgroup {id} holds more processes or cgroups than are looked at: a veth of its may be taken for nobody's"
        )),
        (None, None) => None,
    };
    let others = found.namespaces.iter().filter(|namespace| !namespace.own);
    let inside = others
        .filter_map(|namespace| Some((namespace.nsid?, namespace.cgroups.clone())))
        .collect();
    Found {
        inside,
        _held: found.namespaces,
        unread: Unread::These(found.failed.into_keys().chain(found.cut).collect()),
        complaint,
    }
}
