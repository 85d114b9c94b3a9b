//! Series of single customers: of those with workloads here, and bounded in number.

use std::collections::BTreeSet;

use gate25_common::abi::CustomerId;
use gate25_common::counters::{CustomerCounters, SKETCH_BITS, Sketch};
use gate25_common::returns::{Fate, ReturnCounters};
use jiff::Timestamp;

use super::catalogue as names_of;
use super::family::Families;
use super::{MetricsError, VERDICTS, seconds};
use crate::figures::Figures;
use crate::policy::UNASSIGNED;
use crate::status::Status;
use crate::workloads::Claim;

/// Which customers get series.
#[derive(Clone, Copy)]
pub(super) enum Detail {
    /// So many, and only after an attempt that no allowlist covered.
    Limited(usize),
    /// All that have workloads here.
    Everybody,
}

/// Exports the series of customers with workloads here.
pub(super) fn collect(
    families: &mut Families,
    status: &Status,
    figures: &dyn Figures,
    detail: Detail,
) -> Result<(), MetricsError> {
    let mut exported = 0;
    let mut suppressed = 0;
    let present = present(status);
    let numbers: Vec<CustomerId> = present.iter().map(|customer| number(customer)).collect();
    let counted = figures.customers(&numbers)?;
    for ((customer, number), counts) in present.iter().zip(numbers).zip(counted) {
        let Some(counts) = counts else {
            continue;
        };
        match detail {
            Detail::Limited(_) if counts.uncovered() == 0 => continue,
            Detail::Limited(limit) if exported == limit => {
                suppressed += 1;
                continue;
            }
            Detail::Limited(_) | Detail::Everybody => {}
        }
        exported += 1;
        let sketch = figures.sketch(number)?.unwrap_or(Sketch::EMPTY);
        customer_series(families, customer, &counts, &sketch)?;
        match detail {
            Detail::Everybody => {
                if let Some(returns) = figures.customer_returns(number)? {
                    return_series(families, customer, &returns)?;
                }
            }
            // Anybody out there can send such packets to every customer, and would use up the limit.
            Detail::Limited(_) => {}
        }
    }
    match detail {
        Detail::Limited(_) => {
            families.gauge(
                names_of::CUSTOMER_SERIES_SUPPRESSED,
                &[],
                f64::from(suppressed),
            )?;
            exemptions(families, status, &present, Timestamp::now())
        }
        Detail::Everybody => Ok(()),
    }
}

fn customer_series(
    families: &mut Families,
    customer: &str,
    counts: &CustomerCounters,
    sketch: &Sketch,
) -> Result<(), MetricsError> {
    for verdict in VERDICTS {
        let labels = [customer, verdict.as_str()];
        families.counter(
            names_of::CUSTOMER_CONNECTIONS,
            &labels,
            counts.connections(verdict),
        )?;
    }
    families.gauge(
        names_of::CUSTOMER_DISTINCT_DESTINATIONS,
        &[customer],
        estimate(sketch),
    )
}

fn return_series(
    families: &mut Families,
    customer: &str,
    returns: &ReturnCounters,
) -> Result<(), MetricsError> {
    for fate in Fate::ALL {
        let labels = [customer, fate.as_str()];
        families.counter(names_of::CUSTOMER_RETURN_PACKETS, &labels, returns.of(fate))?;
    }
    Ok(())
}

fn exemptions(
    families: &mut Families,
    status: &Status,
    present: &BTreeSet<&str>,
    now: Timestamp,
) -> Result<(), MetricsError> {
    for exemption in &status.policy.exemptions {
        if exemption.expires > now && present.contains(exemption.customer.as_str()) {
            let labels = [exemption.customer.as_str(), &exemption.id];
            families.gauge(
                names_of::EXEMPTION_EXPIRY,
                &labels,
                seconds(exemption.expires),
            )?;
        }
    }
    Ok(())
}

/// Ids of customers with workloads here.
fn present(status: &Status) -> BTreeSet<&str> {
    status
        .workloads
        .values()
        .map(|workload| match &workload.claim {
            Claim::Customer(id) => id.as_str(),
            Claim::Unassigned | Claim::Conflict(_) => UNASSIGNED,
        })
        .collect()
}

fn number(customer: &str) -> CustomerId {
    match customer {
        UNASSIGNED => CustomerId::UNASSIGNED,
        id => CustomerId::from_name(id),
    }
}

/// Linear counting: `-m ln(z/m)` with `z` of `m` bits still unset; a full bitmap stands for one
/// with a single bit unset.
fn estimate(sketch: &Sketch) -> f64 {
    let bits = f64::from(SKETCH_BITS);
    let unset = f64::from(SKETCH_BITS.saturating_sub(sketch.ones()).max(1));
    (-bits * (unset / bits).ln()).round()
}
