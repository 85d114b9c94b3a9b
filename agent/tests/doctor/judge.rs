//! What is right although it looks otherwise, and what cannot be concluded.

use gate25::doctor::{Agent, Facts, Finding, Kind, Role, Sample, judge};
use gate25::kernel::machines::Machine;

use crate::facts::{OURS, TAP, covering_of, filter, foreign, healthy, status_of, tap_of};

#[test]
fn filter_that_runs_first_covers_where_there_is_no_tcx() {
    let mut facts = healthy();
    let covering = covering_of(&mut facts);
    covering.arriving.clear();
    covering.filters = vec![filter(1, "gate25", OURS), filter(2, "theirs", 99)];
    assert_eq!(judge(&facts), []);
}

#[test]
fn filter_behind_another_filter_or_a_tcx_program_is_not_first() {
    let mut facts = healthy();
    let covering = covering_of(&mut facts);
    covering.arriving.clear();
    covering.filters = vec![filter(1, "theirs", 99), filter(2, "gate25", OURS)];
    assert_eq!(kinds(&facts), [Kind::ProgramNotFirst]);
    let covering = covering_of(&mut facts);
    covering.arriving = vec![foreign()];
    covering.filters = vec![filter(1, "gate25", OURS)];
    assert_eq!(kinds(&facts), [Kind::ProgramNotFirst]);
}

#[test]
fn filter_that_bears_our_name_alone_does_not_cover() {
    let mut facts = healthy();
    let covering = covering_of(&mut facts);
    covering.arriving.clear();
    covering.filters = vec![filter(1, "gate25", 99)];
    assert_eq!(kinds(&facts), [Kind::ProgramMissing]);
}

#[test]
fn replies_are_rewritten_by_the_first_program_only() {
    let mut facts = healthy();
    let covering = covering_of(&mut facts);
    covering.rewrites_replies = true;
    let ours = crate::facts::program(crate::facts::REPLIES, "tc_egress");
    covering.leaving = vec![ours.clone()];
    assert_eq!(judge(&facts), []);
    covering_of(&mut facts).leaving = vec![foreign(), ours];
    assert_eq!(kinds(&facts), [Kind::RepliesNotFirst]);
}

#[test]
fn interfaces_of_nobody_are_not_judged() {
    for role in [Role::Ignored, Role::Other] {
        let mut facts = healthy();
        covering_of(&mut facts).arriving.clear();
        tap_of(&mut facts).role = role;
        assert_eq!(judge(&facts), [], "{role:?}");
    }
}

#[test]
fn bypass_that_the_settings_ignore_is_the_hosts_own() {
    for kind in ["macvtap", "macvlan", "ipvlan", "ipvtap"] {
        let mut facts = healthy();
        let own = &mut facts.coverage.interfaces.as_mut().unwrap()[0];
        own.kind_name = kind.to_owned();
        assert_eq!(kinds(&facts), [Kind::Bypass], "{kind}");
        let own = &mut facts.coverage.interfaces.as_mut().unwrap()[0];
        own.role = Role::Ignored;
        assert_eq!(judge(&facts), [], "{kind}");
    }
}

#[test]
fn sample_in_which_a_program_ran_proves_nothing() {
    let mut facts = healthy();
    facts.coverage.sample = Ok(Some(Sample {
        runs: 1,
        received: [(TAP, 1_000)].into(),
    }));
    assert_eq!(judge(&facts), []);
    facts.coverage.sample = Ok(Some(Sample {
        runs: 0,
        received: [(TAP, 0), (4, 1_000)].into(),
    }));
    assert_eq!(judge(&facts), []);
}

#[test]
fn sample_that_cannot_be_read_is_not_one_that_the_kernel_does_not_take() {
    let mut facts = healthy();
    facts.coverage.sample = Err("no permission".to_owned());
    assert_eq!(kinds(&facts), [Kind::NotExamined]);
}

#[test]
fn guest_is_silent_only_where_its_machine_runs_and_its_link_is_up() {
    let holding = |tap: &str| {
        vec![Machine {
            process: 42,
            name: String::new(),
            bypasses: Vec::new(),
            functions: Vec::new(),
            taps: Some([tap.to_owned()].into()),
        }]
    };
    let mut facts = healthy();
    tap_of(&mut facts).received = 0;
    assert_eq!(judge(&facts), []);
    facts.coverage.machines = Ok(holding("tap102i0"));
    assert_eq!(judge(&facts), []);
    facts.coverage.machines = Ok(holding("tap101i0"));
    assert_eq!(kinds(&facts), [Kind::GuestSilent]);
    tap_of(&mut facts).carrier = false;
    assert_eq!(judge(&facts), []);
}

#[test]
fn nftables_that_nobody_needs_is_not_missed() {
    let mut facts = healthy();
    facts.nft.version = Ok(None);
    facts.nft.needed = false;
    facts.nft.guard = None;
    assert_eq!(judge(&facts), []);
}

#[test]
fn ebpf_that_nobody_wants_is_not_missed() {
    let mut facts = healthy();
    facts.host.wants_ebpf = false;
    facts.host.features = Err("not probed".to_owned());
    facts.host.bpf_filesystem.1 = Ok(false);
    facts.host.btf = false;
    assert_eq!(judge(&facts), []);
}

#[test]
fn cgroups_of_a_host_without_containers_are_of_no_interest() {
    let mut facts = healthy();
    facts.host.wants_containers = false;
    facts.host.cgroups = Ok(None);
    facts.host.misattributed = Ok(true);
    assert_eq!(judge(&facts), []);
}

#[test]
fn ruleset_manager_after_which_the_guard_is_loaded_does_no_harm() {
    let mut facts = healthy();
    facts.host.managers = Ok(["nftables.service".to_owned()].into());
    facts.host.guard_at_boot = true;
    assert_eq!(judge(&facts), []);
}

#[test]
fn socket_that_nobody_serves_lets_nobody_in() {
    let mut facts = healthy();
    facts.policy.socket.1 = Ok(Some(0o666));
    facts.agent = Agent::Stopped;
    assert_eq!(kinds(&facts), [Kind::AgentStopped]);
}

#[test]
fn reload_that_was_never_tried_was_not_refused() {
    let mut facts = healthy();
    let reload = &mut status_of(&mut facts).reload;
    reload.successful = false;
    reload.attempts = 0;
    assert_eq!(judge(&facts), []);
}

/// Whoever may not look learns of every part that was not looked at.
#[test]
fn what_cannot_be_seen_is_named_part_by_part() {
    let no = || "operation not permitted".to_owned();
    let mut facts = healthy();
    facts.coverage.own = Err(no());
    facts.coverage.functions = Err(no());
    facts.coverage.machines = Err(no());
    facts.host.release = Err(no());
    facts.host.features = Err(no());
    facts.host.bpf_filesystem.1 = Err(no());
    facts.host.pins_mode.1 = Err(no());
    facts.host.capabilities = Some(Err(no()));
    facts.host.cgroups = Err(no());
    facts.host.misattributed = Err(no());
    facts.host.network_controllers = Err(no());
    facts.host.managers = Err(no());
    facts.nft.guard = Some(Err(no()));
    facts.nft.mark_users = Err(no());
    facts.policy.mistakes = Err(no());
    facts.policy.writable = Err(no());
    facts.policy.state.1 = Err(no());
    facts.policy.socket.1 = Err(no());
    let findings = judge(&facts);
    assert!(
        findings.iter().all(|it| it.kind == Kind::NotExamined),
        "{findings:?}"
    );
    // The release is only a part of the kernel's name.
    assert_eq!(findings.len(), 17, "{findings:#?}");
}

#[test]
fn findings_are_told_errors_first_and_once() {
    let mut facts = healthy();
    facts.host.btf = false;
    covering_of(&mut facts).arriving = vec![foreign(), foreign()];
    status_of(&mut facts).problems = vec!["same".to_owned(), "same".to_owned()];
    assert_eq!(
        kinds(&facts),
        [Kind::ProgramMissing, Kind::AgentProblem, Kind::NoBtf]
    );
}

fn kinds(facts: &Facts) -> Vec<Kind> {
    judge(facts).iter().map(|it: &Finding| it.kind).collect()
}
