//! Changes that undo themselves: a set on trial, its deadline, and the way back.
//!
//! What is on disk is written before what it is about happens. So whoever dies in between finds, at
//! the next start, a trial that goes on or is over, and never a set that nobody has confirmed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::serve::Agent;
use crate::chain::in_full;
use crate::clock::{self, ClockError};
use crate::control::{ReloadOutcome, TrialOutcome};
use crate::dataplane::Dataplane;
use crate::policy::loader::SetHash;
use crate::source::{Accepted, PolicyFiles, SourceError};
use crate::state::trial::{Deadline, Phase, Trial, boot_id};
use crate::state::{LastKnownGood, StateError, StoredSet};
use crate::status::{self, Source, Subject};

/// Waits no longer than this without looking at the clock: it counts suspended time, timers do not.
const LOOK: Duration = Duration::from_secs(60);

/// Why there is nothing to go back to, or no trial.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error("no set that ran before is kept: there is nothing to go back to")]
    Nothing,
    #[error("the running set is not on disk yet, so that nothing would be gone back to: try again")]
    Unkept,
    #[error("no files are in force: there is nothing to go back from")]
    NoFiles,
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the set that ran before is refused")]
    Refused(#[from] SourceError),
    #[error(transparent)]
    Clock(#[from] ClockError),
    #[error("tell this boot from others")]
    Boot(#[source] std::io::Error),
    #[error("the task was cut short")]
    Cut(#[from] tokio::task::JoinError),
}

type Reply = oneshot::Sender<TrialOutcome>;

pub(super) struct Trials {
    directory: PathBuf,
    policy_dir: PathBuf,
    trial: Option<Trial>,
    /// When it is tried again to go back, after that has failed.
    retry: Option<Instant>,
    /// What is being written: one after the other, since the last one counts.
    keeping: Option<JoinHandle<Result<(), StateError>>>,
    outdated: bool,
    job: Option<Job>,
}

enum Job {
    Undo(JoinHandle<Result<Accepted, TrialError>>, Option<Reply>),
    Confirm(JoinHandle<Result<(), StateError>>, Reply),
}

/// What is next.
pub(super) enum Next {
    /// Nobody has confirmed in time.
    Due,
    /// The set to go back to was read, and whoever asked is to be told.
    Back(Result<Accepted, TrialError>, Option<Reply>),
    /// It is noted that the set stays.
    Confirmed(Result<(), StateError>, Reply),
    /// What is on disk is as it should be, or why not.
    Kept(Option<String>),
}

/// What a trial that begins has to know.
#[derive(Debug, Clone)]
pub(super) struct Beginning {
    directory: PathBuf,
    within: Duration,
    /// Identifies the files that run.
    running: Option<SetHash>,
    /// What an earlier trial that is not over goes back to.
    base: Option<SetHash>,
}

impl Beginning {
    /// Notes that `files` will be on trial, before they are.
    pub(super) fn note(&self, files: SetHash) -> Result<Trial, TrialError> {
        let running = self.running.ok_or(TrialError::NoFiles)?;
        let kept = LastKnownGood::open(&self.directory)?;
        let base = match self.base {
            Some(base) => base,
            // They have been in force for a moment: on trial is what they changed.
            None if files == running => before(&kept, running)?.hash,
            None => kept
                .load()?
                .map(|set| set.hash)
                .filter(|kept| *kept == running)
                .ok_or(TrialError::Unkept)?,
        };
        let trial = Trial {
            base,
            files,
            phase: Phase::Running(deadline(self.within)?),
        };
        trial.save(&self.directory)?;
        Ok(trial)
    }
}

fn deadline(within: Duration) -> Result<Deadline, TrialError> {
    let nanoseconds = i64::try_from(within.as_nanos()).unwrap_or(i64::MAX);
    Ok(Deadline {
        boot: boot_id().map_err(TrialError::Boot)?,
        at: clock::boot()?.saturating_add(nanoseconds),
        ends: Timestamp::now()
            .checked_add(within)
            .unwrap_or(Timestamp::MAX),
    })
}

impl Trials {
    /// Trials whose state is kept in `directory`.
    pub(super) fn new(directory: PathBuf, policy_dir: PathBuf) -> Self {
        Self {
            directory,
            policy_dir,
            trial: None,
            retry: None,
            keeping: None,
            outdated: false,
            job: None,
        }
    }

    /// What an earlier start has left, and the set that it goes back to, which is either of those
    /// that are kept.
    fn load(&mut self) -> Result<Option<(Trial, StoredSet)>, TrialError> {
        let kept = LastKnownGood::open(&self.directory)?;
        let Some(trial) = Trial::load(&self.directory)? else {
            return Ok(None);
        };
        let base = set_of(&kept, trial.base)?;
        Ok(Some((trial, base)))
    }

    /// What a trial of these files would go back to must be known before they run.
    pub(super) fn beginning(&self, within: Duration, running: Option<SetHash>) -> Beginning {
        Beginning {
            directory: self.directory.clone(),
            within,
            running,
            base: self.base(),
        }
    }

    /// What is gone back to unless somebody confirms.
    pub(super) fn base(&self) -> Option<SetHash> {
        match &self.trial {
            Some(Trial {
                base,
                phase: Phase::Running(_),
                ..
            }) => Some(*base),
            Some(Trial {
                phase: Phase::Undone { .. },
                ..
            })
            | None => None,
        }
    }

    fn set(&mut self, trial: Option<Trial>) {
        self.trial = trial;
        self.retry = None;
        self.keep();
    }

    /// These files run now: they belong to the trial, if there is one. Whoever has put the files
    /// back has ended it.
    pub(super) fn applied(&mut self, files: SetHash) {
        match &mut self.trial {
            None => {}
            Some(trial) if trial.base != files && matches!(trial.phase, Phase::Running(_)) => {
                let before = std::mem::replace(&mut trial.files, files);
                if before != files {
                    warn!("changed files are on trial with what was before");
                    self.keep();
                }
            }
            Some(_) => self.set(None),
        }
    }

    /// Has on disk what is in memory.
    pub(super) fn keep(&mut self) {
        if self.keeping.is_some() {
            self.outdated = true;
            return;
        }
        let (directory, trial) = (self.directory.clone(), self.trial.clone());
        self.keeping = Some(tokio::task::spawn_blocking(move || match trial {
            Some(trial) => trial.save(&directory),
            None => Trial::forget(&directory),
        }));
    }

    /// Begins to go back. `running` identifies the files that run.
    fn undo(&mut self, running: SetHash, reply: Option<Reply>) {
        let (directory, policy_dir) = (self.directory.clone(), self.policy_dir.clone());
        let wanted = self.base();
        let task = tokio::task::spawn_blocking(move || {
            let kept = LastKnownGood::open(&directory)?;
            let set = match wanted {
                Some(base) => set_of(&kept, base)?,
                None => before(&kept, running)?,
            };
            let now = Timestamp::now();
            let accepted = PolicyFiles::new(policy_dir).load_stored(&set, now)?;
            let undone = Trial {
                base: set.hash,
                files: running,
                phase: Phase::Undone { at: now },
            };
            if let Err(error) = undone.save(&directory) {
                // Until it is noted a start would go on with the trial, and no longer.
                warn!(
                    error = in_full(&error),
                    "not noted that a change was undone"
                );
            }
            Ok(accepted)
        });
        self.job = Some(Job::Undo(task, reply));
    }

    /// How long it is until nobody has confirmed in time; `None` without a trial.
    fn left(&self) -> Option<Duration> {
        let Some(Trial {
            phase: Phase::Running(deadline),
            ..
        }) = &self.trial
        else {
            return None;
        };
        if let Some(retry) = self.retry {
            return Some(retry.saturating_duration_since(Instant::now()));
        }
        // A clock that cannot be read is no reason to go on.
        let left = clock::boot().map_or(0, |now| deadline.at.saturating_sub(now));
        let left = Duration::from_nanos(u64::try_from(left).unwrap_or(0));
        Some(left)
    }

    /// Waits for what is next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Next {
        if let Some(task) = &mut self.keeping {
            let kept = task.await;
            self.keeping = None;
            if std::mem::take(&mut self.outdated) {
                self.keep();
            }
            let failed = match kept {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(in_full(&error)),
                Err(error) => Some(in_full(&error)),
            };
            return Next::Kept(failed);
        }
        match &mut self.job {
            Some(Job::Undo(task, _)) => {
                let read = task.await.unwrap_or_else(|error| Err(error.into()));
                match self.job.take() {
                    Some(Job::Undo(_, reply)) => Next::Back(read, reply),
                    Some(Job::Confirm(..)) | None => Next::Back(read, None),
                }
            }
            Some(Job::Confirm(task, _)) => {
                let noted = task.await;
                match (noted, self.job.take()) {
                    (Ok(noted), Some(Job::Confirm(_, reply))) => Next::Confirmed(noted, reply),
                    (Ok(_) | Err(_), Some(_) | None) => Next::Kept(Some(
                        "the task that notes a confirmation was cut short".to_owned(),
                    )),
                }
            }
            None => loop {
                match self.left() {
                    Some(left) if left.is_zero() => {
                        self.retry = None;
                        return Next::Due;
                    }
                    Some(left) => tokio::time::sleep(left.min(LOOK)).await,
                    None => std::future::pending().await,
                }
            },
        }
    }
}

/// The set with this hash, which is either of those that are kept.
fn set_of(kept: &LastKnownGood, hash: SetHash) -> Result<StoredSet, TrialError> {
    for set in [kept.previous()?, kept.load()?] {
        if let Some(set) = set.filter(|set| set.hash == hash) {
            return Ok(set);
        }
    }
    Err(TrialError::Nothing)
}

/// The set that ran before the one that runs, which may not be saved yet.
fn before(kept: &LastKnownGood, running: SetHash) -> Result<StoredSet, TrialError> {
    match kept.load()? {
        Some(set) if set.hash != running => Ok(set),
        Some(_) | None => kept.previous()?.ok_or(TrialError::Nothing),
    }
}

impl<D: Dataplane> Agent<D> {
    /// Goes on with what an earlier start has left: before its deadline the files that are on trial
    /// run, afterwards what was before. Tells the set that is gone back to, if there is one.
    pub(super) fn resume_trial(&mut self) -> Option<StoredSet> {
        let (mut trial, base) = match self.trials.load() {
            Ok(Some(found)) => found,
            Ok(None) => return None,
            Err(error) => {
                let error = in_full(&error);
                error!(error, "a trial of an earlier start cannot be gone on with");
                let complaint = format!("a trial of an earlier start is lost: {error}");
                self.reconciler.complain(Subject::Trial, Some(complaint));
                return None;
            }
        };
        let over = match &trial.phase {
            Phase::Running(deadline) => is_over(deadline),
            Phase::Undone { .. } => false,
        };
        if over {
            warn!("nobody has confirmed the policy on trial in time: the one before runs");
            let at = Timestamp::now();
            trial.phase = Phase::Undone { at };
        }
        if matches!(trial.phase, Phase::Undone { .. }) {
            self.reconciler.hold(trial.files);
            self.store.save(base.clone(), None);
        }
        self.trials.set(Some(trial));
        self.report_trial();
        Some(base)
    }

    /// Takes note that files are on trial, which run now.
    pub(super) fn on_trial(&mut self, trial: Trial, outcome: ReloadOutcome) -> ReloadOutcome {
        let generation = self.status.get().generation;
        let (hash, writes) = match outcome {
            ReloadOutcome::Applied { hash, writes, .. } => (hash, writes),
            ReloadOutcome::Unchanged => (trial.files, 0),
            refused @ (ReloadOutcome::WouldApply { .. }
            | ReloadOutcome::OnTrial { .. }
            | ReloadOutcome::Refused { .. }
            | ReloadOutcome::Shrunk { .. }) => {
                // What was noted before the attempt.
                self.trials.keep();
                return refused;
            }
        };
        let ends = match &trial.phase {
            // Whoever has put the files back needs no trial.
            Phase::Running(Deadline { ends, .. }) if trial.base != trial.files => *ends,
            Phase::Running(_) | Phase::Undone { .. } => {
                self.trials.keep();
                return outcome;
            }
        };
        info!(%ends, %hash, "policy on trial");
        self.trials.set(Some(trial));
        self.report_trial();
        ReloadOutcome::OnTrial {
            generation,
            hash,
            writes,
            ends,
        }
    }

    pub(super) fn confirm(&mut self, reply: Reply) {
        let refuse = |why: &str, reply: Reply| {
            // Whoever asked may be gone.
            let _gone = reply.send(TrialOutcome::Refused(why.to_owned()));
        };
        let deadline = match &self.trials.trial {
            _ if self.trials.job.is_some() => return refuse("another request is under way", reply),
            None => return refuse("nothing is on trial", reply),
            Some(Trial {
                phase: Phase::Undone { at },
                ..
            }) => {
                let why = format!(
                    "it is too late: the change was undone at {at}; `gate25 reload --wait` takes the files \
                     over"
                );
                return refuse(&why, reply);
            }
            Some(Trial {
                phase: Phase::Running(deadline),
                ..
            }) => deadline,
        };
        if is_over(deadline) {
            return refuse("it is too late: the change is being undone", reply);
        }
        let directory = self.trials.directory.clone();
        let task = tokio::task::spawn_blocking(move || Trial::forget(&directory));
        self.trials.job = Some(Job::Confirm(task, reply));
    }

    pub(super) fn undo(&mut self, reply: Option<Reply>) {
        let running = self.reconciler.policy();
        let running = running
            .filter(|it| it.source == Source::Files)
            .map(|it| it.hash);
        let why = match (&self.trials.trial, running) {
            _ if self.trials.job.is_some() => "another request is under way".to_owned(),
            (
                Some(Trial {
                    phase: Phase::Undone { at },
                    ..
                }),
                _,
            ) => format!("the last change was undone already, at {at}"),
            (_, None) => TrialError::NoFiles.to_string(),
            (_, Some(running)) => return self.trials.undo(running, reply),
        };
        match reply {
            Some(reply) => {
                let _gone = reply.send(TrialOutcome::Refused(why));
            }
            None => {
                // At the deadline, without files in force: the set before may run already.
                warn!(why, "nothing to go back from");
                self.trials.set(None);
                self.report_trial();
            }
        }
    }

    pub(super) fn trial(&mut self, next: Next) {
        match next {
            Next::Due => {
                warn!("nobody has confirmed the policy on trial in time");
                self.undo(None);
            }
            Next::Back(read, reply) => self.go_back(read, reply),
            Next::Confirmed(Ok(()), reply) => {
                info!("policy confirmed");
                self.trials.trial = None;
                self.report_trial();
                let _gone = reply.send(TrialOutcome::Confirmed);
            }
            Next::Confirmed(Err(error), reply) => {
                let why = format!("not confirmed, the trial goes on: {}", in_full(&error));
                error!("{why}");
                let _gone = reply.send(TrialOutcome::Refused(why));
            }
            Next::Kept(failed) => {
                if let Some(error) = &failed {
                    error!(error, "the state of the trial is not kept");
                }
                self.trial_unkept = failed;
                self.report_trial();
            }
        }
    }

    fn go_back(&mut self, read: Result<Accepted, TrialError>, reply: Option<Reply>) {
        let running = self.reconciler.policy().map(|running| running.hash);
        let noted = read.is_ok();
        let outcome = match (read, running) {
            (Ok(set), Some(files)) => {
                let (base, stored) = (set.hash, set.stored(Timestamp::now()));
                match self.reconciler.go_back(set, files) {
                    Ok(()) => {
                        self.store.save(stored, None);
                        let phase = Phase::Undone {
                            at: Timestamp::now(),
                        };
                        self.trials.set(Some(Trial { base, files, phase }));
                        self.policy_changed();
                        TrialOutcome::Undone { hash: base }
                    }
                    Err(error) => TrialOutcome::Refused(in_full(&error)),
                }
            }
            (Err(error), _) => TrialOutcome::Refused(in_full(&error)),
            (Ok(_), None) => TrialOutcome::Refused(TrialError::NoFiles.to_string()),
        };
        if let TrialOutcome::Refused(why) = &outcome {
            error!(why, "the policy before does not run");
            if noted {
                // On disk it was undone: what is tells the next start.
                self.trials.keep();
            }
            if reply.is_none() {
                // At a deadline it is tried again; who asked may ask again, and the deadline stays.
                self.trials.retry = Some(Instant::now() + LOOK);
            }
        }
        self.report_trial();
        if let Some(reply) = reply {
            let _gone = reply.send(outcome);
        }
    }

    pub(super) fn report_trial(&mut self) {
        let (told, complaint) = match &self.trials.trial {
            None => (None, None),
            Some(Trial {
                phase: Phase::Running(Deadline { ends, .. }),
                ..
            }) => {
                let ends = *ends;
                let why = format!(
                    "the policy is on trial until {ends}: `gate25 confirm` keeps it, `gate25 undo` goes back \
                     at once"
                );
                (Some(status::Trial::Running { ends }), Some(why))
            }
            Some(Trial {
                phase: Phase::Undone { at },
                ..
            }) => {
                let at = *at;
                let why = format!(
                    "the policy's files are not in force: what they say was undone at {at}; change them, or \
                     `gate25 reload` takes them over"
                );
                (Some(status::Trial::Undone { at }), Some(why))
            }
        };
        let unkept = self.trial_unkept.as_ref();
        let unkept = unkept.map(|error| format!("the state of the trial is not kept: {error}"));
        let complaints: Vec<String> = complaint.into_iter().chain(unkept).collect();
        let complaint = (!complaints.is_empty()).then(|| complaints.join("; "));
        self.status.update(|status| status.trial = told);
        self.reconciler.complain(Subject::Trial, complaint);
    }
}

/// Whether a deadline of this boot or another is over. What cannot be told is.
fn is_over(deadline: &Deadline) -> bool {
    match (boot_id(), clock::boot()) {
        (Ok(boot), Ok(now)) => deadline.is_over(&boot, now),
        (Err(_), _) | (_, Err(_)) => true,
    }
}

/// Reads the files for a request, and notes that they will be on trial where that is asked for.
pub(super) fn read(
    files: &mut PolicyFiles,
    beginning: Option<&Beginning>,
) -> (
    Result<Accepted, SourceError>,
    Option<Result<Trial, TrialError>>,
) {
    let loaded = files.load(Timestamp::now());
    let noted = match (&loaded, beginning) {
        (Ok(accepted), Some(beginning)) => Some(beginning.note(accepted.hash)),
        (Err(_), _) | (_, None) => None,
    };
    (loaded, noted)
}
