//! Judges what the parser found, and counts it.

use core::arch::asm;

use aya_ebpf::bindings::{__sk_buff, BPF_RB_NO_WAKEUP};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use gate25_common::abi::{
    Counting, CustomerId, CustomerPolicy, Exemption, PrefixKey, PrefixValue, SetId,
};
use gate25_common::address::{Address, Family};
use gate25_common::counters::{Add, Event, Report, Sketch, Uninterrupted};
use gate25_common::decide::{self, Decision, HostMode, Reason, Subject, Tables, Verdict, decide};
use gate25_common::filter::{Beginning, SetFilter};
use gate25_common::packet::{Malformed, Segment, Tunnel};

use crate::maps::{
    BYPASS, CUSTOMER_COUNT, CUSTOMERS, EVENTS, HOST_COUNTERS, HOST_OBSERVES, PREFIXES, SKETCHES,
};
use crate::owner::Workload;

/// For programs that others interrupt: a task that sends or connects runs them too.
pub(crate) struct Interrupted;

impl Add for Interrupted {
    #[inline(always)]
    fn add(counter: &mut u64, by: u64) {
        // SAFETY: `counter` is exclusively ours but for interruptions, which see it before or
        // after. This target's core library has no atomic operations.
        unsafe {
            asm!(
                "lock *(u64 *)({counter} + 0) += {by}",
                counter = in(reg) counter,
                by = in(reg) by,
                options(nostack),
            );
        }
    }
}

/// The buffer at hand, as far as counting needs it.
pub(crate) struct Buffer {
    /// Length of the whole buffer in bytes.
    length: u64,
    /// Payload of each packet it stands for; 0 if it is a single one.
    gso_size: u64,
}

impl Buffer {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: the kernel hands every program a valid `__sk_buff`.
        let fields = unsafe { &*skb };
        Self {
            length: u64::from(fields.len),
            gso_size: u64::from(fields.gso_size),
        }
    }

    /// How many packets it stands for, with this much payload in all.
    #[inline(always)]
    pub(crate) fn segments(&self, payload: usize) -> u64 {
        match self.gso_size {
            0 => 1,
            size => (payload as u64).div_ceil(size).max(1),
        }
    }
}

/// Judges and counts a packet for a guarded port.
#[inline(always)]
pub(crate) fn segment<A: Counts>(
    workload: &Workload,
    buffer: &Buffer,
    segment: &Segment,
) -> Decision {
    let decision = guarded(workload, &segment.subject());
    count::<A>(workload, buffer, segment, segment.destination, &decision);
    decision
}

/// Counts a packet that was judged, and that its sender meant for `destination`.
#[inline(always)]
pub(crate) fn count<A: Counts>(
    workload: &Workload,
    buffer: &Buffer,
    segment: &Segment,
    destination: Address,
    decision: &Decision,
) {
    if !counts(workload, decision) {
        return;
    }
    let segments = buffer.segments(segment.payload);
    let headers = (segment.transport + segment.tcp_header) as u64;
    let bytes = buffer.length + (segments - 1) * headers;
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value, moved as `A` says.
        let counters = unsafe { &mut *counters };
        counters.count::<A>(decision, segment.family, segments, bytes);
    }
    if segment.is_attempt() {
        attempt::<A>(
            workload,
            segment.family,
            destination,
            segment.port,
            decision,
        );
    }
}

/// Judges and counts a packet that cannot be told from one for a guarded port.
#[inline(always)]
pub(crate) fn malformed<A: Add>(
    workload: &Workload,
    buffer: &Buffer,
    kind: Malformed,
    family: Family,
) -> Decision {
    let subject = Subject::Malformed(kind);
    let decision = judged(workload, &subject);
    if counts(workload, &decision)
        && let Some(counters) = HOST_COUNTERS.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own value, moved as `A` says.
        unsafe { (*counters).count::<A>(&decision, family, 1, buffer.length) };
    }
    decision
}

/// Counts a packet of a tunnel.
#[inline(always)]
pub(crate) fn tunnel<A: Add>(workload: &Workload, tunnel: Tunnel) {
    match workload.counting {
        Counting::All => {}
        // The container's own hook counts it.
        Counting::Refused => return,
    }
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value, moved as `A` says.
        unsafe { (*counters).count_tunnel::<A>(tunnel) };
    }
}

/// Judges a packet, or a connect, to a guarded port.
#[inline(always)]
pub(crate) fn guarded(workload: &Workload, subject: &Subject) -> Decision {
    judged(workload, subject)
}

/// What is decided on this host as it is at the moment.
#[inline(always)]
fn judged(workload: &Workload, subject: &Subject) -> Decision {
    let decision = decide(&KernelTables(workload.customer), host_mode(), subject);
    if decision.verdict.refuses() && host_is_bypassed() != REFUSES {
        decision.observed()
    } else {
        decision
    }
}

/// This host carries out refusals.
const REFUSES: i32 = 0;
/// It only observes for a time.
const BYPASSED: i32 = 1;

/// Whether this host only observes for a time, as a function of its own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn host_is_bypassed() -> i32 {
    let Some(bypass) = BYPASS.get(0) else {
        // An array has all of its entries.
        return REFUSES;
    };
    // Reading the clock takes longer than a lookup: not where there never was a bypass.
    if !bypass.has_end() {
        return REFUSES;
    }
    // SAFETY: no arguments, no memory.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if bypass.is_active(now) {
        BYPASSED
    } else {
        REFUSES
    }
}

/// Whether what came out is counted here.
#[inline(always)]
fn counts(workload: &Workload, decision: &Decision) -> bool {
    match (workload.counting, decision.verdict) {
        (Counting::All, _) => true,
        (
            Counting::Refused,
            Verdict::Reject
            | Verdict::Drop
            | Verdict::Redirect
            | Verdict::Notice
            | Verdict::Throttle,
        ) => true,
        (Counting::Refused, Verdict::Allow | Verdict::Observe) => false,
    }
}

/// Counts an attempt to connect.
#[inline(always)]
pub(crate) fn attempt<A: Counts>(
    workload: &Workload,
    family: Family,
    destination: Address,
    port: [u8; 2],
    decision: &Decision,
) {
    A::attempt(&Event::new(
        decision,
        workload.origin,
        family,
        destination,
        port,
    ));
}

/// Who counts attempts, each in a function of its own for the verifier, which would otherwise go
/// through it once for every decision there is.
pub(crate) trait Counts: Add {
    fn attempt(event: &Event);
}

impl Counts for Uninterrupted {
    #[inline(always)]
    fn attempt(event: &Event) {
        let _counted = attempt_of_guest(event);
    }
}

impl Counts for Interrupted {
    #[inline(always)]
    fn attempt(event: &Event) {
        let _counted = attempt_of_container(event);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn attempt_of_guest(event: *const Event) -> i32 {
    count_attempt::<Uninterrupted>(event)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn attempt_of_container(event: *const Event) -> i32 {
    count_attempt::<Interrupted>(event)
}

const COUNTED: i32 = 0;
/// Null: no caller has that.
const NOT_COUNTED: i32 = 1;

#[inline(always)]
fn count_attempt<A: Add>(event: *const Event) -> i32 {
    // SAFETY: null, or the caller's own.
    let Some(event) = (unsafe { event.as_ref() }) else {
        return NOT_COUNTED;
    };
    let (place, customer) = (event.place(), event.customer());
    if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value, moved as `A` says.
        unsafe { (*counters).count_attempt_at::<A>(place) };
    }
    let Some(counters) = CUSTOMER_COUNT.get_ptr_mut(customer) else {
        if let Some(counters) = HOST_COUNTERS.get_ptr_mut(0) {
            // SAFETY: this CPU's own value, moved as `A` says.
            unsafe { (*counters).count_untracked::<A>() };
        }
        return COUNTED;
    };
    // SAFETY: this CPU's own value, moved as `A` says and kept by RCU while the program runs.
    let report = unsafe { (*counters).count_attempt_at::<A>(place.verdict, place.reason) };
    if place.reason != Reason::Allowlist as usize {
        sketch(customer, &event.destination());
    }
    match report {
        Report::Skip => {}
        Report::Send => {
            // Waking the agent takes the guest's CPU longer than everything else: it looks by itself.
            if EVENTS
                .output_untyped::<Event>(*event, BPF_RB_NO_WAKEUP.into())
                .is_err()
                && let Some(counters) = HOST_COUNTERS.get_ptr_mut(0)
            {
                // SAFETY: this CPU's own value, moved as `A` says.
                unsafe { (*counters).count_event_lost::<A>() };
            }
        }
    }
    COUNTED
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

/// The tables as they are for what this customer sends.
struct KernelTables(CustomerId);

impl Tables for KernelTables {
    #[inline(always)]
    fn owner(&self) -> Option<CustomerId> {
        Some(self.0)
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
    fn may_hold(&self, filter: &SetFilter, beginning: Beginning) -> bool {
        let (bits, v6) = beginning.parts();
        filter_holds(filter, bits, v6) != RULED_OUT
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

const RULED_OUT: u32 = 0;
const MAY_HOLD: u32 = 1;

/// [`SetFilter::may_hold`] as a function of its own for the verifier, which would otherwise go
/// through all that follows once for each of its outcomes. (Pointers as arguments: kernel 5.13.)
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn filter_holds(filter: *const SetFilter, bits: u64, v6: u64) -> u32 {
    // SAFETY: null, or within a value that RCU keeps while the program runs.
    let Some(filter) = (unsafe { filter.as_ref() }) else {
        // Nothing is ruled out.
        return MAY_HOLD;
    };
    if filter.may_hold(Beginning::from_parts((bits, v6))) {
        MAY_HOLD
    } else {
        RULED_OUT
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
        &KernelTables(CustomerId::UNASSIGNED),
        exemption,
        slot as usize,
        &destination,
        now,
    )
}
