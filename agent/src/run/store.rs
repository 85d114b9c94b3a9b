//! Keeps the set that was last accepted, without holding the loop up.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::chain::in_full;
use crate::state::{LastKnownGood, Saved, StateError, StoredSet};

pub(super) struct Store {
    kept: Option<Arc<LastKnownGood>>,
    complaint: Option<String>,
    task: Option<JoinHandle<Result<Saved, StateError>>>,
    next: Option<StoredSet>,
}

impl Store {
    /// The set kept in `directory`.
    pub(super) fn open(directory: PathBuf) -> Self {
        let mut store = Self {
            kept: None,
            complaint: None,
            task: None,
            next: None,
        };
        match LastKnownGood::open(&directory) {
            Ok(kept) => store.kept = Some(Arc::new(kept)),
            Err(error) => store.complain(&error),
        }
        store
    }

    /// What is wrong with keeping it, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        self.complaint.clone()
    }

    pub(super) fn load(&mut self) -> Option<StoredSet> {
        match self.kept.as_ref()?.load() {
            Ok(set) => set,
            Err(error) => {
                self.complain(&error);
                None
            }
        }
    }

    /// Keeps `set`, after the one that is being written.
    pub(super) fn save(&mut self, set: StoredSet) {
        self.next = Some(set);
        self.begin();
    }

    fn begin(&mut self) {
        if self.task.is_some() {
            return;
        }
        if let (Some(kept), Some(set)) = (self.kept.clone(), self.next.take()) {
            self.task = Some(tokio::task::spawn_blocking(move || kept.save(&set)));
        }
    }

    /// What is wrong after a set was written; never, while none is. Dropping the future loses
    /// nothing.
    pub(super) async fn saved(&mut self) -> Option<String> {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let result = task.await;
        self.task = None;
        self.complaint = None;
        match result {
            Ok(Ok(Saved::Written)) => info!("policy kept for later starts"),
            Ok(Ok(Saved::Unchanged)) => {}
            Ok(Err(error)) => self.complain(&error),
            Err(error) => self.complain(&error),
        }
        self.begin();
        self.complaint.clone()
    }

    fn complain(&mut self, error: &(dyn Error + 'static)) {
        error!(error, "the policy is not kept for later starts");
        self.complaint = Some(format!(
            "the policy is not kept for later starts: {}",
            in_full(error)
        ));
    }
}
