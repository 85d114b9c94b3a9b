//! Another kernel to run this machine's programs on: this machine's files are there, and nothing
//! else of it.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{
    kernel::Kernel,
    machine::{Machine, Patience, Shape},
};
use crate::NetNs;

/// Emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
const SETUP: &str = include_str!("testbed.sh");
const EVERYTHING: &str = include_str!("everything.sh");
const COPIES: &str = include_str!("copies.sh");
/// What labs and the agent run.
const TOOLS: [&str; 13] = [
    "/usr/bin/sh",
    "/usr/bin/cat",
    "/usr/bin/chmod",
    "/usr/bin/env",
    "/usr/bin/find",
    "/usr/bin/mkdir",
    "/usr/bin/rm",
    "/usr/bin/rmdir",
    "/usr/bin/sleep",
    "/usr/bin/stty",
    "/usr/sbin/ip",
    "/usr/sbin/nft",
    "/usr/sbin/tc",
];
/// What the agent and its tests use. Nothing is loaded on demand in there, so all of nf_tables is.
const MODULES: &[&str] = &[
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    // The rest of nf_tables asks for a checksum by name, which names no module.
    "crc32c_generic",
    "nf_tables",
    "nft_*",
    "8021q",
    "br_netfilter",
    "bridge",
    "ipvlan",
    "macvlan",
    "macvtap",
    "tun",
    "veth",
    "vxlan",
    "cls_bpf",
    "cls_u32",
    "sch_ingress",
    "tcp_diag",
];
/// Which of this machine's files are there.
#[derive(Debug, Clone, Copy)]
pub enum Files<'a> {
    /// All of them, read-only below a layer in memory. Their driver does not live through a suspend.
    Everything,
    /// Copies in memory: the lab's tools, and these programs and files.
    Copies(&'a [PathBuf]),
}

/// Set inside.
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
    pub fn boot(host: &NetNs, kernel: &Kernel, files: Files<'_>) -> anyhow::Result<Self> {
        let (part, copies) = match files {
            Files::Everything => (EVERYTHING, None),
            Files::Copies(files) => (COPIES, Some(needed(files)?)),
        };
        let devices = [
            "-virtfs",
            "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        ];
        let shape = Shape {
            kernel,
            modules: MODULES,
            setup: &SETUP.replace("@FILES@\n", part),
            file: copies.as_deref().map(|list| ("copies", list)),
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

/// The files, the tools and what both need of libraries: a list, one in a line.
fn needed(files: &[PathBuf]) -> anyhow::Result<String> {
    let mut all = BTreeSet::new();
    let tools = TOOLS.iter().map(Path::new);
    for file in tools.chain(files.iter().map(PathBuf::as_path)) {
        all.insert(at(file)?);
        for library in libraries(file)? {
            all.insert(at(&library)?);
        }
    }
    for users in ["/etc/passwd", "/etc/group"] {
        all.insert(PathBuf::from(users));
    }
    let lines: Vec<String> = all
        .iter()
        .map(|path| format!("{}\n", path.display()))
        .collect();
    Ok(lines.concat())
}

/// The file by its own name in the folder that it really is in.
fn at(file: &Path) -> anyhow::Result<PathBuf> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        bail!("{} is no file", file.display());
    };
    let folder = folder
        .canonicalize()
        .with_context(|| format!("find {}", file.display()))?;
    Ok(folder.join(name))
}

/// What `ldd` names; nothing for what is no program, or needs none.
fn libraries(file: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(file)
        .output()
        .context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(listed(&text))
}

/// The paths in the output of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x...)`, or the path alone.
fn listed(text: &str) -> Vec<PathBuf> {
    let words = text.lines().filter_map(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with('/') && !word.ends_with(':'))
    });
    words.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_takes_libraries_and_the_loader_and_no_other_words() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(listed(text), expected.map(PathBuf::from));
        assert_eq!(listed("\tnot a dynamic executable\n"), [] as [PathBuf; 0]);
    }
}
