//! Waiting, in the loop's ways.

use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior};

/// How long after a failure something is tried again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Ticks that were not waited for are not made up for.
pub(super) fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// [`every`], but that the first tick comes after a period, not at once.
pub(super) fn after_every(period: Duration) -> Interval {
    let mut interval = every(period);
    interval.reset();
    interval
}

/// The next tick; never, without an interval.
pub(super) async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Sleeps until `moment`; for ever without one.
pub(super) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
