//! A control group for one thread: test runs take the running thread's for the socket's.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;

use nix::unistd::gettid;

/// A group and one in it, which the thread that made them is in until they are dropped.
pub(crate) struct Cgroups {
    home: PathBuf,
    outer: PathBuf,
    inner: PathBuf,
}

impl Cgroups {
    /// Makes them below the group that the process is in. Threads of one process can be in groups
    /// of their own only if these are marked as such.
    pub(crate) fn enter() -> Self {
        let own = fs::read_to_string("/proc/thread-self/cgroup").expect("the thread's groups");
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .expect("a group of version 2");
        let home = mount().join(own);
        let outer = home.join(format!("gate25-verdict-{}-{}", process::id(), gettid()));
        let inner = outer.join("inner");
        for path in [&outer, &inner] {
            fs::create_dir(path).expect("make a group");
            fs::write(path.join("cgroup.type"), "threaded").expect("mark it as one of threads");
        }
        move_to(&inner);
        Self { home, outer, inner }
    }

    /// Moves the thread to the outer group.
    pub(crate) fn go_out(&self) {
        move_to(&self.outer);
    }

    /// Moves the thread to the inner group again.
    pub(crate) fn go_in(&self) {
        move_to(&self.inner);
    }

    /// The folder of the outer group.
    pub(crate) fn root(&self) -> &Path {
        &self.outer
    }

    /// Id of the group that the thread is in.
    pub(crate) fn inner(&self) -> u64 {
        id(&self.inner)
    }

    /// Id of the group around it.
    pub(crate) fn outer(&self) -> u64 {
        id(&self.outer)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        move_to(&self.home);
        for path in [&self.inner, &self.outer] {
            fs::remove_dir(path).expect("remove a group");
        }
    }
}

fn id(path: &Path) -> u64 {
    fs::metadata(path).expect("the group is there").ino()
}

fn move_to(group: &Path) {
    fs::write(group.join("cgroup.threads"), gettid().to_string()).expect("move the thread");
}

fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("the mounts");
    let mount = mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let path = mount.split(' ').nth(4)?;
        source.starts_with("cgroup2 ").then(|| PathBuf::from(path))
    });
    mount.expect("cgroup v2 is mounted")
}
