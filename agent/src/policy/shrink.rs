//! Whether a set has lost so much that it may be a mistake: an empty checkout, a directory that was
//! not mounted. Pure.

use std::fmt;

use jiff::Timestamp;

use super::{Destinations, Exemption, Policy};

/// How much a set says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Customers.
    pub customers: u64,
    /// Exemptions that hold at the moment of the count.
    pub active_exemptions: u64,
    /// Prefixes written in allowlists and in exemptions that have not expired.
    pub prefixes: u64,
}

impl Totals {
    /// Counts `policy` as of `now`. Two sets that are compared are counted at the same moment: what
    /// has expired then counts in neither, so that the passing of time is no loss, and neither is
    /// the removal of exemptions that have ended.
    #[must_use]
    pub fn of(policy: &Policy, now: Timestamp) -> Self {
        let unexpired = || policy.exemptions.values().filter(|one| now < one.expires);
        let active = |exemption: &&Exemption| exemption.starts.is_none_or(|starts| starts <= now);
        let listed = policy.allowlists.values().map(|list| list.to.len());
        let in_place = unexpired().map(|exemption| match &exemption.to {
            Destinations::Any => 0,
            Destinations::Listed {
                prefixes,
                allowlists: _,
            } => prefixes.len(),
        });
        Self {
            customers: policy.customers.len() as u64,
            active_exemptions: unexpired().filter(active).count() as u64,
            prefixes: listed.chain(in_place).map(|count| count as u64).sum(),
        }
    }

    fn by_kind(self) -> [(Kind, u64); 3] {
        let Self {
            customers,
            active_exemptions,
            prefixes,
        } = self;
        [
            (Kind::Customers, customers),
            (Kind::ActiveExemptions, active_exemptions),
            (Kind::Prefixes, prefixes),
        ]
    }
}

/// How much a set may lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest loss of any kind, in percent of what was there; from 100 on nothing is refused.
    pub max_percent: u8,
    /// A kind with fewer than this before is not judged.
    pub min_objects: u32,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Totals::customers`].
    Customers,
    /// [`Totals::active_exemptions`].
    ActiveExemptions,
    /// [`Totals::prefixes`].
    Prefixes,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Customers => "customers",
            Self::ActiveExemptions => "active exemptions",
            Self::Prefixes => "prefixes",
        })
    }
}

/// A kind that has lost too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Which.
    pub kind: Kind,
    /// How many there were.
    pub before: u64,
    /// How many there are.
    pub after: u64,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            before,
            after,
        } = self;
        write!(f, "{kind} from {before} to {after}")
    }
}

/// A set that has lost too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policy set loses more than {max_percent} % of what was there: {}; if that is meant, \
     `gate25 reload --accept-shrink` puts it in force", listed(.losses)
)]
pub struct Shrunk {
    /// Every kind that has lost too much; at least one.
    pub losses: Vec<Loss>,
    /// The limit that they exceed, in percent.
    pub max_percent: u8,
}

fn listed(losses: &[Loss]) -> String {
    let losses: Vec<String> = losses.iter().map(ToString::to_string).collect();
    losses.join(", ")
}

/// Compares the set that is to be put in force with the one that was.
///
/// # Errors
/// [`Shrunk`] if a kind loses more than `limits` grant.
pub fn check(before: Totals, after: Totals, limits: Limits) -> Result<(), Shrunk> {
    let Limits {
        max_percent,
        min_objects,
    } = limits;
    let losses: Vec<Loss> = before
        .by_kind()
        .into_iter()
        .zip(after.by_kind())
        .map(|((kind, before), (_, after))| Loss {
            kind,
            before,
            after,
        })
        .filter(|loss| loss.before >= u64::from(min_objects) && exceeds(*loss, max_percent))
        .collect();
    if losses.is_empty() {
        Ok(())
    } else {
        Err(Shrunk {
            losses,
            max_percent,
        })
    }
}

/// In whole numbers, so that a loss of exactly the limit is not one too many.
fn exceeds(loss: Loss, max_percent: u8) -> bool {
    let lost = u128::from(loss.before.saturating_sub(loss.after));
    lost * 100 > u128::from(loss.before) * u128::from(max_percent)
}
