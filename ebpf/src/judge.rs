//! Judges what the parser found, and counts it.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::programs::TcContext;
use gate25_common::abi::{CustomerId, CustomerPolicy, Exemption, PrefixKey, PrefixValue, SetId};
use gate25_common::address::{Address, Family};
use gate25_common::counters::{Event, Report, Sketch};
use gate25_common::decide::{
    self, Decision, HostMode, NOT_EXEMPT, Reason, Subject, Tables, Verdict, decide,
};
use gate25_common::packet::{Malformed, Segment, Tunnel};

use crate::maps::{
    CUSTOMER_COUNT, CUSTOMERS, EVENTS, HOST_COUNTERS, HOST_OBSERVES, PREFIXES, SKETCHES, WORKLOADS,
};
use crate::packed::{self, Place};

/// The buffer at hand, as far as counting needs it.
struct Buffer {
    /// Index of the interface it came from.
    interface: u32,
    /// Length of the whole buffer in bytes.
    length: u64,
    /// Payload of each packet it stands for; 0 if it is a single one.
    gso_size: u64,
}

impl Buffer {
    #[inline(always)]
    fn new(skb: *mut __sk_buff) -> Self {
        Self {
            // SAFETY: the kernel hands every program a valid `__sk_buff`.
            interface: unsafe { (*skb).ifindex },
            // SAFETY: as above.
            length: u64::from(unsafe { (*skb).len }),
            // SAFETY: as above.
            gso_size: u64::from(unsafe { (*skb).gso_size }),
        }
    }
}

/// Judges and counts a packet for a guarded port.
#[inline(always)]
pub(crate) fn segment(ctx: &TcContext, segment: &Segment) -> Verdict {
    let [high, low] = packed::pack_address(&segment.destination);
    let place = packed::pack_place(segment);
    packed::unpack_verdict(judge_segment(
        ctx.skb.skb,
        high,
        low,
        place,
        segment.payload as u64,
    ))
}

/// Judges and counts a packet that cannot be told from one for a guarded port.
#[inline(always)]
pub(crate) fn malformed(ctx: &TcContext, kind: Malformed, family: Family) -> Verdict {
    packed::unpack_verdict(judge_malformed(ctx.skb.skb, kind as u32, family as u32))
}

/// [`segment`] as a function of its own, so that the verifier goes through the decision once and
/// not once for every way through the parser.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_segment(
    skb: *mut __sk_buff,
    high: u64,
    low: u64,
    place: u64,
    payload: u64,
) -> u64 {
    let buffer = Buffer::new(skb);
    let place = packed::unpack_place(place);
    let destination = packed::unpack_address(high, low);
    let subject = Subject::Guarded {
        destination,
        route: place.route,
    };
    let decision = decide(&KernelTables(buffer.interface), host_mode(), &subject);
    log(&decision);
    let segments = match buffer.gso_size {
        0 => 1,
        size => payload.div_ceil(size).max(1),
    };
    let bytes = buffer.length + (segments - 1) * place.headers;
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value; programs of this type do not interrupt one another.
        let counters = unsafe { &mut *counters };
        counters.count(&decision, place.family, segments, bytes);
        if place.is_attempt {
            counters.count_attempt(&decision, place.family);
        }
    }
    if place.is_attempt {
        attempt(&buffer, &place, destination, &decision);
    }
    decision.verdict as u64
}

/// [`malformed`] as a function of its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_malformed(skb: *mut __sk_buff, kind: u32, family: u32) -> u64 {
    let buffer = Buffer::new(skb);
    let family = packed::unpack_family(family);
    let subject = Subject::Malformed(packed::unpack_malformed(kind));
    let decision = decide(&KernelTables(buffer.interface), host_mode(), &subject);
    log(&decision);
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value; programs of this type do not interrupt one another.
        unsafe { (*counters).count(&decision, family, 1, buffer.length) };
    }
    decision.verdict as u64
}

#[cfg(feature = "log")]
#[inline(always)]
fn log(decision: &Decision) {
    log_line(
        decision.customer.get(),
        decision.verdict as u32,
        decision.reason as u32,
    );
}

/// Writes a debug line, which needs no context. Numbers, and a function of its own, for the verifier: it would follow the
/// length of every word there is.
#[cfg(feature = "log")]
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_line(customer: u64, verdict: u32, reason: u32) -> u32 {
    aya_log_ebpf::debug!(
        &(),
        "customer {} verdict {} reason {}",
        customer,
        verdict,
        reason
    );
    0
}

#[cfg(not(feature = "log"))]
#[inline(always)]
fn log(_: &Decision) {}

/// Counts a packet of a tunnel.
#[inline(always)]
pub(crate) fn tunnel(tunnel: Tunnel) {
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value; programs of this type do not interrupt one another.
        unsafe { (*counters).count_tunnel(tunnel) };
    }
}

#[inline(always)]
fn attempt(buffer: &Buffer, place: &Place, destination: Address, decision: &Decision) {
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
        | Reason::Malformed => sketch(decision.customer, &destination),
    }
    match report {
        Report::Skip => {}
        Report::Send => {
            let event = Event::new(
                decision,
                buffer.interface,
                place.family,
                destination,
                place.port,
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
        unsafe { WORKLOADS.get(self.0) }.copied()
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
    fn exempted(&self, exemption: &Exemption, destination: &Address, now: u64) -> u32 {
        let [high, low] = packed::pack_address(destination);
        slot_exempts(exemption, high, low, now)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments, no memory.
        unsafe { bpf_ktime_get_boot_ns() }
    }
}

/// [`decide::exempted`] as a function of its own for the verifier (pointers as arguments, kernel
/// 5.13).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn slot_exempts(exemption: *const Exemption, high: u64, low: u64, now: u64) -> u32 {
    // SAFETY: null, or within a value that RCU keeps while the program runs.
    let Some(exemption) = (unsafe { exemption.as_ref() }) else {
        return NOT_EXEMPT;
    };
    let destination = packed::unpack_address(high, low);
    // Its owner is not asked for.
    decide::exempted(&KernelTables(0), exemption, &destination, now)
}
