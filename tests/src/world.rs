//! A lab with all that most tests need: the hosting, greeters for servers, a witness, the agent.

mod containers;
mod pins;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};

use crate::{
    Agent, Attempt, Containers, Feature, Guest, Hosting, Lab, Link, Outcome, PolicyText, Settings,
    Witness, connect, greet, poll, tenant,
};

/// How long an interface may take to get its program, on a busy machine.
const PROMPT: Duration = Duration::from_secs(10);
/// Longer than two retransmissions of a SYN.
const LIMIT: Duration = Duration::from_secs(3);

/// A lab without an agent yet.
#[derive(Debug)]
pub struct World {
    /// The hypervisor and what is around it.
    pub hosting: Hosting,
    /// Counts what reaches the exchanger's port 25.
    pub witness: Witness,
    /// How a refused connect of a guest ends.
    pub refusal: Outcome,
    /// Containers on the hypervisor, below a cgroup of the lab.
    pub containers: Containers,
    /// Everything else hangs on it, so it goes last.
    pub lab: Lab,
}

impl World {
    /// Makes the lab of the running test: greeters on the exchanger's ports 25 and 587 and on the
    /// relay's.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let lab = Lab::for_test()?;
        let hosting = Hosting::new(&lab)?;
        greet(&hosting.exchanger, 25)?;
        greet(&hosting.exchanger, 587)?;
        greet(&hosting.relay, 25)?;
        greet(&hosting.relay, 587)?;
        let witness = Witness::start(&hosting.exchanger)?;
        let program = tenant::program()?.to_string_lossy().into_owned();
        let containers = Containers::new(&lab, &hosting, "machine", vec![program])?;
        Ok(Self {
            hosting,
            witness,
            refusal: Outcome::Refused,
            containers,
            lab,
        })
    }

    /// The same for backend nftables, which drops what it rejects where the kernel gives it no
    /// resets.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn for_nftables() -> anyhow::Result<Self> {
        let refusal = if Feature::NetdevResets.is_present()? {
            Outcome::Refused
        } else {
            Outcome::TimedOut
        };
        Ok(Self {
            refusal,
            ..Self::new()?
        })
    }

    /// Adds a guest behind a veth in the bridge.
    ///
    /// # Errors
    /// As [`World::guest_by`].
    pub fn guest(&self, number: u8, interface: &str) -> anyhow::Result<Guest> {
        self.guest_by(number, interface, Link::BridgedVeth)
    }

    /// Adds a guest and waits until what it sends arrives: the kernel may take a second to notice
    /// that a new link is up, and loses what is sent before.
    ///
    /// # Errors
    /// When it cannot be made, or reaches nobody.
    pub fn guest_by(&self, number: u8, interface: &str, link: Link) -> anyhow::Result<Guest> {
        let guest = self.hosting.guest(&self.lab, number, interface, link)?;
        for to in both(Hosting::EXCHANGER, 587)
            .into_iter()
            .chain(both(Hosting::RELAY, 587))
        {
            poll("a new guest to reach others", PROMPT, || {
                let attempt = connect(&guest.ns, to, Duration::from_millis(300))?;
                Ok((attempt.outcome == Outcome::Connected).then_some(()))
            })?;
        }
        Ok(guest)
    }

    /// Starts the agent on a policy and waits until it is ready.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn agent(&self, policy: &PolicyText) -> anyhow::Result<Agent> {
        self.agent_with(Settings::default(), policy)
    }

    /// The same with settings.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn agent_with(&self, settings: Settings, policy: &PolicyText) -> anyhow::Result<Agent> {
        Agent::start(
            &self.hosting.hypervisor,
            settings,
            &[("policy.yaml", policy.text())],
        )
    }

    /// The environment of an agent whose `nft` first does what `line` of shell says, where `$0` is a file
    /// of its own, and then what it always does.
    ///
    /// # Errors
    /// When there is no nft, or the program cannot be written.
    pub fn nft_that(&self, line: &str) -> anyhow::Result<Vec<(String, String)>> {
        let host = &self.hosting.hypervisor;
        let nft = host.exec("sh", &["-c", "command -v nft"])?;
        let path = self.nft();
        let folder = path.parent().context("its folder")?;
        fs::create_dir_all(folder).context("make a folder for programs")?;
        let script = format!("#!/bin/sh\n{line}\nexec {} \"$@\"\n", nft.trim());
        fs::write(&path, script).context("write a program")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(vec![("PATH".to_owned(), folder.display().to_string())])
    }

    /// Where the `nft` of [`World::nft_that`] is.
    #[must_use]
    pub fn nft(&self) -> PathBuf {
        self.lab.dir().join("programs/nft")
    }

    /// The index of an interface of the hypervisor.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn index(&self, interface: &str) -> anyhow::Result<u32> {
        let path = format!("/sys/class/net/{interface}/ifindex");
        let text = self
            .hosting
            .hypervisor
            .run(|| fs::read_to_string(&path))?
            .with_context(|| format!("read {path}"))?;
        text.trim().parse().context("an interface's index")
    }

    /// Has the hypervisor call an interface otherwise, without a pause where the kernel can do that.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let host = &self.hosting.hypervisor;
        let name = format!("link set {from} name {to}");
        host.ip(&name)
            .or_else(|_| host.ip(&format!("link set {from} down\n{name}\nlink set {to} up")))
    }

    /// The hardware address of an interface.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn hardware_address(&self, ns: &crate::NetNs, interface: &str) -> anyhow::Result<String> {
        let path = format!("/sys/class/net/{interface}/address");
        let text = ns
            .run(|| fs::read_to_string(&path))?
            .with_context(|| format!("read {path}"))?;
        Ok(text.trim().to_owned())
    }

    /// Waits until this many workloads are in this state.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_workloads(&self, agent: &Agent, state: &str, count: usize) -> anyhow::Result<()> {
        agent
            .wait_metric("gate25_workloads", &[("state", state)], PROMPT, |value| {
                value == count as f64
            })
            .map(drop)
            .with_context(|| format!("the agent wrote:\n{}", agent.log()))
    }

    /// Checks that the exchanger's port 25 is refused over both families, at once, that nothing of
    /// it arrives there, and that the relay and port 587 can be reached.
    ///
    /// # Errors
    /// Naming what is not so.
    pub fn check_closed(&self, guest: &Guest) -> anyhow::Result<()> {
        // Connections that others were allowed to open may still be saying goodbye.
        let before = self.witness.settled()?;
        for to in both(Hosting::EXCHANGER, 25) {
            let attempt = connect(&guest.ns, to, LIMIT)?;
            expect(guest, to, &attempt, &self.refusal)?;
            if self.refusal == Outcome::Refused && attempt.took > Duration::from_millis(900) {
                bail!("{} to {to}: {attempt}, not at once", guest.interface);
            }
        }
        for to in both(Hosting::RELAY, 25)
            .into_iter()
            .chain(both(Hosting::EXCHANGER, 587))
        {
            let attempt = connect(&guest.ns, to, LIMIT)?;
            expect(guest, to, &attempt, &Outcome::Connected)?;
        }
        let after = self.witness.packets()?;
        if after != before {
            bail!(
                "{} packets of {} to port 25 arrived",
                after - before,
                guest.interface
            );
        }
        Ok(())
    }

    /// Checks that the exchanger's port 25 can be reached over both families.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_open(&self, guest: &Guest) -> anyhow::Result<()> {
        for to in both(Hosting::EXCHANGER, 25) {
            let attempt = connect(&guest.ns, to, LIMIT)?;
            expect(guest, to, &attempt, &Outcome::Connected)?;
        }
        Ok(())
    }

    /// Waits until [`World::check_closed`] holds.
    ///
    /// # Errors
    /// At the deadline, with what is not so.
    pub fn wait_closed(&self, guest: &Guest) -> anyhow::Result<()> {
        wait(|| self.check_closed(guest))
    }

    /// Waits until [`World::check_open`] holds.
    ///
    /// # Errors
    /// At the deadline, with what is not so.
    pub fn wait_open(&self, guest: &Guest) -> anyhow::Result<()> {
        wait(|| self.check_open(guest))
    }
}

fn both(server: crate::Addresses, port: u16) -> [std::net::SocketAddr; 2] {
    [server.v4_port(port), server.v6_port(port)]
}

fn expect(
    guest: &Guest,
    to: std::net::SocketAddr,
    attempt: &Attempt,
    expected: &Outcome,
) -> anyhow::Result<()> {
    if attempt.outcome != *expected {
        bail!(
            "{} to {to}: expected {expected}, got {attempt}",
            guest.interface
        );
    }
    Ok(())
}

fn wait(check: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut last = None;
    poll("it", PROMPT, || {
        let result = check();
        let done = result.is_ok();
        last = result.err();
        Ok(done.then_some(()))
    })
    .map_err(|error| last.map_or(error, |last| last.context("at the deadline")))
}
