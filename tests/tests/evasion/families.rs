//! Every family of frames, past everything that judges.

use super::range::{Family, Gate, Path, try_families};
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
