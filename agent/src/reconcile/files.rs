//! Which policy runs: the files, the set that was last accepted, or what an earlier agent left.

use std::error::Error;
use std::time::Instant;

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::{ReconcileError, Reconciler};
use crate::chain::in_full;
use crate::control::{ReloadOutcome, Shrink};
use crate::dataplane::{CapacityError, Dataplane, Step, plan};
use crate::diagnostic::{Diagnostic, Severity};
use crate::policy::loader::SetHash;
use crate::policy::shrink::{self, Shrunk, Totals};
use crate::source::{Accepted, SourceError, report_refusal};
use crate::status::Source;
use crate::workloads::resolve;

/// Who wants the files taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// They may have changed: what was refused before is not looked at again.
    Watch,
    /// Somebody asks.
    Request(Shrink),
}

impl<D: Dataplane> Reconciler<D> {
    /// Takes note of the set that was last accepted before this start: what the files are
    /// measured by, and what runs if they are refused.
    pub fn last_known_good(&mut self, set: Accepted) {
        self.last_known_good = Some(set);
    }

    /// The set that runs if the first files are refused.
    pub fn fallback(&self) -> Option<&Accepted> {
        self.last_known_good.as_ref()
    }

    /// Takes over what loading the files came to. A set that is refused, has lost too much, or
    /// does not fit, changes nothing.
    pub fn files(
        &mut self,
        loaded: Result<Accepted, SourceError>,
        occasion: Occasion,
        now: Timestamp,
    ) -> ReloadOutcome {
        let hash = hash_of(&loaded);
        let shrink = match occasion {
            Occasion::Watch if hash.is_some() && hash == self.held => {
                self.fall_back();
                // That they are not in force is as it should be.
                return self.nothing_refused();
            }
            Occasion::Watch if hash.is_some() && hash == self.last_attempt => {
                return ReloadOutcome::Unchanged;
            }
            Occasion::Watch => Shrink::Refused,
            Occasion::Request(_) if hash.is_some() && hash == self.running_files() => {
                // What was refused meanwhile is not there any more.
                self.last_attempt = hash;
                return self.nothing_refused();
            }
            Occasion::Request(shrink) => shrink,
        };
        self.last_attempt = hash;
        let outcome = self.judge(loaded, shrink, now);
        let applied = matches!(outcome, ReloadOutcome::Applied { .. });
        if applied {
            if let Some(files) = self.held.take() {
                let taken = Some(files) == hash;
                info!(%files, taken, "no files are held any more");
            }
        } else {
            self.fall_back();
        }
        self.circumstances.status.update(|status| {
            status.reloads += 1;
            status.reload_successful = applied;
            status.refusal = why(&outcome);
            if applied {
                status.reload_success = Some(now);
            } else {
                status.reload_failures += 1;
            }
        });
        outcome
    }

    /// The files are as they should be, without a change.
    fn nothing_refused(&self) -> ReloadOutcome {
        self.circumstances.status.update(|status| {
            status.reload_successful = true;
            status.refusal = None;
        });
        ReloadOutcome::Unchanged
    }

    /// Whether these files were undone, and stay so.
    pub fn holds(&self, loaded: &Result<Accepted, SourceError>) -> bool {
        let hash = hash_of(loaded);
        hash.is_some() && hash == self.held
    }

    /// These files were undone: they stay so until they change or somebody asks for them.
    pub fn hold(&mut self, files: SetHash) {
        self.held = Some(files);
    }

    /// Runs a set that ran before; `files` are held from now on.
    ///
    /// # Errors
    /// [`ReconcileError`]; everything is as before.
    pub fn go_back(
        &mut self,
        set: Accepted,
        files: SetHash,
    ) -> Result<(), ReconcileError<D::Error>> {
        let set = Accepted {
            source: Source::Undone,
            ..set
        };
        self.run_set(set)?;
        self.hold(files);
        Ok(())
    }

    /// What [`Self::files`] would come to.
    pub fn rehearse(
        &mut self,
        loaded: Result<Accepted, SourceError>,
        shrink: Shrink,
        now: Timestamp,
    ) -> ReloadOutcome {
        let accepted = match loaded {
            Ok(accepted) => accepted,
            Err(refusal) => return self.refused(&refusal),
        };
        if Some(accepted.hash) == self.running_files() {
            return ReloadOutcome::Unchanged;
        }
        if let Err(shrunk) = self.check_shrink(&accepted, shrink, now) {
            return outcome_of(&shrunk);
        }
        let hash = accepted.hash;
        match self.writes_for(accepted) {
            Ok(writes) => ReloadOutcome::WouldApply { hash, writes },
            Err(error) => does_not_fit(&error),
        }
    }

    fn judge(
        &mut self,
        loaded: Result<Accepted, SourceError>,
        shrink: Shrink,
        now: Timestamp,
    ) -> ReloadOutcome {
        let accepted = match loaded {
            Ok(accepted) => accepted,
            Err(refusal) => {
                report_refusal(&refusal);
                return self.refused(&refusal);
            }
        };
        if let Err(shrunk) = self.check_shrink(&accepted, shrink, now) {
            error!(
                error = in_full(&shrunk),
                "policy refused, the running one stays"
            );
            return outcome_of(&shrunk);
        }
        let hash = accepted.hash;
        match self.run_set(accepted) {
            Ok(writes) => {
                let status = &self.circumstances.status;
                let generation = status.read(|status| status.generation);
                ReloadOutcome::Applied {
                    generation,
                    hash,
                    writes,
                }
            }
            Err(error) => {
                // The kernel's refusal may pass: the next rescan tries the same files again.
                self.last_attempt = None;
                does_not_fit(&error)
            }
        }
    }

    /// Without a policy of files, the set that was last accepted runs.
    fn fall_back(&mut self) {
        if self.policy.is_some() {
            return;
        }
        let Some(set) = self.last_known_good.clone() else {
            return;
        };
        let set = match self.held {
            Some(_) => Accepted {
                source: Source::Undone,
                ..set
            },
            None => set,
        };
        if self.run_set(set).is_ok() {
            warn!("the policy that was last accepted runs instead of the files");
        }
    }

    /// Puts a set into the tables; after an error everything is as before.
    fn run_set(&mut self, set: Accepted) -> Result<usize, ReconcileError<D::Error>> {
        let started = Instant::now();
        let before = self.policy.replace(set);
        match self.write_tables() {
            Ok(writes) => {
                // What runs takes its place from now on.
                self.last_known_good = None;
                self.circumstances.timings.applied(started.elapsed());
                self.report_policy(writes);
                Ok(writes)
            }
            Err(error) => {
                error!(
                    error = in_full(&error),
                    "policy refused, the running one stays"
                );
                self.policy = before;
                Err(error)
            }
        }
    }

    fn check_shrink(
        &self,
        accepted: &Accepted,
        shrink: Shrink,
        now: Timestamp,
    ) -> Result<(), Shrunk> {
        let before = self.policy.as_ref().or(self.last_known_good.as_ref());
        let Some(before) = before else {
            return Ok(());
        };
        let (before, after) = (
            Totals::of(&before.policy, now),
            Totals::of(&accepted.policy, now),
        );
        match (
            shrink::check(before, after, self.circumstances.shrink),
            shrink,
        ) {
            (Err(shrunk), Shrink::Accepted) => {
                info!(loss = %shrunk, "a smaller policy is taken over as asked");
                Ok(())
            }
            (result, Shrink::Accepted | Shrink::Refused) => result,
        }
    }

    fn writes_for(&mut self, accepted: Accepted) -> Result<usize, CapacityError> {
        let (policy, workloads) = (self.policy.clone(), self.workloads.clone());
        self.workloads = resolve(
            &self.inventory,
            &self.circumstances.host,
            Some(&accepted.policy),
            &self.dataplane.installed().interfaces,
        );
        self.policy = Some(accepted);
        let steps = self
            .wanted()
            .and_then(|wanted| plan(self.dataplane.installed(), &wanted));
        (self.policy, self.workloads) = (policy, workloads);
        Ok(steps?.iter().map(Step::writes).sum())
    }

    /// Identifies the files that run.
    pub(crate) fn running_files(&self) -> Option<SetHash> {
        let running = self.policy.as_ref()?;
        (running.source == Source::Files).then_some(running.hash)
    }

    fn refused(&self, refusal: &SourceError) -> ReloadOutcome {
        ReloadOutcome::refused(refusal, &self.circumstances.policy_dir)
    }
}

fn hash_of(loaded: &Result<Accepted, SourceError>) -> Option<SetHash> {
    match loaded {
        Ok(accepted) => Some(accepted.hash),
        Err(SourceError::Refused(refused)) => Some(refused.hash),
        Err(SourceError::Directory(_) | SourceError::Compile(_)) => None,
    }
}

/// Why files were not taken over, in one line.
fn why(outcome: &ReloadOutcome) -> Option<String> {
    let (message, diagnostics) = match outcome {
        ReloadOutcome::Refused {
            message,
            diagnostics,
        } => (message, diagnostics),
        ReloadOutcome::Shrunk { message } => return Some(message.clone()),
        ReloadOutcome::Applied { .. }
        | ReloadOutcome::OnTrial { .. }
        | ReloadOutcome::WouldApply { .. }
        | ReloadOutcome::Held { .. }
        | ReloadOutcome::Unchanged => return None,
    };
    let errors: Vec<&Diagnostic> = diagnostics
        .iter()
        .filter(|it| it.severity == Severity::Error)
        .collect();
    // What follows from a mistake elsewhere has no place.
    let placed = errors.iter().find(|it| it.primary.position.is_some());
    let Some(first) = placed.or(errors.first()) else {
        return Some(message.clone());
    };
    let place = match first.primary.position {
        Some(at) => format!(":{}:{}", at.line, at.column),
        None => String::new(),
    };
    let file = first.primary.file.display();
    let more = match errors.len() {
        1 => String::new(),
        all => format!("; {} more", all - 1),
    };
    Some(format!("{file}{place}: {}{more}", first.message))
}

fn outcome_of(shrunk: &Shrunk) -> ReloadOutcome {
    let message = shrunk.to_string();
    ReloadOutcome::Shrunk { message }
}

fn does_not_fit(error: &dyn Error) -> ReloadOutcome {
    ReloadOutcome::Refused {
        message: in_full(error),
        diagnostics: Vec::new(),
    }
}
