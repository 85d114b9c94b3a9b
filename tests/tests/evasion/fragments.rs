//! Datagrams in pieces, and TCP behind numbers that nobody knows: asked of a receiver that puts
//! together what arrives.

use std::{slice, sync::OnceLock};

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

/// The sets of a family: those that show the receiver a packet while nothing judges, and the others.
struct Asked {
    what: &'static str,
    arriving: Vec<Set>,
    others: Vec<Set>,
}

/// Sends sets, each with numbers that no other had.
struct Numbered {
    receiver: Receiver,
    number: u16,
}

impl Numbered {
    fn got(&mut self, sets: &[Set]) -> u64 {
        let number = &mut self.number;
        let frames = sets.iter().flat_map(|set| {
            *number += 1;
            numbered(set, *number)
        });
        self.receiver.got(frames).unwrap()
    }

    /// No receiver takes it: it passes, and does no harm.
    fn got_unknown(&mut self) -> u64 {
        self.receiver.got(ipv6::unknown_headers()).unwrap()
    }
}

/// Each set alone: which of them make a packet is for the kernel to say, once for all that judge.
fn asked(path: Path) -> &'static [Asked] {
    static ASKED: [OnceLock<Vec<Asked>>; 2] = [const { OnceLock::new() }; 2];
    ASKED[path as usize].get_or_init(|| {
        let lab = Lab::for_test().unwrap();
        let mut sender = Numbered {
            receiver: Receiver::new(&lab, path).unwrap(),
            number: 0,
        };
        let families = pieces::families().into_iter();
        let asked = families.map(|Family { what, sets, least }| {
            let (arriving, others): (Vec<Set>, Vec<Set>) = sets
                .into_iter()
                .partition(|set| sender.got(slice::from_ref(set)) > 0);
            let arrived = pieces::by_version(&arriving);
            assert!(
                arrived[0] >= least[0] && arrived[1] >= least[1],
                "{path:?}: {what}: {arrived:?} arrive by themselves, not {least:?}"
            );
            Asked {
                what,
                arriving,
                others,
            }
        });
        asked.collect()
    })
}

#[track_caller]
fn try_one(gate: Gate, path: Path) {
    let families = asked(path);
    let lab = Lab::for_test().unwrap();
    let mut sender = Numbered {
        receiver: Receiver::new(&lab, path).unwrap(),
        number: 0,
    };
    for Asked { what, arriving, .. } in families {
        assert!(sender.got(&arriving[..1]) > 0, "{path:?}: {what}");
    }
    assert_eq!(sender.got_unknown(), 0, "{path:?}");
    let _agent = sender.receiver.range.close(&lab, gate).unwrap();
    let mut wrong = Vec::new();
    for Asked {
        what,
        arriving,
        others,
    } in families
    {
        let sent = arriving.iter().map(Vec::len).sum::<usize>();
        let tried = Tried {
            times: arriving.len() as u64,
            ..Tried::evasion(what, sent as u64, sender.got(arriving))
        };
        wrong.extend(tried.judge().err().map(|error| format!("{error:#}")));
        let got = sender.got(others);
        if got > 0 {
            wrong.push(format!("{what}: {got} of what nobody takes by itself"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{gate:?}, {path:?}:\n{}",
        wrong.join("\n")
    );
    assert_eq!(sender.got_unknown(), 0, "{gate:?}, {path:?}");
}
