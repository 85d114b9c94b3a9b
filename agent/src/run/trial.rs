//! Changes that undo themselves: a set on trial, its deadline, and the way back.
//!
//! What is on disk is written before what it is about happens. So whoever dies in between finds, at
//! the next start, a trial that goes on or is over, and never a set that nobody has confirmed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::serve::Agent;
use crate::chain::in_full;
use crate::clock::{self, ClockError};
use crate::control::{Execution, ReloadOutcome, TrialOutcome};
use crate::dataplane::Dataplane;
use crate::policy::loader::SetHash;
use crate::source::{Accepted, PolicyFiles, SourceError};
use crate::state::trial::{Deadline, Phase, Trial, boot_id};
use crate::state::{LastKnownGood, StateError, StoredSet};
use crate::status::{self, Source, Subject};

/// A set that was accepted within this time may be put on trial: somebody has just saved it.
const JUST_NOW: SignedDuration = SignedDuration::from_mins(5);
/// Waits no longer than this without looking at the clock: it counts suspended time, timers do not.
const LOOK: Duration = Duration::from_secs(60);

/// Why there is nothing to go back to, or no trial.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error("no set that ran before is kept: there is nothing to go back to")]
    Nothing,
    #[error("the set that ran before, {0}, is not kept: there is nothing to go back to")]
    Gone(SetHash),
    #[error("these files are in force, and not only since a moment ago")]
    NothingNew,
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
    /// Identifies the set that ran before the one that runs, as far as this start knows.
    before: Option<SetHash>,
    /// The running set, and when it was accepted, unless somebody has decided about it since.
    accepted: Option<(SetHash, Timestamp)>,
}

enum Job {
    Undo(
        JoinHandle<Result<Back, TrialError>>,
        Execution,
        Option<Reply>,
    ),
    /// What is confirmed, and nothing that has changed meanwhile.
    Confirm(JoinHandle<Result<(), StateError>>, Trial, Reply),
}

/// What is gone back to.
pub(super) struct Back {
    set: Accepted,
    /// When it was accepted.
    accepted: Timestamp,
}

/// What is next.
pub(super) enum Next {
    /// Nobody has confirmed in time.
    Due,
    /// The set to go back to was read, and whoever asked is to be told.
    Back(Result<Back, TrialError>, Execution, Option<Reply>),
    /// It is noted that the set stays.
    Confirmed(Result<(), StateError>, Trial, Reply),
    /// What is on disk is as it should be, or why not.
    Kept(Option<String>),
}

/// What a trial that begins has to know.
#[derive(Debug, Clone)]
pub(super) struct Beginning {
    directory: PathBuf,
    within: Duration,
    /// Identifies the set that runs.
    running: Option<SetHash>,
    /// Whether somebody has saved that just now.
    is_new: bool,
    /// Identifies the set that ran before, as far as that is known.
    before: Option<SetHash>,
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
            None if files == running && !self.is_new => return Err(TrialError::NothingNew),
            // They have been in force for a moment: on trial is what they changed.
            None if files == running => before(&kept, self.before, running)?.hash,
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
            before: None,
            accepted: None,
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
            is_new: self.is_new(running),
            before: self.before,
            base: self.base(),
        }
    }

    /// Takes note of the running set and when it was accepted.
    pub(super) fn accepted(&mut self, set: SetHash, at: Timestamp) {
        self.accepted = Some((set, at));
    }

    /// Whether somebody has saved the running set just now, and nobody has confirmed it.
    fn is_new(&self, running: Option<SetHash>) -> bool {
        self.accepted.is_some_and(|(set, at)| {
            let age = Timestamp::now().duration_since(at);
            Some(set) == running && !age.is_negative() && age <= JUST_NOW
        })
    }

    /// Takes note that another set runs than before.
    pub(super) fn ran_before(&mut self, before: Option<SetHash>, running: Option<&Accepted>) {
        let Some(running) = running else {
            return;
        };
        if before.is_some() && before != Some(running.hash) {
            self.before = before;
        }
        if self.accepted.is_none_or(|(set, _)| set != running.hash) {
            self.accepted(running.hash, Timestamp::now());
        }
    }

    /// Since when files are held that were undone.
    pub(super) fn undone(&self) -> Option<Timestamp> {
        match &self.trial {
            Some(Trial {
                phase: Phase::Undone { at },
                ..
            }) => Some(*at),
            Some(Trial {
                phase: Phase::Running(_),
                ..
            })
            | None => None,
        }
    }

    /// Whoever has files read while a set is on trial hears that they will be undone with it.
    pub(super) fn joined(&self, outcome: ReloadOutcome, generation: u64) -> ReloadOutcome {
        let Some(Trial {
            base,
            files,
            phase: Phase::Running(Deadline { ends, .. }),
        }) = &self.trial
        else {
            return outcome;
        };
        let writes = match outcome {
            ReloadOutcome::Applied { writes, .. } => writes,
            ReloadOutcome::Unchanged => 0,
            ReloadOutcome::OnTrial { .. }
            | ReloadOutcome::WouldApply { .. }
            | ReloadOutcome::Held { .. }
            | ReloadOutcome::Refused { .. }
            | ReloadOutcome::Shrunk { .. } => return outcome,
        };
        ReloadOutcome::OnTrial {
            generation,
            hash: *files,
            writes,
            ends: *ends,
            base: *base,
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

    /// This trial is on disk no more, since somebody has confirmed it; what has changed meanwhile is
    /// on trial all the same.
    fn confirmed(&mut self, trial: &Trial) -> TrialOutcome {
        if self.trial.as_ref() != Some(trial) {
            self.keep();
            let why =
                "the files on trial have changed meanwhile: what is on trial now is not confirmed";
            return TrialOutcome::Refused(why.to_owned());
        }
        info!("policy confirmed");
        self.accepted = None;
        self.set(None);
        TrialOutcome::Confirmed
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
    fn undo(&mut self, running: SetHash, execution: Execution, reply: Option<Reply>) {
        let (directory, policy_dir) = (self.directory.clone(), self.policy_dir.clone());
        let (wanted, ran_before) = (self.base(), self.before);
        let task = tokio::task::spawn_blocking(move || {
            let kept = LastKnownGood::open(&directory)?;
            let set = match wanted {
                Some(base) => set_of(&kept, base)?,
                None => before(&kept, ran_before, running)?,
            };
            let now = Timestamp::now();
            let back = Back {
                set: PolicyFiles::new(policy_dir).load_stored(&set, now)?,
                accepted: set.accepted,
            };
            if execution == Execution::DryRun {
                return Ok(back);
            }
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
            Ok(back)
        });
        self.job = Some(Job::Undo(task, execution, reply));
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
            Some(Job::Undo(task, execution, _)) => {
                let read = task.await.unwrap_or_else(|error| Err(error.into()));
                let execution = *execution;
                match self.job.take() {
                    Some(Job::Undo(_, execution, reply)) => Next::Back(read, execution, reply),
                    Some(Job::Confirm(..)) | None => Next::Back(read, execution, None),
                }
            }
            Some(Job::Confirm(task, ..)) => {
                let noted = task.await;
                match (noted, self.job.take()) {
                    (Ok(noted), Some(Job::Confirm(_, trial, reply))) => {
                        Next::Confirmed(noted, trial, reply)
                    }
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

/// The set with this hash, which is either of those that are kept, whatever is wrong with the other.
fn set_of(kept: &LastKnownGood, hash: SetHash) -> Result<StoredSet, TrialError> {
    let mut unreadable = None;
    for set in [kept.previous(), kept.load()] {
        match set {
            Ok(Some(set)) if set.hash == hash => return Ok(set),
            Ok(_) => {}
            Err(error) => unreadable = Some(error),
        }
    }
    Err(unreadable.map_or(TrialError::Gone(hash), Into::into))
}

/// The set that ran before the one that runs, which may not be saved yet: the one that this start
/// knows to have, be another one kept or not, or else what an earlier start has left.
fn before(
    kept: &LastKnownGood,
    known: Option<SetHash>,
    running: SetHash,
) -> Result<StoredSet, TrialError> {
    if let Some(known) = known {
        return set_of(kept, known);
    }
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
                self.reconciler
                    .complain(Subject::LostTrial, Some(complaint));
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
        let generation = self.status.read(|status| status.generation);
        let (hash, writes) = match outcome {
            ReloadOutcome::Applied { hash, writes, .. } => (hash, writes),
            ReloadOutcome::Unchanged => (trial.files, 0),
            refused @ (ReloadOutcome::WouldApply { .. }
            | ReloadOutcome::OnTrial { .. }
            | ReloadOutcome::Held { .. }
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
        let base = trial.base;
        info!(%ends, %hash, %base, "policy on trial");
        self.trials.set(Some(trial));
        self.report_trial();
        ReloadOutcome::OnTrial {
            generation,
            hash,
            writes,
            ends,
            base,
        }
    }

    pub(super) fn confirm(&mut self, execution: Execution, reply: Reply) {
        let refuse = |why: &str, reply: Reply| {
            // Whoever asked may be gone.
            let _gone = reply.send(TrialOutcome::Refused(why.to_owned()));
        };
        let (trial, deadline) = match &self.trials.trial {
            _ if self.trials.job.is_some() => return refuse("another request is under way", reply),
            None => return refuse("nothing is on trial", reply),
            Some(Trial {
                phase: Phase::Undone { at },
                ..
            }) => {
                let why = format!(
                    "it is too late: the change was undone at {at}; `gate25 reload --take-undone` takes the \
                     files over"
                );
                return refuse(&why, reply);
            }
            Some(
                trial @ Trial {
                    phase: Phase::Running(deadline),
                    ..
                },
            ) => (trial.clone(), deadline),
        };
        if is_over(deadline) {
            return refuse("it is too late: the change is being undone", reply);
        }
        if execution == Execution::DryRun {
            let _gone = reply.send(TrialOutcome::WouldConfirm);
            return;
        }
        let directory = self.trials.directory.clone();
        let task = tokio::task::spawn_blocking(move || Trial::forget(&directory));
        self.trials.job = Some(Job::Confirm(task, trial, reply));
    }

    pub(super) fn undo(&mut self, execution: Execution, reply: Option<Reply>) {
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
            (_, Some(running)) => return self.trials.undo(running, execution, reply),
        };
        match reply {
            Some(reply) => {
                let _gone = reply.send(TrialOutcome::Refused(why));
            }
            None => {
                // At the deadline, without files in force: those on trial were refused at this start. Once
                // they are mended, nobody will have confirmed them.
                warn!(why, "the files on trial stay undone");
                let at = Timestamp::now();
                let undone = self.trials.trial.clone().map(|trial| Trial {
                    phase: Phase::Undone { at },
                    ..trial
                });
                if let Some(Trial { base, files, .. }) = &undone {
                    self.reconciler.hold(*files);
                    let runs = self.reconciler.policy().filter(|it| it.hash == *base);
                    if let Some(set) = runs.cloned()
                        && let Err(error) = self.reconciler.go_back(set, *files)
                    {
                        warn!(
                            error = in_full(&error),
                            "the set before runs by its earlier name"
                        );
                    }
                }
                self.trials.set(undone);
                self.report_trial();
            }
        }
    }

    pub(super) fn trial(&mut self, next: Next) {
        match next {
            Next::Due => {
                warn!("nobody has confirmed the policy on trial in time");
                self.undo(Execution::Apply, None);
            }
            Next::Back(Ok(Back { set, accepted }), Execution::DryRun, reply) => {
                let hash = set.hash;
                if let Some(reply) = reply {
                    let _gone = reply.send(TrialOutcome::WouldUndo { hash, accepted });
                }
            }
            Next::Back(Err(error), Execution::DryRun, reply) => {
                if let Some(reply) = reply {
                    let _gone = reply.send(TrialOutcome::Refused(in_full(&error)));
                }
            }
            Next::Back(read, Execution::Apply, reply) => {
                self.go_back(read.map(|back| back.set), reply);
            }
            Next::Confirmed(Ok(()), trial, reply) => {
                let outcome = self.trials.confirmed(&trial);
                self.report_trial();
                let _gone = reply.send(outcome);
            }
            Next::Confirmed(Err(error), _, reply) => {
                let why = format!("not confirmed, the trial goes on: {}", in_full(&error));
                error!("{why}");
                let _gone = reply.send(TrialOutcome::Refused(why));
            }
            Next::Kept(failed) => {
                match &failed {
                    Some(error) => error!(error, "the state of the trial is not kept"),
                    // What is on disk is what is known.
                    None => self.reconciler.complain(Subject::LostTrial, None),
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
                        self.trials.accepted = None;
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
                     `gate25 reload --take-undone` takes them over"
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;

    const RUNNING: SetHash = SetHash([3; 32]);

    fn set(byte: u8) -> StoredSet {
        StoredSet {
            files: Arc::from([]),
            hash: SetHash([byte; 32]),
            accepted: Timestamp::UNIX_EPOCH,
        }
    }

    /// Of two sets that were kept, the second is the last one.
    fn kept() -> (TempDir, LastKnownGood) {
        let dir = TempDir::new().unwrap();
        let kept = LastKnownGood::open(dir.path()).unwrap();
        for byte in [1, 2] {
            kept.save(&set(byte)).unwrap();
        }
        (dir, kept)
    }

    async fn settled(trials: &mut Trials) {
        while trials.keeping.is_some() {
            assert!(matches!(trials.next().await, Next::Kept(None)));
        }
    }

    #[tokio::test]
    async fn confirmation_that_meets_a_change_leaves_the_change_on_trial() {
        let dir = TempDir::new().unwrap();
        let trial = Trial {
            base: SetHash([1; 32]),
            files: SetHash([2; 32]),
            phase: Phase::Running(deadline(Duration::from_secs(600)).unwrap()),
        };
        let changed = Trial {
            files: SetHash([3; 32]),
            ..trial.clone()
        };
        for meanwhile in [None, Some(changed)] {
            let mut trials = Trials::new(dir.path().to_owned(), dir.path().to_owned());
            trials.set(Some(trial.clone()));
            settled(&mut trials).await;
            if let Some(changed) = &meanwhile {
                trials.applied(changed.files);
            }
            settled(&mut trials).await;
            // The confirmation is noted behind what came meanwhile.
            Trial::forget(dir.path()).unwrap();
            let outcome = trials.confirmed(&trial);
            settled(&mut trials).await;
            let is_confirmed = outcome == TrialOutcome::Confirmed;
            assert_eq!(is_confirmed, meanwhile.is_none(), "{outcome:?}");
            assert_eq!(Trial::load(dir.path()).unwrap(), meanwhile);
            assert_eq!(trials.trial, meanwhile);
        }
    }

    #[test]
    fn set_is_found_whatever_is_wrong_with_the_other() {
        for (name, left) in [("previous.json", 2), ("last-known-good.json", 1)] {
            let (dir, kept) = kept();
            fs::write(dir.path().join(name), "damaged").unwrap();
            let found = set_of(&kept, SetHash([left; 32])).unwrap();
            assert_eq!(found, set(left), "{name}");
            let lost = set_of(&kept, SetHash([3 - left; 32]));
            assert!(matches!(lost, Err(TrialError::State(_))), "{name}");
        }
    }

    #[test]
    fn set_before_is_the_one_that_ran_and_no_other_that_is_kept() {
        let (_dir, kept) = kept();
        for known in [1, 2] {
            let hash = SetHash([known; 32]);
            assert_eq!(before(&kept, Some(hash), RUNNING).unwrap().hash, hash);
        }
        let gone = SetHash([9; 32]);
        let none = before(&kept, Some(gone), RUNNING);
        assert!(matches!(none, Err(TrialError::Gone(hash)) if hash == gone));
        // What an earlier start has left.
        assert_eq!(before(&kept, None, RUNNING).unwrap(), set(2));
        assert_eq!(before(&kept, None, SetHash([2; 32])).unwrap(), set(1));
    }
}
