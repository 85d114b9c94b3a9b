//! Virtual machines that QEMU runs: which of their network cards have an interface on the host.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::sys::stat::stat;
use serde_json::Value;

/// Where procfs is.
pub const PROCFS: &str = "/proc";

/// A running QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its process.
    pub process: u32,
    /// What it calls its guest; empty for nothing.
    pub name: String,
    /// Kinds of its network back ends whose frames the host's kernel never sees: `vhost-user`,
    /// `vhost-vdpa`.
    pub bypasses: Vec<String>,
    /// Addresses of PCI functions that it has taken over.
    pub functions: Vec<String>,
    /// Taps that it holds open; unknown without `CAP_SYS_PTRACE`, for another user's process.
    pub taps: Option<BTreeSet<String>>,
}

/// The QEMU processes whose network namespace is that of the calling thread. What ends meanwhile
/// is left out.
///
/// # Errors
/// When procfs, mounted at `procfs`, cannot be read.
pub fn machines(procfs: &Path) -> io::Result<Vec<Machine>> {
    let own = namespace(&procfs.join("thread-self"))?;
    let mut machines = Vec::new();
    for entry in fs::read_dir(procfs)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|it| it.parse().ok());
        if let Some(process) = number
            && let Some(machine) = gone(machine(process, &entry.path(), own))?.flatten()
        {
            machines.push(machine);
        }
    }
    machines.sort_by_key(|machine| machine.process);
    Ok(machines)
}

fn machine(process: u32, folder: &Path, own: (u64, u64)) -> io::Result<Option<Machine>> {
    let line = fs::read(folder.join("cmdline"))?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    if !words.first().is_some_and(|program| is_qemu(program)) || namespace(folder)? != own {
        return Ok(None);
    }
    let words: Vec<String> = words
        .iter()
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let Arguments {
        name,
        bypasses,
        functions,
    } = arguments(&words);
    Ok(Some(Machine {
        process,
        name,
        bypasses,
        functions,
        taps: match taps(folder) {
            Ok(taps) => Some(taps),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            Err(error) => return Err(error),
        },
    }))
}

/// What tells the network namespace from others: a file that everybody may look at, as not
/// everybody may at `ns/net`.
fn namespace(process: &Path) -> io::Result<(u64, u64)> {
    let found = stat(&process.join("net/dev"))?;
    Ok((found.st_dev, found.st_ino))
}

/// Proxmox calls it `kvm`, Red Hat `qemu-kvm`.
fn is_qemu(program: &[u8]) -> bool {
    let name = Path::new(OsStr::from_bytes(program)).file_name();
    name.is_some_and(|name| name == "kvm" || name.as_bytes().starts_with(b"qemu"))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    name: String,
    bypasses: Vec<String>,
    functions: Vec<String>,
}

fn arguments(words: &[String]) -> Arguments {
    let mut arguments = Arguments::default();
    let options = words.iter().zip(words.iter().skip(1));
    for (option, value) in options {
        // QEMU takes two dashes as well.
        match option.trim_start_matches('-') {
            _ if !option.starts_with('-') => {}
            "name" => {
                let name = property(value, "guest");
                arguments.name = name.unwrap_or_else(|| first(value)).to_owned();
            }
            "netdev" | "net" | "nic" => {
                let kind = property(value, "type").unwrap_or_else(|| first(value));
                if matches!(kind.as_str(), "vhost-user" | "vhost-vdpa") {
                    arguments.bypasses.push(kind);
                }
            }
            "device" => {
                let driver = property(value, "driver").unwrap_or_else(|| first(value));
                if driver.starts_with("vfio-pci") {
                    let folder = property(value, "sysfsdev");
                    let last = folder.as_deref().and_then(|it| it.rsplit('/').next());
                    let address = property(value, "host").or(last.map(str::to_owned));
                    arguments.functions.extend(address.map(with_domain));
                }
            }
            _ => {}
        }
    }
    arguments
}

/// A property of an option, written as `key=value,...` or, as libvirt does, as JSON.
fn property(value: &str, key: &str) -> Option<String> {
    if value.starts_with('{') {
        let object: Value = serde_json::from_str(value).ok()?;
        return Some(object.get(key)?.as_str()?.to_owned());
    }
    let mut pairs = value.split(',').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(name, _)| *name == key)
        .map(|(_, text)| text.to_owned())
}

/// What stands before the first comma, whose key may be left out.
fn first(value: &str) -> String {
    value.split(',').next().unwrap_or_default().to_owned()
}

/// As sysfs has it: QEMU takes an address without its domain, too.
fn with_domain(address: String) -> String {
    if address.matches(':').count() == 1 {
        format!("0000:{address}")
    } else {
        address
    }
}

/// The kernel tells in `fdinfo` which device a descriptor of `/dev/net/tun` stands for.
fn taps(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut taps = BTreeSet::new();
    for entry in fs::read_dir(folder.join("fdinfo"))? {
        // Descriptors are closed all the time.
        let Some(text) = gone(fs::read(entry?.path()))? else {
            continue;
        };
        let text = String::from_utf8_lossy(&text);
        let names = text.lines().filter_map(|line| line.strip_prefix("iff:"));
        taps.extend(names.map(|name| name.trim().to_owned()));
    }
    Ok(taps)
}

/// What belonged to a process that has ended is no error.
fn gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Arguments {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        arguments(&words)
    }

    #[test]
    fn back_ends_that_bypass_the_host_are_found_however_they_are_written() {
        for (line, kind) in [
            ("kvm -netdev vhost-user,id=net0,chardev=c0", "vhost-user"),
            ("kvm -netdev type=vhost-user,id=net0", "vhost-user"),
            ("kvm --netdev id=net0,type=vhost-vdpa", "vhost-vdpa"),
            (
                r#"qemu -netdev {"type":"vhost-user","id":"n"}"#,
                "vhost-user",
            ),
        ] {
            assert_eq!(read(line).bypasses, [kind], "{line}");
        }
    }

    #[test]
    fn back_ends_and_devices_of_other_kinds_are_no_bypass() {
        for line in [
            "kvm -netdev tap,id=net0,ifname=tap101i0",
            "kvm -device vhost-user-blk-pci,chardev=c0",
            "kvm -chardev socket,id=vhost-user",
            r#"qemu -netdev {"type":"tap","fd":"30","vhost":true}"#,
        ] {
            assert_eq!(read(line), Arguments::default(), "{line}");
        }
    }

    #[test]
    fn functions_that_are_taken_over_have_their_domain() {
        for line in [
            "kvm -device vfio-pci,host=0000:3b:02.1,id=hostpci0",
            "kvm -device vfio-pci,host=3b:02.1",
            "kvm -device vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:3b:02.1",
            r#"qemu -device {"driver":"vfio-pci","host":"0000:3b:02.1"}"#,
        ] {
            assert_eq!(read(line).functions, ["0000:3b:02.1"], "{line}");
        }
    }

    #[test]
    fn names_of_guests_are_read_in_both_forms() {
        assert_eq!(read("kvm -id 101 -name web1,debug-threads=on").name, "web1");
        assert_eq!(read("qemu -name guest=web1,debug-threads=on").name, "web1");
    }

    #[test]
    fn programs_are_qemu_by_the_names_that_distributions_give_it() {
        for program in [
            "/usr/bin/kvm",
            "/usr/libexec/qemu-kvm",
            "qemu-system-x86_64",
        ] {
            assert!(is_qemu(program.as_bytes()), "{program}");
        }
        for program in ["", "/usr/bin/kvm-ok", "/bin/sh", "/usr/sbin/mqemu"] {
            assert!(!is_qemu(program.as_bytes()), "{program}");
        }
    }
}
