//! The hook on the host side of a guest's interface, in the direction that reaches the guest.
//!
//! A guest whose packets leave by another network with an address of this one gets the answers here.
//! Without them it sends no mail, so what it may not send to, it does not hear from either.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use gate25_common::address::Family;
use gate25_common::counters::Uninterrupted;
use gate25_common::packet::{MAX_HEADERS, Reply, ToGuest, evidently_other};
use gate25_common::redirect::MAX_TARGET_PORTS;
use gate25_common::returns::Fate;

use crate::checksum;
use crate::frame::{self, LinearFrame};
use crate::judge::{self, Buffer};
use crate::maps::{BLOCK_RETURN, RETURN_COUNTERS, RETURN_CUSTOMER, TARGET_PORTS};
use crate::owner::{self, Workload};
use crate::packed;
use crate::redirect;

const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// Gives replies to redirected connections the source that the guest expects, and judges others.
#[classifier]
fn tc_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if evidently_other(&to_guest(skb)) {
        return PASS;
    }
    let mut parsed = frame::opaque(parse(skb));
    if packed::is_short(parsed) {
        // Where that fails, it is found short again.
        let _missing = ctx.pull_data(ctx.len().min(2 * MAX_HEADERS as u32));
        parsed = frame::opaque(parse(skb));
    }
    match redirect::answer(skb, parsed) {
        // What was led elsewhere was judged on its way out.
        redirect::NOT_REDIRECTED => judge(skb, parsed),
        action => action,
    }
}

/// Judges and counts what [`parse`] found. A function of its own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge(skb: *mut __sk_buff, parsed: u64) -> i32 {
    let Some(reply) = read(skb, parsed) else {
        // No TCP from a port of interest; a later fragment, whose first is judged; or of a form that
        // no mail server sends, and that no guest's TCP takes.
        return PASS;
    };
    if !returns_are_judged() || !frame::guarded(reply.source.port()) {
        // A target's port, or nothing at all is of interest but those.
        return PASS;
    }
    if !reply.answers() {
        // The reset that refuses what the guest has sent leaves here, too.
        return PASS;
    }
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    let workload = owner::of_interface(unsafe { (*skb).ifindex });
    let fate = Fate::of(judge::guarded(&workload, &reply.subject()).verdict);
    let segments = Buffer::new(skb).segments(reply.outline.payload);
    count(&workload, fate, reply.outline.family, segments);
    match fate {
        // Where it comes from, the guest may send to; or nothing is refused here.
        Fate::Allow | Fate::Observe => PASS,
        Fate::Drop => DROP,
    }
}

#[inline(always)]
fn count(workload: &Workload, fate: Fate, family: Family, segments: u64) {
    if let Some(counters) = RETURN_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value, which no other program interrupts this one to move.
        unsafe { (*counters).count::<Uninterrupted>(fate, family, segments) };
    }
    if let Some(counters) = RETURN_CUSTOMER.get_ptr_mut(workload.customer) {
        // SAFETY: as above, and kept by RCU while the program runs.
        unsafe { (*counters).count::<Uninterrupted>(fate, family, segments) };
    }
}

/// The frame's headers, as far as they are of interest, as a number for [`read`].
#[inline(always)]
fn parse(skb: *mut __sk_buff) -> u64 {
    let link = frame::opaque(frame::link_layer(skb, checksum::NONE));
    if packed::is_ip(link) {
        network_layer_back(skb, link)
    } else {
        link
    }
}

/// The TCP packet that [`parse`] found.
#[inline(always)]
pub(crate) fn read(skb: *mut __sk_buff, parsed: u64) -> Option<Reply> {
    let outline = packed::unpack_outline(frame::opaque(parsed))?;
    Reply::read(outline, &LinearFrame::new(skb, checksum::NONE))
}

/// [`gate25_common::packet::network`] for what [`frame::link_layer`] found in a frame to the guest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn network_layer_back(skb: *mut __sk_buff, link: u64) -> u64 {
    frame::network_of(&to_guest(skb), link)
}

/// The frame of `skb`. Its checksum may still be to come: the host's own, where it belongs.
#[inline(always)]
fn to_guest(skb: *mut __sk_buff) -> ToGuest<LinearFrame, impl Fn([u8; 2]) -> bool> {
    ToGuest::new(LinearFrame::new(skb, checksum::NONE), |port| {
        is_targets(port) || returns_are_judged() && frame::guarded(port)
    })
}

/// A constant to the verifier, which removes what is not wanted.
#[inline(always)]
fn returns_are_judged() -> bool {
    BLOCK_RETURN.load() != 0
}

/// Whether targets have this port.
#[inline(always)]
fn is_targets(port: [u8; 2]) -> bool {
    let ports = TARGET_PORTS.load();
    let mut at = 0;
    while at < MAX_TARGET_PORTS {
        if ports[at] != 0 && ports[at] == u16::from_ne_bytes(port) {
            return true;
        }
        at += 1;
    }
    false
}
