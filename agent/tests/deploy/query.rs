//! Queries of Prometheus, read by a parser of its language, against the catalogue of metrics.

use std::collections::{BTreeMap, BTreeSet};

use gate25::metrics::catalogue::{ALL, Kind};
use promql_parser::parser::{self, Expr, LabelModifier, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};

/// Labels that Prometheus gives to what it scrapes.
const OF_TARGETS: [&str; 2] = ["job", "instance"];
/// Of which those of processes are said by the crate prometheus.
const OF_OTHERS: [&str; 2] = ["up", "process_resident_memory_bytes"];

/// Metrics by name, each with its labels; `Recorded` ones are added.
#[derive(Debug, Clone)]
pub(crate) struct Known(BTreeMap<String, BTreeSet<String>>);

impl Known {
    pub(crate) fn of_catalogue() -> Self {
        let mut known = BTreeMap::new();
        for definition in ALL {
            let labels: BTreeSet<String> =
                definition.labels.iter().map(|&it| it.to_owned()).collect();
            let name = definition.full_name();
            match definition.kind {
                Kind::Counter | Kind::Gauge => drop(known.insert(name, labels)),
                Kind::Histogram => {
                    let mut buckets = labels.clone();
                    buckets.insert("le".to_owned());
                    known.insert(format!("{name}_bucket"), buckets);
                    known.insert(format!("{name}_sum"), labels.clone());
                    known.insert(format!("{name}_count"), labels);
                }
            }
        }
        for name in OF_OTHERS {
            known.insert(name.to_owned(), BTreeSet::new());
        }
        Self(known)
    }

    /// What a recording rule adds. Its labels are those of what it is made of, at most.
    pub(crate) fn record(&mut self, name: &str, query: &str) {
        let used = Used::of(query);
        let labels = used
            .metrics
            .iter()
            .flat_map(|metric| self.0[metric].clone());
        let labels = labels.collect();
        assert!(self.0.insert(name.to_owned(), labels).is_none(), "{name}");
    }

    /// Fails unless every metric and every label of the query is known.
    #[track_caller]
    pub(crate) fn check(&self, query: &str) {
        let Used {
            metrics,
            matched,
            grouped,
        } = Used::of(query);
        assert!(!metrics.is_empty(), "{query}");
        for metric in &metrics {
            assert!(self.0.contains_key(metric), "no metric {metric}: {query}");
        }
        for (metric, label) in matched {
            let known = self.0[&metric].contains(&label) || OF_TARGETS.contains(&label.as_str());
            assert!(known, "{metric} has no label {label}: {query}");
        }
        let mut labels: BTreeSet<&str> = metrics
            .iter()
            .flat_map(|it| self.0[it].iter())
            .map(String::as_str)
            .collect();
        labels.extend(OF_TARGETS);
        for label in grouped {
            assert!(labels.contains(label.as_str()), "no label {label}: {query}");
        }
    }
}

/// What a query names.
#[derive(Debug, Default)]
struct Used {
    metrics: BTreeSet<String>,
    /// Labels by which a metric's series are chosen.
    matched: BTreeSet<(String, String)>,
    /// Labels by which series are joined.
    grouped: BTreeSet<String>,
}

impl Used {
    #[track_caller]
    fn of(query: &str) -> Self {
        let expression = parser::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        let mut used = Self::default();
        walk_expr(&mut used, &expression).unwrap();
        used
    }

    fn selector(&mut self, selector: &VectorSelector) {
        let name = selector.name.clone().unwrap();
        let matchers = &selector.matchers;
        assert!(matchers.or_matchers.is_empty());
        for matcher in &matchers.matchers {
            if matcher.name != "__name__" {
                self.matched.insert((name.clone(), matcher.name.clone()));
            }
        }
        self.metrics.insert(name);
    }

    fn grouping(&mut self, modifier: Option<&LabelModifier>) {
        if let Some(modifier) = modifier {
            self.grouped
                .extend(modifier.labels().labels.iter().cloned());
        }
    }
}

impl ExprVisitor for Used {
    type Error = String;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, String> {
        match expression {
            Expr::VectorSelector(selector) => self.selector(selector),
            Expr::MatrixSelector(matrix) => self.selector(&matrix.vs),
            Expr::Aggregate(aggregate) => self.grouping(aggregate.modifier.as_ref()),
            Expr::Binary(binary) => {
                let matching = binary.modifier.as_ref().and_then(|it| it.matching.as_ref());
                self.grouping(matching);
            }
            Expr::Unary(_)
            | Expr::Paren(_)
            | Expr::Subquery(_)
            | Expr::NumberLiteral(_)
            | Expr::StringLiteral(_)
            | Expr::Call(_)
            | Expr::Extension(_) => {}
        }
        Ok(true)
    }
}

#[test]
fn query_with_a_metric_or_a_label_that_is_not_there_is_found() {
    let known = Known::of_catalogue();
    known.check("rate(gate25_connections_total{job=\"x\", verdict=\"drop\"}[5m]) > 1");
    for wrong in [
        "rate(gate25_connection_total[5m])",
        "gate25_problems{verdict=\"drop\"}",
        "sum by (kind) (gate25_problems)",
        "gate25_workload_enforcement_delay_seconds",
        "gate25_problems and on (kind) up",
    ] {
        let checked = std::panic::catch_unwind(|| known.check(wrong));
        assert!(checked.is_err(), "{wrong}");
    }
}
