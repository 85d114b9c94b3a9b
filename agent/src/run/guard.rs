//! Keeps the guard in place while the agent runs. It stays when the agent goes.

use std::io;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinHandle};
use tracing::{info, warn};

use super::timing::{PAUSE, until};
use crate::chain::in_full;
use crate::guard::{Guard, Mark};
use crate::kernel::guard::{self, Effort};
use crate::kernel::nft::{Nft, NftError};
use crate::kernel::removal::Removal;
use crate::kernel::ruleset::Changes;
use crate::netfilter::Signature;

/// Changes that follow each other are looked at together.
const GATHER: Duration = Duration::from_millis(100);

/// Puts the guard in place and back.
pub(super) struct Keeper {
    nft: Nft,
    guard: Option<Guard>,
    changes: Option<Changes>,
    /// Whether the programs mark what they judged.
    begun: bool,
    due: Option<Instant>,
    task: Option<JoinHandle<Look>>,
    /// What is in place.
    known: Option<Signature>,
    wrong: Wrong,
    /// Who else uses the bit is to be looked for.
    ask: bool,
}

/// What a look at the guard came to.
pub(super) struct Kept {
    /// Times that somebody else's change was put right.
    pub(super) repairs: u64,
    /// Whether it is in place.
    pub(super) in_place: bool,
    /// What is wrong.
    pub(super) complaint: Option<String>,
}

/// What is wrong, each said once until it is something else.
#[derive(Default)]
struct Wrong {
    /// Changes are not seen.
    blind: Option<String>,
    /// It is not as it should be.
    failed: Option<String>,
    /// Others may use the mark's bit.
    shared: Option<String>,
    /// It does not cover what it should.
    uncovered: Option<String>,
}

/// The guard, and who else uses its bit where that was asked.
struct Look {
    kept: Result<Option<(Signature, Effort)>, NftError>,
    shared: Option<Shared>,
}

/// Who else uses the bit.
enum Shared {
    Nobody,
    Somebody(String),
}

impl Keeper {
    /// Does nothing before [`Self::begin`].
    pub(super) fn new(guard: Option<Guard>) -> Self {
        Self {
            nft: Nft::default(),
            wrong: Wrong {
                uncovered: guard.as_ref().and_then(uncovered),
                ..Wrong::default()
            },
            guard,
            changes: None,
            begun: false,
            due: None,
            task: None,
            known: None,
            ask: true,
        }
    }

    /// The programs mark what they judged: puts the guard in place, or takes away one that the
    /// settings do not want any more. Once is enough.
    pub(super) fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.due = Some(Instant::now());
        }
    }

    /// Has everything looked at again soon.
    pub(super) fn rescan(&mut self) {
        if self.begun && self.guard.is_some() {
            self.ask = true;
            self.due = self.due.or(Some(Instant::now()));
        }
    }

    /// Waits for, and does, what is next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Kept {
        loop {
            if let Some(task) = &mut self.task {
                let result = task.await;
                self.task = None;
                return self.looked(result);
            }
            tokio::select! {
                () = until(self.due) => self.look(),
                changed = changes(self.changes.as_mut()) => match changed {
                    Ok(()) => self.due = self.due.or(Instant::now().checked_add(GATHER)),
                    Err(error) => {
                        self.changes = None;
                        note(&mut self.wrong.blind, Some(blind(&error)));
                        self.due = Instant::now().checked_add(PAUSE);
                    }
                },
            }
        }
    }

    fn look(&mut self) {
        self.due = None;
        // Before the look, so that no change falls between the two.
        if self.guard.is_some() && self.changes.is_none() {
            match Changes::subscribe() {
                Ok(changes) => {
                    self.changes = Some(changes);
                    self.wrong.blind = None;
                }
                // The guard is put in place all the same.
                Err(error) => note(&mut self.wrong.blind, Some(blind(&error))),
            }
        }
        let (nft, guard) = (self.nft.clone(), self.guard.clone());
        let known = self.known.clone();
        // Whoever was named may have gone.
        let ask = std::mem::take(&mut self.ask) || self.wrong.shared.is_some();
        self.task = Some(tokio::task::spawn_blocking(move || match guard {
            Some(guard) => Look {
                kept: guard::keep(&nft, &guard, known).map(Some),
                shared: ask.then(|| shared(&nft, guard.mark())),
            },
            None => Look {
                kept: guard::remove(&nft, Removal::Real).map(|removed| {
                    if !removed.is_empty() {
                        info!("guard removed: the settings want none");
                    }
                    None
                }),
                shared: None,
            },
        }));
    }

    fn looked(&mut self, result: Result<Look, JoinError>) -> Kept {
        let (repairs, failed) = match result {
            Ok(Look { kept, shared }) => {
                match shared {
                    Some(Shared::Nobody) => self.wrong.shared = None,
                    Some(Shared::Somebody(who)) => note(&mut self.wrong.shared, Some(who)),
                    None => {}
                }
                match kept {
                    Ok(kept) => (self.took(kept), None),
                    Err(error) => {
                        let advice = advice(&error);
                        (0, Some(format!("{}{advice}", in_full(&error))))
                    }
                }
            }
            Err(error) => (0, Some(in_full(&error))),
        };
        let failed = failed.map(|why| format!("{}: {why}", self.failure()));
        note(&mut self.wrong.failed, failed);
        if self.wrong.failed.is_some() || self.wrong.blind.is_some() {
            self.due = self.due.or(Instant::now().checked_add(PAUSE));
        }
        Kept {
            repairs,
            in_place: self.known.is_some() && self.wrong.failed.is_none(),
            complaint: self.wrong.in_words(),
        }
    }

    /// Takes note of the guard, and tells how often it was put right.
    fn took(&mut self, kept: Option<(Signature, Effort)>) -> u64 {
        let Some((placed, effort)) = kept else {
            return 0;
        };
        let is_first = self.known.replace(placed).is_none();
        match effort {
            Effort::Nothing => 0,
            Effort::Written if is_first => {
                info!("guard in place");
                0
            }
            Effort::Written => {
                warn!("the guard was changed by somebody else, put back");
                1
            }
        }
    }

    /// What it means that a look has failed.
    fn failure(&self) -> &'static str {
        match (&self.guard, &self.known) {
            (Some(_), None) => "the guard is not in place",
            (Some(_), Some(_)) => "whether the guard is in place is not known",
            (None, _) => {
                "a guard of an earlier start, if there is one, is not removed and stops what the programs allow"
            }
        }
    }
}

impl Wrong {
    fn in_words(&self) -> Option<String> {
        let Self {
            blind,
            failed,
            shared,
            uncovered,
        } = self;
        let all = [failed, blind, shared, uncovered].into_iter().flatten();
        let all: Vec<&str> = all.map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// Says what is new.
fn note(slot: &mut Option<String>, wrong: Option<String>) {
    if let Some(wrong) = wrong.as_ref().filter(|it| slot.as_ref() != Some(*it)) {
        warn!("{wrong}");
    }
    *slot = wrong;
}

/// Patterns that would be covered but for others in the settings are complained of.
fn uncovered(guard: &Guard) -> Option<String> {
    let (blamed, plain): (Vec<_>, Vec<_>) = guard
        .unguarded()
        .iter()
        .partition(|it| it.ignored.is_some());
    for unguarded in plain {
        info!("{unguarded}");
    }
    let mut uncovered = None;
    let words: Vec<String> = blamed.iter().map(ToString::to_string).collect();
    note(
        &mut uncovered,
        (!words.is_empty()).then(|| words.join("; ")),
    );
    uncovered
}

fn blind(error: &io::Error) -> String {
    let error = in_full(error);
    format!("changes of the ruleset are not seen, the guard is looked at once a second: {error}")
}

fn advice(error: &NftError) -> &'static str {
    if error.is_missing() {
        "; install nftables, or write `guard: false`"
    } else {
        ""
    }
}

async fn changes(changes: Option<&mut Changes>) -> io::Result<()> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Who else uses the bit, in a sentence.
fn shared(nft: &Nft, mark: Mark) -> Shared {
    let bit = mark.get();
    match guard::users(nft, mark) {
        Ok(users) if users.is_empty() => Shared::Nobody,
        Ok(users) => Shared::Somebody(format!(
            "the guard's bit {bit:#x} of the mark is, or may be, used by others: {}; `guard_mark` takes another",
            users.join("; ")
        )),
        Err(error) => Shared::Somebody(format!(
            "whether others use the guard's bit {bit:#x} of the mark is not known: {}",
            in_full(&error)
        )),
    }
}
