//! A time in which this host only observes. The kernel ends it; the agent begins it, tells of it and
//! cuts, once it is over, the connections that it had let through.

use std::time::Duration;

use gate25_common::bypass::Bypass;
use gate25_common::decide::HostMode;
use tracing::{error, info, warn};

use super::serve::Agent;
use crate::chain::in_full;
use crate::clock;
use crate::control::{BypassRequest, ONLY_OBSERVES, already_bypassed};
use crate::dataplane::Dataplane;
use crate::figures::Figures;

/// Waits no longer than this without looking at the clock: it counts suspended time, timers do not.
const LOOK: Duration = Duration::from_secs(60);

/// The bypass whose end is waited for.
#[derive(Debug, Default)]
pub(super) struct Bypassing(Option<Bypass>);

impl Bypassing {
    /// What an earlier start has begun.
    pub(super) fn of(figures: &dyn Figures) -> Self {
        let bypass = figures.bypass();
        let bypass = bypass.unwrap_or_else(|error| {
            error!(
                error = in_full(&error),
                "not known whether this host is bypassed"
            );
            Bypass::NONE
        });
        let is_active = clock::boot().is_ok_and(|now| bypass.is_active(now.unsigned_abs()));
        if is_active {
            warn!(
                ticket = bypass.ticket(),
                "bypassed: this host only observes"
            );
        }
        Self(is_active.then_some(bypass))
    }

    /// Whether the host only observes for the time being.
    pub(super) fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// The ticket of a bypass that still is, unless it is this one.
    fn under_another(&self, ticket: &str, now: u64) -> Option<&str> {
        let active = self.0.as_ref().filter(|bypass| bypass.is_active(now));
        active.map(Bypass::ticket).filter(|other| *other != ticket)
    }

    /// Returns when it is over. Dropping the future loses nothing.
    pub(super) async fn over(&mut self) {
        while let Some(until) = self.0.as_ref().map(Bypass::until) {
            // Without a clock it is taken to be over: looking for connections then ends none that the
            // tables allow.
            let now = clock::boot().map_or(u64::MAX, i64::unsigned_abs);
            let left = Duration::from_nanos(until.saturating_sub(now));
            if left.is_zero() {
                self.0 = None;
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
        std::future::pending().await
    }
}

impl<D: Dataplane> Agent<D> {
    /// Begins a bypass, or ends it.
    pub(super) fn bypass(&mut self, request: &BypassRequest) -> Result<(), String> {
        let now = clock::boot().map_err(|error| in_full(&error))?;
        let now = now.unsigned_abs();
        let bypass = match request {
            BypassRequest::Begin { within, ticket } => {
                if self.mode == HostMode::Observe {
                    return Err(ONLY_OBSERVES.to_owned());
                }
                if let Some(other) = self.bypassing.under_another(ticket, now) {
                    return Err(already_bypassed(other));
                }
                let length = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
                Bypass::new(now, now.saturating_add(length), ticket)
                    .ok_or_else(|| "the ticket's name is too long".to_owned())?
            }
            BypassRequest::End => Bypass::NONE,
        };
        let written = self.reconciler.bypass(&bypass);
        written.map_err(|error| in_full(&error))?;
        match request {
            BypassRequest::Begin { within, ticket } => {
                let seconds = within.as_secs();
                warn!(ticket, seconds, "bypassed: this host only observes");
                self.bypassing = Bypassing(Some(bypass));
            }
            BypassRequest::End => {
                info!("bypass ended: this host refuses again");
                self.bypassing = Bypassing::default();
                self.sweeper.now();
            }
        }
        Ok(())
    }

    /// What was let through is let through no longer.
    pub(super) fn bypass_over(&mut self) {
        info!("bypass over: this host refuses again");
        self.sweeper.now();
    }
}
