//! Prometheus of the distribution.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use gate25_tests::{NetNs, Process, get, poll};
use serde_json::Value;

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Prometheus starts, scrapes twice and evaluates, on a busy machine.
const PROMPT: Duration = Duration::from_secs(60);
/// Points of a curve.
const POINTS: u64 = 200;

/// Prometheus of the distribution, on what is shipped, at a quicker pace.
#[derive(Debug)]
pub(crate) struct Prometheus {
    ns: NetNs,
    process: Process,
    /// When it started, in seconds since 1970.
    since: u64,
}

/// Alerts of which one that is waited for waits no minutes.
fn quicker(alerts: &str) -> anyhow::Result<String> {
    let (before, rule) = alerts
        .split_once("- alert: Gate25PolicyRefused")
        .context("the alert of a refused policy")?;
    let shorter = rule.replacen("for: 2m", "for: 2s", 1);
    Ok(format!("{before}- alert: Gate25PolicyRefused{shorter}"))
}

impl Prometheus {
    pub(crate) fn start(ns: &NetNs, dir: &Path) -> anyhow::Result<Self> {
        let example = fs::read_to_string(deploy("prometheus/scrape.yaml"))?;
        let rules = deploy("prometheus/rules.yaml");
        let alerts = dir.join("alerts.yaml");
        fs::write(
            &alerts,
            quicker(&fs::read_to_string(deploy("prometheus/alerts.yaml"))?)?,
        )?;
        let config = example.replace(": 15s", ": 2s").replace(
            "[rules.yaml, alerts.yaml]",
            &format!("[{}, {}]", rules.display(), alerts.display()),
        );
        let file = dir.join("prometheus.yml");
        fs::write(&file, config)?;
        let mut command = ns.command("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address={LISTEN}"));
        let process = ns.spawn("prometheus", command)?;
        Ok(Self {
            ns: ns.clone(),
            process,
            since: now()?,
        })
    }

    fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let (status, body) = get(&self.ns, LISTEN, path)?;
        let answer: Value =
            serde_json::from_str(&body).with_context(|| format!("{path}: {status}: {body}"))?;
        if status != 200 || answer["status"] != "success" {
            bail!("{path}: {answer}");
        }
        Ok(answer["data"].clone())
    }

    /// The series that a query comes to now.
    pub(crate) fn query(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        self.series(&format!("/api/v1/query?query={}", encoded(query)))
    }

    /// The curves of a query since Prometheus started.
    pub(crate) fn curves(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        let Span { from, to } = self.span()?;
        let step = ((to - from) / POINTS).max(1);
        let query = encoded(query);
        self.series(&format!(
            "/api/v1/query_range?query={query}&start={from}&end={to}&step={step}"
        ))
    }

    /// From its start until now.
    pub(crate) fn span(&self) -> anyhow::Result<Span> {
        Ok(Span {
            from: self.since,
            to: now()?,
        })
    }

    fn series(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let data = self.ask(path)?;
        let series = data["result"]
            .as_array()
            .with_context(|| format!("{path}: {data}"))?;
        Ok(series.clone())
    }

    /// Waits until the agent is scraped and every rule has been evaluated without a mistake.
    pub(crate) fn wait_rules(&self) -> anyhow::Result<()> {
        poll("Prometheus to evaluate every rule", PROMPT, || {
            let Ok(data) = self.ask("/api/v1/rules") else {
                return Ok(None);
            };
            let groups = data["groups"].as_array().context("groups")?;
            let rules: Vec<&Value> = groups
                .iter()
                .flat_map(|it| it["rules"].as_array().into_iter().flatten())
                .collect();
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
        let label = |alert: &Value, name: &str| {
            alert["labels"][name]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        Ok(firing
            .map(|it| (label(it, "alertname"), label(it, "customer")))
            .collect())
    }

    /// Waits until these fire, and no others. A scrape that a busy machine misses takes some away for a moment.
    pub(crate) fn wait_firing(&self, expected: &BTreeSet<(String, String)>) -> anyhow::Result<()> {
        let mut last = BTreeSet::new();
        poll("alerts", PROMPT, || {
            last = self.firing()?;
            Ok((*expected == last).then_some(()))
        })
        .with_context(|| format!("{last:?}"))
    }
}

/// Seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

fn now() -> anyhow::Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("the clock")?.as_secs())
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

/// A file of what is shipped.
pub(crate) fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}
