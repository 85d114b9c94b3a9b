//! A packet of the kernel, read in place.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use gate25_common::abi::MAX_GUARDED_PORTS;
use gate25_common::address::Family;
use gate25_common::decide::Route;
use gate25_common::packet::{self, Form, Frame, Link, MAX_HEADERS, ParseError, Parsed};

use crate::checksum;
use crate::maps::{GUARDED_COUNT, GUARDED_PORTS};
use crate::packed;

/// The part of a packet that can be read without a helper call. A checksum may still be written at
/// `late`.
pub(crate) struct LinearFrame {
    skb: *mut __sk_buff,
    start: usize,
    end: usize,
    length: usize,
    tags: u32,
    late: u32,
}

impl LinearFrame {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff, late: u32) -> Self {
        // SAFETY: the kernel hands every program a valid `__sk_buff`.
        let fields = unsafe { &*skb };
        Self {
            skb,
            start: fields.data as usize,
            end: fields.data_end as usize,
            length: fields.len as usize,
            tags: fields.vlan_present,
            late,
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
    fn settled(&self, end: usize) -> bool {
        self.late as usize >= end
    }

    #[inline(always)]
    fn stripped_tags(&self) -> u32 {
        self.tags
    }

    #[inline(always)]
    fn route_of_options(&self, before: usize, end: usize) -> Result<Route, ParseError> {
        packed::unpack_route(opaque(options_route(
            self.skb,
            before as u32,
            end as u32,
            self.late,
        )))
    }

    #[inline(always)]
    fn guarded(&self, port: [u8; 2]) -> bool {
        guarded(port)
    }
}

/// A packet whose headers are copied out by helper, wherever they are: programs on control groups
/// cannot bring them into the linear part. No checksum is to come that a socket could misplace.
pub(crate) struct CopiedPacket {
    skb: *mut __sk_buff,
    length: usize,
}

impl CopiedPacket {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        Self {
            skb,
            // SAFETY: the kernel hands every program a valid `__sk_buff`.
            length: unsafe { (*skb).len } as usize,
        }
    }
}

impl Frame for CopiedPacket {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: writes `N` bytes of ours.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                bytes.as_mut_ptr().cast(),
                N as u32,
            )
        };
        if failed == 0 { Some(bytes) } else { None }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn stripped_tags(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn route_of_options(&self, before: usize, end: usize) -> Result<Route, ParseError> {
        let route = copied_options_route(self.skb, before as u32, end as u32);
        packed::unpack_route(opaque(route))
    }

    #[inline(always)]
    fn guarded(&self, port: [u8; 2]) -> bool {
        guarded(port)
    }
}

/// Whether TCP connections to `port` (network order) are judged.
#[inline(always)]
pub(crate) fn guarded(port: [u8; 2]) -> bool {
    let port = u16::from_ne_bytes(port);
    let count = GUARDED_COUNT.load();
    let first = (&raw const GUARDED_PORTS).cast::<u16>();
    // The count is a constant to the verifier, which removes what is beyond it, loads included.
    let mut at = 0;
    while at < MAX_GUARDED_PORTS {
        if at < count as usize {
            // SAFETY: within the array of this many numbers, which nobody writes.
            let guarded = unsafe { first.wrapping_add(at).read_volatile() };
            if guarded == port {
                return true;
            }
        }
        at += 1;
    }
    false
}

/// [`packet::parse`], as a number for [`unpack_frame`]. Its layers are each a function of its own
/// for the verifier: it goes through the network layer once and not once for every stack of tags.
#[inline(always)]
pub(crate) fn parse_frame(skb: *mut __sk_buff, late: u32) -> u64 {
    let link = match packet::plain_link(&LinearFrame::new(skb, late)) {
        Some(plain) => packed::pack_link(Ok(plain)),
        None => opaque(link_layer(skb, late)),
    };
    if packed::is_ip(link) {
        network_layer(skb, link, late)
    } else {
        link
    }
}

/// What [`parse_frame`] found.
///
/// # Errors
///
/// As [`packet::parse`].
#[inline(always)]
pub(crate) fn unpack_frame(skb: *mut __sk_buff, parsed: u64) -> Result<Parsed, ParseError> {
    // Only what was found settled is read again.
    packed::unpack_parsed(opaque(parsed), &LinearFrame::new(skb, checksum::NONE))
}

/// [`packet::network`] for a packet that begins with its IP header, as a number for
/// [`unpack_packet`].
#[inline(always)]
pub(crate) fn parse_packet(skb: *mut __sk_buff, family: Family) -> u64 {
    let parsed = opaque(network_layer(skb, bare(family), checksum::NONE));
    if packed::is_short(parsed) {
        // A raw socket's headers may lie in a page of their own.
        copied_network_layer(skb, bare(family))
    } else {
        parsed
    }
}

/// What [`parse_packet`] found.
///
/// # Errors
///
/// As [`packet::network`].
#[inline(always)]
pub(crate) fn unpack_packet(skb: *mut __sk_buff, parsed: u64) -> Result<Parsed, ParseError> {
    packed::unpack_parsed(opaque(parsed), &CopiedPacket::new(skb))
}

/// What [`link_layer`] would say of a packet without a link header.
#[inline(always)]
fn bare(family: Family) -> u64 {
    packed::pack_link(Ok(Link::Ip {
        family,
        network: 0,
        form: Form::Plain,
    }))
}

/// [`packet::network`] for what [`link_layer`] found.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn network_layer(skb: *mut __sk_buff, link: u64, late: u32) -> u64 {
    network_of(&LinearFrame::new(skb, late), link)
}

/// [`network_layer`] by helper.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn copied_network_layer(skb: *mut __sk_buff, link: u64) -> u64 {
    network_of(&CopiedPacket::new(skb), link)
}

#[inline(always)]
pub(crate) fn network_of<F: Frame>(frame: &F, link: u64) -> u64 {
    packed::pack_parsed(match packed::unpack_link(link) {
        Ok(Link::Ip {
            family,
            network,
            form,
        }) => packet::network(frame, family, network, form),
        Ok(Link::Other) => Ok(Parsed::Other),
        Err(error) => Err(error),
    })
}

/// [`packet::link`] for the frame of `skb`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn link_layer(skb: *mut __sk_buff, late: u32) -> u64 {
    packed::pack_link(packet::link(&LinearFrame::new(skb, late)))
}

/// The same number, of which the compiler knows nothing. It knows which numbers our functions
/// return and would leave out bounds that the verifier, which does not, must see.
#[inline(always)]
pub(crate) fn opaque(number: u64) -> u64 {
    // SAFETY: a local variable.
    unsafe { core::ptr::read_volatile(&raw const number) }
}

/// [`packet::ipv4_route`] as a function of its own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn options_route(skb: *mut __sk_buff, before: u32, end: u32, late: u32) -> u64 {
    route_of(&LinearFrame::new(skb, late), before, end)
}

/// [`options_route`] by helper.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn copied_options_route(skb: *mut __sk_buff, before: u32, end: u32) -> u64 {
    route_of(&CopiedPacket::new(skb), before, end)
}

#[inline(always)]
fn route_of<F: Frame>(frame: &F, before: u32, end: u32) -> u64 {
    // For the verifier, which knows nothing of the caller.
    let (before, end) = (before as usize, end as usize);
    if before > MAX_HEADERS || end > MAX_HEADERS {
        return packed::SHORT;
    }
    packed::pack_route(packet::ipv4_route(frame, before, end))
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
