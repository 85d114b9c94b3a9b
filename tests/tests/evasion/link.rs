//! What may stand between the Ethernet addresses and an IP header, and the addresses themselves.

use gate25_common::testing::frames::{
    GATEWAY_MAC, OLD_TAG, SERVICE_TAG, Step, TAG, ethernet, ethernet_to,
};

use super::packets::{both, syn};
use super::range::{Carried, Family, Gate};

const TAGS: [u16; 3] = [TAG, SERVICE_TAG, OLD_TAG];

pub(crate) fn families() -> Vec<Family> {
    vec![
        Family::new(
            "one VLAN tag of any kind, VLAN 0 and priority tags",
            one_tag(),
        ),
        Family::new("two VLAN tags of any kind (QinQ, VLAN 0 twice)", two_tags()),
        // Linux takes off any number of priority tags.
        Family::new("three VLAN tags and more", many_tags()),
        Family::new(
            "IP behind LLC and SNAP, with any bits and organisation",
            snap(),
        )
        .routed(Carried::Nothing),
        // Frames of these kinds pass: what must not happen is that a host takes them for IP.
        Family::new(
            "IP in frames of other kinds: PPPoE, MPLS, MACsec and the like",
            others(),
        )
        .bridged(Carried::NotAsked)
        .routed(Carried::Nothing),
        // No host takes SNAP for IP, nor SNAP in SNAP; the guard looks behind one such header.
        Family::new("SNAP in SNAP, SNAP in VLAN tags", nested_snap())
            .routed(Carried::Nothing)
            .but_for(Gate::Guard),
        Family::new(
            "odd hardware addresses: broadcast, multicast, zero, the bridge's own",
            addresses(),
        )
        .bridged(Carried::Some),
    ]
}

fn all(steps: &[Step]) -> Vec<Vec<u8>> {
    let of = |(ethertype, packet): (u16, Vec<u8>)| ethernet(steps, ethertype, &packet);
    both(&syn()).into_iter().map(of).collect()
}

fn one_tag() -> Vec<Vec<u8>> {
    let control = |vlan: u16| (0..8).map(move |priority: u16| priority << 13 | vlan);
    let controls: Vec<u16> = [0, 1, 5, 4094, 4095]
        .into_iter()
        .flat_map(control)
        .collect();
    // The bit that allows dropping.
    let controls = controls.iter().flat_map(|it| [*it, *it | 1 << 12]);
    controls
        .flat_map(|control| TAGS.map(|tag| Step::Tag(tag, control)))
        .flat_map(|tag| all(&[tag]))
        .collect()
}

fn two_tags() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for outer in TAGS {
        for inner in TAGS {
            for (a, b) in [(0, 0), (0, 5), (5, 0), (5, 6), (4095, 4095)] {
                frames.extend(all(&[Step::Tag(outer, a), Step::Tag(inner, b)]));
            }
        }
    }
    frames
}

fn many_tags() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for count in 3..=10 {
        for tag in TAGS {
            for vlan in [0, 5] {
                frames.extend(all(&vec![Step::Tag(tag, vlan); count]));
            }
        }
    }
    for a in TAGS {
        for b in TAGS {
            for c in TAGS {
                frames.extend(all(&[Step::Tag(a, 0), Step::Tag(b, 0), Step::Tag(c, 0)]));
            }
        }
    }
    frames
}

fn snap() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    // Individual or group, command or response, poll or final.
    for destination in [0xaa, 0xab] {
        for source in [0xaa, 0xab] {
            for control in [0x03, 0x13] {
                frames.extend(all(&[Step::Snap([destination, source, control])]));
            }
        }
    }
    for frame in all(&[Step::SNAP]) {
        for organisation in [[0, 0, 0xf8], [0, 0, 0x0c], [8, 0, 7], [0xff; 3]] {
            let mut frame = frame.clone();
            frame[17..20].copy_from_slice(&organisation);
            frames.push(frame);
        }
        // Lengths that lie.
        for length in [0u16, 1, 7, 8, 1500, 0x05ff] {
            let mut frame = frame.clone();
            frame[12..14].copy_from_slice(&length.to_be_bytes());
            frames.push(frame);
        }
    }
    frames
}

fn nested_snap() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for steps in [
        vec![Step::SNAP, Step::SNAP],
        vec![Step::SNAP, Step::Tag(TAG, 5)],
        vec![Step::Tag(TAG, 5), Step::SNAP],
        vec![Step::PRIORITY, Step::SNAP],
        vec![Step::Tag(SERVICE_TAG, 5), Step::Tag(TAG, 6), Step::SNAP],
        vec![Step::Tag(TAG, 5), Step::SNAP, Step::Tag(TAG, 6)],
        vec![Step::SNAP, Step::SNAP, Step::SNAP],
    ] {
        frames.extend(all(&steps));
    }
    frames
}

fn others() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (ethertype, packet) in both(&syn()) {
        let ppp: u16 = if ethertype == 0x0800 { 0x0021 } else { 0x0057 };
        let mut session = vec![0x11, 0, 0, 1];
        session.extend((packet.len() as u16 + 2).to_be_bytes());
        session.extend(ppp.to_be_bytes());
        let behind = |header: &[u8]| [header, &packet].concat();
        let inner = ethernet(&[], ethertype, &packet);
        for (kind, body) in [
            // PPPoE: session and discovery (RFC 2516).
            (0x8864, behind(&session)),
            (0x8863, behind(&session)),
            // MPLS: a label at the stack's bottom, explicit null (RFC 3032).
            (0x8847, behind(&[0, 0x01, 0x01, 64])),
            (0x8847, behind(&[0, 0, 0x01, 64])),
            (0x8848, behind(&[0, 0x01, 0x01, 64])),
            // MACsec without encryption (IEEE 802.1AE).
            (0x88e5, [&[0, 0, 0, 0, 0, 1][..], &inner[12..]].concat()),
            // MAC in MAC (IEEE 802.1ah).
            (0x88e7, [&[0, 0, 0, 1][..], &inner].concat()),
            // HSR and PRP (IEC 62439-3), which put a tag before the ethertype.
            (0x892f, [&[0, 60, 0, 1][..], &inner[12..]].concat()),
            // Tags that older switches used.
            (0x9200, [&[0, 5][..], &inner[12..]].concat()),
            (0x9300, [&[0, 5][..], &inner[12..]].concat()),
            // Network service header, batman-adv, TRILL, loopback.
            (0x894f, behind(&[0, 6, 1, 1, 0, 0, 1, 0xff])),
            (0x4305, [&[0x40, 15, 1, 0][..], &inner].concat()),
            (0x22f3, [&[0, 1, 0, 1, 0, 2][..], &inner].concat()),
            (0x9000, behind(&[0, 0])),
            // IP itself under other numbers.
            (0x0806, packet.clone()),
            (0x0801, packet.clone()),
            (0x6003, packet.clone()),
            (0xffff, packet.clone()),
        ] {
            frames.push(ethernet(&[], kind, &body));
        }
        // LLC with the number that IEEE gives to IP (RFC 948), and Novell's frames without LLC.
        frames.push(ethernet(&[], packet.len() as u16 + 3, &behind(&[6, 6, 3])));
        frames.push(ethernet(&[], packet.len() as u16, &behind(&[0xff, 0xff])));
    }
    frames
}

fn addresses() -> Vec<Vec<u8>> {
    let mut destinations = vec![
        GATEWAY_MAC,
        [0xff; 6],
        [0; 6],
        [0x01, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
        // Nobody's: a bridge floods it.
        [0x02, 0, 0, 0, 0, 0x77],
        // The far end's.
        [0x02, 0, 0, 0, 0, 0x09],
    ];
    // A bridge keeps these to itself (IEEE 802.1D).
    destinations.extend((0..16).map(|last| [0x01, 0x80, 0xc2, 0, 0, last]));
    let sources = [
        [0x02, 0, 0, 0, 0, 0x02],
        GATEWAY_MAC,
        [0xff; 6],
        [0; 6],
        [0x01, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
        [0x02, 0, 0, 0, 0, 0x09],
    ];
    let mut frames = Vec::new();
    for destination in destinations {
        for source in sources {
            for (ethertype, packet) in both(&syn()) {
                let mut frame = ethernet_to(destination, &[], ethertype, &packet);
                frame[6..12].copy_from_slice(&source);
                frames.push(frame);
            }
        }
    }
    frames
}
