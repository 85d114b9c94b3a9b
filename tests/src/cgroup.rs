//! Control groups of a lab: a tree of its own, removed with what runs in it.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::poll;

/// A cgroup (v2) below a lab's. When this value goes, what runs in it is killed and the cgroup
/// removed with all below it; after a crash the lab's guardian does that.
#[derive(Debug)]
pub struct Cgroup {
    mount: PathBuf,
    dir: PathBuf,
    left: bool,
}

impl Cgroup {
    pub(crate) fn create(mount: &Path, dir: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("create the cgroup {}", dir.display()))?;
        Ok(Self::adopt(mount, dir))
    }

    /// A cgroup that somebody else made, such as a container runtime.
    pub(crate) fn adopt(mount: &Path, dir: PathBuf) -> Self {
        Self {
            mount: mount.to_owned(),
            dir,
            left: false,
        }
    }

    /// A new cgroup below this one.
    ///
    /// # Errors
    /// When it is there already or cannot be made.
    pub fn child(&self, name: &str) -> anyhow::Result<Self> {
        Self::create(&self.mount, self.dir.join(name))
    }

    /// The cgroup of that name below this one, which a runtime makes or has made.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        Self::adopt(&self.mount, self.dir.join(name))
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its path below the mount, as policies name it: no slash in front.
    #[must_use]
    pub fn path(&self) -> String {
        let below = self.dir.strip_prefix(&self.mount).unwrap_or(&self.dir);
        below.to_string_lossy().into_owned()
    }

    /// The number that the kernel knows it by.
    ///
    /// # Errors
    /// When it is not there.
    pub fn id(&self) -> anyhow::Result<u64> {
        let metadata =
            fs::metadata(&self.dir).with_context(|| format!("look at {}", self.dir.display()))?;
        Ok(metadata.ino())
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take(&self, process: u32) -> anyhow::Result<()> {
        let file = self.dir.join("cgroup.procs");
        fs::write(&file, process.to_string())
            .with_context(|| format!("move process {process} to {}", self.dir.display()))
    }

    /// The processes in it, without those further below.
    ///
    /// # Errors
    /// When it is not there.
    pub fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let file = self.dir.join("cgroup.procs");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Lets it be when this value goes; the lab's end ends it.
    pub(crate) fn leave(mut self) {
        self.left = true;
    }

    /// Kills what runs in it and below, and removes all of it.
    ///
    /// # Errors
    /// When something is left after five seconds.
    pub fn remove(&self) -> anyhow::Result<()> {
        match fs::write(self.dir.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("kill what is in {}", self.dir.display()))?,
        }
        poll(
            "a cgroup's processes to end",
            Duration::from_secs(5),
            || Ok(remove_tree(&self.dir).is_ok().then_some(())),
        )
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The lab's guardian removes what is left.
        if !self.left {
            drop(self.remove());
        }
    }
}

/// Where cgroup v2 is mounted; on a hybrid host that is below `/sys/fs/cgroup`.
///
/// # Errors
/// When it is mounted nowhere.
pub fn mount() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    for line in mounts.lines() {
        let Some((place, source)) = line.split_once(" - ") else {
            continue;
        };
        if source.starts_with("cgroup2 ")
            && let Some(path) = place.split(' ').nth(4)
        {
            return Ok(PathBuf::from(path));
        }
    }
    bail!("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
