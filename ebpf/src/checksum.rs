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
use gate25_common::names::CAST_MARK;

use crate::maps::SKB_LAYOUT;

/// No checksum is to come.
pub(crate) const NONE: u32 = u32::MAX;
/// `CHECKSUM_PARTIAL` (include/linux/skbuff.h).
const PARTIAL: u8 = 3;

/// Offset in the frame of the two bytes that are still to be written, or [`NONE`]. What cannot be
/// read counts as the frame's first bytes, without which nothing passes.
#[inline(always)]
pub(crate) fn late_checksum(skb: *mut __sk_buff) -> u32 {
    if is_settled(skb) {
        return NONE;
    }
    late_place(skb)
}

/// Whether certainly no checksum is to come, by the kernel's own structure, read in place: a helper
/// would take longer than all the rest that is done for most packets. The agent puts the
/// instructions right where the kernel allows it; as they are here, nothing is certain.
#[inline(always)]
fn is_settled(skb: *mut __sk_buff) -> bool {
    let state: u64;
    // SAFETY: touches no memory as it is, and only the kernel's view of its argument, which it
    // checks, as the agent makes it: a call without further arguments, a load, two operations.
    unsafe {
        asm!(
            "r0 = {mark}",
            "r0 &= 0",
            "r0 &= 0",
            "r0 ^= 0",
            mark = const CAST_MARK,
            inlateout("r1") skb => _,
            lateout("r0") state,
            lateout("r2") _,
            lateout("r3") _,
            lateout("r4") _,
            lateout("r5") _,
            options(nostack, readonly),
        );
    }
    state != 0
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
    if state[0] >> layout.summed_shift() & 3 != PARTIAL {
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
