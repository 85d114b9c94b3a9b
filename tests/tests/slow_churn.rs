//! The churn of the system tier, many more times.
#![cfg(feature = "root")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "churn/cgroups.rs"]
mod cgroups;
#[path = "churn/events.rs"]
mod events;
#[path = "churn/interfaces.rs"]
mod interfaces;
#[path = "churn/links.rs"]
mod links;
#[path = "churn/pins.rs"]
mod pins;
#[path = "churn/rulesets.rs"]
mod rulesets;
#[path = "churn/scene.rs"]
mod scene;
#[path = "churn/sockets.rs"]
mod sockets;
#[path = "churn/tables.rs"]
mod tables;

#[test]
fn thousand_interfaces_made_again_under_senders_leak_nothing() {
    interfaces::born_and_gone(167);
}

#[test]
fn interface_of_a_name_that_changed_hands_a_hundred_times_has_nothing_of_the_one_before() {
    interfaces::name_changes_hands(100);
}

#[test]
fn interface_of_an_index_that_changed_hands_a_hundred_times_has_nothing_of_the_one_before() {
    interfaces::index_changes_hands(100);
}

#[test]
fn cgroup_of_a_path_that_changed_hands_a_hundred_times_has_nothing_of_the_one_before() {
    cgroups::path_changes_hands(100);
}

#[test]
fn full_table_refuses_the_policy_ten_times_by_its_name_and_what_was_in_force_stays() {
    tables::full(&["CUSTOMERS", "CUSTOMER_COUNT", "SKETCHES", "CGROUPS"], 10);
}

#[test]
fn full_table_of_prefixes_refuses_the_policy_and_what_was_in_force_stays() {
    tables::full(&["PREFIXES"], 2);
}

#[test]
fn ten_guests_for_whom_the_table_has_no_room_are_closed() {
    tables::full_of_interfaces(10);
}

#[test]
fn redirected_connections_that_others_push_out_twenty_times_reach_nobody_else() {
    tables::overrun_redirects(20);
}

#[test]
fn events_that_nobody_reads_ten_times_are_counted_as_lost_and_change_no_verdict() {
    events::nobody_reads(10);
}

#[test]
fn sockets_in_and_out_of_groups_of_version_1_are_judged_as_ever() {
    sockets::classed(20);
}

#[test]
fn pins_removed_by_hand_twenty_times_under_the_agent_come_back_and_open_nothing() {
    pins::removed(20);
}

#[test]
fn guard_stands_where_pins_are_removed_twenty_times_while_no_agent_runs() {
    pins::removed_without_an_agent(20);
}

#[test]
fn guard_stands_where_programs_are_taken_off_interfaces_fifty_times_by_hand() {
    links::detached_from_interfaces(50);
}

#[test]
fn guard_stands_where_filters_and_qdiscs_are_deleted_fifty_times_by_hand() {
    links::filter_deleted(50);
}

#[test]
fn veths_are_judged_where_programs_are_taken_off_the_containers_root_fifty_times_by_hand() {
    links::detached_from_the_root_of_containers_with_veths(50);
    let window = links::detached_from_the_root_of_containers_without_a_network();
    println!("containers' root without programs: {window:?}");
}

#[test]
fn rules_flushed_beside_programs_a_hundred_times_open_nothing() {
    rulesets::flushed_beside_programs(100);
}

#[test]
fn guard_stands_where_the_table_that_enforces_is_deleted_a_hundred_times_by_hand() {
    rulesets::table_deleted(100);
    let measured = rulesets::flushed_where_nftables_enforces(20);
    println!("ruleset flushed twenty times: {measured:?}");
}
