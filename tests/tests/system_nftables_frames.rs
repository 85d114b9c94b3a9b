//! Backend nftables and the forms that packets can have: what passes, and what is counted.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use gate25_common::testing::frames::{
    ACK, Extension, IPV4, IPV6, Ipv4, Ipv6, OLD_TAG, RST, SERVER_V4, SERVICE_TAG, Step, TAG, Tcp,
    authenticated_v4, ethernet, frame_v4, frame_v6, unguarded,
};
use gate25_tests::{Agent, PolicyText, Settings, Wires, World, poll};

const LIMIT: Duration = Duration::from_secs(10);
const GUARDED: u16 = 25;
const OTHER: u16 = 443;
/// In none of the lab's allowlists.
const SERVER_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

#[test]
fn closed_guest_gets_no_guarded_packet_out_in_any_frame() {
    let world = World::for_nftables().unwrap();
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let _agent = start(&world, &policy);
    for (name, frame) in whole()
        .into_iter()
        .chain(unclear())
        .chain(malformed_frames())
    {
        assert_stopped(&mut wires, name, &frame);
    }
}

#[test]
fn exempt_guest_gets_out_all_that_can_be_looked_up() {
    let world = World::for_nftables().unwrap();
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1");
    let _agent = start(&world, &policy);
    for (name, frame) in whole() {
        assert_passed(&mut wires, name, &frame);
    }
    for (name, frame) in unclear().into_iter().chain(malformed_frames()) {
        assert_stopped(&mut wires, name, &frame);
    }
}

#[test]
fn what_is_not_guarded_passes_in_every_frame() {
    let world = World::for_nftables().unwrap();
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    let _agent = start(&world, &PolicyText::default());
    for (name, frame) in others() {
        assert_passed(&mut wires, name, &frame);
    }
}

#[test]
fn observed_guest_gets_everything_out() {
    let world = World::for_nftables().unwrap();
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    let policy = PolicyText::default()
        .profile("watch", "observe", "reject")
        .customer_of("watch", "c-1", "tap101i0");
    let _agent = start(&world, &policy);
    for (name, frame) in whole()
        .into_iter()
        .chain(unclear())
        .chain(malformed_frames())
    {
        assert_passed(&mut wires, name, &frame);
    }
}

#[test]
fn what_is_wrong_with_packets_is_counted_by_kind() {
    let world = World::for_nftables().unwrap();
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    let policy = PolicyText::default().customer("c-1", "tap101i0");
    let agent = start(&world, &policy);
    for (kind, frame) in malformed_frames() {
        assert_stopped(&mut wires, kind, &frame);
        let kind = kind.split(' ').next().unwrap();
        let labels = [("kind", kind)];
        let metrics = agent.metrics().unwrap();
        let counted = metrics.sum("gate25_malformed_total", &labels);
        assert!(counted > Some(0.0), "{kind}: {counted:?}");
    }
    // Segments that open nothing are packets and no attempts.
    let before = agent.metrics().unwrap();
    let ack = Tcp {
        flags: ACK,
        ..Tcp::syn(GUARDED)
    };
    let frame = frame_v4(&Ipv4::to(SERVER_V4), &ack.bytes());
    assert_stopped(&mut wires, "an ACK", &frame);
    let after = agent.metrics().unwrap();
    let sum = |metrics: &gate25_tests::Metrics, name| metrics.sum(name, &[]).unwrap();
    let packets = "gate25_packets_total";
    assert_eq!(sum(&after, packets), sum(&before, packets) + 1.0);
    let attempts = "gate25_connections_total";
    assert_eq!(sum(&after, attempts), sum(&before, attempts));
}

#[test]
fn allowlist_of_ipv4_holds_for_mapped_and_nat64_addresses_and_no_others() {
    let world = World::for_nftables().unwrap();
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    let [a, b, c, d] = SERVER_V4;
    let text = format!(
        "schema: 1\nallowlists:\n  - {{name: server, to: [{a}.{b}.{c}.{d}]}}\nprofiles:\n  - {{name: default, allow: [server]}}\n"
    );
    let host = &world.hosting.hypervisor;
    let _agent = Agent::start(host, settings(), &[("policy.yaml", text)]).unwrap();
    let syn = Tcp::syn(GUARDED).bytes();
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
    let nat64 = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d];
    for (name, frame) in [
        ("IPv4", frame_v4(&Ipv4::to(SERVER_V4), &syn)),
        ("mapped", frame_v6(&Ipv6::to(mapped), &syn)),
        ("NAT64", frame_v6(&Ipv6::to(nat64), &syn)),
    ] {
        assert_passed(&mut wires, name, &frame);
    }
    let mut next = nat64;
    next[15] ^= 1;
    for (name, frame) in [
        ("another NAT64 address", frame_v6(&Ipv6::to(next), &syn)),
        ("IPv6", frame_v6(&Ipv6::to(SERVER_V6), &syn)),
        ("a neighbour", frame_v4(&Ipv4::to([a, b, c, d ^ 1]), &syn)),
    ] {
        assert_stopped(&mut wires, name, &frame);
    }
}

type Frames = Vec<(&'static str, Vec<u8>)>;

/// Guarded packets that nftables can look up.
fn whole() -> Frames {
    let syn = Tcp::syn(GUARDED).bytes();
    let v4 = Ipv4::to(SERVER_V4);
    let packet = v4.with(&syn);
    let first = Ipv4 {
        fragment: Ipv4::MORE,
        ..v4.clone()
    };
    let reset = Tcp {
        flags: RST,
        ..Tcp::syn(GUARDED)
    };
    let v6 = |extensions: &[Extension]| frame_v6(&Ipv6::through(SERVER_V6, extensions), &syn);
    let tagged = |tag| ethernet(&[Step::Tag(tag, 5)], IPV4, &packet);
    let first_v6 = Extension::Fragment {
        offset: 0,
        more: true,
    };
    vec![
        ("IPv4", frame_v4(&v4, &syn)),
        ("a first fragment", frame_v4(&first, &syn)),
        ("a reset", frame_v4(&v4, &reset.bytes())),
        ("IPv6", v6(&[])),
        ("IPv6 with options", v6(&[Extension::HOP_BY_HOP])),
        ("an atomic fragment", v6(&[Extension::ATOMIC])),
        ("a first fragment over IPv6", v6(&[first_v6])),
        ("a tag", tagged(TAG)),
        ("a service tag", tagged(SERVICE_TAG)),
        (
            "IPv6 in a tag",
            ethernet(&[Step::Tag(TAG, 5)], IPV6, &Ipv6::to(SERVER_V6).with(&syn)),
        ),
    ]
}

/// Guarded packets that nftables cannot look up.
fn unclear() -> Frames {
    let syn = Tcp::syn(GUARDED).bytes();
    let options = Ipv4 {
        options: vec![1, 1, 1, 0],
        ..Ipv4::to(SERVER_V4)
    };
    let packet = Ipv4::to(SERVER_V4).with(&syn);
    let packet_v6 = Ipv6::to(SERVER_V6).with(&syn);
    let ah = Extension::Authentication { length: 4 };
    let qinq = [Step::Tag(SERVICE_TAG, 5), Step::Tag(TAG, 6)];
    vec![
        ("IPv4 with options", frame_v4(&options, &syn)),
        ("AH in IPv4", authenticated_v4(&syn)),
        (
            "AH in IPv6",
            frame_v6(&Ipv6::through(SERVER_V6, &[ah]), &syn),
        ),
        ("QinQ", ethernet(&qinq, IPV4, &packet)),
        ("IPv6 in QinQ", ethernet(&qinq, IPV6, &packet_v6)),
        (
            "an old tag",
            ethernet(&[Step::Tag(OLD_TAG, 5)], IPV4, &packet),
        ),
        ("SNAP", ethernet(&[Step::SNAP], IPV4, &packet)),
        ("IPv6 in SNAP", ethernet(&[Step::SNAP], IPV6, &packet_v6)),
        (
            "SNAP in a tag",
            ethernet(&[Step::Tag(TAG, 5), Step::SNAP], IPV4, &packet),
        ),
    ]
}

/// Packets refused for their form, by the kind that is counted.
fn malformed_frames() -> Frames {
    let syn = Tcp::syn(GUARDED).bytes();
    let v4 = Ipv4::to(SERVER_V4);
    let fragment = |fragment, payload: &[u8]| {
        let header = Ipv4 {
            fragment,
            ..v4.clone()
        };
        frame_v4(&header, payload)
    };
    let route = Ipv4 {
        options: vec![131, 7, 4, 192, 0, 2, 1, 0],
        ..v4.clone()
    };
    let tags = [Step::Tag(TAG, 1), Step::Tag(TAG, 2), Step::Tag(TAG, 3)];
    let overlapping = Extension::Fragment {
        offset: 1,
        more: false,
    };
    vec![
        ("truncated", frame_v4(&v4, &syn[..12])),
        ("short_fragment", fragment(Ipv4::MORE, &syn[..16])),
        ("overlapping_fragment", fragment(1, &syn)),
        (
            "overlapping_fragment over IPv6",
            frame_v6(&Ipv6::through(SERVER_V6, &[overlapping]), &syn),
        ),
        ("vlan_depth", ethernet(&tags, IPV4, &v4.with(&syn))),
        ("source_route", frame_v4(&route, &syn)),
    ]
}

/// Frames that are nobody's business, those that only the backend looks into included.
fn others() -> Frames {
    let segment = Tcp::syn(OTHER).bytes();
    let v4 = Ipv4::to(SERVER_V4);
    let (packet, packet_v6) = (v4.with(&segment), Ipv6::to(SERVER_V6).with(&segment));
    let udp = Ipv4 { protocol: 17, ..v4 };
    let qinq = [Step::Tag(SERVICE_TAG, 5), Step::Tag(TAG, 6)];
    let datagram = [0x9c, 0x40, 0, 25, 0, 8, 0, 0];
    let mut others = unguarded(GUARDED, OTHER);
    others.extend([
        ("another port in QinQ", ethernet(&qinq, IPV4, &packet)),
        ("IPv6 in QinQ", ethernet(&qinq, IPV6, &packet_v6)),
        ("UDP in QinQ", ethernet(&qinq, IPV4, &udp.with(&datagram))),
        (
            "another port in SNAP",
            ethernet(&[Step::SNAP], IPV4, &packet),
        ),
    ]);
    others
}

#[track_caller]
fn assert_passed(wires: &mut Wires, name: &str, frame: &[u8]) {
    let passed = wires.check_passed(frame);
    passed.unwrap_or_else(|error| panic!("{name}: {error:#}"));
}

#[track_caller]
fn assert_stopped(wires: &mut Wires, name: &str, frame: &[u8]) {
    let stopped = wires.check_stopped(frame);
    stopped.unwrap_or_else(|error| panic!("{name}: {error:#}"));
}

fn settings() -> Settings {
    Settings {
        more: "backend: nftables\n".to_owned(),
        ..Settings::default()
    }
}

#[track_caller]
fn start(world: &World, policy: &PolicyText) -> Agent {
    let agent = world.agent_with(settings(), policy).unwrap();
    // With the guard, which knows what was judged by the bit that the rules set.
    let host = &world.hosting.hypervisor;
    poll("the guard", LIMIT, || {
        let tables = host.exec("nft", &["list", "tables"])?;
        Ok(tables.contains("bridge gate25_guard").then_some(()))
    })
    .unwrap();
    agent
}
