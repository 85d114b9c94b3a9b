//! The leak meter: senders that never pause, forbidden and allowed, and whether what they sent,
//! what the agent counted and what arrived add up.
//!
//! ```text
//! senders --- hypervisor, agent --- far side
//!  sent     =     refused        +   arrived
//! ```

mod arrivals;
mod books;
mod crew;
mod seen;
mod source;
mod verdict;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::{
    Addresses, Agent, Container, Guest, Hosting, NetNs, Outcome, Tap, Trial, Tried, World, connect,
    fewer, poll, tenant::packets::hardware,
};
use arrivals::{Arrivals, Counts};
use books::{Account, Books};
use source::{Arrived, Body, Source, Totals};
use verdict::Silence;

pub use books::Accounts;
pub use source::May;
pub use verdict::{Measured, Phase, Verdict};

/// How long an interface may take to be closed, or an exemption to begin, on a busy machine.
const PROMPT: Duration = Duration::from_secs(10);
/// For packets to be sent.
const SENDING: Duration = Duration::from_secs(20);
const ATTEMPT: Duration = Duration::from_secs(3);
/// Who owns what no customer does, in the agent's metrics.
const NOBODY: &str = "unassigned";

/// Counts what is sent, and what arrives.
#[derive(Debug)]
pub struct Meter {
    sources: Vec<Source>,
    hypervisor: NetNs,
    exchanger: Arrivals,
    relay: Arrivals,
    beginning: Option<Beginning>,
    phases: Vec<Phase>,
    /// The phase that runs; what is measured of it is how far the counts were at its beginning.
    phase: Phase,
}

/// What was there before the first packet.
#[derive(Debug)]
struct Beginning {
    books: Books,
    exchanger: Counts,
    relay: Counts,
}

impl Meter {
    /// A meter without senders.
    ///
    /// # Errors
    /// When the far side cannot count.
    pub fn bare(world: &World) -> anyhow::Result<Self> {
        Ok(Self {
            sources: Vec::new(),
            hypervisor: world.hosting.hypervisor.clone(),
            exchanger: Arrivals::start(&world.hosting.exchanger)?,
            relay: Arrivals::start(&world.hosting.relay)?,
            beginning: None,
            phases: Vec::new(),
            phase: Phase::begin(),
        })
    }

    /// Adds a guest with a kernel of its own as a sender. It sends frames out of whatever is its
    /// `eth0`, and connects.
    ///
    /// # Errors
    /// When its gateway cannot be found.
    pub fn guest(
        &mut self,
        world: &World,
        guest: &Guest,
        owner: Option<&str>,
        may: May,
    ) -> anyhow::Result<()> {
        let body = Body::Guest {
            ns: guest.ns.clone(),
            gateway: gateway(world, &guest.interface)?,
        };
        let source = Source::new(&guest.interface, owner, may, guest.addresses, body);
        self.sources.push(source);
        Ok(())
    }

    /// Adds a guest whose interface comes and goes: it sends frames out of whatever is its `eth0`,
    /// and nothing else.
    ///
    /// # Errors
    /// When its gateway cannot be found.
    pub fn guest_by_frames(
        &mut self,
        world: &World,
        guest: &Guest,
        owner: Option<&str>,
        may: May,
    ) -> anyhow::Result<()> {
        let body = Body::Frames {
            ns: guest.ns.clone(),
            gateway: gateway(world, &guest.interface)?,
        };
        let source = Source::new(&guest.interface, owner, may, guest.addresses, body);
        self.sources.push(source);
        Ok(())
    }

    /// Adds a tap in the bridge as a sender, with the addresses of the guest of that number.
    ///
    /// # Errors
    /// When its gateway cannot be found.
    pub fn tap(
        &mut self,
        world: &World,
        tap: Tap,
        number: u8,
        owner: Option<&str>,
        may: May,
    ) -> anyhow::Result<()> {
        let body = Body::Tap {
            tap: Arc::new(Mutex::new(tap)),
            gateway: bridge(world)?,
        };
        let name = format!("tap of guest {number}");
        let source = Source::new(&name, owner, may, Hosting::bridged(number), body);
        self.sources.push(source);
        Ok(())
    }

    /// Adds a container as a sender: by sockets and raw sockets, and where it has a network of its
    /// own by frames.
    ///
    /// # Errors
    /// When its gateway cannot be found.
    pub fn container(
        &mut self,
        world: &World,
        container: Container,
        owner: Option<&str>,
        may: May,
    ) -> anyhow::Result<()> {
        let gateway = match container.guest() {
            Some(guest) => Some(gateway(world, &guest.interface)?),
            None => None,
        };
        let addresses = container.addresses().unwrap_or(crew::HYPERVISOR);
        let name = container.cgroup.path();
        let body = Body::Container {
            container: Box::new(container),
            gateway,
        };
        let source = Source::new(&name, owner, may, addresses, body);
        self.sources.push(source);
        Ok(())
    }

    /// The containers among the senders.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.sources.iter().filter_map(Source::container)
    }

    /// Has every sender that there is so far flood with this many forbidden packets a second from the
    /// next attack on, every second of which asks for a connection.
    pub fn forbidden_rate(&mut self, packets: u32) {
        for source in &mut self.sources {
            source.forbidden_rate = packets;
        }
    }

    /// Waits until every sender is closed or open as the policy says, remembers the counts, and
    /// has all of them send. From now on no forbidden packet may arrive.
    ///
    /// # Errors
    /// When one of them is not as it must be.
    pub fn attack(&mut self, world: &World, agent: &Agent) -> anyhow::Result<()> {
        self.wait_as_told(world)
            .with_context(|| format!("the agent wrote:\n{}", agent.log()))?;
        self.begin(agent)?;
        self.fire()
    }

    /// Waits until every sender is closed or open as the policy says.
    ///
    /// # Errors
    /// At the deadline, naming who is not.
    pub fn wait_as_told(&mut self, world: &World) -> anyhow::Result<()> {
        self.wait_each_as_told(world, |_| true)
    }

    /// The same of the containers alone; they must not be sending.
    ///
    /// # Errors
    /// As [`Meter::wait_as_told`].
    pub fn wait_containers_as_told(&mut self, world: &World) -> anyhow::Result<()> {
        self.wait_each_as_told(world, |source| source.container().is_some())
    }

    fn wait_each_as_told(
        &mut self,
        world: &World,
        meant: impl Fn(&Source) -> bool,
    ) -> anyhow::Result<()> {
        let Self {
            sources,
            exchanger,
            relay,
            ..
        } = self;
        for source in sources.iter_mut().filter(|source| meant(source)) {
            let mut last = None;
            poll("a sender to be as the policy says", PROMPT, || {
                let result = check_as_told(source, &world.refusal, exchanger, relay);
                let done = result.is_ok();
                last = result.err();
                Ok(done.then_some(()))
            })
            .map_err(|error| last.map_or(error, |last| last.context("at the deadline")))
            .with_context(|| source.name.clone())?;
            if let Some(container) = source.container() {
                world.settle(container)?;
            }
        }
        Ok(())
    }

    /// Remembers the agent's counts and the far side's. Nobody sends to guarded ports from before
    /// this until [`Meter::fire`].
    ///
    /// # Errors
    /// When one of them does not answer.
    pub fn begin(&mut self, agent: &Agent) -> anyhow::Result<()> {
        self.beginning = Some(Beginning {
            exchanger: self.exchanger.settled()?,
            relay: self.relay.settled()?,
            books: Books::open(agent, &self.hypervisor)?,
        });
        self.phases.clear();
        self.phase = Phase::begin();
        Ok(())
    }

    /// Has all of them send, once all have opened the connections that they keep.
    ///
    /// # Errors
    /// When one of them cannot.
    pub fn fire(&mut self) -> anyhow::Result<()> {
        self.sources.iter_mut().try_for_each(Source::hold)?;
        self.sources.iter_mut().try_for_each(Source::fire)
    }

    /// Has the virtual machines send frames, and nobody else.
    ///
    /// # Errors
    /// When one of them cannot.
    pub fn fire_frames(&mut self) -> anyhow::Result<()> {
        self.sources.iter_mut().try_for_each(Source::fire_frames)
    }

    /// What comes from now on belongs to a phase of this name, in which something must be sent.
    ///
    /// # Errors
    /// When a count cannot be read.
    pub fn phase(&mut self, name: &str) -> anyhow::Result<()> {
        self.begin_phase(name, Silence::Wrong)
    }

    /// The same for a phase in which there may be nobody to send.
    ///
    /// # Errors
    /// As [`Meter::phase`].
    pub fn silent_phase(&mut self, name: &str) -> anyhow::Result<()> {
        self.begin_phase(name, Silence::Expected)
    }

    /// Forbidden packets since the attack began.
    ///
    /// # Errors
    /// When a count cannot be read.
    pub fn measured(&self) -> anyhow::Result<Measured> {
        let mut sent = Totals::default();
        for source in &self.sources {
            sent.sum(source.totals()?);
        }
        Ok(Measured {
            sent: sent.all_forbidden(),
            leaked: self.arrived()?.leaked(),
        })
    }

    /// Waits until so many more forbidden packets are sent, on a slow machine [`fewer`].
    ///
    /// # Errors
    /// At the deadline, or when a count cannot be read.
    pub fn wait_sent(&self, packets: u32) -> anyhow::Result<()> {
        self.wait_all_sent(fewer(packets).into())
    }

    /// The same, however slow the machine is.
    ///
    /// # Errors
    /// At the deadline, or when a count cannot be read.
    pub fn wait_all_sent(&self, packets: u64) -> anyhow::Result<()> {
        wait_more("forbidden packets", SENDING, packets, || {
            Ok(self.measured()?.sent)
        })
    }

    /// Waits until the sender with these addresses says that it has sent so many more forbidden packets.
    ///
    /// # Errors
    /// At the deadline, when there is no such sender, or when it does not say.
    pub fn wait_sent_by(&self, addresses: Addresses, packets: u64) -> anyhow::Result<()> {
        let mut sources = self.sources.iter();
        let found = sources.find(|source| source.addresses == addresses);
        let source = found.with_context(|| format!("{} does not send", addresses.v4))?;
        let what = format!("forbidden packets of {}", source.name);
        wait_more(&what, SENDING, packets, || {
            Ok(source.totals()?.all_forbidden())
        })
    }

    /// SYNs from these addresses that have arrived at the exchanger's port 25, wanted or not.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn seen_by_exchanger(&self, from: Addresses) -> anyhow::Result<u64> {
        Ok(syns(&self.exchanger.read()?, from))
    }

    /// Waits until SYNs from these addresses arrive at the relay's port 25.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_relayed(&self, from: Addresses) -> anyhow::Result<()> {
        /// More than may have been on their way.
        const ENOUGH: u64 = 20;
        let what = format!("packets of {} at the relay", from.v4);
        wait_more(&what, PROMPT, ENOUGH, || {
            Ok(syns(&self.relay.read()?, from))
        })
    }

    /// The same of everybody who sends.
    ///
    /// # Errors
    /// As [`Meter::wait_relayed`].
    pub fn wait_all_relayed(&self) -> anyhow::Result<()> {
        let mut running = self.sources.iter().filter(|source| source.is_running());
        running.try_for_each(|source| self.wait_relayed(source.addresses))
    }

    /// Waits until everybody has sent again by every way, and checks that nothing forbidden has
    /// arrived and that every socket was told what it must be, from the beginning on.
    ///
    /// # Errors
    /// Naming what is not so.
    pub fn check(&self) -> anyhow::Result<()> {
        let uses: Vec<_> = self
            .sources
            .iter()
            .map(Source::uses)
            .collect::<anyhow::Result<_>>()?;
        for (source, uses) in self.sources.iter().zip(&uses) {
            source.check_since(uses)?;
        }
        let Measured { sent, leaked } = self.measured()?;
        if leaked != 0 {
            bail!("{leaked} of {sent} forbidden packets arrived");
        }
        Ok(())
    }

    /// Ends the attack, writes the trial down, and fails if anything leaked, if anybody was told
    /// what he must not be told, or if the counts do not add up. The agent runs.
    ///
    /// # Errors
    /// As told; and when a count cannot be read.
    pub fn judge(
        &mut self,
        agent: &Agent,
        trial: Trial,
        what: &str,
        times: u64,
        accounts: Accounts,
    ) -> anyhow::Result<()> {
        let verdict = self.end(agent, accounts)?;
        let Measured { sent, leaked } = verdict.measured;
        let tried = Tried {
            trial,
            what: what.to_owned(),
            times,
            sent,
            leaked,
        };
        // Written down first, whatever it was.
        let judged = tried.judge();
        verdict.check().context(what.to_owned())?;
        judged
    }

    /// Ends the attack and says what came out. The agent runs. Everybody may attack again.
    ///
    /// # Errors
    /// When a count cannot be read, or no attack began.
    pub fn end(&mut self, agent: &Agent, accounts: Accounts) -> anyhow::Result<Verdict> {
        let (mut wrong, mut unsent) = (Vec::new(), Vec::new());
        let mut sent = Vec::new();
        for source in &mut self.sources {
            let finished = source.finish()?;
            wrong.extend(finished.wrong);
            unsent.extend(finished.unsent);
            sent.push(finished.sent);
        }
        self.exchanger.settled()?;
        self.relay.settled()?;
        let arrived = self.arrived()?;
        wrong.extend(arrived.strangers.iter().map(|(address, packets)| {
            format!("{packets} packets of {address} arrived, who is no sender")
        }));
        let leaked = arrived.leaked();
        let mut owners = BTreeMap::<String, Account>::new();
        for (totals, (source, arrived)) in sent.into_iter().zip(arrived.of_sources) {
            let owner = source.owner.as_deref().unwrap_or(NOBODY).to_owned();
            let account = owners.entry(owner).or_default();
            account.sent.sum(totals);
            account.arrived.sum(arrived);
        }
        let sent = owners.values().map(|account| account.sent.all_forbidden());
        let measured = Measured {
            sent: sent.sum(),
            leaked,
        };
        let beginning = self.beginning.as_ref().context("no attack began")?;
        let now = Books::open(agent, &self.hypervisor)?;
        wrong.extend(beginning.books.differences(&now, accounts, &owners));
        self.close_phase(measured);
        Ok(Verdict {
            measured,
            phases: std::mem::take(&mut self.phases),
            wrong,
            unsent,
        })
    }

    fn begin_phase(&mut self, name: &str, silence: Silence) -> anyhow::Result<()> {
        let now = self.measured()?;
        self.close_phase(now);
        self.phase = Phase::new(name, silence, now);
        Ok(())
    }

    fn close_phase(&mut self, now: Measured) {
        let Phase {
            name,
            silence,
            measured: before,
        } = &self.phase;
        let measured = Measured {
            sent: now.sent - before.sent,
            leaked: now.leaked - before.leaked,
        };
        self.phases.push(Phase::new(name, *silence, measured));
    }

    /// What has arrived since the attack began.
    fn arrived(&self) -> anyhow::Result<AllArrived<'_>> {
        let beginning = self.beginning.as_ref().context("no attack began")?;
        let (exchanger, relay) = (self.exchanger.read()?, self.relay.read()?);
        let each = self.sources.iter().map(|source| {
            let before = source.arrived(&beginning.exchanger, &beginning.relay);
            let now = source.arrived(&exchanger, &relay);
            (source, now.since(before))
        });
        let is_stranger = |(address, port): &(IpAddr, u16)| {
            let own = |source: &Source| source.has(*address);
            *port == 25 && !self.sources.iter().any(own)
        };
        let strangers = exchanger.iter().filter(|(key, _)| is_stranger(key));
        let strangers = strangers.map(|(key, now)| {
            let before = beginning.exchanger.get(key).copied().unwrap_or_default();
            (key.0, now.all() - before.all())
        });
        Ok(AllArrived {
            of_sources: each.collect(),
            strangers: strangers.filter(|(_, packets)| *packets != 0).collect(),
        })
    }
}

/// Packets that arrived.
struct AllArrived<'a> {
    of_sources: Vec<(&'a Source, Arrived)>,
    /// At the exchanger's guarded port, by addresses that are no source's.
    strangers: Vec<(IpAddr, u64)>,
}

impl AllArrived<'_> {
    /// Those that must not have.
    fn leaked(&self) -> u64 {
        let of_sources = self.of_sources.iter().map(|(_, arrived)| arrived.leaked());
        let strangers = self.strangers.iter().map(|(_, packets)| packets);
        of_sources.sum::<u64>() + strangers.sum::<u64>()
    }
}

/// Waits until a count has risen by so much.
fn wait_more(
    what: &str,
    limit: Duration,
    more: u64,
    count: impl Fn() -> anyhow::Result<u64>,
) -> anyhow::Result<()> {
    let until = count()? + more;
    poll(what, limit, || Ok((count()? >= until).then_some(())))
}

/// To the guarded port.
fn syns(counts: &Counts, from: Addresses) -> u64 {
    let of = |address: IpAddr| counts.get(&(address, 25)).map_or(0, |it| it.syns);
    of(from.v4.into()) + of(from.v6.into())
}

fn check_as_told(
    source: &mut Source,
    refusal: &Outcome,
    exchanger: &Arrivals,
    relay: &Arrivals,
) -> anyhow::Result<()> {
    let told = match (source.may, &source.body) {
        (May::RelayOnly, Body::Container { .. }) => &Outcome::Refused,
        (May::RelayOnly, _) => refusal,
        (May::Everything, _) => &Outcome::Connected,
    };
    for (server, outcome) in [
        (Hosting::EXCHANGER, told),
        (Hosting::RELAY, &Outcome::Connected),
    ] {
        for to in [server.v4_port(25), server.v6_port(25)] {
            let attempt = match &source.body {
                Body::Guest { ns, .. } | Body::Frames { ns, .. } => connect(ns, to, ATTEMPT)?,
                Body::Container { container, .. } => container.tenant.connect(to)?,
                // Without a kernel it cannot be told anything.
                Body::Tap { .. } => return check_probe(source, exchanger, relay),
            };
            if attempt.outcome != *outcome {
                bail!("to {to}: expected {outcome}, got {attempt}");
            }
        }
    }
    Ok(())
}

/// Of a few packets each way those arrive that must, and no others.
fn check_probe(source: &mut Source, exchanger: &Arrivals, relay: &Arrivals) -> anyhow::Result<()> {
    let before = source.arrived(&exchanger.settled()?, &relay.settled()?);
    let sent = source.probe()?;
    let after = source.arrived(&exchanger.settled()?, &relay.settled()?);
    let arrived = after.since(before);
    if arrived.allowed_syns != sent.allowed || arrived.leaked() != 0 {
        bail!("of {sent:?} arrived {arrived:?}");
    }
    Ok(())
}

/// The hardware address that a guest behind this interface sends to.
fn gateway(world: &World, interface: &str) -> anyhow::Result<[u8; 6]> {
    let host = &world.hosting.hypervisor;
    let master = format!("/sys/class/net/{interface}/master");
    if host.run(|| Path::new(&master).exists())? {
        return bridge(world);
    }
    hardware(&world.hardware_address(host, interface)?)
}

fn bridge(world: &World) -> anyhow::Result<[u8; 6]> {
    hardware(&world.hardware_address(&world.hosting.hypervisor, "vmbr0")?)
}
