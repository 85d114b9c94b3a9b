//! Datagrams in pieces, and TCP behind numbers that nobody knows: asked of a receiver that puts
//! together what arrives.

use gate25_tests::{Lab, Tried};

use super::ipv6;
use super::pieces::{Assembled, Family, families, numbered};
use super::range::{Gate, Path};
use super::receiver::Receiver;

#[test]
fn pieces_get_past_no_program() {
    try_all(Gate::Programs);
}

#[test]
fn pieces_get_past_no_rule_of_backend_nftables() {
    try_all(Gate::Rules);
}

#[test]
fn pieces_do_not_get_past_the_guard_alone() {
    try_all(Gate::Guard);
}

#[track_caller]
fn try_all(gate: Gate) {
    for path in [Path::Bridged, Path::Routed] {
        try_one(gate, path);
    }
}

#[track_caller]
fn try_one(gate: Gate, path: Path) {
    let lab = Lab::for_test().unwrap();
    let mut receiver = Receiver::new(&lab, path).unwrap();
    let families = families();
    let unknown = "TCP behind ESP, no next header, or a number that nobody knows";
    let mut number = 0;
    let mut frames = |family: &Family| -> Vec<Vec<u8>> {
        let sets = family.sets.iter();
        sets.flat_map(|set| {
            number += 1;
            numbered(set, number)
        })
        .collect()
    };
    for family in &families {
        let got = receiver.got(frames(family)).unwrap();
        let right = match family.assembled {
            Assembled::All => got >= family.sets.len() as u64,
            Assembled::Some => got > 0,
        };
        let of = family.sets.len();
        assert!(right, "{path:?}: {}: {got} of {of} arrive", family.what);
    }
    // No receiver takes it: it passes, and does no harm.
    assert_eq!(
        receiver.got(ipv6::unknown_headers()).unwrap(),
        0,
        "{path:?}"
    );
    let _agent = receiver.range.close(&lab, gate).unwrap();
    let judge = |what: &str, times: usize, sent: usize, leaked: u64| {
        let tried = Tried {
            times: times as u64,
            ..Tried::evasion(what, sent as u64, leaked)
        };
        tried
            .judge()
            .err()
            .map(|error| format!("{gate:?}, {path:?}: {error:#}"))
    };
    let mut wrong = Vec::new();
    for family in &families {
        let frames = frames(family);
        let sent = frames.len();
        let got = receiver.got(frames).unwrap();
        wrong.extend(judge(family.what, family.sets.len(), sent, got));
    }
    let frames = ipv6::unknown_headers();
    let sent = frames.len();
    let got = receiver.got(frames).unwrap();
    wrong.extend(judge(unknown, sent, sent, got));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
