//! The packets that are judged.

use gate25_common::testing::frames::{
    ACK, Extension, IPV4, IPV6, Ipv4, Ipv6, SERVER_V6, Step, TAG, Tcp, ethernet, frame_v4, frame_v6,
};

/// Somewhere that nobody may send to, and where no prefix is.
pub(crate) const OUTSIDE: [u8; 4] = [10, 255, 255, 1];
/// A relay.
const RELAY: [u8; 4] = [192, 0, 2, 25];
const SMTP: u16 = 25;
const WEB: u16 = 443;
const UDP: u8 = 17;
const HEADER: usize = 14;

/// A packet and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    /// Part of a figure's name.
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
}

fn packet(name: &'static str, mut bytes: Vec<u8>) -> Packet {
    sum_up(&mut bytes);
    // The shortest that a wire carries.
    if bytes.len() < 60 {
        bytes.resize(60, 0);
    }
    Packet { name, bytes }
}

/// To a port that nobody guards, or not TCP.
pub(crate) fn plain() -> Vec<Packet> {
    let web = Tcp::with_flags(WEB, ACK).bytes();
    let datagram = [0x9c, 0x40, 0, 53, 0, 40, 0, 0].repeat(5);
    vec![
        web_v4(),
        packet("tcp6", frame_v6(&Ipv6::to(SERVER_V6), &web)),
        packet(
            "udp",
            frame_v4(
                &Ipv4 {
                    protocol: UDP,
                    ..Ipv4::to(OUTSIDE)
                },
                &datagram,
            ),
        ),
        packet("arp", ethernet(&[], 0x0806, &[0; 46])),
    ]
}

/// TCP to a port that nobody guards.
pub(crate) fn web_v4() -> Packet {
    let web = Tcp::with_flags(WEB, ACK).bytes();
    packet("tcp", frame_v4(&Ipv4::to(OUTSIDE), &web))
}

/// The same in forms that take more looking.
pub(crate) fn unusual() -> Vec<Packet> {
    let web = Tcp::with_flags(WEB, ACK).bytes();
    let options = Ipv4 {
        options: vec![1; 8],
        ..Ipv4::to(OUTSIDE)
    };
    let extended = Ipv6::through(SERVER_V6, &[Extension::Options { kind: 0, length: 0 }]);
    let tag = [Step::Tag(TAG, 5)];
    vec![
        packet("vlan", ethernet(&tag, IPV4, &Ipv4::to(OUTSIDE).with(&web))),
        packet(
            "vlan6",
            ethernet(&tag, IPV6, &Ipv6::to(SERVER_V6).with(&web)),
        ),
        packet("options", frame_v4(&options, &web)),
        packet("extension", frame_v6(&extended, &web)),
    ]
}

/// An attempt to connect to port 25, which is counted most.
pub(crate) fn attempt(name: &'static str, to: [u8; 4]) -> Packet {
    packet(name, frame_v4(&Ipv4::to(to), &Tcp::syn(SMTP).bytes()))
}

/// The same to a relay.
pub(crate) fn relayed() -> Packet {
    attempt("relay", RELAY)
}

/// The same over IPv6.
pub(crate) fn attempt_v6() -> Packet {
    packet(
        "attempt6",
        frame_v6(&Ipv6::to(SERVER_V6), &Tcp::syn(SMTP).bytes()),
    )
}

/// A packet of a connection to port 25 that is open already.
pub(crate) fn data() -> Packet {
    let data = Tcp {
        payload: vec![b'x'; 64],
        ..Tcp::with_flags(SMTP, ACK)
    };
    packet("data", frame_v4(&Ipv4::to(OUTSIDE), &data.bytes()))
}

/// Writes the checksum of an untagged IPv4 header.
fn sum_up(frame: &mut [u8]) {
    let Some((ethernet, ip)) = frame.split_at_mut_checked(HEADER) else {
        return;
    };
    if ethernet.last_chunk() != Some(&IPV4.to_be_bytes()) {
        return;
    }
    let length = usize::from(ip.first().map_or(0, |first| first & 0x0f)) * 4;
    let Some(header) = ip.get_mut(..length) else {
        return;
    };
    let mut sum: u32 = header
        .chunks_exact(2)
        .map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    if let Some(checksum) = header.get_mut(10..12) {
        checksum.copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071: the header's words, the checksum included, sum up to all ones.
    #[test]
    fn headers_sum_up_to_all_ones() {
        let frame = relayed().bytes;
        let words = frame[14..34].chunks_exact(2);
        let sum: u32 = words
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
