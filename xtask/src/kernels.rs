//! Debian's kernel packages, fetched and unpacked into `.cache/kernels`, never installed.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::cargo::{display, root};

/// A series of kernels that Debian packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Debian 12's: no tcx.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, packaged for Debian 12, too: tcx.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// Has the newest kernel of a series that apt knows lie in `.cache/kernels/SERIES`.
pub(crate) fn provide(series: Series) -> anyhow::Result<()> {
    let dir = root().join(".cache/kernels").join(series.name());
    let mark = dir.join("package");
    let had = fs::read_to_string(&mark).ok();
    let mut newest = newest(series.name(), &search(series)?);
    if newest.is_none() && had.is_none() {
        run(Command::new("apt-get").arg("update"))?;
        newest = self::newest(series.name(), &search(series)?);
    }
    let Some(package) = newest else {
        return match had {
            Some(_) => Ok(()), // no list of packages here any more: the one that was fetched serves
            None => bail!("apt knows no kernel {}", series.name()),
        };
    };
    if had.as_deref() == Some(package.as_str()) {
        return Ok(());
    }
    println!(
        "fetching the kernel {package} into .cache/kernels/{}",
        series.name()
    );
    unpack(&package, &dir)
}

/// The names of all packages of the series.
fn search(series: Series) -> anyhow::Result<String> {
    let pattern = format!("^linux-image-{}\\.", series.name().replace('.', "\\."));
    let output = Command::new("apt-cache")
        .args(["search", "--names-only", &pattern])
        .stderr(Stdio::inherit())
        .output()
        .context("start apt-cache")?;
    if !output.status.success() {
        bail!("apt-cache search: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The newest of the packages that hold a signed kernel without a flavour.
fn newest(series: &str, found: &str) -> Option<String> {
    let names = found
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let ranked = names.filter_map(|name| Some((rank(series, name)?, name)));
    ranked.max().map(|(_, name)| name.to_owned())
}

/// `0-56` of `linux-image-6.1.0-56-amd64`, or `117+deb12` of `linux-image-6.12.117+deb12-amd64`, as
/// numbers.
fn rank(series: &str, package: &str) -> Option<Vec<u32>> {
    let version = package
        .strip_prefix("linux-image-")?
        .strip_prefix(series)?
        .strip_prefix('.')?
        .strip_suffix("-amd64")?;
    let version = version.replace("+deb", "+");
    version
        .split(['-', '+', '.'])
        .map(|number| number.parse().ok())
        .collect()
}

fn unpack(package: &str, dir: &Path) -> anyhow::Result<()> {
    let new = dir.with_extension("new");
    for old in [&new, dir] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("remove {}", old.display()))?;
        }
    }
    fs::create_dir_all(&new).with_context(|| format!("create {}", new.display()))?;
    run(Command::new("apt-get")
        .args(["download", package])
        .current_dir(&new))?;
    let entries = fs::read_dir(&new).with_context(|| format!("read {}", new.display()))?;
    for entry in entries {
        let archive = entry.context("read the folder of a kernel")?.path();
        run(Command::new("dpkg").arg("-x").arg(&archive).arg(&new))?;
        fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    }
    fs::write(new.join("package"), package).context("note the package")?;
    fs::rename(&new, dir).with_context(|| format!("rename {} to its place", new.display()))
}

/// Runs a command that says something only if it fails.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = display(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}: {}", output.status, said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_compares_numbers_and_leaves_flavours_out() {
        let found = "linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
                     linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
                     linux-image-6.1.0-57-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)\n\
                     linux-image-6.1.0-57-rt-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
                     linux-image-6.1.0-57-amd64-unsigned - Linux 6.1 for 64-bit PCs\n\
                     linux-image-6.1.0-57-amd64-dbg - Debug symbols\n";
        let newest = newest("6.1", found);
        assert_eq!(newest.as_deref(), Some("linux-image-6.1.0-56-amd64"));
    }

    #[test]
    fn newest_of_a_series_takes_none_of_another() {
        let found = "linux-image-6.12.99+deb12-amd64 - Linux\n\
                     linux-image-6.12.117+deb12-amd64 - Linux\n\
                     linux-image-6.12.43+deb13-amd64 - Linux\n";
        assert_eq!(newest("6.1", found), None);
        assert_eq!(
            newest("6.12", found).as_deref(),
            Some("linux-image-6.12.117+deb12-amd64")
        );
    }
}
