//! A cgroup for one test, with all below it, and processes in it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use gate25::kernel::cgroups::Hierarchy;
use gate25::policy::Pattern;

use crate::netns::deadline;

/// A cgroup of one test, removed with everything in it.
pub(crate) struct Own {
    pub(crate) hierarchy: Hierarchy,
    /// The name of its directory.
    pub(crate) name: String,
}

impl Own {
    pub(crate) fn new(test: &str) -> Self {
        let hierarchy = Hierarchy::find().unwrap();
        let name = format!("gate25-test-{test}-{}", std::process::id());
        fs::create_dir(hierarchy.mount().join(&name)).unwrap();
        Self { hierarchy, name }
    }

    /// A path below the mount.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() {
            PathBuf::from(&self.name)
        } else {
            Path::new(&self.name).join(path)
        }
    }

    pub(crate) fn directory(&self, path: &str) -> PathBuf {
        self.hierarchy.mount().join(self.path(path))
    }

    /// Makes a cgroup with all on the way to it; returns its inode number.
    pub(crate) fn make(&self, path: &str) -> u64 {
        fs::create_dir_all(self.directory(path)).unwrap();
        fs::metadata(self.directory(path)).unwrap().ino()
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_dir(self.directory(path)).unwrap();
    }

    pub(crate) fn roots(&self, roots: &[&str]) -> Vec<Pattern> {
        let paths = roots.iter().map(|root| self.path(root));
        paths
            .map(|path| Pattern::new(path.to_str().unwrap()))
            .collect()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        clear(&self.directory(""));
    }
}

/// Removes a cgroup and all below it as soon as their processes are gone.
fn clear(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            clear(&entry.path());
        }
    }
    let deadline = Instant::now() + deadline();
    while let Err(error) = fs::remove_dir(path) {
        let busy = error.kind() == io::ErrorKind::ResourceBusy;
        if !busy || Instant::now() > deadline {
            assert!(
                std::thread::panicking(),
                "{} stays: {error}",
                path.display()
            );
            return;
        }
        std::thread::yield_now();
    }
}

/// A process that sleeps in a cgroup.
pub(crate) struct Sleeper(Child);

impl Sleeper {
    pub(crate) fn within(cgroup: &Path) -> Self {
        Self::running(cgroup, "sleep infinity")
    }

    /// Runs a shell command there, up to the line that it writes first.
    pub(crate) fn running(cgroup: &Path, command: &str) -> Self {
        let script = format!("echo $$ > \"$0\"/cgroup.procs && echo && exec {command}");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .arg(cgroup)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Moves the calling thread alone into a cgroup, which becomes a threaded one.
pub(crate) fn enter_threaded(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.type"), "threaded").unwrap();
    let thread = nix::unistd::gettid().to_string();
    fs::write(cgroup.join("cgroup.threads"), thread).unwrap();
}
