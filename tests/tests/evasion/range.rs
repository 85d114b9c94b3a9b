//! A guest's tap and a far one with something that judges between them, and what comes through.
//!
//! Every family of frames is sent twice: before anything judges, which tells what the network
//! carries at all, and after. Both times the far tap is the witness.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use gate25_common::testing::frames::{
    GATEWAY_MAC, GUEST_MAC, GUEST_V4, GUEST_V6, Ipv4, SERVER_V4, SERVER_V6, Tcp, frame_v4,
};
use gate25_tests::{Agent, Lab, NetNs, Offload, Settings, Tap, Tried, Wires, poll};

use super::packets::complete;

const LIMIT: Duration = Duration::from_secs(10);
/// In none of the frames of any family.
const MARKER: u16 = 444;
/// Fewer than a tap's queue holds, were each of them cut into segments.
const AT_ONCE: usize = 16;
const GUEST_TAP: &str = "tap101i0";
const FAR_TAP: &str = "wire0";
const FAR_MAC: &str = "02:00:00:00:00:09";
/// What an allowlist holds: the gateway itself, which the frames of some families name.
pub(crate) const ALLOWED_V4: [u8; 4] = [10, 0, 0, 1];
pub(crate) const ALLOWED_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// What judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// The eBPF programs, with the guard.
    Programs,
    /// The nftables backend, with the guard.
    Rules,
    /// The guard alone, without an agent.
    Guard,
}

/// How frames get from one tap to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Bridged,
    Routed,
}

/// What of a family Linux carries while nothing judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    All,
    Some,
    /// Nobody needs to stop it; it is tried all the same, and left out of the table.
    Nothing,
    /// It passes by design: not tried here.
    NotAsked,
}

/// Frames of one kind, all of which hold a packet for the guarded port.
pub(crate) struct Family {
    /// The row of the table.
    pub(crate) what: &'static str,
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) bridged: Carried,
    pub(crate) routed: Carried,
    /// What does not look into them, and why that is no way out is said where it is set.
    pub(crate) not_seen_by: Option<Gate>,
}

impl Family {
    /// A family that a bridge carries whole and a router in part.
    pub(crate) fn new(what: &'static str, frames: Vec<Vec<u8>>) -> Self {
        Self {
            what,
            frames,
            bridged: Carried::All,
            routed: Carried::Some,
            not_seen_by: None,
        }
    }

    pub(crate) fn bridged(self, bridged: Carried) -> Self {
        Self { bridged, ..self }
    }

    pub(crate) fn routed(self, routed: Carried) -> Self {
        Self { routed, ..self }
    }

    pub(crate) fn but_for(self, gate: Gate) -> Self {
        let not_seen_by = Some(gate);
        Self {
            not_seen_by,
            ..self
        }
    }

    fn carried(&self, path: Path) -> Carried {
        match path {
            Path::Bridged => self.bridged,
            Path::Routed => self.routed,
        }
    }
}

/// Sends every family past nothing, then past the gate, and judges what came through.
///
/// # Errors
/// Naming every family that leaked, or that the network did not carry as expected.
pub(crate) fn try_families(gate: Gate, path: Path, families: &[Family]) -> anyhow::Result<()> {
    let families: Vec<&Family> = families
        .iter()
        .filter(|family| family.not_seen_by != Some(gate))
        .filter(|family| family.carried(path) != Carried::NotAsked)
        .collect();
    let lab = Lab::for_test()?;
    let host = lab.netns("hypervisor")?;
    let mut range = Range::new(&host, path)?;
    let mut wrong = Vec::new();
    for family in &families {
        let arrived = range.through(&family.frames)?.len();
        let right = match family.carried(path) {
            Carried::All => arrived == family.frames.len(),
            Carried::Some => arrived > 0,
            Carried::Nothing => arrived == 0,
            Carried::NotAsked => false,
        };
        if !right {
            let (of, what) = (family.frames.len(), family.what);
            wrong.push(format!("{what}: {arrived} of {of} come through nothing"));
        }
    }
    let _agent = range.close(&lab, gate)?;
    for family in &families {
        let through = range.through(&family.frames)?;
        if let Some(first) = through.first() {
            wrong.push(format!("{}: {:02x?}", family.what, brief(first)));
        }
        if family.carried(path) == Carried::Nothing {
            continue;
        }
        let sent = family.frames.len() as u64;
        let tried = Tried::evasion(family.what, sent, through.len() as u64);
        if let Err(error) = tried.judge() {
            wrong.push(format!("{error:#}"));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{gate:?}, {path:?}:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

/// The two taps.
pub(crate) struct Range {
    pub(crate) guest: Tap,
    pub(crate) far: Tap,
    host: NetNs,
    marker: Vec<u8>,
}

impl Range {
    /// Makes both, on a host on which nothing judges.
    ///
    /// # Errors
    /// When the kernel refuses, or nothing comes through.
    pub(crate) fn new(host: &NetNs, path: Path) -> anyhow::Result<Self> {
        Self::with(host, path, Offload::None)
    }

    /// The same, the guest's tap with what QEMU sets up or without.
    ///
    /// # Errors
    /// As [`Range::new`].
    pub(crate) fn with(host: &NetNs, path: Path, offload: Offload) -> anyhow::Result<Self> {
        let wires = match path {
            Path::Bridged => {
                let wires = Wires::with(host, offload)?;
                // The guest lies about its address, and the marker must find its way all the same.
                host.ip(&format!(
                    "link set {GUEST_TAP} type bridge_slave learning off"
                ))?;
                wires
            }
            Path::Routed => routed(host, offload)?,
        };
        let Wires { guest, far } = wires;
        host.ip(&format!(
            "link set {GUEST_TAP} mtu 9000\nlink set {FAR_TAP} mtu 9000"
        ))?;
        let marker = frame_v4(&Ipv4::to(SERVER_V4), &Tcp::syn(MARKER).bytes());
        let mut range = Self {
            guest,
            far,
            host: host.clone(),
            marker: complete(marker),
        };
        let Self {
            guest, far, marker, ..
        } = &mut range;
        // What is sent before the kernel has noticed that the links are up is lost.
        poll("a frame to come through", LIMIT, || {
            guest.send(marker)?;
            let brief = Duration::from_millis(100);
            Ok(far.receive(brief, is_marker).ok())
        })?;
        Ok(range)
    }

    /// Has the gate judge what the guest sends. The agent that it returns, if any, must live on.
    ///
    /// # Errors
    /// When it cannot be put in place.
    pub(crate) fn close(&self, lab: &Lab, gate: Gate) -> anyhow::Result<Option<Agent>> {
        let policy = [("policy.yaml", policy())];
        let with = |more: &str| Settings {
            more: more.to_owned(),
            ..Settings::default()
        };
        match gate {
            Gate::Programs | Gate::Rules => {
                let backend = if gate == Gate::Rules {
                    "nftables"
                } else {
                    "ebpf"
                };
                let settings = with(&format!("backend: {backend}\n"));
                let agent = Agent::start(&self.host, settings, &policy)?;
                let judged = |value| value == 1.0;
                let nobodys = [("state", "unassigned")];
                agent.wait_metric("gate25_workloads", &nobodys, LIMIT, judged)?;
                Ok(Some(agent))
            }
            Gate::Guard => {
                let elsewhere = lab.netns("elsewhere")?;
                let mut agent = Agent::start(&elsewhere, with(""), &policy)?;
                let printed = agent.command(&["guard", "--print"])?;
                agent.stop()?;
                ensure!(printed.code == Some(0), "{printed:?}");
                let file = lab.dir().join("guard.json");
                fs::write(&file, printed.out).context("write the guard's rules")?;
                let file = file.to_string_lossy();
                self.host.exec("nft", &["-j", "-f", &file])?;
                Ok(None)
            }
        }
    }

    /// Sends frames, and returns what of the guest's came out at the far end.
    ///
    /// # Errors
    /// When even what nobody judges does not come through.
    pub(crate) fn through(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<Vec<Vec<u8>>> {
        self.through_by(frames, |guest, frame| guest.send(frame))
    }

    /// The same, sent in a way of the caller's own.
    ///
    /// # Errors
    /// As [`Range::through`].
    pub(crate) fn through_by<F>(
        &mut self,
        frames: &[F],
        mut send: impl FnMut(&mut Tap, &F) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut arrived = Vec::new();
        for some in frames.chunks(AT_ONCE) {
            for frame in some {
                send(&mut self.guest, frame)?;
            }
            self.guest.send(&self.marker)?;
            // What comes through arrives before anything of what was sent later.
            loop {
                let frame = self.far.receive(LIMIT, is_of_guest)?;
                if is_marker(&frame) {
                    break;
                }
                arrived.push(frame);
            }
        }
        Ok(arrived)
    }
}

/// Two taps on a host that routes between them, and would follow source routes.
fn routed(host: &NetNs, offload: Offload) -> anyhow::Result<Wires> {
    let guest = Tap::new(host, GUEST_TAP, offload)?;
    let far = Tap::new(host, FAR_TAP, Offload::None)?;
    let (server4, server6) = (std::net::Ipv4Addr::from(SERVER_V4), v6(SERVER_V6));
    let (guest4, guest6) = (std::net::Ipv4Addr::from(GUEST_V4), v6(GUEST_V6));
    let (own4, own6) = (std::net::Ipv4Addr::from(ALLOWED_V4), v6(ALLOWED_V6));
    let (gateway_mac, guest_mac) = (text(GATEWAY_MAC), text(GUEST_MAC));
    host.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/accept_source_route", "1"),
        ("ipv4/conf/default/accept_source_route", "1"),
        ("ipv6/conf/all/accept_source_route", "1"),
        ("ipv6/conf/all/seg6_enabled", "1"),
        ("ipv6/conf/default/seg6_enabled", "1"),
    ])?;
    for tap in [GUEST_TAP, FAR_TAP] {
        host.sysctl(&[
            (&format!("ipv4/conf/{tap}/accept_source_route"), "1"),
            (&format!("ipv6/conf/{tap}/seg6_enabled"), "1"),
        ])?;
    }
    host.ip(&format!(
        "link set {GUEST_TAP} address {gateway_mac}
         addr add {own4}/24 dev {GUEST_TAP}
         addr add {own6}/64 dev {GUEST_TAP} nodad
         addr add 203.0.113.1/24 dev {FAR_TAP}
         addr add 2001:db8:25::1/64 dev {FAR_TAP} nodad
         link set {GUEST_TAP} up
         link set {FAR_TAP} up
         neigh replace {guest4} lladdr {guest_mac} dev {GUEST_TAP}
         neigh replace {guest6} lladdr {guest_mac} dev {GUEST_TAP}
         neigh replace {server4} lladdr {FAR_MAC} dev {FAR_TAP}
         neigh replace {server6} lladdr {FAR_MAC} dev {FAR_TAP}
         route add default via {server4} dev {FAR_TAP}
         route add default via {server6} dev {FAR_TAP}"
    ))?;
    Ok(Wires { guest, far })
}

/// Allows nothing but the gateway.
fn policy() -> String {
    let (v4, v6) = (std::net::Ipv4Addr::from(ALLOWED_V4), v6(ALLOWED_V6));
    format!(
        "schema: 1\nallowlists:\n  - {{name: gateway, to: [{v4}, \"{v6}\"]}}\n\
         profiles:\n  - {{name: default, allow: [gateway]}}\n"
    )
}

fn is_of_guest(frame: &[u8]) -> bool {
    // Its addresses are somewhere in whatever the guest has sent.
    let head = frame.get(..400).unwrap_or(frame);
    let holds = |address: &[u8]| head.windows(address.len()).any(|part| part == address);
    holds(&GUEST_V4) || holds(&GUEST_V6) || holds(&GUEST_MAC)
}

fn is_marker(frame: &[u8]) -> bool {
    // Both ports, where a header without options has them: options hold all kinds of numbers.
    let segment = Tcp::syn(MARKER).bytes();
    frame.get(12..15) == Some(&[8, 0, 0x45]) && frame.get(34..54) == Some(&segment[..])
}

fn brief(frame: &[u8]) -> &[u8] {
    frame.get(..128).unwrap_or(frame)
}

fn v6(address: [u8; 16]) -> std::net::Ipv6Addr {
    address.into()
}

fn text(mac: [u8; 6]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}
