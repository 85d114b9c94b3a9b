//! Two taps behind one bridge: frames as a guest sends them, and as the far side gets them.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;

use crate::{NetNs, Offload, Tap, poll};

const LIMIT: Duration = Duration::from_secs(10);
/// Ethertype for local experiments (IEEE 802), and a frame of the shortest length.
const HELLO: [u8; 60] = {
    let mut frame = [0; 60];
    frame[0] = 2;
    frame[6] = 2;
    frame[5] = 1;
    frame[11] = 2;
    frame[12] = 0x88;
    frame[13] = 0xb5;
    frame
};

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
        poll("the bridge", LIMIT, || {
            guest.send(&HELLO)?;
            let brief = Duration::from_millis(100);
            Ok(far.receive(brief, |seen| seen == HELLO).ok())
        })?;
        Ok(Self { guest, far })
    }
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
