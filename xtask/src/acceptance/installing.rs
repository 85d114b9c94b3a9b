//! From a bare host to one that enforces.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::{
    Acceptance,
    host::{Host, contains},
    storm::arrived,
};

/// The settings that the package ships.
const SETTINGS: &str = "/etc/gate25/gate25.yaml";
/// How long the agent may take for something, emulated on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
const PLACE: &str = "/usr/local/lib/acceptance";
/// How a finding of the doctor's begins.
const FINDINGS: [&str; 2] = ["error: ", "warning: "];
/// What it has to say of any Debian 12, how its line begins and the message on the next: what the backend
/// cannot do on a kernel without tcx, and that this one has none.
const KNOWN_FINDINGS: [(&str, &str); 2] = [
    (
        "warning: agent-warning: agent",
        "backend ebpf cannot do everything here: redirection and the notice: rejected instead; packets that come \
         back from guarded ports (`block_return`): they pass",
    ),
    (
        "warning: no-tcx: ",
        "programs cannot be attached to interfaces by links",
    ),
];
/// Connects from guest 1.
const TRY: &str = "ip netns exec guest1 /usr/local/lib/acceptance/gate25-tenant once 203.0.113.25:25 \
    '[2001:db8:113::25]:25'";
pub(super) const CONNECTED: &str = "connected\nconnected\n";
pub(super) const REFUSED: &str = "refused\nrefused\n";
/// By the guard alone, or by nftables where it cannot answer.
pub(super) const DROPPED: &str = "timed out\ntimed out\n";

/// A Debian that boots without a failed unit; packages and guests are brought to it.
pub(super) fn bare(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    host.boot()?;
    host.succeed(&format!(
        "modprobe 9pnet_virtio && mount -t 9p -o trans=virtio,version=9p2000.L,ro share /mnt && \
         mkdir -p {PLACE} && cp /mnt/*.sh /mnt/*.nft /mnt/*.yaml /mnt/gate25-tenant {PLACE} && \
         cp /mnt/*.service /mnt/*.target /etc/systemd/system/ && chmod 0644 /etc/systemd/system/*.service \
         /etc/systemd/system/*.target && cp /mnt/*.deb /root/ && systemctl daemon-reload"
    ))?;
    no_unit_failed(host)?;
    let release = host.succeed("uname -r")?;
    let debian = host.succeed("cat /etc/debian_version")?;
    Ok(format!(
        "Debian {}, kernel {}",
        debian.trim(),
        release.trim()
    ))
}

pub(super) fn no_unit_failed(host: &mut Host) -> anyhow::Result<()> {
    let failed = host.succeed("systemctl --failed --plain --no-legend")?;
    if !failed.trim().is_empty() {
        bail!("failed: {}", failed.trim());
    }
    Ok(())
}

/// apt does not install beside an nftables that cannot do what the guard needs.
pub(super) fn old_nftables(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let (host, packages) = (&mut acceptance.host, &acceptance.packages);
    host.succeed(&format!(
        "dpkg --install /root/{} && apt-mark hold nftables",
        packages.old_nftables
    ))?;
    let said = host.refuse(&apt_install(&packages.first))?;
    contains(&said, "nftables (>= 1.0.6)")?;
    host.refuse("dpkg-query --show gate25")?;
    host.succeed("apt-mark unhold nftables && dpkg --purge nftables")?;
    Ok("refused by apt: `Depends: nftables (>= 1.0.6)`, nothing installed".to_owned())
}

/// `apt install ./gate25_*.deb`, with nftables out of the distribution's archive.
pub(super) fn install(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let (host, packages) = (&mut acceptance.host, &acceptance.packages);
    let start = Instant::now();
    let said = host.succeed(&apt_install(&packages.first))?;
    let took = start.elapsed();
    for told in [
        "gate25 observes this host",
        "refuses nothing",
        "set `enforcement: policy` in /etc/gate25/gate25.yaml",
    ] {
        contains(&said, told)?;
    }
    host.succeed("systemctl is-active gate25 gate25-guard")?;
    host.succeed("systemctl is-enabled gate25 gate25-guard")?;
    contains(&host.succeed("nft --version")?, "v1.")?;
    acceptance.times.installed = Some(took);
    Ok(format!(
        "nftables installed with it, both units enabled and running {:.1} s after apt was started; \
         it says that it observes",
        took.as_secs_f64()
    ))
}

/// Nothing is refused, and what guests send is seen to arrive: so the meter can tell.
pub(super) fn observe(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    host.succeed(&format!(
        "systemctl start far-side && {PLACE}/guest.sh 1 && cat /run/guest1.outcomes"
    ))?;
    attempt(host, CONNECTED)?;
    host.refuse("gate25 status")?;
    let arrived = arrived(host)?;
    if arrived == 0 {
        bail!("connected, and nothing arrived");
    }
    Ok(format!(
        "guests reach port 25 ({arrived} packets arrived), `gate25 status` exits with 1"
    ))
}

/// The words that install one of the packages that were brought to the machine.
pub(super) fn apt_install(package: &str) -> String {
    format!("cd /root && apt install --quiet --yes ./{package}")
}

/// Guest 1 meets this outcome, and nothing that it sends arrives.
pub(super) fn stopped(host: &mut Host, outcome: &str) -> anyhow::Result<()> {
    let before = arrived(host)?;
    attempt(host, outcome)?;
    let leaked = arrived(host)? - before;
    if leaked != 0 {
        bail!("{leaked} packets leaked");
    }
    Ok(())
}

/// Connects from guest 1, by IPv4 and IPv6.
pub(super) fn attempt(host: &mut Host, outcome: &str) -> anyhow::Result<()> {
    let seen = host.succeed(TRY)?;
    if seen != outcome {
        bail!(
            "{:?} instead of {:?}",
            seen.trim().replace('\n', ", "),
            outcome.trim().replace('\n', ", ")
        );
    }
    Ok(())
}

/// Waits until guest 1 meets this outcome by both, and says how long that took.
pub(super) fn await_outcome(host: &mut Host, outcome: &str) -> anyhow::Result<Duration> {
    let outcome = outcome.trim().replace('\n', " ");
    host.wait(&format!("[ \"$(echo $({TRY}))\" = '{outcome}' ]"), LIMIT)
}

/// Waits until the agent runs and enforces.
pub(super) fn await_enforcing(host: &mut Host) -> anyhow::Result<Duration> {
    host.wait("systemctl is-active gate25 && gate25 status", LIMIT)
}

/// From observing to enforcing, as the package says.
pub(super) fn switch(host: &mut Host) -> anyhow::Result<()> {
    let words = format!(
        "sed -i 's/^enforcement: observe$/enforcement: policy/' {SETTINGS} && gate25 check && \
         systemctl restart gate25"
    );
    host.succeed(&words).map(drop)
}

/// The policy, and `enforcement: policy`, as the package said.
pub(super) fn enforce(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    host.succeed(&format!("cp {PLACE}/policy.yaml /etc/gate25/policy.d/"))?;
    host.succeed("gate25 reload --wait")?;
    let start = Instant::now();
    switch(host)?;
    await_enforcing(host)?;
    let took = start.elapsed();
    stopped(host, REFUSED)?;
    acceptance.times.switched = Some(took);
    Ok(format!(
        "check, restart and enforcing within {:.1} s; guests are refused",
        took.as_secs_f64()
    ))
}

/// `gate25 doctor` finds nothing but what this kernel does not have.
pub(super) fn doctor(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let said = acceptance.host.succeed("gate25 doctor")?;
    // A finding's message is on the line after it.
    let messages = said.lines().skip(1).chain([""]).map(str::trim);
    let found = said.lines().zip(messages);
    let found = found.filter(|(line, _)| FINDINGS.iter().any(|kind| line.starts_with(kind)));
    let found: Vec<(&str, &str)> = found.collect();
    let is_known = |line: &str, message: &str| {
        KNOWN_FINDINGS
            .iter()
            .any(|(start, known)| line.starts_with(start) && message == *known)
    };
    if let Some((line, message)) = found
        .iter()
        .find(|(line, message)| !is_known(line, message))
    {
        bail!("{line}: {message}");
    }
    let lines: Vec<&str> = found.into_iter().map(|(line, _)| line).collect();
    Ok(format!(
        "exits with 0, and tells what this kernel does not have: {}",
        lines.join(", ")
    ))
}
