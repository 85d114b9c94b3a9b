//! The hook on what the sockets of a control group send, whichever task holds them.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use gate25_common::address::Family;
use gate25_common::decide::{Decision, Verdict};
use gate25_common::packet::{Malformed, ParseError, Parsed, evidently_other_packet};

use crate::checksum;
use crate::frame::{self, LinearFrame};
use crate::judge::{self, Buffer, Interrupted};
use crate::owner;
use crate::peer;

const DROP: i32 = 0;
const PASS: i32 = 1;

/// The loopback interface of every namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK: u32 = 1;
const PROTOCOL_IPV4: u32 = 0x0800u16.to_be() as u32;
const PROTOCOL_IPV6: u32 = 0x86ddu16.to_be() as u32;

/// Judges what a container sends. Packets begin with their IP headers here.
#[cgroup_skb(egress)]
fn cgroup_egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    let fields = unsafe { &*skb };
    // A container that talks to itself, by whatever address, sends nothing out.
    if fields.ifindex == LOOPBACK {
        return PASS;
    }
    let family = match fields.protocol {
        PROTOCOL_IPV4 => Family::V4,
        PROTOCOL_IPV6 => Family::V6,
        // Not IP; the kernel calls the hook for nothing else.
        _ => return PASS,
    };
    if evidently_other_packet(&LinearFrame::new(skb, checksum::NONE), family, 0) {
        return PASS;
    }
    let action = inspect_packet(skb, frame::parse_packet(skb, family));
    if frame::opaque(action as u64) == PASS as u64 {
        PASS
    } else {
        DROP
    }
}

/// Judges and acts on what [`frame::parse_packet`] found. A function of its own for the verifier,
/// which checks it once (global functions, kernel 5.6).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn inspect_packet(skb: *mut __sk_buff, parsed: u64) -> i32 {
    match frame::unpack_packet(skb, parsed) {
        // Not TCP to a guarded port.
        Ok(Parsed::Other) => PASS,
        // Its inside is out of reach: counted, so that it can be seen.
        Ok(Parsed::Tunnel(tunnel)) => {
            judge::tunnel::<Interrupted>(&owner::of_packet(skb), tunnel);
            PASS
        }
        Ok(Parsed::Guarded(segment)) => {
            let workload = owner::of_packet(skb);
            let decision = judge::guarded(&workload, &segment.subject());
            let action = act(&decision);
            let (decision, destination) =
                match (decision.verdict, peer::redirected_from(skb, &segment)) {
                    // Let through to where it was sent: counted as what has become of it.
                    (Verdict::Allow, Some(meant)) => (decision.redirected(), meant),
                    (_, Some(_) | None) => (decision, segment.destination),
                };
            let buffer = Buffer::new(skb);
            judge::count::<Interrupted>(&workload, &buffer, &segment, destination, &decision);
            action
        }
        // No link layer is parsed here, so it is no less strange than the next.
        Err(ParseError::ShortLink) => malformed(skb, Malformed::Truncated, Family::V4),
        // IP whose headers are not there: it could be anything, so it is closed.
        Err(ParseError::ShortNetwork(family)) => malformed(skb, Malformed::Truncated, family),
        // Of a form that hides or may change its port.
        Err(ParseError::Malformed(kind, family)) => malformed(skb, kind, family),
    }
}

#[inline(always)]
fn malformed(skb: *mut __sk_buff, kind: Malformed, family: Family) -> i32 {
    let (workload, buffer) = (owner::of_packet(skb), Buffer::new(skb));
    act(&judge::malformed::<Interrupted>(
        &workload, &buffer, kind, family,
    ))
}

#[inline(always)]
fn act(decision: &Decision) -> i32 {
    match decision.verdict {
        Verdict::Allow | Verdict::Observe => PASS,
        Verdict::Drop | Verdict::Throttle => DROP,
        // The connect hook has redirected already; what still gets here comes from where rejected
        // packets do.
        Verdict::Redirect | Verdict::Notice => DROP,
        // The connect hook has answered already; what still gets here comes from connections that
        // were open before, from raw sockets, or from sockets handed over.
        Verdict::Reject => DROP,
    }
}
