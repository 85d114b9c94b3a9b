//! Checksums that a guest leaves to the host, at places of its own choice.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_tests::{Offload, PolicyText, Settings, Tap, Tried, World};

const LIMIT: Duration = Duration::from_secs(5);
const NETWORK: usize = 14;
const TRANSPORT: usize = 34;
const PORT: usize = TRANSPORT + 2;
const GUARDED: u16 = 25;
const OTHER: u16 = 443;
const MARKER: u16 = 444;

/// Where the checksum of a TCP segment belongs.
const PROPER: Place = Place {
    start: TRANSPORT,
    offset: 16,
};

/// Where a checksum becomes a port.
const OVER_THE_PORT: Place = Place {
    start: TRANSPORT,
    offset: 2,
};

#[test]
fn port_written_as_a_checksum_after_the_verdict_reaches_nobody() {
    let world = World::new().unwrap();
    let (mut guest, mut wire) = taps(&world);
    send(&mut guest, OTHER, OVER_THE_PORT).unwrap();
    assert_eq!(next_port(&mut wire), GUARDED, "the trick works by itself");

    let agent = world.agent(&PolicyText::default()).unwrap();
    let places = [
        OVER_THE_PORT,
        // The type of the frame, the protocol, and the destination's address.
        Place {
            start: 0,
            offset: 12,
        },
        Place {
            start: NETWORK,
            offset: 8,
        },
        Place {
            start: NETWORK,
            offset: 18,
        },
    ];
    // Some kernels take no place before the transport header.
    let accepted = places.map(|place| send(&mut guest, OTHER, place).is_ok());
    assert!(accepted[0], "the port's place is one that the kernel takes");
    send(&mut guest, MARKER, PROPER).unwrap();
    assert_eq!(next_port(&mut wire), MARKER, "nothing came before it");
    let late = [("kind", "late_checksum")];
    let refused = agent
        .metrics()
        .unwrap()
        .sum("gate25_malformed_total", &late);
    let accepted = accepted.iter().filter(|accepted| **accepted).count();
    assert_eq!(refused, Some(accepted as f64));
    // What was accepted did not come out before the marker.
    let what = "a checksum left to the host that turns into the port";
    Tried::evasion(what, accepted as u64, 0).judge().unwrap();
}

/// Nothing in nftables shows where a checksum is yet to be written: neither its backend nor the guard
/// can know.
#[test]
fn port_written_as_a_checksum_passes_backend_nftables_and_the_guard_which_is_told() {
    let world = World::for_nftables().unwrap();
    let (mut guest, mut wire) = taps(&world);
    let settings = Settings {
        more: "backend: nftables\n".to_owned(),
        ..Settings::default()
    };
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    agent
        .wait_metric("gate25_guard_in_place", &[], LIMIT, |value| value == 1.0)
        .unwrap();
    send(&mut guest, GUARDED, PROPER).unwrap();
    send(&mut guest, OTHER, OVER_THE_PORT).unwrap();
    send(&mut guest, MARKER, PROPER).unwrap();
    assert_eq!(next_port(&mut wire), GUARDED, "the trick works");
    assert_eq!(next_port(&mut wire), MARKER, "what is honest was refused");
    let status = agent.command(&["status"]).unwrap().out;
    let told = "can have it write another port into a packet that has passed";
    assert!(status.contains(told), "{status}");
    let feature = [("feature", "late_checksums")];
    let can = agent.metrics().unwrap();
    assert_eq!(can.sum("gate25_backend_feature", &feature), Some(0.0));
}

/// A guest's tap, and one behind the same bridge.
#[track_caller]
fn taps(world: &World) -> (Tap, Tap) {
    let host = &world.hosting.hypervisor;
    let guest = Tap::new(host, "tap101i0", Offload::VnetHeader).unwrap();
    // Without a virtio header nothing is left to the receiver: the kernel finishes every
    // checksum before a frame gets here, as it does before a plain network card.
    let wire = Tap::new(host, "wire0", Offload::None).unwrap();
    host.ip("link add br9 type bridge\nlink set br9 up")
        .unwrap();
    for port in ["tap101i0", "wire0"] {
        host.ip(&format!("link set {port} master br9 up")).unwrap();
    }
    (guest, wire)
}

/// Where the host is told to write a checksum, and from where it is counted.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    offset: usize,
}

/// Sends a SYN for `port` whose checksum, written over the port, would be [`GUARDED`].
fn send(guest: &mut Tap, port: u16, place: Place) -> anyhow::Result<()> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 9, 0x52, 0x54, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 42, 0, 1, 0, 0, 64, 6, 0, 0]);
    frame.extend([10, 1, 0, 2, 10, 2, 0, 2]);
    let header_sum = !sum(&frame[NETWORK..]);
    frame[NETWORK + 10..NETWORK + 12].copy_from_slice(&header_sum.to_be_bytes());
    frame.extend(40_000u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let missing = u32::from(!GUARDED) + 0xffff - u32::from(sum(&frame[TRANSPORT..]));
    frame.extend(((missing % 0xffff) as u16).to_be_bytes());
    let mut bytes = vec![1, 0, 0, 0, 0, 0];
    bytes.extend((place.start as u16).to_ne_bytes());
    bytes.extend((place.offset as u16).to_ne_bytes());
    bytes.extend(frame);
    guest.send_raw(&bytes)
}

/// The destination port of the next TCP segment on the wire.
#[track_caller]
fn next_port(wire: &mut Tap) -> u16 {
    let is_tcp = |frame: &[u8]| frame.len() > PORT + 1 && frame[12..14] == [8, 0] && frame[23] == 6;
    let frame = wire.receive(LIMIT, is_tcp).unwrap();
    u16::from_be_bytes([frame[PORT], frame[PORT + 1]])
}

/// The ones' complement sum (RFC 1071) of an even number of bytes.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let total: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (total & 0xffff) + (total >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}
