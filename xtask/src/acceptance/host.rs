//! The machine that the package is tried on, and how it is asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use gate25_tests::{Debian, Kernel, Lab, NetNs};

/// For one command, on an emulated and busy machine; apt takes longest.
const COMMAND: Duration = Duration::from_secs(10 * 60);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(200);

/// A machine with a disk of its own. It goes before the namespace that it is in.
pub(super) struct Host {
    machine: Option<Debian>,
    kernel: Kernel,
    disk: PathBuf,
    share: PathBuf,
    ns: NetNs,
    _lab: Lab,
}

impl Host {
    /// Switched off, with a copy of the disk. `share` fills the folder that it can mount.
    pub(super) fn new<T>(
        disk: &Path,
        kernel: Kernel,
        copy: PathBuf,
        share: impl FnOnce(&Path) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Self, T)> {
        let status = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([disk, &copy])
            .status()
            .context("start cp")?;
        if !status.success() {
            bail!("copy {}: {status}", disk.display());
        }
        let lab = Lab::new("acceptance")?;
        let folder = lab.folder("share")?;
        let shared = share(&folder)?;
        let host = Self {
            machine: None,
            kernel,
            disk: copy,
            share: folder,
            ns: lab.netns("machine")?,
            _lab: lab,
        };
        Ok((host, shared))
    }

    /// Switches it on, and waits until everything that is enabled has been started.
    pub(super) fn boot(&mut self) -> anyhow::Result<()> {
        let machine = Debian::boot(&self.ns, &self.kernel, &self.disk, &self.share)?;
        self.machine = Some(machine);
        // Also says so where a unit has failed, which the steps look at.
        self.run("systemctl is-system-running --wait")?;
        Ok(())
    }

    /// Shuts it down and boots it again.
    pub(super) fn reboot(&mut self) -> anyhow::Result<()> {
        let machine = self.machine.take().context("it is switched off")?;
        machine.shut_down(COMMAND)?;
        self.boot()
    }

    /// Cuts its power and boots it again.
    pub(super) fn cut_power_and_boot(&mut self) -> anyhow::Result<()> {
        let machine = self.machine.take().context("it is switched off")?;
        machine.cut_power()?;
        self.boot()
    }

    /// How long before its own clock began it was switched on: its firmware, and the loading of its kernel.
    pub(super) fn before_the_kernel(&mut self) -> anyhow::Result<Duration> {
        let told = self.succeed("cut -d ' ' -f 1 /proc/uptime")?;
        let own = seconds(&told)?;
        let machine = self.machine.as_ref().context("it is switched off")?;
        Ok(machine.uptime().saturating_sub(own))
    }

    /// Runs a line of shell: its exit code and output.
    pub(super) fn run(&mut self, words: &str) -> anyhow::Result<(u8, String)> {
        let machine = self.machine.as_mut().context("it is switched off")?;
        machine.run(words, COMMAND)
    }

    /// The output of words that must succeed.
    pub(super) fn succeed(&mut self, words: &str) -> anyhow::Result<String> {
        let (code, said) = self.run(words)?;
        if code != 0 {
            bail!("`{words}` failed with {code}: {}", said.trim());
        }
        Ok(said)
    }

    /// The output of words that must fail.
    pub(super) fn refuse(&mut self, words: &str) -> anyhow::Result<String> {
        let (code, said) = self.run(words)?;
        if code == 0 {
            bail!("`{words}` succeeded: {}", said.trim());
        }
        Ok(said)
    }

    /// Waits until words succeed, and says how long that took.
    pub(super) fn wait(&mut self, words: &str, limit: Duration) -> anyhow::Result<Duration> {
        let start = Instant::now();
        loop {
            let (code, said) = self.run(words)?;
            if code == 0 {
                return Ok(start.elapsed());
            }
            if start.elapsed() > limit {
                bail!(
                    "`{words}` still fails with {code} after {limit:?}: {}",
                    said.trim()
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// A property of a unit, as `systemctl show` tells it.
    pub(super) fn property(&mut self, unit: &str, property: &str) -> anyhow::Result<String> {
        let words = format!("systemctl show --value --property={property} {unit}");
        Ok(self.succeed(&words)?.trim().to_owned())
    }

    /// When a unit got so far, by the machine's clock.
    pub(super) fn moment(&mut self, unit: &str, property: &str) -> anyhow::Result<Duration> {
        let told = self.property(unit, &format!("{property}Monotonic"))?;
        let micros = told
            .parse()
            .with_context(|| format!("{property} of {unit} is {told:?}"))?;
        if micros == 0 {
            bail!("{unit}: never {property}");
        }
        Ok(Duration::from_micros(micros))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.machine = None;
        // It may not have been made.
        fs::remove_file(&self.disk).ok();
    }
}

/// Reads seconds, with a fraction.
pub(super) fn seconds(text: &str) -> anyhow::Result<Duration> {
    let number = text
        .trim()
        .parse()
        .with_context(|| format!("no number of seconds: {text:?}"))?;
    Duration::try_from_secs_f64(number).with_context(|| format!("no time: {text:?}"))
}

/// Fails, and says what was missed, unless a text contains another.
pub(super) fn contains(text: &str, part: &str) -> anyhow::Result<()> {
    if !text.contains(part) {
        bail!("no {part:?} in: {}", text.trim());
    }
    Ok(())
}
