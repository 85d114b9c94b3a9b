//! The package goes.

use anyhow::bail;

use super::{
    Acceptance,
    host::contains,
    installing::{CONNECTED, DROPPED, REFUSED, attempt},
    storm::{arrived, under_storm},
};

/// Removed: what is closed stays closed, and a new guest meets the guard.
pub(super) fn remove(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    under_storm(&mut acceptance.host, |host| {
        let said = host.succeed("apt remove --quiet --yes gate25")?;
        contains(&said, "stays closed until the next boot")?;
        contains(&said, "`apt purge gate25` opens everything")?;
        // Not by its name: the shell remembers where it was.
        host.refuse("ls /usr/bin/gate25")?;
        host.succeed("/usr/local/lib/acceptance/guest.sh 4")?;
        let outcomes = host.succeed("cat /run/guest4.outcomes")?;
        if ![REFUSED, DROPPED].contains(&outcomes.as_str()) {
            bail!("a new guest met {:?}", outcomes.trim());
        }
        attempt(host, REFUSED)?;
        Ok(
            "it says that what it has closed stays closed; a new guest sends nothing either"
                .to_owned(),
        )
    })
}

/// Purged: everything opens, and nothing is left but the operator's policy.
pub(super) fn purge(acceptance: &mut Acceptance) -> anyhow::Result<String> {
    let host = &mut acceptance.host;
    let said = host.succeed("apt purge --quiet --yes gate25")?;
    contains(&said, "removed /sys/fs/bpf/gate25")?;
    let before = arrived(host)?;
    attempt(host, CONNECTED)?;
    if arrived(host)? == before {
        bail!("connected, and nothing arrived");
    }
    let left = host.succeed(
        "ls -d /sys/fs/bpf/gate25* /run/gate25* /var/lib/gate25* 2>/dev/null; nft list tables | grep gate25; \
         tc filter show dev tap101i0 ingress; find /etc /usr /lib/systemd -name '*gate25*' -not -path '*/acceptance/*' -not -path '/usr/lib/systemd/*'; \
         systemctl list-units --all --plain --no-legend 'gate25*'; true",
    )?;
    if left != "/etc/gate25\n" {
        bail!("left: {}", left.trim());
    }
    let policy = host.succeed("ls /etc/gate25 /etc/gate25/policy.d")?;
    if policy != "/etc/gate25:\npolicy.d\n\n/etc/gate25/policy.d:\npolicy.yaml\n" {
        bail!("left in /etc/gate25: {policy}");
    }
    Ok(
        "torn down, guests reach port 25; no program, rule, unit or file is left but `policy.d`"
            .to_owned(),
    )
}
