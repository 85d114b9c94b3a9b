//! Every family of frames, past everything that judges.

use gate25_tests::Lab;

use super::range::{Family, Gate, Path, Range, try_families};
use super::{ipv4, ipv6, link, tcp};

#[test]
fn frames_and_headers_of_any_form_get_past_no_program() {
    try_all(Gate::Programs);
}

#[test]
fn frames_and_headers_of_any_form_get_past_no_rule_of_backend_nftables() {
    try_all(Gate::Rules);
}

#[test]
fn frames_and_headers_of_any_form_do_not_get_past_the_guard_alone() {
    try_all(Gate::Guard);
}

#[test]
fn other_packets_behind_the_same_headers_pass() {
    for gate in [Gate::Programs, Gate::Rules, Gate::Guard] {
        let lab = Lab::for_test().unwrap();
        let host = lab.netns("hypervisor").unwrap();
        let mut range = Range::new(&host, Path::Bridged).unwrap();
        let _agent = range.close(&lab, gate).unwrap();
        let frames = ipv6::harmless(gate);
        let passed = range.through(&frames).unwrap();
        let stopped = frames.iter().find(|frame| !passed.contains(frame));
        assert_eq!(stopped, None, "{gate:?}");
    }
}

#[track_caller]
fn try_all(gate: Gate) {
    let families: Vec<Family> = [
        link::families(),
        ipv4::families(),
        ipv6::families(),
        tcp::families(),
    ]
    .into_iter()
    .flatten()
    .collect();
    for path in [Path::Bridged, Path::Routed] {
        try_families(gate, path, &families).unwrap();
    }
}
