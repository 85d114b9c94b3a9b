//! What is carried to the machine: packages, programs, units, policies.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use gate25_tests::Witness;

use crate::cargo::{self, cargo, target};

/// Files for the machine: name, content.
const FILES: [(&str, &str); 10] = [
    ("world.sh", include_str!("share/world.sh")),
    ("guest.sh", include_str!("share/guest.sh")),
    ("sent.nft", include_str!("share/sent.nft")),
    ("far-side.service", include_str!("share/far-side.service")),
    (
        "libvirt-guests.service",
        include_str!("share/libvirt-guests.service"),
    ),
    (
        "pve-guests.service",
        include_str!("share/pve-guests.service"),
    ),
    (
        "machine-guest.service",
        include_str!("share/machine-guest.service"),
    ),
    ("machines.target", include_str!("share/machines.target")),
    ("policy.yaml", include_str!("share/policy.yaml")),
    ("exemption.yaml", include_str!("share/exemption.yaml")),
];

/// The version of nftables in Debian 11, which gate25 cannot use.
const OLD_NFTABLES: &str = "Package: nftables\nVersion: 0.9.8-3.1\nArchitecture: amd64\n\
    Maintainer: nobody <nobody@gate25.example>\nDescription: stands for the version that Debian 11 has\n";

/// The packages by their names in the folder.
#[derive(Debug)]
pub(super) struct Packages {
    pub(super) first: String,
    /// A newer one, with other programs and tables.
    pub(super) second: String,
    pub(super) old_nftables: String,
}

/// Puts everything into the folder.
pub(super) fn gather(folder: &Path, packages: &[PathBuf; 2]) -> anyhow::Result<Packages> {
    for (name, content) in FILES {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", path.display()))?;
    }
    let witness = folder.join("witness.nft");
    fs::write(&witness, Witness::RULES).with_context(|| format!("write {}", witness.display()))?;
    copy(&tenant()?, folder)?;
    let [first, second] = packages;
    Ok(Packages {
        first: copy(first, folder)?,
        second: copy(second, folder)?,
        old_nftables: old_nftables(folder)?,
    })
}

fn copy(from: &Path, folder: &Path) -> anyhow::Result<String> {
    let name = from
        .file_name()
        .with_context(|| format!("{} is no file", from.display()))?;
    fs::copy(from, folder.join(name)).with_context(|| format!("copy {}", from.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

/// The program that guests and the far side run.
fn tenant() -> anyhow::Result<PathBuf> {
    let mut command = cargo("build");
    command.args(["--package", "gate25-tests", "--bin", "gate25-tenant"]);
    cargo::finish(&mut command)?;
    Ok(target().join("debug/gate25-tenant"))
}

/// A package that is nothing but its name and version.
fn old_nftables(folder: &Path) -> anyhow::Result<String> {
    const NAME: &str = "nftables_0.9.8-3.1_amd64.deb";
    let stage = folder.join("nftables");
    let control = stage.join("DEBIAN");
    fs::create_dir_all(&control).with_context(|| format!("create {}", control.display()))?;
    let control = control.join("control");
    fs::write(&control, OLD_NFTABLES).with_context(|| format!("write {}", control.display()))?;
    let mut command = Command::new("dpkg-deb");
    command
        .args(["--root-owner-group", "--build"])
        .args([&stage, &folder.join(NAME)]);
    cargo::finish(&mut command)?;
    fs::remove_dir_all(&stage).with_context(|| format!("remove {}", stage.display()))?;
    Ok(NAME.to_owned())
}
