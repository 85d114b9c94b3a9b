//! The real agent, run inside a lab's hypervisor.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::{Metrics, NetNs, Privileges, Process, Said, http, poll, process::tail};

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9425);
const READY: Duration = Duration::from_secs(10);

/// What goes into the agent's settings file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name that `hosts:` is matched against.
    pub host: String,
    /// `interfaces.match`.
    pub interfaces: Vec<String>,
    /// `cgroups.roots`: none unless asked for, since the machine may have some of those names.
    pub cgroups: Vec<String>,
    /// Further lines of YAML.
    pub more: String,
    /// Further arguments after `gate25 run --config FILE`.
    pub args: Vec<String>,
    /// Further environment variables.
    pub env: Vec<(String, String)>,
    /// A command that runs the agent's, such as `strace`.
    pub wrapper: Vec<String>,
    /// As whom it runs: not as root, unless a test needs that.
    pub privileges: Privileges,
    /// Which build of the agent.
    pub build: Build,
}

/// A build of the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Build {
    /// The one that is tested.
    #[default]
    This,
    /// One whose programs are others.
    OtherPrograms,
    /// One that has another version of everything that the kernel holds, too.
    OtherTables,
}

impl Build {
    /// Where its binary is: [`binary`], or in the folder `GATE25_BUILDS`, which `cargo xtask` sets
    /// for the slow tier.
    fn binary(self) -> anyhow::Result<PathBuf> {
        let name = match self {
            Self::This => return binary(),
            Self::OtherPrograms => "programs",
            Self::OtherTables => "tables",
        };
        let dir = env::var_os("GATE25_BUILDS").context("GATE25_BUILDS is not set")?;
        let path = Path::new(&dir).join(name);
        path.canonicalize()
            .with_context(|| format!("no agent at {}", path.display()))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: "hv1".to_owned(),
            interfaces: ["tap*", "vnet*", "veth*i*"].map(str::to_owned).to_vec(),
            cgroups: Vec::new(),
            more: String::new(),
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            privileges: Privileges::default(),
            build: Build::This,
        }
    }
}

/// A running agent with a folder of settings and policy.
#[derive(Debug)]
pub struct Agent {
    ns: NetNs,
    dir: PathBuf,
    settings: Settings,
    process: Process,
}

/// Where the agent's binary is: `GATE25_BIN`, which `cargo xtask` sets, or the workspace's
/// release build.
///
/// # Errors
/// When there is none.
pub fn binary() -> anyhow::Result<PathBuf> {
    let path = env::var_os("GATE25_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/gate25"),
        PathBuf::from,
    );
    path.canonicalize().with_context(|| {
        format!(
            "no agent at {}: run `./xtask/x build`, or set GATE25_BIN",
            path.display()
        )
    })
}

impl Agent {
    /// Writes settings and policy files (name, text), starts the agent and waits until
    /// `/readyz` says yes.
    ///
    /// # Errors
    /// When it ends, or is not ready within ten seconds; the message holds its log.
    pub fn start(
        ns: &NetNs,
        settings: Settings,
        policy: &[(&str, impl AsRef<str>)],
    ) -> anyhow::Result<Self> {
        let mut agent = Self::start_unready(ns, settings, policy)?;
        agent.wait_ready(READY)?;
        Ok(agent)
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// When the files cannot be written or the binary cannot be started.
    pub fn start_unready(
        ns: &NetNs,
        settings: Settings,
        policy: &[(&str, impl AsRef<str>)],
    ) -> anyhow::Result<Self> {
        let dir = ns.dir().join(format!("{}-gate25", ns.name()));
        fs::create_dir_all(dir.join("policy.d"))
            .with_context(|| format!("create {}/policy.d", dir.display()))?;
        for (name, text) in policy {
            replace(&dir.join("policy.d").join(name), text.as_ref())?;
        }
        let process = launch(ns, &dir, &settings)?;
        Ok(Self {
            ns: ns.clone(),
            dir,
            settings,
            process,
        })
    }

    /// Starts it again on the same files, after [`Agent::stop`] or [`Agent::signal`].
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = launch(&self.ns, &self.dir, &self.settings)?;
        self.wait_ready(READY)
    }

    /// What the next [`Agent::restart`] starts with.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Starts it again as [`Agent::restart`] does, without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_unready(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = launch(&self.ns, &self.dir, &self.settings)?;
        Ok(())
    }

    /// Runs a gate25 command with the agent's settings file where the agent runs.
    ///
    /// # Errors
    /// When it cannot be started, or takes more than ten seconds. A failing exit is an outcome.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<Said> {
        let mut command = self.ns.command(binary()?);
        command.args(args).arg("--config").arg(self.config());
        self.ns.ask(command, READY)
    }

    /// A shell's words for a gate25 command with the agent's settings file.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn in_shell(&self, command: &str) -> anyhow::Result<String> {
        let (program, config) = (binary()?, self.config());
        Ok(format!(
            "{} {command} --config {}",
            program.display(),
            config.display()
        ))
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// When the agent ends first or at the deadline; the message holds its log.
    pub fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let Self { ns, process, .. } = self;
        let ready = poll("the agent to be ready", limit, || {
            if let Some(status) = process.status()? {
                bail!("the agent ended: {status}");
            }
            let answer = http::get(ns, LISTEN, "/readyz");
            Ok(answer.ok().filter(|(status, _)| *status == 200))
        });
        ready
            .map(drop)
            .with_context(|| format!("the agent wrote:\n{}", tail(&self.log())))
    }

    /// The settings file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("gate25.yaml")
    }

    /// The folder of policy files.
    #[must_use]
    pub fn policy_dir(&self) -> PathBuf {
        self.dir.join("policy.d")
    }

    /// Writes a policy file beside its place, then renames it there, as editors and
    /// configuration management do. Does not wait.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_policy(&self, name: &str, text: &str) -> anyhow::Result<()> {
        replace(&self.policy_dir().join(name), text)
    }

    /// Writes a policy file and waits until the agent runs it.
    ///
    /// # Errors
    /// When the agent refuses it, or has done nothing within ten seconds.
    pub fn apply_policy(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let refused = "gate25_config_reload_failures_total";
        let before = self.metrics()?;
        let value = |metrics: &Metrics, name: &str| metrics.sum(name, &[]).unwrap_or_default();
        let generation = value(&before, "gate25_policy_generation");
        let failures = value(&before, refused);
        self.write_policy(name, text)?;
        poll("the agent to run the new policy", READY, || {
            let now = self.metrics()?;
            if value(&now, refused) > failures {
                bail!("the agent refused {name}; it wrote:\n{}", tail(&self.log()));
            }
            Ok((value(&now, "gate25_policy_generation") > generation).then_some(()))
        })
    }

    /// A page of the agent: its status and text.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        http::get(&self.ns, LISTEN, path)
    }

    /// The metrics page as text.
    ///
    /// # Errors
    /// When it does not answer with one.
    pub fn metrics_page(&self) -> anyhow::Result<String> {
        let (status, page) = self.get("/metrics")?;
        if status != 200 {
            bail!("/metrics: status {status}: {page}");
        }
        Ok(page)
    }

    /// The metrics page, parsed.
    ///
    /// # Errors
    /// When it does not answer with one.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::parse(&self.metrics_page()?)
    }

    /// Waits until a metric's series with these labels sum up to what `right` accepts.
    ///
    /// # Errors
    /// At the deadline, with the last value.
    pub fn wait_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        limit: Duration,
        right: impl Fn(f64) -> bool,
    ) -> anyhow::Result<f64> {
        let mut last = None;
        poll(&format!("{name}{labels:?}"), limit, || {
            // An agent that is just starting does not answer yet.
            last = self.metrics().ok().and_then(|page| page.sum(name, labels));
            Ok(last.filter(|value| right(*value)))
        })
        .with_context(|| format!("its last value is {last:?}"))
    }

    /// The agent's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The agent's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Sends a signal: SIGSTOP, SIGCONT, SIGKILL and so on.
    ///
    /// # Errors
    /// When the agent has ended.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.process.signal(signal)
    }

    /// Ends it with SIGTERM, as systemd does.
    ///
    /// # Errors
    /// When it has not ended after ten seconds.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(READY)
    }

    /// Lets the agent run on when this value goes.
    pub fn leave(self) {
        self.process.leave();
    }
}

fn launch(ns: &NetNs, dir: &Path, settings: &Settings) -> anyhow::Result<Process> {
    let Settings {
        host,
        interfaces,
        cgroups,
        more,
        args,
        env,
        wrapper,
        privileges,
        build,
    } = settings;
    let text = format!(
        "schema: 1\nhost: {host:?}\npolicy_dir: {:?}\ninterfaces:\n  match: [{}]\ncgroups:\n  roots: [{}]\nhttp:\n  listen: [{:?}]\n{more}",
        dir.join("policy.d"),
        quoted(interfaces),
        quoted(cgroups),
        LISTEN.to_string(),
    );
    let config = dir.join("gate25.yaml");
    replace(&config, &text)?;
    let binary = build.binary()?;
    privileges.prepare(ns, &binary, &config)?;
    // Whoever traces the agent is root: he sees how it starts, and writes where he likes.
    let mut before = wrapper.iter().cloned().chain(privileges.command());
    let mut command = match before.next() {
        Some(program) => {
            let mut command = ns.command(program);
            command.args(before).arg(binary);
            command
        }
        None => ns.command(binary),
    };
    command.args(["run", "--config"]).arg(&config).args(args);
    command.envs(env.iter().map(|(key, value)| (key, value)));
    ns.spawn("gate25", command)
}

/// Texts as the members of a YAML list.
fn quoted(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    quoted.join(", ")
}

fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new~");
    fs::write(&new, text).with_context(|| format!("write {}", path.display()))?;
    fs::rename(&new, path).with_context(|| format!("rename to {}", path.display()))
}
