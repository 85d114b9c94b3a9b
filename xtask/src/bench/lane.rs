//! A way into a host of its own: an interface whose packets are routed to nowhere.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use gate25_common::names::ABI_VERSION;
use gate25_tests::{
    Agent, Lab, NetNs, Privileges, Settings,
    bench::{Program, Table},
};

/// Longer than an agent with 10,000 customers takes to start on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// Longer than any ruleset takes to load.
const LOADED: Duration = Duration::from_secs(180);

/// A namespace that receives what comes by one interface, and drops it when it has been routed.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) ns: NetNs,
    /// The interface's index.
    pub(crate) index: u32,
}

impl Lane {
    pub(crate) fn new(lab: &Lab, name: &str, interface: &str) -> anyhow::Result<Self> {
        let ns = lab.netns(name)?;
        ns.sysctl(&[
            ("ipv6/conf/default/disable_ipv6", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/ip_forward", "1"),
        ])?;
        ns.ip(&format!(
            "link add {interface} address 02:00:00:00:00:01 type veth peer name guest0
             link set guest0 up
             link set {interface} up
             addr add 10.254.0.1/24 dev {interface}
             route add blackhole default"
        ))?;
        let index = index(&ns, interface)?;
        Ok(Self { ns, index })
    }

    /// Runs a program with a text on a file, as root in the namespace.
    pub(crate) fn load(&self, program: &[&str], text: &str) -> anyhow::Result<()> {
        let [name, arguments @ ..] = program else {
            bail!("no program");
        };
        let file = self.ns.dir().join(format!("{}.rules", self.ns.name()));
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        let mut command = self.ns.command("sh");
        command
            .args(["-c", r#"file=$1; shift; exec "$@" <"$file""#, "sh"])
            .arg(&file)
            .arg(name)
            .args(arguments);
        let said = self.ns.ask(command, LOADED)?;
        if said.code != Some(0) {
            bail!("{}: {}", program.join(" "), said.err.trim());
        }
        Ok(())
    }
}

/// The index of an interface.
pub(crate) fn index(ns: &NetNs, interface: &str) -> anyhow::Result<u32> {
    let path = format!("/sys/class/net/{interface}/ifindex");
    let text = ns.run(|| fs::read_to_string(&path))?;
    let text = text.with_context(|| format!("read {path}"))?;
    text.trim().parse().context("an interface's index")
}

/// Settings of an agent that is measured: as root, on the processor that nothing is measured on.
pub(crate) fn settings(more: &str) -> Settings {
    Settings {
        privileges: Privileges::Root,
        wrapper: ["taskset", "--cpu-list", "1"].map(str::to_owned).to_vec(),
        more: more.to_owned(),
        ..Settings::default()
    }
}

/// Starts an agent and waits until it enforces.
pub(crate) fn start(
    ns: &NetNs,
    settings: Settings,
    files: &[(String, String)],
) -> anyhow::Result<Agent> {
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let mut agent = Agent::start_unready(ns, settings, &files)?;
    agent.wait_ready(READY)?;
    Ok(agent)
}

/// A table that the agent has pinned.
pub(crate) fn table(ns: &NetNs, name: &str) -> anyhow::Result<Table> {
    let pin = pins().join(name);
    Table::pinned(ns, &pin)
}

/// A program that the agent has pinned.
pub(crate) fn program(ns: &NetNs, name: &str) -> anyhow::Result<Program> {
    let builds = pins().join("programs");
    let found = ns.run(|| {
        let entries = fs::read_dir(&builds)?;
        let mut paths = entries.flatten().map(|entry| entry.path().join(name));
        Ok::<_, std::io::Error>(paths.find(|path| path.exists()))
    })?;
    let pin = found
        .with_context(|| format!("read {}", builds.display()))?
        .with_context(|| format!("no program {name} below {}", builds.display()))?;
    Program::pinned(ns, &pin)
}

fn pins() -> std::path::PathBuf {
    Path::new("/sys/fs/bpf/gate25").join(format!("v{ABI_VERSION}"))
}
