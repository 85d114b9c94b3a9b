//! The figures of a run by name: one flat JSON object.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::samples::{Samples, Summary};

/// Figures that every run has: those that were not measured are null, with the reason beside them.
pub(crate) const PROMISED: [&str; 18] = [
    "pass_over_empty_ns",
    "refused_over_empty_ns",
    "refused_random_ns",
    "pass_nft_ratio",
    "refused_nft_ratio",
    "refused_ipset_ratio",
    "refused_iptables_ratio",
    "growth_10_to_10000",
    "cold_start_s",
    "cold_start_nft_ratio",
    "covered_1000_s",
    "programs_1000_s",
    "exemption_p99_ms",
    "revocation_p99_ms",
    "tap_enforced_p99_ms",
    "scrape_ms",
    "agent_rss_mib",
    "maps_mib",
];

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    values: BTreeMap<String, f64>,
    reasons: BTreeMap<String, String>,
}

impl Figures {
    pub(crate) fn put(&mut self, name: impl Into<String>, value: f64) {
        self.values.insert(name.into(), value);
    }

    /// A figure with its `_min` and `_spread`; its own value is the median.
    pub(crate) fn put_samples(&mut self, name: &str, samples: &Samples) -> Option<Summary> {
        let summary = samples.summary()?;
        self.put(name, summary.median);
        self.put(format!("{name}_min"), summary.least);
        self.put(format!("{name}_spread"), summary.spread);
        Some(summary)
    }

    /// Why a figure is not there.
    pub(crate) fn refuse(&mut self, name: &str, reason: impl Into<String>) {
        self.reasons.insert(name.to_owned(), reason.into());
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }

    pub(crate) fn reason(&self, name: &str) -> Option<&str> {
        self.reasons.get(name).map(String::as_str)
    }

    /// One flat object: numbers, and for what is missing null and a text `NAME_reason`.
    pub(crate) fn json(&self) -> Value {
        let mut object = Map::new();
        for (name, value) in &self.values {
            object.insert(name.clone(), json!(rounded(*value)));
        }
        for name in PROMISED {
            if !self.values.contains_key(name) {
                object.insert(name.to_owned(), Value::Null);
                let reason = self.reason(name).unwrap_or("its part was not run");
                object.insert(format!("{name}_reason"), json!(reason));
            }
        }
        for (name, reason) in &self.reasons {
            object.insert(format!("{name}_reason"), json!(reason));
        }
        Value::Object(object)
    }
}

/// To four significant digits, and no fewer than are before the point.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = (3.0 - value.abs().log10().floor()).max(0.0);
    let scale = 10f64.powf(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_what_was_not_measured_is_null_with_a_reason() {
        let mut figures = Figures::default();
        figures.put("scrape_ms", 12.344_4);
        figures.refuse("refused_ipset_ratio", "no ipset");
        let json = figures.json();
        assert_eq!(json["scrape_ms"], json!(12.34));
        assert_eq!(json["refused_ipset_ratio"], Value::Null);
        assert_eq!(json["refused_ipset_ratio_reason"], json!("no ipset"));
        let object = json.as_object().unwrap();
        assert!(PROMISED.iter().all(|name| object.contains_key(*name)));
    }

    #[test]
    fn rounded_keeps_four_digits() {
        assert_eq!(rounded(0.012_345_6), 0.012_35);
        assert_eq!(rounded(123_456.7), 123_457.0);
    }
}
