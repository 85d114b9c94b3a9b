//! The nftables backend: the same decisions as the programs', as rules of one table.
//!
//! `netdev gate25` has a chain on every guest's interface, at ingress, so before bridges, routes
//! and the guard. It tells what a packet is (`parse`), whose it is (maps by interface index), and
//! what the customer's policy makes of it (chains, sets of prefixes). A change is one transaction:
//! all of it, or nothing.
//!
//! What differs from the programs, since nftables cannot do it:
//! - Behind a second VLAN tag, behind LLC and SNAP, and behind an IPv4 authentication header ports
//!   are read, but nothing is looked up: guarded packets are refused for their form, allowed or not.
//! - A third tag, or SNAP behind a tag, is refused whatever it holds.
//! - A guarded packet with any routing header counts as source-routed; only the programs look
//!   whether all of its segments are behind it.
//! - TCP behind IPv6 headers that netfilter does not walk (authentication, mobility, host identity,
//!   shim6) is refused, guarded or not. It walks more of the others than the programs do.
//! - Guarded packets that are longer by their IP header than in truth are refused.
//! - A reset answers packets with IP options and extension headers as well.
//! - Checksums that a guest leaves to the host are not seen: a guest with a driver of its own can
//!   have the host write another port into a packet that has passed.
//! - A large buffer (GSO) counts as one packet; bytes are without VLAN tags and without headers of
//!   further segments; distinct destinations and events are not there.
//! - Exemptions end up to a second early, and those that are still to begin need the agent.
//!   Time in suspend does not count before the agent is told of the resume.
//! - Sockets of containers are not seen: nft knows control groups by their path alone, which the
//!   next one may get. Their veths on the host are covered, and count all that they send.
//! - A start writes the table anew; without any policy of files, everything guarded is refused.

mod customers;
mod expression;
mod figures;
mod names;
mod parse;
mod prefixes;
mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gate25_common::abi::CustomerId;
use nix::errno::Errno;
use nix::net::if_::{if_indextoname, if_nametoindex};
use serde_json::Value;

use crate::clock::{self, ClockError};
use crate::dataplane::{Applied, Attached, CapacityError, Dataplane, MapImage, Site, Step, plan};
use crate::features::Feature;
use crate::kernel::bpf::leftover::Removal;
use crate::kernel::nft::{Nft, NftError};
use crate::kernel::nftables::ruleset::Existing;

pub use figures::Counters;
pub use names::{TABLE, interface_chain};
pub use prefixes::{Addresses, Range, addresses};
pub use ruleset::{Commands, Options, Reject};
pub use ruleset::{changes, concerning, hook, removal, renewals, replacement, unhook};

/// What status and metrics call the way it hooks interfaces.
pub const HOOK: &str = "netdev";
/// Suspended longer than this, exemptions are timed again.
const SLEEP: i64 = 100_000_000;

/// How long after a failure the beginning of an exemption is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NftablesError {
    /// nft could not be run, or refused.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The table's name is taken.
    #[error(
        "table netdev {TABLE} is not gate25's: it has no chain {}N; `nft delete table netdev {TABLE}` makes room",
        names::MARKER
    )]
    Foreign,
    /// This kernel or this nft lacks something.
    #[error("nftables here cannot do what the backend needs (nft 1.0.6 and Linux 5.17 can)")]
    Unsupported(#[source] NftError),
    /// The policy does not fit.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// The clocks cannot be read.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The name of an interface cannot be found out.
    #[error("look up interface {index}")]
    Name {
        /// Its index.
        index: u32,
        /// What the kernel said.
        source: Errno,
    },
    /// What goes to guests is not looked at.
    #[error("backend nftables has no rules for what goes to guests")]
    Replies,
    /// Sockets are not seen.
    #[error(
        "backend nftables cannot judge the sockets of cgroup {}: containers are covered by their veths, or by backend ebpf", path.display()
    )]
    Cgroup {
        /// Where it is.
        path: PathBuf,
    },
}

/// What this backend cannot do, whatever the kernel.
const LACKS: [Feature; 5] = [
    Feature::ContainerSockets,
    Feature::LateChecksums,
    Feature::Redirection,
    Feature::Destinations,
    Feature::HiddenHeaders,
];

/// The nftables backend.
pub struct Nftables {
    nft: Nft,
    options: Options,
    counters: Counters,
    /// As the reconciler wants it, whether it concerns this host or not.
    installed: MapImage,
    /// What the table holds; `None` before it was first written.
    placed: Option<MapImage>,
    hooked: BTreeSet<u32>,
    /// Customers by the next moment at which one of their exemptions begins.
    waiting: BTreeMap<CustomerId, u64>,
    slept: i64,
    /// When exemptions were last looked at.
    tried: Option<Instant>,
    known: Option<Signature>,
}

/// Everything in the table that has a handle: whoever replaces something gets another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature(BTreeSet<String>);

impl Nftables {
    /// Takes stock of what an earlier agent left. It stays until the first [`Dataplane::apply`].
    ///
    /// # Errors
    /// [`NftablesError`]: nft missing or too old, the table's name taken.
    pub fn open(nft: Nft, options: Options) -> Result<Self, NftablesError> {
        let existing = look(&nft)?.map(|(existing, _)| existing);
        let options = possible(&nft, options, existing.as_ref())?;
        let hooked = existing.map(|existing| {
            let chains = existing.chains.iter();
            chains
                .filter_map(|name| names::interface_of(name))
                .collect()
        });
        Ok(Self {
            counters: Counters::new(nft.clone()),
            nft,
            options,
            installed: MapImage::default(),
            placed: None,
            hooked: hooked.unwrap_or_default(),
            waiting: BTreeMap::new(),
            slept: slept()?,
            tried: None,
            known: None,
        })
    }

    /// What it cannot do here.
    #[must_use]
    pub fn lacks(&self) -> Vec<Feature> {
        let resets = match self.options.reject {
            Reject::Reset => None,
            Reject::Drop => Some(Feature::Resets),
        };
        LACKS.into_iter().chain(resets).collect()
    }

    /// The counters, for whoever reports them.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    fn now() -> Result<u64, ClockError> {
        // Negative only before the boot.
        Ok(u64::try_from(clock::boot()?).unwrap_or(0))
    }

    /// Writes the whole table.
    fn rebuild(&mut self, image: &MapImage) -> Result<(), NftablesError> {
        let now = Self::now()?;
        let existing = look(&self.nft)?;
        if existing.is_none() {
            self.counters.lost();
        }
        let existing = existing.map(|(existing, _)| existing).unwrap_or_default();
        let mut commands = replacement(&self.options, &existing, image, now);
        let mut hooked = BTreeSet::new();
        for index in &self.hooked {
            if existing.chains.contains(&names::interface_chain(*index)) {
                hooked.insert(*index);
            } else if let Some(name) = name_of(*index)? {
                commands.append(hook(*index, &name));
                hooked.insert(*index);
            }
        }
        self.nft.apply_json(&commands.to_json())?;
        self.hooked = hooked;
        self.wait(image, now);
        self.remember()
    }

    /// Changes what differs, and times exemptions that begin now, or all of them after a sleep.
    fn update(&mut self, before: &MapImage, image: &MapImage) -> Result<usize, NftablesError> {
        let now = Self::now()?;
        self.tried = Some(Instant::now());
        let slept = slept()?;
        let has_slept = (slept - self.slept).abs() > SLEEP;
        let steps = plan(before, image)?;
        let put = |id: &CustomerId| {
            steps
                .iter()
                .any(|step| matches!(step, Step::PutCustomer(it, _) if it == id))
        };
        let mut commands = changes(&self.options, &steps, (before, image), now);
        let due = image.customers.iter().filter(|(id, policy)| {
            let begins = self.waiting.get(id).is_some_and(|at| *at <= now);
            (begins || has_slept && policy.has_exemptions()) && !put(id)
        });
        let due = due.map(|(id, _)| *id).collect();
        commands.append(renewals(&self.options, image, &due, now));
        if !commands.is_empty() {
            self.nft.apply_json(&commands.to_json())?;
            self.remember()?;
        }
        self.slept = slept;
        self.wait(image, now);
        Ok(steps.iter().map(Step::writes).sum::<usize>() + due.len())
    }

    fn wait(&mut self, image: &MapImage, now: u64) {
        self.waiting = image
            .customers
            .iter()
            .filter_map(|(id, policy)| Some((*id, ruleset::next_start(policy, now)?)))
            .collect();
    }

    fn remember(&mut self) -> Result<(), NftablesError> {
        self.known = look(&self.nft)?.map(|(_, signature)| signature);
        Ok(())
    }
}

/// The options as far as this kernel and this nft go along: without resets at the least.
fn possible(
    nft: &Nft,
    options: Options,
    existing: Option<&Existing>,
) -> Result<Options, NftablesError> {
    let existing = existing.cloned().unwrap_or_default();
    let check = |options: &Options| {
        let probe = replacement(options, &existing, &MapImage::default(), 0);
        nft.check_json(&probe.to_json())
    };
    let silent = Options {
        reject: Reject::Drop,
        ..options.clone()
    };
    match check(&options) {
        Ok(()) => Ok(options),
        Err(NftError::Refused { .. }) => match check(&silent) {
            Ok(()) => Ok(silent),
            Err(error @ NftError::Refused { .. }) => Err(NftablesError::Unsupported(error)),
            Err(error @ (NftError::Run { .. } | NftError::Json { .. })) => Err(error.into()),
        },
        Err(error @ (NftError::Run { .. } | NftError::Json { .. })) => Err(error.into()),
    }
}

impl Dataplane for Nftables {
    type Error = NftablesError;

    fn installed(&self) -> &MapImage {
        &self.installed
    }

    fn apply(&mut self, wanted: &MapImage) -> Result<Applied, NftablesError> {
        let image = concerning(wanted);
        let writes = match self.placed.take() {
            None => {
                plan(&MapImage::default(), &image)?;
                self.rebuild(&image)?;
                plan(&self.installed, wanted)?.len().max(1)
            }
            Some(before) => match self.update(&before, &image) {
                Ok(writes) => writes,
                Err(error) => {
                    self.placed = Some(before);
                    return Err(error);
                }
            },
        };
        self.placed = Some(image);
        self.installed = wanted.clone();
        Ok(Applied { writes })
    }

    fn adopt(&mut self) -> Result<usize, NftablesError> {
        Ok(0)
    }

    fn covered(&self) -> BTreeSet<Site> {
        self.hooked.iter().copied().map(Site::Interface).collect()
    }

    fn attach_interface(&mut self, index: u32) -> Result<Attached, NftablesError> {
        let Some(name) = name_of(index)? else {
            return Ok(Attached::Vanished);
        };
        if let Err(error) = self.nft.apply_json(&hook(index, &name).to_json()) {
            // Gone, or called otherwise, meanwhile?
            return match name_of(index)? {
                Some(now) if now == name => Err(error.into()),
                Some(_) | None => Ok(Attached::Vanished),
            };
        }
        self.remember()?;
        // Hooked by name: another one may have had it.
        if index_of(&name) != Some(index) {
            self.nft.apply_json(&unhook(index).to_json())?;
            self.remember()?;
            return Ok(Attached::Vanished);
        }
        self.hooked.insert(index);
        Ok(Attached::Yes)
    }

    fn replies(&self) -> Result<(), &'static str> {
        Err("backend nftables does not look at what goes to guests")
    }

    fn attach_replies(&mut self, _index: u32) -> Result<Attached, NftablesError> {
        Err(NftablesError::Replies)
    }

    fn attach_root(&mut self, _id: u64, directory: &Path) -> Result<Attached, NftablesError> {
        Err(NftablesError::Cgroup {
            path: directory.to_owned(),
        })
    }

    fn detach(&mut self, site: Site) -> Result<(), NftablesError> {
        match site {
            Site::Root(_) | Site::Replies(_) => {}
            Site::Interface(index) => {
                self.nft.apply_json(&unhook(index).to_json())?;
                self.hooked.remove(&index);
                self.remember()?;
            }
        }
        Ok(())
    }

    fn displaced(&mut self, among: &BTreeSet<Site>) -> Result<BTreeSet<Site>, NftablesError> {
        let chains = self.nft.list_text("list chains", &["chains", "netdev"])?;
        let mut displaced = BTreeSet::new();
        for site in among {
            if let Site::Interface(index) = site
                && self.hooked.contains(index)
                && !is_hooked(&chains, *index, name_of(*index)?)
            {
                displaced.insert(*site);
            }
        }
        Ok(displaced)
    }

    fn due(&self) -> Option<Instant> {
        let begins = *self.waiting.values().min()?;
        let wait = begins.saturating_sub(Self::now().ok()?);
        let at = Instant::now().checked_add(Duration::from_nanos(wait))?;
        match self.tried.and_then(|tried| tried.checked_add(PAUSE)) {
            // What has failed is not tried without a pause.
            Some(again) if wait == 0 => Some(again),
            Some(_) | None => Some(at),
        }
    }

    fn repin(&mut self) -> Result<usize, NftablesError> {
        let Some(image) = self.placed.clone() else {
            return Ok(0);
        };
        let there = look(&self.nft)?.map(|(_, signature)| signature);
        // It may have gone before it was looked at.
        if there.is_some() && there == self.known {
            return Ok(0);
        }
        self.rebuild(&image)?;
        Ok(1)
    }
}

/// Whether an agent's table is there, and with `Removal::Real` removes it.
///
/// # Errors
/// [`NftablesError`]; nothing was removed then. A host without nft has no table.
pub fn remove(nft: &Nft, removal: Removal) -> Result<Vec<String>, NftablesError> {
    match look(nft) {
        Ok(None) => Ok(Vec::new()),
        Ok(Some(_)) => {
            match removal {
                Removal::Real => nft.apply_json(&ruleset::removal().to_json())?,
                Removal::DryRun => {}
            }
            Ok(vec![format!("netdev {TABLE}")])
        }
        Err(NftablesError::Nft(error)) if error.is_missing() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Interfaces whose chain in our table calls the rules for guests.
///
/// # Errors
/// [`NftError`].
pub fn chained(nft: &Nft) -> Result<BTreeSet<u32>, NftError> {
    let listed = nft.list_json("list a table", &["table", "netdev", TABLE])?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let rules = objects.filter_map(|object| object.get("rule"));
    let calling = rules.filter(|rule| {
        let statements = rule["expr"].as_array().into_iter().flatten();
        statements
            .filter_map(|it| it.get("jump").or(it.get("goto")))
            .any(|it| it["target"] == names::GUEST)
    });
    Ok(calling
        .filter_map(|rule| names::interface_of(rule["chain"].as_str()?))
        .collect())
}

/// What is in our table; `None` without one.
fn look(nft: &Nft) -> Result<Option<(Existing, Signature)>, NftablesError> {
    let family = nftables::types::NfFamily::NetDev;
    if !nft.has_table(family, TABLE)? {
        return Ok(None);
    }
    let listed = match nft.list_json("list a table", &["table", "netdev", TABLE]) {
        Ok(listed) => listed,
        Err(error) if nft.has_table(family, TABLE)? => return Err(error.into()),
        // Gone since it was seen.
        Err(_) => return Ok(None),
    };
    let (existing, signature) = read(&listed);
    let is_ours = |chain: &String| chain.starts_with(names::MARKER);
    if existing.chains.iter().any(is_ours) {
        Ok(Some((existing, signature)))
    } else {
        Err(NftablesError::Foreign)
    }
}

fn read(listed: &Value) -> (Existing, Signature) {
    let mut existing = Existing::default();
    let mut handles = BTreeSet::new();
    let objects = listed["nftables"].as_array().into_iter().flatten();
    for (kind, object) in objects.filter_map(Value::as_object).flatten() {
        let names = match kind.as_str() {
            "chain" => Some(&mut existing.chains),
            "set" => Some(&mut existing.sets),
            "map" => Some(&mut existing.maps),
            _ => None,
        };
        if let (Some(names), Some(name)) = (names, object["name"].as_str()) {
            names.insert(name.to_owned());
        }
        // An anonymous set's handle is its rule's matter.
        if object["handle"].is_number() {
            let place = &object[if kind == "rule" { "chain" } else { "name" }];
            handles.insert(format!("{kind} {place} {}", object["handle"]));
        }
    }
    (existing, Signature(handles))
}

/// Whether the listing has the chain of `index` on an interface of this name.
fn is_hooked(listing: &str, index: u32, name: Option<String>) -> bool {
    let header = format!("chain {} {{", names::interface_chain(index));
    let mut lines = listing.lines().map(str::trim);
    let Some(name) = name else {
        return false;
    };
    lines.any(|line| line == header)
        && lines
            .next()
            .is_some_and(|line| line.contains(&format!("\"{name}\"")))
}

fn name_of(index: u32) -> Result<Option<String>, NftablesError> {
    match if_indextoname(index) {
        Ok(name) => Ok(Some(name.to_string_lossy().into_owned())),
        Err(Errno::ENXIO | Errno::ENODEV) => Ok(None),
        Err(source) => Err(NftablesError::Name { index, source }),
    }
}

fn index_of(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    if_nametoindex(name.as_c_str()).ok()
}

/// Nanoseconds since boot that were spent suspended: the time-outs of elements do not count them.
fn slept() -> Result<i64, ClockError> {
    Ok(clock::boot()? - clock::monotonic()?)
}
