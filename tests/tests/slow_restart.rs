//! The faults of the system tier, at every call and many more moments.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "restart/faults.rs"]
mod faults;

#[test]
fn agent_killed_two_hundred_times_lets_nothing_through_and_cuts_nothing() {
    faults::killed_at_random_moments(200);
}

#[test]
fn start_killed_at_every_kernel_call_opens_nothing() {
    faults::killed_in_a_start(1);
}

#[test]
fn apply_killed_at_every_kernel_call_opens_nothing() {
    faults::killed_in_an_apply(1);
}
