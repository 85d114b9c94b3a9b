//! What becomes of a guest's packets that are to be redirected.

use gate25_common::abi::CustomerId;
use gate25_common::redirect::{Budget, Endpoint, Hindrance, Motion, QUIET_NS, Redirected, Step};

const CUSTOMER: CustomerId = CustomerId::from_name("c-10042");
const OTHER: CustomerId = CustomerId::from_name("c-10043");
const UNKNOWN: Step = Step::Refuse(Hindrance::Unknown);
const IN_USE: Step = Step::Refuse(Hindrance::PortInUse);
const SECOND: u64 = 1_000_000_000;
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
        (Motion::Goes, UNKNOWN),
        (Motion::Ends, UNKNOWN),
    ] {
        assert_eq!(
            Redirected::step(None, CUSTOMER, &exchanger(1), motion, START),
            step,
            "{motion:?}"
        );
    }
}

#[test]
fn packets_of_the_connection_follow_it_however_late() {
    for motion in [Motion::Begins, Motion::Goes, Motion::Ends] {
        for now in [START, START + QUIET_NS + 1] {
            let step = Redirected::step(Some(&known()), CUSTOMER, &exchanger(1), motion, now);
            assert_eq!(step, Step::Follow, "{motion:?}");
        }
    }
}

#[test]
fn connection_in_use_keeps_its_port() {
    for (motion, refused) in [
        (Motion::Begins, IN_USE),
        (Motion::Goes, UNKNOWN),
        (Motion::Ends, UNKNOWN),
    ] {
        let now = START + QUIET_NS;
        let step = Redirected::step(Some(&known()), CUSTOMER, &exchanger(2), motion, now);
        assert_eq!(step, refused, "{motion:?}");
    }
}

#[test]
fn another_port_of_the_same_place_is_another_connection() {
    let other = Endpoint::v4(u32::from_ne_bytes([203, 0, 113, 1]), [1, 209]);
    let step = Redirected::step(Some(&known()), CUSTOMER, &other, Motion::Goes, START);
    assert_eq!(step, UNKNOWN);
}

#[test]
fn connection_that_ended_or_fell_silent_gives_its_port_away() {
    let silent = Redirected::step(
        Some(&known()),
        CUSTOMER,
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
    assert_eq!(another(&ended, Motion::Goes), UNKNOWN);
    // A new connection to the same place does.
    ended.follow(Motion::Begins, START + 3);
    assert_eq!(another(&ended, Motion::Begins), IN_USE);
}

/// What becomes of a packet for somewhere else.
fn another(known: &Redirected, motion: Motion) -> Step {
    Redirected::step(Some(known), CUSTOMER, &exchanger(2), motion, START + 3)
}

#[test]
fn connection_of_an_earlier_owner_makes_room_for_the_next_owners() {
    for original in [exchanger(1), exchanger(2)] {
        let step = |motion| Redirected::step(Some(&known()), OTHER, &original, motion, START + 1);
        assert_eq!(step(Motion::Begins), Step::Remember);
    }
    // One that goes on when its interface changes hands is not cut.
    let goes = Redirected::step(
        Some(&known()),
        OTHER,
        &exchanger(1),
        Motion::Goes,
        START + 1,
    );
    assert_eq!(goes, Step::Follow);
}

#[test]
fn connection_straight_to_the_target_is_remembered_as_that() {
    let target = exchanger(9);
    let aside = |known: Option<&Redirected>, motion| {
        Redirected::step_aside(known, CUSTOMER, &target, motion, START + 2)
    };
    assert_eq!(aside(None, Motion::Begins), Step::Remember);
    // Others have begun before anybody watched.
    assert_eq!(aside(None, Motion::Goes), Step::Ignore);
    assert_eq!(aside(None, Motion::Ends), Step::Ignore);
    let mut redirected = known();
    assert_eq!(aside(Some(&redirected), Motion::Begins), IN_USE);
    redirected.follow(Motion::Ends, START + 1);
    assert_eq!(aside(Some(&redirected), Motion::Begins), Step::Remember);
    let mut direct = Redirected::new(CUSTOMER, target, START);
    assert_eq!(aside(Some(&direct), Motion::Goes), Step::Follow);
    // It keeps its port from being redirected, until it ends.
    assert_eq!(another(&direct, Motion::Begins), IN_USE);
    direct.follow(Motion::Ends, START + 1);
    assert_eq!(another(&direct, Motion::Begins), Step::Remember);
}

#[test]
fn budget_lets_two_thousand_begin_at_once_and_then_a_hundred_a_second() {
    let mut budget = Budget::FULL;
    let mut spent = |now: u64, tries: usize| (0..tries).filter(|_| budget.spend(now)).count();
    assert_eq!(spent(START, 3000), 2000);
    assert_eq!(spent(START + SECOND / 200, 10), 0);
    assert_eq!(spent(START + SECOND, 3000), 100);
    assert_eq!(spent(START + 3 * SECOND, 3000), 200);
    // After quiet there is all of it again, and no more.
    assert_eq!(spent(START + 100 * SECOND, 3000), 2000);
}
