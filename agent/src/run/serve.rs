//! The loop: events come in, the reconciler is told, and leads the kernel where it should be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25_common::decide::HostMode;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Interval;
use tracing::{info, warn};

use crate::chain::in_full;
use crate::clock::{ClockWatch, Offset};
use crate::control::{
    BypassRequest, Command, Execution, ReloadOutcome, RunningPolicy, Shrink, Undone,
};
use crate::dataplane::Dataplane;
use crate::kernel::cgroups::CgroupEvent;
use crate::kernel::links::{LinkError, LinkEvent, Links, Subscription};
use crate::kernel::memory;
use crate::notify::{Notifier, NotifyError};
use crate::reconcile::files::Occasion;
use crate::reconcile::{Noted, RETRY, Reconciler};
use crate::run::backend::Other;
use crate::run::bypass::Bypassing;
use crate::run::containers::{Containers, Happened};
use crate::run::doctor::{self, Doctor};
use crate::run::guard::{Keeper, Kept};
use crate::run::mounts::Mounts;
use crate::run::notice::{Heard, Notice};
use crate::run::routes::Routes;
use crate::run::sockets::{Next, Sweeper};
use crate::run::store::Store;
use crate::run::tables::Tables;
use crate::run::timing::{every, tick, until};
use crate::run::trial::{self, TrialError, Trials};
use crate::source::{Accepted, PolicyFiles, SourceError, report_stored_refusal};
use crate::state::lock::LockError;
use crate::state::trial::Trial;
use crate::status::{Shared, Source, Subject};
use crate::watch::PolicyWatch;

/// Events of interfaces that are taken in at once.
const AT_ONCE: usize = 4096;
/// How long events of interfaces, and of control groups, are taken in before everything else has its turn. A time
/// and not a number, since one that tells of lost ones has all listed.
const EVENTS: Duration = Duration::from_millis(20);

pub(super) struct Agent<D: Dataplane> {
    pub(super) links: Links,
    pub(super) subscription: Subscription,
    pub(super) watch: PolicyWatch,
    pub(super) rescans: Interval,
    pub(super) clock: ClockWatch,
    pub(super) mounts: Mounts,
    pub(super) tables: Tables,
    pub(super) routes: Routes,
    /// What goes once this backend enforces.
    pub(super) other: Other,
    pub(super) containers: Containers,
    pub(super) guard: Keeper,
    pub(super) doctor: Doctor,
    pub(super) notice: Notice,
    pub(super) sweeper: Sweeper,
    pub(super) files: Files,
    pub(super) store: Store,
    pub(super) trials: Trials,
    /// Why what is known of a trial is not on disk.
    pub(super) trial_unkept: Option<String>,
    pub(super) bypassing: Bypassing,
    /// What the settings say.
    pub(super) mode: HostMode,
    pub(super) requests: mpsc::Receiver<Command>,
    pub(super) reloads: Reloads,
    pub(super) notifier: Arc<Notifier>,
    pub(super) announced: bool,
    /// Whether the service manager did not hear the last message.
    pub(super) unheard: bool,
    pub(super) reconciler: Reconciler<D>,
    pub(super) status: Shared,
    pub(super) dirty: bool,
    /// Whether the allocator may hold memory that nobody uses any more.
    pub(super) hoards: bool,
}

/// The policy's files, at rest or being read on another thread.
pub(super) enum Files {
    Idle(PolicyFiles),
    Loading(JoinHandle<Loaded>),
    Taken,
}

/// What a reading came to.
pub(super) struct Loaded {
    files: PolicyFiles,
    set: Result<Accepted, SourceError>,
    /// What was noted of it for a trial, if it is to be on trial.
    noted: Option<Result<Trial, TrialError>>,
}

/// Reloads that were asked for. Each is answered by a reading of the files that began after it.
#[derive(Default)]
pub(super) struct Reloads {
    /// The files may have changed since the reading that is under way began.
    again: bool,
    waiting: VecDeque<Request>,
    serving: Option<Request>,
}

impl Reloads {
    /// The next one, but for trials that nobody waits for any more.
    fn next(&mut self) -> Option<Request> {
        let is_given_up = |it: &Request| it.confirm_within.is_some() && it.reply.is_closed();
        self.waiting.retain(|it| !is_given_up(it));
        self.waiting.pop_front()
    }
}

struct Request {
    shrink: Shrink,
    execution: Execution,
    /// How long the files are on trial, if they are to be.
    confirm_within: Option<Duration>,
    undone: Undone,
    reply: oneshot::Sender<ReloadOutcome>,
}

impl<D: Dataplane> Agent<D> {
    /// The first policy goes in before the first program is attached, so that an exempt customer
    /// is not cut off for a moment; what an earlier start attached is covered all the while.
    /// So that a start after which nothing has changed writes nothing, all that owners depend on is
    /// known before the first write.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        let snapshot = self.links.snapshot().await?;
        self.reconciler.interfaces(snapshot, Instant::now());
        self.kept_policy();
        self.load();
        let loaded = loading(&mut self.files).await?;
        // Which of them runs is not known yet: valid files may be held, have lost too much or not fit.
        let either = [loaded.set.as_ref().ok(), self.reconciler.fallback()];
        let depths = either.map(|set| self.containers.depth_for(set));
        self.list_to(depths.into_iter().max().unwrap_or_default());
        let cgroups = &self.reconciler.inventory().cgroups;
        if let Some(found) = self
            .containers
            .look_now(cgroups.values().cloned().collect())
            .await
        {
            // What was found has kept its numbers since, and these say which veths lead there.
            let snapshot = self.links.snapshot().await?;
            self.reconciler.interfaces(snapshot, Instant::now());
            self.reconciler
                .complain(Subject::Namespaces, found.complaint);
            self.reconciler.namespaces(found.inside, &found.unread);
        }
        let heard = self.notice.first().await;
        self.heard_of_notice(heard);
        self.take(loaded);
        self.doctor.soon();
        Ok(())
    }

    /// The set that was last accepted is what the files are measured by.
    fn kept_policy(&mut self) {
        let stored = self.store.load();
        self.reconciler
            .complain(Subject::State, self.store.complaint());
        if let Some(stored) = &stored {
            self.trials.accepted(stored.hash, stored.accepted);
        }
        let stored = self.resume_trial().or(stored);
        let (Some(stored), Files::Idle(files)) = (stored, &mut self.files) else {
            return;
        };
        match files.load_stored(&stored, Timestamp::now()) {
            Ok(set) => self.reconciler.last_known_good(set),
            Err(refusal) => report_stored_refusal(&refusal),
        }
    }

    pub(super) async fn serve(&mut self) -> anyhow::Result<()> {
        let mut retry = every(RETRY);
        let mut linger = every(RETRY);
        let mut watchdog = self.notifier.watchdog_period().map(tokio::time::interval);
        // Since when there have been events without the rest's turn.
        let mut link_events = None;
        let mut cgroup_events = None;
        loop {
            let busy = self.dirty || self.reconciler.has_waiting();
            // Guests make control groups and move their ends of veths as fast as they like, and are not to keep
            // the rest from its turn.
            let is_over = |since: Option<Instant>| since.is_some_and(|it| it.elapsed() >= EVENTS);
            let (links_over, cgroups_over) = (is_over(link_events), is_over(cgroup_events));
            tokio::select! {
                biased;
                result = self.clock.set() => {
                    result?;
                    self.reconciler.clock(Offset::sample()?);
                    self.dirty = true;
                }
                kept = self.guard.next() => self.kept(kept),
                () = tick(watchdog.as_mut()) => self.ping(),
                loaded = loading(&mut self.files) => self.take(loaded?),
                Some(command) = self.requests.recv() => self.command(command),
                // Not with the files: whoever keeps changing those does not keep the rest from being compared.
                _ = self.rescans.tick() => self.rescan().await?,
                reason = self.watch.changed() => {
                    reason?;
                    self.load();
                }
                event = self.links.next(), if !links_over => {
                    link_events.get_or_insert_with(Instant::now);
                    self.link_events(event).await?;
                }
                happened = self.containers.next(), if !cgroups_over => {
                    cgroup_events.get_or_insert_with(Instant::now);
                    self.container(happened).await?;
                }
                result = self.mounts.changed() => {
                    result?;
                    self.reconciler.verify_pins();
                    self.keep_others_away()?;
                }
                changed = self.tables.changed() => match changed {
                    Ok(()) => self.reconciler.verify_pins(),
                    Err(error) => {
                        warn!(error = in_full(&error), "subscribe to the ruleset again");
                        self.tables = Tables::watched()?;
                        self.reconciler.verify_pins();
                    }
                },
                changed = self.routes.changed() => {
                    if let Err(error) = changed {
                        warn!(error = in_full(&error), "subscribe to the routes again");
                        self.routes = Routes::watched();
                    }
                    self.dirty |= self.reconciler.ways() == Noted::News;
                }
                () = until(self.reconciler.due()), if !self.dirty => self.dirty = true,
                heard = self.notice.next() => self.heard_of_notice(heard),
                // While programs are still to be attached, that they are missing is no news.
                next = self.doctor.next(), if !busy => self.examine(next),
                () = self.bypassing.over() => self.bypass_over(),
                next = self.trials.next() => self.trial(next),
                complaint = self.store.saved() => {
                    self.hoards = true;
                    self.reconciler.complain(Subject::State, complaint);
                }
                next = self.sweeper.next() => match next {
                    Next::Due => self.sweep(),
                    Next::Done(complaint) => self.reconciler.complain(Subject::Sockets, complaint),
                },
                _ = retry.tick(), if self.reconciler.has_failed() || self.other.is_any() => {
                    if self.reconciler.has_failed() {
                        self.reconciler.retry(Instant::now());
                        self.dirty = true;
                    } else {
                        self.replace_other();
                    }
                }
                _ = linger.tick(), if self.reconciler.has_lingering() && !self.dirty => {
                    self.reconciler.place();
                }
                () = std::future::ready(()), if busy => {
                    (link_events, cgroup_events) = (None, None);
                    if std::mem::take(&mut self.dirty) {
                        self.converge();
                    }
                    if self.reconciler.has_waiting() {
                        self.reconciler.attach_next(Instant::now());
                        // Others get their turn: an attachment takes milliseconds.
                        tokio::task::yield_now().await;
                    }
                    self.announce();
                }
                () = std::future::ready(()), if links_over || cgroups_over => {
                    (link_events, cgroup_events) = (None, None);
                }
            }
        }
    }

    fn converge(&mut self) {
        self.reconciler.converge();
        // Programs of an earlier start may set another bit.
        if self.reconciler.is_in_force() {
            self.guard.begin();
        }
        if self.reconciler.take_revoked() {
            self.sweeper.now();
        }
    }

    fn examine(&mut self, next: doctor::Next) {
        match next {
            doctor::Next::Due => {
                let interfaces = self.reconciler.workloads().interfaces.keys();
                self.doctor.look(interfaces.copied().collect());
            }
            doctor::Next::Done(examined) => {
                self.status.update(|status| status.examined = examined);
            }
        }
    }

    fn kept(&mut self, kept: Kept) {
        let Kept {
            repairs,
            in_place,
            complaint,
        } = kept;
        self.status.update(|status| {
            status.guard_repairs += repairs;
            status.guard_in_place = in_place;
        });
        self.reconciler.complain(Subject::Guard, complaint);
    }

    fn heard_of_notice(&mut self, heard: Heard) {
        let Heard {
            listeners,
            told,
            complaint,
        } = heard;
        self.status.update(|status| status.notice = listeners);
        self.dirty |= self.reconciler.notice_told(told) == Noted::News;
        self.reconciler.complain(Subject::Notice, complaint);
    }

    /// Tells the service manager once everything that is there has its programs.
    fn announce(&mut self) {
        if self.dirty || self.reconciler.has_waiting() {
            return;
        }
        self.replace_other();
        if self.announced {
            return;
        }
        let text = self.status.read(|status| {
            let (source, workloads) = (status.source.as_str(), status.workloads.len());
            format!("policy from {source}, {workloads} workloads")
        });
        let told = self.notifier.ready(&text);
        self.announced = told.is_ok();
        self.give_back();
        self.heard(told);
    }

    /// What the other backend left goes once this one is everywhere, so that nothing opens
    /// meanwhile.
    fn replace_other(&mut self) {
        if !self.other.is_any() {
            return;
        }
        if !self.reconciler.covers_interfaces() {
            self.reconciler
                .complain(Subject::OtherBackend, self.other.stays());
            return;
        }
        let complaint = self.other.remove();
        let said = self.reconciler.complaint(Subject::OtherBackend);
        if let Some(complaint) = complaint.as_deref().filter(|it| said != Some(*it)) {
            warn!("{complaint}");
        }
        self.reconciler.complain(Subject::OtherBackend, complaint);
        if let Err(error) = self.keep_others_away() {
            warn!(
                error = in_full(&error),
                "the lock that keeps other agents away is lost"
            );
        }
    }

    fn keep_others_away(&mut self) -> Result<(), LockError> {
        let complaint = self.mounts.lock_again()?;
        self.reconciler.complain(Subject::Lock, complaint);
        Ok(())
    }

    fn ping(&mut self) {
        let told = self.notifier.ping();
        self.heard(told);
    }

    pub(super) fn stopping(&mut self) {
        let told = self.notifier.stopping();
        self.heard(told);
    }

    /// A service manager that does not hear is complained of once, not at every try.
    fn heard(&mut self, told: Result<(), NotifyError>) {
        match told {
            Ok(()) => self.unheard = false,
            Err(error) => {
                if !std::mem::replace(&mut self.unheard, true) {
                    let error = in_full(&error);
                    warn!(error, "the service manager does not hear us");
                }
            }
        }
    }

    /// Takes in this event and those after it that have happened, before anything is done about them: a program
    /// that is attached to an interface by its number may meet the next one with that number.
    async fn link_events(&mut self, first: Result<LinkEvent, LinkError>) -> anyhow::Result<()> {
        let mut next = first.map(Some);
        for taken_in in 1.. {
            match next {
                // Everything is listed: others first.
                Ok(Some(LinkEvent::Lost)) => return self.link(LinkEvent::Lost).await,
                Ok(Some(event)) => self.link(event).await?,
                Ok(None) => break,
                Err(error) => {
                    warn!(
                        error = in_full(&error),
                        "events of interfaces were lost: they are listed again"
                    );
                    self.links = Links::open(self.subscription)?;
                    return self.rescan().await;
                }
            }
            if taken_in == AT_ONCE {
                break;
            }
            next = self.links.try_next();
        }
        Ok(())
    }

    async fn link(&mut self, event: LinkEvent) -> anyhow::Result<()> {
        let now = Instant::now();
        match event {
            LinkEvent::Upsert(interface) => {
                let is_container = self.containers.concerns(&interface);
                match self.reconciler.interface(interface, now) {
                    Noted::News if is_container => self.containers.look_soon(),
                    Noted::News => {}
                    Noted::Known => return Ok(()),
                }
            }
            LinkEvent::Gone { index } => self.reconciler.interface_gone(index),
            LinkEvent::QdiscGone { index } => self.reconciler.displaced(index, now),
            LinkEvent::Lost => self.rescan().await?,
        }
        self.dirty = true;
        self.doctor.soon();
        Ok(())
    }

    async fn container(&mut self, happened: Happened) -> anyhow::Result<()> {
        let now = Instant::now();
        match happened {
            Happened::Cgroup(CgroupEvent::Created(cgroup)) => self.reconciler.cgroup(cgroup, now),
            Happened::Cgroup(CgroupEvent::Gone { id, path: _ }) => self.reconciler.cgroup_gone(id),
            Happened::Cgroup(CgroupEvent::Populated { .. }) => {
                self.containers.look_soon();
                return Ok(());
            }
            Happened::Cgroup(CgroupEvent::WatchLimit) => {
                let why = "fs.inotify.max_user_watches is too low: new cgroups are found late";
                self.reconciler
                    .complain(Subject::CgroupWatches, Some(why.to_owned()));
                return Ok(());
            }
            Happened::Cgroup(CgroupEvent::Lost) => self.list_containers(),
            Happened::Broken(why) => {
                warn!(why, "cgroups are listed anew");
                self.containers.reopen();
                self.list_containers();
            }
            Happened::TimeToReopen => {
                self.containers.reopen();
                self.list_containers();
            }
            Happened::TimeToLook => {
                let cgroups = &self.reconciler.inventory().cgroups;
                self.containers.look(cgroups.values().cloned().collect());
                return Ok(());
            }
            Happened::Looked(found) => {
                // The kernel does not say when the other end of a veth moves. What was found has kept its
                // numbers since.
                let snapshot = self.links.snapshot().await?;
                // Not looked for, since they came after the look began.
                let known = &self.reconciler.inventory().interfaces;
                let is_new = snapshot.interfaces.iter().any(|it| {
                    let same =
                        known.get(&it.index) == Some(it) && !snapshot.gone.contains(&it.index);
                    !same && self.containers.concerns(it)
                });
                let unknown = snapshot.interfaces.iter().any(|it| found.lacks(it));
                match is_new {
                    true => self.containers.look_soon(),
                    false => self.containers.look_again_if(unknown),
                }
                self.doctor.soon();
                self.reconciler.interfaces(snapshot, now);
                self.reconciler
                    .complain(Subject::Namespaces, found.complaint);
                if self.reconciler.namespaces(found.inside, &found.unread) == Noted::News {
                    self.sweeper.now();
                }
            }
        }
        self.dirty = true;
        Ok(())
    }

    fn list_containers(&mut self) {
        self.list_to(self.containers.depth_for(self.reconciler.policy()));
    }

    fn list_to(&mut self, depth: usize) {
        // Listing says it again where it still holds.
        self.reconciler.complain(Subject::CgroupWatches, None);
        match self.containers.list(depth) {
            Ok(Some(cgroups)) => {
                let unseen = self.containers.unseen();
                self.reconciler.cgroups(cgroups, unseen, Instant::now());
                self.containers.look_soon();
            }
            Ok(None) => {}
            Err(why) => self.containers.broken(why),
        }
        self.reconciler
            .complain(Subject::Cgroups, self.containers.complaint());
        self.reconciler
            .containers_unjudged(self.containers.problem());
        self.doctor.soon();
        self.dirty = true;
    }

    async fn rescan(&mut self) -> anyhow::Result<()> {
        let snapshot = self.links.snapshot().await?;
        self.reconciler.interfaces(snapshot, Instant::now());
        self.list_containers();
        self.converge();
        self.reconciler.verify(Offset::sample()?);
        self.keep_others_away()?;
        self.store.retry();
        self.sweeper.now();
        self.guard.rescan();
        self.doctor.soon();
        self.give_back();
        self.dirty = true;
        // However long this took, everything else gets its turn before the next one.
        self.rescans.reset();
        Ok(())
    }

    /// What readings of the policy took. Not after each of them, since the next one needs as much, and new
    /// memory is dear.
    fn give_back(&mut self) {
        if std::mem::take(&mut self.hoards) {
            memory::give_back();
        }
    }

    fn sweep(&mut self) {
        if self.bypassing.is_active() {
            // Nothing is refused for the time being; once it is, they are looked for.
            self.sweeper.skip(&self.reconciler);
            return;
        }
        self.sweeper
            .sweep(&self.reconciler, self.containers.hierarchy());
    }

    fn command(&mut self, command: Command) {
        match command {
            // Whoever has been told that it failed is not to find it done.
            Command::Reload {
                confirm_within: Some(_),
                reply,
                ..
            } if reply.is_closed() => warn!("nobody waits for the trial any more: not begun"),
            Command::Reload {
                shrink,
                execution,
                confirm_within,
                undone,
                reply,
            } => {
                self.reloads.waiting.push_back(Request {
                    shrink,
                    execution,
                    confirm_within,
                    undone,
                    reply,
                });
                self.load();
            }
            Command::Confirm { execution, reply } => self.confirm(execution, reply),
            Command::Undo { reply, .. } if reply.is_closed() => {
                warn!("nobody waits for the undo any more: not done");
            }
            Command::Undo { execution, reply } => self.undo(execution, Some(reply)),
            Command::Bypass {
                request: BypassRequest::Begin { .. },
                reply,
            } if reply.is_closed() => warn!("nobody waits for the bypass any more: not begun"),
            Command::Bypass { request, reply } => {
                let _gone = reply.send(self.bypass(&request));
            }
            Command::Policy { reply } => {
                let status = self.status.get();
                let running = self.reconciler.policy();
                // Whoever asked may be gone.
                let _gone = reply.send(RunningPolicy {
                    source: status.source,
                    generation: status.generation,
                    hash: running.map(|running| running.hash),
                    files: running.map_or_else(|| [].into(), |running| running.files.clone()),
                });
            }
        }
    }

    /// Begins to read the files, or sees to it that they are read again after the reading that is
    /// under way.
    fn load(&mut self) {
        match std::mem::replace(&mut self.files, Files::Taken) {
            Files::Idle(mut files) => {
                self.reloads.serving = self.reloads.next();
                let within = self
                    .reloads
                    .serving
                    .as_ref()
                    .and_then(|it| it.confirm_within);
                let running = self.reconciler.policy().map(|running| running.hash);
                let beginning = within.map(|within| self.trials.beginning(within, running));
                self.files = Files::Loading(tokio::task::spawn_blocking(move || {
                    let (set, noted) = trial::read(&mut files, beginning.as_ref());
                    Loaded { files, set, noted }
                }));
            }
            loading @ (Files::Loading(_) | Files::Taken) => {
                self.files = loading;
                self.reloads.again = true;
            }
        }
    }

    fn take(&mut self, loaded: Loaded) {
        let Loaded {
            files,
            set: loaded,
            noted,
        } = loaded;
        self.files = Files::Idle(files);
        self.hoards = true;
        let now = Timestamp::now();
        let before = self.running();
        let ran = self.reconciler.policy().map(|running| running.hash);
        match self.reloads.serving.take() {
            None => {
                let outcome = self.reconciler.files(loaded, Occasion::Watch, now);
                self.took_over(&outcome);
            }
            Some(request) => {
                let held = match request.undone {
                    Undone::Held => self
                        .trials
                        .undone()
                        .filter(|_| self.reconciler.holds(&loaded)),
                    Undone::Taken => None,
                };
                let outcome = match (held, request.execution, noted) {
                    (Some(since), _, _) => held_back(since),
                    (None, _, Some(Err(TrialError::NothingNew))) => ReloadOutcome::Unchanged,
                    (None, _, Some(Err(error))) => refused_trial(&error),
                    (None, Execution::Apply, noted) => {
                        let occasion = Occasion::Request(request.shrink);
                        let outcome = self.reconciler.files(loaded, occasion, now);
                        match noted {
                            Some(Ok(trial)) => self.on_trial(trial, outcome),
                            Some(Err(_)) | None => outcome,
                        }
                    }
                    (None, Execution::DryRun, _) => {
                        self.reconciler.rehearse(loaded, request.shrink, now)
                    }
                };
                self.took_over(&outcome);
                // Whoever asked may be gone.
                let _gone = request
                    .reply
                    .send(self.trials.joined(outcome, self.running()));
            }
        }
        // Also where that is the set before, instead of these files.
        if self.running() != before {
            self.trials.ran_before(ran, self.reconciler.policy());
            self.policy_changed();
        }
        if std::mem::take(&mut self.reloads.again) || !self.reloads.waiting.is_empty() {
            self.load();
        }
    }

    fn took_over(&mut self, outcome: &ReloadOutcome) {
        self.dirty = true;
        match outcome {
            ReloadOutcome::Applied { .. } | ReloadOutcome::OnTrial { .. } => {}
            ReloadOutcome::WouldApply { .. }
            | ReloadOutcome::Unchanged
            | ReloadOutcome::Held { .. }
            | ReloadOutcome::Refused { .. }
            | ReloadOutcome::Shrunk { .. } => return,
        }
        let Some(running) = self.reconciler.policy() else {
            return;
        };
        if running.source == Source::Files {
            let (hash, stored) = (running.hash, running.stored(Timestamp::now()));
            self.trials.applied(hash);
            self.store.save(stored, self.trials.base());
            self.report_trial();
        }
    }

    /// Tells one policy that was put into the kernel from any other.
    fn running(&self) -> u64 {
        self.status.read(|status| status.generation)
    }

    /// What depends on the policy is led where it should be.
    pub(super) fn policy_changed(&mut self) {
        self.dirty = true;
        let Some(running) = self.reconciler.policy() else {
            return;
        };
        self.sweeper.schedule(&running.policy, Timestamp::now());
        let depth = self.containers.depth_for(Some(running));
        if self.containers.follows_another_depth_than(depth) {
            info!(depth, "cgroups are followed to another depth");
            self.list_containers();
        }
        self.sweeper.now();
    }
}

/// Files that were undone are not in force because somebody has had others read.
fn held_back(since: Timestamp) -> ReloadOutcome {
    warn!(%since, "the files were undone and are held: not taken over");
    ReloadOutcome::Held { since }
}

/// Why files that were to be on trial were not taken over.
fn refused_trial(error: &TrialError) -> ReloadOutcome {
    ReloadOutcome::Refused {
        message: format!("the files cannot be on trial: {}", in_full(error)),
        diagnostics: Vec::new(),
    }
}

/// What the reading came to; never, while there is none.
async fn loading(files: &mut Files) -> anyhow::Result<Loaded> {
    match files {
        Files::Loading(task) => Ok(task.await?),
        Files::Idle(_) | Files::Taken => std::future::pending().await,
    }
}
