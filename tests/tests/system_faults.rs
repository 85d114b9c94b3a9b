//! Faults around the agent's life under the leak meter; the slow tier and `./xtask/x soak` try the
//! same more often.
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
fn agent_killed_at_random_moments_lets_nothing_through_and_cuts_nothing() {
    kills::at_random_moments(20);
}

#[test]
fn start_killed_at_any_kernel_call_opens_nothing() {
    kills::in_a_start(20);
}

#[test]
fn apply_killed_at_any_kernel_call_opens_nothing() {
    kills::in_an_apply(5);
}

#[test]
fn attachment_killed_at_any_kernel_call_opens_nothing() {
    kills::in_an_attachment(2);
}

#[test]
fn agent_ended_and_started_again_and_again_opens_nothing_and_loses_no_count() {
    lives::restarted(6);
}

#[test]
fn programs_exchanged_at_a_start_open_nothing() {
    lives::restarted_with_other_programs(3);
}

#[test]
fn agent_suspended_while_guests_send_opens_nothing() {
    lives::suspended(2);
}

#[test]
fn exemption_that_expires_while_the_agent_is_dead_is_over_at_once() {
    lives::expired_while_dead(1);
}

#[test]
fn full_disk_opens_nothing_whatever_happens_meanwhile() {
    lives::disk_full(2);
}

#[test]
fn reloads_without_a_pause_open_nothing() {
    files::reloaded(60);
}

#[test]
fn policy_directory_taken_away_in_any_way_opens_nothing() {
    files::directory_taken_away(1);
}
