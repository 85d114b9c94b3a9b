//! The hook on the host side of a guest's interface, in the direction that leaves the guest.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use gate25_common::address::Family;
use gate25_common::counters::Uninterrupted;
use gate25_common::decide::{Decision, Verdict};
use gate25_common::packet::{MAX_HEADERS, Malformed, ParseError, Parsed, evidently_other};

use crate::checksum;
use crate::frame::{self, LinearFrame};
use crate::judge::{self, Buffer};
use crate::maps::GUARD_MARK;
use crate::owner::{self, Workload};
use crate::packed;
use crate::redirect;
use crate::reset;

/// "Nothing to say": later programs and the stack go on with the packet. The same number is
/// `TCX_NEXT`.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;
/// No actions of the kernel's: what is still to be done with a packet. Done by functions beside the
/// one that judges and not below it, for the sake of the stack.
const REFUSE: i32 = redirect::IMPOSSIBLE;
const REDIRECT: i32 = REFUSE + 1;
const ALLOWED: i32 = REDIRECT + 1;

/// Judges what leaves a guest.
#[classifier]
fn tc_ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let late = checksum::late_checksum(skb);
    if evidently_other(&LinearFrame::new(skb, late)) {
        return PASS;
    }
    let mut parsed = frame::opaque(frame::parse_frame(skb, late));
    if packed::is_short(parsed) {
        load_headers(&ctx);
        parsed = frame::parse_frame(skb, late);
    }
    // Here already, since what follows takes longer to be called than this to be told.
    if packed::is_other(parsed) {
        return pass_seen(skb);
    }
    match inspect(skb, parsed) {
        REDIRECT => finish(skb, parsed, redirect::redirect(skb, parsed, redirect::LED)),
        // It may go to the target itself.
        ALLOWED => {
            let noted = redirect::redirect(skb, parsed, redirect::BY_ITSELF);
            finish(skb, parsed, noted)
        }
        REFUSE => refuse(skb, parsed),
        action => action,
    }
}

/// Does what [`redirect::redirect`] says.
#[inline(always)]
fn finish(skb: *mut __sk_buff, parsed: u64, action: i32) -> i32 {
    match action {
        PASS => pass_seen(skb),
        redirect::IMPOSSIBLE => refuse(skb, parsed),
        // Half rewritten, it goes nowhere.
        _ => DROP,
    }
}

/// Judges and acts on what [`frame::parse_frame`] found. A function of its own for the verifier,
/// which checks it once (global functions, kernel 5.6), and not called from deep within others:
/// the stacks of a chain of calls are 512 bytes together, each rounded up to 32 before 6.8.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn inspect(skb: *mut __sk_buff, parsed: u64) -> i32 {
    match frame::unpack_frame(skb, parsed) {
        // Not TCP to a guarded port.
        Ok(Parsed::Other) => pass_seen(skb),
        // Its inside is out of reach: counted, so that it can be seen.
        Ok(Parsed::Tunnel(tunnel)) => {
            judge::tunnel::<Uninterrupted>(&workload(skb), tunnel);
            pass_seen(skb)
        }
        Ok(Parsed::Guarded(segment)) => {
            let decision =
                judge::segment::<Uninterrupted>(&workload(skb), &Buffer::new(skb), &segment);
            act(skb, &decision)
        }
        // Too short to name a protocol: no receiver takes it for IP.
        Err(ParseError::ShortLink) => pass_seen(skb),
        // IP whose headers are not there: it could be anything, so it is closed.
        Err(ParseError::ShortNetwork(family)) => malformed(skb, Malformed::Truncated, family),
        // Of a form that hides or may change its port.
        Err(ParseError::Malformed(kind, family)) => malformed(skb, kind, family),
    }
}

#[inline(always)]
fn malformed(skb: *mut __sk_buff, kind: Malformed, family: Family) -> i32 {
    let (workload, buffer) = (workload(skb), Buffer::new(skb));
    let decision = judge::malformed::<Uninterrupted>(&workload, &buffer, kind, family);
    act(skb, &decision)
}

#[inline(always)]
fn act(skb: *mut __sk_buff, decision: &Decision) -> i32 {
    #[cfg(feature = "log")]
    log_line(
        decision.customer.get(),
        decision.verdict as u32,
        decision.reason as u32,
    );
    match decision.verdict {
        Verdict::Allow => ALLOWED,
        Verdict::Observe => pass_seen(skb),
        Verdict::Drop | Verdict::Throttle => DROP,
        Verdict::Redirect | Verdict::Notice => REDIRECT,
        Verdict::Reject => REFUSE,
    }
}

/// Answers the packet that [`frame::parse_frame`] found this of; it does not pass in any case.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn refuse(skb: *mut __sk_buff, parsed: u64) -> i32 {
    let Ok(Parsed::Guarded(segment)) = frame::unpack_frame(skb, parsed) else {
        // Its form does not let it be answered.
        return DROP;
    };
    match reset::answer(&TcContext::new(skb), &segment) {
        Ok(action) => action,
        // Not to be answered, or no room for an answer: it still does not pass.
        Err(reset::NoReset) => DROP,
    }
}

/// Passes a packet that was looked into, and tells the guard, which cannot look into all of them and
/// stops those that may hold a guarded packet. What is evidently another needs no such word.
#[inline(always)]
fn pass_seen(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    let fields = unsafe { &mut *skb };
    fields.mark |= GUARD_MARK.load();
    PASS
}

/// Brings headers that lie outside the linear part of the packet into it. Where that fails, or
/// where there is no more of the packet, they are found missing again.
#[inline(always)]
fn load_headers(ctx: &TcContext) {
    let _missing = ctx.pull_data(ctx.len().min(2 * MAX_HEADERS as u32));
}

#[inline(always)]
fn workload(skb: *mut __sk_buff) -> Workload {
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    owner::of_interface(unsafe { (*skb).ifindex })
}

/// Writes a debug line. Numbers, and a function of its own, for the verifier: it would follow the
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
