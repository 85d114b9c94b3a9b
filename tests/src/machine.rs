//! A Debian machine under systemd: this one's files below a layer in memory, booted in namespaces.
//!
//! Packages are installed by dpkg and apt, units are started by systemd, and the kernel is this one. What a
//! kernel of its own would add (a real boot, its modules) is for virtual machines.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Cgroup, Lab, NetNs, Process, Said, paced, poll, process::tail};

const ROOT: &str = include_str!("machine/root.sh");
const BOOT: &str = include_str!("machine/boot.sh");
/// Goes where what the machine's users run is, so that no process of the machine is outside its cgroups.
const ENTER: &str = r#"cd / && mkdir -p /sys/fs/cgroup/user.slice &&
  echo $$ >/sys/fs/cgroup/user.slice/cgroup.procs && exec /bin/sh -c "$1""#;
/// How long systemd takes to start what is enabled, and packages to be installed, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A machine: its files, and systemd while it is booted. Its network is that of a namespace of the lab.
#[derive(Debug)]
pub struct Machine {
    ns: NetNs,
    dir: PathBuf,
    cgroup: Cgroup,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// unshare(1), whose child is systemd and ends with it.
    outside: Process,
    /// systemd, by its number outside.
    init: u32,
}

impl Machine {
    /// A machine that is not booted yet, on the network of `ns`.
    ///
    /// # Errors
    /// When its files cannot be mounted.
    pub fn new(lab: &Lab, ns: &NetNs) -> anyhow::Result<Self> {
        let dir = lab.folder("machine")?;
        ns.exec("sh", &["-ec", ROOT, "sh", text(&dir)?])
            .context("make the machine's root")?;
        Ok(Self {
            ns: ns.clone(),
            cgroup: lab.containers("systemd")?,
            dir,
            running: None,
        })
    }

    /// Writes a file of the machine's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]> + Send) -> anyhow::Result<()> {
        let path = self.dir.join("root").join(path.trim_start_matches('/'));
        self.ns.run(|| {
            let folder = path.parent().context("a file without a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))
        })?
    }

    /// Runs a shell's words with the machine's files, while systemd does not run.
    ///
    /// # Errors
    /// When they take too long. A failing exit is an outcome.
    pub fn in_root(&self, words: &str) -> anyhow::Result<Said> {
        let mut command = self.ns.command("chroot");
        command.arg(self.dir.join("root"));
        command.args(["/bin/sh", "-c", words]);
        environment(&mut command);
        self.ns.ask(command, PATIENCE)
    }

    /// Boots it and waits until everything that is enabled has been started.
    ///
    /// # Errors
    /// When it has not within two minutes.
    pub fn boot(&mut self) -> anyhow::Result<()> {
        let mut command = self.ns.command_in(self.cgroup.dir(), "unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount", "--uts"])
            .args(["--ipc", "--cgroup", "/bin/sh", "-ec", BOOT, "sh"])
            .arg(self.dir.join("root"));
        let mut outside = self.ns.spawn("machine", command)?;
        let children = format!("/proc/{0}/task/{0}/children", outside.id());
        let init = poll("systemd", PATIENCE, || {
            if let Some(status) = outside.status()? {
                bail!("it did not boot: {status}: {}", tail(&outside.log()));
            }
            let children = fs::read_to_string(&children).unwrap_or_default();
            let Some(Ok(init)) = children.split_whitespace().next().map(str::parse) else {
                return Ok(None);
            };
            let name = fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
            Ok((name.trim() == "systemd").then_some(init))
        })?;
        self.running = Some(Running { outside, init });
        poll("the machine to be up", PATIENCE, || {
            let said = self.shell("systemctl is-system-running")?;
            Ok(["running", "degraded"]
                .contains(&said.out.trim())
                .then_some(()))
        })
    }

    /// Ends everything that runs on it at once, as a power cut does.
    ///
    /// # Errors
    /// When it was not booted.
    pub fn cut_power(&mut self) -> anyhow::Result<()> {
        let Running { mut outside, init } = self.running.take().context("it is not booted")?;
        let init = Pid::from_raw(i32::try_from(init).context("systemd's number")?);
        kill(init, Signal::SIGKILL).context("end systemd")?;
        outside.wait(PATIENCE).map(drop)
    }

    /// Runs a shell's words on the booted machine, as root.
    ///
    /// # Errors
    /// When they take longer than two minutes. A failing exit is an outcome.
    pub fn shell(&self, words: &str) -> anyhow::Result<Said> {
        let running = self.running.as_ref().context("it is not booted")?;
        let mut command = self.ns.command("nsenter");
        command
            .args(["--target", &running.init.to_string()])
            .args(["--mount", "--uts", "--ipc", "--pid", "--cgroup"])
            .args(["--root", "/bin/sh", "-c", ENTER, "sh", words]);
        environment(&mut command);
        self.ns.ask(command, PATIENCE)
    }

    /// The same, and their output.
    ///
    /// # Errors
    /// When they fail, too; the message holds what they wrote.
    pub fn succeed(&self, words: &str) -> anyhow::Result<String> {
        let said = self.shell(words)?;
        if said.code != Some(0) {
            bail!("`{words}` failed: {said:?}\n{}", self.journal()?);
        }
        Ok(said.out)
    }

    /// Waits until a shell's words succeed.
    ///
    /// # Errors
    /// When they have not within `limit`.
    pub fn wait(&self, words: &str, limit: Duration) -> anyhow::Result<()> {
        let mut last = None;
        let waited = poll(words, paced(limit), || {
            let said = self.shell(words)?;
            let done = said.code == Some(0);
            last = Some(said);
            Ok(done.then_some(()))
        });
        waited.with_context(|| format!("{last:?}\n{}", self.journal().unwrap_or_default()))
    }

    /// A property of a unit, as `systemctl show` tells it.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub fn property(&self, unit: &str, property: &str) -> anyhow::Result<String> {
        let words = format!("systemctl show --value --property={property} {unit}");
        Ok(self.succeed(&words)?.trim().to_owned())
    }

    /// What gate25's units have written.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn journal(&self) -> anyhow::Result<String> {
        let words = "journalctl --no-pager --quiet --output=short-monotonic --unit=gate25 --unit=gate25-guard";
        Ok(self.shell(words)?.out)
    }
}

/// A path as an argument of a shell's.
fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not text", path.display()))
}

/// What a login has, and nothing of whoever runs the tests.
fn environment(command: &mut std::process::Command) {
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive");
}
