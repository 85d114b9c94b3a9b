//! The resets that guests behind taps get, read byte by byte: every field as RFC 9293 (3.10.7.1)
//! wants it, every checksum as RFC 1071 computes it.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use gate25_tests::{Agent, Hosting, Offload, PolicyText, Tap, World};

const LIMIT: Duration = Duration::from_secs(5);
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const PORT: u16 = 40_000;
const SEQUENCE: u32 = 0xffff_fff0;
const ACKNOWLEDGED: u32 = 0x1234_5678;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

#[test]
fn reset_on_a_tap_without_a_virtio_header_is_complete_and_right() {
    answers_of(Offload::None);
}

#[test]
fn reset_on_a_tap_with_a_virtio_header_is_right_as_the_guest_finishes_it() {
    answers_of(Offload::VnetHeader);
}

#[test]
fn reset_of_a_large_segment_is_small_and_right() {
    let (_agent, mut tap, _world) = scene(Offload::VnetHeader);
    for family in Family::ALL {
        for tags in [&[][..], &[[0x81, 0, 0, 42]]] {
            let sent = Segment {
                family,
                tags,
                flags: ACK,
                payload: 30_000,
            };
            let frame = sent.frame(Checksum::LeftToTheOtherSide);
            let mut bytes = sent.virtio_header(1448).to_vec();
            bytes.extend_from_slice(&frame);
            tap.send_raw(&bytes).unwrap();
            check_answer(&mut tap, &sent);
        }
    }
}

#[track_caller]
fn answers_of(offload: Offload) {
    let (agent, mut tap, _world) = scene(offload);
    let stacks: [&[[u8; 4]]; 3] = [
        &[],
        &[[0x81, 0, 0x20, 42]],
        &[[0x88, 0xa8, 0, 7], [0x81, 0, 0, 42]],
    ];
    let mut sent_in_all = 0.0;
    for family in Family::ALL {
        for tags in stacks {
            for (flags, payload) in [(SYN, 0), (SYN, 100), (ACK, 0), (ACK, 1000)] {
                let sent = Segment {
                    family,
                    tags,
                    flags,
                    payload,
                };
                tap.send(&sent.frame(Checksum::Complete)).unwrap();
                check_answer(&mut tap, &sent);
                sent_in_all += 1.0;
                if offload == Offload::VnetHeader {
                    let mut bytes = sent.virtio_header(0).to_vec();
                    bytes.extend(sent.frame(Checksum::LeftToTheOtherSide));
                    tap.send_raw(&bytes).unwrap();
                    check_answer(&mut tap, &sent);
                    sent_in_all += 1.0;
                }
            }
        }
    }
    let labels = [("verdict", "reject")];
    let metrics = agent.metrics().unwrap();
    assert_eq!(
        metrics.sum("gate25_packets_total", &labels),
        Some(sent_in_all)
    );
}

/// A tap that nothing else hangs on.
#[track_caller]
fn scene(offload: Offload) -> (Agent, Tap, World) {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let tap = Tap::new(host, "tap101i0", offload).unwrap();
    host.ip("link set tap101i0 up").unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    (agent, tap, world)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// The guest's address and the exchanger's.
    fn addresses(self) -> (Vec<u8>, Vec<u8>) {
        match self {
            Self::V4 => {
                let guest = Ipv4Addr::new(198, 51, 100, 101);
                let server = Hosting::EXCHANGER.v4;
                (guest.octets().to_vec(), server.octets().to_vec())
            }
            Self::V6 => {
                let guest = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 101);
                let server = Hosting::EXCHANGER.v6;
                (guest.octets().to_vec(), server.octets().to_vec())
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksum {
    Complete,
    LeftToTheOtherSide,
}

/// A segment of the guest's, to port 25.
#[derive(Clone, Copy, Debug)]
struct Segment<'t> {
    family: Family,
    tags: &'t [[u8; 4]],
    flags: u8,
    payload: usize,
}

impl Segment<'_> {
    fn frame(&self, checksum: Checksum) -> Vec<u8> {
        let (guest, server) = self.family.addresses();
        let mut tcp = Vec::new();
        tcp.extend(PORT.to_be_bytes());
        tcp.extend(25u16.to_be_bytes());
        tcp.extend(SEQUENCE.to_be_bytes());
        tcp.extend(ACKNOWLEDGED.to_be_bytes());
        tcp.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.resize(20 + self.payload, b'x');
        let pseudo = pseudo_sum(&guest, &server, tcp.len());
        let field = match checksum {
            Checksum::Complete => !fold(pseudo + sum(&tcp)),
            Checksum::LeftToTheOtherSide => fold(pseudo),
        };
        tcp[16..18].copy_from_slice(&field.to_be_bytes());
        let mut frame = [HOST_MAC, GUEST_MAC].concat();
        self.tags.iter().for_each(|tag| frame.extend(tag));
        match self.family {
            Family::V4 => {
                let length = u16::try_from(20 + tcp.len()).unwrap().to_be_bytes();
                let mut ip = vec![0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0];
                ip.extend(&guest);
                ip.extend(&server);
                let checksum = !fold(sum(&ip));
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                frame.extend([8, 0]);
                frame.extend(ip);
            }
            Family::V6 => {
                let length = u16::try_from(tcp.len()).unwrap().to_be_bytes();
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, length[0], length[1], 6, 64]);
                frame.extend(&guest);
                frame.extend(&server);
            }
        }
        frame.extend(tcp);
        frame
    }

    /// `struct virtio_net_hdr` of a segment whose checksum, and cutting into pieces of `size`
    /// where that is not 0, are left to the host.
    fn virtio_header(&self, size: u16) -> [u8; 10] {
        let start = 14 + 4 * self.tags.len() + self.family.header();
        let kind = match (size, self.family) {
            (0, _) => 0,
            (_, Family::V4) => 1,
            (_, Family::V6) => 4,
        };
        let [length_low, length_high] = ((start + 20) as u16).to_le_bytes();
        let [size_low, size_high] = size.to_le_bytes();
        let [start_low, start_high] = (start as u16).to_le_bytes();
        [
            1,
            kind,
            length_low,
            length_high,
            size_low,
            size_high,
            start_low,
            start_high,
            16,
            0,
        ]
    }
}

/// Receives the answer and compares it with what the segment deserves.
#[track_caller]
fn check_answer(tap: &mut Tap, sent: &Segment<'_>) {
    let (guest, server) = sent.family.addresses();
    let at = 14 + 4 * sent.tags.len();
    let from_port_25 = |frame: &[u8]| {
        let tcp = at + sent.family.header();
        frame.get(..6) == Some(&GUEST_MAC) && frame.get(tcp..tcp + 2) == Some(&[0, 25])
    };
    let (virtio, mut frame) = tap
        .receive_raw(LIMIT, from_port_25)
        .unwrap_or_else(|error| panic!("{sent:?}: {error:#}"));
    finish(&virtio, &mut frame);
    assert_eq!(frame[6..12], HOST_MAC, "{sent:?}");
    assert_eq!(
        frame[12..at - 2],
        *sent.tags.concat(),
        "{sent:?}: {frame:x?}"
    );
    let ip = &frame[at..];
    let (tcp, source, destination) = match sent.family {
        Family::V4 => {
            assert_eq!(frame[at - 2..at], [8, 0], "{sent:?}");
            assert_eq!(ip[0], 0x45, "{sent:?}");
            assert_eq!(ip[2..4], [0, 40], "{sent:?}");
            assert_eq!(ip[9], 6, "{sent:?}");
            assert_eq!(fold(sum(&ip[..20])), 0xffff, "{sent:?}: {ip:x?}");
            (&ip[20..40], &ip[12..16], &ip[16..20])
        }
        Family::V6 => {
            assert_eq!(frame[at - 2..at], [0x86, 0xdd], "{sent:?}");
            assert_eq!(ip[0] >> 4, 6, "{sent:?}");
            assert_eq!(ip[4..7], [0, 20, 6], "{sent:?}");
            (&ip[40..60], &ip[8..24], &ip[24..40])
        }
    };
    assert_eq!((source, destination), (&*server, &*guest), "{sent:?}");
    let checksum = fold(pseudo_sum(source, destination, 20) + sum(tcp));
    assert_eq!(checksum, 0xffff, "{sent:?}: {tcp:x?}");
    assert_eq!(tcp[2..4], PORT.to_be_bytes(), "{sent:?}");
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let seen = (number(4), number(8), tcp[13]);
    let deserved = if sent.flags & ACK == 0 {
        let next = SEQUENCE.wrapping_add(sent.payload as u32).wrapping_add(1);
        (0, next, RST | ACK)
    } else {
        (ACKNOWLEDGED, 0, RST)
    };
    assert_eq!(seen, deserved, "{sent:?}");
    assert_eq!(tcp[12], 0x50, "{sent:?}");
}

/// Does what a guest's driver does where the checksum is left to it.
#[track_caller]
fn finish(virtio: &[u8], frame: &mut [u8]) {
    let Some(header) = virtio.first_chunk::<10>() else {
        return;
    };
    assert_eq!(header[1], 0, "a reset is no large segment: {virtio:x?}");
    if header[0] & 1 == 0 {
        return;
    }
    let start = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let field = start + usize::from(u16::from_le_bytes([header[8], header[9]]));
    let checksum = !fold(sum(&frame[start..]));
    frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// RFC 1071, before folding.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_sum(source: &[u8], destination: &[u8], length: usize) -> u64 {
    sum(source) + sum(destination) + length as u64 + 6
}
