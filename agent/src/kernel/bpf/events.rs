//! Attempts that the kernel reports, written to the log at DEBUG.

use std::io;
use std::net::IpAddr;

use crate::kernel::readiness::readable;
use aya::maps::{MapData, RingBuf};
use gate25_common::counters::Event;

/// Logs attempts until the ring buffer fails.
///
/// # Errors
///
/// What the reactor or the kernel says.
pub async fn log(events: RingBuf<MapData>) -> io::Result<()> {
    let mut events = readable(events)?;
    loop {
        let mut ready = events.readable_mut().await?;
        let buffer = ready.get_inner_mut();
        while let Some(item) = buffer.next() {
            match Event::from_bytes(&item) {
                Some(event) => line(&event),
                None => tracing::warn!(length = item.len(), "event of unknown length"),
            }
        }
        ready.clear_ready();
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
