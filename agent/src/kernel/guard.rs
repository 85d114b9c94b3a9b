//! The guard in the kernel: looked at, put in place, taken away.

mod check;

use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tracing::{debug, warn};

use super::netfilter;
use super::nft::{Nft, NftError};
use super::removal::Removal;
use super::routes::{self, RuleError};
use super::tally::Tally;
use crate::chain::in_full;
use crate::guard::{self, COUNTER, Guard, Mark, TABLES};
use crate::netfilter::{Family, Signature, Table};

pub use check::{CheckError, Placement, placement};

/// Why nobody knows who else uses the guard's bit.
#[derive(Debug, thiserror::Error)]
pub enum MarksError {
    /// The ruleset cannot be read.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The routing rules cannot be read.
    #[error(transparent)]
    Routes(#[from] RuleError),
}

/// What the guard has stopped, or on a host that only observes would have.
#[derive(Debug)]
pub struct Unmarked(Mutex<[Tally; TABLES.len()]>);

/// Nothing read yet.
impl Default for Unmarked {
    fn default() -> Self {
        Self(Mutex::new(TABLES.map(Tally::new)))
    }
}

impl Unmarked {
    /// Packets by table, as they are now; where they cannot be read, which the guard's keeper
    /// complains of, as they were.
    pub fn packets(&self) -> [(Family, u64); TABLES.len()] {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tally in tallies.iter_mut() {
            if let Err(error) = tally.read() {
                debug!(error = in_full(&error), "the guard's counters are not read");
            }
        }
        let [routed, bridged] = TABLES.map(|table| table.family);
        let [of_routed, of_bridged] = &*tallies;
        [
            (routed, of_routed.packets(COUNTER)),
            (bridged, of_bridged.packets(COUNTER)),
        ]
    }
}

/// What it took to have the guard in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// It was as it should be.
    Nothing,
    /// It was written.
    Written,
}

/// Puts the guard in place, unless it is there as it was `known` to be.
///
/// # Errors
/// [`NftError`].
pub fn keep(
    nft: &Nft,
    guard: &Guard,
    known: Option<Signature>,
) -> Result<(Signature, Effort), NftError> {
    let listings = listings(nft)?;
    let there = Signature::listed(listings.iter().map(|(_, listing)| listing));
    if let Some(mut known) = known
        && known.is_intact(&there)
    {
        known.learn(&there);
        return Ok((known, Effort::Nothing));
    }
    let is_foreign = listings
        .iter()
        .any(|(_, listing)| guard::is_foreign(listing));
    let told = match nft.apply_and_tell(&guard.commands()) {
        Err(error @ NftError::Refused { .. }) if is_foreign => {
            let told = nft.apply_and_tell(&guard.replacement())?;
            let why = in_full(&error);
            warn!(
                why,
                "tables of the guard's name were somebody else's, replaced"
            );
            told
        }
        told => told?,
    };
    // What others have added to its tables is no part of it.
    let mut written = there.tables();
    written.follow(&told);
    Ok((written, Effort::Written))
}

/// Removes the guard, or with `Removal::DryRun` only looks, and tells which tables it has.
///
/// # Errors
/// [`NftError`]; nothing was removed then. That nft is missing is none where the kernel has no guard either.
pub fn remove(nft: &Nft, removal: Removal) -> Result<Vec<String>, NftError> {
    let tables: Vec<String> = match listings(nft) {
        Ok(listings) => listings
            .iter()
            .map(|(table, _)| table.to_string())
            .collect(),
        Err(error) if error.is_missing() && netfilter::has_none_of(&TABLES) => Vec::new(),
        Err(error) => return Err(error),
    };
    match removal {
        Removal::Real if !tables.is_empty() => nft.apply(&guard::removal())?,
        Removal::Real | Removal::DryRun => {}
    }
    Ok(tables)
}

/// Rules of others that may use the bit, in words.
///
/// # Errors
/// [`MarksError`].
pub fn users(nft: &Nft, mark: Mark) -> Result<Vec<String>, MarksError> {
    let mut users = guard::in_ruleset(&nft.ruleset()?, mark);
    let rules = routes::mark_rules()?;
    let rules = rules.iter().filter(|rule| rule.looks_at(mark.get()));
    users.extend(rules.map(ToString::to_string));
    Ok(users)
}

/// The guard's tables, as far as they are there.
fn listings(nft: &Nft) -> Result<Vec<(Table, Value)>, NftError> {
    let mut listings = Vec::new();
    for table in TABLES {
        listings.extend(nft.table(table)?.map(|listing| (table, listing)));
    }
    Ok(listings)
}
