//! Keeps the set that was last accepted, without holding the loop up.

use std::error::Error;
use std::path::PathBuf;

use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::chain::in_full;
use crate::policy::loader::SetHash;
use crate::state::{LastKnownGood, Saved, StateError, StoredSet};

pub(super) struct Store {
    directory: PathBuf,
    complaint: Option<String>,
    task: Option<JoinHandle<(Next, Result<Saved, StateError>)>>,
    next: Option<Next>,
    /// The last one, if it could not be written.
    unkept: Option<Next>,
}

/// A set to be kept, and the one before that has to stay as it is kept, if one has.
struct Next {
    set: StoredSet,
    base: Option<SetHash>,
}

impl Store {
    /// The set kept in `directory`.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            complaint: None,
            task: None,
            next: None,
            unkept: None,
        }
    }

    /// What is wrong with keeping it, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        self.complaint.clone()
    }

    pub(super) fn load(&mut self) -> Option<StoredSet> {
        match LastKnownGood::open(&self.directory).and_then(|kept| kept.load()) {
            Ok(set) => set,
            Err(error) => {
                self.complain(&error);
                None
            }
        }
    }

    /// Keeps `set`, after the one that is being written. The one before stays as the previous one,
    /// unless `base` has to stay that.
    pub(super) fn save(&mut self, set: StoredSet, base: Option<SetHash>) {
        self.unkept = None;
        self.next = Some(Next { set, base });
        self.begin();
    }

    /// Tries again to keep what could not be kept: there may be room by now.
    pub(super) fn retry(&mut self) {
        if let Some(Next { set, base }) = self.unkept.take() {
            self.save(set, base);
        }
    }

    fn begin(&mut self) {
        if self.task.is_some() {
            return;
        }
        if let Some(next) = self.next.take() {
            let directory = self.directory.clone();
            self.task = Some(tokio::task::spawn_blocking(move || {
                let Next { set, base } = &next;
                let kept = LastKnownGood::open(&directory);
                let saved = kept.and_then(|kept| kept.replace(set, *base));
                (next, saved)
            }));
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
        match result {
            Ok((_, Ok(saved))) => {
                self.complaint = None;
                match saved {
                    Saved::Written => info!("policy kept for later starts"),
                    Saved::Unchanged => {}
                }
            }
            Ok((next, Err(error))) => {
                self.complain(&error);
                if self.next.is_none() {
                    self.unkept = Some(next);
                }
            }
            Err(error) => self.complain(&error),
        }
        self.begin();
        self.complaint.clone()
    }

    /// The same thing is said once.
    fn complain(&mut self, error: &(dyn Error + 'static)) {
        let error = in_full(error);
        let complaint = format!("the policy is not kept for later starts: {error}");
        if self.complaint.as_ref() != Some(&complaint) {
            error!(error, "the policy is not kept for later starts");
        }
        self.complaint = Some(complaint);
    }
}
