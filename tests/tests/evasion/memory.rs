//! Frames that lie in memory as a driver of the guest's own may lay them: headers outside the part
//! that can be read directly, and many segments in one.

use gate25_common::testing::frames::{
    ACK, Extension, IPV4, IPV6, Ipv4, Ipv6, PSH, SERVER_V4, SERVER_V6, SERVICE_TAG, SYN, Step, TAG,
    Tcp, ethernet,
};
use gate25_tests::{Lab, Offload, Tap, Tried};

use super::packets::{GUARDED, packet_v4};
use super::range::{Gate, Path, Range};

/// Larger than a page: smaller frames are copied into one piece.
const LARGE: usize = 6000;
/// All that are sent at once, cut into segments, fit a tap's queue.
const SUPER: usize = 20_000;
const SEGMENT: u16 = 1400;
const ETHERNET: usize = 14;

#[test]
fn headers_in_other_pieces_of_memory_are_found() {
    let what = "headers outside the packet's first piece of memory (virtio tap)";
    for (gate, path) in everywhere() {
        try_sent(gate, path, what, &scattered());
    }
}

#[test]
fn buffers_of_many_segments_are_judged() {
    let what = "buffers of many segments (GSO) of either family";
    for (gate, path) in everywhere() {
        try_sent(gate, path, what, &many_segments());
    }
}

fn everywhere() -> impl Iterator<Item = (Gate, Path)> {
    [Gate::Programs, Gate::Rules, Gate::Guard]
        .into_iter()
        .flat_map(|gate| [Path::Bridged, Path::Routed].map(|path| (gate, path)))
}

#[track_caller]
fn try_sent(gate: Gate, path: Path, what: &str, all: &[Sent]) {
    let lab = Lab::for_test().unwrap();
    let host = lab.netns("hypervisor").unwrap();
    let mut range = Range::with(&host, path, Offload::VnetHeader).unwrap();
    let arrived = range.through_by(all, Sent::send).unwrap().len();
    // A router does not forward all of them.
    let least = match path {
        Path::Bridged => all.len(),
        Path::Routed => all.len() / 2,
    };
    assert!(arrived >= least, "{path:?}: {arrived} of {}", all.len());
    let _agent = range.close(&lab, gate).unwrap();
    let leaked = range.through_by(all, Sent::send).unwrap().len() as u64;
    let tried = Tried::evasion(what, all.len() as u64, leaked);
    tried
        .judge()
        .unwrap_or_else(|error| panic!("{gate:?}, {path:?}: {error:#}"));
}

/// A frame behind its virtio header.
struct Sent {
    header: [u8; 10],
    frame: Vec<u8>,
}

impl Sent {
    /// Sends it as the guest.
    ///
    /// # Errors
    /// When the tap does not take it.
    fn send(guest: &mut Tap, sent: &Self) -> anyhow::Result<()> {
        guest.send_raw(&[&sent.header[..], &sent.frame].concat())
    }
}

/// `struct virtio_net_hdr` (virtio 1.2, 5.1.6).
fn header(flags: u8, gso: u8, linear: usize, size: u16, checksum: (usize, usize)) -> [u8; 10] {
    let mut header = [flags, gso, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, value) in [
        (2, linear as u16),
        (4, size),
        (6, checksum.0 as u16),
        (8, checksum.1 as u16),
    ] {
        header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    header
}

/// Frames of which only so many bytes are in one piece: from the Ethernet header alone to well
/// beyond the TCP header.
fn scattered() -> Vec<Sent> {
    let segment = Tcp {
        payload: vec![b'x'; LARGE],
        ..Tcp::with_flags(GUARDED, ACK | PSH)
    }
    .bytes();
    let options = Ipv4 {
        options: vec![1; 40],
        ..Ipv4::to(SERVER_V4)
    };
    let extensions = [
        Extension::DESTINATION,
        Extension::Options {
            kind: 60,
            length: 20,
        },
        Extension::ATOMIC,
    ];
    let v4 = packet_v4(&Ipv4::to(SERVER_V4), &segment);
    let qinq = [Step::Tag(SERVICE_TAG, 5), Step::Tag(TAG, 6)];
    let frames = [
        ethernet(&[], IPV4, &v4),
        ethernet(&[], IPV4, &packet_v4(&options, &segment)),
        ethernet(&[], IPV6, &Ipv6::to(SERVER_V6).with(&segment)),
        ethernet(
            &[],
            IPV6,
            &Ipv6::through(SERVER_V6, &extensions).with(&segment),
        ),
        ethernet(&[Step::Tag(TAG, 0)], IPV4, &v4),
        ethernet(&qinq, IPV4, &v4),
    ];
    let linear = (ETHERNET..=140).chain([200, 256, 300, 512, 600]);
    linear
        .flat_map(|linear| {
            frames.clone().map(|frame| Sent {
                header: header(0, 0, linear, 0, (0, 0)),
                frame,
            })
        })
        .collect()
}

/// Buffers of many segments (GSO), of either family, with every part of the headers in one piece
/// or not.
fn many_segments() -> Vec<Sent> {
    const CHECKSUM_LEFT: u8 = 1;
    const CONGESTION: u8 = 0x80;
    let mut all = Vec::new();
    for flags in [ACK, ACK | PSH, SYN, SYN | ACK] {
        let segment = Tcp {
            payload: vec![b'x'; SUPER],
            ..Tcp::with_flags(GUARDED, flags)
        }
        .bytes();
        let v4 = ethernet(&[], IPV4, &packet_v4(&Ipv4::to(SERVER_V4), &segment));
        let v6 = ethernet(&[], IPV6, &Ipv6::to(SERVER_V6).with(&segment));
        for (frame, kind, transport) in [(v4, 1, 34), (v6, 4, 54)] {
            for linear in [ETHERNET, 20, 34, transport, transport + 20, 200] {
                for kind in [kind, kind | CONGESTION] {
                    for size in [SEGMENT, 8, 536] {
                        if size == 8 && linear != transport {
                            // Thousands of segments: once is enough.
                            continue;
                        }
                        let frame = if size == 8 {
                            shortened(&frame, transport)
                        } else {
                            frame.clone()
                        };
                        all.push(Sent {
                            header: header(CHECKSUM_LEFT, kind, linear, size, (transport, 16)),
                            frame,
                        });
                    }
                }
            }
        }
    }
    all
}

/// The frame with 160 bytes of payload, its lengths as they should be.
fn shortened(frame: &[u8], transport: usize) -> Vec<u8> {
    let frame = &frame[..transport + 20 + 160];
    if transport == 34 {
        let header = Ipv4::to(SERVER_V4);
        ethernet(&[], IPV4, &packet_v4(&header, &frame[transport..]))
    } else {
        ethernet(&[], IPV6, &Ipv6::to(SERVER_V6).with(&frame[transport..]))
    }
}
