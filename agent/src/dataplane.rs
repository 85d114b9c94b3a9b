//! What an enforcement backend must do, and the pure difference between two states of it.

mod customers;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25_common::abi::{
    Blocked, CustomerId, CustomerPolicy, InterfaceOwner, MAX_CUSTOMERS, MAX_PREFIXES, SetId,
};

use gate25_common::address::Family;
use gate25_common::bypass::Bypass;
use gate25_common::redirect::Target;

use crate::compile::{Image, Prefix};

pub use customers::Customers;

/// Prefixes by set.
pub type Sets = BTreeMap<SetId, Arc<[Prefix]>>;

/// The contents of a backend's tables. A clone shares what the policy makes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapImage {
    /// Policies by customer.
    pub customers: Customers,
    /// Prefixes by set.
    pub sets: Arc<Sets>,
    /// Owners by interface index.
    pub interfaces: BTreeMap<u32, InterfaceOwner>,
    /// Owners by control group's id.
    pub cgroups: BTreeMap<u64, CustomerId>,
}

/// Why a state does not fit into the tables.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CapacityError {
    /// Too many customers.
    #[error("{0} customers do not fit into the kernel's table of {MAX_CUSTOMERS}")]
    Customers(usize),
    /// Too many prefixes.
    #[error("{0} prefixes, old and new ones during the change, exceed the kernel's {MAX_PREFIXES}")]
    Prefixes(usize),
    /// Too many interfaces.
    #[error("{0} interfaces do not fit into the kernel's table of {MAX_CUSTOMERS}")]
    Interfaces(usize),
    /// Too many control groups.
    #[error("{0} control groups do not fit into the kernel's table of {MAX_CUSTOMERS}")]
    Cgroups(usize),
    /// A customer with more exemptions than its entry holds.
    #[error("customer {0} has more exemptions than the kernel's table holds")]
    Exemptions(String),
}

impl MapImage {
    /// The tables for `image` with times moved to the boot clock; `notice` is where the notice is
    /// told.
    ///
    /// # Errors
    ///
    /// [`CapacityError::Exemptions`].
    pub fn new(
        image: &Image,
        wall_minus_boot: i64,
        notice: &[SocketAddr],
        interfaces: BTreeMap<u32, InterfaceOwner>,
        cgroups: BTreeMap<u64, CustomerId>,
    ) -> Result<Self, CapacityError> {
        let customers = image
            .customers
            .iter()
            .map(|(id, customer)| {
                let policy = customer
                    .to_kernel(wall_minus_boot, notice)
                    .ok_or_else(|| CapacityError::Exemptions(customer.id.clone()))?;
                let [profile, own] =
                    [customer.profile_set, customer.customer_set].map(|set| image.filter(set));
                Ok((*id, policy.with_filters(profile, own)))
            })
            .collect::<Result<_, _>>()?;
        let sets: Sets = image
            .sets
            .iter()
            .map(|(id, set)| (*id, Arc::clone(&set.prefixes)))
            .collect();
        Ok(Self {
            customers,
            sets: Arc::new(sets),
            interfaces,
            cgroups,
        })
    }
}

impl MapImage {
    /// Where connections of customers are led.
    pub fn targets(&self) -> BTreeSet<Led> {
        let policies = self.customers.leading();
        policies
            .flat_map(|policy| Family::ALL.map(|family| Led::of(&policy, family)))
            .flatten()
            .collect()
    }

    /// Takes away targets for which `usable` does not hold: what would go there is rejected.
    pub fn keep_targets(&mut self, usable: impl Fn(&Led) -> bool) {
        self.customers.change_leading(|policy| {
            let [v4, v6] = Family::ALL.map(|family| {
                let target = policy.target(family).copied();
                let is_usable = Led::of(&policy, family).is_some_and(|led| usable(&led));
                target.filter(|_| is_usable).unwrap_or(Target::NONE)
            });
            policy.with_targets(v4, v6)
        });
    }

    /// Leaves customers as they are in `installed` where only times differ, and by no more than
    /// `tolerance`: two samples of the clocks' distance are never the same.
    pub fn keep_times(&mut self, installed: &Self, tolerance: Duration) {
        let tolerance = u64::try_from(tolerance.as_nanos()).unwrap_or(u64::MAX);
        self.customers.keep(&installed.customers, |policy, known| {
            policy.agrees(known, tolerance)
        });
    }
}

/// Where connections of a customer are led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Led {
    /// To this relay.
    Relay(SocketAddr),
    /// To this host's notice.
    Notice(SocketAddr),
}

impl Led {
    /// Where a customer with this policy is led over `family`.
    fn of(policy: &CustomerPolicy, family: Family) -> Option<Self> {
        let target = policy.target(family)?;
        let port = u16::from_be_bytes(target.port());
        let address = SocketAddr::new(IpAddr::from(target.address()), port);
        match policy.blocked()? {
            Blocked::Redirect => Some(Self::Relay(address)),
            Blocked::Notice => Some(Self::Notice(address)),
            // Nobody is: the target is left from before.
            Blocked::Reject | Blocked::Drop => None,
        }
    }
}

/// One write into the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Fills a set that nobody refers to yet.
    AddSet(SetId, Arc<[Prefix]>),
    /// Replaces a customer's policy as a whole.
    PutCustomer(CustomerId, Box<CustomerPolicy>),
    /// Gives an interface its owner.
    PutInterface(u32, InterfaceOwner),
    /// Forgets an interface.
    RemoveInterface(u32),
    /// Gives a control group its owner.
    PutCgroup(u64, CustomerId),
    /// Forgets a control group.
    RemoveCgroup(u64),
    /// Forgets a customer that owns nothing any more.
    RemoveCustomer(CustomerId),
    /// Empties a set that nobody refers to any more.
    RemoveSet(SetId, Arc<[Prefix]>),
}

impl Step {
    /// How many entries of the kernel's tables it writes.
    pub fn writes(&self) -> usize {
        match self {
            Self::AddSet(_, prefixes) | Self::RemoveSet(_, prefixes) => prefixes.len(),
            Self::PutCustomer(..)
            | Self::PutInterface(..)
            | Self::RemoveInterface(_)
            | Self::PutCgroup(..)
            | Self::RemoveCgroup(_)
            | Self::RemoveCustomer(_) => 1,
        }
    }

    /// The customer that becomes an owner by it.
    pub fn owner(&self) -> Option<CustomerId> {
        match self {
            Self::PutInterface(_, owner) => Some(owner.customer()),
            Self::PutCgroup(_, customer) => Some(*customer),
            Self::AddSet(..)
            | Self::PutCustomer(..)
            | Self::RemoveInterface(_)
            | Self::RemoveCgroup(_)
            | Self::RemoveCustomer(_)
            | Self::RemoveSet(..) => None,
        }
    }

    /// Changes `image` as the write changes the kernel.
    pub fn apply_to(&self, image: &mut MapImage) {
        match self {
            Self::AddSet(id, prefixes) => {
                Arc::make_mut(&mut image.sets).insert(*id, Arc::clone(prefixes));
            }
            Self::PutCustomer(id, policy) => image.customers.insert(*id, policy),
            Self::PutInterface(index, owner) => {
                image.interfaces.insert(*index, *owner);
            }
            Self::RemoveInterface(index) => {
                image.interfaces.remove(index);
            }
            Self::PutCgroup(id, customer) => {
                image.cgroups.insert(*id, *customer);
            }
            Self::RemoveCgroup(id) => {
                image.cgroups.remove(id);
            }
            Self::RemoveCustomer(id) => image.customers.remove(id),
            Self::RemoveSet(id, _) => {
                Arc::make_mut(&mut image.sets).remove(id);
            }
        }
    }
}

/// The writes that lead from `current` to `wanted`, in an order in which every customer changes
/// at once and nothing ever refers to what is not there.
///
/// # Errors
///
/// [`CapacityError`] if the tables could not hold it, before anything is written.
pub fn plan(current: &MapImage, wanted: &MapImage) -> Result<Vec<Step>, CapacityError> {
    check_capacity(current, wanted)?;
    let mut steps = Vec::new();
    let is_same_sets = Arc::ptr_eq(&current.sets, &wanted.sets);
    if !is_same_sets {
        add_sets(&current.sets, &wanted.sets, &mut steps);
    }
    let differing = wanted.customers.differing_from(&current.customers);
    steps.extend(differing.map(|(id, policy)| Step::PutCustomer(id, Box::new(policy))));
    owners(
        (&current.interfaces, &wanted.interfaces),
        Step::PutInterface,
        Step::RemoveInterface,
        &mut steps,
    );
    owners(
        (&current.cgroups, &wanted.cgroups),
        Step::PutCgroup,
        Step::RemoveCgroup,
        &mut steps,
    );
    let gone = current.customers.missing_in(&wanted.customers);
    steps.extend(gone.map(Step::RemoveCustomer));
    if !is_same_sets {
        let gone = current
            .sets
            .iter()
            .filter(|(id, _)| !wanted.sets.contains_key(id));
        steps.extend(gone.map(|(id, prefixes)| Step::RemoveSet(*id, Arc::clone(prefixes))));
    }
    Ok(steps)
}

/// The writes that fill sets.
fn add_sets(current: &Sets, wanted: &Sets, steps: &mut Vec<Step>) {
    for (id, prefixes) in wanted {
        match current.get(id) {
            Some(known) if Arc::ptr_eq(known, prefixes) || known == prefixes => {}
            // Named by its contents, so a set that differs was never filled to the end.
            Some(known) => {
                steps.push(Step::RemoveSet(*id, Arc::clone(known)));
                steps.push(Step::AddSet(*id, Arc::clone(prefixes)));
            }
            None => steps.push(Step::AddSet(*id, Arc::clone(prefixes))),
        }
    }
}

/// The writes that change who owns what.
fn owners<K: Ord + Copy, V: PartialEq + Copy>(
    (current, wanted): (&BTreeMap<K, V>, &BTreeMap<K, V>),
    put: impl Fn(K, V) -> Step,
    remove: impl Fn(K) -> Step,
    steps: &mut Vec<Step>,
) {
    for (key, owner) in wanted {
        if current.get(key) != Some(owner) {
            steps.push(put(*key, *owner));
        }
    }
    let gone = current.keys().filter(|key| !wanted.contains_key(key));
    steps.extend(gone.map(|key| remove(*key)));
}

fn check_capacity(current: &MapImage, wanted: &MapImage) -> Result<(), CapacityError> {
    let new = wanted.customers.missing_in(&current.customers);
    let customers = current.customers.len() + new.count();
    if customers > MAX_CUSTOMERS {
        return Err(CapacityError::Customers(customers));
    }
    let interfaces = both(&current.interfaces, &wanted.interfaces);
    if interfaces > MAX_CUSTOMERS {
        return Err(CapacityError::Interfaces(interfaces));
    }
    let cgroups = both(&current.cgroups, &wanted.cgroups);
    if cgroups > MAX_CUSTOMERS {
        return Err(CapacityError::Cgroups(cgroups));
    }
    if Arc::ptr_eq(&current.sets, &wanted.sets) {
        return Ok(());
    }
    let size = |sets: &Sets| sets.values().map(|s| s.len()).sum::<usize>();
    let new = wanted
        .sets
        .iter()
        .filter(|(id, _)| !current.sets.contains_key(id));
    let prefixes = size(&current.sets) + new.map(|(_, prefixes)| prefixes.len()).sum::<usize>();
    if prefixes > MAX_PREFIXES {
        return Err(CapacityError::Prefixes(prefixes));
    }
    Ok(())
}

fn both<K: Ord, V>(current: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> usize {
    current.len()
        + wanted
            .keys()
            .filter(|key| !current.contains_key(key))
            .count()
}

/// Something that programs are attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// The control group of this number, for all below it.
    Root(u64),
    /// The interface of this index.
    Interface(u32),
    /// The same interface, for what goes to the guest: replies to redirected connections, and what
    /// comes back from guarded ports.
    Replies(u32),
}

/// What becomes of packets that come back to guests from guarded ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Returns {
    /// They reach them.
    #[default]
    Open,
    /// A guest hears only from where it may send to.
    Judged,
}

/// How an attachment went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attached {
    /// The programs judge the site's packets.
    Yes,
    /// The site went away meanwhile.
    Vanished,
}

/// What a change of the tables came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Entries of the kernel's tables that were written.
    pub writes: usize,
}

/// Why this host is not bypassed.
#[derive(Debug, thiserror::Error)]
pub enum BypassError<E: Error + 'static> {
    /// The backend has nothing that would end it without the agent.
    #[error(
        "backend nftables cannot: nothing would end it without the agent. Set `enforcement: observe` in the \
         settings and restart the agent, and set it back afterwards"
    )]
    Unsupported,
    /// The backend failed.
    #[error("the kernel was not told")]
    Backend(#[source] E),
}

/// When nothing is refused any more because [`Dataplane::repin`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Once the agent has ended.
    WithTheAgent,
    /// From then on.
    AtOnce,
}

/// An enforcement backend. Attachments and tables outlive it: dropping it opens nothing.
pub trait Dataplane {
    /// Why an operation failed.
    type Error: Error + Send + Sync + 'static;

    /// What somebody else's change that cannot be put right comes to.
    const LOST: Lost;

    /// What the tables hold.
    fn installed(&self) -> &MapImage;

    /// Leads the tables to `wanted`. After an error they are what they were before.
    ///
    /// # Errors
    ///
    /// If the tables cannot hold it or the kernel refuses a write.
    fn apply(&mut self, wanted: &MapImage) -> Result<Applied, Self::Error>;

    /// Gives what an earlier agent attached the programs of this one, now that the tables are
    /// filled, and returns how many attachments had others. Once is enough.
    fn adopt(&mut self) -> Result<usize, Self::Error>;

    /// The sites that are covered.
    fn covered(&self) -> BTreeSet<Site>;

    /// Puts the program in front of everything that leaves the guest behind the interface.
    fn attach_interface(&mut self, index: u32) -> Result<Attached, Self::Error>;

    /// Whether there is a hook for what goes to guests, to redirect connections and to judge what
    /// comes back; why not, if there is none.
    ///
    /// # Errors
    ///
    /// The reason, for people.
    fn replies(&self) -> Result<(), &'static str>;

    /// Puts the program for what goes to the guest on the interface.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or this backend has no such program.
    fn attach_replies(&mut self, index: u32) -> Result<Attached, Self::Error>;

    /// Puts the programs on the control group `id`, whose directory is at `directory`.
    fn attach_root(&mut self, id: u64, directory: &Path) -> Result<Attached, Self::Error>;

    /// Takes the programs off a site that holds no workload (any more). A root that was removed
    /// stays covered for as long as somebody holds a socket of it.
    fn detach(&mut self, site: Site) -> Result<(), Self::Error>;

    /// Looks whether the kernel still has what was attached to covered sites, and returns those
    /// `among` them that have lost it, or on which something else now comes first.
    fn displaced(&mut self, among: &BTreeSet<Site>) -> Result<BTreeSet<Site>, Self::Error>;

    /// When [`Self::apply`] has something to do although the same is wanted as before.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Has this host only observe until a moment that the kernel keeps, whatever becomes of the agent.
    ///
    /// # Errors
    ///
    /// [`BypassError`].
    fn bypass(&mut self, bypass: &Bypass) -> Result<(), BypassError<Self::Error>>;

    /// Makes what must outlive the agent outlive it again, where somebody has undone that, and
    /// returns how much that was.
    fn repin(&mut self) -> Result<usize, Self::Error>;
}
