//! The network namespaces that processes of control groups are in.
//!
//! `/proc/PID/ns/net` is for those who may trace the process. Everybody may open `/proc/PID/net/dev`,
//! which holds the namespace as well and whose inode tells namespaces apart, and may ask for a
//! namespace's number by the number of a process. So finding namespaces takes no privileges; only
//! entering them does.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::signal::kill;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;
use thiserror::Error;

use super::cgroups::{Cgroup, Directory, Hierarchy};
use super::netlink::{NetlinkError, Request, Requests, attributes, number};

/// Cgroups looked at below one given, itself included.
const MAX_CGROUPS: usize = 1024;
/// Levels of cgroups looked at below one given: whatever their names, the path is short enough.
const MAX_LEVELS: usize = 12;
/// Threads looked at below one given.
const MAX_THREADS: usize = 4096;

const RTM_GETNSID: u16 = 90;
/// Bytes of `rtgenmsg`, padded.
const RTGENMSG: usize = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;

/// What tells the namespace of a process, below its directory of procfs.
const DEVICES: &str = "net/dev";

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    /// What it is told by from others that live: an inode number of procfs.
    pub inode: u64,
    /// This namespace's number for it; none before something gave it one, as a listing of a veth
    /// does whose peer is in it.
    pub nsid: Option<i32>,
    /// The ids of the given cgroups that had a process in it: of nested ones the deepest.
    pub cgroups: BTreeSet<u64>,
    /// Whether it is the calling thread's own.
    pub own: bool,
    /// The thread by which it was found.
    thread: Thread,
    /// Has it live, and no other get its number, for as long as this is open.
    _held: OwnedFd,
}

impl Namespace {
    /// The namespace to enter; none if the thread by which it was found has ended. Needs
    /// `CAP_SYS_PTRACE`, as entering needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// [`NamespaceError::Process`] without the privilege.
    pub fn open(&self) -> Result<Option<OwnedFd>, NamespaceError> {
        let opened = self.thread.open("ns/net");
        // A process that has just ended denies access to its namespaces; only this says that it is
        // gone.
        if self.thread.cgroup().is_err() {
            return Ok(None);
        }
        opened.map(Some).map_err(|source| NamespaceError::Process {
            pid: self.thread.number,
            source: source.into(),
        })
    }
}

/// What [`of_cgroups`] found.
#[derive(Debug, Default)]
pub struct Found {
    /// The namespaces, by inode number.
    pub namespaces: Vec<Namespace>,
    /// The ids of the given cgroups with more below them than is looked at: 1024 cgroups in 12
    /// levels, 4096 threads. What is nearest to the given one comes first.
    pub cut: BTreeSet<u64>,
    /// The ids of the given cgroups of which something could not be read, with what came first.
    pub failed: BTreeMap<u64, NamespaceError>,
}

/// Why namespaces could not be found.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// A cgroup could not be looked at.
    #[error("cannot read cgroup {}", .path.display())]
    Cgroup {
        /// Its path below the mount.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup's directory is closed to this user.
    #[error("cgroup {} is closed by its owner: looking into it takes CAP_DAC_READ_SEARCH", .path.display())]
    Closed {
        /// The path below the mount of the cgroup, or of the given one that it is below.
        path: PathBuf,
    },
    /// A process could not be looked at, other than because it ended.
    #[error("cannot read the network namespace of process {pid}")]
    Process {
        /// Its number.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process lives, but is not shown.
    #[error(
        "process {pid} is hidden from this user: mount /proc without hidepid, or with gid= of a group of his"
    )]
    Hidden {
        /// Its number.
        pid: u32,
    },
    /// The calling thread's own namespace could not be looked at.
    #[error("cannot read this thread's network namespace")]
    Own(#[source] io::Error),
    /// The kernel did not tell the number of a namespace.
    #[error("cannot ask for the number of a network namespace")]
    Number(#[source] NetlinkError),
}

impl NamespaceError {
    /// Whether the privilege to look into a process is missing.
    #[must_use]
    pub fn is_no_entry(&self) -> bool {
        match self {
            Self::Process { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Cgroup { .. }
            | Self::Closed { .. }
            | Self::Hidden { .. }
            | Self::Own(_)
            | Self::Number(_) => false,
        }
    }
}

/// The network namespaces of the threads in `cgroups` and below them. What ends or moves meanwhile
/// is left out.
///
/// # Errors
/// When the calling thread's own namespace cannot be read or asked.
pub fn of_cgroups(hierarchy: &Hierarchy, cgroups: &[Cgroup]) -> Result<Found, NamespaceError> {
    let given: HashSet<u64> = cgroups.iter().map(|cgroup| cgroup.id).collect();
    let mut requests = Requests::open().map_err(NamespaceError::Number)?;
    let own = File::open(format!("/proc/thread-self/{DEVICES}")).map_err(NamespaceError::Own)?;
    let own = fstat(&own)
        .map_err(|error| NamespaceError::Own(error.into()))?
        .st_ino;
    let mut seen = Seen::new();
    let mut cut = BTreeSet::new();
    let mut failed = BTreeMap::new();
    for cgroup in cgroups {
        let mut walk = Walk {
            hierarchy,
            given: &given,
            own,
            requests: &mut requests,
            threads: 0,
            bounds: Bounds::Kept,
            failure: None,
        };
        let outcome = walk.below(cgroup, &mut seen);
        if let Some(error) = outcome.err().or(walk.failure) {
            failed.insert(cgroup.id, error);
        }
        match walk.bounds {
            Bounds::Kept => {}
            Bounds::Exceeded => {
                cut.insert(cgroup.id);
            }
        }
    }
    Ok(Found {
        namespaces: seen.into_values().collect(),
        cut,
        failed,
    })
}

/// Namespaces by inode number.
type Seen = BTreeMap<u64, Namespace>;

/// A look at everything below one given cgroup, except what is below another given one.
struct Walk<'a> {
    hierarchy: &'a Hierarchy,
    given: &'a HashSet<u64>,
    /// The inode number of the calling thread's own namespace.
    own: u64,
    requests: &'a mut Requests,
    threads: usize,
    bounds: Bounds,
    failure: Option<NamespaceError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bounds {
    Kept,
    Exceeded,
}

impl Walk<'_> {
    fn below(&mut self, cgroup: &Cgroup, seen: &mut Seen) -> Result<(), NamespaceError> {
        let failed = unreadable(&cgroup.path);
        let opened = Directory::open(self.hierarchy.directory(), &cgroup.path);
        let top = opened.map_err(&failed)?;
        let Some(top) = top.filter(|top| top.id() == cgroup.id) else {
            return Ok(());
        };
        self.processes(cgroup, &top, seen);
        // Breadth first, so that what is nearest is seen whatever a tenant piles up below, and by
        // path, since a thousand of them would be too many to hold open.
        let mut queue = VecDeque::from([(PathBuf::new(), 0)]);
        let mut cgroups = 1;
        while let Some((path, level)) = queue.pop_front() {
            // What cannot be seen into hides nothing of the others.
            let listed = Directory::open(top.as_fd(), &path)
                .and_then(|opened| opened.map(|directory| directory.children()).transpose());
            let children = match listed {
                Ok(children) => children.unwrap_or_default(),
                Err(error) => {
                    self.failure.get_or_insert(failed(error));
                    continue;
                }
            };
            for name in children {
                let below = path.join(name);
                let child = match Directory::open(top.as_fd(), &below) {
                    Ok(Some(child)) => child,
                    Ok(None) => continue,
                    Err(error) => {
                        self.failure.get_or_insert(failed(error));
                        continue;
                    }
                };
                if self.given.contains(&child.id()) {
                    continue;
                }
                if cgroups == MAX_CGROUPS || level == MAX_LEVELS {
                    self.bounds = Bounds::Exceeded;
                    break;
                }
                cgroups += 1;
                self.processes(cgroup, &child, seen);
                queue.push_back((below, level + 1));
            }
        }
        Ok(())
    }

    fn processes(&mut self, cgroup: &Cgroup, directory: &Directory, seen: &mut Seen) {
        // Threads, since any of them may stay in a namespace that the first one has left.
        let listed = match directory.read("cgroup.threads") {
            Ok(listed) => listed.unwrap_or_default(),
            Err(error) => {
                self.failure.get_or_insert(unreadable(&cgroup.path)(error));
                return;
            }
        };
        let text = String::from_utf8_lossy(&listed);
        // A process outside our PID namespace is listed as 0.
        let pids = text.lines().filter_map(|line| line.parse().ok());
        for pid in pids.filter(|pid| *pid != 0) {
            if self.threads == MAX_THREADS {
                self.bounds = Bounds::Exceeded;
                return;
            }
            self.threads += 1;
            if let Err(error) = self.thread(pid, cgroup, seen) {
                self.failure.get_or_insert(error);
            }
        }
    }

    /// Takes note of the namespace of thread `pid`, if that is still at or below the cgroup.
    fn thread(&mut self, pid: u32, cgroup: &Cgroup, seen: &mut Seen) -> Result<(), NamespaceError> {
        let failed = |source: Errno| NamespaceError::Process {
            pid,
            source: source.into(),
        };
        let thread = match Thread::open_directory(pid) {
            Ok(thread) => thread,
            Err(error) => return unless_ended(pid, error),
        };
        let opened = thread.open(DEVICES);
        let inode = match &opened {
            Ok(held) => fstat(held).map_err(failed)?.st_ino,
            Err(_) => 0,
        };
        let nsid = match &opened {
            Ok(_) if !seen.contains_key(&inode) => number_of(self.requests, pid),
            Ok(_) | Err(_) => Ok(None),
        };
        let nsid = match nsid {
            Ok(nsid) => nsid,
            Err(error) if error.errno() == Some(libc::ESRCH) => return Ok(()),
            Err(error) => return Err(NamespaceError::Number(error)),
        };
        // Asked by the thread's number, which may have moved since it was opened.
        let asked = thread.open(DEVICES).and_then(fstat);
        if nsid.is_some() && asked.is_ok_and(|asked| asked.st_ino != inode) {
            return Ok(());
        }
        // Last, since no other has had its number before it is gone, and only this says that it is.
        let text = match thread.cgroup() {
            Ok(text) => text,
            Err(error) => return unless_ended(pid, error),
        };
        let within = self.hierarchy.path_in(&text);
        if !within.is_some_and(|within| within.starts_with(&cgroup.path)) {
            return Ok(());
        }
        let held = match opened {
            Ok(held) => held,
            // It has ended, and waits for its parent to notice.
            Err(Errno::ENOENT | Errno::ESRCH | Errno::EINVAL) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let namespace = seen.entry(inode).or_insert_with(|| Namespace {
            inode,
            nsid,
            cgroups: BTreeSet::new(),
            own: inode == self.own,
            thread,
            _held: held,
        });
        namespace.cgroups.insert(cgroup.id);
        Ok(())
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> NamespaceError {
    let path = path.to_owned();
    move |source| {
        let path = path.clone();
        if source.kind() == io::ErrorKind::PermissionDenied {
            NamespaceError::Closed { path }
        } else {
            NamespaceError::Cgroup { path, source }
        }
    }
}

/// A thread's directory of procfs, which never stands for a later one with that number.
#[derive(Debug)]
struct Thread {
    number: u32,
    directory: OwnedFd,
}

impl Thread {
    fn open_directory(number: u32) -> nix::Result<Self> {
        let look = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(Path::new(&format!("/proc/{number}")), look, Mode::empty())?;
        Ok(Self { number, directory })
    }

    fn open(&self, path: &str) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(&self.directory, path, flags, Mode::empty())
    }

    /// What `cgroup` says: an error once the thread is gone.
    fn cgroup(&self) -> nix::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::from(self.open("cgroup")?)
            .read_to_end(&mut text)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(text)
    }
}

/// Whether `error` says that the thread has ended, which is none, or that it is hidden.
fn unless_ended(pid: u32, error: Errno) -> Result<(), NamespaceError> {
    let is_none = error == Errno::ESRCH || error == Errno::ENOENT;
    // What is hidden looks as if it had ended, but it can be sent signals: not by us, is the answer.
    if error == Errno::EPERM || (error == Errno::ENOENT && lives(pid)) {
        Err(NamespaceError::Hidden { pid })
    } else if is_none {
        Ok(())
    } else {
        Err(NamespaceError::Process {
            pid,
            source: error.into(),
        })
    }
}

/// Whether there is a process of this number, shown or not.
fn lives(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

/// This namespace's number for the one that a thread is in.
fn number_of(requests: &mut Requests, thread: u32) -> Result<Option<i32>, NetlinkError> {
    let thread = thread.to_ne_bytes();
    let request = Request::new(RTM_GETNSID, 0, &[0; RTGENMSG]).attribute(NETNSA_PID, &thread);
    let mut nsid = None;
    requests.get(request, |payload| {
        let tail = payload.get(RTGENMSG..).ok_or(NetlinkError::Malformed)?;
        for attribute in attributes(tail) {
            if let (NETNSA_NSID, value) = attribute? {
                // -1: it has none.
                nsid = Some(number(value, 0)? as i32).filter(|nsid| *nsid >= 0);
            }
        }
        Ok(())
    })?;
    Ok(nsid)
}
