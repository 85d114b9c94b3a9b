//! Packets for the guarded port, with checksums that a router does not mind.

use gate25_common::testing::frames::{IPV4, IPV6, Ipv4, Ipv6, SERVER_V4, SERVER_V6, Tcp, ethernet};

pub(crate) const GUARDED: u16 = 25;
const NETWORK: usize = 14;

/// Both families: the ethertype and the packet to the server that carries `segment`.
pub(crate) fn both(segment: &[u8]) -> [(u16, Vec<u8>); 2] {
    [
        (IPV4, packet_v4(&Ipv4::to(SERVER_V4), segment)),
        (IPV6, Ipv6::to(SERVER_V6).with(segment)),
    ]
}

/// A SYN to the guarded port.
pub(crate) fn syn() -> Vec<u8> {
    Tcp::syn(GUARDED).bytes()
}

/// A frame with an IPv4 packet whose header's checksum is right.
pub(crate) fn v4(header: &Ipv4, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, &packet_v4(header, payload))
}

/// A frame with an IPv6 packet.
pub(crate) fn v6(header: &Ipv6, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV6, &header.with(payload))
}

/// An IPv4 packet whose header's checksum is right.
pub(crate) fn packet_v4(header: &Ipv4, payload: &[u8]) -> Vec<u8> {
    let mut packet = header.with(payload);
    seal(&mut packet);
    packet
}

/// The frame of an IPv4 packet without tags, with the right checksum in its header.
pub(crate) fn complete(mut frame: Vec<u8>) -> Vec<u8> {
    seal(&mut frame[NETWORK..]);
    frame
}

/// Writes the checksum (RFC 1071) over as much of the header as its length claims, if there is so
/// much.
fn seal(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let claimed = usize::from(packet[0] & 0x0f) * 4;
    let header = &packet[..claimed.min(packet.len())];
    let words = header.chunks_exact(2);
    let sum: u32 = words
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}
