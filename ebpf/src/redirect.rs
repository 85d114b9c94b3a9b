//! Sends a guest's connection to its customer's target, and what comes back from there to the guest
//! in the name of the place that it meant.
//!
//! Headers are rewritten here and not by nftables: a ruleset that somebody flushes would let packets
//! out to the place that they must not reach.

use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_ktime_get_boot_ns};
use aya_ebpf::programs::TcContext;
use gate25_common::abi::{Blocked, CustomerPolicy};
use gate25_common::address::Family;
use gate25_common::counters::{Add, Uninterrupted};
use gate25_common::packet::{Form, Outline, Parsed, Segment};
use gate25_common::redirect::{Budget, Endpoint, Flow, Hindrance, Redirected, Step};

use crate::frame;
use crate::maps::{BUDGETS, CUSTOMERS, HINDRANCES, REDIRECTS};
use crate::owner;
use crate::reply;
use crate::responder;

const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;
/// No action of the kernel's: the packet is unchanged, and is to be answered as if it had been
/// rejected.
pub(crate) const IMPOSSIBLE: i32 = 0x100;
/// No action of the kernel's: the packet is unchanged, and belongs to no redirected connection.
pub(crate) const NOT_REDIRECTED: i32 = 0x200;

/// Bytes from the beginning of a header to what is rewritten in it.
const V4_CHECKSUM: usize = 10;
const V4_SOURCE: usize = 12;
const V4_DESTINATION: usize = 16;
const V6_SOURCE: usize = 8;
const V6_DESTINATION: usize = 24;
const TCP_DESTINATION: usize = 2;
const TCP_CHECKSUM: usize = 16;

/// The packet was not, or not wholly, rewritten.
struct NotRewritten;

/// How a packet comes to a target: a number, as global functions take nothing else.
pub(crate) const LED: u64 = 0;
/// Nobody leads it there: it is allowed.
pub(crate) const BY_ITSELF: u64 = 1;

/// Sends the packet, of which [`frame::parse_frame`] found this, to the target of its sender's
/// customer: passes it, drops it, or leaves it as it is and says [`IMPOSSIBLE`]. What goes
/// [`BY_ITSELF`] is not changed, and passes but where its port is in use for a redirected connection.
///
/// A function of its own for the sake of the stack and of the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn redirect(skb: *mut __sk_buff, parsed: u64, way: u64) -> i32 {
    let ctx = TcContext::new(skb);
    let hindered = |hindrance| {
        if way == BY_ITSELF {
            return PASS;
        }
        count::<Uninterrupted>(hindrance);
        IMPOSSIBLE
    };
    let Ok(Parsed::Guarded(segment)) = frame::unpack_frame(skb, parsed) else {
        return hindered(Hindrance::Tables);
    };
    match segment.form {
        Form::Plain => {}
        Form::Unusual => return hindered(Hindrance::Tables),
    }
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    let interface = unsafe { (*skb).ifindex };
    let customer = owner::of_interface(interface).customer;
    // SAFETY: kept by RCU while the program runs.
    let Some(policy) = (unsafe { CUSTOMERS.get(customer) }) else {
        return hindered(Hindrance::Tables);
    };
    let Some(target) = target(policy, segment.family) else {
        return hindered(Hindrance::Tables);
    };
    let Ok((guest, original)) = ends(&ctx, &segment) else {
        return hindered(Hindrance::Tables);
    };
    if way == BY_ITSELF && original != target {
        return PASS;
    }
    if way == LED && !responder::answers(policy, &target, segment.family) {
        return hindered(Hindrance::Unheard);
    }
    let flow = Flow::new(interface, segment.family, guest, target);
    // SAFETY: no arguments, no memory.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let motion = segment.motion();
    // SAFETY: null, or a value that RCU keeps while the program runs. Several CPUs may write it:
    // whole words, each of them true.
    let known = REDIRECTS
        .get_ptr_mut(flow)
        .and_then(|it| unsafe { it.as_mut() });
    let step = if way == BY_ITSELF {
        Redirected::step_aside(known.as_deref(), customer, &original, motion, now)
    } else {
        Redirected::step(known.as_deref(), customer, &original, motion, now)
    };
    match step {
        Step::Follow => {
            if let Some(known) = known {
                known.follow(motion, now);
            }
        }
        Step::Remember => {
            // What takes another one's place pushes nobody out.
            if known.is_none() && !may_begin(interface, now) {
                return hindered(Hindrance::TooMany);
            }
            let fresh = Redirected::new(customer, original, now);
            if REDIRECTS.insert(flow, fresh, 0).is_err() {
                return hindered(Hindrance::Tables);
            }
        }
        Step::Ignore => {}
        Step::Refuse(hindrance) => {
            count::<Uninterrupted>(hindrance);
            return IMPOSSIBLE;
        }
    }
    if way == BY_ITSELF {
        return PASS;
    }
    let place = Place {
        family: segment.family,
        network: segment.network,
        transport: segment.transport,
        end: End::Destination,
    };
    match rewrite(skb, place.pack(), &original, &target) {
        REWRITTEN => PASS,
        // Perhaps half of it was.
        _ => DROP,
    }
}

/// Counts what was not led to its target.
#[inline(always)]
pub(crate) fn count<A: Add>(hindrance: Hindrance) {
    if let Some(hindrances) = HINDRANCES.get_ptr_mut(0) {
        // SAFETY: this CPU's own value, moved as `A` says.
        unsafe { (*hindrances).count::<A>(hindrance) };
    }
}

/// Whether one more connection of this interface may be remembered.
#[inline(always)]
fn may_begin(interface: u32, now: u64) -> bool {
    // SAFETY: null, or a value that RCU keeps while the program runs. CPUs that spend at once may
    // spend one together: the bound is about so many.
    let budget = BUDGETS
        .get_ptr_mut(interface)
        .and_then(|it| unsafe { it.as_mut() });
    match budget {
        Some(budget) => budget.spend(now),
        None => {
            let mut budget = Budget::FULL;
            budget.spend(now) && BUDGETS.insert(interface, budget, 0).is_ok()
        }
    }
}

/// Where the customer's connections are redirected to.
#[inline(always)]
pub(crate) fn target(policy: &CustomerPolicy, family: Family) -> Option<Endpoint> {
    match policy.blocked() {
        Some(Blocked::Redirect | Blocked::Notice) => policy.target(family).map(Endpoint::of),
        // It has just been changed.
        Some(Blocked::Reject | Blocked::Drop) | None => None,
    }
}

/// Where the packet comes from, and where it goes.
#[inline(always)]
fn ends(ctx: &TcContext, segment: &Segment) -> Result<(Endpoint, Endpoint), NotRewritten> {
    let [a, b, c, d]: [u8; 4] = ctx.load(segment.transport).map_err(failed)?;
    let (from, to) = ([a, b], [c, d]);
    match segment.family {
        Family::V4 => {
            let [source, destination]: [u32; 2] =
                ctx.load(segment.network + V4_SOURCE).map_err(failed)?;
            Ok((Endpoint::v4(source, from), Endpoint::v4(destination, to)))
        }
        Family::V6 => {
            let source: [u32; 4] = ctx.load(segment.network + V6_SOURCE).map_err(failed)?;
            let destination: [u32; 4] =
                ctx.load(segment.network + V6_DESTINATION).map_err(failed)?;
            Ok((Endpoint::v6(source, from), Endpoint::v6(destination, to)))
        }
    }
}

/// Gives a reply to a redirected connection, which [`reply::read`] finds, the source that the guest
/// expects: passes it, drops it, or leaves it as it is and says [`NOT_REDIRECTED`]. A function of its
/// own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn answer(skb: *mut __sk_buff, parsed: u64) -> i32 {
    let Some(reply) = reply::read(skb, parsed) else {
        return NOT_REDIRECTED;
    };
    let Outline {
        family,
        network,
        transport,
        form,
        ..
    } = reply.outline;
    match form {
        Form::Plain => {}
        // Nothing like it is redirected.
        Form::Unusual => return NOT_REDIRECTED,
    }
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    let interface = unsafe { (*skb).ifindex };
    let flow = Flow::new(interface, family, reply.destination, reply.source);
    // SAFETY: the value is copied at once.
    let Some(known) = (unsafe { REDIRECTS.get(flow) }).copied() else {
        return NOT_REDIRECTED;
    };
    let place = Place {
        family,
        network,
        transport,
        end: End::Source,
    };
    match rewrite(skb, place.pack(), &reply.source, &known.original()) {
        REWRITTEN => PASS,
        // Half of it is of no use to the guest.
        _ => DROP,
    }
}

/// What is rewritten of a packet, and where its headers are.
struct Place {
    family: Family,
    network: usize,
    transport: usize,
    end: End,
}

/// An end of a connection, as its headers have it.
enum End {
    Source,
    Destination,
}

const OFFSET: u64 = 0xffff;
const TRANSPORT_SHIFT: u32 = 16;
const V6: u64 = 1 << 32;
const SOURCE: u64 = 1 << 33;

impl Place {
    /// As a number: global functions take nothing else.
    #[inline(always)]
    fn pack(&self) -> u64 {
        let family = match self.family {
            Family::V4 => 0,
            Family::V6 => V6,
        };
        let end = match self.end {
            End::Source => SOURCE,
            End::Destination => 0,
        };
        self.network as u64 | (self.transport as u64) << TRANSPORT_SHIFT | family | end
    }

    #[inline(always)]
    fn unpack(packed: u64) -> Self {
        Self {
            family: if packed & V6 == 0 {
                Family::V4
            } else {
                Family::V6
            },
            network: (packed & OFFSET) as usize,
            transport: (packed >> TRANSPORT_SHIFT & OFFSET) as usize,
            end: if packed & SOURCE == 0 {
                End::Destination
            } else {
                End::Source
            },
        }
    }
}

const REWRITTEN: i32 = 0;
const FAILED: i32 = 1;

/// [`replace`] as a function of its own for the verifier, which would otherwise go through it once for
/// every way that leads there.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rewrite(
    skb: *mut __sk_buff,
    place: u64,
    from: *const Endpoint,
    to: *const Endpoint,
) -> i32 {
    // SAFETY: null, or the caller's own.
    let from = unsafe { from.as_ref() };
    // SAFETY: null, or the caller's own.
    let to = unsafe { to.as_ref() };
    let (Some(from), Some(to)) = (from, to) else {
        return FAILED;
    };
    match replace(&TcContext::new(skb), &Place::unpack(place), from, to) {
        Ok(()) => REWRITTEN,
        Err(NotRewritten) => FAILED,
    }
}

/// Replaces an end of the packet, and what of it is in its checksums: all of them where the kernel
/// does not finish the TCP checksum any more, and only the addresses' part where it does
/// (`CHECKSUM_PARTIAL`), which `BPF_F_PSEUDO_HDR` says.
#[inline(always)]
fn replace(
    ctx: &TcContext,
    place: &Place,
    from: &Endpoint,
    to: &Endpoint,
) -> Result<(), NotRewritten> {
    let tcp_checksum = place.transport + TCP_CHECKSUM;
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    let (v4, v6, port) = match place.end {
        End::Source => (V4_SOURCE, V6_SOURCE, 0),
        End::Destination => (V4_DESTINATION, V6_DESTINATION, TCP_DESTINATION),
    };
    match place.family {
        Family::V4 => {
            let ([.., old], [.., new]) = (from.words(), to.words());
            let (old, new_word) = (u64::from(old), u64::from(new));
            let width = size_of::<u32>() as u64;
            ctx.l3_csum_replace(place.network + V4_CHECKSUM, old, new_word, width)
                .map_err(failed)?;
            ctx.l4_csum_replace(tcp_checksum, old, new_word, pseudo | width)
                .map_err(failed)?;
            ctx.store(place.network + v4, &new, 0).map_err(failed)?;
        }
        Family::V6 => {
            let change = difference(from.words(), to.words())?;
            ctx.l4_csum_replace(tcp_checksum, 0, change, pseudo)
                .map_err(failed)?;
            ctx.store(place.network + v6, &to.words(), 0)
                .map_err(failed)?;
        }
    }
    let (old, new) = (from.port(), to.port());
    if old == new {
        return Ok(());
    }
    let width = size_of::<u16>() as u64;
    let (old, new_half) = (u16::from_ne_bytes(old), u16::from_ne_bytes(new));
    ctx.l4_csum_replace(tcp_checksum, u64::from(old), u64::from(new_half), width)
        .map_err(failed)?;
    ctx.store(place.transport + port, &new, 0).map_err(failed)
}

/// What changes in a checksum.
#[inline(always)]
fn difference(mut from: [u32; 4], mut to: [u32; 4]) -> Result<u64, NotRewritten> {
    let length = size_of::<[u32; 4]>() as u32;
    // SAFETY: both are `length` readable bytes.
    let change = unsafe { bpf_csum_diff(from.as_mut_ptr(), length, to.as_mut_ptr(), length, 0) };
    u64::try_from(change).map_err(|_negative| NotRewritten)
}

#[inline(always)]
fn failed(_: i64) -> NotRewritten {
    NotRewritten
}
