//! Connections that are sent elsewhere: where to, and what is remembered of them.

use crate::abi::CustomerId;
use crate::address::{Address, Family};
use crate::counters::Add;

/// Connections of guests that the kernel remembers; the least recently used make room.
pub const MAX_REDIRECTS: usize = 65_536;
/// Interfaces of which the kernel remembers how many connections have begun; the least recently used
/// make room.
pub const MAX_BUDGETS: usize = 8192;
/// Connections of one interface that may begin to be remembered in a second...
const BEGINNINGS_PER_SECOND: u64 = 100;
/// ...and at once, after quiet.
const BEGINNINGS_AT_ONCE: u64 = 2000;
/// Ports of targets that a host may have.
pub const MAX_TARGET_PORTS: usize = 3;
/// How long a redirected connection that says nothing keeps its guest's port from being used for
/// another one: longer than SMTP's longest timeout (RFC 5321, 4.5.3.2: ten minutes).
pub const QUIET_NS: u64 = 11 * 60 * 1_000_000_000;

const MAPPED_WORD: u32 = 0xffffu32.to_be();

/// Where redirected connections of one family go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    address: Address,
    port: [u8; 2],
    pad: [u8; 2],
}

impl Target {
    /// Nowhere.
    pub const NONE: Self = Self {
        address: Address::from_words([0; 4]),
        port: [0; 2],
        pad: [0; 2],
    };

    /// `port` (network order) of `address`; `None` for port 0, which stands for no target.
    pub const fn new(address: Address, port: [u8; 2]) -> Option<Self> {
        match port {
            [0, 0] => None,
            port => Some(Self {
                address,
                port,
                pad: [0; 2],
            }),
        }
    }

    /// Whether it is [`Self::NONE`].
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        matches!(self.port, [0, 0])
    }

    /// Whether it is there, at `address`.
    #[inline(always)]
    pub fn is_at(&self, address: &Address) -> bool {
        let [a, b, c, d] = self.address.words();
        let [e, f, g, h] = address.words();
        // One comparison: the verifier follows each way out of several.
        let differs = (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) | u32::from(self.port == [0, 0]);
        differs == 0
    }

    /// Its address.
    #[inline(always)]
    pub const fn address(&self) -> Address {
        self.address
    }

    /// Its port, in network order.
    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }
}

/// An address as headers have it, and its port. Unlike [`Address`] it tells an IPv4 address from
/// the same one behind NAT64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    words: [u32; 4],
    port: [u8; 2],
    pad: [u8; 2],
}

impl Endpoint {
    /// An IPv4 address, as a word in network order, with a port in network order.
    #[inline(always)]
    pub const fn v4(word: u32, port: [u8; 2]) -> Self {
        Self::v6([0, 0, MAPPED_WORD, word], port)
    }

    /// An IPv6 address, as words in network order, with a port in network order.
    #[inline(always)]
    pub const fn v6(words: [u32; 4], port: [u8; 2]) -> Self {
        Self {
            words,
            port,
            pad: [0; 2],
        }
    }

    /// The target's.
    #[inline(always)]
    pub const fn of(target: &Target) -> Self {
        Self::v6(target.address.words(), target.port)
    }

    /// The address' words; an IPv4 address' is the last one.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The port, in network order.
    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }

    /// The canonical address.
    #[inline(always)]
    pub const fn address(&self) -> Address {
        Address::from_v6_words(self.words)
    }
}

/// One direction of a redirected connection of a guest: what its replies can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    guest: Endpoint,
    target: Endpoint,
    interface: u32,
    family: u32,
}

impl Flow {
    /// Between `guest`, behind the interface with this index, and `target`.
    #[inline(always)]
    pub const fn new(interface: u32, family: Family, guest: Endpoint, target: Endpoint) -> Self {
        Self {
            guest,
            target,
            interface,
            family: family as u32,
        }
    }
}

/// What the guest believes that it is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Redirected {
    customer: CustomerId,
    used: u64,
    original: Endpoint,
    ended: u32,
}

/// What a packet of a guest does to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// It begins one: a SYN without ACK.
    Begins,
    /// It is the guest's last word: FIN or RST.
    Ends,
    /// Anything else.
    Goes,
}

/// What becomes of a packet for a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A new connection is to be remembered in the place of what is known.
    Remember,
    /// It belongs to the connection that is known.
    Follow,
    /// It goes its way, and nothing is to be remembered of it.
    Ignore,
    /// It is refused.
    Refuse(Hindrance),
}

/// Why a packet is not led to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hindrance {
    /// It belongs to no connection that is known.
    Unknown = 0,
    /// Its port is in use for a connection to another place.
    PortInUse = 1,
    /// Too many connections of its interface have begun.
    TooMany = 2,
    /// The agent does not listen there.
    Unheard = 3,
    /// The tables have just been changed, or take nothing.
    Tables = 4,
}

impl Hindrance {
    /// Every one, in the order of the counters.
    pub const ALL: [Self; 5] = [
        Self::Unknown,
        Self::PortInUse,
        Self::TooMany,
        Self::Unheard,
        Self::Tables,
    ];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_connection",
            Self::PortInUse => "port_in_use",
            Self::TooMany => "too_many",
            Self::Unheard => "not_listening",
            Self::Tables => "tables",
        }
    }
}

/// Packets and connects that were not led to a target, by what hindered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Hindrances {
    counts: [u64; Hindrance::ALL.len()],
}

impl Hindrances {
    /// None.
    pub const ZERO: Self = Self {
        counts: [0; Hindrance::ALL.len()],
    };

    /// Counts one more.
    #[inline(always)]
    pub fn count<A: Add>(&mut self, hindrance: Hindrance) {
        A::add(&mut self.counts[hindrance as usize], 1);
    }

    /// Adds what another CPU has counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.counts.iter_mut().zip(other.counts) {
            *sum = sum.wrapping_add(more);
        }
    }

    /// How many there were.
    pub const fn of(&self, hindrance: Hindrance) -> u64 {
        self.counts[hindrance as usize]
    }
}

/// What is left to an interface of the connections that it may have remembered: whoever makes up
/// senders would push everybody else's out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// When all that were remembered would have begun, had they begun evenly.
    even: u64,
}

impl Budget {
    const INTERVAL_NS: u64 = 1_000_000_000 / BEGINNINGS_PER_SECOND;
    const BURST_NS: u64 = Self::INTERVAL_NS * BEGINNINGS_AT_ONCE;

    /// Nothing of it is spent.
    pub const FULL: Self = Self { even: 0 };

    /// Spends one at `now` (`CLOCK_BOOTTIME`, nanoseconds), if there is one.
    #[inline(always)]
    pub const fn spend(&mut self, now: u64) -> bool {
        let begun = if self.even > now { self.even } else { now };
        let even = begun.saturating_add(Self::INTERVAL_NS);
        if even - now > Self::BURST_NS {
            return false;
        }
        self.even = even;
        true
    }
}

impl Redirected {
    /// A connection of `customer` that begins at `now` (`CLOCK_BOOTTIME`, nanoseconds).
    #[inline(always)]
    pub const fn new(customer: CustomerId, original: Endpoint, now: u64) -> Self {
        Self {
            customer,
            used: now,
            original,
            ended: 0,
        }
    }

    /// Whose connection it is.
    pub const fn customer(&self) -> CustomerId {
        self.customer
    }

    /// Where the guest meant to go.
    #[inline(always)]
    pub const fn original(&self) -> Endpoint {
        self.original
    }

    /// What becomes of a packet of `customer` for `original`, where `known` is what its flow is
    /// remembered as.
    ///
    /// Two connections of a guest from one port to different places would be one at the target.
    /// The first has the port until it ends or falls silent; the second is refused meanwhile. What an
    /// earlier owner of the interface has begun stands in nobody's way.
    #[inline(always)]
    pub fn step(
        known: Option<&Self>,
        customer: CustomerId,
        original: &Endpoint,
        motion: Motion,
        now: u64,
    ) -> Step {
        match (known, motion) {
            (Some(known), Motion::Begins) if known.customer != customer => Step::Remember,
            (Some(known), _) if known.original == *original => Step::Follow,
            (Some(known), Motion::Begins) if known.is_over(now) => Step::Remember,
            (Some(_), Motion::Begins) => Step::Refuse(Hindrance::PortInUse),
            (None, Motion::Begins) => Step::Remember,
            (Some(_) | None, Motion::Goes | Motion::Ends) => Step::Refuse(Hindrance::Unknown),
        }
    }

    /// As [`Self::step`], for a packet that goes to `target` by itself.
    ///
    /// It is remembered like others, since its replies would be given the name of whatever was
    /// redirected from its port before. What nothing is known of passes.
    #[inline(always)]
    pub fn step_aside(
        known: Option<&Self>,
        customer: CustomerId,
        target: &Endpoint,
        motion: Motion,
        now: u64,
    ) -> Step {
        match (known, motion) {
            (None, Motion::Goes | Motion::Ends) => Step::Ignore,
            (Some(_) | None, _) => Self::step(known, customer, target, motion, now),
        }
    }

    /// Whether its port may serve another connection.
    #[inline(always)]
    pub const fn is_over(&self, now: u64) -> bool {
        self.ended != 0 || now.saturating_sub(self.used) > QUIET_NS
    }

    /// Takes note of a packet that belongs to it.
    #[inline(always)]
    pub const fn follow(&mut self, motion: Motion, now: u64) {
        self.used = now;
        match motion {
            Motion::Begins => self.ended = 0,
            Motion::Ends => self.ended = 1,
            Motion::Goes => {}
        }
    }
}

/// What a redirected socket of a container was to be connected to, and is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SocketPeer {
    original: Endpoint,
    target: Endpoint,
}

impl SocketPeer {
    /// A socket that was sent to `target` instead of `original`.
    #[inline(always)]
    pub const fn new(original: Endpoint, target: Endpoint) -> Self {
        Self { original, target }
    }

    /// Where its task meant to go.
    #[inline(always)]
    pub const fn original(&self) -> Endpoint {
        self.original
    }

    /// Where it went.
    #[inline(always)]
    pub const fn target(&self) -> Endpoint {
        self.target
    }
}

const _: () = assert!(size_of::<Target>() == 20);
const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<Flow>() == 48);
const _: () = assert!(size_of::<Redirected>() == 40);
const _: () = assert!(size_of::<SocketPeer>() == 40);
const _: () = assert!(size_of::<Hindrances>() == 40);
const _: () = assert!(size_of::<Budget>() == 8);
