//! Interfaces, cgroups, tables, pins, programs and rules that come and go around the agent, under the
//! leak meter; the slow tier and `./xtask/x soak` try the same more often.
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
fn interfaces_made_again_and_again_under_senders_leak_nothing() {
    interfaces::born_and_gone(10);
}

#[test]
fn interface_of_a_name_that_changed_hands_has_nothing_of_the_one_before() {
    interfaces::name_changes_hands(4);
}

#[test]
fn interface_of_an_index_that_changed_hands_has_nothing_of_the_one_before() {
    interfaces::index_changes_hands(3);
}

#[test]
fn cgroup_of_a_path_that_changed_hands_has_nothing_of_the_one_before() {
    cgroups::path_changes_hands(4);
}

#[test]
fn full_table_refuses_the_policy_by_its_name_and_what_was_in_force_stays() {
    tables::full(&["CUSTOMERS", "CUSTOMER_COUNT", "SKETCHES", "CGROUPS"], 1);
}

#[test]
fn guest_for_whom_the_table_has_no_room_is_closed() {
    tables::full_of_interfaces(1);
}

#[test]
fn redirected_connections_that_others_push_out_reach_nobody_else() {
    tables::overrun_redirects(2);
}

#[test]
fn events_that_nobody_reads_are_counted_as_lost_and_change_no_verdict() {
    events::nobody_reads(1);
}

#[test]
fn sockets_in_groups_of_version_1_are_judged_as_ever() {
    sockets::classed(1);
}

#[test]
fn pins_removed_by_hand_under_the_agent_come_back_and_open_nothing() {
    pins::removed(1);
}

#[test]
fn guard_stands_where_pins_are_removed_while_no_agent_runs() {
    pins::removed_without_an_agent(1);
}

#[test]
fn guard_stands_where_programs_are_taken_off_interfaces_by_hand() {
    links::detached_from_interfaces(2);
}

#[test]
fn guard_stands_where_filters_and_qdiscs_are_deleted_by_hand() {
    links::filter_deleted(2);
}

#[test]
fn veths_are_judged_where_programs_are_taken_off_the_containers_root_by_hand() {
    links::detached_from_the_root_of_containers_with_veths(2);
}

#[test]
fn programs_taken_off_the_containers_root_by_hand_are_back_at_the_next_rescan() {
    let window = links::detached_from_the_root_of_containers_without_a_network();
    println!("containers' root without programs: {window:?}");
}

#[test]
fn rules_flushed_beside_programs_open_nothing() {
    rulesets::flushed_beside_programs(4);
}

#[test]
fn guard_stands_where_the_table_that_enforces_is_deleted_by_hand() {
    rulesets::table_deleted(4);
}

#[test]
fn ruleset_flushed_where_nftables_enforces_lets_nothing_through_once_it_is_back() {
    let measured = rulesets::flushed_where_nftables_enforces(2);
    println!("ruleset flushed twice: {measured:?}");
}
