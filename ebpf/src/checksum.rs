//! Checksums that are still to be written into a packet.
//!
//! A guest's driver (virtio-net header, `PACKET_VNET_HDR`) may leave the checksum to the host and
//! says where it goes. The kernel takes any place, and writes long after this program has judged
//! the packet: into the destination port, if the guest says so. So no packet passes by virtue of
//! bytes that such a checksum will overwrite.

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use gate25_common::abi::SkbLayout;
use gate25_common::names::CAST;

use crate::maps::{HAS_CAST, SKB_LAYOUT};

/// No checksum is to come.
pub(crate) const NONE: u32 = u32::MAX;
/// `CHECKSUM_PARTIAL` (include/linux/skbuff.h).
const PARTIAL: u8 = 3;

/// Offset in the frame of the two bytes that are still to be written, or [`NONE`]. What cannot be
/// read counts as the frame's first bytes, without which nothing passes.
#[inline(always)]
pub(crate) fn late_checksum(skb: *mut __sk_buff) -> u32 {
    if HAS_CAST.load() == 1 && !is_partial(summed(skb)) {
        return NONE;
    }
    late_place(skb)
}

/// The byte of the kernel's own structure that says whether a checksum is to come, read in place:
/// a helper would take longer than all the rest that is done for most packets.
#[inline(always)]
fn summed(skb: *mut __sk_buff) -> u64 {
    let state: u64;
    // SAFETY: not reached before the agent has made the call one that returns the kernel's view of
    // its argument, and the load one of a byte of it.
    unsafe {
        asm!(
            "call {cast}",
            "r0 = *(u8 *)(r0 + 0)",
            cast = const CAST,
            inlateout("r1") skb => _,
            lateout("r0") state,
            lateout("r2") _,
            lateout("r3") _,
            lateout("r4") _,
            lateout("r5") _,
            options(nostack, readonly),
        );
    }
    state
}

#[inline(always)]
fn is_partial(summed: u64) -> bool {
    summed as u8 >> SKB_LAYOUT.load().summed_shift() & 3 == PARTIAL
}

/// [`late_checksum`] by helper. A function of its own for the sake of the stack, which it needs to
/// itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn late_place(skb: *mut __sk_buff) -> u32 {
    let layout = SKB_LAYOUT.load();
    if !layout.is_known() {
        return NONE;
    }
    let Some(state) = read::<{ SkbLayout::SPAN }>(skb, layout.summed()) else {
        return 0;
    };
    if !is_partial(u64::from(state[0])) {
        return NONE;
    }
    let at = layout.checksum_behind_summed();
    let (Some(start), Some(offset)) = (half(&state, at), half(&state, at + 2)) else {
        return 0;
    };
    let Some(pointers) = read::<16>(skb, layout.head()) else {
        return 0;
    };
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = pointers;
    let head = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let data = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
    let headroom = data.wrapping_sub(head) as u32;
    // A place before the frame wraps to beyond its end, where it does no harm.
    (u32::from(start) + u32::from(offset)).wrapping_sub(headroom)
}

#[inline(always)]
fn half(state: &[u8; SkbLayout::SPAN], at: usize) -> Option<u16> {
    match (state.get(at), state.get(at + 1)) {
        (Some(low), Some(high)) => Some(u16::from_ne_bytes([*low, *high])),
        _ => None,
    }
}

/// `N` bytes at `offset` of the kernel's own structure behind `skb`.
#[inline(always)]
fn read<const N: usize>(skb: *mut __sk_buff, offset: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: writes `N` bytes of ours; the helper bears any source address.
    let failed = unsafe {
        bpf_probe_read_kernel(
            bytes.as_mut_ptr().cast(),
            N as u32,
            skb.cast::<u8>().wrapping_add(offset).cast(),
        )
    };
    if failed == 0 { Some(bytes) } else { None }
}
