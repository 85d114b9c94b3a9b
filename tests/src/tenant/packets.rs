//! TCP segments made by hand, for sockets below TCP.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;

/// The window of [`crafted`] segments, which no kernel begins with.
pub(crate) const CRAFTED_WINDOW: u16 = 1025;
/// The sequence number of all segments made here.
pub(crate) const SEQUENCE: u32 = 0x1234_5678;
/// In the port of a destination, where no guarded one has it: see [`midway`].
const MIDWAY: u16 = 0x8000;

/// What tells one segment from another.
struct Kind {
    flags: u8,
    window: u16,
    /// Of even length.
    data: &'static [u8],
}

const SYN: Kind = Kind {
    flags: 0x02,
    window: 0xffff,
    data: &[],
};
const CRAFTED_SYN: Kind = Kind {
    window: CRAFTED_WINDOW,
    ..SYN
};
const CRAFTED_MIDWAY: Kind = Kind {
    flags: 0x18, // PSH, ACK
    window: CRAFTED_WINDOW,
    data: b"EHLO guest\r\n",
};

/// A SYN with its IP header, complete with checksums.
pub(crate) fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    packet(from, to, &SYN)
}

/// A destination to which [`crafted`] makes segments out of the middle of connections that nobody has
/// opened, instead of SYNs.
pub(crate) fn midway(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(to.ip(), to.port() | MIDWAY)
}

/// A packet that is told from a kernel's by its window and sequence number: whoever receives it need
/// not answer.
pub(crate) fn crafted(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    match to.port() & MIDWAY {
        0 => packet(from, to, &CRAFTED_SYN),
        _ => {
            let to = SocketAddr::new(to.ip(), to.port() & !MIDWAY);
            packet(from, to, &CRAFTED_MIDWAY)
        }
    }
}

fn packet(from: SocketAddr, to: SocketAddr, kind: &Kind) -> Vec<u8> {
    let mut packet = ip_header(from.ip(), to.ip(), kind.data.len() as u16);
    packet.extend(segment_of(from, to, kind));
    packet
}

/// A SYN without its IP header.
pub(super) fn segment(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    segment_of(from, to, &SYN)
}

fn segment_of(from: SocketAddr, to: SocketAddr, kind: &Kind) -> Vec<u8> {
    let Kind {
        flags,
        window,
        data,
    } = kind;
    let mut tcp = Vec::with_capacity(20 + data.len());
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(SEQUENCE.to_be_bytes());
    tcp.extend([0, 0, 0, 0]); // acknowledged
    tcp.extend([0x50, *flags]); // 20 bytes
    tcp.extend(window.to_be_bytes());
    tcp.extend([0, 0, 0, 0]); // checksum, urgent
    tcp.extend(*data);
    let length = tcp.len() as u16;
    let sum = checksum(&[&pseudo_header(from.ip(), to.ip(), length), &tcp]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    tcp
}

/// A SYN in an Ethernet frame.
pub(crate) fn syn_frame(
    source: [u8; 6],
    destination: [u8; 6],
    from: SocketAddr,
    to: SocketAddr,
) -> Vec<u8> {
    segment_frame([source, destination], from, to, &[])
}

/// A [`crafted`] packet in an Ethernet frame.
pub(crate) fn crafted_frame(
    source: [u8; 6],
    destination: [u8; 6],
    from: SocketAddr,
    to: SocketAddr,
) -> Vec<u8> {
    framed([source, destination], &crafted(from, to))
}

fn framed([source, destination]: [[u8; 6]; 2], packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&destination[..], &source, &kind, packet].concat()
}

/// Reads a hardware address, such as `02:00:5e:00:53:01`.
pub(crate) fn hardware(text: &str) -> anyhow::Result<[u8; 6]> {
    let mut address = [0; 6];
    let mut bytes = text.split(':');
    for byte in &mut address {
        let digits = bytes.next().context("a hardware address has six bytes")?;
        *byte = u8::from_str_radix(digits, 16).context("a hardware address")?;
    }
    Ok(address)
}

/// The same with data, which its checksum does not cover.
pub(super) fn segment_frame(
    ends: [[u8; 6]; 2],
    from: SocketAddr,
    to: SocketAddr,
    data: &[u8],
) -> Vec<u8> {
    let header = ip_header(from.ip(), to.ip(), data.len() as u16);
    let packet = [&header[..], &segment(from, to), data].concat();
    framed(ends, &packet)
}

/// The header of a TCP segment without options and with so much data.
fn ip_header(from: IpAddr, to: IpAddr, data: u16) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = (40 + data).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (from, to) => {
            let [high, low] = (20 + data).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, 6, 64];
            header.extend(octets(from));
            header.extend(octets(to));
            header
        }
    }
}

fn pseudo_header(from: IpAddr, to: IpAddr, length: u16) -> Vec<u8> {
    let mut header = [octets(from), octets(to)].concat();
    header.extend([0, 6]);
    header.extend(length.to_be_bytes());
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// RFC 1071 over parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for pair in parts.iter().flat_map(|part| part.chunks_exact(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crafted_midway_is_a_whole_segment_with_data_to_the_port_itself() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        for [from, to] in [
            ["198.51.100.7:20000", "203.0.113.25:25"],
            ["[2001:db8::7]:20000", "[2001:db8::25]:25"],
        ]
        .map(|pair| pair.map(address))
        {
            let packet = crafted(from, midway(to));
            let ip = if to.is_ipv4() { 20 } else { 40 };
            let tcp = &packet[ip..];
            assert_eq!(tcp[2..4], 25u16.to_be_bytes());
            assert_eq!(tcp[13], 0x18);
            assert_eq!(tcp[20..], *b"EHLO guest\r\n");
            // A checksum over what holds its own is nothing.
            let pseudo = pseudo_header(from.ip(), to.ip(), tcp.len() as u16);
            assert_eq!(checksum(&[&pseudo, tcp]), 0);
            assert_eq!(crafted(from, to)[ip + 13], 0x02);
        }
    }
}
