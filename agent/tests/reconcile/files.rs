//! Which of the files, the last accepted set, an earlier agent's tables and the built-in policy runs.

use gate25::control::{ReloadOutcome, Shrink};
use gate25::reconcile::files::Occasion;
use gate25::source::{Accepted, SourceError};
use gate25::status::Source;
use gate25_common::abi::CustomerId;
use jiff::Timestamp;

use super::{Kernel, Lab};

const FOUR: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn files_that_lost_too_much_change_nothing_until_somebody_asks() {
    let mut lab = Lab::new();
    let four = lab.read(&FOUR);
    assert_eq!(kind(&lab.watch(four)), "applied");
    let before = lab.kernel().installed.clone();

    let one = lab.read(&["a"]);
    assert_eq!(kind(&lab.watch(one)), "shrunk");
    assert_eq!(lab.kernel().installed, before);
    let one = lab.read(&["a"]);
    assert_eq!(kind(&lab.ask(one, Shrink::Refused)), "shrunk");
    assert_eq!(lab.customers(), FOUR);
    let one = lab.read(&["a"]);
    assert_eq!(kind(&lab.ask(one, Shrink::Accepted)), "applied");
    assert_eq!(lab.customers(), ["a"]);
}

#[test]
fn files_refused_at_the_start_leave_the_running_to_the_last_accepted_set() {
    let mut lab = Lab::new();
    let kept = lab.kept(&["a", "b"]);
    lab.reconciler.last_known_good(kept);
    let refused = lab.read_text("schema: 1\nprofiles: [{nam: default}]\n");
    assert_eq!(kind(&lab.watch(refused)), "refused");
    lab.converge();
    assert_eq!(lab.customers(), ["a", "b"]);
    let status = lab.status();
    assert_eq!(status.source, Source::LastKnownGood);
    assert!(!status.reload_successful);
    let refusal = status.refusal.unwrap();
    assert!(
        refusal.contains(":2:") && refusal.contains("nam"),
        "{refusal}"
    );
    assert!(
        status
            .problems
            .iter()
            .any(|it| it.contains("last accepted")),
        "{:?}",
        status.problems
    );
}

#[test]
fn files_at_the_start_are_measured_by_the_last_accepted_set() {
    let mut lab = Lab::new();
    let kept = lab.kept(&FOUR);
    lab.reconciler.last_known_good(kept);
    let one = lab.read(&["a"]);
    assert_eq!(kind(&lab.watch(one)), "shrunk");
    assert_eq!(lab.customers(), FOUR);
    let three = lab.read(&["a", "b", "c"]);
    assert_eq!(kind(&lab.watch(three)), "applied");
    assert_eq!(lab.customers(), ["a", "b", "c"]);
    lab.converge();
    assert_eq!(lab.status().source, Source::Files);
}

#[test]
fn files_that_were_refused_are_not_looked_at_again_unasked() {
    let mut lab = Lab::new();
    let bad = |lab: &Lab| lab.read_text("schema: 1\nprofiles: [{nam: default}]\n");
    let (first, second, third) = (bad(&lab), bad(&lab), bad(&lab));
    assert_eq!(kind(&lab.watch(first)), "refused");
    assert_eq!(kind(&lab.watch(second)), "unchanged");
    assert_eq!(lab.status().reloads, 1);
    assert_eq!(kind(&lab.ask(third, Shrink::Refused)), "refused");
    assert_eq!((lab.status().reloads, lab.status().reload_failures), (2, 2));
}

#[test]
fn files_as_they_run_end_a_refusal_when_somebody_asks_for_them() {
    let mut lab = Lab::new();
    let good = lab.read(&["a"]);
    assert_eq!(kind(&lab.watch(good)), "applied");
    let bad = lab.read_text("schema: 1\nprofiles: [{nam: default}]\n");
    assert_eq!(kind(&lab.watch(bad)), "refused");
    assert!(!lab.status().reload_successful);
    assert!(lab.status().refusal.is_some());
    let before = lab.status().generation;
    let (asked, watched) = (lab.read(&["a"]), lab.read(&["a"]));
    assert_eq!(kind(&lab.ask(asked, Shrink::Refused)), "unchanged");
    assert!(lab.status().reload_successful);
    assert_eq!(lab.status().refusal, None);
    assert_eq!(kind(&lab.watch(watched)), "unchanged");
    assert_eq!(lab.status().generation, before);
    let bad = lab.read_text("schema: 1\nprofiles: [{nam: default}]\n");
    assert_eq!(kind(&lab.watch(bad)), "refused");
    assert!(!lab.status().reload_successful);
}

#[test]
fn files_that_the_kernel_refuses_leave_the_policy_and_are_tried_again() {
    let mut lab = Lab::new();
    let first = lab.read(&["a"]);
    assert_eq!(kind(&lab.watch(first)), "applied");
    lab.kernel_mut().refuses = true;
    let second = lab.read(&["a", "b"]);
    assert_eq!(kind(&lab.watch(second)), "refused");
    assert_eq!(lab.customers(), ["a"]);
    lab.kernel_mut().refuses = false;
    let again = lab.read(&["a", "b"]);
    assert_eq!(kind(&lab.watch(again)), "applied");
    assert_eq!(lab.customers(), ["a", "b"]);
}

#[test]
fn rehearsal_tells_what_applying_would_write_and_writes_nothing() {
    let mut lab = Lab::new();
    let first = lab.read(&["a"]);
    lab.watch(first);
    let before = lab.kernel().installed.clone();
    let now = Timestamp::now();
    let second = lab.read(&["a", "b"]);
    let rehearsed = lab.reconciler.rehearse(second, Shrink::Refused, now);
    assert_eq!(lab.kernel().installed, before);
    assert_eq!(lab.customers(), ["a"]);
    let second = lab.read(&["a", "b"]);
    match (rehearsed, lab.ask(second, Shrink::Refused)) {
        (
            ReloadOutcome::WouldApply { hash, writes },
            ReloadOutcome::Applied {
                generation: 2,
                hash: applied,
                writes: written,
            },
        ) => assert_eq!((hash, writes), (applied, written)),
        outcomes => panic!("{outcomes:?}"),
    }
}

#[test]
fn without_files_or_a_set_the_tables_of_an_earlier_agent_go_on() {
    let mut earlier = Lab::new();
    let set = earlier.read(&["a"]);
    earlier.watch(set);
    let left = earlier.kernel().installed.clone();
    let mut lab = Lab::on(Kernel {
        installed: left.clone(),
        ..Kernel::default()
    });
    let refused = lab.read_text("schema: 1\nprofiles: [{nam: default}]\n");
    assert_eq!(kind(&lab.watch(refused)), "refused");
    lab.converge();
    assert_eq!(lab.kernel().installed, left);
    assert_eq!(lab.status().source, Source::Kernel);
}

#[test]
fn without_anything_all_guests_are_nobodys_and_the_status_says_so() {
    let mut lab = Lab::new();
    lab.converge();
    let kernel = lab.kernel();
    let owners = kernel.installed.interfaces.values();
    let owners: Vec<CustomerId> = owners.map(|owner| owner.customer()).collect();
    assert_eq!(owners, [CustomerId::UNASSIGNED; 2]);
    assert_eq!(lab.status().source, Source::Builtin);
}

impl Lab {
    fn watch(&mut self, loaded: Result<Accepted, SourceError>) -> ReloadOutcome {
        let now = Timestamp::now();
        self.reconciler.files(loaded, Occasion::Watch, now)
    }

    fn ask(&mut self, loaded: Result<Accepted, SourceError>, shrink: Shrink) -> ReloadOutcome {
        let now = Timestamp::now();
        self.reconciler
            .files(loaded, Occasion::Request(shrink), now)
    }

    /// A set as it comes out of the store.
    fn kept(&self, customers: &[&str]) -> Accepted {
        Accepted {
            source: Source::LastKnownGood,
            ..self.read(customers).unwrap()
        }
    }

    /// The customers in the policy that runs; the tables have the same.
    #[track_caller]
    fn customers(&self) -> Vec<String> {
        let policy = &self.reconciler.policy().unwrap().policy;
        let mut numbers: Vec<CustomerId> = policy
            .customers
            .keys()
            .map(|id| CustomerId::from_name(id))
            .chain([CustomerId::UNASSIGNED])
            .collect();
        numbers.sort_unstable();
        let kernel = self.kernel();
        let installed: Vec<CustomerId> = kernel.installed.customers.keys().copied().collect();
        assert_eq!(installed, numbers);
        policy.customers.keys().cloned().collect()
    }
}

fn kind(outcome: &ReloadOutcome) -> &'static str {
    match outcome {
        ReloadOutcome::Applied { .. } => "applied",
        ReloadOutcome::OnTrial { .. } => "on trial",
        ReloadOutcome::WouldApply { .. } => "would apply",
        ReloadOutcome::Unchanged => "unchanged",
        ReloadOutcome::Held { .. } => "held",
        ReloadOutcome::Refused { .. } => "refused",
        ReloadOutcome::Shrunk { .. } => "shrunk",
    }
}
