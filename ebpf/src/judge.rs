//! Judges what the parser found, and counts it.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use gate25_common::abi::{
    CustomerId, CustomerPolicy, Exemption, InterfaceOwner, PrefixKey, PrefixValue, SetId,
};
use gate25_common::address::{Address, Family};
use gate25_common::counters::{Event, Origin, Report, Sketch};
use gate25_common::decide::{self, Decision, HostMode, Reason, Subject, Tables, decide};
use gate25_common::packet::{Malformed, Segment, Tunnel};

use crate::maps::{
    CUSTOMER_COUNT, CUSTOMERS, EVENTS, HOST_COUNTERS, HOST_OBSERVES, INTERFACES, PREFIXES, SKETCHES,
};

/// The buffer at hand, as far as counting needs it.
pub(crate) struct Buffer {
    /// Index of the interface it came from.
    pub(crate) interface: u32,
    /// Length of the whole buffer in bytes.
    pub(crate) length: u64,
    /// Payload of each packet it stands for; 0 if it is a single one.
    pub(crate) gso_size: u64,
}

/// Judges and counts a packet for a guarded port.
#[inline(always)]
pub(crate) fn segment(buffer: &Buffer, segment: &Segment) -> Decision {
    let subject = Subject::Guarded {
        destination: segment.destination,
        route: segment.route,
    };
    let decision = decide(&KernelTables(buffer.interface), host_mode(), &subject);
    let segments = match buffer.gso_size {
        0 => 1,
        size => (segment.payload as u64).div_ceil(size).max(1),
    };
    let headers = (segment.transport + segment.tcp_header) as u64;
    let bytes = buffer.length + (segments - 1) * headers;
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value; programs of this type do not interrupt one another.
        let counters = unsafe { &mut *counters };
        counters.count(&decision, segment.family, segments, bytes);
        if segment.is_attempt() {
            counters.count_attempt(&decision, segment.family);
        }
    }
    if segment.is_attempt() {
        attempt(buffer, segment, &decision);
    }
    decision
}

/// Judges and counts a packet that cannot be told from one for a guarded port.
#[inline(always)]
pub(crate) fn malformed(buffer: &Buffer, kind: Malformed, family: Family) -> Decision {
    let decision = decide(
        &KernelTables(buffer.interface),
        host_mode(),
        &Subject::Malformed(kind),
    );
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value; programs of this type do not interrupt one another.
        unsafe { (*counters).count(&decision, family, 1, buffer.length) };
    }
    decision
}

/// Counts a packet of a tunnel.
#[inline(always)]
pub(crate) fn tunnel(tunnel: Tunnel) {
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value; programs of this type do not interrupt one another.
        unsafe { (*counters).count_tunnel(tunnel) };
    }
}

#[inline(always)]
fn attempt(buffer: &Buffer, segment: &Segment, decision: &Decision) {
    let Some(counters) = CUSTOMER_COUNT.get_ptr_mut(decision.customer) else {
        if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
            // SAFETY: this CPU's own value; programs of this type do not interrupt one another.
            unsafe { (*counters).count_untracked() };
        }
        return;
    };
    // SAFETY: this CPU's own value, kept by RCU while the program runs.
    let report = unsafe { (*counters).count_attempt(decision) };
    match decision.reason {
        Reason::Allowlist => {}
        Reason::Exemption
        | Reason::Profile
        | Reason::Unassigned
        | Reason::Throttled
        | Reason::Quarantine
        | Reason::Malformed => sketch(decision.customer, &segment.destination),
    }
    match report {
        Report::Skip => {}
        Report::Send => {
            let event = Event::new(
                decision,
                Origin::Interface(buffer.interface),
                segment.family,
                segment.destination,
                segment.port,
            );
            if EVENTS.output_untyped::<Event>(event, 0).is_err()
                && let Some(counters) = HOST_COUNTERS.get_ptr_mut(0)
            {
                // SAFETY: this CPU's own value; programs of this type do not interrupt one another.
                unsafe { (*counters).count_event_lost() };
            }
        }
    }
}

#[inline(always)]
fn sketch(customer: CustomerId, destination: &Address) {
    let Some(sketch) = SKETCHES.get_ptr_mut(customer) else {
        return;
    };
    let (word, bit) = Sketch::slot(destination);
    // SAFETY: kept by RCU while the program runs. Two CPUs that change one word at once may lose
    // one of the bits: the sketch is an estimate, and this target has no atomic OR.
    let words = unsafe { (*sketch).words_mut() };
    if let Some(word) = words.get_mut(word)
        && *word & bit == 0
    {
        *word |= bit;
    }
}

#[inline(always)]
fn host_mode() -> HostMode {
    if HOST_OBSERVES.load() == 0 {
        HostMode::Policy
    } else {
        HostMode::Observe
    }
}

struct KernelTables(u32);

impl Tables for KernelTables {
    #[inline(always)]
    fn owner(&self) -> Option<CustomerId> {
        // SAFETY: the value is copied at once; entries are replaced, never changed in place.
        unsafe { INTERFACES.get(self.0) }.map(InterfaceOwner::customer)
    }

    #[inline(always)]
    fn policy(&self, customer: CustomerId) -> Option<&CustomerPolicy> {
        // SAFETY: kept by RCU while the program runs; entries are replaced, never changed in
        // place, and without preallocation none is reused before the program ends.
        unsafe { CUSTOMERS.get(customer) }
    }

    #[inline(always)]
    fn prefix(&self, set: SetId, address: &Address) -> Option<PrefixValue> {
        PREFIXES
            .get(&Key::new(PrefixKey::BITS, PrefixKey::new(set, *address)))
            .copied()
    }

    #[inline(always)]
    fn rank(&self, exemption: &Exemption, slot: usize, destination: &Address, now: u64) -> u32 {
        let [a, b, c, d] = destination.words();
        let high = u64::from(a) | u64::from(b) << 32;
        let low = u64::from(c) | u64::from(d) << 32;
        exemption_rank(exemption, slot as u64, high, low, now)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments, no memory.
        unsafe { bpf_ktime_get_boot_ns() }
    }
}

/// [`decide::rank`] as a function of its own for the verifier. `high` and `low` are the
/// destination's words. It takes the exemption, not its customer: a policy that is replaced
/// meanwhile must not be mixed with the one before, and another lookup a slot would cost time.
/// (Pointers as arguments: kernel 5.13.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn exemption_rank(
    exemption: *const Exemption,
    slot: u64,
    high: u64,
    low: u64,
    now: u64,
) -> u32 {
    // SAFETY: null, or within a value that RCU keeps while the program runs.
    let Some(exemption) = (unsafe { exemption.as_ref() }) else {
        return 0;
    };
    let destination = Address::from_words([
        high as u32,
        (high >> 32) as u32,
        low as u32,
        (low >> 32) as u32,
    ]);
    // No exemption looks at the owner.
    decide::rank(
        &KernelTables(0),
        exemption,
        slot as usize,
        &destination,
        now,
    )
}
