//! A host in use: edits, crashes, upgrades.

use std::time::{Duration, Instant};

use anyhow::bail;

use super::{
    Acceptance,
    host::{Host, contains},
    installing::{CONNECTED, REFUSED, apt_install, await_enforcing, await_outcome},
    storm::under_storm,
};

const CRASHES: u32 = 3;
const LIMIT: Duration = Duration::from_secs(180);

/// A file comes and goes; nobody tells the agent.
pub(super) fn edit(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    host.succeed(
        "sed \"s/@EXPIRES@/$(date --utc --date='1 day' +%FT%TZ)/\" \
         /usr/local/lib/acceptance/exemption.yaml >/etc/gate25/policy.d/exemption.yaml",
    )?;
    let opened = await_outcome(host, CONNECTED)?;
    host.succeed("rm /etc/gate25/policy.d/exemption.yaml")?;
    let closed = await_outcome(host, REFUSED)?;
    Ok(format!(
        "an exemption opens within {:.1} s of being written and closes within {:.1} s of being removed",
        opened.as_secs_f64(),
        closed.as_secs_f64()
    ))
}

/// Killed, it is started by systemd; what it enforced goes on meanwhile.
pub(super) fn crash(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    under_storm(&mut acceptance.host, |host| {
        let mut longest = Duration::ZERO;
        for _ in 0..CRASHES {
            let before = host.property("gate25", "MainPID")?;
            let start = Instant::now();
            host.succeed(&format!("kill -9 {before}"))?;
            host.wait(
                &format!(
                    "now=$(systemctl show --value --property=MainPID gate25) && [ \"$now\" != 0 ] && \
                     [ \"$now\" != {before} ]"
                ),
                LIMIT,
            )?;
            await_enforcing(host)?;
            longest = longest.max(start.elapsed());
        }
        let restarts = host.property("gate25", "NRestarts")?;
        if restarts != CRASHES.to_string() {
            bail!("killed {CRASHES} times, started again {restarts} times");
        }
        Ok(format!(
            "killed {CRASHES} times, enforcing again by systemd within {:.1} s",
            longest.as_secs_f64()
        ))
    })
}

/// A newer package, whose programs and tables are others.
pub(super) fn upgrade(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let second = &acceptance.packages.second;
    under_storm(&mut acceptance.host, |host| {
        let (agent, pins, settings) = (agent(host)?, pins(host)?, settings(host)?);
        host.succeed(&apt_install(second))?;
        await_enforcing(host)?;
        let pins_now = self::pins(host)?;
        if self::agent(host)? == agent {
            bail!("the agent before runs on");
        }
        if pins_now == pins {
            bail!("the tables are those of the version before: {pins}");
        }
        if self::settings(host)? != settings {
            bail!("the settings have changed");
        }
        Ok(format!(
            "to {second}: tables {} instead of {}, the settings are as they were",
            pins_now.trim(),
            pins.trim()
        ))
    })
}

pub(super) fn agent(host: &mut Host) -> anyhow::Result<String> {
    host.property("gate25", "MainPID")
}

/// The folders of what is pinned: one for each version of the tables.
fn pins(host: &mut Host) -> anyhow::Result<String> {
    let said = host.succeed("ls /sys/fs/bpf/gate25")?;
    contains(&said, "v")?;
    Ok(said)
}

fn settings(host: &mut Host) -> anyhow::Result<String> {
    host.succeed("cat /etc/gate25/gate25.yaml")
}
