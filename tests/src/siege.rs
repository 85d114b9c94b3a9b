//! Senders that try without pause, forbidden and allowed, and what must never become of them.

use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::{Container, Guest, Hosting, Network, Sender, Tally, World, poll};

/// After each attempt of each sender.
const PAUSE: Duration = Duration::from_millis(2);
const LIMIT: Duration = Duration::from_secs(20);
const RELAY: [&str; 2] = ["relay v4", "relay v6"];
const EXCHANGER: [&str; 3] = ["exchanger v4", "exchanger v6", "exchanger mapped"];

/// A container on the hypervisor's network, one behind a veth and a guest behind a tap. All of
/// them try the exchanger's port 25, which they may not, and use the relay's, which they may.
#[derive(Debug)]
pub struct Siege {
    /// On the hypervisor's network: the cgroup `siege-shared`.
    pub shared: Container,
    /// Behind `veth241i0`: the cgroup `siege-own`.
    pub own: Container,
    forbidden: Vec<Sender>,
    guest: Guest,
}

impl Siege {
    /// The interface of the guest.
    pub const INTERFACE: &str = "tap242i0";
    /// What matches both containers, below the containers' root.
    pub const CGROUPS: &str = "siege-*";

    /// Begins. All of them must be closed already, or be closed before [`Siege::attack`].
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn prepare(world: &World) -> anyhow::Result<Self> {
        let shared = world.container("siege-shared", &Network::Hypervisor)?;
        let own = world.container("siege-own", &Network::own(241, "veth241i0"))?;
        let guest = world.guest(242, Self::INTERFACE)?;
        Ok(Self {
            shared,
            own,
            forbidden: Vec::new(),
            guest,
        })
    }

    /// Starts all senders. From now on no packet may reach the exchanger's port 25.
    ///
    /// # Errors
    /// When one of them is not closed, or cannot reach the relay.
    pub fn attack(&mut self, world: &World) -> anyhow::Result<()> {
        let (to, relay) = (Hosting::EXCHANGER, Hosting::RELAY);
        for container in [&self.shared, &self.own] {
            let tenant = &container.tenant;
            world.wait_contained(tenant)?;
            let forbidden = [to.v4_port(25), to.v6_port(25), to.mapped_port(25)];
            for (name, to) in EXCHANGER.into_iter().zip(forbidden) {
                tenant.hammer(name, to, PAUSE)?;
            }
            let allowed = [relay.v4_port(25), relay.v6_port(25)];
            for (name, to) in RELAY.into_iter().zip(allowed) {
                tenant.hammer(name, to, PAUSE * 5)?;
                tenant.echo(name, to)?;
            }
        }
        world.wait_closed(&self.guest)?;
        for to in [to.v4_port(25), to.v6_port(25)] {
            self.forbidden
                .push(Sender::start(&self.guest.ns, to, PAUSE)?);
        }
        Ok(())
    }

    /// Waits until every sender has tried again, and checks that each got what it must.
    ///
    /// # Errors
    /// Naming the first that did not.
    pub fn check(&self, world: &World) -> anyhow::Result<()> {
        let arrived = world.witness.packets()?;
        if arrived != 0 {
            bail!("{arrived} forbidden packets arrived");
        }
        for container in [&self.shared, &self.own] {
            let tenant = &container.tenant;
            for name in EXCHANGER {
                let until = tenant.tally(name)?.attempts() + 2;
                let tally = more(name, until, || tenant.tally(name))?;
                all(name, tally.refused, &tally)?;
            }
            for name in RELAY {
                let until = tenant.tally(name)?.attempts() + 2;
                let tally = more(name, until, || tenant.tally(name))?;
                all(name, tally.connected, &tally)?;
                let seen = tenant.echoes(name)?;
                poll("answers of the relay", LIMIT, || {
                    Ok((tenant.echoes(name)? > seen + 2).then_some(()))
                })
                .with_context(|| container.cgroup.path())?;
            }
        }
        for sender in &self.forbidden {
            let tally = sender.more(2)?;
            all(Self::INTERFACE, tally.refused, &tally)?;
        }
        match world.witness.packets()? {
            0 => Ok(()),
            arrived => bail!("{arrived} forbidden packets arrived"),
        }
    }

    /// Forbidden attempts so far.
    ///
    /// # Errors
    /// When a container is gone.
    pub fn attempts(&self) -> anyhow::Result<u64> {
        let mut sum: u64 = self.forbidden.iter().map(|s| s.tally().attempts()).sum();
        for container in [&self.shared, &self.own] {
            for name in EXCHANGER {
                sum += container.tenant.tally(name)?.attempts();
            }
        }
        Ok(sum)
    }
}

fn more(
    name: &str,
    until: u64,
    tally: impl Fn() -> anyhow::Result<Tally>,
) -> anyhow::Result<Tally> {
    poll(&format!("attempts at {name}"), LIMIT, || {
        let now = tally()?;
        Ok((now.attempts() >= until).then_some(now))
    })
}

fn all(name: &str, right: u64, tally: &Tally) -> anyhow::Result<()> {
    if right != tally.attempts() {
        bail!("{name}: not all {}: {tally:?}", tally.attempts());
    }
    Ok(())
}
