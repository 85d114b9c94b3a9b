//! Datagrams in pieces, and TCP behind numbers that nobody knows: asked of a receiver that puts
//! together what arrives.

use std::slice;

use gate25_tests::{Lab, Tried};

use super::ipv6;
use super::pieces::{self, Family, Set, numbered};
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
    let mut number = 0;
    let mut got = |receiver: &mut Receiver, sets: &[Set]| {
        let frames = sets.iter().flat_map(|set| {
            number += 1;
            numbered(set, number)
        });
        receiver.got(frames).unwrap()
    };
    let mut wrong = Vec::new();
    let mut families = Vec::new();
    for Family { what, sets, least } in pieces::families() {
        // Each alone: which of them make a packet is for the kernel to say.
        let (arriving, others): (Vec<Set>, Vec<Set>) = sets
            .into_iter()
            .partition(|set| got(&mut receiver, slice::from_ref(set)) > 0);
        let arrived = pieces::by_version(&arriving);
        if arrived[0] < least[0] || arrived[1] < least[1] {
            wrong.push(format!(
                "{what}: {arrived:?} arrive by themselves, not {least:?}"
            ));
        }
        families.push((what, arriving, others));
    }
    // No receiver takes it: it passes, and does no harm.
    let got_unknown = |receiver: &mut Receiver| receiver.got(ipv6::unknown_headers()).unwrap();
    assert_eq!(got_unknown(&mut receiver), 0, "{path:?}");
    let _agent = receiver.range.close(&lab, gate).unwrap();
    for (what, arriving, others) in &families {
        let sent = arriving.iter().map(Vec::len).sum::<usize>();
        let tried = Tried {
            times: arriving.len() as u64,
            ..Tried::evasion(what, sent as u64, got(&mut receiver, arriving))
        };
        wrong.extend(tried.judge().err().map(|error| format!("{error:#}")));
        let got = got(&mut receiver, others);
        if got > 0 {
            wrong.push(format!("{what}: {got} of what nobody takes by itself"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{gate:?}, {path:?}:\n{}",
        wrong.join("\n")
    );
    assert_eq!(got_unknown(&mut receiver), 0, "{gate:?}, {path:?}");
}
