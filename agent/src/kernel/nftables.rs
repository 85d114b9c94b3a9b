//! The nftables backend: the same decisions as the programs', as rules of one table.
//!
//! `netdev gate25` has a chain on every guest's interface, at ingress, so before bridges, routes
//! and the guard. It tells what a packet is (`parse`), whose it is (maps by interface index), and
//! what the customer's policy makes of it (chains, sets of prefixes). A change is one transaction:
//! all of it, or nothing.
//!
//! What differs from the programs is in ARCHITECTURE.md, "The nftables backend".

mod customers;
mod figures;
mod names;
mod parse;
mod prefixes;
mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gate25_common::abi::{CustomerId, CustomerPolicy};
use gate25_common::bypass::Bypass;
use nix::errno::Errno;
use nix::net::if_::{if_indextoname, if_nametoindex};

use crate::clock::{self, ClockError};
use crate::dataplane::{
    Applied, Attached, BypassError, CapacityError, Dataplane, Lost, MapImage, Site, Step, plan,
};
use crate::features::Feature;
use crate::kernel::netfilter::{BaseChain, ChainsError, base_chains, has_none_of};
use crate::kernel::nft::{Nft, NftError};
use crate::kernel::nftables::ruleset::Existing;
use crate::kernel::removal::Removal;
use crate::netfilter::{Commands, Signature};

pub use figures::Counters;
pub use names::{TABLE, interface_chain};
pub use prefixes::{Addresses, Range, addresses};
pub use ruleset::{Options, Reject, Times};
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
        "table {TABLE} is not gate25's: it has no chain {}N; `nft delete table {TABLE}` makes room",
        names::MARKER
    )]
    Foreign,
    /// This kernel or this nft lacks something.
    #[error("nftables here cannot do what the backend needs (nft 1.0.6 and Linux 5.17 can)")]
    Unsupported(#[source] NftError),
    /// What is hooked to interfaces cannot be looked at.
    #[error(transparent)]
    Chains(#[from] ChainsError),
    /// The policy does not fit.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// The clocks cannot be read.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The clock of the boot says that there was none yet.
    #[error("the clock that counts from the boot is before it")]
    BeforeBoot,
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

impl NftablesError {
    /// Whether it is certain that nothing was changed.
    fn left_all_as_it_was(&self) -> bool {
        match self {
            Self::Nft(error) | Self::Unsupported(error) => error.left_all_as_it_was(),
            Self::Foreign
            | Self::Chains(_)
            | Self::Capacity(_)
            | Self::Clock(_)
            | Self::BeforeBoot
            | Self::Name { .. }
            | Self::Replies
            | Self::Cgroup { .. } => true,
        }
    }
}

/// nft is done within a second, unless the change is a large one or the machine is busy.
const ALLOWANCE: u64 = 1_000_000_000;

/// What this backend cannot do, whatever the kernel.
const LACKS: [Feature; 6] = [
    Feature::ContainerSockets,
    Feature::LateChecksums,
    Feature::Redirection,
    Feature::ReturnPackets,
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
    /// How long nft may take for the next change, in nanoseconds.
    allowance: u64,
    /// When exemptions were last looked at.
    tried: Option<Instant>,
    /// The table as it was written.
    known: Signature,
}

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
            counters: Counters::new(),
            nft,
            options,
            installed: MapImage::default(),
            placed: None,
            hooked: hooked.unwrap_or_default(),
            waiting: BTreeMap::new(),
            slept: slept()?,
            allowance: ALLOWANCE,
            tried: None,
            known: Signature::default(),
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

    fn now() -> Result<u64, NftablesError> {
        u64::try_from(clock::boot()?).map_err(|_negative| NftablesError::BeforeBoot)
    }

    fn times(&self) -> Result<Times, NftablesError> {
        let now = Self::now()?;
        let done = now.saturating_add(self.allowance);
        Ok(Times { now, done })
    }

    /// Writes the whole table.
    fn rebuild(&mut self, image: &MapImage) -> Result<(), NftablesError> {
        let found = look(&self.nft)?;
        if found.is_none() {
            self.counters.lost();
        }
        let (existing, there) = found.unwrap_or_default();
        let times = self.times()?;
        let mut commands = replacement(&self.options, &existing, image, times);
        let mut hooked = BTreeSet::new();
        for index in &self.hooked {
            if existing.chains.contains(&names::interface_chain(*index)) {
                hooked.insert(*index);
            } else if let Some(name) = name_of(*index)? {
                commands.append(hook(*index, &name));
                hooked.insert(*index);
            }
        }
        let told = self.nft.apply_and_tell(&commands)?;
        let mut known = there;
        known.follow(&told);
        self.known = known;
        self.hooked = hooked;
        self.wait(image, times, |_all| true);
        Ok(())
    }

    /// Changes what differs, and times exemptions that begin now, or all of them after a sleep.
    fn update(&mut self, before: &MapImage, image: &MapImage) -> Result<usize, NftablesError> {
        self.tried = Some(Instant::now());
        let times = self.times()?;
        let slept = slept()?;
        let has_slept = (slept - self.slept).abs() > SLEEP;
        let steps = plan(before, image)?;
        let put = |id: &CustomerId| {
            steps
                .iter()
                .any(|step| matches!(step, Step::PutCustomer(it, _) if it == id))
        };
        let mut commands = changes(&self.options, &steps, (before, image), times);
        let due = image.customers.iter().filter(|(id, policy)| {
            let begins = self.waiting.get(id).is_some_and(|at| *at <= times.now);
            (begins || has_slept && policy.has_exemptions()) && !put(id)
        });
        let due: BTreeSet<_> = due.map(|(id, _)| id).collect();
        commands.append(renewals(&self.options, image, &due, times));
        if !commands.is_empty() {
            self.carry_out(&commands)?;
        }
        self.slept = slept;
        self.wait(image, times, |id| due.contains(id) || put(id));
        Ok(steps.iter().map(Step::writes).sum::<usize>() + due.len())
    }

    /// Has the commands carried out, and knows the table afterwards without a look: nobody's change
    /// in between is taken for ours, and no look that fails undoes what the kernel has.
    fn carry_out(&mut self, commands: &Commands) -> Result<(), NftError> {
        let told = self.nft.apply_and_tell(commands)?;
        self.known.follow(&told);
        Ok(())
    }

    /// Notes when exemptions are to be looked at again, after a change of these customers: when one
    /// begins, and at once where the change took longer than was allowed for, as it holds for longer
    /// than it may.
    fn wait(&mut self, image: &MapImage, times: Times, timed: impl Fn(&CustomerId) -> bool) {
        let next = |(id, policy): (CustomerId, CustomerPolicy)| {
            Some((id, ruleset::next_start(&policy, times.now)?))
        };
        self.waiting = image.customers.iter().filter_map(next).collect();
        // Where the clock cannot be read, it is taken for late.
        if Self::now().is_ok_and(|now| now <= times.done) {
            self.allowance = ALLOWANCE;
            return;
        }
        self.allowance = self.allowance.saturating_mul(2);
        let late = image
            .customers
            .iter()
            .filter(|(id, policy)| timed(id) && policy.has_exemptions());
        self.waiting.extend(late.map(|(id, _)| (id, times.now)));
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
        let probe = replacement(options, &existing, &MapImage::default(), Times::default());
        nft.check(&probe)
    };
    let silent = Options {
        reject: Reject::Drop,
        ..options.clone()
    };
    let possible = match check(&options) {
        Err(NftError::Refused { .. }) => check(&silent).map(|()| silent),
        checked => checked.map(|()| options),
    };
    possible.map_err(|error| match error {
        NftError::Refused { .. } => NftablesError::Unsupported(error),
        NftError::Run { .. }
        | NftError::Broken { .. }
        | NftError::Slow { .. }
        | NftError::Json { .. } => error.into(),
    })
}

impl Dataplane for Nftables {
    type Error = NftablesError;

    const LOST: Lost = Lost::AtOnce;

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
                    // What may be written or not is written anew.
                    self.placed = error.left_all_as_it_was().then_some(before);
                    return Err(error);
                }
            },
        };
        self.placed = Some(image);
        self.installed = wanted.clone();
        Ok(Applied { writes })
    }

    fn bypass(&mut self, bypass: &Bypass) -> Result<(), BypassError<NftablesError>> {
        if bypass.has_end() {
            return Err(BypassError::Unsupported);
        }
        // There is never one to end.
        Ok(())
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
        if let Err(error) = self.carry_out(&hook(index, &name)) {
            // Gone, or called otherwise, meanwhile?
            return match name_of(index)? {
                Some(now) if now == name => Err(error.into()),
                Some(_) | None => Ok(Attached::Vanished),
            };
        }
        self.hooked.insert(index);
        // Hooked by name: another one may have had it.
        if index_of(&name) != Some(index) {
            self.detach(Site::Interface(index))?;
            return Ok(Attached::Vanished);
        }
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
                self.carry_out(&unhook(index))?;
                self.hooked.remove(&index);
            }
        }
        Ok(())
    }

    fn displaced(&mut self, among: &BTreeSet<Site>) -> Result<BTreeSet<Site>, NftablesError> {
        let chains = base_chains()?;
        let mut displaced = BTreeSet::new();
        for site in among {
            if let Site::Interface(index) = site
                && self.hooked.contains(index)
                && !name_of(*index)?.is_some_and(|name| is_chained(&chains, *index, &name))
            {
                displaced.insert(*site);
            }
        }
        Ok(displaced)
    }

    fn due(&self) -> Option<Instant> {
        let begins = *self.waiting.values().min()?;
        // Where the clock cannot be read, applying tells.
        let wait = Self::now().map_or(0, |now| begins.saturating_sub(now));
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
        // It may have gone before it was looked at.
        if let Some((_, there)) = look(&self.nft)?
            && self.known.is_intact(&there)
        {
            self.known.learn(&there);
            return Ok(0);
        }
        self.rebuild(&image)?;
        Ok(1)
    }
}

/// Whether an agent's table is there, and with `Removal::Real` removes it.
///
/// # Errors
/// [`NftablesError`]; nothing was removed then. That nft is missing is none where the kernel has no table
/// either.
pub fn remove(nft: &Nft, removal: Removal) -> Result<Vec<String>, NftablesError> {
    match look(nft) {
        Ok(None) => Ok(Vec::new()),
        Ok(Some(_)) => {
            match removal {
                Removal::Real => nft.apply(&ruleset::removal())?,
                Removal::DryRun => {}
            }
            Ok(vec![TABLE.to_string()])
        }
        Err(NftablesError::Nft(error)) if error.is_missing() && has_none_of(&[TABLE]) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Interfaces whose chain in our table calls the rules for guests.
///
/// # Errors
/// [`NftError`].
pub fn chained(nft: &Nft) -> Result<BTreeSet<u32>, NftError> {
    let Some(listed) = nft.table(TABLE)? else {
        return Ok(BTreeSet::new());
    };
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
    let Some(listing) = nft.table(TABLE)? else {
        return Ok(None);
    };
    let existing = Existing::listed(&listing);
    if existing.is_ours() {
        Ok(Some((existing, Signature::listed([&listing]))))
    } else {
        Err(NftablesError::Foreign)
    }
}

/// Whether our chain of `index` is on an interface of this name.
fn is_chained(chains: &[BaseChain], index: u32, name: &str) -> bool {
    let chain = names::interface_chain(index);
    let mut ours = chains
        .iter()
        .filter(|it| it.table == TABLE.name && it.name == chain);
    ours.any(|it| it.is_at_ingress_of(name))
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
