//! A bare Debian 12 on a disk, made by debootstrap, to install packages on.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{
    cargo::{self, LIMIT, root},
    kernels::{self, Series},
};

const MAKE: &str = include_str!("debian/make.sh");
/// What a host has that is none of gate25's dependencies.
const INSTALLED: &str = "systemd-sysv,udev,kmod,iproute2,procps";
/// gate25's dependencies: installed with it, by apt.
const CACHED: &str = "nftables";

/// Has the disk lie in `.cache/debian`, made anew if anything that it is made of has changed.
pub(crate) fn provide() -> anyhow::Result<PathBuf> {
    kernels::provide(Series::V6_1)?;
    let kernel = root().join(".cache/kernels").join(Series::V6_1.name());
    let package = kernel.join("package");
    let package =
        fs::read_to_string(&package).with_context(|| format!("read {}", package.display()))?;
    let dir = root().join(".cache/debian");
    let (disk, mark) = (dir.join("disk"), dir.join("made-of"));
    let made_of = format!("{package}\n{INSTALLED}\n{CACHED}\n{MAKE}");
    if disk.exists() && fs::read_to_string(&mark).ok().as_ref() == Some(&made_of) {
        return Ok(disk);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    let files = dir.join("root");
    fs::create_dir_all(&files).with_context(|| format!("create {}", files.display()))?;
    let log = dir.join("log");
    println!("making a disk with Debian 12 in .cache/debian (some minutes)");
    let out = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let errors = out.try_clone().context("copy the log's descriptor")?;
    let mut child = Command::new("sh")
        .args(["-c", MAKE, "sh"])
        .args([&files, &disk, &kernel])
        .args([INSTALLED, CACHED])
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(errors)
        .spawn()
        .context("start sh")?;
    let status = cargo::wait(&mut child, LIMIT)?;
    if !status.success() {
        bail!("make a Debian: {status}; see {}", log.display());
    }
    fs::remove_dir_all(&files).with_context(|| format!("remove {}", files.display()))?;
    fs::write(&mark, made_of).with_context(|| format!("write {}", mark.display()))?;
    Ok(disk)
}
