//! Events and snapshots of interfaces.

use std::collections::{BTreeMap, BTreeSet};

use gate25::kernel::links::{Interface, Kind, LinkEvent, Links, Subscription, snapshot};
use gate25_tests::fewer;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_oneof};
use proptest::test_runner::TestRunner;

use crate::netns::{Elsewhere, deadline, index, ip_batch, output, run, within};

#[test]
fn snapshot_knows_kinds_peers_and_masters() {
    within(|| async {
        run("ip link add br0 type bridge");
        run("ip link add veth0 type veth peer name veth1");
        run("ip link set veth0 master br0");
        run("ip tuntap add tap0 mode tap");
        run("ip tuntap add tun0 mode tun");
        let found = |name| find(&snapshot().unwrap(), name).unwrap();
        assert_eq!(found("lo").kind, Kind::Other);
        assert_eq!(found("br0").kind, Kind::Bridge);
        assert_eq!(found("tap0").kind, Kind::Tap);
        assert_eq!(found("tun0").kind, Kind::Tun);
        assert_eq!(found("veth0").master, Some(index("br0")));
        let Kind::Veth { peer: Some(peer) } = found("veth0").kind else {
            panic!("no peer")
        };
        assert_eq!((peer.index, peer.netns), (index("veth1"), None));
        let elsewhere = Elsewhere::new();
        run(&format!("ip link set veth1 netns {}", elsewhere.pid()));
        let Kind::Veth { peer: Some(peer) } = found("veth0").kind else {
            panic!("no peer")
        };
        assert!(peer.netns.is_some());
    });
}

#[test]
fn snapshot_with_a_name_that_is_not_utf8_lists_everything() {
    use std::os::unix::ffi::OsStrExt as _;
    within(|| async {
        let name = std::ffi::OsStr::from_bytes(b"tap\xff\xfe7");
        let made = std::process::Command::new("ip")
            .args(["tuntap", "add"])
            .arg(name)
            .args(["mode", "tap"])
            .status()
            .unwrap();
        assert!(made.success());
        run("ip tuntap add after mode tap");
        let listed = snapshot().unwrap();
        assert!(find(&listed, "tap\\xff\\xfe7").is_some(), "{listed:?}");
        assert!(find(&listed, "after").is_some());
    });
}

#[test]
fn snapshot_while_interfaces_come_and_go_lists_all_that_stay() {
    within(|| async {
        // A slow machine needs fewer to be caught in the middle of a list, and never gets to the
        // end of a long one.
        let count = fewer(800);
        let lines: String = (0..count)
            .map(|n| format!("tuntap add d{n} mode tap\n"))
            .collect();
        ip_batch(&lines);
        // One interface that hops from before all others to behind them and back.
        let hop = "link add hop index 2 type bridge\nlink del hop\n\
                   link add hop index 200000 type bridge\nlink del hop\n";
        let hop = hop.repeat(25);
        run("ip link del d0");
        let churn = std::thread::spawn(move || ip_batch(&hop));
        while !churn.is_finished() {
            let listed = snapshot().unwrap();
            assert_eq!(
                listed.iter().filter(|i| i.name.starts_with('d')).count(),
                count as usize - 1
            );
            assert!(
                listed.iter().filter(|i| i.name == "hop").count() <= 1,
                "in two places"
            );
        }
        churn.join().unwrap();
    });
}

#[test]
fn next_new_interface_is_reported() {
    within(|| async {
        let mut links = Links::open(Subscription::Links).unwrap();
        run("ip tuntap add tap101i0 mode tap");
        let tap = wait(&mut links, upserted("tap101i0")).await;
        assert!(matches!(
            tap,
            LinkEvent::Upsert(Interface {
                kind: Kind::Tap,
                ..
            })
        ));
    });
}

#[test]
fn next_renamed_interface_keeps_its_index() {
    within(|| async {
        run("ip tuntap add old mode tap");
        let before = index("old");
        let mut links = Links::open(Subscription::Links).unwrap();
        run("ip link set old name new");
        let event = wait(&mut links, upserted("new")).await;
        assert!(matches!(event, LinkEvent::Upsert(Interface { index, .. }) if index == before));
    });
}

#[test]
fn next_interface_recreated_under_its_name_has_another_index() {
    within(|| async {
        run("ip tuntap add again mode tap");
        let before = index("again");
        let mut links = Links::open(Subscription::Links).unwrap();
        run("ip link del again");
        run("ip tuntap add again mode tap");
        wait(&mut links, |event| {
            *event == LinkEvent::Gone { index: before }
        })
        .await;
        let event = wait(&mut links, upserted("again")).await;
        assert!(matches!(event, LinkEvent::Upsert(Interface { index, .. }) if index != before));
    });
}

#[test]
fn next_interface_moved_to_another_namespace_is_gone() {
    within(|| async {
        run("ip tuntap add mover mode tap");
        let moved = index("mover");
        let mut links = Links::open(Subscription::Links).unwrap();
        let elsewhere = Elsewhere::new();
        run(&format!("ip link set mover netns {}", elsewhere.pid()));
        wait(&mut links, |event| {
            *event == LinkEvent::Gone { index: moved }
        })
        .await;
        assert!(find(&snapshot().unwrap(), "mover").is_none());
    });
}

#[test]
fn next_interface_that_leaves_a_bridge_is_not_gone() {
    within(|| async {
        run("ip link add br0 type bridge");
        run("ip tuntap add port mode tap");
        let port = index("port");
        let mut links = Links::open(Subscription::Links).unwrap();
        run("ip link set port master br0");
        run("ip link set port nomaster");
        run("ip tuntap add last mode tap");
        let (mut masters, mut inventory) = (Vec::new(), Inventory::new());
        loop {
            let event = next(&mut links).await;
            assert_ne!(event, LinkEvent::Gone { index: port });
            let last = upserted("last")(&event);
            if let LinkEvent::Upsert(interface) = &event
                && interface.index == port
            {
                masters.push(interface.master);
            }
            apply(&mut inventory, event);
            if last {
                break;
            }
        }
        assert!(masters.contains(&Some(index("br0"))), "{masters:?}");
        assert_eq!(inventory[&port].master, None);
    });
}

#[test]
fn next_deleted_ingress_qdisc_is_reported() {
    within(|| async {
        run("ip tuntap add port mode tap");
        let gone = LinkEvent::QdiscGone {
            index: index("port"),
        };
        let mut links = Links::open(Subscription::LinksAndFilters).unwrap();
        run("tc qdisc add dev port handle ffff: ingress");
        run("tc qdisc del dev port ingress");
        wait(&mut links, |event| *event == gone).await;
        run("tc qdisc add dev port clsact");
        run("tc qdisc del dev port clsact");
        wait(&mut links, |event| *event == gone).await;
        // What leaves the interface is none of our business.
        run("tc qdisc add dev port root pfifo");
        run("tc qdisc del dev port root");
        run("ip tuntap add last mode tap");
        assert!(upserted("last")(
            &wait(&mut links, |event| *event == gone
                || upserted("last")(event))
            .await
        ));
    });
}

#[test]
fn next_after_an_overflow_says_lost_and_events_resume() {
    within(|| async {
        let mut links = Links::with_buffer(Subscription::Links, 4096).unwrap();
        // The first half stays, the second goes again: what is queued at the overflow is stale.
        let mut lines = String::new();
        for n in 0..1000 {
            lines.push_str(&format!("tuntap add d{n} mode tap\n"));
        }
        for n in 0..500 {
            lines.push_str(&format!("link del d{n}\n"));
        }
        ip_batch(&lines);
        assert_eq!(next(&mut links).await, LinkEvent::Lost);
        let mut inventory = by_index(links.snapshot().await.unwrap().interfaces);
        run("ip tuntap add last mode tap");
        loop {
            let event = next(&mut links).await;
            let last = upserted("last")(&event);
            assert_ne!(event, LinkEvent::Lost);
            apply(&mut inventory, event);
            if last {
                break;
            }
        }
        assert_eq!(inventory, by_index(snapshot().unwrap()));
        assert_eq!(inventory.len(), 502);
    });
}

#[test]
fn next_after_a_snapshot_is_nothing_older() {
    within(|| async {
        run("ip tuntap add port mode tap");
        run("ip tuntap add before mode tap");
        let [port, number] = ["port", "before"].map(index);
        let mut links = Links::open(Subscription::LinksAndFilters).unwrap();
        for name in ["port", "before"] {
            run(&format!("tc qdisc add dev {name} clsact"));
            run(&format!("tc qdisc del dev {name} clsact"));
        }
        ip_batch(&format!(
            "link set before up\nlink del before\nlink add after index {number} type veth peer name other\n"
        ));
        let found = links.snapshot().await.unwrap();
        assert_eq!(found.gone, BTreeSet::from([number]));
        assert!(find(&found.interfaces, "before").is_none());
        assert_eq!(find(&found.interfaces, "after").unwrap().index, number);
        run("ip tuntap add last mode tap");
        // What a list of interfaces does not show is told all the same, of those that are still there.
        assert_eq!(next(&mut links).await, LinkEvent::QdiscGone { index: port });
        assert!(upserted("last")(&next(&mut links).await));
    });
}

#[test]
fn next_of_thousands_of_events_with_the_usual_buffer_loses_none() {
    within(|| async {
        let mut links = Links::open(Subscription::Links).unwrap();
        let lines: String = (0..2000)
            .map(|n| format!("tuntap add d{n} mode tap\n"))
            .collect();
        ip_batch(&lines);
        let mut inventory = Inventory::new();
        loop {
            let event = next(&mut links).await;
            assert_ne!(event, LinkEvent::Lost);
            let last = upserted("d1999")(&event);
            apply(&mut inventory, event);
            if last {
                break;
            }
        }
        assert_eq!(inventory.len(), 2000);
    });
}

#[test]
fn next_events_of_any_operations_add_up_to_the_snapshot() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 12,
        ..ProptestConfig::default()
    });
    let operations = prop::collection::vec(operation(), 1..25);
    let outcome = runner.run(&operations, |operations| {
        within(|| async move {
            run("ip link add br0 type bridge");
            let mut links = Links::open(Subscription::Links).unwrap();
            let mut inventory = by_index(snapshot().unwrap());
            let elsewhere = Elsewhere::new();
            for operation in operations {
                // Many make no sense at that moment: the kernel refuses those.
                output(&operation.replace("ELSEWHERE", &elsewhere.pid().to_string()));
            }
            run("ip tuntap add last mode tap");
            loop {
                let event = next(&mut links).await;
                let last = upserted("last")(&event);
                apply(&mut inventory, event);
                if last {
                    break;
                }
            }
            assert_eq!(
                announced(inventory.into_values().collect()),
                announced(snapshot().unwrap())
            );
        });
        Ok(())
    });
    outcome.unwrap();
}

/// The interfaces that a run of events amounts to.
type Inventory = BTreeMap<u32, Interface>;

fn by_index(interfaces: Vec<Interface>) -> Inventory {
    let interfaces = interfaces.into_iter();
    interfaces
        .map(|interface| (interface.index, interface))
        .collect()
}

#[track_caller]
fn apply(inventory: &mut Inventory, event: LinkEvent) {
    match event {
        LinkEvent::Upsert(interface) => {
            inventory.insert(interface.index, interface);
        }
        LinkEvent::Gone { index } => {
            inventory.remove(&index);
        }
        LinkEvent::QdiscGone { .. } => {}
        LinkEvent::Lost => panic!("events were lost"),
    }
}

/// The interfaces without peers: of a pair the first is announced before the two are joined, and
/// that one moves away is not announced.
fn announced(mut interfaces: Vec<Interface>) -> Inventory {
    for interface in &mut interfaces {
        if let Kind::Veth { .. } = interface.kind {
            interface.kind = Kind::Veth { peer: None };
        }
    }
    by_index(interfaces)
}

/// One thing that may happen to one of a few interfaces.
fn operation() -> impl Strategy<Value = String> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
    prop_oneof![
        name().prop_map(|n| format!("ip link add {n} type bridge")),
        name().prop_map(|n| format!("ip tuntap add {n} mode tap")),
        (name(), name()).prop_map(|(a, b)| format!("ip link add {a} type veth peer name {b}")),
        name().prop_map(|n| format!("ip link del {n}")),
        (name(), name()).prop_map(|(a, b)| format!("ip link set {a} name {b}")),
        name().prop_map(|n| format!("ip link set {n} master br0")),
        name().prop_map(|n| format!("ip link set {n} nomaster")),
        name().prop_map(|n| format!("ip link set {n} up")),
        name().prop_map(|n| format!("ip link set {n} down")),
        name().prop_map(|n| format!("ip link set {n} netns ELSEWHERE")),
    ]
}

fn upserted(name: &str) -> impl Fn(&LinkEvent) -> bool {
    move |event| matches!(event, LinkEvent::Upsert(interface) if interface.name == name)
}

fn find(interfaces: &[Interface], name: &str) -> Option<Interface> {
    interfaces
        .iter()
        .find(|interface| interface.name == name)
        .cloned()
}

async fn wait(links: &mut Links, wanted: impl Fn(&LinkEvent) -> bool) -> LinkEvent {
    loop {
        let event = next(links).await;
        if wanted(&event) {
            return event;
        }
    }
}

async fn next(links: &mut Links) -> LinkEvent {
    tokio::time::timeout(deadline(), links.next())
        .await
        .unwrap()
        .unwrap()
}
