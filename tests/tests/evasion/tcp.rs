//! TCP headers: flags, lengths, checksums, options, ports.

use gate25_common::testing::frames::{ACK, PSH, SYN, Tcp};

use super::packets::{GUARDED, both};
use super::range::Family;
use gate25_common::testing::frames::ethernet;

pub(crate) fn families() -> Vec<Family> {
    vec![
        Family::new(
            "every combination of TCP flags, with data and without",
            flags(),
        ),
        Family::new(
            "TCP header lengths that lie, options of every kind",
            headers(),
        ),
        Family::new("TCP Fast Open and multipath options in a SYN", openings()),
        Family::new(
            "TCP checksums, sequence numbers and urgent pointers of any value",
            values(),
        ),
        Family::new("TCP from port 25, and from any other", sources()),
    ]
}

fn frames(segment: &[u8]) -> Vec<Vec<u8>> {
    let of = |(ethertype, packet): (u16, Vec<u8>)| ethernet(&[], ethertype, &packet);
    both(segment).into_iter().map(of).collect()
}

fn flags() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for flags in 0..=255 {
        for payload in [&b""[..], b"EHLO guest\r\n"] {
            let segment = Tcp {
                payload: payload.to_vec(),
                ..Tcp::with_flags(GUARDED, flags)
            };
            all.extend(frames(&segment.bytes()));
        }
    }
    all
}

fn headers() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for words in 0..16 {
        for payload in [0, 1, 8, 40, 200] {
            let segment = Tcp {
                data_offset: Some(words),
                payload: vec![1; payload],
                ..Tcp::syn(GUARDED)
            };
            all.extend(frames(&segment.bytes()));
        }
    }
    for kind in 0..=255 {
        for length in [0, 1, 2, 4, 40, 255] {
            let mut options = vec![kind, length];
            options.resize(40, 1);
            let segment = Tcp {
                options,
                ..Tcp::syn(GUARDED)
            };
            all.extend(frames(&segment.bytes()));
        }
    }
    all
}

fn openings() -> Vec<Vec<u8>> {
    let cookies = (0..=16u8).step_by(2).map(|length| {
        // Fast Open (RFC 7413), its experimental form, and a cookie of that length.
        let mut options = vec![34, length + 2];
        options.resize(usize::from(length) + 2, 0x5a);
        options
    });
    let experimental = [254, 4, 0xf9, 0x89].to_vec();
    // MP_CAPABLE and MP_JOIN (RFC 8684).
    let multipath = [
        vec![30, 4, 0x01, 0x01],
        vec![30, 12, 0x01, 0x01, 1, 2, 3, 4, 5, 6, 7, 8],
        vec![30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8],
    ];
    let mut all = Vec::new();
    for mut options in cookies.chain([experimental]).chain(multipath) {
        options.resize(options.len().div_ceil(4) * 4, 1);
        for flags in [SYN, SYN | ACK, ACK | PSH] {
            let segment = Tcp {
                options: options.clone(),
                payload: b"EHLO guest\r\n".to_vec(),
                ..Tcp::with_flags(GUARDED, flags)
            };
            all.extend(frames(&segment.bytes()));
        }
    }
    all
}

fn values() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for value in [0u16, 1, 25, 0x1900, 0x7fff, 0xffff] {
        for at in [4, 6, 8, 10, 14, 16, 18] {
            let mut segment = Tcp::syn(GUARDED).bytes();
            segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
            all.extend(frames(&segment));
        }
    }
    all
}

fn sources() -> Vec<Vec<u8>> {
    let ports = (0..=65535).step_by(257).chain([25, 465, 587]);
    let mut all = Vec::new();
    for source in ports {
        for flags in [SYN, SYN | ACK, ACK] {
            let segment = Tcp {
                source,
                ..Tcp::with_flags(GUARDED, flags)
            };
            all.extend(frames(&segment.bytes()));
        }
    }
    all
}
