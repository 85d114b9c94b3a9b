//! The hooks on connects: a refusal that the application sees at once, before any packet.
//!
//! They see the task's control group; packets are judged by the socket's ([`crate::egress`]). So
//! they refuse only what is certain to be refused there, and count only what they refuse.

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple, sockaddr};
use aya_ebpf::helpers::generated::{bpf_bind, bpf_set_retval, bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gate25_common::address::{Address, Family};
use gate25_common::decide::{Decision, Route, Subject, Verdict};
use gate25_common::packet::Form;
use gate25_common::redirect::{Endpoint, Hindrance, SocketPeer};

use crate::frame::guarded;
use crate::judge::{self, Interrupted};
use crate::maps::{CUSTOMERS, HAS_SET_RETVAL, SOCKETS};
use crate::owner::{self, task_cgroup};
use crate::{peer, redirect, responder};

const REFUSE: i32 = 0;
const PASS: i32 = 1;

pub(crate) const SOCK_STREAM: u32 = 1;
const PROTOCOL_TCP: u32 = 6;
const PROTOCOL_MPTCP: u32 = 262;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const EADDRNOTAVAIL: i64 = 99;
const ECONNREFUSED: i32 = 111;

/// The words of an address in network order, as `struct bpf_sock_addr` has them.
#[derive(Clone, Copy)]
enum Peer {
    V4(u32),
    V6([u32; 4]),
}

impl Peer {
    /// Mapped addresses are IPv4, and so are their packets.
    #[inline(always)]
    fn of_v6(words: [u32; 4]) -> Self {
        const MAPPED: u32 = 0xffffu32.to_be();
        match words {
            [0, 0, MAPPED, v4] => Self::V4(v4),
            words => Self::V6(words),
        }
    }

    #[inline(always)]
    fn address(self) -> Address {
        match self {
            Self::V4(word) => Address::from_v4(word.to_ne_bytes()),
            Self::V6(words) => Address::from_v6_words(words),
        }
    }

    #[inline(always)]
    fn endpoint(self, port: [u8; 2]) -> Endpoint {
        match self {
            Self::V4(word) => Endpoint::v4(word, port),
            Self::V6(words) => Endpoint::v6(words, port),
        }
    }

    #[inline(always)]
    fn family(self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }
}

/// Judges a connect to an IPv4 address.
#[cgroup_sock_addr(connect4)]
fn cgroup_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let word = unsafe { (*ctx.sock_addr).user_ip4 };
    let port = port(&ctx);
    let rewrite = |to: &Endpoint| peer::set_v4(&ctx, to);
    judge(&ctx, Peer::V4(word), port, rewrite, || {
        // `struct sockaddr_in` without a port.
        let name = |word| [u32::from(AF_INET), word, 0, 0];
        // SAFETY: the kernel hands every program the socket that connects.
        let own = unsafe { (*socket(&ctx)).src_ip4 };
        try_bind(&ctx, name(word), name(own))
    })
}

/// Judges a connect to an IPv6 address, or to an IPv4 address in an IPv6 socket.
#[cgroup_sock_addr(connect6)]
fn cgroup_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let words = unsafe { (*ctx.sock_addr).user_ip6 };
    let port = port(&ctx);
    let rewrite = |to: &Endpoint| peer::set_v6(&ctx, to);
    judge(&ctx, Peer::of_v6(words), port, rewrite, || {
        // `struct sockaddr_in6` without a port, a flow or a scope.
        let name = |[a, b, c, d]: [u32; 4]| [u32::from(AF_INET6), 0, a, b, c, d, 0];
        // SAFETY: the kernel hands every program the socket that connects.
        let own = unsafe { (*socket(&ctx)).src_ip6 };
        try_bind(&ctx, name(words), name(own))
    })
}

/// The socket that connects: the union has nothing else.
#[inline(always)]
pub(crate) fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let fields = unsafe { &*ctx.sock_addr };
    // SAFETY: the kernel fills it in.
    unsafe { fields.__bindgen_anon_1.sk }
}

#[inline(always)]
fn judge(
    ctx: &SockAddrContext,
    peer: Peer,
    port: [u8; 2],
    rewrite: impl FnOnce(&Endpoint),
    bind: impl FnOnce() -> i64,
) -> i32 {
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let fields = unsafe { &*ctx.sock_addr };
    // Not TCP to a guarded port.
    if fields.type_ != SOCK_STREAM || !is_tcp(fields.protocol) || !guarded(port) {
        return PASS;
    }
    peer::forget(ctx);
    let destination = peer.address();
    // A container that talks to itself sends nothing out.
    if destination.is_loopback() {
        return PASS;
    }
    // The socket was handed over, and answers to its maker's group: its packets are judged.
    if made_elsewhere(ctx) {
        return PASS;
    }
    let workload = owner::of_task();
    let subject = Subject::Guarded {
        destination,
        port,
        route: Route::Direct,
        family: peer.family(),
        form: Form::Plain,
    };
    let decision = judge::guarded(&workload, &subject);
    match decision.verdict {
        // Its packets are judged and counted; dropped ones are to look lost, not refused.
        Verdict::Allow | Verdict::Observe | Verdict::Drop | Verdict::Throttle => PASS,
        Verdict::Reject | Verdict::Redirect | Verdict::Notice => {
            // It may be the container's own address: packets that leave are judged.
            if maybe_own(ctx, peer, port, bind) {
                return PASS;
            }
            let target = if matches!(decision.verdict, Verdict::Reject) {
                None
            } else {
                redirect(ctx, &decision, peer, port)
            };
            if let Some(target) = target {
                rewrite(&target);
                if guarded(target.port()) {
                    // Its packets are counted.
                    return PASS;
                }
            }
            judge::attempt::<Interrupted>(&workload, peer.family(), destination, port, &decision);
            match target {
                Some(_) => PASS,
                // Refused, or its policy has just been changed, or memory is short.
                None => refuse(),
            }
        }
    }
}

/// Where the socket is sent instead of to `peer`, of which a note is made.
#[inline(always)]
fn redirect(
    ctx: &SockAddrContext,
    decision: &Decision,
    peer: Peer,
    port: [u8; 2],
) -> Option<Endpoint> {
    // SAFETY: kept by RCU while the program runs.
    let policy = unsafe { CUSTOMERS.get(decision.customer) }?;
    let target = redirect::target(policy, peer.family())?;
    if !responder::answers(policy, &target, peer.family()) {
        redirect::count::<Interrupted>(Hindrance::Unheard);
        return None;
    }
    let note = SocketPeer::new(peer.endpoint(port), target);
    peer::note(ctx, note).then_some(target)
}

/// Whether a stream socket of this protocol is TCP in the end.
#[inline(always)]
pub(crate) fn is_tcp(protocol: u32) -> bool {
    matches!(protocol, 0 | PROTOCOL_TCP | PROTOCOL_MPTCP)
}

/// Whether the socket is known to come from another control group than the task's.
#[inline(always)]
fn made_elsewhere(ctx: &SockAddrContext) -> bool {
    // SAFETY: the socket is the context's own.
    let maker = unsafe { SOCKETS.get_ptr_mut(ctx) };
    // SAFETY: null, or storage that RCU keeps while the program runs.
    match unsafe { maker.as_ref() } {
        Some(cgroup) => *cgroup != task_cgroup(),
        None => false,
    }
}

/// Whether `peer` may be an address of this network namespace that something listens on.
///
/// These programs cannot ask for routes. Where nothing listens on the port, a connect to an own
/// address ends as a refused one does. A listener on all addresses tells nothing about this one;
/// an attempt to give the socket that address as its own does: it fails if the namespace does not
/// have it.
#[inline(always)]
fn maybe_own(ctx: &SockAddrContext, peer: Peer, port: [u8; 2], bind: impl FnOnce() -> i64) -> bool {
    let port = u32::from(u16::from_ne_bytes(port)) << 16;
    // `struct bpf_sock_tuple`: source, destination, and their ports.
    let listens = match peer {
        Peer::V4(word) => listens(ctx, &mut [0, word, port]),
        Peer::V6([a, b, c, d]) => listens(ctx, &mut [0, 0, 0, 0, a, b, c, d, port]),
    };
    listens && bind() != -EADDRNOTAVAIL
}

#[inline(always)]
fn listens<const N: usize>(ctx: &SockAddrContext, tuple: &mut [u32; N]) -> bool {
    // SAFETY: reads `4 * N` bytes of ours.
    let socket = unsafe {
        bpf_sk_lookup_tcp(
            ctx.sock_addr.cast(),
            tuple.as_mut_ptr().cast::<bpf_sock_tuple>(),
            4 * N as u32,
            BPF_F_CURRENT_NETNS as u64,
            0,
        )
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a reference of our own, given up here.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// Tries an address, and gives the socket its own one back.
#[inline(always)]
fn try_bind<const N: usize>(ctx: &SockAddrContext, mut name: [u32; N], mut own: [u32; N]) -> i64 {
    let tried = bind(ctx, &mut name);
    if tried == 0 {
        // What it had before it can have again. A socket with a port of its own gets none to try.
        let _had = bind(ctx, &mut own);
    }
    tried
}

#[inline(always)]
fn bind<const N: usize>(ctx: &SockAddrContext, name: &mut [u32; N]) -> i64 {
    let name = name.as_mut_ptr().cast::<sockaddr>();
    // SAFETY: reads `4 * N` bytes of ours.
    unsafe { bpf_bind(ctx.sock_addr, name, 4 * N as i32) }
}

/// The error that a connect ends in is EPERM unless another is set.
#[inline(always)]
fn refuse() -> i32 {
    // A constant to the verifier, which removes the call where the kernel has no such helper.
    if HAS_SET_RETVAL.load() != 0 {
        // SAFETY: takes a number only.
        let _set = unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> [u8; 2] {
    // SAFETY: the kernel hands every program a valid `bpf_sock_addr`.
    let port = unsafe { (*ctx.sock_addr).user_port };
    (port as u16).to_ne_bytes()
}
