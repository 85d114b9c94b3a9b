//! Turns a validated policy into the kernel's tables. Pure: the same policy at the same moment
//! gives the same image.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use gate25_common::abi::{self, CustomerId, CustomerPolicy, PrefixValue, Quarantine, SetId};
use gate25_common::address::{Address, Family};
use gate25_common::decide::CUSTOMER_SET;
use gate25_common::filter::SetFilter;
use gate25_common::redirect::Target;
use ipnet::IpNet;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::policy::{
    Blocked, Customer, DEFAULT_PROFILE, Destinations, Exemption, Mode, Policy, RELAY_PORT, Relay,
    UNASSIGNED,
};

const V4_MAPPED_BITS: u8 = 96;

/// A policy as tables, with times still by the wall clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Every customer, [`CustomerId::UNASSIGNED`] included.
    pub customers: BTreeMap<CustomerId, CustomerImage>,
    /// Every set that a customer refers to.
    pub sets: BTreeMap<SetId, Arc<PrefixSet>>,
}

/// One customer's part of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerImage {
    /// The customer's id in the policy.
    pub id: String,
    /// Whether refusals are carried out.
    pub mode: Mode,
    /// How they are carried out.
    pub blocked: Blocked,
    /// Where redirected connections go.
    pub relay: Relay,
    /// The allowlists of the profile.
    pub profile_set: SetId,
    /// The customer's own allowlists.
    pub customer_set: SetId,
    /// Exemptions that have not expired, in the order of their ids.
    pub exemptions: Vec<ExemptionImage>,
}

/// One exemption's part of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExemptionImage {
    /// The exemption's id in the policy.
    pub id: String,
    /// Where it opens.
    pub set: SetId,
    /// First moment at which it holds.
    pub starts: Option<Timestamp>,
    /// First moment at which it holds no longer.
    pub expires: Timestamp,
}

/// The contents of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixSet {
    /// Names of the allowlists it is made of; `None` for prefixes written in place.
    pub sources: Vec<Option<String>>,
    /// Its prefixes, sorted, each once.
    pub prefixes: Arc<[Prefix]>,
    /// Which destinations it may hold.
    pub filter: SetFilter,
}

/// A prefix of canonical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// Its first address.
    pub address: Address,
    /// How many of the 128 bits it fixes.
    pub length: u8,
    /// Index of the source it comes from.
    pub entry: u16,
}

impl Prefix {
    /// The canonical form of `net`, from the source with index `entry`.
    pub fn new(net: IpNet, entry: u16) -> Self {
        let length = match net {
            IpNet::V4(net) => V4_MAPPED_BITS + net.prefix_len(),
            IpNet::V6(net) => net.prefix_len(),
        };
        Self {
            address: net.network().into(),
            length,
            entry,
        }
    }

    /// Whether it holds `address`.
    pub fn contains(&self, address: &Address) -> bool {
        let distance =
            u128::from_be_bytes(self.address.octets()) ^ u128::from_be_bytes(address.octets());
        distance.leading_zeros() >= u32::from(self.length)
    }

    /// What the kernel learns when it matches.
    pub fn value(&self) -> PrefixValue {
        PrefixValue::new(self.entry, self.length)
    }
}

/// The longest of `prefixes` that holds `address`.
pub fn longest<'p>(prefixes: &'p [Prefix], address: &Address) -> Option<&'p Prefix> {
    prefixes
        .iter()
        .filter(|prefix| prefix.contains(address))
        .max_by_key(|prefix| prefix.length)
}

/// Why a policy has no image. Validation refuses such policies with a position; this is what
/// keeps the tables right if it ever does not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// Two names share a number.
    #[error("customers {0} and {1} have the same 64-bit number")]
    CustomerCollision(String, String),
    /// A name leads nowhere.
    #[error("{user} refers to {kind} {name}, which does not exist")]
    Unknown {
        /// Who refers to it.
        user: String,
        /// What it should be.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// More exemptions than the kernel's table holds.
    #[error("customer {0} has more than {max} exemptions at a time", max = abi::MAX_EXEMPTIONS)]
    TooManyExemptions(String),
    /// More allowlists in one place than an index can name.
    #[error("{0} refers to more than {max} allowlists", max = CUSTOMER_SET)]
    TooManySources(String),
    /// Two different sets share a number, or one has a reserved number.
    #[error("the destinations of {0} have a digest that is taken")]
    SetCollision(String),
}

/// Compiles `policy` as of `now`: exemptions that have expired leave no trace.
///
/// # Errors
///
/// [`CompileError`].
pub fn compile(policy: &Policy, now: Timestamp) -> Result<Image, CompileError> {
    compile_after(policy, now, None)
}

/// A policy and what it was compiled to.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// What it says.
    pub policy: Arc<Policy>,
    /// The same as tables.
    pub image: Arc<Image>,
}

/// The same image as that of [`compile`], made from what is as it was `before`: an edit costs what it
/// changes.
///
/// # Errors
///
/// [`CompileError`].
pub fn compile_after(
    policy: &Policy,
    now: Timestamp,
    before: Option<&Compiled>,
) -> Result<Image, CompileError> {
    let mut exemptions: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (id, exemption) in &policy.exemptions {
        if exemption.expires > now {
            exemptions
                .entry(&exemption.customer)
                .or_default()
                .push((id, exemption));
        }
    }
    let mut compiler = Compiler {
        policy,
        sets: Vec::new(),
        of_profiles: BTreeMap::new(),
    };
    let mut before = before.map(|compiled| Before::of(compiled, policy));
    let unassigned = compiler.customer(UNASSIGNED, DEFAULT_PROFILE, &[], &[], None)?;
    let mut customers = vec![(CustomerId::UNASSIGNED, unassigned)];
    for (id, customer) in &policy.customers {
        let exemptions = exemptions.get(id.as_str()).map_or(&[][..], Vec::as_slice);
        let Customer { profile, allow, .. } = customer;
        let kept = before.as_mut().and_then(|it| it.set(id, allow));
        let compiled = compiler.customer(id, profile, allow, exemptions, kept)?;
        customers.push((CustomerId::from_name(id), compiled));
    }
    // Stable: of two that collide, the one of the earlier name comes first.
    customers.sort_by_key(|(number, _)| *number);
    for pair in customers.windows(2) {
        if let [(first, one), (second, other)] = pair
            && first == second
        {
            return Err(CompileError::CustomerCollision(
                one.id.clone(),
                other.id.clone(),
            ));
        }
    }
    Ok(Image {
        customers: customers.into_iter().collect(),
        sets: compiler.finish()?,
    })
}

impl Image {
    /// Which destinations a set may hold.
    #[must_use]
    pub fn filter(&self, set: SetId) -> SetFilter {
        self.sets.get(&set).map_or(SetFilter::ALL, |set| set.filter)
    }
}

/// An image in the making.
struct Compiler<'p> {
    policy: &'p Policy,
    /// Sets that somebody refers to, and who does.
    sets: Vec<(SetId, Arc<PrefixSet>, &'p str)>,
    of_profiles: BTreeMap<&'p str, SetId>,
}

/// A customer's set as it was; the reserved ones have no contents.
type Kept<'p> = (SetId, Option<&'p Arc<PrefixSet>>);

/// What a policy was compiled to before.
struct Before<'p> {
    image: &'p Image,
    /// Those that were not asked for yet: customers come in their order.
    customers: Peekable<btree_map::Iter<'p, String, Customer>>,
    /// Allowlists that are not what they were.
    changed: BTreeSet<&'p str>,
}

impl<'p> Before<'p> {
    fn of(compiled: &'p Compiled, policy: &'p Policy) -> Self {
        let Compiled {
            policy: before,
            image,
        } = compiled;
        let mut known = before.allowlists.iter().peekable();
        let changed = policy.allowlists.iter().filter(|(name, list)| {
            while known.next_if(|(other, _)| other < name).is_some() {}
            let known = known.next_if(|(other, _)| other == name);
            !known.is_some_and(|(_, known)| Arc::ptr_eq(&known.to, &list.to) || known.to == list.to)
        });
        Self {
            image,
            changed: changed.map(|(name, _)| name.as_str()).collect(),
            customers: before.customers.iter().peekable(),
        }
    }

    /// The set that a customer had, if its allowlists are what they were; nothing else of the
    /// customer counts.
    fn set(&mut self, id: &str, allow: &[String]) -> Option<Kept<'p>> {
        while self
            .customers
            .next_if(|(other, _)| other.as_str() < id)
            .is_some()
        {}
        let (_, customer) = self.customers.next_if(|(other, _)| *other == id)?;
        let is_same = |name: &String| !self.changed.contains(name.as_str());
        if customer.allow != allow || !allow.iter().all(is_same) {
            return None;
        }
        let known = self.image.customers.get(&CustomerId::from_name(id))?;
        let set = self.image.sets.get(&known.customer_set);
        (known.id == id).then_some((known.customer_set, set))
    }
}

impl<'p> Compiler<'p> {
    fn customer(
        &mut self,
        id: &'p str,
        profile_name: &'p str,
        allow: &[String],
        exemptions: &[(&'p String, &Exemption)],
        kept: Option<Kept<'p>>,
    ) -> Result<CustomerImage, CompileError> {
        let profile =
            self.policy
                .profiles
                .get(profile_name)
                .ok_or_else(|| CompileError::Unknown {
                    user: id.to_owned(),
                    kind: "profile",
                    name: profile_name.to_owned(),
                })?;
        if exemptions.len() > abi::MAX_EXEMPTIONS {
            return Err(CompileError::TooManyExemptions(id.to_owned()));
        }
        let exemptions = exemptions
            .iter()
            .map(|(exemption_id, exemption)| self.exemption(exemption_id, exemption))
            .collect::<Result<_, _>>()?;
        let profile_set = match self.of_profiles.get(profile_name) {
            Some(set) => *set,
            None => {
                let set = self.set(profile_name, &[], &profile.allow)?;
                self.of_profiles.insert(profile_name, set);
                set
            }
        };
        let customer_set = match kept {
            Some((known, set)) => {
                let kept = set.map(|set| (known, Arc::clone(set), id));
                self.sets.extend(kept);
                known
            }
            None => self.set(id, &[], allow)?,
        };
        Ok(CustomerImage {
            id: id.to_owned(),
            mode: profile.mode,
            blocked: profile.blocked,
            relay: profile.relay,
            profile_set,
            customer_set,
            exemptions,
        })
    }

    fn exemption(
        &mut self,
        id: &'p str,
        exemption: &Exemption,
    ) -> Result<ExemptionImage, CompileError> {
        let set = match &exemption.to {
            Destinations::Any => SetId::ANY,
            Destinations::Listed {
                prefixes,
                allowlists,
            } => self.set(id, prefixes, allowlists)?,
        };
        Ok(ExemptionImage {
            id: id.to_owned(),
            set,
            starts: exemption.starts,
            expires: exemption.expires,
        })
    }

    /// The set of `prefixes` and `allowlists`, made where it does not exist yet.
    fn set(
        &mut self,
        user: &'p str,
        prefixes: &[IpNet],
        allowlists: &[String],
    ) -> Result<SetId, CompileError> {
        let set = PrefixSet::new(self.policy, user, prefixes, allowlists)?;
        if set.prefixes.is_empty() {
            return Ok(SetId::NONE);
        }
        let id = SetId::new(set.digest());
        let id = id.ok_or_else(|| CompileError::SetCollision(user.to_owned()))?;
        self.sets.push((id, Arc::new(set), user));
        Ok(id)
    }

    /// Every set once.
    fn finish(self) -> Result<BTreeMap<SetId, Arc<PrefixSet>>, CompileError> {
        let mut sets = self.sets;
        sets.sort_by_key(|(id, _, _)| *id);
        for pair in sets.windows(2) {
            if let [(first, one, _), (second, other, user)] = pair
                && first == second
                && !(Arc::ptr_eq(one, other) || one == other)
            {
                return Err(CompileError::SetCollision((*user).to_owned()));
            }
        }
        sets.dedup_by_key(|(id, _, _)| *id);
        Ok(sets.into_iter().map(|(id, set, _)| (id, set)).collect())
    }
}

impl PrefixSet {
    fn new(
        policy: &Policy,
        user: &str,
        in_place: &[IpNet],
        allowlists: &[String],
    ) -> Result<Self, CompileError> {
        let mut sources = Vec::with_capacity(allowlists.len());
        let mut prefixes = Vec::new();
        let mut add = |source: Option<String>, nets: &[IpNet]| {
            let entry = u16::try_from(sources.len())
                .ok()
                .filter(|entry| *entry < CUSTOMER_SET)
                .ok_or_else(|| CompileError::TooManySources(user.to_owned()))?;
            sources.push(source);
            prefixes.extend(nets.iter().map(|net| Prefix::new(*net, entry)));
            Ok(())
        };
        if !in_place.is_empty() {
            add(None, in_place)?;
        }
        for name in allowlists {
            let allowlist = policy
                .allowlists
                .get(name)
                .ok_or_else(|| CompileError::Unknown {
                    user: user.to_owned(),
                    kind: "allowlist",
                    name: name.clone(),
                })?;
            add(Some(name.clone()), &allowlist.to)?;
        }
        prefixes.sort_unstable();
        prefixes.dedup_by_key(|prefix| (prefix.address, prefix.length));
        let kept = prefixes
            .iter()
            .map(|prefix: &Prefix| (prefix.address, prefix.length));
        let filter = SetFilter::of(kept);
        Ok(Self {
            sources,
            prefixes: prefixes.into(),
            filter,
        })
    }

    fn digest(&self) -> u64 {
        let mut digest = Sha256::new();
        for source in &self.sources {
            match source {
                Some(name) => {
                    digest.update([1]);
                    digest.update((name.len() as u64).to_be_bytes());
                    digest.update(name);
                }
                None => digest.update([0]),
            }
        }
        digest.update([2]);
        for Prefix {
            address,
            length,
            entry,
        } in &*self.prefixes
        {
            digest.update(address.octets());
            digest.update([*length]);
            digest.update(entry.to_be_bytes());
        }
        let digest = digest.finalize();
        digest
            .iter()
            .take(8)
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl CustomerImage {
    /// Where connections of `family` that nothing allows are led instead; `notice` is where the
    /// notice is told.
    #[must_use]
    pub fn led_to(&self, family: Family, notice: &[SocketAddr]) -> Option<SocketAddr> {
        match self.blocked {
            Blocked::Reject | Blocked::Drop => None,
            Blocked::Redirect => {
                let relay = match family {
                    Family::V4 => self.relay.v4.map(IpAddr::V4),
                    Family::V6 => self.relay.v6.map(IpAddr::V6),
                };
                relay.map(|address| SocketAddr::new(address, RELAY_PORT))
            }
            Blocked::Notice => {
                let mut of_family = notice.iter().filter(|it| match family {
                    Family::V4 => it.is_ipv4(),
                    Family::V6 => it.is_ipv6(),
                });
                of_family.next().copied()
            }
        }
    }

    /// The kernel's form, with times moved to the boot clock, which is `wall_minus_boot`
    /// nanoseconds behind the wall clock. `None` if there are more exemptions than the table
    /// holds, which [`compile`] rules out.
    pub fn to_kernel(&self, wall_minus_boot: i64, notice: &[SocketAddr]) -> Option<CustomerPolicy> {
        let [v4, v6] = Family::ALL.map(|family| target(self.led_to(family, notice)));
        let Self {
            id: _,
            mode,
            blocked,
            relay: _,
            profile_set,
            customer_set,
            exemptions,
        } = self;
        let mode = match mode {
            Mode::Enforce => abi::Mode::Enforce,
            Mode::Observe => abi::Mode::Observe,
        };
        let blocked = match blocked {
            Blocked::Reject => abi::Blocked::Reject,
            Blocked::Drop => abi::Blocked::Drop,
            Blocked::Redirect => abi::Blocked::Redirect,
            Blocked::Notice => abi::Blocked::Notice,
        };
        let exemptions: Vec<_> = exemptions
            .iter()
            .map(
                |ExemptionImage {
                     id: _,
                     set,
                     starts,
                     expires,
                 }| {
                    let starts = starts.map_or(0, |starts| boot_time(starts, wall_minus_boot));
                    abi::Exemption::new(*set, starts, boot_time(*expires, wall_minus_boot))
                },
            )
            .collect();
        CustomerPolicy::new(mode, blocked, Quarantine::No, *profile_set, *customer_set)
            .with_targets(v4, v6)
            .with_exemptions(&exemptions)
    }
}

fn target(address: Option<SocketAddr>) -> Target {
    address
        .and_then(|it| Target::new(it.ip().into(), it.port().to_be_bytes()))
        .unwrap_or(Target::NONE)
}

/// The moment on the boot clock, in nanoseconds: 0 for whatever was before the boot, the clock's end for whatever
/// it will never reach (584 years on).
pub fn boot_time(at: Timestamp, wall_minus_boot: i64) -> u64 {
    let boot = at.as_nanosecond() - i128::from(wall_minus_boot);
    u64::try_from(boot.max(0)).unwrap_or(u64::MAX)
}
