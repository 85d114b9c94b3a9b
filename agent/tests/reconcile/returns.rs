//! Where what comes back to guests is judged.

use std::collections::BTreeSet;

use gate25::dataplane::{Returns, Site};
use gate25::status::Subject;

use super::{Kernel, Lab};

const EVERYWHERE: [Site; 4] = [
    Site::Interface(3),
    Site::Interface(4),
    Site::Replies(3),
    Site::Replies(4),
];

#[test]
fn returns_that_are_judged_have_their_program_on_every_interface_after_the_other() {
    let mut lab = Lab::with(Kernel::default(), Returns::Judged);
    lab.converge();
    assert_eq!(lab.kernel().covered, BTreeSet::from(EVERYWHERE));
    assert_eq!(lab.status().returns, 2);
    assert_eq!(lab.status().warnings, Vec::<String>::new());
    lab.reconciler.interface_gone(3);
    lab.converge();
    assert!(!lab.kernel().covered.contains(&Site::Replies(3)));
    assert_eq!(lab.status().returns, 1);
}

#[test]
fn returns_that_are_not_judged_any_more_lose_their_programs() {
    let mut lab = Lab::with(
        Kernel {
            covered: BTreeSet::from(EVERYWHERE),
            ..Kernel::default()
        },
        Returns::Open,
    );
    lab.converge();
    let left = BTreeSet::from([Site::Interface(3), Site::Interface(4)]);
    assert_eq!(lab.kernel().covered, left);
    assert_eq!(lab.status().returns, 0);
}

#[test]
fn returns_that_cannot_be_judged_are_told_and_hold_nothing_up() {
    let mut lab = Lab::with(
        Kernel {
            no_replies: Some("not here"),
            ..Kernel::default()
        },
        Returns::Judged,
    );
    lab.converge();
    let covered = BTreeSet::from([Site::Interface(3), Site::Interface(4)]);
    assert_eq!(lab.kernel().covered, covered);
    assert_eq!(lab.status().returns, 0);
    let complained_of = lab.status().complained_of;
    assert_eq!(complained_of, BTreeSet::from([Subject::Returns]));
    let warnings = lab.status().warnings;
    assert!(
        matches!(&warnings[..], [one] if one.ends_with("reach guests: not here")),
        "{warnings:?}"
    );
}
