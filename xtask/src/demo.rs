//! gate25 at work in a small provider's network: what is tried, expected and seen.

mod containers;

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use gate25_tests::{
    Agent, Guest, Held, Hosting, Lab, Link, Outcome, Postfix, Privileges, Process, Remover, Role,
    Settings, connect, get, send,
};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{SigSet, Signal};

use crate::{cargo, demo::containers::Pods, table::Table};

const LIMIT: Duration = Duration::from_secs(3);
/// A refusal has to come at once, not after a retry: SYNs are repeated after a second.
const AT_ONCE: Duration = Duration::from_millis(500);
const DOMAIN: &str = "example.org";

/// How to run the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the lab running and say how to play in it.
    #[arg(long)]
    keep: bool,
    /// Only remove a lab that was kept.
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.remove {
        Lab::remove_kept()?;
        println!("no lab is left");
        return Ok(ExitCode::SUCCESS);
    }
    let binary = cargo::build()?;
    println!("agent: {}", binary.display());
    // Blocked in all threads that start from here on, so that the one below gets them.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("block signals")?;
    Lab::remove_kept()?;
    let lab = Lab::new("demo")?;
    remove_on_signal(signals, lab.remover())?;

    let mut table = Table::new();
    let scene = Scene::new(&lab)?;
    scene.without_agent(&mut table);
    let root = scene.pods.root();
    let settings = Settings {
        cgroups: vec![root.clone()],
        // The pods have networks of their own, in which a revocation is to end connections.
        privileges: Privileges::and(&["sys_admin", "sys_ptrace"]),
        ..Settings::default()
    };
    let started = Agent::start(&scene.hosting.hypervisor, settings, &policy(&root));
    let agent = match started {
        Ok(agent) => agent,
        Err(error) => {
            table.heading("gate25 starts");
            table.row("gate25 run --config gate25.yaml", "ready", Err(error));
            drop(scene);
            drop(lab);
            table.close();
            return Ok(ExitCode::FAILURE);
        }
    };
    scene.with_agent(&mut table);
    scene.pods.with_agent(&mut table);
    scene.other_ports(&mut table);
    scene.revoked(&mut table, &agent);
    totals(&mut table, &agent);
    if options.keep {
        how_to_play(&scene, &agent);
        agent.leave();
        scene.leave();
        lab.keep()?;
    } else {
        drop(agent);
        drop(scene);
        drop(lab);
    }
    Ok(if table.close() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The lab goes before the process does.
fn remove_on_signal(signals: SigSet, remover: Remover) -> anyhow::Result<()> {
    let wait = move || {
        let Ok(signal) = signals.wait() else { return };
        // Held to the end: the rows that fail from now on say nothing.
        let mut output = io::stdout().lock();
        drop(writeln!(output, "\n{signal}: removing the lab"));
        if let Err(error) = remover.remove() {
            drop(writeln!(output, "{error:#}"));
        }
        process::exit(128 + signal as i32);
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .context("start a thread")?;
    Ok(())
}

/// The policy's files. The exemption has a file of its own, which the demo edits.
fn policy(root: &str) -> [(&'static str, String); 2] {
    [
        ("10-base.yaml", BASE.replace("ROOT", root)),
        ("20-exemptions.yaml", exemptions(Newsletter::Exempt)),
    ]
}

const BASE: &str = "\
schema: 1
allowlists:
  - name: relays
    description: our own smarthosts, open to everybody
    to: [192.0.2.25, \"2001:db8:25::25\"]
profiles:
  - name: default
    mode: enforce
    blocked: reject
    allow: [relays]
customers:
  - id: c-10042
    name: ACME GmbH
    workloads: [{interface: tap101i0}, {cgroup: \"ROOT/shop\"}]
  - id: c-10043
    name: Initech
    workloads: [{interface: tap102i0}, {cgroup: \"ROOT/blog\"}]
";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Newsletter {
    Exempt,
    Revoked,
}

fn exemptions(newsletter: Newsletter) -> String {
    if newsletter == Newsletter::Revoked {
        return "schema: 1\nexemptions: []\n".to_owned();
    }
    let expires = Timestamp::now() + SignedDuration::from_hours(30 * 24);
    format!(
        "schema: 1\n\
         exemptions:\n\
         \x20 - id: acme-newsletter\n\
         \x20   customer: c-10042\n\
         \x20   reason: double opt-in newsletter\n\
         \x20   ticket: NOC-48213\n\
         \x20   approved_by: noc-duty\n\
         \x20   expires: {}\n\
         \x20   to: any\n",
        expires.strftime("%Y-%m-%dT%H:%M:%SZ")
    )
}

/// Everything but the agent.
struct Scene {
    hosting: Hosting,
    /// Customer c-10042, exempt at first: a veth in the bridge.
    exempt: Guest,
    /// Customer c-10043: a tap in the bridge.
    blocked: Guest,
    /// Nobody's: a routed veth.
    unassigned: Guest,
    pods: Pods,
    exchanger: Postfix,
    relay: Postfix,
    web: Process,
}

impl Scene {
    fn new(lab: &Lab) -> anyhow::Result<Self> {
        let hosting = Hosting::new(lab)?;
        let exchanger = Role::Exchanger {
            domain: DOMAIN.to_owned(),
        };
        let mut exchanger = Postfix::launch(&hosting.exchanger, &exchanger)?;
        let relay = Role::Relay {
            networks: Hosting::GUEST_NETWORKS.to_owned(),
            next_hop: format!("[{}]:25", Hosting::EXCHANGER.v4),
        };
        let mut relay = Postfix::launch(&hosting.relay, &relay)?;
        let site = lab.folder("site")?;
        fs::write(site.join("index.html"), "a web page\n").context("write the web page")?;
        let mut command = hosting.exchanger.command("busybox");
        command.args(["httpd", "-f", "-p", "443", "-h"]).arg(&site);
        let web = hosting.exchanger.spawn("httpd", command)?;
        let exempt = hosting.guest(lab, 101, "tap101i0", Link::BridgedVeth)?;
        let program = std::env::current_exe().context("find this program")?;
        let cable = vec![program.to_string_lossy().into_owned(), "pump".to_owned()];
        let blocked = hosting.guest(lab, 102, "tap102i0", Link::BridgedTapBy(cable))?;
        let unassigned = hosting.guest(lab, 103, "veth103i0", Link::RoutedVeth)?;
        let pods = Pods::new(lab, &hosting)?;
        exchanger.wait_ready(&hosting.exchanger)?;
        relay.wait_ready(&hosting.relay)?;
        Ok(Self {
            hosting,
            exempt,
            blocked,
            unassigned,
            pods,
            exchanger,
            relay,
            web,
        })
    }

    fn without_agent(&self, table: &mut Table) {
        table.heading("Without gate25 everybody reaches everybody");
        for (guest, what) in [
            (&self.exempt, "bridged veth tap101i0"),
            (&self.blocked, "bridged tap tap102i0"),
            (&self.unassigned, "routed veth veth103i0"),
        ] {
            for (family, to) in exchanger(25) {
                reaches(table, guest, &format!("{what}, {family}: exchanger:25"), to);
            }
        }
        self.pods.without_agent(table);
    }

    fn with_agent(&self, table: &mut Table) {
        table.heading("gate25 runs: port 25 is closed, the relay is open");
        for (guest, what) in [
            (&self.blocked, "blocked customer"),
            (&self.unassigned, "guest of nobody"),
        ] {
            for (family, to) in exchanger(25) {
                refused(table, guest, &format!("{what}, {family}: exchanger:25"), to);
            }
        }
        for (guest, what) in [
            (&self.blocked, "blocked customer"),
            (&self.unassigned, "guest of nobody"),
        ] {
            for (family, to) in both(Hosting::RELAY, 25) {
                self.delivers(
                    table,
                    guest,
                    &format!("{what}, {family}: mail through the relay"),
                    to,
                );
            }
        }
        for (family, to) in exchanger(25) {
            let what = format!("exempt customer, {family}: mail to the exchanger");
            self.delivers(table, &self.exempt, &what, to);
        }
    }

    fn other_ports(&self, table: &mut Table) {
        table.heading("Submission and the web are none of gate25's business");
        for (family, to) in exchanger(587) {
            let greeting = Held::open(&self.blocked.ns, to, LIMIT)
                .and_then(|mut held| held.command("EHLO guest.example.com"));
            let seen = greeting.map(|line| (line.starts_with("250"), line));
            table.row(
                &format!("blocked customer, {family}: submission, port 587"),
                "250",
                seen,
            );
        }
        for (family, to) in exchanger(443) {
            let page = get(&self.blocked.ns, to, "/");
            let seen =
                page.map(|(status, text)| (status == 200, format!("{status}: {}", text.trim())));
            table.row(
                &format!("blocked customer, {family}: web page, port 443"),
                "200",
                seen,
            );
        }
    }

    fn revoked(&self, table: &mut Table, agent: &Agent) {
        table.heading("The exemption is revoked by editing the YAML, connections being open");
        let mut open = Vec::new();
        for (family, to) in exchanger(25) {
            let opened = Held::open(&self.exempt.ns, to, LIMIT).and_then(|mut held| {
                let answer = held.command("EHLO guest.example.com")?;
                Ok((held, answer))
            });
            let seen = opened.map(|(held, answer)| {
                open.push((family, held));
                (answer.starts_with("250"), answer)
            });
            table.row(
                &format!("exempt customer, {family}: opens a connection"),
                "250",
                seen,
            );
        }
        let applied = agent.apply_policy("20-exemptions.yaml", &exemptions(Newsletter::Revoked));
        let seen = applied.map(|()| (true, "running".to_owned()));
        table.row(
            "20-exemptions.yaml saved without the exemption",
            "the agent runs it",
            seen,
        );
        for (family, mut held) in open {
            let seen = held
                .write_until_cut(LIMIT)
                .map(|attempt| (attempt.outcome == Outcome::Reset, attempt.to_string()));
            table.row(
                &format!("same connection, {family}: the next write"),
                "reset",
                seen,
            );
        }
        for (family, to) in exchanger(25) {
            let what = format!("no longer exempt, {family}: exchanger:25");
            refused(table, &self.exempt, &what, to);
        }
        for (family, to) in both(Hosting::RELAY, 25) {
            let what = format!("no longer exempt, {family}: mail through the relay");
            self.delivers(table, &self.exempt, &what, to);
        }
        self.pods.revoked(table);
    }

    /// Mail sent by swaks to `to` arrives in the exchanger's mailbox.
    fn delivers(&self, table: &mut Table, guest: &Guest, what: &str, to: SocketAddr) {
        let deliver = || {
            let delivery = send(&guest.ns, to, &format!("user@{DOMAIN}"), what)?;
            if !delivery.accepted {
                return Ok((false, delivery.summary()));
            }
            self.exchanger.wait_for_mail(what, LIMIT)?;
            Ok((true, format!("in the mailbox; {}", delivery.summary())))
        };
        table.row(what, "delivered", deliver());
    }

    fn leave(self) {
        let Self {
            hosting: _,
            exempt,
            blocked,
            unassigned,
            pods,
            exchanger,
            relay,
            web,
        } = self;
        pods.leave();
        for guest in [exempt, blocked, unassigned] {
            guest.leave();
        }
        exchanger.leave();
        relay.leave();
        web.leave();
    }
}

fn exchanger(port: u16) -> [(&'static str, SocketAddr); 2] {
    both(Hosting::EXCHANGER, port)
}

fn both(server: gate25_tests::Addresses, port: u16) -> [(&'static str, SocketAddr); 2] {
    [
        ("IPv4", server.v4_port(port)),
        ("IPv6", server.v6_port(port)),
    ]
}

fn reaches(table: &mut Table, guest: &Guest, what: &str, to: SocketAddr) {
    let seen = connect(&guest.ns, to, LIMIT)
        .map(|attempt| (attempt.outcome == Outcome::Connected, attempt.to_string()));
    table.row(what, "connected", seen);
}

fn refused(table: &mut Table, guest: &Guest, what: &str, to: SocketAddr) {
    let seen = connect(&guest.ns, to, LIMIT).map(|attempt| {
        let right = attempt.outcome == Outcome::Refused && attempt.took < AT_ONCE;
        (right, attempt.to_string())
    });
    table.row(what, "refused at once", seen);
}

/// What the agent's metrics page says about the above.
fn totals(table: &mut Table, agent: &Agent) {
    table.heading("The metrics page, http://127.0.0.1:9425/metrics on the hypervisor");
    let metrics = agent.metrics();
    let mut total = |labels: &[(&str, &str)], exact: f64| {
        let name = "gate25_connections_total";
        let seen = match &metrics {
            Ok(metrics) => Ok(metrics.sum(name, labels).map_or_else(
                || (false, "no such series".to_owned()),
                |value| ((value - exact).abs() < 0.5, value.to_string()),
            )),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value:?}"))
            .collect();
        let what = format!("connections_total{{{}}}", labels.join(","));
        table.row(&what, &exact.to_string(), seen);
    };
    for family in ["ipv4", "ipv6"] {
        // The blocked customer, the guest of nobody, and the customer whose exemption ended; the
        // first and the last from a container as well.
        total(&[("verdict", "reject"), ("family", family)], 5.0);
        // Three guests and a container through the relay; by exemption one delivery, one held
        // connection and a container's.
        total(&[("verdict", "allow"), ("family", family)], 7.0);
    }
}

fn how_to_play(scene: &Scene, agent: &Agent) {
    let enter = |name: &str, pid: u32, note: &str| {
        println!("  {name:12} nsenter -t {pid} -n -m      {note}");
    };
    println!("\nThe lab is left running. A shell in it:");
    enter(
        "hypervisor",
        scene.hosting.hypervisor.holder(),
        "the agent; busybox wget -qO- http://127.0.0.1:9425/metrics",
    );
    enter(
        "exempt",
        scene.exempt.ns.holder(),
        "swaks --server 203.0.113.25 --to user@example.org",
    );
    enter("blocked", scene.blocked.ns.holder(), "the same is refused");
    enter("unassigned", scene.unassigned.ns.holder(), "");
    enter(
        "relay",
        scene.hosting.relay.holder(),
        "192.0.2.25, 2001:db8:25::25",
    );
    enter(
        "exchanger",
        scene.hosting.exchanger.holder(),
        "203.0.113.25, 2001:db8:ffff::25",
    );
    println!("Policy to edit: {}", agent.policy_dir().display());
    println!("Settings:       {}", agent.config().display());
    println!("Remove it all:  ./xtask/x demo --remove");
}
