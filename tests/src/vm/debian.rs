//! A Debian of its own: a disk, its kernel, its systemd.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    kernel::Kernel,
    machine::{Machine, Shape},
};
use crate::NetNs;

/// Emulated, on a busy machine, systemd included.
const BOOT: Duration = Duration::from_secs(900);
const SETUP: &str = include_str!("debian.sh");
/// What it takes to get at the disk; the rest is on it.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// A running Debian machine.
#[derive(Debug)]
pub struct Debian {
    machine: Machine,
    switched_on: Instant,
}

impl Debian {
    /// Boots what is on the disk, with two processors, 1 GiB and no network. The folder `share` can be
    /// mounted by the tag `share` over 9p, read-only.
    ///
    /// # Errors
    /// When QEMU is missing or the machine takes no commands after a quarter of an hour; the message holds the
    /// end of its console.
    pub fn boot(host: &NetNs, kernel: &Kernel, disk: &Path, share: &Path) -> anyhow::Result<Self> {
        let devices = [
            "-drive".to_owned(),
            format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()),
            "-virtfs".to_owned(),
            format!(
                "local,path={},mount_tag=share,security_model=none,readonly=on",
                share.display()
            ),
        ];
        let shape = Shape {
            kernel,
            modules: MODULES,
            setup: SETUP,
            file: None,
            memory_mib: 1024,
            cpus: 2,
            devices: &devices,
        };
        let switched_on = Instant::now();
        let mut machine = Machine::launch(host, "debian", &shape)?;
        machine.wait_booted(BOOT).context("boot Debian")?;
        Ok(Self {
            machine,
            switched_on,
        })
    }

    /// How long ago it was switched on.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.switched_on.elapsed()
    }

    /// Runs a line of shell: its exit code and output.
    ///
    /// # Errors
    /// When it does not end before the deadline; the machine is ended then.
    pub fn run(&mut self, line: &str, limit: Duration) -> anyhow::Result<(u8, String)> {
        self.machine.run(line, limit)
    }

    /// Shuts it down, as an administrator does.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn shut_down(mut self, limit: Duration) -> anyhow::Result<()> {
        // A moment later, so that whoever takes commands can still say that it has begun.
        let reboot = "{ sleep 1; systemctl --no-block reboot; } >/dev/null 2>&1 &";
        self.machine.run(reboot, limit)?;
        // QEMU ends where a machine would begin anew.
        let console = self.machine.console();
        let ended = self.machine.process().wait(limit);
        ended.map(drop).with_context(|| console)
    }

    /// Ends it as a power cut does. What it had written to the disk is there.
    ///
    /// # Errors
    /// When QEMU cannot be ended.
    pub fn cut_power(mut self) -> anyhow::Result<()> {
        self.machine.process().kill()
    }
}
