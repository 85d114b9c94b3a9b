//! Notices when somebody changes tables of nftables that enforce.

use std::io;
use std::time::{Duration, Instant};

use super::timing::until;
use crate::kernel::ruleset::Changes;

/// Changes that follow each other are looked at together.
const GATHER: Duration = Duration::from_millis(100);

/// Tells when to look at the tables.
pub(super) struct Tables {
    changes: Option<Changes>,
    due: Option<Instant>,
}

impl Tables {
    /// No tables enforce.
    pub(super) fn unwatched() -> Self {
        Self {
            changes: None,
            due: None,
        }
    }

    /// Those of the calling thread's network namespace do.
    pub(super) fn watched() -> io::Result<Self> {
        Ok(Self {
            changes: Some(Changes::subscribe()?),
            due: None,
        })
    }

    /// Returns when something may have changed. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When changes are not seen any more.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let Some(changes) = &mut self.changes else {
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                () = until(self.due) => {
                    self.due = None;
                    return Ok(());
                }
                changed = changes.next() => changed?,
            }
            // The first of many sets the time.
            self.due = self.due.or(Instant::now().checked_add(GATHER));
        }
    }
}
