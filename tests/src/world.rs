//! A lab with all that most tests need: the hosting, greeters for servers, a witness, the agent.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::{
    Agent, Attempt, Container, Containers, Guest, Hosting, Lab, Link, Network, Outcome, PolicyText,
    Runtime, Settings, Tenant, Witness, connect, greet, poll, tenant,
};

/// Where the agent pins, unless told otherwise.
const PINS: &str = "/sys/fs/bpf/gate25";
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
            containers,
            lab,
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
    pub fn connect_at_birth(
        &self,
        name: &str,
        to: &[std::net::SocketAddr],
    ) -> anyhow::Result<Vec<Outcome>> {
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
    pub fn container_in(&self, cgroup: crate::Cgroup) -> anyhow::Result<Container> {
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

    /// Indexes of the interfaces whose links are pinned.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn pinned_links(&self) -> anyhow::Result<Vec<u32>> {
        self.hosting.hypervisor.run(|| {
            let links = pins().join("links");
            let entries = fs::read_dir(links).context("read the pins")?;
            let mut indexes: Vec<u32> = entries
                .flatten()
                .filter_map(|entry| {
                    entry
                        .file_name()
                        .to_str()?
                        .strip_prefix("interface-")?
                        .parse()
                        .ok()
                })
                .collect();
            indexes.sort_unstable();
            Ok(indexes)
        })?
    }

    /// What the agent has pinned: the numbers of maps, programs and links by their pins' paths,
    /// as bpftool tells them.
    ///
    /// # Errors
    /// When one of them cannot be told.
    pub fn pinned_objects(&self) -> anyhow::Result<BTreeMap<PathBuf, u64>> {
        let host = &self.hosting.hypervisor;
        let files = host.run(|| files_below(&pins()))??;
        let number = |path: PathBuf| {
            let text = path.to_string_lossy();
            let kind = match () {
                () if text.contains("/links/") => "link",
                () if text.contains("/programs/") => "prog",
                () => "map",
            };
            let told = host.exec("bpftool", &["-j", kind, "show", "pinned", &text])?;
            let number = told.split_once("\"id\":").map(|(_, rest)| rest);
            let digits = number.and_then(|rest| rest.split([',', '}']).next());
            let number = digits.and_then(|digits| digits.trim().parse().ok());
            let number = number.with_context(|| format!("no number of {text} in {told}"))?;
            Ok((path, number))
        };
        files.into_iter().map(number).collect()
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

    /// Waits until the kernel's tables hold a container's veth as such: what its cgroup's hooks
    /// have counted is not counted there again. Nothing to wait for without a veth.
    ///
    /// # Errors
    /// At the deadline.
    pub fn settle(&self, container: &Container) -> anyhow::Result<()> {
        const REFUSED_ONLY: &str = "0x02";
        let Some(guest) = container.guest() else {
            return Ok(());
        };
        let host = &self.hosting.hypervisor;
        let map = host.run(|| pins().join("INTERFACES"))?;
        let key = self.index(&guest.interface)?.to_le_bytes();
        let mut words = vec!["-j".to_owned(), "map".to_owned(), "lookup".to_owned()];
        words.extend(["pinned".to_owned(), map.to_string_lossy().into_owned()]);
        words.push("key".to_owned());
        words.extend(key.iter().map(ToString::to_string));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        poll("a container's veth to be known as such", PROMPT, || {
            // An entry that is not there yet is an error of bpftool's.
            let text = host.exec("bpftool", &words).unwrap_or_default();
            let value = text.split_once("\"value\":[").map(|(_, value)| value);
            let counting = value.and_then(|value| value.split(',').nth(8));
            let counting = counting.map(|byte| byte.trim_matches(['"', ']', '}']));
            Ok((counting == Some(REFUSED_ONLY)).then_some(()))
        })
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

    /// Checks that the exchanger's port 25 is refused at once over both families, that nothing of
    /// it arrives there, and that the relay and port 587 can be reached.
    ///
    /// # Errors
    /// Naming what is not so.
    pub fn check_closed(&self, guest: &Guest) -> anyhow::Result<()> {
        let before = self.witness.packets()?;
        for to in both(Hosting::EXCHANGER, 25) {
            let attempt = connect(&guest.ns, to, LIMIT)?;
            expect(guest, to, &attempt, &Outcome::Refused)?;
            if attempt.took > Duration::from_millis(900) {
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

/// The agent's folder of pins; called inside the hypervisor.
fn pins() -> PathBuf {
    let versions = fs::read_dir(PINS).into_iter().flatten().flatten();
    let version = |name: &str| name.strip_prefix('v')?.parse::<u32>().ok();
    let newest = versions
        .filter_map(|entry| version(entry.file_name().to_str()?))
        .max();
    Path::new(PINS).join(format!("v{}", newest.unwrap_or_default()))
}

fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry.context("read the pins")?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn both(server: crate::Addresses, port: u16) -> [std::net::SocketAddr; 2] {
    [server.v4_port(port), server.v6_port(port)]
}

/// Both families, and IPv4 by way of IPv6.
fn three(server: crate::Addresses, port: u16) -> [std::net::SocketAddr; 3] {
    let [v4, v6] = both(server, port);
    [v4, v6, server.mapped_port(port)]
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
