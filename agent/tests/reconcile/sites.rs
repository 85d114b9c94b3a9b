//! What is covered, and what happens to it when something cannot be found out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use gate25::control::Shrink;
use gate25::dataplane::{MapImage, Site};
use gate25::kernel::cgroups::{Cgroup, Role};
use gate25::kernel::links::{Interface, Kind, Peer};
use gate25::reconcile::Noted;
use gate25::reconcile::files::Occasion;
use gate25::workloads::Unread;
use gate25_common::abi::{Counting, CustomerId, InterfaceOwner};
use jiff::Timestamp;

use super::{GUESTS, Kernel, Lab};

const ROOT: u64 = 7;
const BELOW: u64 = 8;
const CLAIMED: &str = "schema: 1
profiles: [{name: default}]
customers: [{id: a, workloads: [{cgroup: lxc/1}]}]
";

#[test]
fn tables_are_filled_before_the_first_program_is_attached() {
    let mut lab = Lab::new();
    lab.converge();
    assert_eq!(lab.kernel().calls, ["apply", "adopt", "attach", "attach"]);
    assert_eq!(
        lab.kernel().covered,
        BTreeSet::from([Site::Interface(3), Site::Interface(4)])
    );
}

#[test]
fn tables_that_the_kernel_refuses_leave_the_programs_of_an_earlier_start() {
    let mut lab = Lab::on(Kernel {
        refuses: true,
        ..Kernel::default()
    });
    lab.converge();
    assert!(!lab.kernel().calls.contains(&"adopt"));
    // The guard must not ask for what these do not do.
    assert!(!lab.reconciler.is_in_force());
    let problems = lab.status().problems;
    assert!(
        problems
            .iter()
            .any(|it| it.ends_with("the kernel's tables were not changed: the kernel refuses")),
        "{problems:?}"
    );
}

#[test]
fn roots_of_an_earlier_start_stay_until_cgroups_could_be_listed() {
    let a = CustomerId::from_name("a");
    let mut lab = Lab::on(Kernel {
        installed: MapImage {
            cgroups: BTreeMap::from([(BELOW, a), (9, CustomerId::from_name("gone"))]),
            ..MapImage::default()
        },
        covered: BTreeSet::from([Site::Root(ROOT)]),
        ..Kernel::default()
    });
    lab.claim();
    lab.converge();
    assert!(lab.kernel().covered.contains(&Site::Root(ROOT)));
    assert_eq!(lab.kernel().installed.cgroups, BTreeMap::from([(BELOW, a)]));

    lab.reconciler
        .cgroups(Vec::new(), &BTreeSet::new(), Instant::now());
    lab.converge();
    assert!(!lab.kernel().covered.contains(&Site::Root(ROOT)));
    assert_eq!(lab.kernel().installed.cgroups, BTreeMap::new());
}

#[test]
fn root_that_may_be_where_the_agent_may_not_look_keeps_its_place() {
    let mut lab = Lab::new();
    lab.claim();
    lab.cgroups();
    lab.converge();
    let claims = lab.kernel().installed.cgroups.clone();
    assert_eq!(claims.len(), 1);
    for (unseen, stays) in [("", true), ("lxc", true), ("elsewhere", false)] {
        let unseen = BTreeSet::from([PathBuf::from(unseen)]);
        lab.cgroups();
        lab.reconciler.cgroups(Vec::new(), &unseen, Instant::now());
        lab.converge();
        let Kernel {
            covered, installed, ..
        } = &*lab.kernel();
        assert_eq!(covered.contains(&Site::Root(ROOT)), stays, "{unseen:?}");
        assert_eq!(installed.cgroups == claims, stays, "{unseen:?}");
    }
    // One that goes in full view goes, whatever is out of sight.
    lab.cgroups();
    lab.converge();
    lab.reconciler.cgroup_gone(ROOT);
    lab.converge();
    assert!(!lab.kernel().covered.contains(&Site::Root(ROOT)));
}

#[test]
fn root_of_an_earlier_agent_that_may_be_where_this_one_may_not_look_keeps_its_place() {
    let mut lab = Lab::on(Kernel {
        covered: BTreeSet::from([Site::Root(ROOT)]),
        ..Kernel::default()
    });
    lab.claim();
    let closed = BTreeSet::from([PathBuf::from("lxc")]);
    for (unseen, stays) in [(closed, true), (BTreeSet::new(), false)] {
        lab.reconciler.cgroups(Vec::new(), &unseen, Instant::now());
        lab.converge();
        let covered = &lab.kernel().covered;
        assert_eq!(covered.contains(&Site::Root(ROOT)), stays, "{unseen:?}");
    }
}

#[test]
fn containers_that_may_not_be_judged_are_a_problem_until_they_are() {
    let mut lab = Lab::new();
    let set = lab.read(&["a"]);
    lab.reconciler.files(set, Occasion::Watch, Timestamp::now());
    lab.converge();
    let why = "containers are not judged: no cgroup2 file system is mounted";
    lab.reconciler.containers_unjudged(Some(why.to_owned()));
    assert_eq!(lab.status().problems, [why]);
    lab.converge();
    assert_eq!(lab.status().problems, [why]);
    lab.reconciler.containers_unjudged(None);
    assert_eq!(lab.status().problems, [""; 0]);
}

#[test]
fn change_of_others_that_cannot_be_put_back_is_a_problem_until_it_is() {
    let mut lab = Lab::new();
    let set = lab.read(&["a"]);
    let now = Timestamp::now();
    lab.reconciler.files(set, Occasion::Watch, now);
    lab.converge();
    assert_eq!(lab.status().problems, [""; 0]);
    assert!(lab.status().in_force);
    lab.kernel_mut().tampered = true;
    lab.reconciler.verify_pins();
    let problems = lab.status().problems;
    let told =
        "somebody else has changed what enforces, which cannot be put back: the kernel refuses";
    assert_eq!(problems, [told]);
    assert!(!lab.status().in_force);
    assert!(lab.reconciler.has_failed(), "it is tried again");
    lab.kernel_mut().tampered = false;
    lab.reconciler.retry(Instant::now());
    assert_eq!(lab.status().problems, [""; 0]);
    assert!(lab.status().in_force && !lab.reconciler.has_failed());
}

#[test]
fn root_that_goes_loses_its_place_and_its_claims() {
    let mut lab = Lab::new();
    lab.claim();
    lab.cgroups();
    lab.converge();
    assert!(lab.kernel().covered.contains(&Site::Root(ROOT)));
    assert_eq!(lab.kernel().installed.cgroups.len(), 1);
    lab.reconciler.cgroup_gone(BELOW);
    lab.reconciler.cgroup_gone(ROOT);
    lab.converge();
    assert!(!lab.kernel().covered.contains(&Site::Root(ROOT)));
    assert_eq!(lab.kernel().installed.cgroups, BTreeMap::new());
}

#[test]
fn veth_of_a_container_stays_its_when_a_look_at_processes_fails() {
    let mut lab = Lab::new();
    lab.claim();
    lab.cgroups();
    lab.veth();
    let inside = BTreeMap::from([(0, BTreeSet::from([BELOW]))]);
    let nobody = Unread::These(BTreeSet::new());
    assert_eq!(lab.reconciler.namespaces(inside, &nobody), Noted::News);
    let a = Some(CustomerId::from_name("a"));
    assert_eq!(lab.owner(), a);
    for unread in [Unread::All, Unread::These(BTreeSet::from([BELOW]))] {
        let noted = lab.reconciler.namespaces(BTreeMap::new(), &unread);
        assert_eq!(noted, Noted::Known, "{unread:?}");
        assert_eq!(lab.owner(), a, "{unread:?}");
    }
    // A socket may be left in the namespace, for as long as something leads there.
    let noted = lab.reconciler.namespaces(BTreeMap::new(), &nobody);
    assert_eq!((noted, lab.owner()), (Noted::Known, a));
    lab.reconciler.interface_gone(5);
    let noted = lab.reconciler.namespaces(BTreeMap::new(), &nobody);
    assert_eq!((noted, lab.owner()), (Noted::Known, None));
}

#[test]
fn veth_of_a_container_stays_its_when_its_cgroup_goes() {
    let mut lab = Lab::new();
    lab.claim();
    lab.cgroups();
    lab.veth();
    let nobody = Unread::These(BTreeSet::new());
    let inside = BTreeMap::from([(0, BTreeSet::from([BELOW]))]);
    lab.reconciler.namespaces(inside, &nobody);
    let a = Some(CustomerId::from_name("a"));
    assert_eq!(lab.owner(), a);
    // Another container may hold a socket that was opened there.
    lab.reconciler.cgroup_gone(BELOW);
    lab.reconciler.namespaces(BTreeMap::new(), &nobody);
    assert_eq!(lab.owner(), a);
}

#[test]
fn veth_of_an_earlier_starts_container_stays_its_until_others_are_behind_it() {
    let a = CustomerId::from_name("a");
    let mut lab = Lab::on(Kernel {
        installed: MapImage {
            interfaces: BTreeMap::from([(5, InterfaceOwner::new(a, Counting::Refused))]),
            ..MapImage::default()
        },
        covered: BTreeSet::from([Site::Interface(5)]),
        ..Kernel::default()
    });
    lab.veth();
    lab.claim();
    lab.cgroups();
    let nobody = Unread::These(BTreeSet::new());
    for unread in [&Unread::All, &nobody] {
        lab.reconciler.namespaces(BTreeMap::new(), unread);
        assert_eq!(lab.owner(), Some(a), "{unread:?}");
        assert!(lab.kernel().covered.contains(&Site::Interface(5)));
    }
    let others = BTreeMap::from([(0, BTreeSet::from([ROOT]))]);
    lab.reconciler.namespaces(others, &nobody);
    assert_eq!(lab.owner(), Some(CustomerId::UNASSIGNED));
    lab.reconciler.interface_gone(5);
    assert_eq!(lab.owner(), None);
    assert!(!lab.kernel().covered.contains(&Site::Interface(5)));
}

#[test]
fn interface_of_an_index_that_was_anothers_is_nobodys_where_the_tables_have_no_room() {
    let a = CustomerId::from_name("a");
    let mut lab = Lab::new();
    let set = lab.read(&["a", "b"]);
    lab.reconciler.files(set, Occasion::Watch, Timestamp::now());
    lab.converge();
    let owner = |lab: &Lab, index| {
        let owner = lab.kernel().installed.interfaces.get(&index).copied();
        owner.map(|owner| owner.customer())
    };
    let [(index, _), (neighbour, _)] = GUESTS;
    assert_eq!(owner(&lab, index), Some(a));
    // Nothing can be written but removals, as with a table that is full.
    lab.kernel_mut().refuses = true;
    lab.reconciler.interface_gone(index);
    let other = Interface {
        index,
        name: "tap9i0".to_owned(),
        kind: Kind::Tap,
        master: None,
    };
    lab.reconciler.interface(other, Instant::now());
    lab.converge();
    assert_eq!(owner(&lab, index), None);
    assert_eq!(owner(&lab, neighbour), Some(CustomerId::from_name("b")));
    assert!(!lab.status().in_force);
    lab.kernel_mut().refuses = false;
    lab.converge();
    assert_eq!(owner(&lab, index), Some(CustomerId::UNASSIGNED));
    assert!(lab.status().in_force);
}

#[test]
fn interface_that_is_called_otherwise_has_its_program_looked_for() {
    let mut lab = Lab::new();
    lab.converge();
    let (index, _) = GUESTS[0];
    // nftables binds a chain to a name, and the kernel takes it off; the backend does not know.
    let renamed = Interface {
        index,
        name: "tap9i0".to_owned(),
        kind: Kind::Tap,
        master: None,
    };
    lab.kernel_mut().unhooked = BTreeSet::from([Site::Interface(index)]);
    lab.reconciler.interface(renamed, Instant::now());
    lab.converge();
    assert_eq!(lab.kernel().unhooked, BTreeSet::new());
}

impl Lab {
    /// A veth, number 5, whose name no pattern matches, and which leads to the namespace 0.
    fn veth(&mut self) {
        let peer = Some(Peer {
            index: 2,
            netns: Some(0),
        });
        let veth = Interface {
            index: 5,
            name: "veth0".to_owned(),
            kind: Kind::Veth { peer },
            master: None,
        };
        self.reconciler.interface(veth, Instant::now());
    }

    /// Whose it is, after all that is known.
    fn owner(&mut self) -> Option<CustomerId> {
        self.converge();
        let owner = self.kernel().installed.interfaces.get(&5).copied();
        owner.map(|owner| owner.customer())
    }

    /// Has the customer `a` own the container `lxc/1`.
    fn claim(&mut self) {
        let set = self.read_text(CLAIMED);
        let occasion = Occasion::Request(Shrink::Refused);
        self.reconciler.files(set, occasion, Timestamp::now());
    }

    fn cgroups(&mut self) {
        let cgroup = |id, path, role| Cgroup {
            id,
            path: PathBuf::from(path),
            role,
        };
        let all = vec![
            cgroup(ROOT, "lxc", Role::Root),
            cgroup(BELOW, "lxc/1", Role::Below),
        ];
        self.reconciler
            .cgroups(all, &BTreeSet::new(), Instant::now());
    }
}
