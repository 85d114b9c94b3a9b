//! Types of the kernel's tables. Addresses are in network order; everything else is native.
//!
//! Whoever changes a type here raises [`crate::names::ABI_VERSION`].

use crate::address::{Address, Family};
use crate::filter::SetFilter;
use crate::redirect::Target;

/// Guarded ports that a host may have.
pub const MAX_GUARDED_PORTS: usize = 8;
/// Exemptions of one customer that the kernel holds at the same time.
pub const MAX_EXEMPTIONS: usize = 16;
/// Interfaces, control groups, customers and their counters that the kernel holds, of each.
pub const MAX_CUSTOMERS: usize = 65_536;
/// Levels below the root at which a control group can have an owner.
pub const MAX_CGROUP_LEVELS: u32 = 32;
/// Prefixes of all sets together that the kernel holds.
pub const MAX_PREFIXES: usize = 4_194_304;
/// Size of the events' ring buffer in bytes.
pub const EVENTS_BYTES: usize = 262_144;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Where the kernel keeps, in `struct sk_buff`, what is still to be written into a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SkbLayout {
    summed: u16,
    summed_shift: u8,
    known: u8,
    checksum: u16,
    head: u16,
}

impl SkbLayout {
    /// The kernel does not tell.
    pub const UNKNOWN: Self = Self {
        summed: 0,
        summed_shift: 0,
        known: 0,
        checksum: 0,
        head: 0,
    };
    /// Bytes from `ip_summed` on that hold all of the checksum's state.
    pub const SPAN: usize = 32;

    /// `ip_summed` is two bits from bit `summed_shift` of the byte at `summed`; `csum_start` and
    /// `csum_offset` lie side by side at `checksum`, `head` and `data` at `head`. `None` if the
    /// checksum's state is not within [`Self::SPAN`] bytes.
    pub const fn new(summed: u16, summed_shift: u8, checksum: u16, head: u16) -> Option<Self> {
        if checksum < summed || (checksum - summed) as usize + 4 > Self::SPAN {
            return None;
        }
        Some(Self {
            summed,
            summed_shift,
            known: 1,
            checksum,
            head,
        })
    }

    /// Whether the places are known.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.known == 1
    }

    /// Offset of the byte that holds `ip_summed`.
    #[inline(always)]
    pub const fn summed(&self) -> usize {
        self.summed as usize
    }

    /// Its lowest bit.
    #[inline(always)]
    pub const fn summed_shift(&self) -> u8 {
        self.summed_shift
    }

    /// Offset of `csum_start` behind [`Self::summed`].
    #[inline(always)]
    pub const fn checksum_behind_summed(&self) -> usize {
        (self.checksum - self.summed) as usize
    }

    /// Offset of `head`.
    #[inline(always)]
    pub const fn head(&self) -> usize {
        self.head as usize
    }
}

/// A customer as the kernel knows it: a hash of the policy's id, so that counters find their
/// customer again after a restart without a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct CustomerId(u64);

impl CustomerId {
    /// Owner of every workload that nobody claims.
    pub const UNASSIGNED: Self = Self(0);

    /// The kernel's name for the policy's `id`: FNV-1a, 64 bits. Zero, which is
    /// [`Self::UNASSIGNED`], and equal values of two names are for the caller to refuse.
    pub const fn from_name(id: &str) -> Self {
        let bytes = id.as_bytes();
        let mut hash = FNV_OFFSET;
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(FNV_PRIME);
            at += 1;
        }
        Self(hash)
    }

    /// The customer with this number in the tables.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number in the tables.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What is counted of an interface's packets, as a table's byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Counting {
    /// Everything.
    All = 1,
    /// Only what is refused: what passes is a container's, judged and counted once more where its
    /// sockets send.
    Refused = 2,
}

/// Whose an interface is; replaced as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceOwner {
    customer: CustomerId,
    counting: u8,
    pad: [u8; 7],
}

impl InterfaceOwner {
    /// Gives an interface to `customer`.
    pub const fn new(customer: CustomerId, counting: Counting) -> Self {
        Self {
            customer,
            counting: counting as u8,
            pad: [0; 7],
        }
    }

    /// Who answers for what comes from it.
    #[inline(always)]
    pub const fn customer(&self) -> CustomerId {
        self.customer
    }

    /// What is counted of its packets; everything, for a byte that no agent of this version
    /// writes.
    #[inline(always)]
    pub const fn counting(&self) -> Counting {
        match self.counting {
            2 => Counting::Refused,
            _ => Counting::All,
        }
    }
}

/// A set of prefixes, named by its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SetId(u64);

impl SetId {
    /// Holds nothing; never looked up.
    pub const NONE: Self = Self(0);
    /// Holds every address; never looked up.
    pub const ANY: Self = Self(u64::MAX);

    /// The set with this digest of its contents; `None` for the two reserved values.
    pub const fn new(digest: u64) -> Option<Self> {
        match Self(digest) {
            Self::NONE | Self::ANY => None,
            set => Some(set),
        }
    }

    /// The number in the tables.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A prefix within a set, behind the trie's own prefix length ([`PrefixKey::SET_BITS`] more than
/// the address' prefix length).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PrefixKey {
    set: [u32; 2],
    address: Address,
}

impl PrefixKey {
    /// Bits of the key that name the set.
    pub const SET_BITS: u32 = 64;
    /// Bits of the whole key.
    pub const BITS: u32 = Self::SET_BITS + 128;

    /// The key of `address` within `set`.
    #[inline(always)]
    pub const fn new(set: SetId, address: Address) -> Self {
        Self {
            set: [set.0 as u32, (set.0 >> 32) as u32],
            address,
        }
    }

    /// The set it belongs to.
    pub const fn set(&self) -> SetId {
        let [low, high] = self.set;
        SetId(low as u64 | (high as u64) << 32)
    }

    /// Its first address.
    pub const fn address(&self) -> Address {
        self.address
    }
}

/// What the kernel learns from a prefix that matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixValue {
    entry: u16,
    length: u8,
    pad: u8,
}

impl PrefixValue {
    /// `entry`: index of the source among the set's sources; `length`: bits of the canonical
    /// (128 bit) address that the prefix fixes.
    pub const fn new(entry: u16, length: u8) -> Self {
        Self {
            entry,
            length,
            pad: 0,
        }
    }

    /// Index of the source among the set's sources.
    #[inline(always)]
    pub const fn entry(&self) -> u16 {
        self.entry
    }

    /// Bits of the canonical address that the prefix fixes.
    #[inline(always)]
    pub const fn length(&self) -> u8 {
        self.length
    }
}

/// A permission in time, in nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Exemption {
    set: SetId,
    starts: u64,
    expires: u64,
}

impl Exemption {
    /// Holds no time and no address.
    pub const EMPTY: Self = Self {
        set: SetId::NONE,
        starts: 0,
        expires: 0,
    };

    /// Opens `set` from `starts` until just before `expires`.
    pub const fn new(set: SetId, starts: u64, expires: u64) -> Self {
        Self {
            set,
            starts,
            expires,
        }
    }

    /// Where it opens.
    #[inline(always)]
    pub const fn set(&self) -> SetId {
        self.set
    }

    /// First moment at which it holds.
    pub const fn starts(&self) -> u64 {
        self.starts
    }

    /// First moment at which it holds no longer.
    pub const fn expires(&self) -> u64 {
        self.expires
    }

    /// Whether it holds at `now`.
    #[inline(always)]
    pub const fn active(&self, now: u64) -> bool {
        self.starts <= now && now < self.expires
    }
}

/// Whether refusals are carried out, as a table's byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Refuse.
    Enforce = 1,
    /// Count what would be refused and let it pass.
    Observe = 2,
}

/// How a refusal is carried out, as a table's byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Blocked {
    /// Answer with a reset.
    Reject = 1,
    /// Drop silently.
    Drop = 2,
    /// Send it to the customer's target instead.
    Redirect = 3,
    /// Send it to the agent, which says why it is refused.
    Notice = 4,
}

/// Whether a customer is cut off entirely, as a table's byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Quarantine {
    /// Judged by the policy.
    No = 1,
    /// Nothing passes, relays included.
    Yes = 2,
}

/// Everything the kernel knows about one customer; replaced as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CustomerPolicy {
    mode: u8,
    blocked: u8,
    quarantine: u8,
    exemption_count: u8,
    pad: [u8; 4],
    profile_set: SetId,
    customer_set: SetId,
    profile_filter: SetFilter,
    customer_filter: SetFilter,
    /// By [`Family`].
    targets: [Target; 2],
    exemptions: [Exemption; MAX_EXEMPTIONS],
}

impl CustomerPolicy {
    /// A policy without targets and exemptions.
    pub const fn new(
        mode: Mode,
        blocked: Blocked,
        quarantine: Quarantine,
        profile_set: SetId,
        customer_set: SetId,
    ) -> Self {
        Self {
            mode: mode as u8,
            blocked: blocked as u8,
            quarantine: quarantine as u8,
            exemption_count: 0,
            pad: [0; 4],
            profile_set,
            customer_set,
            profile_filter: SetFilter::ALL,
            customer_filter: SetFilter::ALL,
            targets: [Target::NONE; 2],
            exemptions: [Exemption::EMPTY; MAX_EXEMPTIONS],
        }
    }

    /// The same policy whose redirected connections go to these targets, one a family.
    #[must_use]
    pub const fn with_targets(mut self, v4: Target, v6: Target) -> Self {
        self.targets = [v4, v6];
        self
    }

    /// The same policy whose sets are not looked at for destinations that these filters, of the
    /// profile's set and of the customer's, rule out.
    #[must_use]
    pub const fn with_filters(mut self, profile: SetFilter, customer: SetFilter) -> Self {
        self.profile_filter = profile;
        self.customer_filter = customer;
        self
    }

    /// The same policy with these exemptions, in the order of their ids; `None` if there are more
    /// than [`MAX_EXEMPTIONS`].
    pub fn with_exemptions(mut self, exemptions: &[Exemption]) -> Option<Self> {
        self.exemptions
            .get_mut(..exemptions.len())?
            .copy_from_slice(exemptions);
        self.exemption_count = exemptions.len() as u8;
        Some(self)
    }

    /// `None` for a byte that no agent of this version writes.
    #[inline(always)]
    pub const fn mode(&self) -> Option<Mode> {
        match self.mode {
            1 => Some(Mode::Enforce),
            2 => Some(Mode::Observe),
            _ => None,
        }
    }

    /// `None` for a byte that no agent of this version writes.
    #[inline(always)]
    pub const fn blocked(&self) -> Option<Blocked> {
        match self.blocked {
            1 => Some(Blocked::Reject),
            2 => Some(Blocked::Drop),
            3 => Some(Blocked::Redirect),
            4 => Some(Blocked::Notice),
            _ => None,
        }
    }

    /// Where redirected connections of `family` go, if there is anywhere.
    #[inline(always)]
    pub const fn target(&self, family: Family) -> Option<&Target> {
        let [v4, v6] = &self.targets;
        let target = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        if target.is_none() { None } else { Some(target) }
    }

    /// Whether redirected connections of either family go to `address`.
    #[inline(always)]
    pub fn is_target(&self, address: &Address) -> bool {
        let [v4, v6] = &self.targets;
        v4.is_at(address) | v6.is_at(address)
    }

    /// `None` for a byte that no agent of this version writes.
    #[inline(always)]
    pub const fn quarantine(&self) -> Option<Quarantine> {
        match self.quarantine {
            1 => Some(Quarantine::No),
            2 => Some(Quarantine::Yes),
            _ => None,
        }
    }

    /// The allowlists of the customer's profile.
    #[inline(always)]
    pub const fn profile_set(&self) -> SetId {
        self.profile_set
    }

    /// The customer's own allowlists.
    #[inline(always)]
    pub const fn customer_set(&self) -> SetId {
        self.customer_set
    }

    /// Which destinations [`Self::profile_set`] may hold.
    #[inline(always)]
    pub const fn profile_filter(&self) -> &SetFilter {
        &self.profile_filter
    }

    /// Which destinations [`Self::customer_set`] may hold.
    #[inline(always)]
    pub const fn customer_filter(&self) -> &SetFilter {
        &self.customer_filter
    }

    /// The exemption in `slot`, if the policy has that many.
    #[inline(always)]
    pub fn exemption(&self, slot: usize) -> Option<&Exemption> {
        if slot < self.exemption_count as usize {
            self.exemptions.get(slot)
        } else {
            None
        }
    }

    /// Whether there is any exemption at all.
    #[inline(always)]
    pub const fn has_exemptions(&self) -> bool {
        self.exemption_count > 0
    }

    /// Whether `self` differs from `other` by nothing but times, none by more than `tolerance`
    /// nanoseconds.
    pub fn agrees(&self, other: &Self, tolerance: u64) -> bool {
        let near = |one: u64, other: u64| one.abs_diff(other) <= tolerance;
        let pairs = || self.exemptions.iter().zip(&other.exemptions);
        let timeless = |mut policy: Self| {
            for exemption in &mut policy.exemptions {
                (exemption.starts, exemption.expires) = (0, 0);
            }
            policy
        };
        pairs()
            .all(|(one, other)| near(one.starts, other.starts) && near(one.expires, other.expires))
            && timeless(*self) == timeless(*other)
    }

    /// Every set that the policy refers to, reserved ones included.
    pub fn sets(&self) -> impl Iterator<Item = SetId> {
        [self.profile_set, self.customer_set].into_iter().chain(
            self.exemptions
                .iter()
                .take(self.exemption_count as usize)
                .map(Exemption::set),
        )
    }
}

const _: () = assert!(size_of::<SkbLayout>() == 8);
const _: () = assert!(size_of::<CustomerId>() == 8);
const _: () = assert!(size_of::<InterfaceOwner>() == 16);
const _: () = assert!(size_of::<PrefixKey>() == 24);
const _: () = assert!(size_of::<PrefixValue>() == 4);
const _: () = assert!(size_of::<Exemption>() == 24);
const _: () = assert!(size_of::<CustomerPolicy>() == 24 + 2 * 48 + 2 * 20 + 24 * MAX_EXEMPTIONS);
