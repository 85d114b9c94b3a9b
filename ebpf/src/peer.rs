//! Sockets of containers that were connected to their customer's target instead of where they meant to
//! go, and the hooks that tell their tasks the place that they meant.

use aya_ebpf::bindings::{__sk_buff, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gate25_common::address::Address;
use gate25_common::packet::Segment;
use gate25_common::redirect::{Endpoint, SocketPeer};

use crate::connect::socket;
use crate::maps::SOCKET_PEERS;

/// The only value that the kernel takes from these hooks.
const GO_ON: i32 = 1;

/// Tells the other end of an IPv4 connection.
#[cgroup_sock_addr(getpeername4)]
fn cgroup_peer4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let word = unsafe { (*ctx.sock_addr).user_ip4 };
    if let Some(original) = original(&ctx, &Endpoint::v4(word, port(&ctx))) {
        set_v4(&ctx, &original);
    }
    GO_ON
}

/// Tells the other end of an IPv6 connection, or of an IPv4 one in an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
fn cgroup_peer6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let words = unsafe { (*ctx.sock_addr).user_ip6 };
    if let Some(original) = original(&ctx, &Endpoint::v6(words, port(&ctx))) {
        set_v6(&ctx, &original);
    }
    GO_ON
}

/// Where the socket was to go, if it was redirected to `peer`.
#[inline(always)]
fn original(ctx: &SockAddrContext, peer: &Endpoint) -> Option<Endpoint> {
    // SAFETY: the socket is the context's own.
    let known = unsafe { SOCKET_PEERS.get_ptr_mut(ctx) };
    // SAFETY: null, or storage that RCU keeps while the program runs.
    let known = unsafe { known.as_ref() }?;
    (known.target() == *peer).then(|| known.original())
}

/// Notes that the socket goes to a target.
#[inline(always)]
pub(crate) fn note(ctx: &SockAddrContext, mut peer: SocketPeer) -> bool {
    // SAFETY: the socket is the context's own.
    let known = unsafe { SOCKET_PEERS.get_or_insert_ptr_mut(ctx, Some(&mut peer)) };
    // SAFETY: null, or storage that RCU keeps while the program runs.
    match unsafe { known.as_mut() } {
        Some(known) => {
            *known = peer;
            true
        }
        None => false,
    }
}

/// Forgets where the socket went before.
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    // SAFETY: the socket is the context's own. Mostly there is nothing to forget.
    let _none = unsafe { SOCKET_PEERS.delete(socket(ctx)) };
}

/// Where the sender of a packet meant to go, if its socket was redirected to where the packet goes.
#[inline(always)]
pub(crate) fn redirected_from(skb: *mut __sk_buff, segment: &Segment) -> Option<Address> {
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    let fields = unsafe { &*skb };
    // SAFETY: the kernel fills it in.
    let socket = unsafe { fields.__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: a socket of the kernel's; nothing is made.
    let known = unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKET_PEERS).cast_mut().cast(),
            socket.cast(),
            core::ptr::null_mut(),
            0,
        )
    };
    // SAFETY: null, or storage that RCU keeps while the program runs.
    let known = unsafe { known.cast::<SocketPeer>().as_ref() }?;
    let target = known.target();
    (target.address() == segment.destination && target.port() == segment.port)
        .then(|| known.original().address())
}

/// Makes `to` the other end of an IPv4 socket.
#[inline(always)]
pub(crate) fn set_v4(ctx: &SockAddrContext, to: &Endpoint) {
    let [.., word] = to.words();
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let fields = unsafe { &mut *ctx.sock_addr };
    // SAFETY: a field of the kernel's, which takes whole words.
    unsafe { (&raw mut fields.user_ip4).write_volatile(word) };
    set_port(fields, to);
}

/// Makes `to` the other end of an IPv6 socket.
#[inline(always)]
pub(crate) fn set_v6(ctx: &SockAddrContext, to: &Endpoint) {
    let [a, b, c, d] = to.words();
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let fields = unsafe { &mut *ctx.sock_addr };
    // SAFETY: as above.
    unsafe { (&raw mut fields.user_ip6[0]).write_volatile(a) };
    // SAFETY: as above.
    unsafe { (&raw mut fields.user_ip6[1]).write_volatile(b) };
    // SAFETY: as above.
    unsafe { (&raw mut fields.user_ip6[2]).write_volatile(c) };
    // SAFETY: as above.
    unsafe { (&raw mut fields.user_ip6[3]).write_volatile(d) };
    set_port(fields, to);
}

#[inline(always)]
fn set_port(fields: &mut bpf_sock_addr, to: &Endpoint) {
    let port = u32::from(u16::from_ne_bytes(to.port()));
    // SAFETY: as above.
    unsafe { (&raw mut fields.user_port).write_volatile(port) };
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> [u8; 2] {
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let port = unsafe { (*ctx.sock_addr).user_port };
    (port as u16).to_ne_bytes()
}
