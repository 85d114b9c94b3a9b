//! Metrics of the SMTP notice.

use super::MetricsError;
use super::catalogue as names_of;
use super::family::Families;
use crate::notice::counts::{Counts, Ended};
use crate::notice::server::Listening;
use crate::status::Status;

pub(super) fn collect(
    families: &mut Families,
    status: &Status,
    counts: &Counts,
) -> Result<(), MetricsError> {
    for ended in Ended::ALL {
        let total = counts.connections(ended);
        families.counter(names_of::NOTICE_CONNECTIONS, &[ended.as_str()], total)?;
    }
    families.counter(names_of::NOTICE_REFUSALS, &[], counts.refusals())?;
    families.gauge(names_of::NOTICE_OPEN, &[], counts.open() as f64)?;
    let (bound, waiting): (Vec<_>, Vec<_>) = status
        .notice
        .iter()
        .partition(|listener| listener.state == Listening::Yes);
    for (state, listeners) in [("listening", bound), ("waiting", waiting)] {
        families.gauge(names_of::NOTICE_LISTENERS, &[state], listeners.len() as f64)?;
    }
    Ok(())
}
