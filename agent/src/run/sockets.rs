//! Cuts connections of containers that the policy no longer allows. The kernel drops their packets
//! in any case; destroying their sockets tells the programs that hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gate25_common::abi::CustomerId;
use gate25_common::address::Family;
use gate25_common::decide::{HostMode, Route, Subject, Verdict, decide};
use gate25_common::packet::Form;
use jiff::Timestamp;
use tokio::task::{JoinError, JoinHandle};
use tracing::{info, warn};

use super::timing::until;
use crate::chain::in_full;
use crate::clock;
use crate::dataplane::{Dataplane, MapImage};
use crate::explain::tables::TablesAt;
use crate::kernel::cgroups::{Cgroup, Hierarchy};
use crate::kernel::namespaces;
use crate::kernel::sockets::{self, Destroyed, SocketsError, TcpSocket, Within};
use crate::policy::Policy;
use crate::reconcile::Reconciler;

/// How long after an exemption's end its connections are looked for.
const GRACE: Duration = Duration::from_millis(5);

/// What is so without the privileges to enter containers' network namespaces.
const NO_ENTRY: &str = "connections of containers in networks of their own hang instead of being reset after \
    a revocation: CAP_SYS_ADMIN and CAP_SYS_PTRACE are not both granted";

pub(super) struct Sweeper {
    ports: Vec<u16>,
    mode: HostMode,
    now: Option<Instant>,
    /// When the next exemption ends.
    expiry: Option<Instant>,
    task: Option<JoinHandle<Result<Swept, SweepError>>>,
}

/// What a look came to.
#[derive(Default)]
struct Swept {
    destroyed: usize,
    /// Control groups with processes in networks that the agent may not enter.
    closed: BTreeSet<u64>,
}

/// What the loop should do.
pub(super) enum Next {
    /// Connections should be looked for.
    Due,
    /// A look is over: this is wrong.
    Done(Option<String>),
}

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("connections of containers that are no longer allowed hang instead of ending")]
    Sockets(#[from] SocketsError),
    #[error("containers' network namespaces were not found")]
    Namespaces(#[from] namespaces::NamespaceError),
    #[error("the clock was not read")]
    Clock(#[from] clock::ClockError),
}

impl Sweeper {
    pub(super) fn new(ports: Vec<u16>, mode: HostMode) -> Self {
        Self {
            ports,
            mode,
            now: None,
            expiry: None,
            task: None,
        }
    }

    /// Something may have been revoked.
    pub(super) fn now(&mut self) {
        self.now = Some(Instant::now());
    }

    /// Takes note of when the exemptions of `policy` end.
    pub(super) fn schedule(&mut self, policy: &Policy, now: Timestamp) {
        let ends = policy
            .exemptions
            .values()
            .map(|exemption| exemption.expires);
        let next = ends.filter(|end| *end > now).min();
        self.expiry = next.and_then(|end| {
            let wait = Duration::try_from(end.duration_since(now)).ok()?;
            Instant::now().checked_add(wait + GRACE)
        });
    }

    /// What is next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Next {
        match &mut self.task {
            None => {
                until([self.now, self.expiry].into_iter().flatten().min()).await;
                Next::Due
            }
            Some(task) => {
                let result = task.await;
                self.task = None;
                Next::Done(complaint(result))
            }
        }
    }

    /// Looks for none this time.
    pub(super) fn skip<D: Dataplane>(&mut self, reconciler: &Reconciler<D>) {
        self.now = None;
        self.expiry = None;
        if let Some(running) = reconciler.policy() {
            self.schedule(&running.policy, Timestamp::now());
        }
    }

    /// Begins to look for connections that the tables do not allow.
    pub(super) fn sweep<D: Dataplane>(
        &mut self,
        reconciler: &Reconciler<D>,
        hierarchy: Option<&Hierarchy>,
    ) {
        self.skip(reconciler);
        let inventory = reconciler.inventory();
        let (Some(hierarchy), false) = (hierarchy, inventory.cgroups.is_empty()) else {
            return;
        };
        let sweep = Sweep {
            hierarchy: hierarchy.clone(),
            owners: Owners::new(&inventory.cgroups, &reconciler.installed().cgroups),
            cgroups: inventory.cgroups.values().cloned().collect(),
            image: reconciler.installed().clone(),
            ports: self.ports.clone(),
            mode: self.mode,
        };
        self.task = Some(tokio::task::spawn_blocking(move || sweep.run()));
    }
}

/// What is wrong after a look.
fn complaint(result: Result<Result<Swept, SweepError>, JoinError>) -> Option<String> {
    match result {
        Ok(Ok(Swept { destroyed, closed })) => {
            if destroyed != 0 {
                info!(destroyed, "connections ended that are no longer allowed");
            }
            // Not an error: whoever runs the agent has decided so.
            (!closed.is_empty()).then(|| NO_ENTRY.to_owned())
        }
        Ok(Err(error)) => Some(complain(&error)),
        Err(error) => Some(complain(&error)),
    }
}

fn complain(error: &(dyn Error + 'static)) -> String {
    let error = in_full(error);
    warn!(error, "connections were not looked for");
    error
}

/// Everything that a look needs, on a thread of its own.
struct Sweep {
    hierarchy: Hierarchy,
    cgroups: Vec<Cgroup>,
    owners: Owners,
    image: MapImage,
    ports: Vec<u16>,
    mode: HostMode,
}

impl Sweep {
    fn run(&self) -> Result<Swept, SweepError> {
        let found = namespaces::of_cgroups(&self.hierarchy, &self.cgroups)?;
        let mut swept = Swept::default();
        for namespace in &found.namespaces {
            if namespace.own {
                swept.destroyed += self.sweep(Within::Own)?;
                continue;
            }
            let swept_there = match namespace.open() {
                Ok(Some(opened)) => self.sweep(Within::Other(opened.as_fd())),
                Ok(None) => Ok(0),
                Err(error) if error.is_no_entry() => {
                    swept.closed.extend(&namespace.cgroups);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match swept_there {
                Ok(destroyed) => swept.destroyed += destroyed,
                Err(SweepError::Sockets(error)) if error.is_no_entry() => {
                    swept.closed.extend(&namespace.cgroups);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(swept)
    }

    /// Ends the connections of one namespace that the tables refuse, and counts them.
    fn sweep(&self, namespace: Within<'_>) -> Result<usize, SweepError> {
        let mut destroyed = 0;
        for socket in sockets::to_ports(namespace, &self.ports)? {
            if !self.refuses(&socket)? {
                continue;
            }
            match sockets::destroy(namespace, &socket)? {
                Destroyed::Yes => destroyed += 1,
                Destroyed::AlreadyGone => {}
            }
        }
        Ok(destroyed)
    }

    fn refuses(&self, socket: &TcpSocket) -> Result<bool, SweepError> {
        // A group that is gone may have belonged to anybody: its sockets are left to the programs.
        let path = match self.hierarchy.path_of(socket.cgroup) {
            Ok(Some(path)) => path,
            Ok(None) => return Ok(false),
            Err(error) => {
                warn!(error = in_full(&error), "socket of an unknown cgroup");
                return Ok(false);
            }
        };
        let Some(owner) = self.owners.of(&path) else {
            return Ok(false);
        };
        let now = u64::try_from(clock::boot()?).unwrap_or(0);
        let tables = TablesAt::new(&self.image, owner, now);
        let subject = Subject::Guarded {
            destination: socket.destination,
            port: socket.port.to_be_bytes(),
            route: Route::Direct,
            family: if socket.destination.is_v4() {
                Family::V4
            } else {
                Family::V6
            },
            form: Form::Plain,
        };
        Ok(match decide(&tables, self.mode, &subject).verdict {
            Verdict::Allow | Verdict::Observe | Verdict::Throttle => false,
            Verdict::Reject | Verdict::Drop | Verdict::Redirect | Verdict::Notice => true,
        })
    }
}

/// Whose a control group is, by its path, as the programs find it.
struct Owners(BTreeMap<PathBuf, Option<CustomerId>>);

impl Owners {
    fn new(cgroups: &BTreeMap<u64, Cgroup>, claims: &BTreeMap<u64, CustomerId>) -> Self {
        Self(
            cgroups
                .values()
                .map(|cgroup| (cgroup.path.clone(), claims.get(&cgroup.id).copied()))
                .collect(),
        )
    }

    /// `None` for a group that no root is above.
    fn of(&self, path: &Path) -> Option<CustomerId> {
        let mut known = path
            .ancestors()
            .filter_map(|path| self.0.get(path))
            .peekable();
        known.peek()?;
        Some(
            known
                .find_map(|owner| *owner)
                .unwrap_or(CustomerId::UNASSIGNED),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cgroups::Role;

    #[test]
    fn owner_is_that_of_the_deepest_claim_above() {
        let owners = owners();
        for (path, owner) in [
            ("lxc/1", Some(number("a"))),
            ("lxc/1/x/y", Some(number("a"))),
            ("lxc/1/ns", Some(number("b"))),
            ("lxc/1/ns/init", Some(number("b"))),
        ] {
            assert_eq!(owners.of(Path::new(path)), owner, "{path}");
        }
    }

    #[test]
    fn owner_of_what_nobody_claims_below_a_root_is_the_built_in_customer() {
        let unassigned = Some(CustomerId::UNASSIGNED);
        for path in ["lxc", "lxc/2", "lxc/2/x", "lxc/1-x"] {
            assert_eq!(owners().of(Path::new(path)), unassigned, "{path}");
        }
    }

    #[test]
    fn owner_of_a_claim_in_conflict_is_the_built_in_customer_whatever_is_above() {
        let owner = owners().of(Path::new("lxc/1/torn/x"));
        assert_eq!(owner, Some(CustomerId::UNASSIGNED));
    }

    #[test]
    fn owner_of_what_no_root_is_above_is_none() {
        for path in ["", "system.slice/cron.service", "lxc2/1", "x/lxc/1"] {
            assert_eq!(owners().of(Path::new(path)), None, "{path}");
        }
    }

    fn owners() -> Owners {
        let cgroup = |id, path: &str, role| {
            let path = PathBuf::from(path);
            (id, Cgroup { id, path, role })
        };
        let cgroups = BTreeMap::from([
            cgroup(1, "lxc", Role::Root),
            cgroup(2, "lxc/1", Role::Below),
            cgroup(3, "lxc/1/ns", Role::Below),
            cgroup(4, "lxc/1/torn", Role::Below),
            cgroup(5, "lxc/2", Role::Below),
        ]);
        let claims = BTreeMap::from([
            (2, number("a")),
            (3, number("b")),
            (4, CustomerId::UNASSIGNED),
        ]);
        Owners::new(&cgroups, &claims)
    }

    fn number(id: &str) -> CustomerId {
        CustomerId::from_name(id)
    }
}
