//! The guard: what a guest sends while no program is on its interface, or the agent is not there.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::time::{Duration, Instant};

use gate25_common::testing::frames::{
    Extension, IPV4, Ipv4, Ipv6, OLD_TAG, SERVER_V4, SERVER_V6, SERVICE_TAG, Step, TAG, Tcp,
    ethernet, frame_v4, frame_v6,
};
use gate25_tests::{
    Agent, Guest, Hosting, Link, NetNs, Outcome, PolicyText, Sender, Settings, Tap, Wires, World,
    connect, poll,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);
/// Longer than one retransmission of a SYN.
const PATIENCE: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(3);
const GUARDED: u16 = 25;
const OTHER: u16 = 443;
const MARKER: u16 = 444;

#[test]
fn guests_that_appear_while_the_agent_is_suspended_send_nothing_out() {
    let world = World::new().unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    wait_guard(&world);
    agent.signal(Signal::SIGSTOP).unwrap();
    let before = world.witness.packets().unwrap();
    let links = [
        (101, "tap101i0", Link::BridgedTap),
        (102, "tap102i0", Link::BridgedVeth),
        (103, "vnet103", Link::RoutedVeth),
    ];
    let guests: Vec<Guest> = links
        .into_iter()
        .map(|(number, name, link)| world.guest_by(number, name, link).unwrap())
        .collect();
    for guest in &guests {
        for to in [
            Hosting::EXCHANGER.v4_port(25),
            Hosting::EXCHANGER.v6_port(25),
        ] {
            let attempt = connect(&guest.ns, to, PATIENCE).unwrap();
            assert_ne!(attempt.outcome, Outcome::Connected, "{}", guest.interface);
        }
        let to = Hosting::EXCHANGER.v4_port(587);
        let attempt = connect(&guest.ns, to, LIMIT).unwrap();
        assert_eq!(attempt.outcome, Outcome::Connected, "{}", guest.interface);
    }
    assert_eq!(world.witness.packets().unwrap(), before);
    agent.signal(Signal::SIGCONT).unwrap();
    for guest in &guests {
        world
            .wait_closed(guest)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    }
}

#[test]
fn tap_recreated_while_the_agent_is_suspended_sends_nothing_out() {
    let world = World::new().unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1");
    let mut agent = world.agent(&policy).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    world.wait_open(&guest).unwrap();
    wait_guard(&world);
    agent.signal(Signal::SIGSTOP).unwrap();
    drop(guest);
    let host = &world.hosting.hypervisor;
    host.ip("link delete tap101i0").unwrap_or_default();
    let before = world.witness.packets().unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    let attempt = connect(&guest.ns, to, PATIENCE).unwrap();
    assert_ne!(attempt.outcome, Outcome::Connected);
    assert_eq!(world.witness.packets().unwrap(), before);
    agent.signal(Signal::SIGCONT).unwrap();
    world.wait_open(&guest).unwrap();
}

#[test]
fn guard_without_an_agent_stops_guarded_packets_in_every_frame_and_nothing_else() {
    let world = World::new().unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    let printed = agent.command(&["guard", "--print"]).unwrap();
    assert_eq!(printed.code, Some(0), "{printed:?}");
    agent.stop().unwrap();
    let done = agent.command(&["teardown"]).unwrap();
    assert_eq!(done.code, Some(0), "{done:?}");
    let Wires { mut guest, mut far } = Wires::new(&world.hosting.hypervisor).unwrap();
    load(&world, &world.hosting.hypervisor, &printed.out);
    for (name, frame) in guarded().into_iter().chain(hidden()) {
        guest.send(&frame).unwrap();
        assert_marker(&mut guest, &mut far, name);
    }
    for (name, frame) in others() {
        guest.send(&frame).unwrap();
        let passed = far.receive(LIMIT, |seen| seen == frame);
        assert!(
            passed.is_ok(),
            "{name}: {:02x?}",
            far.receive(LIMIT, |_| true)
        );
    }
}

#[test]
fn guard_lets_pass_what_the_program_allows_in_every_frame() {
    let world = World::new().unwrap();
    let Wires { mut guest, mut far } = Wires::new(&world.hosting.hypervisor).unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1");
    let agent = world.agent(&policy).unwrap();
    world.wait_workloads(&agent, "enforced", 1).unwrap();
    wait_guard(&world);
    for (name, frame) in guarded().into_iter().chain(hidden()).chain(others()) {
        guest.send(&frame).unwrap();
        let passed = far.receive(LIMIT, |seen| seen == frame);
        let malformed = name.starts_with("malformed");
        assert_eq!(passed.is_ok(), !malformed, "{name}");
        if malformed {
            assert_marker(&mut guest, &mut far, name);
        }
    }
    // The bit is taken off again: nobody else's rules see it.
    let marks = world
        .hosting
        .hypervisor
        .exec("nft", &["-j", "list", "table", "inet", "gate25_guard"])
        .unwrap();
    assert!(marks.contains("mangle"), "{marks}");
}

#[test]
fn ruleset_flushed_a_hundred_times_is_put_back_within_a_second_each_time() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    world.wait_closed(&guest).unwrap();
    wait_guard(&world);
    let before = world.witness.packets().unwrap();
    let sender = Sender::start(&guest.ns, Hosting::EXCHANGER.v4_port(25), PAUSE).unwrap();
    let host = &world.hosting.hypervisor;
    for round in 0..100 {
        host.exec("nft", &["flush", "ruleset"]).unwrap();
        let flushed = Instant::now();
        wait_guard(&world);
        let took = flushed.elapsed();
        assert!(took < Duration::from_secs(1), "round {round}: {took:?}");
    }
    let tally = sender.tally();
    assert_eq!((tally.connected, tally.others), (0, 0), "{tally:?}");
    assert_eq!(world.witness.packets().unwrap(), before);
    let repaired = |value| value >= 100.0;
    let labels = [("backend", "guard")];
    agent
        .wait_metric("gate25_drift_repairs_total", &labels, LIMIT, repaired)
        .unwrap();
}

#[test]
fn rule_removed_by_others_is_put_back() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    wait_guard(&world);
    let host = &world.hosting.hypervisor;
    host.exec(
        "nft",
        &["flush", "chain", "bridge", "gate25_guard", "guest"],
    )
    .unwrap();
    let labels = [("backend", "guard")];
    agent
        .wait_metric("gate25_drift_repairs_total", &labels, LIMIT, |value| {
            value == 1.0
        })
        .unwrap();
    let chain = ["list", "chain", "bridge", "gate25_guard", "guest"];
    assert!(host.exec("nft", &chain).unwrap().contains("drop"));
}

#[test]
fn guard_outlives_the_agent_until_teardown_or_until_the_settings_want_none() {
    let world = World::new().unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    wait_guard(&world);
    agent.signal(Signal::SIGKILL).unwrap();
    agent.process().wait(LIMIT).unwrap();
    assert!(guarded_by_tables(&world), "it stays");
    agent.settings().more = "guard: false\n".to_owned();
    agent.restart().unwrap();
    poll("the guard's end", LIMIT, || {
        Ok((!guarded_by_tables(&world)).then_some(()))
    })
    .unwrap();
    agent.stop().unwrap();
    agent.settings().more = "guard_mark: 0x4\n".to_owned();
    agent.restart().unwrap();
    wait_guard(&world);
    agent.stop().unwrap();
    let done = agent.command(&["teardown", "-j"]).unwrap();
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.out.contains("bridge gate25_guard"), "{done:?}");
    assert!(!guarded_by_tables(&world));
}

#[test]
fn guard_of_a_host_that_observes_only_counts() {
    let world = World::new().unwrap();
    let settings = Settings {
        more: "enforcement: observe\n".to_owned(),
        ..Settings::default()
    };
    let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    wait_guard(&world);
    agent.signal(Signal::SIGSTOP).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    world.check_open(&guest).unwrap();
    agent.signal(Signal::SIGCONT).unwrap();
    world.check_open(&guest).unwrap();
}

#[test]
fn guard_that_cannot_be_put_in_place_is_complained_of_and_tried_again() {
    let world = World::new().unwrap();
    let settings = Settings {
        env: vec![("PATH".to_owned(), "/nonexistent".to_owned())],
        ..Settings::default()
    };
    let host = &world.hosting.hypervisor;
    let policy = [("policy.yaml", PolicyText::default().text())];
    let agent = Agent::start_unready(host, settings, &policy).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    world.wait_closed(&guest).unwrap();
    poll("a complaint", LIMIT, || {
        let status = agent.command(&["status", "-j"])?;
        Ok(status.out.contains("run nft to").then_some(()))
    })
    .unwrap();
}

#[test]
fn tables_of_others_by_the_guards_name_are_replaced() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    for line in [
        "add table bridge gate25_guard",
        "add chain bridge gate25_guard prerouting { type filter hook input priority 5; }",
        "add rule bridge gate25_guard prerouting accept",
        "add table inet gate25_guard",
        "add set inet gate25_guard guest { type ipv4_addr; }",
    ] {
        host.exec("nft", &[line]).unwrap();
    }
    let agent = world.agent(&PolicyText::default()).unwrap();
    let bridge = poll("the guard's own table", LIMIT, || {
        let table = host.exec("nft", &["list", "table", "bridge", "gate25_guard"])?;
        Ok(table.contains("hook prerouting").then_some(table))
    });
    let bridge = bridge.unwrap();
    assert!(!bridge.contains("hook input"), "{bridge}");
    let said = "somebody else's, replaced";
    poll("the log", LIMIT, || {
        Ok(agent.log().contains(said).then_some(()))
    })
    .unwrap();
}

#[test]
fn others_who_use_the_bit_are_named_until_it_is_another() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    for line in [
        "add table inet theirs",
        "add chain inet theirs output { type route hook output priority 0; }",
        "add rule inet theirs output meta mark set meta mark or 0x10000000",
    ] {
        host.exec("nft", &[line]).unwrap();
    }
    host.ip("rule add priority 77 fwmark 0x10000000/0xf0000000 table 77")
        .unwrap();
    host.ip("rule add priority 78 fwmark 0x8 table 77").unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    let warned = poll("a warning", LIMIT, || {
        let status = agent.command(&["status", "-j"])?.out;
        Ok(status.contains("used by others").then_some(status))
    });
    let warned = warned.unwrap();
    for user in [
        "nftables inet theirs output",
        "routing rule 77 (fwmark 0x10000000/0xf0000000)",
    ] {
        assert!(warned.contains(user), "{user}: {warned}");
    }
    assert!(!warned.contains("rule 78"), "{warned}");
    agent.stop().unwrap();
    agent.settings().more = "guard_mark: 0x4\n".to_owned();
    agent.restart().unwrap();
    wait_guard(&world);
    let status = agent.command(&["status", "-j"]).unwrap().out;
    assert!(!status.contains("used by others"), "{status}");
}

#[test]
fn boot_unit_closes_guests_before_any_agent_runs() {
    let world = World::new().unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    agent.stop().unwrap();
    assert_eq!(agent.command(&["teardown"]).unwrap().code, Some(0));
    let Wires { mut guest, mut far } = Wires::new(&world.hosting.hypervisor).unwrap();
    let unit = include_str!("../../deploy/gate25-guard.service");
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let script = start
        .and_then(|line| line.strip_prefix("/bin/sh -ec '"))
        .and_then(|line| line.strip_suffix('\''))
        .unwrap();
    let print = agent.in_shell("guard --print").unwrap();
    let script = script
        .replace("/usr/bin/gate25 guard --print", &print)
        .replace("%%", "%");
    let host = &world.hosting.hypervisor;
    host.exec("sh", &["-ec", &script]).unwrap();
    assert!(guarded_by_tables(&world));
    for (name, frame) in guarded() {
        guest.send(&frame).unwrap();
        assert_marker(&mut guest, &mut far, name);
    }
    // Settings that cannot be read fail the unit and leave what is there.
    fs::write(agent.config(), "schema: 1\nguard_mark: 3\n").unwrap();
    let failed = host.exec("sh", &["-ec", &script]).unwrap_err();
    let failed = format!("{failed:#}");
    assert!(failed.contains("guard_mark: 3"), "{failed}");
    assert!(guarded_by_tables(&world));
}

/// A packet that is let pass arrives before anything of what was sent earlier.
#[track_caller]
fn assert_marker(guest: &mut Tap, far: &mut Tap, name: &str) {
    let marker = frame_v4(&Ipv4::to(SERVER_V4), &Tcp::syn(MARKER).bytes());
    guest.send(&marker).unwrap();
    let of_guest = |frame: &[u8]| frame.get(..12) == marker.get(..12);
    let next = far.receive(LIMIT, of_guest).unwrap();
    assert_eq!(next, marker, "{name} came through");
}

type Frames = Vec<(&'static str, Vec<u8>)>;

/// Frames with a packet for the guarded port.
fn guarded() -> Frames {
    let syn = Tcp::syn(GUARDED).bytes();
    let v4 = Ipv4::to(SERVER_V4);
    let packet = v4.with(&syn);
    let options = Ipv4 {
        options: vec![1, 1, 1, 0],
        ..v4.clone()
    };
    let first = Ipv4 {
        fragment: Ipv4::MORE,
        ..v4.clone()
    };
    let offset_1 = Ipv4 {
        fragment: 1,
        ..v4.clone()
    };
    let mut authenticated = vec![6, 4, 0, 0];
    authenticated.resize(24, 0);
    authenticated.extend(&syn);
    let authentication = Ipv4 {
        protocol: 51,
        ..v4.clone()
    };
    let v6 = |extensions: &[Extension]| frame_v6(&Ipv6::through(SERVER_V6, extensions), &syn);
    vec![
        ("IPv4", frame_v4(&v4, &syn)),
        ("IPv4 with options", frame_v4(&options, &syn)),
        ("a first fragment", frame_v4(&first, &syn)),
        ("malformed: offset 1", frame_v4(&offset_1, &syn)),
        ("AH in IPv4", frame_v4(&authentication, &authenticated)),
        ("IPv6", v6(&[])),
        ("IPv6 with options", v6(&[Extension::HOP_BY_HOP])),
        ("an atomic fragment", v6(&[Extension::ATOMIC])),
        ("AH in IPv6", v6(&[Extension::Authentication { length: 4 }])),
        ("a tag", ethernet(&[Step::Tag(TAG, 5)], IPV4, &packet)),
        (
            "a service tag",
            ethernet(&[Step::Tag(SERVICE_TAG, 5)], IPV4, &packet),
        ),
        (
            "an old tag",
            ethernet(&[Step::Tag(OLD_TAG, 5)], IPV4, &packet),
        ),
        (
            "QinQ",
            ethernet(
                &[Step::Tag(SERVICE_TAG, 5), Step::Tag(TAG, 6)],
                IPV4,
                &packet,
            ),
        ),
        (
            "two tags",
            ethernet(&[Step::Tag(TAG, 5), Step::Tag(TAG, 6)], IPV4, &packet),
        ),
        ("SNAP", ethernet(&[Step::SNAP], IPV4, &packet)),
        (
            "SNAP in a tag",
            ethernet(&[Step::Tag(TAG, 5), Step::SNAP], IPV4, &packet),
        ),
    ]
}

/// Frames that the guard cannot look into, with nothing guarded in them.
fn hidden() -> Frames {
    let packet = Ipv4::to(SERVER_V4).with(&Tcp::syn(OTHER).bytes());
    vec![
        (
            "another port in QinQ",
            ethernet(
                &[Step::Tag(SERVICE_TAG, 5), Step::Tag(TAG, 6)],
                IPV4,
                &packet,
            ),
        ),
        (
            "another port in SNAP",
            ethernet(&[Step::SNAP], IPV4, &packet),
        ),
    ]
}

/// Frames that are nobody's business.
fn others() -> Frames {
    let segment = Tcp::syn(OTHER).bytes();
    let v4 = Ipv4::to(SERVER_V4);
    let udp = Ipv4 {
        protocol: 17,
        ..v4.clone()
    };
    let datagram = [0x9c, 0x40, 0, 25, 0, 8, 0, 0];
    let later = Ipv4 {
        fragment: 2,
        ..v4.clone()
    };
    let later_v6 = Extension::Fragment {
        offset: 2,
        more: false,
    };
    let later_v6 = Ipv6::through(SERVER_V6, &[later_v6]);
    let guarded = Tcp::syn(GUARDED).bytes();
    let mut authenticated = vec![6, 4, 0, 0];
    authenticated.resize(24, 0);
    authenticated.extend(&segment);
    let authentication = Ipv4 {
        protocol: 51,
        ..v4.clone()
    };
    vec![
        ("another port", frame_v4(&v4, &segment)),
        (
            "another port over IPv6",
            frame_v6(&Ipv6::to(SERVER_V6), &segment),
        ),
        ("UDP", frame_v4(&udp, &datagram)),
        ("a later fragment", frame_v4(&later, &guarded)),
        ("a later fragment over IPv6", frame_v6(&later_v6, &guarded)),
        (
            "a later fragment over IPv6 in a tag",
            ethernet(&[Step::Tag(TAG, 5)], 0x86dd, &later_v6.with(&guarded)),
        ),
        (
            "another port in AH",
            frame_v4(&authentication, &authenticated),
        ),
        (
            "another port in a tag",
            ethernet(&[Step::Tag(TAG, 5)], IPV4, &v4.with(&segment)),
        ),
        ("ARP", ethernet(&[], 0x0806, &[0; 28])),
        ("LLC without SNAP", llc()),
    ]
}

/// A frame as of the spanning tree protocol.
fn llc() -> Vec<u8> {
    let mut frame = ethernet(&[], 38, &[0x42, 0x42, 3]);
    frame.resize(60, 0);
    frame
}

#[track_caller]
fn load(world: &World, host: &NetNs, ruleset: &str) {
    let file = world.lab.dir().join("guard.json");
    fs::write(&file, ruleset).unwrap();
    host.exec("nft", &["-j", "-f", file.to_str().unwrap()])
        .unwrap();
}

#[track_caller]
fn wait_guard(world: &World) {
    poll("the guard", LIMIT, || {
        Ok(guarded_by_tables(world).then_some(()))
    })
    .unwrap();
}

fn guarded_by_tables(world: &World) -> bool {
    let host = &world.hosting.hypervisor;
    let listed = host.exec("nft", &["-j", "list", "tables"]).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let tables = listed["nftables"].as_array().unwrap();
    let ours = tables
        .iter()
        .filter(|it| it["table"]["name"] == "gate25_guard");
    ours.count() == 2
}
