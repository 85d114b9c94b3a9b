//! A time in which a host only observes.

use gate25_common::bypass::{Bypass, MAX_TICKET};

#[test]
fn bypass_is_active_until_its_end_and_keeps_its_ticket() {
    let bypass = Bypass::new(100, 200, "NOC-1").expect("a short ticket");
    assert_eq!(
        (bypass.since(), bypass.until(), bypass.ticket()),
        (100, 200, "NOC-1")
    );
    assert!(bypass.is_active(100));
    assert!(bypass.is_active(199));
    assert!(!bypass.is_active(200));
    assert!(!bypass.is_active(u64::MAX));
}

#[test]
fn bypass_of_none_is_never_active() {
    assert!(!Bypass::NONE.is_active(0));
    assert_eq!(Bypass::NONE.ticket(), "");
}

#[test]
fn bypass_takes_tickets_of_its_room_and_no_longer_ones() {
    let longest = "x".repeat(MAX_TICKET);
    let bypass = Bypass::new(0, 1, &longest).expect("it fits");
    assert_eq!(bypass.ticket(), longest);
    assert_eq!(Bypass::new(0, 1, &format!("{longest}x")), None);
}
