//! Which interfaces and control groups are workloads, and whose.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use gate25::kernel::cgroups::{Cgroup, Role};
use gate25::kernel::links::{Interface, Kind, Peer};
use gate25::policy::{Customer, Pattern, Policy, Selector, Workload};
use gate25::settings::Interfaces;
use gate25::workloads::{
    Claim, Framing, Host, Inside, InterfaceWorkload, Inventory, Unread, Veths, Workloads, resolve,
};
use gate25_common::abi::{Counting, CustomerId, InterfaceOwner};

use super::{customer, origin, policy};

/// Number of the first control group of a test; the others follow.
const FIRST: u64 = 100;

#[test]
fn cgroup_belongs_to_the_deepest_claim_at_or_above_it() {
    let lab = Lab::of(
        &[("a", "lxc/1"), ("b", "lxc/1/ns")],
        &["lxc", "lxc/1", "lxc/1/ns", "lxc/1/ns/x", "lxc/1/y", "lxc/2"],
    );
    let workloads = lab.resolve();
    // What lies below a claim and is not claimed itself belongs to it and is no workload of its own.
    assert_eq!(
        shown(&workloads),
        ["lxc/1: a", "lxc/1/ns: b", "lxc/2: unassigned"]
    );
    assert_eq!(workloads.claims, claims(&[(101, "a"), (102, "b")]));
}

#[test]
fn cgroup_claimed_twice_is_nobodys_and_names_both() {
    let lab = Lab::of(
        &[("a", "lxc/*"), ("b", "lxc/1")],
        &["lxc", "lxc/1", "lxc/1/x", "lxc/2"],
    );
    let workloads = lab.resolve();
    assert_eq!(shown(&workloads), ["lxc/1: conflict of a, b", "lxc/2: a"]);
    // The entry shields it from a claim above: nobody's is nobody's.
    let expected = BTreeMap::from([
        (101, CustomerId::UNASSIGNED),
        (103, CustomerId::from_name("a")),
    ]);
    assert_eq!(workloads.claims, expected);
}

#[test]
fn conflict_below_a_claim_does_not_fall_to_the_claim_above() {
    let lab = Lab::of(
        &[("a", "lxc"), ("b", "lxc/1"), ("c", "lxc/?")],
        &["lxc", "lxc/1"],
    );
    let workloads = lab.resolve();
    assert_eq!(shown(&workloads), ["lxc: a", "lxc/1: conflict of b, c"]);
    assert_eq!(workloads.claims[&101], CustomerId::UNASSIGNED);
}

#[test]
fn root_claimed_from_above_stands_in_for_what_is_above_it() {
    let lab = Lab {
        roots: &["up/lxc"],
        ..Lab::of(&[("a", "up")], &["up/lxc", "up/lxc/1"])
    };
    let workloads = lab.resolve();
    assert_eq!(shown(&workloads), ["up/lxc: a"]);
    assert_eq!(workloads.claims, claims(&[(100, "a")]));
}

#[test]
fn container_that_nobody_claims_is_a_leaf_that_is_no_named_root() {
    let lab = Lab {
        roots: &["lxc", "lxc.payload.*", "docker"],
        ..Lab::of(&[], &["docker", "lxc", "lxc/1", "lxc.payload.7"])
    };
    // `docker` is empty and waits for containers; `lxc` holds one; `lxc.payload.7` is one.
    assert_eq!(
        shown(&lab.resolve()),
        ["lxc.payload.7: unassigned", "lxc/1: unassigned"]
    );
}

#[test]
fn cgroup_below_a_root_has_that_root() {
    let lab = Lab {
        roots: &["docker", "lxc"],
        ..Lab::of(&[], &["docker", "docker/1", "lxc", "lxc/1", "lxc/1/x"])
    };
    let roots: Vec<(String, u64)> = lab
        .resolve()
        .cgroups
        .into_values()
        .map(|workload| (workload.name, workload.root))
        .collect();
    assert_eq!(
        roots,
        [("docker/1".to_owned(), 100), ("lxc/1/x".to_owned(), 102)]
    );
}

#[test]
fn cgroup_whose_name_only_begins_like_another_is_not_below_it() {
    let lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1", "lxc/1-x", "lxc/1/ns"]);
    assert_eq!(shown(&lab.resolve()), ["lxc/1: a", "lxc/1-x: unassigned"]);
}

#[test]
fn cgroup_whose_name_is_not_text_matches_nothing_but_belongs_to_the_claim_above() {
    let mut lab = Lab::of(&[("a", "lxc/1"), ("b", "lxc/1/*")], &["lxc", "lxc/1"]);
    for (id, path) in [(110, b"lxc/1/\xff".as_slice()), (111, b"lxc/\xff")] {
        let path = PathBuf::from(OsStr::from_bytes(path));
        let role = Role::Below;
        lab.inventory.cgroups.insert(id, Cgroup { id, path, role });
    }
    let workloads = lab.resolve();
    assert_eq!(shown(&workloads), ["lxc/1: a", "lxc/\u{fffd}: unassigned"]);
    assert_eq!(workloads.claims, claims(&[(101, "a")]));
}

#[test]
fn veth_of_a_claimed_container_is_its_customers_and_counts_refusals_only() {
    let mut lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1", "lxc/1/ns"]);
    lab.veth(5, "veth0", Some(0));
    lab.found(0, &[FIRST + 2]);
    let workload = &lab.resolve().interfaces[&5];
    assert_eq!(workload.claim, Claim::Customer("a".to_owned()));
    assert_eq!(workload.counting, Counting::Refused);
    assert_eq!(workload.framing, Framing::Ethernet);
}

#[test]
fn veth_of_a_container_that_nobody_claims_is_a_workload_all_the_same() {
    let mut lab = Lab::of(&[], &["lxc", "lxc/1"]);
    lab.veth(5, "veth0", Some(0));
    assert!(lab.resolve().interfaces.is_empty());
    lab.found(0, &[FIRST + 1]);
    assert_eq!(lab.resolve().interfaces[&5].claim, Claim::Unassigned);
}

#[test]
fn veth_of_a_namespace_shared_by_two_customers_is_nobodys() {
    let mut lab = Lab::of(
        &[("a", "lxc/1"), ("b", "lxc/2")],
        &["lxc", "lxc/1", "lxc/2"],
    );
    lab.veth(5, "veth0", Some(0));
    lab.found(0, &[FIRST + 1, FIRST + 2]);
    let claim = &lab.resolve().interfaces[&5].claim;
    assert_eq!(told(claim), "conflict of a, b");
    assert_eq!(claim.customer(), CustomerId::UNASSIGNED);
}

#[test]
fn veth_claimed_by_name_and_by_its_container_agrees_or_is_a_conflict() {
    for (owner, expected) in [("a", "a"), ("b", "conflict of a, b")] {
        let mut lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1"]);
        lab.claim_interface(owner, "veth1i0");
        lab.veth(5, "veth1i0", Some(0));
        lab.found(0, &[FIRST + 1]);
        let workload = &lab.resolve().interfaces[&5];
        assert_eq!(told(&workload.claim), expected);
        assert_eq!(workload.counting, Counting::Refused);
    }
}

#[test]
fn veth_that_is_to_be_ignored_stays_ignored_whatever_is_behind_it() {
    let mut lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1"]);
    lab.veth(5, "veth9i0", Some(0));
    lab.found(0, &[FIRST + 1]);
    assert!(lab.resolve().interfaces.is_empty());
}

#[test]
fn interface_that_leads_to_no_container_counts_everything() {
    let mut lab = Lab::of(&[], &["lxc", "lxc/1"]);
    lab.found(0, &[FIRST + 1]);
    lab.veth(5, "veth1i0", Some(7));
    lab.veth(6, "veth2i0", None);
    lab.interface(7, "tap1i0", Kind::Tap);
    lab.interface(8, "tap2i0", Kind::Tun);
    let told: Vec<(u32, Counting, Framing)> = lab
        .resolve()
        .interfaces
        .into_iter()
        .map(|(index, workload)| (index, workload.counting, workload.framing))
        .collect();
    assert_eq!(
        told,
        [
            (5, Counting::All, Framing::Ethernet),
            (6, Counting::All, Framing::Ethernet),
            (7, Counting::All, Framing::Ethernet),
            (8, Counting::All, Framing::Ip),
        ]
    );
}

#[test]
fn veth_that_was_a_containers_stays_its_owners_until_others_are_found_behind_it() {
    let mut lab = Lab::of(
        &[("a", "lxc/1"), ("b", "lxc/2")],
        &["lxc", "lxc/1", "lxc/2"],
    );
    lab.veth(5, "veth0", Some(0));
    lab.was(5, "a", Counting::Refused);
    let workload = &lab.resolve().interfaces[&5];
    assert_eq!(told(&workload.claim), "a");
    assert_eq!(workload.counting, Counting::Refused);
    lab.found(0, &[FIRST + 2]);
    assert_eq!(told(&lab.resolve().interfaces[&5].claim), "b");
}

#[test]
fn veth_that_leads_to_a_number_that_was_anothers_is_its_own_customers_or_nobodys() {
    let mut lab = Lab::of(
        &[("a", "lxc/1"), ("b", "lxc/2")],
        &["lxc", "lxc/1", "lxc/2"],
    );
    lab.veth(5, "veth0", Some(0));
    lab.veth(6, "veth1", Some(1));
    let of_a = (0, BTreeSet::from([FIRST + 1]));
    let of_b = (1, BTreeSet::from([FIRST + 2]));
    let nobody = Unread::These(BTreeSet::new());
    assert!(lab.looked(Inside::from([of_a, of_b]), &nobody));
    // The namespace of `a` ends and frees its number; a veth of `b` moves on to it, and a new one leads there.
    lab.inventory.interface_gone(5);
    lab.veth(6, "veth1", Some(0));
    lab.veth(7, "veth2", Some(0));
    let moved = (6, "b".to_owned(), Counting::Refused);
    let nobodys = |counting| (7, "unassigned".to_owned(), counting);
    assert_eq!(lab.owners(), [moved.clone(), nobodys(Counting::All)]);
    // Looks that find nobody there leave it to `b`, and the new one, which leads to the same place, nobody's.
    for (unread, news) in [(Unread::All, true), (nobody, false)] {
        assert_eq!(lab.looked(Inside::new(), &unread), news);
        assert_eq!(lab.owners(), [moved.clone(), nobodys(Counting::Refused)]);
    }
    // That is what it stays without the other.
    lab.inventory.interface_gone(6);
    lab.found(1, &[]);
    assert_eq!(lab.owners(), [nobodys(Counting::Refused)]);
}

#[test]
fn veth_into_the_network_of_a_container_that_hides_is_judged_after_a_restart_and_without_the_first_one()
 {
    let mut lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1"]);
    lab.veth(5, "veth0", Some(0));
    lab.found(0, &[FIRST + 1]);
    lab.write();
    lab.veth(6, "veth1", Some(0));
    lab.found(1, &[]);
    let owner = |index, owner: &str| (index, owner.to_owned(), Counting::Refused);
    let both = [owner(5, "a"), owner(6, "unassigned")];
    assert_eq!(lab.owners(), both);
    lab.start_again();
    assert_eq!(lab.owners(), both);
    // One that comes after the restart; one that leads elsewhere is nobody's business.
    lab.veth(7, "veth2", Some(0));
    lab.veth(8, "veth3", Some(1));
    lab.found(1, &[]);
    lab.inventory.interface_gone(5);
    lab.found(1, &[]);
    assert_eq!(
        lab.owners(),
        [owner(6, "unassigned"), owner(7, "unassigned")]
    );
    lab.found(0, &[FIRST + 1]);
    assert_eq!(lab.owners(), [owner(6, "a"), owner(7, "a")]);
}

#[test]
fn veth_of_a_number_that_was_a_containers_between_two_looks_is_let_go_at_the_next() {
    let mut lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1"]);
    lab.veth(5, "veth0", Some(0));
    lab.found(0, &[FIRST + 1]);
    // The namespace ends, and another one has its number before anybody looks.
    lab.inventory.interface_gone(5);
    lab.veth(6, "veth1", Some(0));
    let soon = (6, "unassigned".to_owned(), Counting::All);
    assert_eq!(lab.owners(), [soon]);
    lab.write();
    lab.found(1, &[]);
    assert_eq!(lab.owners(), []);
}

#[test]
fn veth_whose_index_was_anothers_has_nothing_of_it() {
    let mut lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1"]);
    lab.veth(5, "veth0", Some(0));
    lab.found(0, &[FIRST + 1]);
    lab.was(5, "a", Counting::Refused);
    lab.inventory.interface_gone(5);
    lab.veth(5, "veth1", Some(3));
    assert!(lab.resolve().interfaces.is_empty());
}

#[test]
fn veth_in_conflict_falls_to_none_of_the_two_when_its_container_hides() {
    let mut lab = Lab::of(&[("b", "lxc/1")], &["lxc", "lxc/1"]);
    lab.claim_interface("a", "veth1i0");
    lab.veth(5, "veth1i0", Some(0));
    lab.found(0, &[FIRST + 1]);
    let conflict = (5, "conflict of a, b".to_owned(), Counting::Refused);
    assert_eq!(lab.owners(), [conflict]);
    lab.write();
    // It is found no more, and its control group is gone; then the agent starts again.
    lab.found(1, &[]);
    lab.inventory.cgroup_gone(FIRST + 1);
    let nobodys = [(5, "unassigned".to_owned(), Counting::Refused)];
    assert_eq!(lab.owners(), nobodys);
    lab.start_again();
    assert_eq!(lab.owners(), nobodys);
}

#[test]
fn veth_of_a_container_that_hides_is_its_owners_while_the_policy_lets_it_be() {
    let mut lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1"]);
    lab.veth(5, "veth1i0", Some(0));
    lab.was(5, "a", Counting::Refused);
    let owner = |owner: &str| (5, owner.to_owned(), Counting::Refused);
    assert_eq!(lab.owners(), [owner("a")]);
    lab.claim_interface("a", "veth1i0");
    assert_eq!(lab.owners(), [owner("a")]);
    // The interface is somebody else's, too.
    lab.claim_interface("b", "veth1i0");
    assert_eq!(lab.owners(), [owner("unassigned")]);
    // No container is his any more.
    let mut lab = Lab::of(&[], &["lxc", "lxc/1"]);
    lab.claim_interface("a", "veth2i0");
    lab.veth(5, "veth1i0", Some(0));
    lab.was(5, "a", Counting::Refused);
    assert_eq!(lab.owners(), [owner("unassigned")]);
}

#[test]
fn veth_left_by_a_customer_who_is_gone_stays_a_workload_of_nobody() {
    let mut lab = Lab::of(&[], &["lxc"]);
    lab.veth(5, "veth0", Some(0));
    lab.was(5, "gone", Counting::Refused);
    assert_eq!(lab.resolve().interfaces[&5].claim, Claim::Unassigned);
}

#[test]
fn interface_that_was_no_containers_or_leads_to_none_is_what_its_name_says() {
    let mut lab = Lab::of(&[("a", "lxc/1")], &["lxc", "lxc/1"]);
    lab.veth(5, "veth0", Some(0));
    lab.was(5, "a", Counting::All);
    // Its other end came back to the host, which is nobody's guest.
    lab.veth(6, "veth1", None);
    lab.was(6, "a", Counting::Refused);
    lab.veth(7, "veth9i0", Some(1));
    lab.was(7, "a", Counting::Refused);
    assert!(lab.resolve().interfaces.is_empty());
    lab.veth(8, "veth2", Some(2));
    lab.was(8, "a", Counting::Refused);
    assert_eq!(lab.resolve().interfaces.len(), 1);
    // Without roots there are no containers.
    lab.roots = &[];
    assert!(lab.resolve().interfaces.is_empty());
}

/// A host `hv-1` whose interfaces `tap*` and `veth*i*` are workloads, `veth9*` left out.
struct Lab {
    policy: Policy,
    inventory: Inventory,
    installed: BTreeMap<u32, InterfaceOwner>,
    roots: &'static [&'static str],
}

impl Lab {
    /// Customers by the cgroup that each claims; control groups numbered in this order, the first
    /// of every tree being its root.
    fn of(claims: &[(&str, &str)], paths: &[&str]) -> Self {
        let customers = claims.iter().map(|(id, pattern)| {
            let workloads = vec![Workload {
                selector: Selector::Cgroup(Pattern::new(*pattern)),
                hosts: Vec::new(),
                origin: origin(4),
            }];
            let customer = Customer {
                workloads: workloads.into(),
                ..customer("default", &[], &[])
            };
            ((*id).to_owned(), customer)
        });
        let mut roots: Vec<&str> = Vec::new();
        let mut cgroups = BTreeMap::new();
        for (id, path) in (FIRST..).zip(paths) {
            let below = |root: &&str| path.starts_with(&format!("{root}/"));
            let role = if roots.iter().any(below) {
                Role::Below
            } else {
                roots.push(path);
                Role::Root
            };
            let path = PathBuf::from(path);
            cgroups.insert(id, Cgroup { id, path, role });
        }
        Self {
            policy: Policy {
                customers: customers.collect(),
                ..policy()
            },
            inventory: Inventory {
                cgroups,
                ..Inventory::default()
            },
            installed: BTreeMap::new(),
            roots: &["lxc"],
        }
    }

    /// Has a customer claim an interface as well.
    fn claim_interface(&mut self, owner: &str, name: &str) {
        let customers = self.policy.customers.entry(owner.to_owned());
        let claims = &mut customers
            .or_insert_with(|| customer("default", &[], &[]))
            .workloads;
        let more = customer("default", &[], &[name]).workloads;
        *claims = claims.iter().chain(more.iter()).cloned().collect();
    }

    fn veth(&mut self, index: u32, name: &str, netns: Option<i32>) {
        let peer = Some(Peer { index: 2, netns });
        self.interface(index, name, Kind::Veth { peer });
    }

    fn interface(&mut self, index: u32, name: &str, kind: Kind) {
        let interface = Interface {
            index,
            name: name.to_owned(),
            kind,
            master: None,
        };
        self.inventory.interfaces.insert(index, interface);
    }

    /// Has a look find nobody but these control groups, in this namespace.
    fn found(&mut self, netns: i32, inside: &[u64]) {
        let inside = Inside::from([(netns, inside.iter().copied().collect())]);
        let _changed = self.looked(inside, &Unread::These(BTreeSet::new()));
    }

    fn looked(&mut self, inside: Inside, unread: &Unread) -> bool {
        self.inventory.looked(inside, unread, &self.installed)
    }

    fn owners(&self) -> Vec<(u32, String, Counting)> {
        let interfaces = self.resolve().interfaces.into_iter();
        let owner = |(index, it): (_, InterfaceWorkload)| (index, told(&it.claim), it.counting);
        interfaces.map(owner).collect()
    }

    /// Has the tables hold what was resolved.
    fn write(&mut self) {
        let interfaces = self.resolve().interfaces.into_iter();
        let owner = |it: &InterfaceWorkload| InterfaceOwner::new(it.claim.customer(), it.counting);
        self.installed = interfaces.map(|(index, it)| (index, owner(&it))).collect();
    }

    /// Has another agent find the same interfaces and control groups, and what this one has written.
    fn start_again(&mut self) {
        self.write();
        self.inventory.veths = Veths::default();
    }

    /// Has the tables hold an owner of an interface.
    fn was(&mut self, index: u32, owner: &str, counting: Counting) {
        let owner = InterfaceOwner::new(CustomerId::from_name(owner), counting);
        self.installed.insert(index, owner);
    }

    fn resolve(&self) -> Workloads {
        let host = Host {
            name: "hv-1".to_owned(),
            interfaces: Interfaces {
                matched: vec![Pattern::new("tap*"), Pattern::new("veth*i*")],
                ignored: vec![Pattern::new("veth9*")],
            },
            roots: self.roots.iter().map(|root| Pattern::new(*root)).collect(),
        };
        resolve(&self.inventory, &host, Some(&self.policy), &self.installed)
    }
}

fn claims(claims: &[(u64, &str)]) -> BTreeMap<u64, CustomerId> {
    claims
        .iter()
        .map(|(id, customer)| (*id, CustomerId::from_name(customer)))
        .collect()
}

/// The control groups that are workloads, by name.
fn shown(workloads: &Workloads) -> Vec<String> {
    let mut workloads: Vec<_> = workloads.cgroups.values().collect();
    workloads.sort_by_key(|workload| &workload.name);
    workloads
        .into_iter()
        .map(|workload| format!("{}: {}", workload.name, told(&workload.claim)))
        .collect()
}

fn told(claim: &Claim) -> String {
    match claim {
        Claim::Customer(id) => id.clone(),
        Claim::Unassigned => "unassigned".to_owned(),
        Claim::Conflict(claims) => {
            let ids: Vec<&str> = claims.iter().map(|(id, _)| id.as_str()).collect();
            format!("conflict of {}", ids.join(", "))
        }
    }
}
