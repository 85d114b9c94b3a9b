//! Whether the guard is as it should be, whoever put it there.

use std::collections::BTreeMap;
use std::io;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::guard::{Guard, TABLES};
use crate::kernel::nft::{Nft, NftError};
use crate::netfilter::Table;

/// How the guard is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// As it should be.
    InPlace,
    /// These tables are missing.
    Missing(Vec<String>),
    /// These chains are missing or are not as they should be.
    Altered(Vec<String>),
}

/// Why that could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// nft could not be run, or refused.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// There is no place to try the guard in.
    #[error("make a network namespace in which the guard is loaded for comparison")]
    Namespace(#[source] io::Error),
    /// The attempt ended early.
    #[error("the guard could not be loaded for comparison")]
    Thread,
}

/// Chains by family and name: what they are, and their rules.
type Chains = BTreeMap<String, (Value, Vec<Value>)>;

/// Compares the guard with the same guard freshly loaded into a network namespace of its own: what
/// nft lists of the two differs in handles and counts alone.
///
/// # Errors
/// [`CheckError`]; a namespace needs `CAP_SYS_ADMIN`.
pub fn placement(nft: &Nft, guard: &Guard) -> Result<Placement, CheckError> {
    let mut there = Chains::new();
    let mut missing = Vec::new();
    for table in TABLES {
        match nft.table(table)? {
            Some(listed) => there.extend(chains(table, &listed)),
            None => missing.push(table.to_string()),
        }
    }
    if !missing.is_empty() {
        return Ok(Placement::Missing(missing));
    }
    let altered: Vec<String> = wanted(nft, guard)?
        .into_iter()
        .filter(|(name, chain)| there.get(name) != Some(chain))
        .map(|(name, _)| name)
        .collect();
    Ok(if altered.is_empty() {
        Placement::InPlace
    } else {
        Placement::Altered(altered)
    })
}

fn wanted(nft: &Nft, guard: &Guard) -> Result<Chains, CheckError> {
    let loaded = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| CheckError::Namespace(error.into()))?;
        nft.apply(&guard.commands())?;
        let mut wanted = Chains::new();
        for table in TABLES {
            if let Some(listed) = nft.table(table)? {
                wanted.extend(chains(table, &listed));
            }
        }
        Ok(wanted)
    };
    // The namespace ends with the thread.
    let ended = thread::scope(|scope| scope.spawn(loaded).join());
    ended.map_err(|_panic| CheckError::Thread)?
}

fn chains(table: Table, listed: &Value) -> Chains {
    let mut chains = Chains::new();
    let objects = listed["nftables"].as_array().into_iter().flatten();
    for object in objects {
        if let Some(chain) = object.get("chain") {
            let name = named(table, &chain["name"]);
            chains.entry(name).or_default().0 = timeless(chain.clone());
        } else if let Some(rule) = object.get("rule") {
            let name = named(table, &rule["chain"]);
            let rules = &mut chains.entry(name).or_default().1;
            rules.push(timeless(rule.clone()));
        }
    }
    chains
}

fn named(table: Table, chain: &Value) -> String {
    format!("{table} {}", chain.as_str().unwrap_or("?"))
}

/// Without what differs between two that are alike.
fn timeless(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("handle");
    }
    object
}
