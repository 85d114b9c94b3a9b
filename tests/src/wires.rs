//! Two taps behind one bridge: frames as a guest sends them, and as the far side gets them.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};

use crate::{NetNs, Offload, Tap, poll};

const LIMIT: Duration = Duration::from_secs(10);
/// Ethernet addresses, sender and receiver.
const ADDRESSES: usize = 12;
/// From anybody to somebody.
const HELLO: [u8; ADDRESSES] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// A guest's tap, `tap101i0`, and one behind the same bridge.
#[derive(Debug)]
pub struct Wires {
    /// The guest's.
    pub guest: Tap,
    /// The other one.
    pub far: Tap,
}

impl Wires {
    /// Makes both, and a bridge that forwards between them.
    ///
    /// # Errors
    /// When the kernel refuses, or nothing is forwarded before the deadline.
    pub fn new(host: &NetNs) -> anyhow::Result<Self> {
        Self::with(host, Offload::None)
    }

    /// The same, the guest's tap with what QEMU sets up or without.
    ///
    /// # Errors
    /// As [`Wires::new`].
    pub fn with(host: &NetNs, offload: Offload) -> anyhow::Result<Self> {
        spare_bridges(host)?;
        let mut guest = Tap::new(host, "tap101i0", offload)?;
        let mut far = Tap::new(host, "wire0", Offload::None)?;
        host.ip("link add br9 type bridge\nlink set br9 up")?;
        for port in ["tap101i0", "wire0"] {
            host.ip(&format!("link set {port} master br9 up"))?;
        }
        // What is sent before the kernel has noticed that the links are up is lost.
        let hello = harmless(&HELLO);
        poll("the bridge", LIMIT, || {
            guest.send(&hello)?;
            let brief = Duration::from_millis(100);
            Ok(far.receive(brief, |seen| seen == hello).ok())
        })?;
        Ok(Self { guest, far })
    }

    /// Checks that the frame does not come through when the guest sends it: another one, which does,
    /// is the next that does.
    ///
    /// # Errors
    /// When it comes through, or nothing does.
    pub fn check_stopped(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        let addresses = frame.get(..ADDRESSES).context("the frame's addresses")?;
        let next = harmless(addresses);
        self.guest.send(frame)?;
        self.guest.send(&next)?;
        let seen = self
            .far
            .receive(LIMIT, |seen| seen.starts_with(addresses))?;
        ensure!(seen == next, "it came through");
        Ok(())
    }

    /// Checks that the frame comes through as it is when the guest sends it.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_passed(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        self.guest.send(frame)?;
        let seen = self.far.receive(LIMIT, |seen| seen == frame);
        seen.map(drop).context("it does not come through")
    }
}

/// A frame that nobody judges, of the shortest length and with the ethertype for local experiments
/// (IEEE 802).
fn harmless(addresses: &[u8]) -> Vec<u8> {
    let mut frame = [addresses, &[0x88, 0xb5]].concat();
    frame.resize(60, 0);
    frame
}

/// Keeps br_netfilter, where it is loaded, from dropping bridged packets whose checksums are wrong.
///
/// # Errors
/// When its switches cannot be set.
pub fn spare_bridges(host: &NetNs) -> anyhow::Result<()> {
    for family in ["ip", "ip6"] {
        let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        if Path::new(&switch).exists() {
            host.run(|| fs::write(&switch, "0"))?
                .with_context(|| format!("write {switch}"))?;
        }
    }
    Ok(())
}
