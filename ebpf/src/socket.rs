//! The hook on new sockets: notes which control group a TCP socket comes from.

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use crate::connect::{SOCK_STREAM, is_tcp};
use crate::maps::SOCKETS;
use crate::owner::task_cgroup;

const ALLOW: i32 = 1;

/// Notes where a socket comes from: it keeps its control group wherever it is handed to. No socket
/// is refused here.
#[cgroup_sock(sock_create)]
fn cgroup_socket(ctx: SockContext) -> i32 {
    // SAFETY: the kernel hands every program a valid `bpf_sock`.
    let socket = unsafe { &*ctx.sock };
    if socket.type_ != SOCK_STREAM || !is_tcp(socket.protocol) {
        return ALLOW;
    }
    let mut cgroup = task_cgroup();
    // SAFETY: the socket is the context's own, the value ours. Without memory for the note, the
    // connecting task answers for the socket, and the packets' hook looks at the socket itself.
    let _noted = unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            ctx.sock.cast(),
            (&raw mut cgroup).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    ALLOW
}
