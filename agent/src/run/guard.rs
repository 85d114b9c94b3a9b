//! Keeps the guard in place while the agent runs. It stays when the agent goes.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use nftables::schema::{Chain, NfCmd, NfListObject, NfObject, Rule};
use tokio::task::{JoinError, JoinHandle};
use tracing::{info, warn};

use super::timing::{PAUSE, until};
use crate::chain::in_full;
use crate::guard::{self, FAMILIES, Guard, Mark, TABLE};
use crate::kernel::bpf::leftover::Removal;
use crate::kernel::nft::{Nft, NftError};
use crate::kernel::ruleset::Changes;

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
    task: Option<JoinHandle<Result<Look, NftError>>>,
    /// What is in place.
    known: Option<Placed>,
    /// Who else uses the mark's bit, as far as the first look told.
    shared: Option<String>,
}

/// What a look at the guard came to.
pub(super) struct Kept {
    /// Times that somebody else's change was put right.
    pub(super) repairs: u64,
    /// What is wrong.
    pub(super) complaint: Option<String>,
}

/// A guard that is in place, as the kernel knows its parts. It numbers a rule anew whenever
/// somebody replaces it.
#[derive(Clone, PartialEq, Eq)]
struct Placed {
    chains: BTreeSet<String>,
    rules: BTreeSet<String>,
}

struct Look {
    placed: Placed,
    repaired: bool,
    /// Who else uses the mark's bit; looked for once.
    shared: Option<String>,
}

impl Keeper {
    /// Does nothing before [`Self::begin`].
    pub(super) fn new(guard: Option<Guard>) -> Self {
        if let Some(guard) = &guard {
            for pattern in guard.unguarded() {
                info!(%pattern, "not covered by the guard: it knows beginnings of names only");
            }
        }
        Self {
            nft: Nft::default(),
            guard,
            changes: None,
            begun: false,
            due: None,
            task: None,
            known: None,
            shared: None,
        }
    }

    /// The programs mark what they judged: puts the guard in place, or takes away one that the
    /// settings do not want any more. Once is enough.
    pub(super) fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.due = Some(Instant::now());
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
            let changed = tokio::select! {
                () = until(self.due) => Ok(false),
                changed = changes(self.changes.as_mut()) => changed.map(|()| true),
            };
            match changed {
                Ok(true) => self.due = self.due.or(Instant::now().checked_add(GATHER)),
                Ok(false) => {
                    if let Err(error) = self.look() {
                        return self.failed(&error, "changes of the ruleset are not seen");
                    }
                }
                Err(error) => {
                    self.changes = None;
                    return self.failed(&error, "changes of the ruleset are not seen");
                }
            }
        }
    }

    fn look(&mut self) -> io::Result<()> {
        self.due = None;
        let (nft, guard) = (self.nft.clone(), self.guard.clone());
        // Before the look, so that no change falls between the two.
        if guard.is_some() && self.changes.is_none() {
            self.changes = Some(Changes::subscribe()?);
        }
        let known = self.known.clone();
        self.task = Some(tokio::task::spawn_blocking(move || match guard {
            Some(guard) => keep(&nft, &guard, known),
            None => remove(&nft),
        }));
        Ok(())
    }

    fn looked(&mut self, result: Result<Result<Look, NftError>, JoinError>) -> Kept {
        let Look {
            placed,
            repaired,
            shared,
        } = match result {
            Ok(Ok(look)) => look,
            Ok(Err(error)) => return self.failed(&error, "the guard is not in place"),
            Err(error) => return self.failed(&error, "the guard is not in place"),
        };
        if repaired {
            warn!("the guard was changed by somebody else, put back");
        } else if self.known.is_none() && self.guard.is_some() {
            info!("guard in place");
        }
        if let Some(shared) = shared {
            warn!("{shared}");
            self.shared = Some(shared);
        }
        self.known = Some(placed);
        Kept {
            repairs: repaired.into(),
            complaint: self.shared.clone(),
        }
    }

    fn failed(&mut self, error: &(dyn std::error::Error + 'static), what: &str) -> Kept {
        let error = in_full(error);
        warn!(error, "{what}");
        self.due = Instant::now().checked_add(PAUSE);
        Kept {
            repairs: 0,
            complaint: Some(format!("{what}: {error}")),
        }
    }
}

async fn changes(changes: Option<&mut Changes>) -> io::Result<()> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Puts the guard in place unless it is there as it was `known` to be.
fn keep(nft: &Nft, guard: &Guard, known: Option<Placed>) -> Result<Look, NftError> {
    if let Some(known) = &known
        && known.is_within(&look(nft)?)
    {
        return Ok(Look {
            placed: known.clone(),
            repaired: false,
            shared: None,
        });
    }
    let told = nft.apply_and_tell(&guard.commands()).or_else(|error| {
        let told = nft.apply_and_tell(&guard.replacement())?;
        let why = in_full(&error);
        warn!(
            why,
            "tables of the guard's name were somebody else's, replaced"
        );
        Ok(told)
    })?;
    Ok(Look {
        placed: Placed::of(told.objects.iter().filter_map(|object| match object {
            NfObject::CmdObject(NfCmd::Add(added)) => Some(added),
            NfObject::CmdObject(_) | NfObject::ListObject(_) => None,
        })),
        repaired: known.is_some(),
        shared: match known {
            Some(_) => None,
            None => shared(nft, guard.mark()),
        },
    })
}

fn remove(nft: &Nft) -> Result<Look, NftError> {
    if !guard::remove(nft, Removal::Real)?.is_empty() {
        info!("guard removed: the settings want none");
    }
    Ok(Look {
        placed: Placed::of(std::iter::empty()),
        repaired: false,
        shared: None,
    })
}

/// Who else uses the bit, in a sentence.
fn shared(nft: &Nft, mark: Mark) -> Option<String> {
    let bit = mark.get();
    match guard::users(nft, mark) {
        Ok(users) if users.is_empty() => None,
        Ok(users) => Some(format!(
            "the guard's bit {bit:#x} of the mark is used by others: {}; `guard_mark` takes another",
            users.join(", ")
        )),
        Err(error) => Some(format!(
            "whether others use the guard's bit {bit:#x} of the mark is not known: {}",
            in_full(&error)
        )),
    }
}

/// What the guard's tables hold.
fn look(nft: &Nft) -> Result<Placed, NftError> {
    let mut objects = Vec::new();
    for family in FAMILIES {
        if let Some(table) = nft.table(family, TABLE)? {
            objects.extend(table.objects.into_owned());
        }
    }
    Ok(Placed::of(objects.iter().filter_map(
        |object| match object {
            NfObject::ListObject(listed) => Some(listed),
            NfObject::CmdObject(_) => None,
        },
    )))
}

impl Placed {
    fn of<'a>(objects: impl Iterator<Item = &'a NfListObject<'static>>) -> Self {
        let mut placed = Self {
            chains: BTreeSet::new(),
            rules: BTreeSet::new(),
        };
        for object in objects {
            if let NfListObject::Chain(chain) = object {
                let Chain {
                    family,
                    name,
                    _type,
                    hook,
                    prio,
                    policy,
                    ..
                } = chain;
                placed.chains.insert(format!(
                    "{family:?} {name} {_type:?} {hook:?} {prio:?} {policy:?}"
                ));
            } else if let NfListObject::Rule(rule) = object {
                let Rule {
                    family,
                    chain,
                    handle,
                    ..
                } = rule;
                placed
                    .rules
                    .insert(format!("{family:?} {chain} {handle:?}"));
            }
        }
        placed
    }

    /// Whether all of it is there, and no rule besides. Chains of others change nothing of ours.
    fn is_within(&self, there: &Self) -> bool {
        self.chains.is_subset(&there.chains) && self.rules == there.rules
    }
}
