//! What becomes of a guest's packets that are to be redirected.

use gate25_common::abi::CustomerId;
use gate25_common::redirect::{Endpoint, Motion, QUIET_NS, Redirected, Step};

const CUSTOMER: CustomerId = CustomerId::from_name("c-10042");
const START: u64 = 5_000_000_000;

fn exchanger(last: u8) -> Endpoint {
    Endpoint::v4(u32::from_ne_bytes([203, 0, 113, last]), [0, 25])
}

fn known() -> Redirected {
    Redirected::new(CUSTOMER, exchanger(1), START)
}

#[test]
fn first_packet_of_a_connection_is_remembered_and_no_other() {
    for (motion, step) in [
        (Motion::Begins, Step::Remember),
        (Motion::Goes, Step::Refuse),
        (Motion::Ends, Step::Refuse),
    ] {
        assert_eq!(
            Redirected::step(None, &exchanger(1), motion, START),
            step,
            "{motion:?}"
        );
    }
}

#[test]
fn packets_of_the_connection_follow_it_however_late() {
    for motion in [Motion::Begins, Motion::Goes, Motion::Ends] {
        for now in [START, START + QUIET_NS + 1] {
            let step = Redirected::step(Some(&known()), &exchanger(1), motion, now);
            assert_eq!(step, Step::Follow, "{motion:?}");
        }
    }
}

#[test]
fn connection_in_use_keeps_its_port() {
    for motion in [Motion::Begins, Motion::Goes, Motion::Ends] {
        let now = START + QUIET_NS;
        let step = Redirected::step(Some(&known()), &exchanger(2), motion, now);
        assert_eq!(step, Step::Refuse, "{motion:?}");
    }
}

#[test]
fn another_port_of_the_same_place_is_another_connection() {
    let other = Endpoint::v4(u32::from_ne_bytes([203, 0, 113, 1]), [1, 209]);
    let step = Redirected::step(Some(&known()), &other, Motion::Goes, START);
    assert_eq!(step, Step::Refuse);
}

#[test]
fn connection_that_ended_or_fell_silent_gives_its_port_away() {
    let silent = Redirected::step(
        Some(&known()),
        &exchanger(2),
        Motion::Begins,
        START + QUIET_NS + 1,
    );
    assert_eq!(silent, Step::Remember);
    let mut ended = known();
    ended.follow(Motion::Ends, START + 1);
    // Its last acknowledgement does not open it again.
    ended.follow(Motion::Goes, START + 2);
    assert_eq!(another(&ended, Motion::Begins), Step::Remember);
    assert_eq!(another(&ended, Motion::Goes), Step::Refuse);
    // A new connection to the same place does.
    ended.follow(Motion::Begins, START + 3);
    assert_eq!(another(&ended, Motion::Begins), Step::Refuse);
}

/// What becomes of a packet for somewhere else.
fn another(known: &Redirected, motion: Motion) -> Step {
    Redirected::step(Some(known), &exchanger(2), motion, START + 3)
}
