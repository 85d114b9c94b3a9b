//! The leak meter: a guest that sends to port 25 without pause, what it has sent, and what arrived.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use gate25_tests::Witness;

use super::host::Host;

/// SYNs made by hand, a second, beside as many connects as there can be.
const RATE: u32 = 50;
/// Packets that are to be sent after what is done to the host.
const AFTERWARDS: u64 = 200;
const LIMIT: Duration = Duration::from_secs(120);

/// Packets to port 25 that have left a guest.
fn sent(host: &mut Host, guest: u32) -> anyhow::Result<u64> {
    let words = format!("ip netns exec guest{guest} nft list counter inet sent seen");
    Witness::packets_in(&host.succeed(&words)?)
}

/// Packets to port 25 that have arrived anywhere, since the boot.
pub(super) fn arrived(host: &mut Host) -> anyhow::Result<u64> {
    Witness::packets_in(&host.succeed("ip netns exec far nft list counter inet witness seen")?)
}

/// Does something while guest 1 sends all it can; none of it may arrive.
pub(super) fn under_storm(
    host: &mut Host,
    body: impl FnOnce(&mut Host) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let (sent_before, arrived_before) = (sent(host, 1)?, arrived(host)?);
    host.succeed(&format!(
        "systemd-run --quiet --collect --unit=storm ip netns exec guest1 \
         /usr/local/lib/acceptance/gate25-tenant storm {RATE} 198.51.100.11 203.0.113.25:25 \
         2001:db8:100::11 '[2001:db8:113::25]:25'"
    ))?;
    more(host, AFTERWARDS)?;
    let done = body(host);
    let stormed = more(host, AFTERWARDS).and_then(|()| {
        host.succeed("systemctl stop storm").map(drop)?;
        Ok((
            sent(host, 1)? - sent_before,
            arrived(host)? - arrived_before,
        ))
    });
    let done = done?;
    let (sent, arrived) = stormed.context("the storm")?;
    if arrived != 0 {
        bail!("{done}; {arrived} of {sent} packets leaked");
    }
    Ok(format!("{done}; {sent} packets sent to port 25, 0 arrived"))
}

/// Waits for so many more packets to be sent.
fn more(host: &mut Host, packets: u64) -> anyhow::Result<()> {
    let until = sent(host, 1)? + packets;
    let start = Instant::now();
    loop {
        let sent = sent(host, 1)?;
        if sent >= until {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            bail!("{sent} packets sent, and not {until}, after {LIMIT:?}");
        }
    }
}
