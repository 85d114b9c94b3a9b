//! Whether the running agent tells the notice where connections are led.
//!
//! Whoever listens on the agent's address once the agent is dead would be sent every customer's mail. So
//! the agent's own sockets are kept in a table, which they leave when they are closed.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_release};
use gate25_common::abi::{Blocked, CustomerPolicy};
use gate25_common::address::Family;
use gate25_common::redirect::Endpoint;

use crate::maps::RESPONDERS;

/// Whether connections of a customer with this policy may be led to `target`. Relays are elsewhere:
/// nobody on this host can take their place.
#[inline(always)]
pub(crate) fn answers(policy: &CustomerPolicy, target: &Endpoint, family: Family) -> bool {
    match policy.blocked() {
        Some(Blocked::Notice) => listens(target, family as u32) == LISTENS,
        Some(Blocked::Redirect | Blocked::Reject | Blocked::Drop) | None => true,
    }
}

const LISTENS: i32 = 0;
const SILENT: i32 = 1;

/// Whether the agent's socket for this family is open, and bound to `target`. A function of its own
/// for the verifier, which follows the reference to the socket.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listens(target: *const Endpoint, family: u32) -> i32 {
    // SAFETY: null, or the caller's own.
    let Some(target) = (unsafe { target.as_ref() }) else {
        return SILENT;
    };
    let map = (&raw const RESPONDERS).cast_mut().cast();
    // SAFETY: reads a key of ours. The reference that the kernel returns is given up below.
    let socket = unsafe { bpf_map_lookup_elem(map, (&raw const family).cast()) };
    if socket.is_null() {
        return SILENT;
    }
    let bound = if family == Family::V4 as u32 {
        let [.., word] = target.words();
        own_word(socket.cast(), V4_ADDRESS) == word
    } else {
        let mut same = true;
        for (at, word) in target.words().into_iter().enumerate() {
            same &= own_word(socket.cast(), V6_ADDRESS + at * size_of::<u32>()) == word;
        }
        same
    };
    let port = own_word(socket.cast(), PORT);
    // SAFETY: the reference from above.
    unsafe { bpf_sk_release(socket) };
    // The kernel gives this one in host order.
    if bound && port == u32::from(u16::from_be_bytes(target.port())) {
        LISTENS
    } else {
        SILENT
    }
}

const V4_ADDRESS: usize = core::mem::offset_of!(bpf_sock, src_ip4);
const V6_ADDRESS: usize = core::mem::offset_of!(bpf_sock, src_ip6);
const PORT: usize = core::mem::offset_of!(bpf_sock, src_port);

/// A word of what the kernel tells of a socket. Words that are read together it would refuse.
#[inline(always)]
fn own_word(socket: *const bpf_sock, at: usize) -> u32 {
    // SAFETY: within `bpf_sock`, by the offsets above.
    let word = unsafe { socket.byte_add(at) }.cast::<u32>();
    // SAFETY: as above, of a socket that the caller holds a reference to.
    unsafe { word.read_volatile() }
}
