//! The guard: what a guest sends while no program is on its interface, or the agent is not there.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use gate25_common::testing::frames::{
    Extension, IPV4, Ipv4, Ipv6, OLD_TAG, SERVER_V4, SERVER_V6, SERVICE_TAG, Step, TAG, Tcp,
    authenticated_v4, ethernet, frame_v4, frame_v6, unguarded,
};
use gate25_tests::{
    Guest, Hosting, Link, NetNs, Outcome, PolicyText, Privileges, Sender, Settings, Wires, World,
    connect, paced, poll,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);
/// Longer than one retransmission of a SYN.
const PATIENCE: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(3);
const GUARDED: u16 = 25;
const OTHER: u16 = 443;

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
    let stopped = |table| {
        let counted = |value| value >= 2.0;
        agent.wait_metric(
            "gate25_guard_packets_total",
            &[("table", table)],
            LIMIT,
            counted,
        )
    };
    stopped("bridge").unwrap();
    stopped("inet").unwrap();
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
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    load(&world, &world.hosting.hypervisor, &printed.out);
    let stopped: Frames = guarded().into_iter().chain(hidden()).collect();
    for (name, frame) in &stopped {
        let checked = wires.check_stopped(frame);
        checked.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    assert_eq!(packets(&world, "bridge"), stopped.len() as u64);
    for (name, frame) in unguarded(GUARDED, OTHER) {
        let checked = wires.check_passed(&frame);
        checked.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    assert_eq!(packets(&world, "bridge"), stopped.len() as u64);
}

#[test]
fn guard_lets_pass_what_the_program_allows_in_every_frame() {
    let world = World::new().unwrap();
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    let policy = PolicyText::default()
        .customer("c-1", "tap101i0")
        .exempt("c-1");
    let agent = world.agent(&policy).unwrap();
    world.wait_workloads(&agent, "enforced", 1).unwrap();
    wait_guard(&world);
    let host = &world.hosting.hypervisor;
    // Whoever comes after the guard sees the bit no more, and did see the packets.
    for line in [
        "add table bridge later",
        "add chain bridge later seen { type filter hook prerouting priority -400; }",
        "add rule bridge later seen iifname tap101i0 counter",
        "add rule bridge later seen meta mark and 0x10000000 != 0 counter",
    ] {
        host.exec("nft", &[line]).unwrap();
    }
    let mut passed = 0;
    let frames = guarded().into_iter().chain(hidden());
    for (name, frame) in frames.chain(unguarded(GUARDED, OTHER)) {
        let checked = if name.starts_with("malformed") {
            wires.check_stopped(&frame)
        } else {
            passed += 1;
            wires.check_passed(&frame)
        };
        checked.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    let later = host.exec("nft", &["list", "chain", "bridge", "later", "seen"]);
    let later = later.unwrap();
    let counts: Vec<u64> = later
        .split("packets ")
        .skip(1)
        .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
        .collect();
    let [all, marked] = counts[..] else {
        panic!("{later}");
    };
    assert!(all >= passed, "{later}");
    assert_eq!(marked, 0, "{later}");
    assert_eq!(packets(&world, "bridge"), 0);
}

#[test]
fn bit_is_taken_off_whatever_the_interface_is_called() {
    let world = World::new().unwrap();
    let host = &world.hosting.hypervisor;
    let guest = world.guest_by(101, "odd101", Link::RoutedVeth).unwrap();
    let settings = Settings {
        interfaces: vec!["o*1".to_owned()],
        ..Settings::default()
    };
    let policy = PolicyText::default()
        .customer("c-1", "odd101")
        .exempt("c-1");
    let agent = world.agent_with(settings, &policy).unwrap();
    world.wait_workloads(&agent, "enforced", 1).unwrap();
    wait_guard(&world);
    for line in [
        "add table inet later",
        "add chain inet later seen { type filter hook prerouting priority -400; }",
        "add rule inet later seen iifname odd101 tcp dport 25 counter",
        "add rule inet later seen iifname odd101 meta mark and 0x10000000 != 0 counter",
    ] {
        host.exec("nft", &[line]).unwrap();
    }
    world.check_open(&guest).unwrap();
    let later = host.exec("nft", &["list", "chain", "inet", "later", "seen"]);
    let later = later.unwrap();
    assert!(!later.contains("dport 25 counter packets 0 "), "{later}");
    assert!(
        later.contains("!= 0x00000000 counter packets 0 "),
        "{later}"
    );
}

#[test]
fn vlan_of_an_interface_with_an_exact_pattern_is_guarded_too() {
    let world = World::new().unwrap();
    let settings = Settings {
        interfaces: vec!["vnet103".to_owned()],
        ..Settings::default()
    };
    let _agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    wait_guard(&world);
    // As a VLAN device on it is called, which the agent does not judge: the program is below.
    let guest = world.guest_by(103, "vnet103.5", Link::RoutedVeth).unwrap();
    let before = world.witness.packets().unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    let attempt = connect(&guest.ns, to, PATIENCE).unwrap();
    assert_eq!(attempt.outcome, Outcome::TimedOut);
    assert_eq!(world.witness.packets().unwrap(), before);
    assert!(packets(&world, "inet") > 0);
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
        assert!(
            took < paced(Duration::from_secs(1)),
            "round {round}: {took:?}"
        );
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
fn guard_that_is_written_anew_keeps_its_counters() {
    let world = World::new().unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    wait_guard(&world);
    agent.signal(Signal::SIGSTOP).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    let to = Hosting::EXCHANGER.v4_port(25);
    let attempt = connect(&guest.ns, to, PATIENCE).unwrap();
    assert_eq!(attempt.outcome, Outcome::TimedOut);
    let before = packets(&world, "bridge");
    assert!(before > 0);
    agent.signal(Signal::SIGKILL).unwrap();
    agent.restart().unwrap();
    let in_place = |value| value == 1.0;
    agent
        .wait_metric("gate25_guard_in_place", &[], LIMIT, in_place)
        .unwrap();
    assert!(packets(&world, "bridge") >= before);
    let table = [("table", "bridge")];
    let told = agent.metrics().unwrap();
    assert!(told.sum("gate25_guard_packets_total", &table) >= Some(before as f64));
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
    assert_eq!(packets(&world, "bridge"), 0);
    world.check_open(&guest).unwrap();
    // Two SYNs and what follows them.
    let unmarked = packets(&world, "bridge");
    assert!(unmarked >= 4, "{unmarked}");
    agent.signal(Signal::SIGCONT).unwrap();
    world.wait_workloads(&agent, "unassigned", 1).unwrap();
    let judged = packets(&world, "bridge");
    world.check_open(&guest).unwrap();
    assert_eq!(packets(&world, "bridge"), judged);
}

#[test]
fn guard_that_cannot_be_put_in_place_is_complained_of_and_tried_again() {
    let world = World::new().unwrap();
    let settings = Settings {
        env: world.nft_that("").unwrap(),
        ..Settings::default()
    };
    let (nft, away) = (world.nft(), world.nft().with_extension("away"));
    fs::rename(&nft, &away).unwrap();
    let agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    world.wait_closed(&guest).unwrap();
    let advice = "run nft to list a table: No such file or directory (os error 2); install nftables, or write `guard: false`";
    poll("a complaint", LIMIT, || {
        let status = agent.command(&["status", "-j"])?;
        let told = status.out.contains("the guard is not in place");
        Ok((told && status.out.contains(advice)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let complaints = |subject| {
        let metrics = agent.metrics().unwrap();
        metrics.sum("gate25_complaints", &[("subject", subject)])
    };
    assert_eq!(
        (complaints("guard"), complaints("pins")),
        (Some(1.0), Some(0.0))
    );
    // Said once, whatever comes of the tries.
    let said = agent.log().matches("the guard is not in place").count();
    assert_eq!(said, 1, "{}", agent.log());
    fs::rename(&away, &nft).unwrap();
    wait_guard(&world);
    agent
        .wait_metric("gate25_guard_in_place", &[], LIMIT, |value| value == 1.0)
        .unwrap();
    assert_eq!(complaints("guard"), Some(0.0));
}

#[test]
fn guard_that_nobody_wants_and_that_stays_is_complained_of_as_what_it_is() {
    let world = World::new().unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    wait_guard(&world);
    agent.stop().unwrap();
    // It lists, and removes nothing.
    let line = "[ \"$2\" = -f ] && { echo 'Error: no' >&2; exit 1; }";
    agent.settings().more = "guard: false\n".to_owned();
    agent.settings().env = world.nft_that(line).unwrap();
    agent.restart().unwrap();
    let status = poll("a complaint", LIMIT, || {
        let status = agent.command(&["status", "-j"])?.out;
        Ok(status
            .contains("a guard of an earlier start")
            .then_some(status))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    assert!(status.contains("stops what the programs allow"), "{status}");
    assert!(!status.contains("not in place"), "{status}");
    agent.stop().unwrap();
    agent.settings().env = Vec::new();
    agent.restart().unwrap();
    poll("the guard's end", LIMIT, || {
        Ok((!guarded_by_tables(&world)).then_some(()))
    })
    .unwrap();
}

#[test]
fn chain_of_others_in_the_guards_table_is_left_alone_and_written_once_over() {
    let world = World::new().unwrap();
    let agent = world.agent(&PolicyText::default()).unwrap();
    wait_guard(&world);
    let host = &world.hosting.hypervisor;
    for line in [
        "add chain inet gate25_guard theirs",
        "add rule inet gate25_guard theirs accept",
    ] {
        host.exec("nft", &[line]).unwrap();
    }
    // A change that is put right, after which the agent has looked at theirs, too.
    host.exec("nft", &["flush chain inet gate25_guard guest"])
        .unwrap();
    let repairs = "gate25_drift_repairs_total";
    let labels = [("backend", "guard")];
    agent
        .wait_metric(repairs, &labels, LIMIT, |value| value == 1.0)
        .unwrap();
    host.exec("nft", &["add table inet theirs"]).unwrap();
    let guest = world.guest(101, "tap101i0").unwrap();
    world.wait_closed(&guest).unwrap();
    let repaired = agent.metrics().unwrap().sum(repairs, &labels);
    assert_eq!(repaired, Some(1.0));
    let theirs = ["list", "chain", "inet", "gate25_guard", "theirs"];
    assert!(host.exec("nft", &theirs).unwrap().contains("accept"));
}

#[test]
fn refusal_that_is_not_for_tables_of_others_replaces_nothing() {
    let world = World::new().unwrap();
    let settings = Settings {
        // What takes nft's place here writes beside itself.
        privileges: Privileges::Root,
        ..Settings::default()
    };
    let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    wait_guard(&world);
    agent.stop().unwrap();
    let host = &world.hosting.hypervisor;
    let mine = "add chain inet gate25_guard mine";
    host.exec("nft", &[mine]).unwrap();
    // The first change is refused, as when the kernel is out of memory.
    let line =
        "if [ \"$1\" = -e ] && [ ! -e $0.said ]; then : >$0.said; echo 'Error: no' >&2; exit 1; fi";
    agent.settings().env = world.nft_that(line).unwrap();
    agent.restart().unwrap();
    agent
        .wait_metric("gate25_guard_in_place", &[], LIMIT, |value| value == 1.0)
        .unwrap();
    assert!(!agent.log().contains("replaced"), "{}", agent.log());
    host.exec("nft", &["list", "chain", "inet", "gate25_guard", "mine"])
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
    for line in [
        "add table netdev theirs",
        "add chain netdev theirs in { type filter hook ingress device lo priority 0; }",
        "add rule netdev theirs in meta mark set 0x1",
    ] {
        host.exec("nft", &[line]).unwrap();
    }
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    let warned = poll("a warning", LIMIT, || {
        let status = agent.command(&["status", "-j"])?.out;
        Ok(status.contains("used by others").then_some(status))
    });
    let warned = warned.unwrap();
    for user in [
        "nftables inet theirs output",
        "routing rule 77 (fwmark 0x10000000/0xf0000000)",
        "nftables netdev theirs in, which may take it off packets that the programs have let pass",
    ] {
        assert!(warned.contains(user), "{user}: {warned}");
    }
    assert!(!warned.contains("rule 78"), "{warned}");
    agent.stop().unwrap();
    agent.settings().more = "guard_mark: 0x4\n".to_owned();
    agent.restart().unwrap();
    wait_guard(&world);
    // What goes while the agent runs is looked for again.
    let left = "nftables netdev theirs in";
    let named = |wanted: bool| {
        poll("the warning", LIMIT, || {
            let status = agent.command(&["status", "-j"])?.out;
            assert!(!status.contains("inet theirs output"), "{status}");
            Ok((status.contains(left) == wanted).then_some(()))
        })
    };
    named(true).unwrap();
    host.exec("nft", &["delete table netdev theirs"]).unwrap();
    named(false).unwrap();
}

#[test]
fn ignored_pattern_that_takes_guests_out_of_the_guard_is_named() {
    let world = World::new().unwrap();
    let settings = Settings {
        more: "guard: true\n".to_owned(),
        ..Settings::default()
    };
    let mut agent = world.agent_with(settings, &PolicyText::default()).unwrap();
    agent.stop().unwrap();
    let text = fs::read_to_string(agent.config()).unwrap();
    let text = text.replace("interfaces:\n", "interfaces:\n  ignore: [\"tap*i9\"]\n");
    fs::write(agent.config(), text).unwrap();
    let printed = agent.command(&["guard", "--print"]).unwrap();
    let why = "`tap*` is not covered: the guard knows beginnings of names only, so `tap*i9` in `interfaces.ignore` cannot be left out of it";
    assert!(printed.err.contains(why), "{printed:?}");
    assert!(!printed.out.contains("tap*"), "{printed:?}");
    assert!(printed.out.contains("vnet*"), "{printed:?}");
}

#[test]
fn boot_unit_closes_guests_before_any_agent_runs() {
    let world = World::new().unwrap();
    let mut agent = world.agent(&PolicyText::default()).unwrap();
    agent.stop().unwrap();
    assert_eq!(agent.command(&["teardown"]).unwrap().code, Some(0));
    let mut wires = Wires::new(&world.hosting.hypervisor).unwrap();
    let unit = include_str!("../../deploy/gate25-guard.service");
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let script = start
        .and_then(|line| line.strip_prefix("/bin/sh -ec '"))
        .and_then(|line| line.strip_suffix('\''))
        .unwrap();
    let kept = world.lab.dir().join("kept/guard.json");
    let command = format!("guard --print --keep {}", kept.display());
    let script = script
        .replace(
            "/usr/bin/gate25 guard --print --keep /var/lib/gate25-guard/guard.json",
            &agent.in_shell(&command).unwrap(),
        )
        .replace("%%", "%");
    let host = &world.hosting.hypervisor;
    host.exec("sh", &["-ec", &script]).unwrap();
    assert!(guarded_by_tables(&world));
    for (name, frame) in guarded() {
        let checked = wires.check_stopped(&frame);
        checked.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    // Settings that are not valid fail the unit, and the guard is that of those before; without any,
    // that of a host without settings.
    fs::write(agent.config(), "schema: 1\nguard_mark: 3\n").unwrap();
    for others in ["vnet*", "nobody*"] {
        let text = fs::read_to_string(&kept).unwrap();
        fs::write(&kept, text.replace("vnet*", others)).unwrap();
        host.exec("nft", &["flush ruleset"]).unwrap();
        let failed = host.exec("sh", &["-ec", &script]).unwrap_err();
        let failed = format!("{failed:#}");
        assert!(failed.contains("guard_mark: 3"), "{failed}");
        let placed = host.exec("nft", &["list table bridge gate25_guard"]);
        assert!(placed.unwrap().contains(others), "{others}");
    }
    // A machine that lost its power may have kept the file's name and nothing of it.
    let losses: [fn(&Path) -> io::Result<()>; 2] =
        [|kept| fs::write(kept, ""), |kept| fs::remove_file(kept)];
    for lose in losses {
        lose(&kept).unwrap();
        host.exec("nft", &["flush ruleset"]).unwrap();
        host.exec("sh", &["-ec", &script]).unwrap_err();
        for (name, frame) in guarded() {
            let checked = wires.check_stopped(&frame);
            checked.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }
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
    let v6 = |extensions: &[Extension]| frame_v6(&Ipv6::through(SERVER_V6, extensions), &syn);
    vec![
        ("IPv4", frame_v4(&v4, &syn)),
        ("IPv4 with options", frame_v4(&options, &syn)),
        ("a first fragment", frame_v4(&first, &syn)),
        ("malformed: offset 1", frame_v4(&offset_1, &syn)),
        ("AH in IPv4", authenticated_v4(&syn)),
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

/// What the guard's table of this family has counted.
#[track_caller]
fn packets(world: &World, family: &str) -> u64 {
    let host = &world.hosting.hypervisor;
    let words = ["-j", "list", "counter", family, "gate25_guard", "unmarked"];
    let listed = host.exec("nft", &words).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let objects = listed["nftables"].as_array().unwrap();
    let counted = objects
        .iter()
        .find_map(|it| it["counter"]["packets"].as_u64());
    counted.unwrap()
}
