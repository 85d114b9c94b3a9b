//! A guest's tap, what judges, and a host at the far end that puts datagrams together and counts
//! what they hold.

use std::time::Duration;

use anyhow::Context as _;
use gate25_common::testing::frames::{Ipv4, SERVER_V4, Tcp, frame_v4};
use gate25_tests::{Lab, NetNs, poll};

use super::packets::complete;
use super::range::{Path, Range};

const LIMIT: Duration = Duration::from_secs(10);
const MARKER: u16 = 444;
/// IPv6's pieces are put together behind this hook, unless connections are tracked. The kernel lists counters in
/// this order.
const COUNTERS: &str = "table inet witness {
 counter marker {}; counter guarded {};
 chain assemble { type filter hook prerouting priority -300; ct state new; };
 chain arrive { type filter hook input priority 0;
  tcp dport 25 counter name guarded; tcp dport 444 counter name marker; }; }";

pub(crate) struct Receiver {
    pub(crate) range: Range,
    far: NetNs,
    marker: Vec<u8>,
    arrived: Arrived,
}

/// What the receiver has counted. Where the last marker is among them, so is all that was sent before it.
#[derive(Clone, Copy, Default)]
struct Arrived {
    guarded: u64,
    markers: u64,
}

impl Receiver {
    /// Puts a host in the place of the far tap.
    ///
    /// # Errors
    /// When it cannot be made, or nothing comes through.
    pub(crate) fn new(lab: &Lab, path: Path) -> anyhow::Result<Self> {
        let host = lab.netns("hypervisor")?;
        let far = lab.netns("far")?;
        let range = Range::new(&host, path)?;
        let server = std::net::Ipv4Addr::from(SERVER_V4);
        host.veth("mx0", &far, "eth0")?;
        far.ip(&format!(
            "link set eth0 address 02:00:00:00:00:01
             link set eth0 up
             addr add {server}/24 dev eth0
             addr add 2001:db8:25::25/64 dev eth0 nodad"
        ))?;
        match path {
            Path::Bridged => host.ip("link set wire0 nomaster\nlink set mx0 master br9 up")?,
            Path::Routed => host.ip(&format!(
                "link set wire0 down
                 link set mx0 up
                 addr add 203.0.113.1/24 dev mx0
                 addr add 2001:db8:25::1/64 dev mx0 nodad
                 neigh replace {server} lladdr 02:00:00:00:00:01 dev mx0
                 neigh replace 2001:db8:25::25 lladdr 02:00:00:00:00:01 dev mx0"
            ))?,
        }
        far.exec("nft", &[COUNTERS])?;
        let marker = frame_v4(&Ipv4::to(SERVER_V4), &Tcp::syn(MARKER).bytes());
        let mut receiver = Self {
            range,
            far,
            marker: complete(marker),
            arrived: Arrived::default(),
        };
        poll("the receiver to be reached", LIMIT, || {
            receiver.range.guest.send(&receiver.marker)?;
            receiver.arrived = receiver.arrived()?;
            Ok((receiver.arrived.markers > 0).then_some(()))
        })?;
        Ok(receiver)
    }

    /// Sends frames, and tells how many packets for the guarded port the receiver has got of them.
    ///
    /// # Errors
    /// When even what nobody judges does not arrive.
    pub(crate) fn got(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) -> anyhow::Result<u64> {
        for frame in frames {
            self.range.guest.send(&frame)?;
        }
        // What comes through arrives before anything of what was sent later.
        self.range.guest.send(&self.marker)?;
        let before = self.arrived;
        self.arrived = poll("the last frame to arrive", LIMIT, || {
            Ok(Some(self.arrived()?).filter(|now| now.markers > before.markers))
        })?;
        Ok(self.arrived.guarded - before.guarded)
    }

    fn arrived(&self) -> anyhow::Result<Arrived> {
        let text = self
            .far
            .exec("nft", &["list", "counters", "table", "inet", "witness"])?;
        let (markers, guarded) = text
            .split_once("counter guarded")
            .with_context(|| format!("no counters in {text}"))?;
        Ok(Arrived {
            markers: packets(markers)?,
            guarded: packets(guarded)?,
        })
    }
}

fn packets(counter: &str) -> anyhow::Result<u64> {
    counter
        .split_whitespace()
        .skip_while(|word| *word != "packets")
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("no count in {counter}"))
}
