//! A control group of version 1 that the kernel notes in sockets: `net_cls` or `net_prio`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{NetNs, World};

/// A hierarchy of version 1, mounted where only the hypervisor's programs see it, and a group in it.
/// With this value its processes go back to the hierarchy's root, and the group goes.
#[derive(Debug)]
pub struct V1Group {
    hypervisor: NetNs,
    mount: PathBuf,
    dir: PathBuf,
}

impl V1Group {
    /// Mounts the hierarchy of this controller and makes a group of the lab's own; none where the
    /// kernel has no such controller.
    ///
    /// # Errors
    /// When one of both fails.
    pub fn new(world: &World, controller: &str) -> anyhow::Result<Option<Self>> {
        let known = fs::read_to_string("/proc/cgroups").context("read the controllers")?;
        let names = |line: &str| line.split_whitespace().next() == Some(controller);
        if !known.lines().any(names) {
            return Ok(None);
        }
        let hypervisor = world.hosting.hypervisor.clone();
        // Not below /sys/fs/cgroup, which is the machine's own.
        let mount = Path::new("/run").join(controller);
        let place = mount.to_string_lossy().into_owned();
        hypervisor.exec("mkdir", &["-p", &place])?;
        hypervisor.exec("mount", &["-t", "cgroup", "-o", controller, "none", &place])?;
        let lab = world.lab.dir().file_name().context("the lab's folder")?;
        let dir = mount.join(lab);
        let group = Self {
            hypervisor,
            mount,
            dir,
        };
        group.inside(|| fs::create_dir(&group.dir))?;
        Ok(Some(group))
    }

    /// Writes a value of the group's, such as `net_cls.classid`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&self, file: &str, value: &str) -> anyhow::Result<()> {
        self.inside(|| fs::write(self.dir.join(file), value))
    }

    /// Moves a process in, with the sockets that it has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take(&self, process: u32) -> anyhow::Result<()> {
        self.inside(|| fs::write(self.dir.join("cgroup.procs"), process.to_string()))
    }

    /// Moves a process back to the hierarchy's root.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(&self, process: u32) -> anyhow::Result<()> {
        self.inside(|| fs::write(self.mount.join("cgroup.procs"), process.to_string()))
    }

    fn inside<T: Send>(
        &self,
        body: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let result = self.hypervisor.run(body)?;
        result.with_context(|| format!("use {}", self.dir.display()))
    }

    fn remove(&self) -> anyhow::Result<()> {
        let processes = self.inside(|| fs::read_to_string(self.dir.join("cgroup.procs")))?;
        for process in processes.lines() {
            // One that has ended meanwhile cannot be moved.
            drop(self.inside(|| fs::write(self.mount.join("cgroup.procs"), process)));
        }
        self.inside(|| fs::remove_dir(&self.dir))?;
        self.hypervisor
            .exec("umount", &[&self.mount.to_string_lossy()])?;
        Ok(())
    }
}

impl Drop for V1Group {
    fn drop(&mut self) {
        // The mount goes with the lab, if not now.
        drop(self.remove());
    }
}
