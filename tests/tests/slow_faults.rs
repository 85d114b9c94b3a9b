//! The faults of the system tier, at every call and many more times.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "faults/besieged.rs"]
mod besieged;
#[path = "faults/files.rs"]
mod files;
#[path = "faults/kills.rs"]
mod kills;
#[path = "faults/lives.rs"]
mod lives;

#[test]
fn agent_killed_two_hundred_times_lets_nothing_through_and_cuts_nothing() {
    kills::at_random_moments(200);
}

#[test]
fn start_killed_at_every_kernel_call_opens_nothing() {
    kills::in_a_start(1);
}

#[test]
fn apply_killed_at_every_kernel_call_opens_nothing() {
    kills::in_an_apply(1);
}

#[test]
fn attachment_killed_at_every_kernel_call_opens_nothing() {
    kills::in_an_attachment(1);
}

#[test]
fn agent_ended_and_started_a_hundred_times_opens_nothing_and_loses_no_count() {
    lives::restarted(100);
}

#[test]
fn programs_exchanged_at_fifty_starts_open_nothing() {
    lives::restarted_with_other_programs(50);
}

#[test]
fn agent_suspended_twenty_times_while_guests_send_opens_nothing() {
    lives::suspended(20);
}

#[test]
fn twenty_exemptions_that_expire_while_the_agent_is_dead_are_over_at_once() {
    lives::expired_while_dead(20);
}

#[test]
fn disk_filled_twenty_times_opens_nothing_whatever_happens_meanwhile() {
    lives::disk_full(20);
}

#[test]
fn thousand_reloads_without_a_pause_open_nothing() {
    files::reloaded(1000);
}

#[test]
fn policy_directory_taken_away_in_any_way_ten_times_opens_nothing() {
    files::directory_taken_away(10);
}
