//! A virtual machine as guest, behind a tap.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{
    kernel::Kernel,
    machine::{Machine, Shape},
};
use crate::{Addresses, Attempt, Hosting, Outcome, Process, poll};

/// Emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(90);
/// The kernel of the guests.
const SERIES: &str = "6.1";
const SETUP: &str = include_str!("guest.sh");

/// A running virtual machine with a shell.
#[derive(Debug)]
pub struct Vm {
    machine: Machine,
    interface: String,
}

impl Vm {
    /// Boots a machine behind a tap of this name, in the hypervisor's bridge, with the addresses
    /// of guest `number`.
    ///
    /// # Errors
    /// When QEMU or the kernel is missing, or the machine is not up after a minute and a half.
    pub fn boot(hosting: &Hosting, number: u8, interface: &str) -> anyhow::Result<Self> {
        let host = &hosting.hypervisor;
        let devices = [
            // With a virtio header, QEMU's default where the kernel has it.
            "-netdev".to_owned(),
            format!("tap,id=net,ifname={interface},script=no,downscript=no,vhost=off"),
            "-device".to_owned(),
            "virtio-net-pci,netdev=net,romfile=".to_owned(),
        ];
        let shape = Shape {
            kernel: &Kernel::find(SERIES)?,
            modules: &["virtio_pci", "virtio_net"],
            setup: &setup(Hosting::bridged(number)),
            file: None,
            memory_mib: 256,
            cpus: 1,
            devices: &devices,
        };
        let mut machine = Machine::launch(host, interface, &shape)?;
        // QEMU makes the tap; who starts it puts it into the bridge, as libvirt and Proxmox do.
        poll("QEMU's tap", Duration::from_secs(10), || {
            if let Some(status) = machine.process().status()? {
                bail!(
                    "QEMU ended: {status}; it wrote:\n{}",
                    machine.process().log()
                );
            }
            Ok(host.exec("ip", &["link", "show", interface]).ok())
        })?;
        host.ip(&format!("link set {interface} master vmbr0 up"))?;
        machine.wait_booted(BOOT).context("boot a guest")?;
        Ok(Self {
            machine,
            interface: interface.to_owned(),
        })
    }

    /// The tap on the hypervisor.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// QEMU's process.
    pub fn process(&mut self) -> &mut Process {
        self.machine.process()
    }

    /// What the kernel has written to its console.
    #[must_use]
    pub fn console(&self) -> String {
        self.machine.console()
    }

    /// Runs a line of shell (busybox) in the machine: its exit code and output.
    ///
    /// # Errors
    /// When it does not end before the deadline; the machine is ended then.
    pub fn run(&mut self, line: &str, limit: Duration) -> anyhow::Result<(u8, String)> {
        self.machine.run(line, limit)
    }

    /// Connects from inside the machine, waits for the server's greeting and returns it.
    ///
    /// The time is what the whole command took, emulation included.
    ///
    /// # Errors
    /// When the machine does not answer. A refused connect is an outcome, not an error.
    pub fn connect(
        &mut self,
        to: SocketAddr,
        limit: Duration,
    ) -> anyhow::Result<(Attempt, String)> {
        let seconds = limit.as_secs().max(1);
        let line = format!("nc -w {seconds} {} {} </dev/null", to.ip(), to.port());
        let start = Instant::now();
        let (code, output) = self.run(&line, limit + Duration::from_secs(20))?;
        let took = start.elapsed();
        let says = |text: &str| output.to_ascii_lowercase().contains(text);
        let outcome = if code == 0 {
            Outcome::Connected
        } else if says("refused") {
            Outcome::Refused
        } else if says("reset") {
            Outcome::Reset
        } else if says("timed out") {
            Outcome::TimedOut
        } else if says("unreachable") || says("no route") {
            Outcome::Unreachable
        } else {
            Outcome::Other(output.trim().to_owned())
        };
        Ok((Attempt { outcome, took }, output))
    }
}

fn setup(addresses: Addresses) -> String {
    let Addresses { v4, v6 } = addresses;
    SETUP
        .replace("@V4@", &v4.to_string())
        .replace("@V6@", &v6.to_string())
        .replace("@GATEWAY4@", &Hosting::GATEWAY.v4.to_string())
        .replace("@GATEWAY6@", &Hosting::GATEWAY.v6.to_string())
}
