//! A boot that starts guests.

use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{
    Acceptance,
    host::{Host, contains, seconds},
    installing::{DROPPED, REFUSED, no_unit_failed},
    storm::arrived,
};

/// Units that start guests, and the guests. gate25's unit names them.
const KNOWN: [(&str, u32); 2] = [("libvirt-guests.service", 1), ("pve-guests.service", 2)];
/// It does not name this one, which `machines.target` wants.
const UNKNOWN: (&str, u32) = ("machine-guest.service", 3);
/// What README says that the journal has of a start, before systemd is told that it is over.
const LINES: [&str; 2] = ["programs loaded", "policy applied"];
/// And what may come a little later: the guard that the agent keeps there takes the place of the boot's.
const LATER: &str = "guard in place";
const LIMIT: Duration = Duration::from_secs(60);

/// When what happened in a boot, since the host was switched on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boot {
    /// The kernel's clock began.
    pub(super) kernel: Duration,
    /// The guard's rules were loaded.
    pub(super) guard: Duration,
    /// The agent had dealt with everything that was there.
    pub(super) enforcing: Duration,
    /// The first unit known to start guests was started.
    pub(super) starter: Duration,
    /// The first interface of a guest was made, by whatever unit.
    pub(super) guest: Duration,
}

/// Guests and nftables.service at boot; the host is shut down and boots.
pub(super) fn reboot(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    host.succeed(
        "systemctl enable nftables libvirt-guests pve-guests machine-guest machines.target",
    )?;
    host.reboot()?;
    let boot = closed_before_guests(host)?;
    acceptance.times.boot = Some(boot);
    Ok(told(&boot))
}

pub(super) fn told(boot: &Boot) -> String {
    let Boot {
        kernel,
        guard,
        enforcing,
        starter,
        guest,
    } = boot;
    format!(
        "after power-on: kernel {:.1} s, guard {:.1} s, enforcing {:.1} s, the first unit that starts guests \
         {:.1} s, the first guest's interface {:.1} s; 3 guests sent to port 25 at once, 0 packets arrived",
        kernel.as_secs_f64(),
        guard.as_secs_f64(),
        enforcing.as_secs_f64(),
        starter.as_secs_f64(),
        guest.as_secs_f64()
    )
}

/// Checks a boot that is over: order, outcomes, and that nothing has arrived since.
pub(super) fn closed_before_guests(host: &mut Host) -> anyhow::Result<Boot> {
    no_unit_failed(host)?;
    let guard = host.moment("gate25-guard", "ActiveEnterTimestamp")?;
    let enforcing = host.moment("gate25", "ActiveEnterTimestamp")?;
    let mut starters = Vec::new();
    let mut born = Vec::new();
    for (unit, guest) in KNOWN {
        let started = host.moment(unit, "InactiveExitTimestamp")?;
        if started < enforcing {
            bail!("{unit} started at {started:?}, the agent was ready at {enforcing:?}");
        }
        check_refused(host, guest, &[REFUSED])?;
        starters.push(started);
        born.push(birth(host, guest)?);
    }
    let (_, guest) = UNKNOWN;
    let early = birth(host, guest)?;
    if early < guard {
        bail!("guest {guest} was made at {early:?}, the guard was loaded at {guard:?}");
    }
    // The guard alone may have been there, which drops, at both attempts or only at the first.
    check_refused(host, guest, &[REFUSED, DROPPED, "timed out\nrefused\n"])?;
    born.push(early);
    check_journal(host, enforcing)?;
    host.succeed("gate25 status")?;
    let arrived = arrived(host)?;
    if arrived != 0 {
        bail!("{arrived} packets to port 25 arrived since the boot");
    }
    let cycles = host.run("journalctl --boot --no-pager | grep -i 'ordering cycle'")?;
    if cycles.0 == 0 {
        bail!("{}", cycles.1.trim());
    }
    let kernel = host.before_the_kernel()?;
    let first = |moments: Vec<Duration>| moments.into_iter().min().context("no guest");
    Ok(Boot {
        kernel,
        guard: kernel + guard,
        enforcing: kernel + enforcing,
        starter: kernel + first(starters)?,
        guest: kernel + first(born)?,
    })
}

/// When a guest's interface was made, by the machine's clock.
fn birth(host: &mut Host, guest: u32) -> anyhow::Result<Duration> {
    seconds(&host.succeed(&format!("cat /run/guest{guest}.born"))?)
}

fn check_refused(host: &mut Host, guest: u32, may: &[&str]) -> anyhow::Result<()> {
    let outcomes = host.succeed(&format!("cat /run/guest{guest}.outcomes"))?;
    if !may.contains(&outcomes.as_str()) {
        bail!("guest {guest} met {:?}", outcomes.trim());
    }
    Ok(())
}

/// The lines that a start leaves, none of an error, and all before the agent was ready.
fn check_journal(host: &mut Host, enforcing: Duration) -> anyhow::Result<()> {
    const JOURNAL: &str =
        "journalctl --boot --no-pager --quiet --output=short-monotonic --unit=gate25";
    host.wait(&format!("{JOURNAL} | grep '{LATER}'"), LIMIT)?;
    let journal = host.succeed(JOURNAL)?;
    for line in LINES {
        contains(&journal, line)?;
        let told = journal.lines().find(|it| it.contains(line));
        let stamp = told.and_then(|it| it.strip_prefix('[')?.split_once(']'));
        let at = seconds(stamp.map_or("", |(stamp, _)| stamp))?;
        // The journal has a line a moment after it was written.
        if at > enforcing + Duration::from_millis(500) {
            bail!("{line:?} at {at:?}, ready at {enforcing:?}");
        }
    }
    let errors = host.succeed(&format!(
        "{JOURNAL} --unit=gate25-guard --priority=warning --no-hostname"
    ))?;
    if !errors.trim().is_empty() {
        bail!("the journal complains: {}", errors.trim());
    }
    Ok(())
}
