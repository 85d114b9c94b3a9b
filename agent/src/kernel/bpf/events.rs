//! Attempts that the kernel reports, written to the log at DEBUG.

use std::net::IpAddr;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use gate25_common::counters::Event;
use tokio::time::{MissedTickBehavior, interval};

/// How often the buffer is emptied, which holds some 4,600 events; what does not fit is counted as lost.
/// The programs wake nobody, since that would cost the sender's CPU more than the verdict.
const PERIOD: Duration = Duration::from_millis(100);

/// Logs attempts for as long as it is polled.
pub async fn log(mut events: RingBuf<MapData>) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        while let Some(item) = events.next() {
            match Event::from_bytes(&item) {
                Some(event) => line(&event),
                None => tracing::warn!(length = item.len(), "event of unknown length"),
            }
        }
    }
}

fn line(event: &Event) {
    tracing::debug!(
        customer = event.customer().get(),
        interface = event.interface(),
        cgroup = event.cgroup(),
        destination = %IpAddr::from(event.destination()),
        port = event.port(),
        verdict = event.verdict().map(|verdict| verdict.as_str()),
        reason = event.reason().map(|reason| reason.as_str()),
        "attempt"
    );
}
