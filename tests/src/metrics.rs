//! A metrics page, parsed.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};

/// The samples of a page in Prometheus' text format.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    samples: BTreeMap<String, Vec<(Labels, f64)>>,
}

type Labels = BTreeMap<String, String>;

impl Metrics {
    /// Reads a page.
    ///
    /// # Errors
    /// When a line is not a sample.
    pub fn parse(page: &str) -> anyhow::Result<Self> {
        let mut metrics = Self::default();
        for line in page
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (name, labels, value) =
                sample(line).with_context(|| format!("not a sample: {line}"))?;
            metrics
                .samples
                .entry(name)
                .or_default()
                .push((labels, value));
        }
        Ok(metrics)
    }

    /// Every series of a metric.
    pub fn series(&self, name: &str) -> impl Iterator<Item = (&BTreeMap<String, String>, f64)> {
        self.samples
            .get(name)
            .into_iter()
            .flatten()
            .map(|(labels, value)| (labels, *value))
    }

    /// The sum of a metric's series that carry all these labels; none when there is no such series.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |series: &Labels| {
            labels
                .iter()
                .all(|(key, value)| series.get(*key).is_some_and(|has| has == value))
        };
        let mut found = self
            .series(name)
            .filter(|(series, _)| has(series))
            .map(|(_, v)| v);
        let first = found.next()?;
        Some(first + found.sum::<f64>())
    }

    /// Checks that nothing the kernel counts is lower than it was; what the agent counts of itself
    /// begins anew at every start, and customers come and go.
    ///
    /// # Errors
    /// Naming the first series that is.
    pub fn check_not_below(&self, before: &Self) -> anyhow::Result<()> {
        const COUNTED: [&str; 6] = [
            "gate25_connections_total",
            "gate25_packets_total",
            "gate25_bytes_total",
            "gate25_malformed_total",
            "gate25_return_packets_total",
            "gate25_customer_connections_total",
        ];
        for name in COUNTED {
            for (labels, value) in before.series(name) {
                let labels: Vec<_> = labels
                    .iter()
                    .map(|(key, value)| (key.as_str(), value.as_str()))
                    .collect();
                let now = self.sum(name, &labels);
                let gone = now.is_none() && name == "gate25_customer_connections_total";
                if !gone && now.is_none_or(|now| now < value) {
                    bail!("{name}{labels:?} was {value}, is {now:?}");
                }
            }
        }
        Ok(())
    }

    /// The names of all metrics on the page.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.keys().map(String::as_str)
    }
}

fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some((name.to_owned(), BTreeMap::new(), value.trim().parse().ok()?));
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix('}') {
            return Some((name.to_owned(), labels, value.trim().parse().ok()?));
        }
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(key.to_owned(), value);
        rest = after;
    }
}

/// Reads up to the closing quote; returns the text without its escapes and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_labels_with_escapes_sums_matching_series() {
        let page =
            "# HELP a b\na{x=\"1\",y=\"q\\\"}\"} 2\na{x=\"1\",y=\"z\"} 3\na{x=\"2\"} 4\nb 1e3\n";
        let metrics = Metrics::parse(page).unwrap();
        assert_eq!(metrics.sum("a", &[("x", "1")]), Some(5.0));
        assert_eq!(metrics.sum("a", &[("y", "q\"}")]), Some(2.0));
        assert_eq!(metrics.sum("b", &[]), Some(1000.0));
        assert_eq!(metrics.sum("c", &[]), None);
    }

    #[test]
    fn parse_garbage_is_an_error() {
        assert!(Metrics::parse("a{x=1} 2").is_err());
    }
}
