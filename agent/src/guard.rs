//! The guard: an nftables net under the eBPF programs, which needs no agent.
//!
//! The program on an interface marks the guarded-port packets that it lets pass with one bit. The
//! guard stops those that come from a guest's interface without the bit: the program is not there
//! yet. It goes by the names of interfaces, in `bridge` and `inet` `prerouting`, before anything
//! else (priority -450).

mod check;
mod marks;
mod ruleset;

use gate25_common::decide::HostMode;
use nftables::schema::Nftables;

use crate::kernel::bpf::leftover::Removal;
use crate::kernel::nft::{Nft, NftError, family_word};
use crate::policy::Pattern;
use crate::settings::Settings;

pub use check::{CheckError, Placement, placement};
pub use marks::{MarksError, in_ruleset, users};
pub use ruleset::{FAMILIES, TABLE};

/// One bit of a packet's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u32);

impl Mark {
    /// Unless somebody says otherwise.
    pub const DEFAULT: Self = Self(0x1000_0000);

    /// The mark of exactly one bit; `None` for none or several.
    #[must_use]
    pub fn new(bits: u32) -> Option<Self> {
        bits.is_power_of_two().then_some(Self(bits))
    }

    /// The bit.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// What the guard stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    mark: Mark,
    mode: HostMode,
    ports: Vec<u16>,
    guests: Vec<String>,
    others: Vec<String>,
    /// Patterns of guests' interfaces that nftables cannot express, or not without stopping others.
    unguarded: Vec<Pattern>,
}

impl Guard {
    /// The guard of a host with these settings; `None` where they want none.
    #[must_use]
    pub fn new(settings: &Settings) -> Option<Self> {
        let mark = settings.guard?;
        let interfaces = &settings.interfaces;
        let (others, unclear): (Vec<&Pattern>, Vec<&Pattern>) =
            interfaces.ignored.iter().partition(|it| is_prefix(it));
        let (guests, unguarded): (Vec<&Pattern>, Vec<&Pattern>) =
            interfaces.matched.iter().partition(|it| {
                is_prefix(it)
                    && unclear
                        .iter()
                        .all(|other| it.shortest_common(other).is_none())
            });
        let names = |patterns: Vec<&Pattern>| patterns.iter().map(ToString::to_string).collect();
        Some(Self {
            mark,
            mode: settings.host_mode(),
            ports: settings.guarded_ports.clone(),
            guests: names(guests),
            others: names(others),
            unguarded: unguarded.into_iter().cloned().collect(),
        })
    }

    /// The bit by which it knows what was judged.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Patterns of guests' interfaces that it does not cover: nftables knows names and their
    /// beginnings only.
    #[must_use]
    pub fn unguarded(&self) -> &[Pattern] {
        &self.unguarded
    }

    /// Commands that put the guard in place, or give one that is there these rules, in one
    /// transaction.
    #[must_use]
    pub fn commands(&self) -> Nftables<'static> {
        ruleset::commands(self)
    }

    /// Commands that put the guard in place of whatever else has its tables' names, in one
    /// transaction.
    #[must_use]
    pub fn replacement(&self) -> Nftables<'static> {
        ruleset::replacement(self)
    }
}

/// Removes the guard, or with `Removal::DryRun` only looks, and tells which tables it has.
///
/// # Errors
/// [`NftError`]; nothing was removed then. A host without nft has no guard.
pub fn remove(nft: &Nft, removal: Removal) -> Result<Vec<String>, NftError> {
    let mut tables = Vec::new();
    for family in FAMILIES {
        match nft.has_table(family, TABLE) {
            Ok(false) => {}
            Ok(true) => tables.push(format!("{} {TABLE}", family_word(family))),
            Err(error) if error.is_missing() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    match removal {
        Removal::Real if !tables.is_empty() => nft.apply(&removal_commands())?,
        Removal::Real | Removal::DryRun => {}
    }
    Ok(tables)
}

/// Commands that remove the guard, in one transaction, whether it is there or not.
#[must_use]
pub fn removal_commands() -> Nftables<'static> {
    ruleset::removal()
}

/// Whether nftables can compare names with the pattern: one `*`, at its end.
fn is_prefix(pattern: &Pattern) -> bool {
    let text = pattern.as_str();
    let head = text.strip_suffix('*').unwrap_or(text);
    !head.is_empty() && !head.contains(['*', '?'])
}
