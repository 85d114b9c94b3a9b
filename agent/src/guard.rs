//! The guard: an nftables net under the eBPF programs, which needs no agent. Pure.
//!
//! The program on an interface marks the guarded-port packets that it lets pass with one bit. The
//! guard stops those that come from a guest's interface without the bit: the program is not there
//! yet. It goes by the names of interfaces, in `bridge` and `inet` `prerouting`, before anything
//! else (priority -450).

mod marks;
mod ruleset;

use std::fmt;

use gate25_common::decide::HostMode;
use serde_json::Value;

use crate::netfilter::Commands;
use crate::policy::Pattern;
use crate::settings::Settings;

pub use marks::in_ruleset;
pub use ruleset::{COUNTER, TABLES};

/// Of an interface, in bytes.
const LONGEST_NAME: usize = 15;

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
    unguarded: Vec<Unguarded>,
}

/// A pattern of guests' interfaces that the guard does not cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unguarded {
    /// Which.
    pub pattern: Pattern,
    /// The pattern in `interfaces.ignore` that is to blame: without it the guard would stop what is
    /// to be ignored. `None` where the pattern itself is.
    pub ignored: Option<Pattern>,
}

impl fmt::Display for Unguarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pattern, ignored } = self;
        write!(
            f,
            "`{pattern}` is not covered: the guard knows beginnings of names only"
        )?;
        match ignored {
            Some(ignored) => write!(
                f,
                ", so `{ignored}` in `interfaces.ignore` cannot be left out of it"
            ),
            None => Ok(()),
        }
    }
}

impl Guard {
    /// The guard of a host with these settings; `None` where they want none.
    #[must_use]
    pub fn new(settings: &Settings) -> Option<Self> {
        let mark = settings.guard?;
        let interfaces = &settings.interfaces;
        let (others, unclear): (Vec<&Pattern>, Vec<&Pattern>) =
            interfaces.ignored.iter().partition(|it| is_prefix(it));
        let (mut guests, mut unguarded) = (Vec::new(), Vec::new());
        for pattern in &interfaces.matched {
            let mut unclear = unclear.iter();
            let ignored = unclear.find(|it| pattern.shortest_common(it).is_some());
            if is_prefix(pattern) && ignored.is_none() {
                guests.extend(names(pattern));
            } else {
                unguarded.push(Unguarded {
                    pattern: pattern.clone(),
                    ignored: ignored
                        .filter(|_| is_prefix(pattern))
                        .map(|it| (*it).clone()),
                });
            }
        }
        Some(Self {
            mark,
            mode: settings.host_mode(),
            ports: settings.guarded_ports.clone(),
            guests,
            others: others.into_iter().map(ToString::to_string).collect(),
            unguarded,
        })
    }

    /// The bit by which it knows what was judged.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// The same guard on a host that does not only observe.
    #[must_use]
    pub fn refusing(&self) -> Self {
        Self {
            mode: HostMode::Policy,
            ..self.clone()
        }
    }

    /// Patterns of guests' interfaces that it does not cover: nftables knows names and their
    /// beginnings only.
    #[must_use]
    pub fn unguarded(&self) -> &[Unguarded] {
        &self.unguarded
    }

    /// Commands that put the guard in place, or give one that is there these rules, in one
    /// transaction.
    #[must_use]
    pub fn commands(&self) -> Commands {
        ruleset::commands(self)
    }

    /// Commands that put the guard in place of whatever else has its tables' names, in one
    /// transaction.
    #[must_use]
    pub fn replacement(&self) -> Commands {
        ruleset::replacement(self)
    }
}

/// Commands that remove the guard, in one transaction, whether it is there or not.
#[must_use]
pub fn removal() -> Commands {
    ruleset::removal()
}

/// Whether a table of the guard's name, as nft lists it, is somebody else's.
#[must_use]
pub fn is_foreign(listing: &Value) -> bool {
    ruleset::is_foreign(listing)
}

/// What nftables compares names with. A packet with a VLAN tag may be received by a device that is
/// called after the guest's, if that fits: `NAME.1`.
fn names(pattern: &Pattern) -> Vec<String> {
    let name = pattern.to_string();
    if name.ends_with('*') || name.len() + ".1".len() > LONGEST_NAME {
        vec![name]
    } else {
        vec![format!("{name}.*"), name]
    }
}

/// Whether nftables can compare names with the pattern: one `*`, at its end.
fn is_prefix(pattern: &Pattern) -> bool {
    let text = pattern.as_str();
    let head = text.strip_suffix('*').unwrap_or(text);
    !head.is_empty() && !head.contains(['*', '?'])
}
