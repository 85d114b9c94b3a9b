//! Containers in a world: made, and checked for what they may.

use std::{net::SocketAddr, time::Duration};

use anyhow::bail;

use super::{PROMPT, World, both, wait};
use crate::{
    Addresses, Cgroup, Container, Hosting, Network, Outcome, Runtime, Settings, Tenant, poll,
    tenant,
};

impl World {
    /// Starts a container and waits until what it sends arrives.
    ///
    /// # Errors
    /// When it cannot be made, or reaches nobody.
    pub fn container(&self, name: &str, network: &Network) -> anyhow::Result<Container> {
        self.container_by(Runtime::Lab, name, network)
    }

    /// The same by a runtime of the caller's choice.
    ///
    /// # Errors
    /// As [`World::container`].
    pub fn container_by(
        &self,
        runtime: Runtime,
        name: &str,
        network: &Network,
    ) -> anyhow::Result<Container> {
        let Self {
            hosting,
            containers,
            lab,
            ..
        } = self;
        let container = containers.start(lab, hosting, name, network, runtime)?;
        for to in both(Hosting::EXCHANGER, 587) {
            poll("a new container to reach others", PROMPT, || {
                let attempt = container.tenant.connect(to)?;
                Ok((attempt.outcome == Outcome::Connected).then_some(()))
            })?;
        }
        Ok(container)
    }

    /// Runs the tenant's program in a new cgroup of that name, which connects to these addresses
    /// as the first thing it does, and returns what became of it. The cgroup is removed.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn connect_at_birth(&self, name: &str, to: &[SocketAddr]) -> anyhow::Result<Vec<Outcome>> {
        let cgroup = self.containers.root.child(name)?;
        let host = &self.hosting.hypervisor;
        let mut command = host.command_in(cgroup.dir(), tenant::program()?);
        command.arg("once").args(to.iter().map(ToString::to_string));
        let said = host.ask(command, PROMPT)?;
        if said.code != Some(0) {
            bail!("{name}: {said:?}");
        }
        Ok(said.out.lines().map(Outcome::from).collect())
    }

    /// Starts a container in a cgroup of the caller's choice, on the hypervisor's network.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn container_in(&self, cgroup: Cgroup) -> anyhow::Result<Container> {
        self.containers.start_in(cgroup, None)
    }

    /// Settings under which the agent judges the containers.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            cgroups: vec![self.containers.root.path()],
            ..Settings::default()
        }
    }

    /// A pattern for cgroups below the containers' root.
    #[must_use]
    pub fn below(&self, pattern: &str) -> String {
        format!("{}/{pattern}", self.containers.root.path())
    }

    /// Checks of a container what [`World::check_closed`] checks of a guest, and that an IPv4
    /// address in IPv6 clothes is no way around.
    ///
    /// # Errors
    /// Naming what is not so.
    pub fn check_contained(&self, tenant: &Tenant) -> anyhow::Result<()> {
        self.check_refused(tenant)?;
        for to in three(Hosting::RELAY, 25)
            .into_iter()
            .chain(both(Hosting::EXCHANGER, 587))
        {
            let attempt = tenant.connect(to)?;
            if attempt.outcome != Outcome::Connected {
                bail!("{to}: {attempt}");
            }
        }
        Ok(())
    }

    /// The part of [`World::check_contained`] that holds without a policy as well.
    ///
    /// # Errors
    /// Naming what is not so.
    pub fn check_refused(&self, tenant: &Tenant) -> anyhow::Result<()> {
        let before = self.witness.settled()?;
        for to in three(Hosting::EXCHANGER, 25) {
            let attempt = tenant.connect(to)?;
            if attempt.outcome != Outcome::Refused || attempt.took > Duration::from_millis(900) {
                bail!("{to}: {attempt}, not refused at once");
            }
        }
        match self.witness.packets()? - before {
            0 => Ok(()),
            arrived => bail!("{arrived} packets to port 25 arrived"),
        }
    }

    /// Waits until [`World::check_refused`] holds.
    ///
    /// # Errors
    /// At the deadline, with what is not so.
    pub fn wait_refused(&self, tenant: &Tenant) -> anyhow::Result<()> {
        wait(|| self.check_refused(tenant))
    }

    /// Checks that a container reaches the exchanger's port 25, by an IPv4 address in IPv6 clothes
    /// as well.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_free(&self, tenant: &Tenant) -> anyhow::Result<()> {
        for to in three(Hosting::EXCHANGER, 25) {
            let attempt = tenant.connect(to)?;
            if attempt.outcome != Outcome::Connected {
                bail!("{to}: {attempt}");
            }
        }
        Ok(())
    }

    /// Waits until [`World::check_contained`] holds.
    ///
    /// # Errors
    /// At the deadline, with what is not so.
    pub fn wait_contained(&self, tenant: &Tenant) -> anyhow::Result<()> {
        wait(|| self.check_contained(tenant))
    }

    /// Waits until [`World::check_free`] holds.
    ///
    /// # Errors
    /// At the deadline, with what is not so.
    pub fn wait_free(&self, tenant: &Tenant) -> anyhow::Result<()> {
        wait(|| self.check_free(tenant))
    }
}

/// Both families, and IPv4 by way of IPv6.
fn three(server: Addresses, port: u16) -> [SocketAddr; 3] {
    let [v4, v6] = both(server, port);
    [v4, v6, server.mapped_port(port)]
}
