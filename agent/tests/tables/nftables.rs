//! The nftables backend's commands, with expectations from libnftables-json(5) and the design.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use gate25::compile::Prefix;
use gate25::dataplane::{Customers, MapImage, Step};
use gate25::guard::Mark;
use gate25::kernel::nftables::{
    Options, Range, Reject, Times, addresses, changes, concerning, hook, renewals,
};
use gate25_common::abi::{
    Blocked, Counting, CustomerId, CustomerPolicy, Exemption, InterfaceOwner, Mode, Quarantine,
    SetId,
};
use gate25_common::decide::HostMode;
use serde_json::{Value, json};

const CUSTOMER: CustomerId = CustomerId::from_raw(0xc1);
const SECOND: u64 = 1_000_000_000;
const BEGINNING: Times = Times { now: 0, done: 0 };

#[test]
fn prefixes_of_ipv4_hold_mapped_and_nat64_addresses_too() {
    let found = addresses(&prefixes(&[
        "192.0.2.0/25",
        "192.0.2.128/25",
        "198.51.100.7/32",
    ]));
    assert_eq!(
        found.v4,
        [
            v4("192.0.2.0", "192.0.2.255"),
            v4("198.51.100.7", "198.51.100.7")
        ]
    );
    assert_eq!(
        found.v6,
        [
            v6("::ffff:192.0.2.0", "::ffff:192.0.2.255"),
            v6("::ffff:198.51.100.7", "::ffff:198.51.100.7"),
            v6("64:ff9b::192.0.2.0", "64:ff9b::192.0.2.255"),
            v6("64:ff9b::198.51.100.7", "64:ff9b::198.51.100.7"),
        ]
    );
}

#[test]
fn prefixes_of_ipv6_leave_nat64_addresses_to_those_of_ipv4() {
    let found = addresses(&prefixes(&["64::/16", "2001:db8::/32"]));
    assert_eq!(found.v4, []);
    assert_eq!(
        found.v6,
        [
            v6("64::", "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff"),
            v6("64:ff9b::1:0:0", "64:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            v6("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        ]
    );
}

#[test]
fn every_ipv6_address_is_every_ipv4_address() {
    let found = addresses(&prefixes(&["::/0"]));
    assert_eq!(found.v4, [v4("0.0.0.0", "255.255.255.255")]);
    assert_eq!(
        found.v6,
        [v6("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]
    );
}

#[test]
fn customers_without_anything_here_and_their_sets_stay_out() {
    let mut image = image();
    let elsewhere = CustomerId::from_raw(0xc2);
    let set = SetId::new(0x52).unwrap();
    image.customers.insert(elsewhere, &policy(set, &[]));
    Arc::make_mut(&mut image.sets).insert(set, prefixes(&["203.0.113.0/24"]));
    assert_eq!(concerning(&image), self::image());
}

#[test]
fn interface_is_hooked_before_others_by_its_name() {
    assert_eq!(
        list(hook(7, "tap101i0").to_json()),
        [
            json!({"add": {"chain": {"family": "netdev", "table": "gate25", "name": "i_7"}}}),
            json!({"flush": {"chain": {"family": "netdev", "table": "gate25", "name": "i_7"}}}),
            json!({"delete": {"chain": {"family": "netdev", "table": "gate25", "name": "i_7"}}}),
            json!({"add": {"chain": {
                "family": "netdev", "table": "gate25", "name": "i_7", "type": "filter",
                "hook": "ingress", "dev": "tap101i0", "prio": -450, "policy": "accept",
            }}}),
            json!({"add": {"rule": {
                "family": "netdev", "table": "gate25", "chain": "i_7",
                "expr": [{"jump": {"target": "guest"}}],
            }}}),
        ]
    );
}

#[test]
fn interface_that_changes_hands_leaves_one_owner_for_the_other() {
    let (before, mut after) = (image(), image());
    let owner = InterfaceOwner::new(CustomerId::UNASSIGNED, Counting::All);
    after.interfaces.insert(7, owner);
    let steps = [Step::PutInterface(7, owner)];
    let element = |verb: &str, map: &str, chain: &str| {
        json!({verb: {"element": {
            "family": "netdev", "table": "gate25", "name": map,
            "elem": [[7, {"goto": {"target": chain}}]],
        }}})
    };
    let commands = list(changes(&options(), &steps, (&before, &after), BEGINNING).to_json());
    assert_eq!(
        commands,
        [
            element("delete", "owners", "c_00000000000000c1"),
            element("delete", "owners_of_routed", "r_00000000000000c1"),
            element("delete", "owners_of_suspect", "s_00000000000000c1"),
            element("add", "owners", "c_0000000000000000"),
            element("add", "owners_of_routed", "r_0000000000000000"),
            element("add", "owners_of_suspect", "s_0000000000000000"),
        ]
    );
}

#[test]
fn exemption_holds_for_whole_seconds_from_its_start_to_before_its_end() {
    for (now, done, timeout) in [
        (9 * SECOND, 9 * SECOND, None),
        (9 * SECOND, 10 * SECOND, None),
        (10 * SECOND, 10 * SECOND, Some(20)),
        (10 * SECOND, 10 * SECOND + 1, Some(19)),
        (10 * SECOND, 14 * SECOND, Some(16)),
        (29 * SECOND, 29 * SECOND, Some(1)),
        (28 * SECOND, 29 * SECOND + 1, None),
        (29 * SECOND, 31 * SECOND, None),
        (30 * SECOND, 30 * SECOND, None),
    ] {
        let of = BTreeSet::from([CUSTOMER]);
        let commands = list(renewals(&options(), &image(), &of, Times { now, done }).to_json());
        let gate = commands.iter().find_map(|command| {
            let element = &command["add"]["element"];
            (element["name"] == "e_00000000000000c1_0").then_some(&element["elem"])
        });
        let expected = timeout.map(|timeout| {
            json!([
                {"elem": {"val": "ip", "timeout": timeout}},
                {"elem": {"val": "ip6", "timeout": timeout}},
            ])
        });
        assert_eq!(gate, expected.as_ref(), "at {now}, done {done}");
        let emptied = json!({"flush": {"set": {
            "family": "netdev", "table": "gate25", "name": "e_00000000000000c1_0",
        }}});
        assert!(commands.contains(&emptied), "at {now}");
    }
}

#[test]
fn customer_is_judged_by_allowlists_then_exemptions_then_profile() {
    let of = BTreeSet::from([CUSTOMER]);
    let commands = list(renewals(&options(), &image(), &of, BEGINNING).to_json());
    let rules: Vec<&Value> = commands
        .iter()
        .map(|command| &command["add"]["rule"])
        .filter(|rule| rule["chain"] == "c_00000000000000c1")
        .map(|rule| &rule["expr"])
        .collect();
    let daddr = |protocol: &str, set: &str| {
        let field = json!({"payload": {"protocol": protocol, "field": "daddr"}});
        json!({"match": {"op": "==", "left": field, "right": set}})
    };
    let goto = |chain: &str| json!({"goto": {"target": chain}});
    let gate = json!({"match": {
        "op": "==", "left": {"meta": {"key": "protocol"}}, "right": "@e_00000000000000c1_0",
    }});
    let syn = json!({"match": {
        "op": "==",
        "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, 18]},
        "right": 2,
    }});
    let (allowed, exempt) = ("allowlist_00000000000000c1", "exemption_00000000000000c1");
    let expected = [
        json!([daddr("ip", "@s4_0000000000000051"), goto(allowed)]),
        json!([daddr("ip6", "@s6_0000000000000051"), goto(allowed)]),
        json!([gate, goto(exempt)]),
        json!([syn, {"counter": "c_00000000000000c1_reject"}]),
        json!([goto("reject_profile")]),
    ];
    assert_eq!(rules, expected.iter().collect::<Vec<_>>());
}

#[test]
fn host_that_observes_refuses_nothing() {
    let observing = Options {
        host: HostMode::Observe,
        ..options()
    };
    let of = BTreeSet::from([CUSTOMER]);
    let commands = renewals(&observing, &image(), &of, BEGINNING)
        .to_json()
        .to_string();
    assert!(commands.contains("observe_profile"), "{commands}");
    assert!(commands.contains("observe_malformed"), "{commands}");
    assert!(commands.contains("do_observe"), "{commands}");
    for refusal in ["reject_", "drop_", "do_drop"] {
        let target = format!("\"target\":\"{refusal}");
        assert!(!commands.contains(&target), "{commands}");
    }
}

fn options() -> Options {
    Options {
        ports: vec![25],
        host: HostMode::Policy,
        guard: Some(Mark::DEFAULT),
        reject: Reject::Reset,
    }
}

/// A customer with interface 7, an allowlist, and an exemption from second 10 to second 30.
fn image() -> MapImage {
    let set = SetId::new(0x51).unwrap();
    let exemption = Exemption::new(SetId::ANY, 10 * SECOND, 30 * SECOND);
    let owner = InterfaceOwner::new(CUSTOMER, Counting::All);
    MapImage {
        customers: Customers::from([
            (CustomerId::UNASSIGNED, policy(SetId::NONE, &[])),
            (CUSTOMER, policy(set, &[exemption])),
        ]),
        sets: Arc::new(BTreeMap::from([(set, prefixes(&["192.0.2.25/32"]))])),
        interfaces: BTreeMap::from([(7, owner)]),
        cgroups: BTreeMap::new(),
    }
}

fn policy(set: SetId, exemptions: &[Exemption]) -> CustomerPolicy {
    let (mode, blocked) = (Mode::Enforce, Blocked::Reject);
    CustomerPolicy::new(mode, blocked, Quarantine::No, set, SetId::NONE)
        .with_exemptions(exemptions)
        .unwrap()
}

fn prefixes(nets: &[&str]) -> Arc<[Prefix]> {
    let nets = nets.iter().map(|net| net.parse().unwrap());
    nets.map(|net| Prefix::new(net, 0)).collect()
}

fn v4(first: &str, last: &str) -> Range<Ipv4Addr> {
    Range {
        first: first.parse().unwrap(),
        last: last.parse().unwrap(),
    }
}

fn v6(first: &str, last: &str) -> Range<Ipv6Addr> {
    Range {
        first: first.parse().unwrap(),
        last: last.parse().unwrap(),
    }
}

fn list(commands: Value) -> Vec<Value> {
    commands["nftables"].as_array().unwrap().clone()
}
