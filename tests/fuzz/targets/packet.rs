//! Any bytes as a frame: what the parser says of it is true, and no connection to port 25 is
//! overlooked.
//!
//! The first byte says how many tags were taken off the frame and how much of it can be read.

#![no_main]

use etherparse::{EtherType, LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use gate25_common::packet::{Frame as _, ParseError, Parsed, Segment, evidently_other, parse};
use gate25_common::testing::frames::MemoryFrame;
use libfuzzer_sys::fuzz_target;

/// More tags over IP than these are refused.
const MAX_TAGS: usize = 2;

fuzz_target!(|input: &[u8]| {
    let Some((how, bytes)) = input.split_first() else {
        return;
    };
    let whole = MemoryFrame::new(bytes);
    let stripped = whole.clone().stripped(u32::from(how & 1));
    let readable = bytes.len().saturating_sub(usize::from(how >> 1));
    let partly = stripped.clone().linear(readable);
    for (frame, complete) in [
        (&whole, &whole),
        (&stripped, &stripped),
        (&partly, &stripped),
    ] {
        // What the shortcut needs not read, the parser may have to.
        if evidently_other(frame) {
            let parsed = parse(complete);
            assert_eq!(
                parsed,
                Ok(Parsed::Other),
                "the shortcut and the parser differ"
            );
        }
        if let Ok(Parsed::Guarded(segment)) = parse(frame) {
            check(frame, &segment);
        }
    }
    if goes_to_port_25(bytes) {
        assert!(
            matches!(
                parse(&whole),
                Ok(Parsed::Guarded(_)) | Err(ParseError::Malformed(..))
            ),
            "etherparse finds a segment to port 25, the parser does not: {:?}",
            parse(&whole)
        );
    }
});

/// The places that a segment names hold what they must.
fn check(frame: &MemoryFrame, segment: &Segment) {
    assert!(segment.network >= 14 && segment.transport >= segment.network + 20);
    let [.., high, low] = frame
        .load::<4>(segment.transport)
        .expect("judged ports can be read");
    assert_eq!(
        u16::from_be_bytes([high, low]),
        25,
        "the port is where the segment says"
    );
    let version = frame.bytes[segment.network] >> 4;
    assert!(matches!(version, 4 | 6));
}

/// Whether other people's code finds a segment to port 25 in the frame, in a packet that goes to
/// where its header says.
fn goes_to_port_25(bytes: &[u8]) -> bool {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else {
        return false;
    };
    let tags = packet
        .link_exts
        .iter()
        .filter(|step| matches!(step, LaxLinkExtSlice::Vlan(_)))
        .count();
    let is_ip = match &packet.net {
        Some(LaxNetSlice::Ipv4(_)) => Some(EtherType::IPV4),
        Some(LaxNetSlice::Ipv6(_)) => Some(EtherType::IPV6),
        Some(LaxNetSlice::Arp(_)) | None => None,
    };
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return false;
    };
    is_ip.is_some()
        && tags == packet.link_exts.len()
        && tags <= MAX_TAGS
        && tcp.destination_port() == 25
}
