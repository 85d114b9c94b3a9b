//! What goes wrong on hosts.

use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{
    Acceptance,
    booting::{closed_before_guests, told},
    host::{Host, contains},
    installing::{DROPPED, REFUSED, apt_install, attempt, await_enforcing, stopped, switch},
    living,
    storm::arrived,
};

const LIMIT: Duration = Duration::from_secs(120);
/// What dpkg can go on from. Of a package that is half unpacked it says that it has to be installed anew.
const INTERRUPTED: [&str; 2] = ["install ok unpacked", "install ok half-configured"];
/// Settings of the agent's unit that this machine adds.
const DROP_IN: &str = "/etc/systemd/system/gate25.service.d";
/// How often a package being installed is looked at, until its installation is under way.
const LOOKS: u32 = 2_000;

/// Started twice: the unit is started as it runs, and an agent by hand beside it.
pub(super) fn twice(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    let agent = living::agent(host)?;
    host.succeed("systemctl start gate25")?;
    let (code, said) = host.run("timeout 120 gate25 run")?;
    if code != 1 {
        bail!("a second agent ends with {code}: {}", said.trim());
    }
    if living::agent(host)? != agent {
        bail!("another agent runs");
    }
    await_enforcing(host)?;
    Ok("the second ends with 1, the first runs on".to_owned())
}

/// A state directory that cannot be written.
pub(super) fn state(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    let before = arrived(host)?;
    host.succeed(
        "systemctl stop gate25 && mount -t tmpfs -o ro,mode=0700,uid=$(id -u gate25),gid=$(id -g gate25) \
         tmpfs /var/lib/gate25 && systemctl start gate25",
    )?;
    attempt(host, REFUSED)?;
    host.wait("gate25 status | grep '^warning.*/var/lib/gate25'", LIMIT)?;
    host.succeed("systemctl stop gate25 && umount /var/lib/gate25 && systemctl start gate25")?;
    await_enforcing(host)?;
    nothing_since(host, before)?;
    Ok("enforces, and `status` warns".to_owned())
}

/// A policy directory on a file system that cannot be written.
pub(super) fn policy(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    const POLICY: &str = "/etc/gate25/policy.d";
    let host = &mut acceptance.host;
    let before = arrived(host)?;
    host.succeed(&format!(
        "mount --bind {POLICY} {POLICY} && mount -o remount,bind,ro {POLICY}"
    ))?;
    host.succeed("gate25 reload --wait")?;
    let said = host.refuse(
        "gate25 exempt add tried --customer c-101 --reason tried --ticket NOC-2 --approved-by noc --for 1d \
         --to any --file exemptions.yaml",
    )?;
    contains(&said, "nothing was written: Read-only file system")?;
    attempt(host, REFUSED)?;
    host.succeed(&format!("umount {POLICY}"))?;
    nothing_since(host, before)?;
    Ok(
        "read and reloaded; `exempt add` fails, says `Read-only file system` and changes nothing"
            .to_owned(),
    )
}

fn nothing_since(host: &mut Host, before: u64) -> anyhow::Result<()> {
    let leaked = arrived(host)? - before;
    if leaked != 0 {
        bail!("{leaked} packets leaked");
    }
    Ok(())
}

/// The power is cut while dpkg has the package unpacked and not configured.
pub(super) fn interrupted(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let (host, packages) = (&mut acceptance.host, &acceptance.packages);
    host.succeed(&format!(
        "systemd-run --quiet --collect --unit=interrupted --setenv=DEBIAN_FRONTEND=noninteractive \
         apt install --quiet --yes --reinstall /root/{}",
        packages.second
    ))?;
    let mut looks = 0;
    let caught = loop {
        let state = state_of_package(host)?;
        if INTERRUPTED.contains(&state.as_str()) {
            break state;
        }
        looks += 1;
        if looks > LOOKS {
            bail!("never seen but {state}");
        }
    };
    // What dpkg has written so far is on the disk: it waits for that itself, where it matters.
    host.cut_power_and_boot()?;
    let boot = closed_before_guests(host).context("the boot after the power cut")?;
    let found = state_of_package(host)?;
    host.succeed("dpkg --configure -a")?;
    let mended = state_of_package(host)?;
    if mended != "install ok installed" {
        bail!("{mended:?} after `dpkg --configure -a`");
    }
    await_enforcing(host)?;
    attempt(host, REFUSED)?;
    Ok(format!(
        "cut at `{caught}`, found at `{found}`, mended by `dpkg --configure -a`; {}",
        told(&boot)
    ))
}

/// Installed where the kernel answers `bpf()` as one that is built without it does.
pub(super) fn no_programs(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let (host, packages) = (&mut acceptance.host, &acceptance.packages);
    host.succeed(&format!(
        "mkdir -p {DROP_IN} && printf '[Service]\\nSystemCallFilter=~bpf\\nSystemCallErrorNumber=ENOSYS\\n' \
         >{DROP_IN}/no-bpf.conf && systemctl daemon-reload"
    ))?;
    host.succeed(&apt_install(&packages.first))?;
    switch(host)?;
    // The settings that are shipped name roots of containers, which nftables cannot judge.
    let said = host.refuse("gate25 status")?;
    for part in [
        "nftables (fallback",
        "cgroup machine.slice is without its program",
    ] {
        contains(&said, part)?;
    }
    // Debian builds its kernels without resets at ingress.
    stopped(host, DROPPED)?;
    Ok(
        "nftables stops guests, and `status` exits with 1 and tells that containers are not judged"
            .to_owned(),
    )
}

/// The kernel is locked down for confidentiality, and `bpf()` is back: the programs take over.
pub(super) fn lockdown(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    host.succeed("echo confidentiality >/sys/kernel/security/lockdown")?;
    host.succeed(&format!(
        "rm -r {DROP_IN} && systemctl daemon-reload && systemctl restart gate25"
    ))?;
    await_enforcing(host)?;
    let said = host.succeed("gate25 status")?;
    for part in ["ebpf (preferred", "checksums left to the host"] {
        contains(&said, part)?;
    }
    stopped(host, REFUSED)?;
    Ok(
        "the programs enforce, and `status` tells that checksums left to the host are not watched"
            .to_owned(),
    )
}

fn state_of_package(host: &mut Host) -> anyhow::Result<String> {
    host.succeed("dpkg-query --show --showformat='${Status}' gate25")
}
