//! A real Prometheus scrapes the agent, on the rules, the alerts and the queries of dashboards that are shipped.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use gate25_tests::{Hosting, NetNs, Outcome, PolicyText, Process, Sender, World, connect, get, poll};
use serde_json::Value;

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Prometheus starts, scrapes twice and evaluates, on a busy machine.
const PROMPT: Duration = Duration::from_secs(60);
const ATTEMPT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(1);
const SPAMMER: &str = "c-spam";

#[test]
fn prometheus_tells_of_a_burst_of_many_destinations_of_drift_and_of_a_refused_policy() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .customer(SPAMMER, "tap101i*")
        .customer("c-exempt", "tap102i*")
        .exempt("c-exempt");
    let spammer = world.guest(11, "tap101i0").unwrap();
    let exempt = world.guest(12, "tap102i0").unwrap();
    let agent = world.agent(&policy).unwrap();
    world.wait_closed(&spammer).unwrap();
    world.wait_open(&exempt).unwrap();
    let host = &world.hosting.hypervisor;
    let prometheus = Prometheus::start(host, world.lab.dir()).unwrap();
    prometheus.wait_rules().unwrap();
    // An exemption for a day ends soon; nothing else is the matter.
    let calm = BTreeSet::from([("Gate25ExemptionEndsSoon".to_owned(), "c-exempt".to_owned())]);
    prometheus.wait_firing(&calm).unwrap();
    assert_eq!(prometheus.firing().unwrap(), calm);

    let burst = Sender::start(&spammer.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    for last in 1..=250 {
        let to = SocketAddr::from((Ipv4Addr::new(203, 0, 113, last), 25));
        let attempt = connect(&spammer.ns, to, ATTEMPT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Refused, "{to}");
    }
    host.exec("nft", &["flush ruleset"]).unwrap();
    agent.write_policy("broken.yaml", "schema: 1\nnonsense: 1\n").unwrap();
    let mut troubled = calm;
    for (alert, customer) in [
        ("Gate25CustomerBurst", SPAMMER),
        ("Gate25CustomerManyDestinations", SPAMMER),
        ("Gate25Drift", ""),
        ("Gate25PolicyRefused", ""),
    ] {
        troubled.insert((alert.to_owned(), customer.to_owned()));
    }
    prometheus.wait_firing(&troubled).unwrap();
    assert_eq!(prometheus.firing().unwrap(), troubled);
    let with_data = prometheus.dashboards().unwrap();
    for panel in [
        "gate25-host: Enforces",
        "gate25-host: Connection attempts by verdict",
        "gate25-host: Customers that try and may not",
        "gate25-host: Destinations of customers, this hour",
        "gate25-fleet: Policies in force",
        "gate25-fleet: Refused",
        "gate25-fleet: Customers that try and may not",
        "gate25-fleet: Exemptions that end within two weeks",
        "gate25-customer: Attempts that were not allowed",
        "gate25-customer: Attempts by verdict",
        "gate25-customer: Destinations",
    ] {
        assert!(with_data.contains(panel), "{panel}: {with_data:?}");
    }
    assert_eq!(burst.finish().connected, 0);
}

/// Prometheus of the distribution, on what is shipped, at a quicker pace.
#[derive(Debug)]
struct Prometheus {
    ns: NetNs,
    process: Process,
}

impl Prometheus {
    fn start(ns: &NetNs, dir: &Path) -> anyhow::Result<Self> {
        let example = fs::read_to_string(deploy("prometheus/scrape.yaml"))?;
        let rules = deploy("prometheus");
        let config = example
            .replace(": 15s", ": 1s")
            .replace("[rules.yaml, alerts.yaml]", &format!("[{0}/rules.yaml, {0}/alerts.yaml]", rules.display()));
        let file = dir.join("prometheus.yml");
        fs::write(&file, config)?;
        let mut command = ns.command("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg(format!("--web.listen-address={LISTEN}"));
        let process = ns.spawn("prometheus", command)?;
        Ok(Self { ns: ns.clone(), process })
    }

    fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let (status, body) = get(&self.ns, LISTEN, path)?;
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("{path}: {status}: {body}"))?;
        if status != 200 || answer["status"] != "success" {
            bail!("{path}: {answer}");
        }
        Ok(answer["data"].clone())
    }

    /// Waits until the agent is scraped and every rule has been evaluated without a mistake.
    fn wait_rules(&self) -> anyhow::Result<()> {
        poll("Prometheus to evaluate every rule", PROMPT, || {
            let Ok(data) = self.ask("/api/v1/rules") else {
                return Ok(None);
            };
            let groups = data["groups"].as_array().context("groups")?;
            let rules: Vec<&Value> = groups.iter().flat_map(|it| it["rules"].as_array().into_iter().flatten()).collect();
            if let Some(wrong) = rules.iter().find(|rule| rule["health"] == "err") {
                bail!("{wrong}");
            }
            let well = rules.len() > 25 && rules.iter().all(|rule| rule["health"] == "ok");
            let targets = self.ask("/api/v1/targets")?;
            let up = targets["activeTargets"][0]["health"] == "up";
            Ok((well && up).then_some(()))
        })
        .with_context(|| self.process.log())
    }

    /// The alerts that fire, each with its customer.
    fn firing(&self) -> anyhow::Result<BTreeSet<(String, String)>> {
        let data = self.ask("/api/v1/alerts")?;
        let alerts = data["alerts"].as_array().context("alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let label = |alert: &Value, name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
        Ok(firing.map(|it| (label(it, "alertname"), label(it, "customer"))).collect())
    }

    /// Waits until at least these fire.
    fn wait_firing(&self, expected: &BTreeSet<(String, String)>) -> anyhow::Result<()> {
        let mut last = BTreeSet::new();
        poll("alerts", PROMPT, || {
            last = self.firing()?;
            Ok(expected.is_subset(&last).then_some(()))
        })
        .with_context(|| format!("{last:?}"))
    }

    /// Asks what the panels of every dashboard ask; those that get an answer with data in it.
    fn dashboards(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut with_data = BTreeSet::new();
        for name in ["host", "fleet", "customer"] {
            let text = fs::read_to_string(deploy(&format!("grafana/{name}.json")))?;
            let dashboard: Value = serde_json::from_str(&text)?;
            let uid = dashboard["uid"].as_str().context("uid")?;
            for panel in dashboard["panels"].as_array().context("panels")? {
                let targets = panel["targets"].as_array().into_iter().flatten();
                for query in targets.filter_map(|target| target["expr"].as_str()) {
                    let data = self.ask(&format!("/api/v1/query?query={}", encoded(&filled(query))))?;
                    if data["result"].as_array().is_some_and(|series| !series.is_empty()) {
                        let title = panel["title"].as_str().context("title")?;
                        with_data.insert(format!("{uid}: {title}"));
                    }
                }
            }
        }
        Ok(with_data)
    }
}

/// A query with what Grafana fills in.
fn filled(query: &str) -> String {
    query
        .replace("$__rate_interval", "1m")
        .replace("$__range", "1h")
        .replace("$job", "gate25")
        .replace("$instance", "127.0.0.1:9425")
        .replace("$customer", SPAMMER)
}

fn encoded(text: &str) -> String {
    let one = |byte: u8| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(one).collect()
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}
