//! The network namespaces that processes of control groups are in.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
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
const NETNSA_FD: u16 = 3;

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    /// Its inode number, the `N` of `net:[N]`.
    pub inode: u64,
    /// Itself, which lives for as long as this is open.
    pub file: OwnedFd,
    /// This namespace's number for it; none before something gave it one, as a listing of a veth
    /// does whose peer is in it.
    pub nsid: Option<i32>,
    /// The ids of the given cgroups that had a process in it: of nested ones the deepest.
    pub cgroups: BTreeSet<u64>,
    /// Whether it is the calling thread's own.
    pub own: bool,
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
    /// A process could not be looked at, other than because it ended; needs `CAP_SYS_PTRACE`.
    #[error("cannot read the network namespace of process {pid}")]
    Process {
        /// Its number.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The calling thread's own namespace could not be looked at.
    #[error("cannot read this thread's network namespace")]
    Own(#[source] io::Error),
    /// The kernel did not tell the number of a namespace.
    #[error("cannot ask for the number of a network namespace")]
    Number(#[source] NetlinkError),
}

/// The network namespaces of the threads in `cgroups` and below them. What ends or moves meanwhile
/// is left out.
///
/// # Errors
/// When the calling thread's own namespace cannot be read or asked.
pub fn of_cgroups(hierarchy: &Hierarchy, cgroups: &[Cgroup]) -> Result<Found, NamespaceError> {
    let given: HashSet<u64> = cgroups.iter().map(|cgroup| cgroup.id).collect();
    let mut namespaces = BTreeMap::new();
    let mut cut = BTreeSet::new();
    let mut failed = BTreeMap::new();
    for cgroup in cgroups {
        let mut walk = Walk {
            hierarchy,
            given: &given,
            threads: 0,
            bounds: Bounds::Kept,
            failure: None,
        };
        let outcome = walk.below(cgroup, &mut namespaces);
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
    let mut requests = Requests::open().map_err(NamespaceError::Number)?;
    let own = File::open("/proc/thread-self/ns/net").map_err(NamespaceError::Own)?;
    let own = fstat(&own)
        .map_err(|error| NamespaceError::Own(error.into()))?
        .st_ino;
    let named = namespaces.into_iter().map(|(inode, (file, cgroups))| {
        Ok(Namespace {
            inode,
            nsid: number_of(&mut requests, &file).map_err(NamespaceError::Number)?,
            file,
            cgroups,
            own: inode == own,
        })
    });
    Ok(Found {
        namespaces: named.collect::<Result<_, _>>()?,
        cut,
        failed,
    })
}

/// Namespaces by inode number, with the cgroups that have processes there.
type Seen = BTreeMap<u64, (OwnedFd, BTreeSet<u64>)>;

/// A look at everything below one given cgroup, except what is below another given one.
struct Walk<'a> {
    hierarchy: &'a Hierarchy,
    given: &'a HashSet<u64>,
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
        let failed = |source| NamespaceError::Cgroup {
            path: cgroup.path.clone(),
            source,
        };
        let opened = Directory::open(self.hierarchy.directory(), &cgroup.path);
        let top = opened.map_err(failed)?;
        let Some(top) = top.filter(|top| top.id() == cgroup.id) else {
            return Ok(());
        };
        self.processes(cgroup, &top, seen)?;
        // Breadth first, so that what is nearest is seen whatever a tenant piles up below, and by
        // path, since a thousand of them would be too many to hold open.
        let mut queue = VecDeque::from([(PathBuf::new(), 0)]);
        let mut cgroups = 1;
        while let Some((path, level)) = queue.pop_front() {
            let opened = Directory::open(top.as_fd(), &path).map_err(failed)?;
            let children = opened.map(|directory| directory.children()).transpose();
            for name in children.map_err(failed)?.unwrap_or_default() {
                let below = path.join(name);
                let Some(child) = Directory::open(top.as_fd(), &below).map_err(failed)? else {
                    continue;
                };
                if self.given.contains(&child.id()) {
                    continue;
                }
                if cgroups == MAX_CGROUPS || level == MAX_LEVELS {
                    self.bounds = Bounds::Exceeded;
                    break;
                }
                cgroups += 1;
                self.processes(cgroup, &child, seen)?;
                queue.push_back((below, level + 1));
            }
        }
        Ok(())
    }

    fn processes(
        &mut self,
        cgroup: &Cgroup,
        directory: &Directory,
        seen: &mut Seen,
    ) -> Result<(), NamespaceError> {
        // Threads, since any of them may stay in a namespace that the first one has left.
        let listed = match directory.read("cgroup.threads") {
            Ok(listed) => listed.unwrap_or_default(),
            Err(source) => {
                return Err(NamespaceError::Cgroup {
                    path: cgroup.path.clone(),
                    source,
                });
            }
        };
        let text = String::from_utf8_lossy(&listed);
        // A process outside our PID namespace is listed as 0.
        let pids = text.lines().filter_map(|line| line.parse().ok());
        for pid in pids.filter(|pid| *pid != 0) {
            if self.threads == MAX_THREADS {
                self.bounds = Bounds::Exceeded;
                return Ok(());
            }
            self.threads += 1;
            let found = match self.namespace_of(pid, &cgroup.path) {
                Ok(found) => found,
                Err(Errno::ENOENT | Errno::ESRCH) => continue,
                Err(error) => {
                    self.failure.get_or_insert(NamespaceError::Process {
                        pid,
                        source: error.into(),
                    });
                    continue;
                }
            };
            if let Some((inode, file)) = found {
                let (_, cgroups) = seen.entry(inode).or_insert((file, BTreeSet::new()));
                cgroups.insert(cgroup.id);
            }
        }
        Ok(())
    }

    /// The namespace of process `pid`, if it is still at or below `path`. Both are asked of one
    /// directory of procfs, which never stands for a later process with that number.
    fn namespace_of(&self, pid: u32, path: &Path) -> nix::Result<Option<(u64, OwnedFd)>> {
        let look = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let process = open(Path::new(&format!("/proc/{pid}")), look, Mode::empty())?;
        let opened = open_below(&process, "ns/net");
        let mut text = Vec::new();
        // A process that has just ended denies access to its namespaces; only this says that it is
        // gone, so it is read either way.
        File::from(open_below(&process, "cgroup")?)
            .read_to_end(&mut text)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let file = opened?;
        let within = self.hierarchy.path_in(&text);
        if !within.is_some_and(|within| within.starts_with(path)) {
            return Ok(None);
        }
        Ok(Some((fstat(&file)?.st_ino, file)))
    }
}

fn open_below(process: &OwnedFd, path: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    openat(process, path, flags, Mode::empty())
}

/// This namespace's number for another.
fn number_of(requests: &mut Requests, file: &OwnedFd) -> Result<Option<i32>, NetlinkError> {
    let descriptor = file.as_raw_fd().to_ne_bytes();
    let request = Request::new(RTM_GETNSID, 0, &[0; RTGENMSG]).attribute(NETNSA_FD, &descriptor);
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
