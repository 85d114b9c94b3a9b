//! Answers a packet with a TCP reset, sent back through the interface it came from.

use aya_ebpf::bindings::BPF_F_PSEUDO_HDR;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_redirect, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use gate25_common::address::Family;
use gate25_common::packet::{Form, Segment};

const MAC_ADDRESSES: usize = 12;
const TCP_HEADER: usize = 20;
const TCP_CHECKSUM: usize = 16;
const TTL: u8 = 64;
const TCP: u8 = 6;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The packet is not to be answered, or could not be turned into an answer.
pub(crate) struct NoReset;

/// Turns the packet into a reset for its sender (RFC 9293, 3.10.7.1) and sends it back. Returns
/// the action for the kernel.
///
/// # Errors
///
/// [`NoReset`] for packets that must not be answered: resets, broadcast and multicast, packets
/// with IP options, extension headers or fragments; and where the kernel refuses to reshape the
/// packet.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext, segment: &Segment) -> Result<i32, NoReset> {
    match segment.form {
        Form::Plain => {}
        Form::Unusual => return Err(NoReset),
    }
    if segment.is_reset() {
        return Err(NoReset);
    }
    let macs: [u8; MAC_ADDRESSES] = load(ctx, 0)?;
    if macs[0] & 1 != 0 {
        return Err(NoReset);
    }
    let tcp: TcpFields = load(ctx, segment.transport)?;
    let header = tcp.reset(segment);
    match segment.family {
        Family::V4 => v4(ctx, segment, header)?,
        Family::V6 => v6(ctx, segment, header)?,
    }
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
    store(ctx, 0, &[s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5])?;
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: takes numbers only.
    Ok(unsafe { bpf_redirect(interface, 0) } as i32)
}

/// The first fields of a TCP header.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpFields {
    source: [u8; 2],
    destination: [u8; 2],
    sequence: [u8; 4],
    acknowledgement: [u8; 4],
}

impl TcpFields {
    /// The header of the reset that answers it, with a checksum of 0.
    #[inline(always)]
    fn reset(&self, segment: &Segment) -> [u8; TCP_HEADER] {
        let (sequence, acknowledgement, flags) = if segment.is_ack() {
            (self.acknowledgement, [0; 4], RST)
        } else {
            let next = u32::from_be_bytes(self.sequence)
                .wrapping_add(segment.control_length())
                .wrapping_add(segment.payload as u32);
            ([0; 4], next.to_be_bytes(), RST | ACK)
        };
        let mut header = [0; TCP_HEADER];
        header[0..2].copy_from_slice(&self.destination);
        header[2..4].copy_from_slice(&self.source);
        header[4..8].copy_from_slice(&sequence);
        header[8..12].copy_from_slice(&acknowledgement);
        header[12] = (TCP_HEADER as u8 / 4) << 4;
        header[13] = flags;
        header
    }
}

#[inline(always)]
fn v4(ctx: &TcContext, segment: &Segment, tcp: [u8; TCP_HEADER]) -> Result<(), NoReset> {
    const HEADER: usize = 20;
    const TOTAL: u8 = (HEADER + TCP_HEADER) as u8;
    let [s0, s1, s2, s3, d0, d1, d2, d3]: [u8; 8] = load(ctx, segment.network + 12)?;
    // Multicast (224/4), reserved (240/4) and limited broadcast.
    if d0 >= 224 {
        return Err(NoReset);
    }
    let mut ip = [
        0x45, 0, 0, TOTAL, 0, 0, 0x40, 0, TTL, TCP, 0, 0, d0, d1, d2, d3, s0, s1, s2, s3,
    ];
    let mut sum = 0u32;
    let mut at = 0;
    while at < HEADER {
        sum += u32::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
        at += 2;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let [high, low] = (!(sum as u16)).to_be_bytes();
    ip[10] = high;
    ip[11] = low;
    let pseudo = [d0, d1, d2, d3, s0, s1, s2, s3, 0, TCP, 0, TCP_HEADER as u8];
    resize(ctx, segment.network + HEADER + TCP_HEADER)?;
    store(ctx, segment.network, &ip)?;
    store_tcp(ctx, segment.network + HEADER, tcp, pseudo)
}

#[inline(always)]
fn v6(ctx: &TcContext, segment: &Segment, tcp: [u8; TCP_HEADER]) -> Result<(), NoReset> {
    const HEADER: usize = 40;
    let source: [u8; 16] = load(ctx, segment.network + 8)?;
    let destination: [u8; 16] = load(ctx, segment.network + 24)?;
    if destination[0] == 0xff {
        return Err(NoReset);
    }
    let mut ip = [0; HEADER];
    ip[0] = 0x60;
    ip[5] = TCP_HEADER as u8;
    ip[6] = TCP;
    ip[7] = TTL;
    ip[8..24].copy_from_slice(&destination);
    ip[24..40].copy_from_slice(&source);
    let mut pseudo = [0; 40];
    pseudo[..32].copy_from_slice(&ip[8..40]);
    pseudo[35] = TCP_HEADER as u8;
    pseudo[39] = TCP;
    resize(ctx, segment.network + HEADER + TCP_HEADER)?;
    store(ctx, segment.network, &ip)?;
    store_tcp(ctx, segment.network + HEADER, tcp, pseudo)
}

/// Writes the TCP header with a checksum that is right whether the kernel still has to finish it
/// (`CHECKSUM_PARTIAL`: only the pseudo header counts) or not (both count).
#[inline(always)]
fn store_tcp<const N: usize>(
    ctx: &TcContext,
    transport: usize,
    header: [u8; TCP_HEADER],
    pseudo: [u8; N],
) -> Result<(), NoReset> {
    store(ctx, transport, &header)?;
    let checksum = transport + TCP_CHECKSUM;
    let pseudo_flag = u64::from(BPF_F_PSEUDO_HDR);
    ctx.l4_csum_replace(checksum, 0, sum(pseudo)?, pseudo_flag)
        .map_err(refused)?;
    ctx.l4_csum_replace(checksum, 0, sum(header)?, 0)
        .map_err(refused)
}

/// The ones' complement sum of `bytes`, unfolded.
#[inline(always)]
fn sum<const N: usize>(mut bytes: [u8; N]) -> Result<u64, NoReset> {
    // SAFETY: `bytes` is `N` readable bytes; a null `from` of length 0 is allowed.
    let sum = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            bytes.as_mut_ptr().cast(),
            N as u32,
            0,
        )
    };
    u64::try_from(sum).map_err(|_negative| NoReset)
}

#[inline(always)]
fn resize(ctx: &TcContext, length: usize) -> Result<(), NoReset> {
    // SAFETY: the kernel hands every program a valid `__sk_buff`.
    match unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) } {
        0 => Ok(()),
        _ => Err(NoReset),
    }
}

#[inline(always)]
fn load<T>(ctx: &TcContext, offset: usize) -> Result<T, NoReset> {
    ctx.load(offset).map_err(refused)
}

#[inline(always)]
fn store<T>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), NoReset> {
    ctx.store(offset, value, 0).map_err(refused)
}

#[inline(always)]
fn refused(_: i64) -> NoReset {
    NoReset
}
