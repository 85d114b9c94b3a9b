//! One who sends: by which ways, what was sent, and what its own side told.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{arrivals::Counts, seen::Seen};
use crate::{
    Addresses, Container, Hosting, NetNs, Sender, Tap, fewer,
    flood::{Flood, Hardware, Plan, Way},
    paced, poll,
    tenant::packets,
};

/// Packets a second by each way that must not pass, unless told otherwise.
const FORBIDDEN_RATE: u32 = 1000;
/// And of each that must.
const ALLOWED_RATE: u32 = 100;
/// Between the attempts of a socket that is refused.
const PAUSE: Duration = Duration::from_millis(4);
/// And of one that is connected: the servers have a thread for every connection.
const LONG_PAUSE: Duration = Duration::from_millis(40);
const LIMIT: Duration = Duration::from_secs(20);
/// The hardware address of frames made by hand. It is nobody's, so that nobody's kernel answers
/// the answers; the last byte tells the senders apart.
const SOURCE: Hardware = [0x02, 0, 0x5e, 0, 0x54, 0];

/// What a source may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// Port 25 of the relay.
    RelayOnly,
    /// Port 25 of everybody.
    Everything,
}

/// What becomes of a packet by the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// It asks for a connection and must not arrive.
    Forbidden,
    /// It belongs to a connection that nobody has opened, and must not arrive.
    Midway,
    /// To a guarded port, and it must arrive.
    Allowed,
    /// To a port that is not guarded.
    Free,
}

const LANES: [Lane; 4] = [Lane::Forbidden, Lane::Midway, Lane::Allowed, Lane::Free];

/// What a source has sent, by lane; SYNs but for those of [`Lane::Midway`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) forbidden: u64,
    /// Those of the forbidden that a container's sockets asked for: refused, they become no packets.
    connects: u64,
    midway: u64,
    pub(super) allowed: u64,
    pub(super) free: u64,
    /// Those of all lanes that had no answer in time.
    pub(super) late: u64,
}

impl Totals {
    fn add(&mut self, lane: Lane, seen: &Seen) {
        let packets = seen.attempts();
        self.late += seen.late();
        match lane {
            Lane::Forbidden => {
                self.forbidden += packets;
                self.connects += seen.connects();
            }
            Lane::Midway => self.midway += packets,
            Lane::Allowed => self.allowed += packets,
            Lane::Free => self.free += packets,
        }
    }

    pub(super) fn sum(&mut self, other: Self) {
        let Self {
            forbidden,
            connects,
            midway,
            allowed,
            free,
            late,
        } = other;
        self.forbidden += forbidden;
        self.connects += connects;
        self.midway += midway;
        self.allowed += allowed;
        self.free += free;
        self.late += late;
    }

    /// All that must not arrive.
    pub(super) fn all_forbidden(self) -> u64 {
        self.forbidden + self.midway
    }

    /// Those of it that get as far as being packets.
    pub(super) fn forbidden_packets(self) -> u64 {
        self.all_forbidden() - self.connects
    }
}

/// Where a source's packets come from.
#[derive(Debug)]
pub(super) enum Body {
    /// A guest with a kernel, and its gateway's hardware address.
    Guest { ns: NetNs, gateway: Hardware },
    /// A guest that comes and goes: its sockets are told whatever they are told.
    Frames { ns: NetNs, gateway: Hardware },
    /// A guest without a kernel.
    Tap {
        tap: Arc<Mutex<Tap>>,
        gateway: Hardware,
    },
    /// A container; with a network of its own, its gateway's hardware address.
    Container {
        container: Box<Container>,
        gateway: Option<Hardware>,
    },
}

/// One who sends.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    /// The customer; none where nobody owns it.
    pub(super) owner: Option<String>,
    pub(super) may: May,
    pub(super) addresses: Addresses,
    pub(super) body: Body,
    /// Packets a second by each way that must not pass; every second one asks for a connection.
    pub(super) forbidden_rate: u32,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    label: String,
    lane: Lane,
    what: What,
}

#[derive(Debug)]
enum What {
    Flood(Flood),
    Sender(Sender),
    /// In the container.
    RemoteFlood,
    RemoteSender,
    /// A connection of the container's that is used all the time.
    Echo,
}

impl Source {
    pub(super) fn new(
        name: &str,
        owner: Option<&str>,
        may: May,
        addresses: Addresses,
        body: Body,
    ) -> Self {
        Self {
            name: name.to_owned(),
            owner: owner.map(str::to_owned),
            may,
            addresses,
            body,
            forbidden_rate: fewer(FORBIDDEN_RATE),
            running: Vec::new(),
        }
    }

    /// The container, where it is one.
    pub(super) fn container(&self) -> Option<&Container> {
        match &self.body {
            Body::Container { container, .. } => Some(container),
            Body::Guest { .. } | Body::Frames { .. } | Body::Tap { .. } => None,
        }
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        let Addresses { v4, v6 } = self.addresses;
        [IpAddr::from(v4), v6.into()].contains(&address)
    }

    /// Opens what is open before whatever happens and must outlive it: a container's connections.
    pub(super) fn hold(&mut self) -> anyhow::Result<()> {
        if !self.running.is_empty() {
            bail!("{} sends already", self.name);
        }
        self.hold_connections()
            .with_context(|| format!("connections of {}", self.name))
    }

    /// Starts every way of sending that it has.
    pub(super) fn fire(&mut self) -> anyhow::Result<()> {
        for lane in LANES {
            self.fire_floods(lane)
                .and_then(|()| self.fire_sockets(lane))
                .with_context(|| format!("{lane:?} packets of {}", self.name))?;
        }
        Ok(())
    }

    /// Starts what a virtual machine sends without a kernel of its own, which may be told anything.
    pub(super) fn fire_frames(&mut self) -> anyhow::Result<()> {
        match self.body {
            Body::Guest { .. } | Body::Frames { .. } | Body::Tap { .. } => LANES
                .into_iter()
                .try_for_each(|lane| self.fire_floods(lane)),
            Body::Container { .. } => Ok(()),
        }
    }

    fn hold_connections(&mut self) -> anyhow::Result<()> {
        let Body::Container { container, .. } = &self.body else {
            return Ok(());
        };
        for to in destinations(Lane::Allowed, self.may) {
            let label = format!("held-{to}");
            container.tenant.echo(&label, to)?;
            self.running.push(Running {
                label,
                lane: Lane::Allowed,
                what: What::Echo,
            });
        }
        Ok(())
    }

    /// Sends a few packets to where the policy's verdict shows: what was sent.
    pub(super) fn probe(&mut self) -> anyhow::Result<Totals> {
        const ENOUGH: u64 = 4;
        for lane in [Lane::Forbidden, Lane::Midway, Lane::Allowed] {
            self.fire_floods(lane)?;
        }
        poll("a few packets to be sent", LIMIT, || {
            let sent = self.totals()?;
            let forbidden =
                sent.forbidden.min(sent.midway) >= ENOUGH || self.may == May::Everything;
            Ok((forbidden && sent.allowed >= ENOUGH).then_some(()))
        })?;
        Ok(self.finish()?.sent)
    }

    fn fire_floods(&mut self, lane: Lane) -> anyhow::Result<()> {
        let Some(plan) = self.plan(lane) else {
            return Ok(());
        };
        let label = |kind| format!("{lane:?}-{kind}");
        let [a, b, c, d, e, _] = SOURCE;
        let source = [a, b, c, d, e, self.addresses.v4.octets()[3]];
        let frames = |gateway| Way::Frames {
            device: "eth0".to_owned(),
            source,
            gateway,
        };
        let mut started = Vec::new();
        match &self.body {
            Body::Guest { ns, gateway } | Body::Frames { ns, gateway } => {
                let (ns, plan) = (ns.clone(), plan.by(frames(*gateway)));
                let flood = Flood::start(move || ns.enter(), plan)?;
                started.push((label("frames"), What::Flood(flood)));
            }
            Body::Tap { tap, gateway } => {
                let plan = plan.by(Way::Tap {
                    tap: Arc::clone(tap),
                    source,
                    gateway: *gateway,
                });
                started.push((label("tap"), What::Flood(Flood::start(|| Ok(()), plan)?)));
            }
            Body::Container { container, gateway } => {
                let tenant = &container.tenant;
                let packets = label("packets");
                tenant.flood(&packets, &plan)?;
                started.push((packets, What::RemoteFlood));
                // What is allowed is counted where the cgroup's hook sees it, which is not here.
                if let (Some(gateway), Lane::Forbidden | Lane::Midway) = (gateway, lane) {
                    let label = label("frames");
                    tenant.flood(&label, &plan.by(frames(*gateway)))?;
                    started.push((label, What::RemoteFlood));
                }
            }
        }
        let started = started
            .into_iter()
            .map(|(label, what)| Running { label, lane, what });
        self.running.extend(started);
        Ok(())
    }

    /// What to send by hand; nothing where the lane leads nowhere.
    fn plan(&self, lane: Lane) -> Option<Plan> {
        let Addresses { v4, v6 } = self.addresses;
        let pair = |to: SocketAddr| {
            let from = if to.is_ipv4() { v4.into() } else { v6.into() };
            let to = match lane {
                Lane::Midway => packets::midway(to),
                Lane::Forbidden | Lane::Allowed | Lane::Free => to,
            };
            (from, to)
        };
        let pairs: Vec<(IpAddr, SocketAddr)> =
            destinations(lane, self.may).into_iter().map(pair).collect();
        let rate = match lane {
            Lane::Forbidden | Lane::Midway => self.forbidden_rate / 2,
            Lane::Allowed | Lane::Free => fewer(ALLOWED_RATE),
        };
        let way = Way::Packets;
        (!pairs.is_empty()).then_some(Plan { way, pairs, rate })
    }

    fn fire_sockets(&mut self, lane: Lane) -> anyhow::Result<()> {
        let pause = match lane {
            Lane::Forbidden => paced(PAUSE),
            Lane::Allowed | Lane::Free => paced(LONG_PAUSE),
            // A socket begins at the beginning.
            Lane::Midway => return Ok(()),
        };
        let mut addresses = destinations(lane, self.may);
        if let Body::Container { .. } = self.body {
            // Only what a program asks for in the other family's clothes; a kernel sends no such
            // packets.
            let mapped = addresses.iter().filter_map(|to| match to {
                SocketAddr::V4(v4) => Some(SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))),
                SocketAddr::V6(_) => None,
            });
            let mapped: Vec<SocketAddr> = mapped.collect();
            addresses.extend(mapped);
        }
        for to in addresses {
            let label = format!("{lane:?}-{to}");
            let what = match &self.body {
                Body::Guest { ns, .. } => What::Sender(Sender::start(ns, to, pause)?),
                Body::Frames { .. } | Body::Tap { .. } => return Ok(()),
                Body::Container { container, .. } => {
                    container.tenant.hammer(&label, to, pause)?;
                    What::RemoteSender
                }
            };
            self.running.push(Running { label, lane, what });
        }
        Ok(())
    }

    /// What it has sent since [`Source::fire`].
    pub(super) fn totals(&self) -> anyhow::Result<Totals> {
        let mut totals = Totals::default();
        for running in &self.running {
            totals.add(running.lane, &self.seen(running)?);
        }
        Ok(totals)
    }

    /// How often each way has been used.
    pub(super) fn uses(&self) -> anyhow::Result<Vec<u64>> {
        let each = self.running.iter().map(|running| {
            let seen = self.seen(running).with_context(|| self.place(running))?;
            Ok(seen.uses())
        });
        each.collect()
    }

    /// Waits until every way has been used twice more than these times, and checks that sockets
    /// were told what they must be.
    pub(super) fn check_since(&self, uses: &[u64]) -> anyhow::Result<()> {
        for (running, uses) in self.running.iter().zip(uses) {
            let place = || self.place(running);
            let seen = poll(&place(), LIMIT, || {
                let seen = self.seen(running)?;
                Ok((seen.uses() >= uses + 2).then_some(seen))
            })?;
            seen.check(running.lane).with_context(place)?;
        }
        Ok(())
    }

    fn place(&self, running: &Running) -> String {
        format!("{}, {}", self.name, running.label)
    }

    /// Whether it sends.
    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Ends all of it.
    pub(super) fn finish(&mut self) -> anyhow::Result<Finished> {
        let mut finished = Finished::default();
        for running in std::mem::take(&mut self.running) {
            let Running { label, lane, what } = running;
            let place = || format!("{}, {label}", self.name);
            let tenant = self.container().map(|container| &container.tenant);
            let seen = match what {
                What::Flood(flood) => Seen::Flood(flood.finish()),
                What::Sender(sender) => Seen::Sender(sender.finish()),
                What::RemoteFlood => Seen::Flood(
                    tenant
                        .context("no tenant")?
                        .ebb(&label)
                        .with_context(place)?,
                ),
                What::RemoteSender => Seen::Connects(
                    tenant
                        .context("no tenant")?
                        .rest(&label)
                        .with_context(place)?,
                ),
                What::Echo => Seen::Echo(tenant.context("no tenant")?.hush(&label)),
            };
            finished.sent.add(lane, &seen);
            let unsent = seen.unsent();
            finished
                .unsent
                .extend(unsent.map(|why| format!("{}: {why}", place())));
            let complaint = seen.check(lane).with_context(place).err();
            finished
                .wrong
                .extend(complaint.map(|error| format!("{error:#}")));
        }
        Ok(finished)
    }

    /// SYNs and other packets of its own, out of these: those that must not have arrived, and those
    /// that had to.
    pub(super) fn arrived(&self, exchanger: &Counts, relay: &Counts) -> Arrived {
        let mut arrived = Arrived::default();
        for own in [IpAddr::from(self.addresses.v4), self.addresses.v6.into()] {
            let at = |counts: &Counts, port| counts.get(&(own, port)).copied().unwrap_or_default();
            let smtp = at(exchanger, 25);
            match self.may {
                May::RelayOnly => {
                    arrived.forbidden_syns += smtp.syns;
                    arrived.forbidden_others += smtp.others;
                }
                May::Everything => arrived.allowed_syns += smtp.syns,
            }
            arrived.allowed_syns +=
                at(relay, 25).syns + at(relay, 587).syns + at(exchanger, 587).syns;
        }
        arrived
    }

    fn seen(&self, running: &Running) -> anyhow::Result<Seen> {
        let tenant = self.container().map(|container| &container.tenant);
        let label = &running.label;
        Ok(match &running.what {
            What::Flood(flood) => Seen::Flood(flood.sent()),
            What::Sender(sender) => Seen::Sender(sender.tally()),
            What::RemoteFlood => Seen::Flood(tenant.context("no tenant")?.flooded(label)?),
            What::RemoteSender => Seen::Connects(tenant.context("no tenant")?.tally(label)?),
            What::Echo => Seen::Echo(tenant.context("no tenant")?.echoes(label)),
        })
    }
}

/// What came out at a source.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// In all.
    pub(super) sent: Totals,
    /// Which sockets were told what they must not be.
    pub(super) wrong: Vec<String>,
    /// What its own side did not take, and why.
    pub(super) unsent: Vec<String>,
}

/// Packets of one source that arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) forbidden_syns: u64,
    pub(super) forbidden_others: u64,
    pub(super) allowed_syns: u64,
}

impl Arrived {
    /// Packets that must not have.
    pub(super) fn leaked(self) -> u64 {
        self.forbidden_syns + self.forbidden_others
    }

    pub(super) fn sum(&mut self, other: Self) {
        let Self {
            forbidden_syns,
            forbidden_others,
            allowed_syns,
        } = other;
        self.forbidden_syns += forbidden_syns;
        self.forbidden_others += forbidden_others;
        self.allowed_syns += allowed_syns;
    }

    pub(super) fn since(self, before: Self) -> Self {
        let Self {
            forbidden_syns,
            forbidden_others,
            allowed_syns,
        } = before;
        Self {
            forbidden_syns: self.forbidden_syns - forbidden_syns,
            forbidden_others: self.forbidden_others - forbidden_others,
            allowed_syns: self.allowed_syns - allowed_syns,
        }
    }
}

fn destinations(lane: Lane, may: May) -> Vec<SocketAddr> {
    let (exchanger, relay) = (Hosting::EXCHANGER, Hosting::RELAY);
    match (lane, may) {
        (Lane::Forbidden | Lane::Midway, May::RelayOnly) => {
            vec![exchanger.v4_port(25), exchanger.v6_port(25)]
        }
        (Lane::Forbidden | Lane::Midway, May::Everything) => Vec::new(),
        (Lane::Allowed, May::RelayOnly) => vec![relay.v4_port(25), relay.v6_port(25)],
        (Lane::Allowed, May::Everything) => vec![
            relay.v4_port(25),
            relay.v6_port(25),
            exchanger.v4_port(25),
            exchanger.v6_port(25),
        ],
        (Lane::Free, _) => vec![exchanger.v4_port(587), exchanger.v6_port(587)],
    }
}
