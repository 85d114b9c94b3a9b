//! A packet of the kernel, read in place.

use aya_ebpf::programs::TcContext;
use gate25_common::abi::MAX_GUARDED_PORTS;
use gate25_common::packet::{Frame, MAX_HEADERS};

use crate::maps::{GUARDED_COUNT, GUARDED_PORTS};

/// The part of a packet that can be read without a helper call.
pub(crate) struct LinearFrame {
    start: usize,
    end: usize,
    length: usize,
    tags: u32,
}

impl LinearFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
            length: ctx.len() as usize,
            // SAFETY: the kernel hands every program a valid `__sk_buff`.
            tags: unsafe { (*ctx.skb.skb).vlan_present },
        }
    }
}

impl Frame for LinearFrame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // A single byte's bound would be compiled to `at >= end`, from which the verifier learns
        // nothing (find_good_pkt_pointers, kernel 6.18).
        const { assert!(N >= 2) };
        // Tells the verifier that the sum below cannot wrap.
        if offset > MAX_HEADERS + MAX_HEADERS {
            return None;
        }
        let at = self.start + offset;
        if at + N > self.end {
            return None;
        }
        let mut bytes = [0; N];
        let mut done = 0;
        while done + 8 <= N {
            // SAFETY: within `at..at + N`.
            bytes[done..done + 8].copy_from_slice(&unsafe { word::<u64>(at + done) }.to_ne_bytes());
            done += 8;
        }
        while done + 2 <= N {
            // SAFETY: within `at..at + N`.
            bytes[done..done + 2].copy_from_slice(&unsafe { word::<u16>(at + done) }.to_ne_bytes());
            done += 2;
        }
        if done < N {
            // SAFETY: within `at..at + N`.
            bytes[done] = unsafe { word::<u8>(at + done) };
        }
        Some(bytes)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn stripped_tags(&self) -> u32 {
        self.tags
    }

    #[inline(always)]
    fn guarded(&self, port: [u8; 2]) -> bool {
        let port = u16::from_ne_bytes(port);
        let ports = GUARDED_PORTS.load();
        let count = GUARDED_COUNT.load();
        // Constants to the verifier, which removes the comparisons beyond the count.
        let mut at = 0;
        while at < MAX_GUARDED_PORTS {
            if at < count as usize && ports[at] == port {
                return true;
            }
            at += 1;
        }
        false
    }
}

/// Reads a word in one instruction. Packets are not aligned, and the target would otherwise read
/// byte by byte; machines that run unaligned accesses slowly are not among those that the kernel
/// lets such a program load on.
///
/// # Safety
///
/// `at` must point to a whole `T` within the packet, which the verifier proves.
#[inline(always)]
unsafe fn word<T: Copy>(at: usize) -> T {
    // SAFETY: by the caller; alignment is no concern of BPF's instructions.
    unsafe { *(at as *const T) }
}
