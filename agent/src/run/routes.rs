//! Notices when ways may lead elsewhere.

use std::io;
use std::time::{Duration, Instant};

use tracing::warn;

use super::timing::until;
use crate::chain::in_full;
use crate::kernel::routes;
use crate::kernel::ruleset::Changes;

/// Changes that follow each other are looked at together: a routing daemon makes thousands.
const GATHER: Duration = Duration::from_millis(100);

/// Tells when to look where targets are.
pub(super) struct Routes {
    changes: Option<Changes>,
    due: Option<Instant>,
}

impl Routes {
    /// Of the calling thread's network namespace. Where they cannot be watched, the rescan looks.
    pub(super) fn watched() -> Self {
        let changes = match routes::changes() {
            Ok(changes) => Some(changes),
            Err(error) => {
                warn!(
                    error = in_full(&error),
                    "changes of routes are found at the next rescan"
                );
                None
            }
        };
        Self { changes, due: None }
    }

    /// Returns when something may have changed. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When changes are not seen any more.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let Some(changes) = &mut self.changes else {
            return std::future::pending().await;
        };
        if self.due.is_none() {
            changes.next().await?;
            self.due = Instant::now().checked_add(GATHER);
        }
        until(self.due).await;
        self.due = None;
        Ok(())
    }
}
