//! The host around the agent: its kernel, its mounts, what a process may do there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::utsname::uname;
use nix::unistd::{AccessFlags, access};

use super::bpf::skb::KERNEL_BTF;

const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// A privilege that the agent needs, by its number in the kernel (linux/capability.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Giving the control socket to its group.
    Chown = 0,
    /// Finding the cgroup of a connection by its number.
    DacReadSearch = 2,
    /// Attaching programs; ending connections.
    NetAdmin = 12,
    /// Seeing which network namespace another user's process is in.
    SysPtrace = 19,
    /// Entering network namespaces; mounting.
    SysAdmin = 21,
    /// Programs that read kernel memory.
    Perfmon = 38,
    /// Programs and tables.
    Bpf = 39,
}

impl Capability {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Chown,
        Self::DacReadSearch,
        Self::NetAdmin,
        Self::SysPtrace,
        Self::SysAdmin,
        Self::Perfmon,
        Self::Bpf,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chown => "CAP_CHOWN",
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// Those privileges of `process` that are in effect, or of the caller.
///
/// # Errors
/// When procfs does not tell.
pub fn capabilities(process: Option<u32>) -> io::Result<BTreeSet<Capability>> {
    let process = process.map_or_else(|| "self".to_owned(), |number| number.to_string());
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    let bits = bits.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let all = Capability::ALL.into_iter();
    Ok(all.filter(|one| bits & (1 << *one as u32) != 0).collect())
}

/// The running kernel's release, such as `6.12.9-amd64`.
///
/// # Errors
/// When the kernel does not tell.
pub fn release() -> io::Result<String> {
    Ok(uname()?.release().to_string_lossy().into_owned())
}

/// Whether the kernel shows its types.
#[must_use]
pub fn has_btf() -> bool {
    Path::new(KERNEL_BTF).is_file()
}

/// Whether a BPF filesystem is mounted at `path`.
///
/// # Errors
/// When that cannot be looked at, other than because it is not there.
pub fn is_bpf_filesystem(path: &Path) -> io::Result<bool> {
    match statfs(path) {
        Ok(found) => Ok(found.filesystem_type() == BPF_FS_MAGIC),
        Err(nix::Error::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Permission bits of what is at `path`; `None` if there is nothing.
///
/// # Errors
/// When it cannot be looked at.
pub fn mode(path: &Path) -> io::Result<Option<u32>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.mode() & 0o7777)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why the caller cannot make files in the folder at `path`; `None` if he can.
#[must_use]
pub fn unwritable(path: &Path) -> Option<io::Error> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => Some(io::ErrorKind::NotADirectory.into()),
        Ok(_) => {
            let tried = access(path, AccessFlags::W_OK | AccessFlags::X_OK);
            tried.err().map(io::Error::from)
        }
        Err(error) => Some(error),
    }
}

/// Controllers of version 1 hierarchies that make sockets lose their version 2 cgroup before Linux
/// 5.15, if they are mounted.
///
/// # Errors
/// When procfs does not tell.
pub fn network_controllers() -> io::Result<BTreeSet<String>> {
    Ok(controllers(&fs::read(MOUNTINFO)?))
}

fn controllers(text: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        // Optional fields of any number end with a dash; then type, source and options.
        let mut tail = fields.by_ref().skip_while(|field| *field != b"-").skip(1);
        if tail.next() != Some(b"cgroup") {
            continue;
        }
        let options = tail.nth(1).unwrap_or_default();
        for option in options.split(|byte| *byte == b',') {
            if matches!(option, b"net_cls" | b"net_prio") {
                found.insert(String::from_utf8_lossy(option).into_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_the_network_are_found_among_the_mounts() {
        let text = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/net rw,relatime - cgroup cgroup rw,net_cls,net_prio
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,net_cls
";
        let found: Vec<String> = controllers(text.as_bytes()).into_iter().collect();
        assert_eq!(found, ["net_cls", "net_prio"]);
        assert!(controllers(b"").is_empty());
    }

    #[test]
    fn release_is_that_of_the_running_kernel() {
        let told = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert_eq!(release().unwrap(), told.trim());
    }
}
