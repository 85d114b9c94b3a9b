//! A dashboard as Grafana reads it, and what its panels ask.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::Context as _;
use gate25_tests::poll;
use serde_json::Value;

use super::server::{Prometheus, deploy};

/// How long a busy machine may take to be scraped twice.
const PROMPT: Duration = Duration::from_secs(60);

/// A dashboard for one host, customer and job.
#[derive(Debug)]
pub(crate) struct Dashboard {
    /// Its file, without the ending.
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) panels: Vec<Panel>,
}

/// A panel; those that are headings ask nothing.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) kind: String,
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) place: Place,
    pub(crate) asked: Vec<Asked>,
    pub(crate) options: Value,
    /// What belongs to every value.
    pub(crate) defaults: Value,
}

/// In columns, of which a dashboard has 24, and rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// A query, and how what comes of it is called.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) query: String,
    pub(crate) legend: String,
}

impl Dashboard {
    /// Reads one, and fills in what somebody would choose.
    pub(crate) fn read(name: &'static str, customer: &str) -> anyhow::Result<Self> {
        let text = fs::read_to_string(deploy(&format!("grafana/{name}.json")))?;
        let json: Value = serde_json::from_str(&text).context("a dashboard")?;
        let panels = json["panels"].as_array().context("panels")?;
        Ok(Self {
            name,
            title: word(&json["title"]),
            panels: panels
                .iter()
                .map(|panel| Panel::of(panel, customer))
                .collect(),
        })
    }

    /// Waits until these panels have something to show; every query is asked, and answered.
    pub(crate) fn wait_data(&self, prometheus: &Prometheus, panels: &[&str]) -> anyhow::Result<()> {
        let what = format!("data for {panels:?}");
        poll(&what, PROMPT, || {
            let mut with_data = BTreeSet::new();
            for panel in &self.panels {
                for asked in &panel.asked {
                    if !prometheus.query(&asked.query)?.is_empty() {
                        with_data.insert(panel.title.as_str());
                    }
                }
            }
            Ok(panels.iter().all(|it| with_data.contains(it)).then_some(()))
        })
    }
}

impl Panel {
    fn of(json: &Value, customer: &str) -> Self {
        let targets = json["targets"].as_array().into_iter().flatten();
        let number = |key: &str| json["gridPos"][key].as_f64().unwrap_or_default();
        Self {
            kind: word(&json["type"]),
            title: word(&json["title"]),
            unit: word(&json["fieldConfig"]["defaults"]["unit"]),
            place: Place {
                x: number("x"),
                y: number("y"),
                width: number("w"),
                height: number("h"),
            },
            asked: targets
                .map(|target| Asked {
                    query: filled(&word(&target["expr"]), customer),
                    legend: word(&target["legendFormat"]),
                })
                .collect(),
            options: json["options"].clone(),
            defaults: json["fieldConfig"]["defaults"].clone(),
        }
    }
}

/// A query with what Grafana fills in.
fn filled(query: &str, customer: &str) -> String {
    query
        .replace("$__rate_interval", "15s")
        .replace("$__range", "1h")
        .replace("$job", "gate25")
        .replace("$instance", "127.0.0.1:9425")
        .replace("$customer", customer)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
