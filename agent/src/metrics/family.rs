//! Metrics of one scrape, written as they come: a scrape tells of thousands of series, and a registry would
//! make several objects of each.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use super::MetricsError;
use super::catalogue::{Definition, Kind};

/// The metrics of one scrape.
#[derive(Default)]
pub(super) struct Families {
    /// Series by their metric, in the order in which they came.
    series: BTreeMap<&'static str, (Definition, String)>,
}

impl Families {
    /// Exports a total. Each combination of labels once a scrape.
    pub(super) fn counter(
        &mut self,
        definition: Definition,
        labels: &[&str],
        total: u64,
    ) -> Result<(), MetricsError> {
        debug_assert_eq!(definition.kind, Kind::Counter);
        self.write(definition, labels, &total)
    }

    /// Exports a value.
    pub(super) fn gauge(
        &mut self,
        definition: Definition,
        labels: &[&str],
        value: f64,
    ) -> Result<(), MetricsError> {
        debug_assert_eq!(definition.kind, Kind::Gauge);
        self.write(definition, labels, &value)
    }

    fn write(
        &mut self,
        definition: Definition,
        labels: &[&str],
        value: &dyn Display,
    ) -> Result<(), MetricsError> {
        if labels.len() != definition.labels.len() {
            return Err(MetricsError::Labels(definition.name));
        }
        let family = self.series.entry(definition.name);
        let (_, text) = family.or_insert_with(|| (definition, String::new()));
        write!(text, "gate25_{}", definition.name)?;
        let mut separator = '{';
        for (name, label) in definition.labels.iter().zip(labels) {
            write!(text, "{separator}{name}=\"")?;
            escape(text, label, "\\\"\n");
            text.push('"');
            separator = ',';
        }
        if separator == ',' {
            text.push('}');
        }
        writeln!(text, " {value}")?;
        Ok(())
    }

    /// Adds the page's text to `page`, as version 0.0.4 of the format wants it.
    pub(super) fn write_to(&self, page: &mut String) -> Result<(), MetricsError> {
        for (definition, series) in self.series.values() {
            let name = definition.full_name();
            write!(page, "# HELP {name} ")?;
            escape(page, definition.help, "\\\n");
            writeln!(page, "\n# TYPE {name} {}", definition.kind.as_str())?;
            page.push_str(series);
        }
        Ok(())
    }
}

/// Adds `text` with a backslash before each of `special`.
fn escape(page: &mut String, text: &str, special: &str) {
    for c in text.chars() {
        if special.contains(c) {
            page.push('\\');
        }
        page.push(match c {
            '\n' => 'n',
            c => c,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Definition = Definition {
        name: "plain",
        kind: Kind::Gauge,
        help: "One line\nand a \\.",
        labels: &[],
    };
    const LABELLED: Definition = Definition {
        name: "labelled_total",
        kind: Kind::Counter,
        help: "\"Help\".",
        labels: &["one", "other"],
    };

    #[test]
    fn page_is_what_the_format_says() {
        let mut families = Families::default();
        families.gauge(PLAIN, &[], 0.25).unwrap();
        families.counter(LABELLED, &["a", "b"], 3).unwrap();
        families
            .counter(LABELLED, &["\"\\\n", "ä"], u64::MAX)
            .unwrap();
        let mut page = String::new();
        families.write_to(&mut page).unwrap();
        let expected = concat!(
            "# HELP gate25_labelled_total \"Help\".\n",
            "# TYPE gate25_labelled_total counter\n",
            "gate25_labelled_total{one=\"a\",other=\"b\"} 3\n",
            r#"gate25_labelled_total{one="\"\\\n",other="ä"} 18446744073709551615"#,
            "\n# HELP gate25_plain One line\\nand a \\\\.\n",
            "# TYPE gate25_plain gauge\n",
            "gate25_plain 0.25\n",
        );
        assert_eq!(page, expected);
    }

    #[test]
    fn series_with_other_labels_than_its_metric_is_refused() {
        let refused = Families::default().counter(LABELLED, &["a"], 3);
        assert!(matches!(
            refused,
            Err(MetricsError::Labels("labelled_total"))
        ));
    }
}
