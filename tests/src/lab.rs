//! One lab: where its files and processes live, and how they go.

use std::{
    env, fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::{Cgroup, cgroup, netns::NetNs, pid::Pid, process::poll};

/// All labs of the machine: one folder each.
const LABS: &str = "/run/gate25-lab";
const CLEANUP: &str = include_str!("cleanup.sh");

/// A folder, a cgroup and namespaces that vanish with the process that made them.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    cgroup: PathBuf,
    /// Where the cgroup tree is mounted.
    mount: PathBuf,
    guardian: Guardian,
}

impl Lab {
    /// A lab named after the running test.
    ///
    /// # Errors
    /// Refuses unless run as root with `GATE25_ROOT_TESTS=1`, which `cargo xtask test` sets.
    pub fn for_test() -> anyhow::Result<Self> {
        if env::var_os("GATE25_ROOT_TESTS").is_none_or(|value| value != "1") {
            bail!("this test makes network namespaces as root: run it by `./xtask/x test`");
        }
        Self::new(thread::current().name().unwrap_or("test"))
    }

    /// A lab for a command that the user started in order to have one.
    ///
    /// # Errors
    /// Refuses unless run as root, and without cgroup v2.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab needs root");
        }
        let cgroups = cgroup::mount()?;
        sweep(&cgroups, Sweep::Crashed)?;
        let name = unique(name);
        let dir = Path::new(LABS).join(&name);
        let cgroup = cgroups.join(format!("gate25-lab-{name}"));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        // Whole at once: whoever sweeps takes a lab without a living owner for a crashed one.
        let owner = dir.join("owner");
        let new = dir.join("owner.new");
        fs::write(&new, Pid::own()?.to_string())
            .and_then(|()| fs::rename(&new, &owner))
            .with_context(|| format!("write {}", owner.display()))?;
        let guardian = Guardian::start(&cgroup, &dir)?;
        fs::create_dir_all(cgroup.join("procs"))
            .with_context(|| format!("create the cgroup {}", cgroup.display()))?;
        Ok(Self {
            name,
            dir,
            cgroup,
            mount: cgroups,
            guardian,
        })
    }

    /// Removes labs that were left running on purpose, and those of crashed processes.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove_kept() -> anyhow::Result<()> {
        sweep(&cgroup::mount()?, Sweep::CrashedAndKept)
    }

    /// The lab's folder, on a file system in memory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lab's cgroup (v2). Its processes live in `procs` below it unless told otherwise.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A new cgroup of the lab's, to hold containers: a root for the agent.
    ///
    /// # Errors
    /// When it is there already or cannot be made.
    pub fn containers(&self, name: &str) -> anyhow::Result<Cgroup> {
        Cgroup::create(&self.mount, self.cgroup.join(name))
    }

    /// New network and mount namespaces with the loopback up.
    ///
    /// # Errors
    /// When a namespace or one of its mounts cannot be made.
    pub fn netns(&self, name: &str) -> anyhow::Result<NetNs> {
        NetNs::new(&self.dir, &self.cgroup, name)
    }

    /// A folder of the lab's own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Leaves everything running when the process ends, until [`Lab::remove_kept`].
    ///
    /// # Errors
    /// When the guardian is gone.
    pub fn keep(mut self) -> anyhow::Result<()> {
        fs::write(self.dir.join("kept"), &self.name)
            .with_context(|| format!("write {}/kept", self.dir.display()))?;
        self.guardian.dismiss()
    }

    /// What removes the lab from another thread, for a signal.
    #[must_use]
    pub fn remover(&self) -> Remover {
        Remover {
            input: Arc::clone(&self.guardian.input),
            dir: self.dir.clone(),
        }
    }
}

/// Removes a lab while its owner is busy.
#[derive(Debug)]
pub struct Remover {
    input: Input,
    dir: PathBuf,
}

impl Remover {
    /// Removes the lab and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after ten seconds.
    pub fn remove(&self) -> anyhow::Result<()> {
        drop(take(&self.input));
        poll("the lab to be removed", Duration::from_secs(10), || {
            Ok((!self.dir.exists()).then_some(()))
        })
    }
}

/// The guardian's input: whoever takes it, or ends, starts the removal.
type Input = Arc<Mutex<Option<ChildStdin>>>;

fn take(input: &Input) -> Option<ChildStdin> {
    input.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A process outside the lab that removes it as soon as its input ends.
#[derive(Debug)]
struct Guardian {
    child: Child,
    input: Input,
}

impl Guardian {
    fn start(cgroup: &Path, dir: &Path) -> anyhow::Result<Self> {
        let mut child = cleanup(cgroup, dir)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start the lab's guardian")?;
        let input = Arc::new(Mutex::new(child.stdin.take()));
        Ok(Self { child, input })
    }

    fn dismiss(&mut self) -> anyhow::Result<()> {
        if let Some(mut input) = take(&self.input) {
            input
                .write_all(b"keep\n")
                .context("tell the lab's guardian to keep it")?;
        }
        self.child.wait().context("wait for the lab's guardian")?;
        Ok(())
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(take(&self.input));
        // The guardian's own loop is bounded, and what it cannot remove it says on stderr.
        drop(self.child.wait());
    }
}

fn cleanup(cgroup: &Path, dir: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", CLEANUP, "gate25-lab"])
        .arg(cgroup)
        .arg(dir)
        .current_dir("/");
    command
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sweep {
    Crashed,
    CrashedAndKept,
}

/// Removes labs whose owner is gone: their guardian was killed too, or could not finish.
fn sweep(cgroups: &Path, what: Sweep) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(LABS) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let dir = entry.path();
        let kept = dir.join("kept").exists();
        let Ok(owner) = fs::read_to_string(dir.join("owner")) else {
            continue; // being made or being removed
        };
        let alive = owner.parse::<Pid>().is_ok_and(Pid::is_alive);
        if alive || (kept && what == Sweep::Crashed) {
            continue;
        }
        let name = entry.file_name();
        let cgroup = cgroups.join(format!("gate25-lab-{}", name.to_string_lossy()));
        let status = cleanup(&cgroup, &dir)
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("remove the old lab {}", dir.display()))?;
        if !status.success() {
            bail!("the old lab {} cannot be removed", dir.display());
        }
    }
    Ok(())
}

/// A name for a lab: letters, digits and dashes, unlike that of any other lab alive.
fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let clean: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(30) // Unix sockets below the folder have at most 107 bytes
        .collect();
    format!(
        "{clean}.{}.{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}
