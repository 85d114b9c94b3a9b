//! Control groups of version 2: where they are mounted, which there are, which come and go.
//!
//! [`Cgroups`] follows by inotify the directories on the way to the configured roots and, below
//! those, as deep as somebody asks: what tenants make deeper than that costs nothing.

mod directory;
mod handle;
mod hierarchy;
mod interest;
mod self_test;
mod tree;
mod watcher;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use hierarchy::{Hierarchy, Layout};
pub use self_test::{Attribution, self_test};
pub use watcher::{Cgroups, list};

pub(super) use directory::Directory;

/// One control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// What BPF programs call it: the inode number of its directory, never used twice.
    pub id: u64,
    /// Its path below the mount, with neither a leading nor a trailing slash.
    pub path: PathBuf,
    /// How it came to be listed.
    pub role: Role,
}

/// How a control group relates to the roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A root matches it, and none of its ancestors.
    Root,
    /// An ancestor is a root, whether one matches it as well or not.
    Below,
}

/// Something that happened to a control group at or below a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupEvent {
    /// It is new.
    Created(Cgroup),
    /// It was removed, and all below it before it.
    Gone {
        /// The id it had.
        id: u64,
        /// The path it had.
        path: PathBuf,
    },
    /// The first process came into it or below it; right after [`CgroupEvent::Created`] if there
    /// was one by then.
    Populated {
        /// Its id.
        id: u64,
        /// Its path.
        path: PathBuf,
    },
    /// The kernel refused a watch because of `fs.inotify.max_user_watches`: what happens below some
    /// cgroups goes unnoticed, and only repeated snapshots tell. Said once after every snapshot.
    WatchLimit,
    /// Events were lost: only a snapshot tells how things are.
    Lost,
}

/// Why control groups could not be found, listed or watched.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// `/proc` did not tell.
    #[error("cannot read {path}")]
    Proc {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No cgroup2 file system is mounted where this process can see it.
    #[error("no cgroup2 file system is mounted")]
    NotMounted,
    /// The mount's directory could not be opened.
    #[error("cannot open the cgroup2 mount {}", .path.display())]
    Mount {
        /// Where it is mounted.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control group could not be looked at.
    #[error("cannot read cgroup {}", .path.display())]
    Read {
        /// Its path below the mount.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No inotify instance: too many open files, or `fs.inotify.max_user_instances`.
    #[error("cannot watch cgroups by inotify")]
    Watch(#[source] io::Error),
    /// A cgroup's id could not be turned into a path; needs `CAP_DAC_READ_SEARCH`.
    #[error("cannot open cgroup {id} by its id")]
    Handle {
        /// The id.
        id: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The self-test's socket could not be made or found.
    #[error("cannot test which cgroup sockets are counted for")]
    SelfTest(#[source] super::sockets::SocketsError),
}
