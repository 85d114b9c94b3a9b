//! What the kernel counts, and what it reports by ring buffer.

use crate::abi::CustomerId;
use crate::address::{Address, Family};
use crate::decide::{Decision, Reason, Verdict};
use crate::packet::{Malformed, Tunnel};

const VERDICTS: usize = Verdict::ALL.len();
const REASONS: usize = Reason::ALL.len();
const FAMILIES: usize = Family::ALL.len();
const MALFORMED: usize = Malformed::ALL.len();
const TUNNELS: usize = Tunnel::ALL.len();
const SKETCH_WORDS: usize = 64;
/// Bits of a [`Sketch`].
pub const SKETCH_BITS: u32 = SKETCH_WORDS as u32 * 64;
/// Attempts of a customer that are all reported, before sampling begins.
const EVENTS_UNSAMPLED: u64 = 16;
/// Beyond that, every so many-th attempt is reported.
const EVENTS_SAMPLE: u64 = 64;

/// How a counter of this CPU is moved.
pub trait Add {
    /// Adds `by`; wraps around.
    fn add(counter: &mut u64, by: u64);
}

/// For programs that nothing interrupts that counts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uninterrupted;

impl Add for Uninterrupted {
    #[inline(always)]
    fn add(counter: &mut u64, by: u64) {
        *counter = counter.wrapping_add(by);
    }
}

/// Which counter of attempts, by the numbers of what was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The verdict's.
    pub verdict: usize,
    /// The reason's.
    pub reason: usize,
    /// The family's.
    pub family: usize,
}

/// Totals of a host; one per CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct HostCounters {
    connections: [[[u64; FAMILIES]; REASONS]; VERDICTS],
    packets: [[u64; FAMILIES]; VERDICTS],
    bytes: [[u64; FAMILIES]; VERDICTS],
    malformed: [u64; MALFORMED],
    tunnels: [u64; TUNNELS],
    events_lost: u64,
    untracked: u64,
}

impl HostCounters {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        connections: [[[0; FAMILIES]; REASONS]; VERDICTS],
        packets: [[0; FAMILIES]; VERDICTS],
        bytes: [[0; FAMILIES]; VERDICTS],
        malformed: [0; MALFORMED],
        tunnels: [0; TUNNELS],
        events_lost: 0,
        untracked: 0,
    };

    /// Counts one buffer of `segments` packets and `bytes` bytes.
    #[inline(always)]
    pub fn count<A: Add>(
        &mut self,
        decision: &Decision,
        family: Family,
        segments: u64,
        bytes: u64,
    ) {
        let verdict = decision.verdict as usize;
        if let Some(packets) = self
            .packets
            .get_mut(verdict)
            .and_then(|row| row.get_mut(family as usize))
        {
            A::add(packets, segments);
        }
        if let Some(total) = self
            .bytes
            .get_mut(verdict)
            .and_then(|row| row.get_mut(family as usize))
        {
            A::add(total, bytes);
        }
        if let Some(kind) = decision.malformed
            && let Some(malformed) = self.malformed.get_mut(kind as usize)
        {
            A::add(malformed, 1);
        }
    }

    /// Counts a connection attempt.
    #[inline(always)]
    pub fn count_attempt<A: Add>(&mut self, decision: &Decision, family: Family) {
        self.count_attempt_at::<A>(Place {
            verdict: decision.verdict as usize,
            reason: decision.reason as usize,
            family: family as usize,
        });
    }

    /// The same by the numbers of a verdict, a reason and a family; others may count elsewhere here.
    ///
    /// One comparison, right before its use: of three numbers, one may lie on the stack and be read
    /// again behind its comparison, and Linux 6.1's verifier does not carry that over.
    #[inline(always)]
    pub fn count_attempt_at<A: Add>(&mut self, place: Place) {
        let Place {
            verdict,
            reason,
            family,
        } = place;
        let counters = self.connections.as_flattened_mut().as_flattened_mut();
        if let Some(connections) =
            counters.get_mut((verdict * REASONS + reason) * FAMILIES + family)
        {
            A::add(connections, 1);
        }
    }

    /// Counts a packet of a tunnel, whose inside is not seen.
    #[inline(always)]
    pub fn count_tunnel<A: Add>(&mut self, tunnel: Tunnel) {
        if let Some(packets) = self.tunnels.get_mut(tunnel as usize) {
            A::add(packets, 1);
        }
    }

    /// Counts an event that found the ring buffer full.
    #[inline(always)]
    pub fn count_event_lost<A: Add>(&mut self) {
        A::add(&mut self.events_lost, 1);
    }

    /// Counts an attempt of a customer that has no counters of its own.
    #[inline(always)]
    pub fn count_untracked<A: Add>(&mut self) {
        A::add(&mut self.untracked, 1);
    }

    /// Connection attempts (SYN without ACK, retransmissions included).
    pub fn connections(&self, verdict: Verdict, reason: Reason, family: Family) -> u64 {
        self.connections[verdict as usize][reason as usize][family as usize]
    }

    /// Guarded packets, segments of a large buffer counted one by one.
    pub fn packets(&self, verdict: Verdict, family: Family) -> u64 {
        self.packets[verdict as usize][family as usize]
    }

    /// Bytes of guarded packets, on interfaces with their Ethernet headers.
    pub fn bytes(&self, verdict: Verdict, family: Family) -> u64 {
        self.bytes[verdict as usize][family as usize]
    }

    /// Packets judged without their policy because of their form.
    pub fn malformed(&self, kind: Malformed) -> u64 {
        self.malformed[kind as usize]
    }

    /// Packets of tunnels.
    pub fn tunnels(&self, tunnel: Tunnel) -> u64 {
        self.tunnels[tunnel as usize]
    }

    /// Events that found the ring buffer full.
    pub fn events_lost(&self) -> u64 {
        self.events_lost
    }

    /// Attempts of customers without counters of their own.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Says what another backend has counted.
    pub fn put_connections(
        &mut self,
        verdict: Verdict,
        reason: Reason,
        family: Family,
        attempts: u64,
    ) {
        self.connections[verdict as usize][reason as usize][family as usize] = attempts;
    }

    /// Says what another backend has counted.
    pub fn put_packets(&mut self, verdict: Verdict, family: Family, packets: u64, bytes: u64) {
        self.packets[verdict as usize][family as usize] = packets;
        self.bytes[verdict as usize][family as usize] = bytes;
    }

    /// Says what another backend has counted.
    pub fn put_malformed(&mut self, kind: Malformed, packets: u64) {
        self.malformed[kind as usize] = packets;
    }

    /// Says what another backend has counted.
    pub fn put_tunnels(&mut self, tunnel: Tunnel, packets: u64) {
        self.tunnels[tunnel as usize] = packets;
    }

    /// Adds the figures of another CPU.
    pub fn add(&mut self, other: &Self) {
        let Self {
            connections,
            packets,
            bytes,
            malformed,
            tunnels,
            events_lost,
            untracked,
        } = other;
        let mine = self.connections.as_flattened_mut().as_flattened_mut();
        add_all(mine, connections.as_flattened().as_flattened());
        add_all(self.packets.as_flattened_mut(), packets.as_flattened());
        add_all(self.bytes.as_flattened_mut(), bytes.as_flattened());
        add_all(&mut self.malformed, malformed);
        add_all(&mut self.tunnels, tunnels);
        self.events_lost += events_lost;
        self.untracked += untracked;
    }
}

/// Connection attempts of one customer; one per CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CustomerCounters {
    connections: [u64; VERDICTS],
    uncovered: u64,
}

impl CustomerCounters {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        connections: [0; VERDICTS],
        uncovered: 0,
    };

    /// Counts an attempt; tells whether it is one of those to be reported.
    #[inline(always)]
    pub fn count_attempt<A: Add>(&mut self, decision: &Decision) -> Report {
        self.count_attempt_at::<A>(decision.verdict as usize, decision.reason as usize)
    }

    /// The same by numbers; ones that there are not count nothing.
    #[inline(always)]
    pub fn count_attempt_at<A: Add>(&mut self, verdict: usize, reason: usize) -> Report {
        if let Some(connections) = self.connections.get_mut(verdict) {
            A::add(connections, 1);
        }
        if reason == Reason::Allowlist as usize {
            return Report::Skip;
        }
        let uncovered = self.uncovered;
        A::add(&mut self.uncovered, 1);
        if uncovered < EVENTS_UNSAMPLED || uncovered.is_multiple_of(EVENTS_SAMPLE) {
            Report::Send
        } else {
            Report::Skip
        }
    }

    /// Attempts that ended in `verdict`.
    pub fn connections(&self, verdict: Verdict) -> u64 {
        self.connections[verdict as usize]
    }

    /// Attempts that no allowlist covered.
    pub fn uncovered(&self) -> u64 {
        self.uncovered
    }

    /// Adds what another backend has counted: attempts that ended in `verdict`, of which no
    /// allowlist covered `uncovered`.
    pub fn add_attempts(&mut self, verdict: Verdict, attempts: u64, uncovered: u64) {
        self.connections[verdict as usize] += attempts;
        self.uncovered += uncovered;
    }

    /// Adds the figures of another CPU.
    pub fn add(&mut self, other: &Self) {
        let Self {
            connections,
            uncovered,
        } = other;
        add_all(&mut self.connections, connections);
        self.uncovered += uncovered;
    }
}

/// Whether an attempt is reported by an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Report it.
    Send,
    /// One of those that sampling leaves out.
    Skip,
}

/// Distinct destinations of a customer's attempts, as a bitmap for linear counting (Whang,
/// Vander-Zanden and Taylor 1990).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Sketch {
    words: [u64; SKETCH_WORDS],
}

impl Sketch {
    /// No destination seen.
    pub const EMPTY: Self = Self {
        words: [0; SKETCH_WORDS],
    };

    /// Index of the word and the bit in it that stand for `destination`.
    #[inline(always)]
    pub fn slot(destination: &Address) -> (usize, u64) {
        let [a, b, c, d] = destination.words().map(u64::from);
        // The finalizer of MurmurHash3: every input bit moves every output bit.
        let mut hash = (a | b << 32).rotate_left(29) ^ (c | d << 32);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        ((hash >> 6) as usize % SKETCH_WORDS, 1 << (hash & 63))
    }

    /// The words, for whoever sets a bit in place.
    #[inline(always)]
    pub fn words_mut(&mut self) -> &mut [u64; SKETCH_WORDS] {
        &mut self.words
    }

    /// Bits that are set.
    pub fn ones(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }
}

/// Where an attempt was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// On the interface with this index.
    Interface(u32),
    /// From a socket, or a task, of the control group with this id.
    Cgroup(u64),
}

/// One connection attempt, reported by ring buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    customer: CustomerId,
    cgroup: u64,
    interface: u32,
    port: [u8; 2],
    entry: u16,
    destination: [u8; 16],
    verdict: u8,
    reason: u8,
    family: u8,
    pad: [u8; 5],
}

impl Event {
    /// Reports `decision` about an attempt from `origin` to reach `destination` on `port` (network
    /// order).
    #[inline(always)]
    pub fn new(
        decision: &Decision,
        origin: Origin,
        family: Family,
        destination: Address,
        port: [u8; 2],
    ) -> Self {
        let (interface, cgroup) = match origin {
            Origin::Interface(index) => (index, 0),
            Origin::Cgroup(id) => (0, id),
        };
        Self {
            customer: decision.customer,
            cgroup,
            interface,
            port,
            entry: decision.entry,
            destination: destination.octets(),
            verdict: decision.verdict as u8,
            reason: decision.reason as u8,
            family: family as u8,
            pad: [0; 5],
        }
    }

    /// The event in `bytes`; `None` for another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (customer, rest) = bytes.split_first_chunk::<8>()?;
        let (cgroup, rest) = rest.split_first_chunk::<8>()?;
        let (interface, rest) = rest.split_first_chunk::<4>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let (entry, rest) = rest.split_first_chunk::<2>()?;
        let (destination, rest) = rest.split_first_chunk::<16>()?;
        let [verdict, reason, family, pad @ ..] = rest else {
            return None;
        };
        Some(Self {
            customer: CustomerId::from_raw(u64::from_ne_bytes(*customer)),
            cgroup: u64::from_ne_bytes(*cgroup),
            interface: u32::from_ne_bytes(*interface),
            port: *port,
            entry: u16::from_ne_bytes(*entry),
            destination: *destination,
            verdict: *verdict,
            reason: *reason,
            family: *family,
            pad: pad.try_into().ok()?,
        })
    }

    /// Whose attempt it was.
    pub fn customer(&self) -> CustomerId {
        self.customer
    }

    /// Index of the interface it came from; 0 if it was seen in a control group.
    pub fn interface(&self) -> u32 {
        self.interface
    }

    /// Id of the control group it came from; 0 if it was seen on an interface.
    pub fn cgroup(&self) -> u64 {
        self.cgroup
    }

    /// Where it went.
    #[inline(always)]
    pub fn destination(&self) -> Address {
        Address::from_v6(self.destination)
    }

    /// The port it went to.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// Where it is counted.
    #[inline(always)]
    pub const fn place(&self) -> Place {
        Place {
            verdict: self.verdict as usize,
            reason: self.reason as usize,
            family: self.family as usize,
        }
    }

    /// What was decided; `None` for a number this version does not know.
    pub fn verdict(&self) -> Option<Verdict> {
        Verdict::ALL.get(self.verdict as usize).copied()
    }

    /// Why; `None` for a number this version does not know.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.get(self.reason as usize).copied()
    }
}

fn add_all(mine: &mut [u64], other: &[u64]) {
    for (sum, value) in mine.iter_mut().zip(other) {
        *sum += value;
    }
}

const _: () = assert!(
    size_of::<HostCounters>()
        == 8 * (FAMILIES * VERDICTS * (REASONS + 2) + MALFORMED + TUNNELS + 2)
);
const _: () = assert!(size_of::<CustomerCounters>() == 8 * (VERDICTS + 1));
const _: () = assert!(size_of::<Sketch>() == 8 * SKETCH_WORDS);
const _: () = assert!(size_of::<Event>() == 48);
