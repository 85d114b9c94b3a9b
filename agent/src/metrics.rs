//! What Prometheus sees. Every metric is defined in [`catalogue`], with its help text.
//!
//! Values that live in the kernel are read at scrape time into a registry of that scrape, so that
//! nothing is counted twice and no label outlives what it stands for.

pub mod catalogue;
mod customers;
mod family;
mod notice;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25_common::abi::{MAX_CUSTOMERS, MAX_PREFIXES};
use gate25_common::address::Family;
use gate25_common::counters::HostCounters;
use gate25_common::decide::{HostMode, Reason, Verdict};
use gate25_common::names;
use gate25_common::packet::{Malformed, Tunnel};
use gate25_common::redirect::Hindrance;
use gate25_common::returns::Fate;
use jiff::Timestamp;
use prometheus::{Encoder as _, Histogram, HistogramOpts, Registry, TextEncoder};

use crate::chain::in_full;
use crate::control::bypassed;
use crate::doctor;
use crate::features::Feature;
use crate::figures::{Figures, FiguresError};
use crate::http::{PageError, Pages};
use crate::kernel::guard::Unmarked;
use crate::notice::counts::Counts;
use crate::status::{ExemptionStatus, Shared, Source, State, Status, Subject, Trial};
use catalogue as names_of;
use customers::Detail;
use family::Families;

/// Buckets of [`catalogue::POLICY_APPLY_DURATION`], in seconds.
const APPLY_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Buckets of [`catalogue::WORKLOAD_ENFORCEMENT_DELAY`], in seconds.
const DELAY_BUCKETS: [f64; 10] = [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0];

/// Pairs of verdict and reason that a decision can end in.
const OUTCOMES: [(Verdict, Reason); 20] = [
    (Verdict::Allow, Reason::Allowlist),
    (Verdict::Allow, Reason::Exemption),
    (Verdict::Allow, Reason::Profile),
    (Verdict::Allow, Reason::Unassigned),
    (Verdict::Observe, Reason::Profile),
    (Verdict::Observe, Reason::Unassigned),
    (Verdict::Observe, Reason::Quarantine),
    (Verdict::Observe, Reason::Malformed),
    (Verdict::Reject, Reason::Profile),
    (Verdict::Reject, Reason::Unassigned),
    (Verdict::Reject, Reason::Quarantine),
    (Verdict::Reject, Reason::Malformed),
    (Verdict::Drop, Reason::Profile),
    (Verdict::Drop, Reason::Unassigned),
    (Verdict::Drop, Reason::Quarantine),
    (Verdict::Drop, Reason::Malformed),
    (Verdict::Redirect, Reason::Profile),
    (Verdict::Redirect, Reason::Unassigned),
    (Verdict::Notice, Reason::Profile),
    (Verdict::Notice, Reason::Unassigned),
];
/// Verdicts that a decision can end in.
const VERDICTS: [Verdict; 6] = [
    Verdict::Allow,
    Verdict::Observe,
    Verdict::Reject,
    Verdict::Drop,
    Verdict::Redirect,
    Verdict::Notice,
];

/// Why a page could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The kernel did not give its counters.
    #[error("read the kernel's counters")]
    Kernel(#[from] FiguresError),
    /// A metric was not accepted.
    #[error("make the metrics' page")]
    Prometheus(#[from] prometheus::Error),
    /// The page is not text.
    #[error("make the metrics' page")]
    Text(#[from] std::string::FromUtf8Error),
}

/// Durations that the agent measures itself.
#[derive(Debug, Clone)]
pub struct Timings {
    apply: Histogram,
    enforcement_delay: Histogram,
}

impl Timings {
    /// Nothing measured yet.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Prometheus`].
    pub fn new() -> Result<Self, MetricsError> {
        let histogram = |definition: names_of::Definition, buckets: [f64; 10]| {
            let name = definition.full_name();
            let options = HistogramOpts::new(name, definition.help).buckets(buckets.to_vec());
            Histogram::with_opts(options)
        };
        Ok(Self {
            apply: histogram(names_of::POLICY_APPLY_DURATION, APPLY_BUCKETS)?,
            enforcement_delay: histogram(names_of::WORKLOAD_ENFORCEMENT_DELAY, DELAY_BUCKETS)?,
        })
    }

    /// A policy was put into the kernel.
    pub fn applied(&self, after: Duration) {
        self.apply.observe(after.as_secs_f64());
    }

    /// A new interface got its program.
    pub fn enforced_after(&self, delay: Duration) {
        self.enforcement_delay.observe(delay.as_secs_f64());
    }
}

/// What never changes while the agent runs.
#[derive(Debug, Clone)]
pub struct Constants {
    /// Whether refusals are carried out at all.
    pub host: HostMode,
    /// What enforces.
    pub backend: &'static str,
    /// The hook in use.
    pub hook: &'static str,
    /// Why the backend was chosen.
    pub backend_reason: &'static str,
    /// What the backend cannot do here.
    pub lacks: Vec<Feature>,
    /// Customers with series of their own on the main page.
    pub customer_series_limit: usize,
}

/// The pages of the HTTP server.
pub struct Metrics {
    status: Shared,
    figures: Arc<dyn Figures>,
    timings: Timings,
    notice: Arc<Counts>,
    guard: Unmarked,
    constants: Constants,
}

impl Metrics {
    /// Pages of what `status` and `figures` say.
    pub fn new(
        status: Shared,
        figures: Arc<dyn Figures>,
        timings: Timings,
        notice: Arc<Counts>,
        guard: Unmarked,
        constants: Constants,
    ) -> Self {
        Self {
            status,
            figures,
            timings,
            notice,
            guard,
            constants,
        }
    }

    fn host_page(&self) -> Result<String, MetricsError> {
        let registry = Registry::new();
        let status = self.status.get();
        let mut families = Families::new(&registry);
        let started = Instant::now();
        self.kernel(&mut families)?;
        let detail = Detail::Limited(self.constants.customer_series_limit);
        customers::collect(&mut families, &status, &*self.figures, detail)?;
        let kernel = started.elapsed();
        let started = Instant::now();
        self.constants(&mut families)?;
        let now = Timestamp::now();
        let bypass = bypassed(&self.figures.bypass()?, now);
        let ends = bypass.as_ref().map_or(0.0, |bypass| seconds(bypass.ends));
        families.gauge(names_of::BYPASS_END, &[], ends)?;
        let host = match bypass {
            Some(_) => HostMode::Observe,
            None => self.constants.host,
        };
        workloads(&mut families, &status, &self.constants, host)?;
        for (family, packets) in self.guard.packets() {
            families.counter(names_of::GUARD_PACKETS, &[family.as_str()], packets)?;
        }
        policy(&mut families, &status, now)?;
        notice::collect(&mut families, &status, &self.notice)?;
        findings(&mut families, &status)?;
        let policy = started.elapsed();
        for (collector, elapsed) in [("kernel", kernel), ("agent", policy)] {
            let seconds = elapsed.as_secs_f64();
            families.gauge(names_of::SCRAPE_COLLECTOR_DURATION, &[collector], seconds)?;
        }
        registry.register(Box::new(self.timings.apply.clone()))?;
        registry.register(Box::new(self.timings.enforcement_delay.clone()))?;
        registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        encode(&registry)
    }

    fn customers_page(&self) -> Result<String, MetricsError> {
        let registry = Registry::new();
        let mut families = Families::new(&registry);
        customers::collect(
            &mut families,
            &self.status.get(),
            &*self.figures,
            Detail::Everybody,
        )?;
        encode(&registry)
    }

    fn kernel(&self, families: &mut Families<'_>) -> Result<(), MetricsError> {
        let host: HostCounters = self.figures.host()?;
        let returns = self.figures.returns()?;
        for family in Family::ALL {
            let version = version(family);
            for fate in Fate::ALL {
                let labels = [fate.as_str(), version];
                let packets = returns.packets(fate, family);
                families.counter(names_of::RETURN_PACKETS, &labels, packets)?;
            }
            for (verdict, reason) in OUTCOMES {
                let labels = [verdict.as_str(), reason.as_str(), version];
                let value = host.connections(verdict, reason, family);
                families.counter(names_of::CONNECTIONS, &labels, value)?;
            }
            for verdict in VERDICTS {
                let labels = [verdict.as_str(), version];
                families.counter(names_of::PACKETS, &labels, host.packets(verdict, family))?;
                families.counter(names_of::BYTES, &labels, host.bytes(verdict, family))?;
            }
        }
        for kind in Malformed::ALL {
            families.counter(names_of::MALFORMED, &[kind.as_str()], host.malformed(kind))?;
        }
        let hindrances = self.figures.hindrances()?;
        for hindrance in Hindrance::ALL {
            let labels = [hindrance.as_str()];
            families.counter(
                names_of::REDIRECTS_REFUSED,
                &labels,
                hindrances.of(hindrance),
            )?;
        }
        for tunnel in Tunnel::ALL {
            let protocol = tunnel.protocol().to_string();
            families.counter(names_of::TUNNEL_PACKETS, &[&protocol], host.tunnels(tunnel))?;
        }
        families.counter(names_of::EVENTS_LOST, &[], host.events_lost())?;
        families.counter(names_of::UNTRACKED, &[], host.untracked())
    }

    fn constants(&self, families: &mut Families<'_>) -> Result<(), MetricsError> {
        let Constants {
            host,
            backend,
            hook: _,
            backend_reason,
            lacks,
            customer_series_limit,
        } = &self.constants;
        let (policy, observe) = match host {
            HostMode::Policy => (1.0, 0.0),
            HostMode::Observe => (0.0, 1.0),
        };
        let build = [env!("CARGO_PKG_VERSION"), env!("GATE25_EBPF_TOOLCHAIN")];
        families.gauge(names_of::BUILD_INFO, &build, 1.0)?;
        families.gauge(names_of::HOST_MODE, &["policy"], policy)?;
        families.gauge(names_of::HOST_MODE, &["observe"], observe)?;
        families.gauge(names_of::BACKEND_INFO, &[backend, backend_reason], 1.0)?;
        for feature in Feature::ALL {
            let can = f64::from(u8::from(!lacks.contains(&feature)));
            families.gauge(names_of::BACKEND_FEATURE, &[feature.as_str()], can)?;
        }
        families.gauge(
            names_of::CUSTOMER_SERIES_LIMIT,
            &[],
            *customer_series_limit as f64,
        )?;
        let capacities = [
            (names::MAP_INTERFACES, MAX_CUSTOMERS),
            (names::MAP_CGROUPS, MAX_CUSTOMERS),
            (names::MAP_CUSTOMERS, MAX_CUSTOMERS),
            (names::MAP_PREFIXES, MAX_PREFIXES),
        ];
        for (map, capacity) in capacities {
            families.gauge(names_of::MAP_MAX_ENTRIES, &[map], capacity as f64)?;
        }
        Ok(())
    }
}

fn workloads(
    families: &mut Families<'_>,
    status: &Status,
    constants: &Constants,
    host: HostMode,
) -> Result<(), MetricsError> {
    let backend = constants.backend;
    let refuses = host == HostMode::Policy && status.in_force;
    let enforcing = |is: bool| f64::from(u8::from(refuses && is));
    let hooks = [
        (constants.hook, true),
        ("cgroup", status.roots > 0),
        ("return", status.returns > 0),
    ];
    for (hook, is) in hooks {
        families.gauge(names_of::ENFORCING, &[backend, hook], enforcing(is))?;
    }
    families.gauge(names_of::PROBLEMS, &[], status.problems.len() as f64)?;
    for subject in Subject::ALL {
        let is = f64::from(u8::from(status.complained_of.contains(subject)));
        families.gauge(names_of::COMPLAINTS, &[subject.as_str()], is)?;
    }
    let guarded = f64::from(u8::from(status.guard_in_place));
    families.gauge(names_of::GUARD_IN_PLACE, &[], guarded)?;
    for kind in ["interface", "cgroup"] {
        for state in State::ALL {
            let count = status
                .workloads
                .iter()
                .filter(|(id, workload)| id.kind() == kind && workload.state == state)
                .count();
            families.gauge(names_of::WORKLOADS, &[kind, state.as_str()], count as f64)?;
        }
    }
    families.counter(names_of::DRIFT_REPAIRS, &[backend], status.repairs)?;
    families.counter(names_of::DRIFT_REPAIRS, &["guard"], status.guard_repairs)?;
    for (map, entries) in &status.entries {
        families.gauge(names_of::MAP_ENTRIES, &[map], *entries as f64)?;
    }
    Ok(())
}

fn policy(
    families: &mut Families<'_>,
    status: &Status,
    now: Timestamp,
) -> Result<(), MetricsError> {
    for source in Source::ALL {
        let is = f64::from(u8::from(status.source == source));
        families.gauge(names_of::POLICY_SOURCE, &[source.as_str()], is)?;
    }
    // The built-in customer is nobody's.
    let customers = status.policy.customers.len().saturating_sub(1);
    families.gauge(names_of::POLICY_CUSTOMERS, &[], customers as f64)?;
    let in_state = |wanted: &str| {
        status
            .policy
            .exemptions
            .iter()
            .filter(|one| exemption_state(one, now) == wanted)
            .count()
    };
    for state in ["active", "scheduled", "expired"] {
        families.gauge(
            names_of::POLICY_EXEMPTIONS,
            &[state],
            in_state(state) as f64,
        )?;
    }
    families.gauge(names_of::POLICY_GENERATION, &[], status.generation as f64)?;
    let hash = status.hash.map_or(0, |hash| hash.metric());
    families.gauge(names_of::POLICY_HASH, &[], hash as f64)?;
    let (ends, held) = match status.trial {
        Some(Trial::Running { ends }) => (seconds(ends), 0.0),
        Some(Trial::Undone { at: _ }) => (0.0, 1.0),
        None => (0.0, 0.0),
    };
    families.gauge(names_of::TRIAL_END, &[], ends)?;
    families.gauge(names_of::FILES_HELD, &[], held)?;
    let successful = f64::from(u8::from(status.reload_successful));
    families.gauge(names_of::RELOAD_SUCCESSFUL, &[], successful)?;
    let success = status.reload_success.map_or(0.0, seconds);
    families.gauge(names_of::RELOAD_SUCCESS_TIMESTAMP, &[], success)?;
    families.counter(names_of::RELOADS, &[], status.reloads)?;
    families.counter(names_of::RELOAD_FAILURES, &[], status.reload_failures)
}

/// Of findings that are about other things nobody here knows.
fn findings(families: &mut Families<'_>, status: &Status) -> Result<(), MetricsError> {
    let found = &status.examined.findings;
    let counted = |kind: &doctor::Kind| {
        kind.area() == doctor::Area::Coverage || *kind == doctor::Kind::NotExamined
    };
    for kind in doctor::Kind::ALL.iter().filter(|kind| counted(kind)) {
        let count = found.iter().filter(|it| it.kind == *kind).count();
        families.gauge(names_of::COVERAGE_FINDINGS, &[kind.as_str()], count as f64)?;
    }
    let looked = status.examined.looked.map_or(0.0, seconds);
    families.gauge(names_of::COVERAGE_LOOKED, &[], looked)
}

fn exemption_state(exemption: &ExemptionStatus, now: Timestamp) -> &'static str {
    if exemption.expires <= now {
        "expired"
    } else if exemption.starts.is_some_and(|starts| starts > now) {
        "scheduled"
    } else {
        "active"
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

fn version(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

fn encode(registry: &Registry) -> Result<String, MetricsError> {
    let mut page = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut page)?;
    Ok(String::from_utf8(page)?)
}

impl Pages for Metrics {
    fn metrics(&self) -> Result<String, PageError> {
        self.host_page().map_err(PageError::new)
    }

    fn customers(&self) -> Result<String, PageError> {
        self.customers_page().map_err(PageError::new)
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        let problems = self.status.get().problems;
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    fn healthy(&self) -> Result<(), Vec<String>> {
        self.figures
            .host()
            .map(drop)
            .map_err(|error| vec![in_full(&error)])
    }
}
