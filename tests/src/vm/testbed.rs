//! Another kernel to run this machine's programs on: its files are the root, read-only below a layer
//! in memory, and nothing else of it is there.

use std::{env, time::Duration};

use anyhow::Context as _;

use super::{
    kernel::Kernel,
    machine::{Machine, Patience, Shape},
};
use crate::NetNs;

/// Emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
const SETUP: &str = include_str!("testbed.sh");
/// What the agent and its tests use; nothing is loaded on demand in there.
const MODULES: &[&str] = &[
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    // The rest of nf_tables asks for a checksum by name, which names no module.
    "crc32c_generic",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_limit",
    "nft_meta_bridge",
    "nft_nat",
    "nft_reject_bridge",
    "nft_reject_inet",
    "nft_socket",
    "8021q",
    "br_netfilter",
    "bridge",
    "tun",
    "veth",
    "cls_bpf",
    "cls_u32",
    "sch_ingress",
    "tcp_diag",
];
/// Set inside, to what tells one machine from another: nothing.
const INSIDE: &str = "GATE25_TESTBED";

/// Whether the calling test runs in a [`Testbed`], where it may do to the machine what harms it.
#[must_use]
pub fn inside() -> bool {
    env::var_os(INSIDE).is_some_and(|value| value == "1")
}

/// A running machine of another kernel.
#[derive(Debug)]
pub struct Testbed {
    machine: Machine,
}

impl Testbed {
    /// Boots it with two processors and 2 GiB.
    ///
    /// # Errors
    /// When QEMU is missing or the machine is not up after three minutes; the message holds the
    /// end of its console.
    pub fn boot(host: &NetNs, kernel: &Kernel) -> anyhow::Result<Self> {
        let devices = [
            "-virtfs",
            "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        ];
        let shape = Shape {
            kernel,
            modules: MODULES,
            setup: SETUP,
            memory_mib: 2048,
            cpus: 2,
            devices: &devices.map(str::to_owned),
        };
        let mut machine = Machine::launch(host, "testbed", &shape)?;
        machine
            .wait_booted(BOOT)
            .with_context(|| format!("boot {}", kernel.release()))?;
        machine.run(&format!("export {INSIDE}=1"), BOOT)?;
        Ok(Self { machine })
    }

    /// Runs a line of shell: its exit code and output.
    ///
    /// # Errors
    /// When it does not end before the deadline; the machine is ended then.
    pub fn run(&mut self, line: &str, limit: Duration) -> anyhow::Result<(u8, String)> {
        self.machine.run(line, limit)
    }

    /// Runs a line of shell and tells each line of its output as it comes: its exit code.
    ///
    /// # Errors
    /// When it takes too long, or the machine hangs or panics; the machine is ended then, and the
    /// message holds the end of its console.
    pub fn follow(
        &mut self,
        line: &str,
        patience: Patience,
        each: &mut dyn FnMut(&str),
    ) -> anyhow::Result<u8> {
        let (code, _) = self.machine.follow(line, patience, each)?;
        Ok(code)
    }
}
