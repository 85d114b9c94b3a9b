//! Metrics of one scrape, registered as they are first used.

use std::collections::BTreeMap;

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};

use super::MetricsError;
use super::catalogue::{Definition, Kind};

/// The metrics of one scrape.
pub(super) struct Families<'r> {
    registry: &'r Registry,
    counters: BTreeMap<&'static str, IntCounterVec>,
    gauges: BTreeMap<&'static str, GaugeVec>,
}

impl<'r> Families<'r> {
    pub(super) fn new(registry: &'r Registry) -> Self {
        Self {
            registry,
            counters: BTreeMap::new(),
            gauges: BTreeMap::new(),
        }
    }

    /// Exports a total. Each combination of labels once a scrape.
    pub(super) fn counter(
        &mut self,
        definition: Definition,
        labels: &[&str],
        total: u64,
    ) -> Result<(), MetricsError> {
        debug_assert_eq!(definition.kind, Kind::Counter);
        let family = match self.counters.get(definition.name) {
            Some(family) => family,
            None => {
                let family = IntCounterVec::new(options(definition), definition.labels)?;
                self.registry.register(Box::new(family.clone()))?;
                self.counters.entry(definition.name).or_insert(family)
            }
        };
        family.get_metric_with_label_values(labels)?.inc_by(total);
        Ok(())
    }

    /// Exports a value.
    pub(super) fn gauge(
        &mut self,
        definition: Definition,
        labels: &[&str],
        value: f64,
    ) -> Result<(), MetricsError> {
        debug_assert_eq!(definition.kind, Kind::Gauge);
        let family = match self.gauges.get(definition.name) {
            Some(family) => family,
            None => {
                let family = GaugeVec::new(options(definition), definition.labels)?;
                self.registry.register(Box::new(family.clone()))?;
                self.gauges.entry(definition.name).or_insert(family)
            }
        };
        family.get_metric_with_label_values(labels)?.set(value);
        Ok(())
    }
}

fn options(definition: Definition) -> Opts {
    Opts::new(definition.full_name(), definition.help)
}
