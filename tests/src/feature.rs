//! What only newer kernels have, and what becomes of a test that needs it.

use std::{fmt, fs, path::Path, process::Command};

use anyhow::{Context as _, bail};

use crate::skip;

/// Something of the kernel's that a test needs.
///
/// Where it is missing, the test is skipped, printed and counted, unless the kernel is new enough to
/// have it: then the test fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Programs at an interface by a link. What rewrites replies needs it.
    Tcx,
    /// The kernel's function that shows a program the structure behind its argument.
    ContextCast,
    /// Multipath TCP.
    Mptcp,
    /// Resets out of nftables' family `netdev` (`CONFIG_NFT_REJECT_NETDEV`), without which Debian
    /// builds its kernels.
    NetdevResets,
}

impl Feature {
    /// The first kernel that must have it, as major and minor number; `None` if each kernel may be
    /// built without it.
    #[must_use]
    pub fn since(self) -> Option<(u32, u32)> {
        match self {
            Self::Tcx => Some((6, 6)),
            Self::ContextCast => Some((6, 2)),
            Self::Mptcp => Some((5, 6)),
            Self::NetdevResets => None,
        }
    }

    /// Whether the running kernel has it, asked without the agent.
    ///
    /// # Errors
    /// When the kernel does not let itself be asked.
    pub fn is_present(self) -> anyhow::Result<bool> {
        match self {
            Self::Tcx => has_symbol("tcx_link_attach"),
            Self::ContextCast => has_symbol("bpf_cast_to_kern_ctx"),
            Self::Mptcp => Ok(Path::new("/proc/sys/net/mptcp").exists()),
            Self::NetdevResets => {
                nft_takes("table netdev gate25_probe { chain probe { reject with tcp reset; }; }")
            }
        }
    }

    /// Whether it is missing: then the test is noted as skipped, and returns right after.
    ///
    /// # Errors
    /// When it is missing on a kernel that should have it.
    pub fn is_missing(self) -> anyhow::Result<bool> {
        if self.is_present()? {
            return Ok(false);
        }
        let Some(since) = self.since() else {
            skip(&format!("the kernel is built without {self}"))?;
            return Ok(true);
        };
        let (major, minor) = since;
        if kernel_version()? >= since {
            bail!("no {self} here, although Linux {major}.{minor} and later have it");
        }
        skip(&format!("no {self} before Linux {major}.{minor}"))?;
        Ok(true)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcx => "tcx",
            Self::ContextCast => "bpf_cast_to_kern_ctx",
            Self::Mptcp => "multipath TCP",
            Self::NetdevResets => "resets in nftables' family netdev",
        })
    }
}

/// Whether the kernel has a function of this name.
fn has_symbol(name: &str) -> anyhow::Result<bool> {
    const SYMBOLS: &str = "/proc/kallsyms";
    let symbols = fs::read_to_string(SYMBOLS).with_context(|| format!("read {SYMBOLS}"))?;
    let mut names = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    Ok(names.any(|symbol| symbol == name))
}

/// Whether the kernel would take these rules; nothing is changed.
fn nft_takes(rules: &str) -> anyhow::Result<bool> {
    let output = Command::new("nft")
        .args(["--check", rules])
        .output()
        .context("start nft")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !said.contains("No such file or directory") {
        bail!("nft --check {rules:?}: {}: {said}", output.status);
    }
    Ok(output.status.success())
}

/// The running kernel's major and minor number.
///
/// # Errors
/// When it has none.
pub fn kernel_version() -> anyhow::Result<(u32, u32)> {
    let names = nix::sys::utsname::uname().context("ask for the kernel's name")?;
    let release = names.release().to_string_lossy();
    parse(&release).with_context(|| format!("no version in the kernel's release {release:?}"))
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_of_debians_releases_is_their_first_two_numbers() {
        assert_eq!(parse("6.1.0-56-amd64"), Some((6, 1)));
        assert_eq!(parse("6.12.117+deb12-amd64"), Some((6, 12)));
        assert_eq!(parse("6.18"), Some((6, 18)));
        assert_eq!(parse("amd64"), None);
    }
}
