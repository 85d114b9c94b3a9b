//! The figures of a run by name: one flat JSON object.

use std::collections::{BTreeMap, BTreeSet};

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

/// What was measured, in one sitting or in several.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// The rounds of each sitting.
    sittings: BTreeMap<String, Vec<Samples>>,
    /// What 99th percentiles are of.
    tails: BTreeMap<String, String>,
    lower_bounds: BTreeSet<String>,
    reasons: BTreeMap<String, String>,
}

impl Figures {
    /// A figure of which a sitting has one value.
    pub(crate) fn put(&mut self, name: impl Into<String>, value: f64) {
        self.put_samples(name, &Samples::of([value]));
    }

    /// A figure of which a sitting has many rounds.
    pub(crate) fn put_samples(&mut self, name: impl Into<String>, samples: &Samples) {
        let sittings = self.sittings.entry(name.into()).or_default();
        sittings.push(samples.clone());
    }

    /// The same figure under another name.
    pub(crate) fn copy(&mut self, name: &str, of: &str) {
        if let Some(sittings) = self.sittings.get(of).cloned() {
            self.sittings.insert(name.to_owned(), sittings);
        }
    }

    /// A figure that is the 99th percentile of another's rounds in all sittings.
    pub(crate) fn put_tail(&mut self, name: impl Into<String>, of: impl Into<String>) {
        self.tails.insert(name.into(), of.into());
    }

    /// Says that a figure is at least so much.
    pub(crate) fn bound_below(&mut self, name: &str) {
        self.lower_bounds.insert(name.to_owned());
    }

    /// Adds another sitting.
    pub(crate) fn add(&mut self, sitting: Self) {
        for (name, sittings) in sitting.sittings {
            self.sittings.entry(name).or_default().extend(sittings);
        }
        self.tails.extend(sitting.tails);
        self.lower_bounds.extend(sitting.lower_bounds);
        self.reasons.extend(sitting.reasons);
    }

    /// Why a figure is not there.
    pub(crate) fn refuse(&mut self, name: &str, reason: impl Into<String>) {
        self.reasons.insert(name.to_owned(), reason.into());
    }

    /// The median, or the 99th percentile of a tail.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.summary(name).map(|summary| summary.value)
    }

    /// Of the rounds of all sittings. The spread is no less than how far the sittings are apart: the rounds
    /// of one have its memory and its minutes in common, and say nothing of another's.
    pub(crate) fn summary(&self, name: &str) -> Option<Summary> {
        let (of, summarize): (_, fn(&Samples) -> Option<Summary>) = match self.tails.get(name) {
            Some(of) => (of.as_str(), Samples::tail),
            None => (name, Samples::summary),
        };
        let sittings = self.sittings.get(of)?;
        let mut rounds = Samples::default();
        for sitting in sittings {
            rounds.extend(sitting);
        }
        let values = sittings.iter().filter_map(summarize);
        let apart = Samples::of(values.map(|sitting| sitting.value)).distance();
        let all = summarize(&rounds)?;
        let spreads = [all.spread, apart].into_iter().flatten();
        Some(Summary {
            spread: spreads.reduce(f64::max),
            ..all
        })
    }

    /// All that have a value.
    pub(crate) fn summaries(&self) -> impl Iterator<Item = (&str, Summary)> {
        let all = self.sittings.keys().chain(self.tails.keys());
        all.filter_map(|name| Some((name.as_str(), self.summary(name)?)))
    }

    pub(crate) fn is_lower_bound(&self, name: &str) -> bool {
        self.lower_bounds.contains(name)
    }

    pub(crate) fn reason(&self, name: &str) -> Option<&str> {
        self.reasons.get(name).map(String::as_str)
    }

    /// One flat object: medians and 99th percentiles, where there is more than one value `NAME_min` and
    /// `NAME_spread`, `1` as `NAME_is_lower_bound` where that is so; for what is missing null and a text
    /// `NAME_reason`.
    pub(crate) fn json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        let mut number = |name: String, value: f64| object.insert(name, json!(rounded(value)));
        for (name, summary) in self.summaries() {
            number(name.to_owned(), summary.value);
            if let Some(spread) = summary.spread {
                number(format!("{name}_min"), summary.least);
                number(format!("{name}_spread"), spread);
            }
        }
        for name in &self.lower_bounds {
            number(format!("{name}_is_lower_bound"), 1.0);
        }
        for name in PROMISED {
            if self.summary(name).is_none() {
                object.insert(name.to_owned(), Value::Null);
                let reason = self.reason(name).unwrap_or("its part was not run");
                object.insert(format!("{name}_reason"), json!(reason));
            }
        }
        for (name, reason) in &self.reasons {
            object.insert(format!("{name}_reason"), json!(reason));
        }
        object
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
        assert!(PROMISED.iter().all(|name| json.contains_key(*name)));
    }

    #[test]
    fn json_of_two_sittings_has_the_median_and_the_least_of_all_rounds_and_how_far_they_are_apart()
    {
        let mut figures = Figures::default();
        for values in [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]] {
            let mut sitting = Figures::default();
            sitting.put_samples("refused_over_empty_ns", &Samples::of(values));
            sitting.put("scrape_ms", values[0]);
            figures.add(sitting);
        }
        let json = figures.json();
        assert_eq!(json["refused_over_empty_ns_min"], json!(1.0));
        assert_eq!(json["refused_over_empty_ns_spread"], json!(3.0));
        assert_eq!(json["scrape_ms_min"], json!(1.0));
        assert_eq!(json["scrape_ms_spread"], json!(3.0));
        assert_eq!(json.get("scrape_ms_is_lower_bound"), None);
    }

    #[test]
    fn spread_of_sittings_that_agree_is_that_of_their_rounds() {
        let mut figures = Figures::default();
        for _ in 0..2 {
            let mut sitting = Figures::default();
            sitting.put_samples("check_s", &Samples::of((0..=10).map(f64::from)));
            figures.add(sitting);
        }
        let spread = figures
            .summary("check_s")
            .and_then(|summary| summary.spread);
        assert_eq!(spread, Some(4.0));
    }

    #[test]
    fn tail_is_that_of_the_rounds_of_all_sittings_and_its_spread_how_far_theirs_are_apart() {
        let mut figures = Figures::default();
        for from in [0, 100] {
            let mut sitting = Figures::default();
            let rounds = (from..from + 100).map(f64::from);
            sitting.put_samples("exemption_ms", &Samples::of(rounds));
            sitting.put_tail("exemption_p99_ms", "exemption_ms");
            figures.add(sitting);
        }
        let json = figures.json();
        assert_eq!(json["exemption_p99_ms"], json!(197.0));
        assert_eq!(json["exemption_p99_ms_spread"], json!(100.0));
    }

    #[test]
    fn rounded_keeps_four_digits() {
        assert_eq!(rounded(0.012_345_6), 0.012_35);
        assert_eq!(rounded(123_456.7), 123_457.0);
    }
}
