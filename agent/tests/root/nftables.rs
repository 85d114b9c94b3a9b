//! The nftables backend's table in the real kernel.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Instant;

use gate25::chain::in_full;
use gate25::clock;
use gate25::compile::Prefix;
use gate25::dataplane::{Attached, Customers, Dataplane as _, MapImage, Site};
use gate25::features::Feature;
use gate25::figures::Figures as _;
use gate25::guard::Mark;
use gate25::kernel::nft::Nft;
use gate25::kernel::nftables::{Nftables, NftablesError, Options, Reject, remove};
use gate25::kernel::removal::Removal;
use gate25_common::abi::{
    Blocked, Counting, CustomerId, CustomerPolicy, Exemption, InterfaceOwner, Mode, Quarantine,
    SetId,
};
use gate25_common::decide::{HostMode, Verdict};

use crate::netns::{index, output, run, within};

const LIST: &str = "nft list table netdev gate25";

#[test]
fn policy_goes_into_the_kernel_changes_there_and_goes_again() {
    within(|| async {
        run("ip link add v0 type veth peer name v1");
        let (index, customer) = (index("v0"), CustomerId::from_name("c-1"));
        let mut backend = open();
        backend
            .apply(&image(customer, index, &["192.0.2.0/24"]))
            .unwrap();
        assert_eq!(backend.attach_interface(index).unwrap(), Attached::Yes);
        assert_eq!(backend.covered(), BTreeSet::from([Site::Interface(index)]));
        let listed = output(LIST).0;
        assert!(listed.contains("device \"v0\""), "{listed}");
        assert!(listed.contains("192.0.2.0/24"), "{listed}");
        backend
            .apply(&image(customer, index, &["198.51.100.7/32"]))
            .unwrap();
        let listed = output(LIST).0;
        assert!(!listed.contains("192.0.2.0/24"), "{listed}");
        assert!(listed.contains("198.51.100.7"), "{listed}");
        assert!(listed.contains("64:ff9b::c633:6407"), "{listed}");
        let unchanged = backend
            .apply(&image(customer, index, &["198.51.100.7/32"]))
            .unwrap();
        assert_eq!(unchanged.writes, 0);
        backend.apply(&builtin()).unwrap();
        let listed = output(LIST).0;
        assert!(!listed.contains("198.51.100.7"), "{listed}");
        backend.detach(Site::Interface(index)).unwrap();
        assert!(!output(LIST).0.contains("hook ingress"));
        let nft = Nft::default();
        assert_eq!(remove(&nft, Removal::Real).unwrap(), ["netdev gate25"]);
        assert!(!output(LIST).1);
        assert!(remove(&nft, Removal::Real).unwrap().is_empty());
    });
}

#[test]
fn restart_keeps_hooks_and_counters() {
    within(|| async {
        run("ip link add v0 type veth peer name v1");
        let (index, customer) = (index("v0"), CustomerId::from_name("c-1"));
        let image = image(customer, index, &["192.0.2.0/24"]);
        let mut backend = open();
        backend.apply(&image).unwrap();
        backend.attach_interface(index).unwrap();
        drop(backend);
        let mut backend = open();
        assert_eq!(backend.covered(), BTreeSet::from([Site::Interface(index)]));
        backend.apply(&image).unwrap();
        let sites = BTreeSet::from([Site::Interface(index)]);
        assert!(backend.displaced(&sites).unwrap().is_empty());
        run(&format!("nft delete chain netdev gate25 i_{index}"));
        assert_eq!(backend.displaced(&sites).unwrap(), sites);
        let counters = backend.counters();
        let counted = counters.customer(customer).unwrap().unwrap();
        assert_eq!(counted.connections(Verdict::Reject), 0);
        assert!(
            counters
                .customer(CustomerId::from_name("c-2"))
                .unwrap()
                .is_none()
        );
    });
}

#[test]
fn table_that_others_flush_or_edit_is_written_again() {
    within(|| async {
        run("ip link add v0 type veth peer name v1");
        let (index, customer) = (index("v0"), CustomerId::from_name("c-1"));
        let mut backend = open();
        backend
            .apply(&image(customer, index, &["192.0.2.0/24"]))
            .unwrap();
        backend.attach_interface(index).unwrap();
        assert_eq!(backend.repin().unwrap(), 0);
        for damage in [
            "nft flush ruleset",
            "nft flush chain netdev gate25 judge",
            "nft add rule netdev gate25 guest accept",
            "nft delete table netdev gate25",
            // Asleep, it stops nothing.
            "nft add table netdev gate25 { flags dormant ; }",
        ] {
            run(damage);
            assert_eq!(backend.repin().unwrap(), 1, "{damage}");
            let listed = output(LIST).0;
            assert!(listed.contains("device \"v0\""), "{damage}: {listed}");
            assert!(listed.contains("192.0.2.0/24"), "{damage}: {listed}");
            assert_eq!(backend.repin().unwrap(), 0, "{damage}");
        }
    });
}

#[test]
fn revoked_stays_revoked_when_nft_cannot_be_asked_what_is_there() {
    within(|| async {
        run("ip link add v0 type veth peer name v1");
        let (index, customer) = (index("v0"), CustomerId::from_name("c-1"));
        let wrapper =
            Wrapper::new("[ -e $0.broken ] && [ \"$1 $2 $3\" = \"-j -t list\" ] && exit 1");
        let mut backend = wrapper.open();
        backend
            .apply(&image(customer, index, &["192.0.2.0/24"]))
            .unwrap();
        backend.attach_interface(index).unwrap();
        wrapper.break_it();
        let revoked = image(customer, index, &["198.51.100.7/32"]);
        backend.apply(&revoked).unwrap();
        assert_eq!(backend.installed(), &revoked);
        backend.repin().unwrap_err();
        wrapper.mend();
        // Nothing of it was somebody else's change.
        assert_eq!(backend.repin().unwrap(), 0);
        let listed = output(LIST).0;
        assert!(!listed.contains("192.0.2.0/24"), "{listed}");
        assert!(listed.contains("198.51.100.7"), "{listed}");
    });
}

#[test]
fn nft_that_does_not_tell_what_it_did_is_believed_and_watched_all_the_same() {
    within(|| async {
        run("ip link add v0 type veth peer name v1");
        let (index, customer) = (index("v0"), CustomerId::from_name("c-1"));
        let wrapper = Wrapper::new("[ \"$1\" = -e ] && { shift; nft \"$@\" && echo '?'; exit; }");
        let mut backend = wrapper.open();
        let image = image(customer, index, &["192.0.2.0/24"]);
        backend.apply(&image).unwrap();
        backend.attach_interface(index).unwrap();
        assert_eq!(backend.covered(), BTreeSet::from([Site::Interface(index)]));
        assert_eq!(backend.repin().unwrap(), 0);
        run("nft flush chain netdev gate25 judge");
        assert_eq!(backend.repin().unwrap(), 1);
        let judged = output("nft list chain netdev gate25 judge").0;
        assert!(judged.contains("vmap"), "{judged}");
    });
}

#[test]
fn change_of_others_that_cannot_be_put_right_is_not_taken_for_ours() {
    within(|| async {
        run("ip link add v0 type veth peer name v1");
        let (index, customer) = (index("v0"), CustomerId::from_name("c-1"));
        let wrapper = Wrapper::new("[ -e $0.broken ] && [ \"$1\" = -e ] && exit 1");
        let mut backend = wrapper.open();
        backend
            .apply(&image(customer, index, &["192.0.2.0/24"]))
            .unwrap();
        run("nft add rule netdev gate25 guest accept");
        wrapper.break_it();
        backend.repin().unwrap_err();
        backend.repin().unwrap_err();
        wrapper.mend();
        assert_eq!(backend.repin().unwrap(), 1);
    });
}

#[test]
fn table_of_somebody_else_is_left_alone() {
    within(|| async {
        run("nft add table netdev gate25");
        run("nft add chain netdev gate25 theirs");
        let refused = Nftables::open(Nft::default(), options()).err().unwrap();
        assert!(matches!(refused, NftablesError::Foreign), "{refused}");
        assert!(matches!(
            remove(&Nft::default(), Removal::Real),
            Err(NftablesError::Foreign)
        ));
        assert!(output(LIST).0.contains("theirs"));
    });
}

#[test]
fn refused_transaction_leaves_the_last_state() {
    within(|| async {
        run("ip link add v0 type veth peer name v1");
        let (index, customer) = (index("v0"), CustomerId::from_name("c-1"));
        let before = image(customer, index, &["192.0.2.0/24"]);
        let mut backend = open();
        backend.apply(&before).unwrap();
        // What is to be deleted is not there: the last command of many fails.
        let mut after = image(customer, index, &["198.51.100.7/32"]);
        after.interfaces.clear();
        run(&format!(
            "nft delete element netdev gate25 owners {{ {index} }}"
        ));
        let error = backend.apply(&after).unwrap_err().to_string();
        assert!(error.contains("No such file or directory"), "{error}");
        assert_eq!(backend.installed(), &before);
        let listed = output(LIST).0;
        assert!(listed.contains("192.0.2.0/24"), "{listed}");
        assert!(!listed.contains("198.51.100.7"), "{listed}");
    });
}

#[test]
fn policy_of_many_prefixes_goes_in_and_one_of_too_many_changes_nothing() {
    within(|| async {
        let customer = CustomerId::from_name("c-1");
        let nets: Vec<String> = (0..20_000u32)
            .map(|number| format!("10.{}.{}.0/25", number >> 8, number & 255))
            .collect();
        let nets: Vec<&str> = nets.iter().map(String::as_str).collect();
        let large = image(customer, 7, &nets);
        let mut backend = open();
        backend.apply(&large).unwrap();
        assert!(output(LIST).0.contains("10.77.255.0/25"));
        let mut too_large = large.clone();
        let prefixes = large.sets.values().next().unwrap();
        for number in 1..=14u64 {
            let sets = (0..16).map(|slot| SetId::new(number * 100 + slot).unwrap());
            let exemptions: Vec<_> = sets.map(|set| Exemption::new(set, 0, u64::MAX)).collect();
            for exemption in &exemptions {
                let sets = Arc::make_mut(&mut too_large.sets);
                sets.insert(exemption.set(), Arc::clone(prefixes));
            }
            let id = CustomerId::from_raw(number);
            let policy = builtin().customers.get(&CustomerId::UNASSIGNED).unwrap();
            let policy = policy.with_exemptions(&exemptions).unwrap();
            too_large.customers.insert(id, &policy);
            let owner = InterfaceOwner::new(id, Counting::All);
            too_large.interfaces.insert(1000 + number as u32, owner);
        }
        let error = backend.apply(&too_large).unwrap_err().to_string();
        assert!(error.contains("exceed the kernel's"), "{error}");
        assert_eq!(backend.installed(), &large);
    });
}

#[test]
fn missing_nft_is_said() {
    let missing = Nftables::open(Nft::new("/nonexistent/nft"), options()).err();
    let text = missing.unwrap().to_string();
    assert_eq!(text, "run /nonexistent/nft to list a table");
}

#[test]
fn nft_that_does_not_know_the_ruleset_is_said_and_nothing_is_changed() {
    within(|| async {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("nft");
        let script = "#!/bin/sh\nfor word; do\n  [ \"$word\" != -c ] || { echo 'Error: syntax error' >&2; exit 1; }\ndone\nexec nft \"$@\"\n";
        fs::write(&old, script).unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o755)).unwrap();
        let refused = Nftables::open(Nft::new(&old), options()).err().unwrap();
        let text = in_full(&refused);
        assert!(matches!(refused, NftablesError::Unsupported(_)), "{text}");
        assert!(text.contains("nft 1.0.6 and Linux 5.17"), "{text}");
        assert!(text.contains("syntax error"), "{text}");
        assert!(!output(LIST).1);
    });
}

#[test]
fn kernel_without_resets_in_this_family_is_told_and_served_by_drops() {
    within(|| async {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("nft");
        let script = "#!/bin/sh\nrules=$(cat)\ncase $rules in *'tcp reset'*) echo 'Error: Could not process rule: No such file or directory' >&2; exit 1 ;; esac\nprintf %s \"$rules\" | nft \"$@\"\n";
        fs::write(&other, script).unwrap();
        fs::set_permissions(&other, Permissions::from_mode(0o755)).unwrap();
        let mut backend = Nftables::open(Nft::new(&other), options()).unwrap();
        assert!(backend.lacks().contains(&Feature::Resets));
        backend.apply(&builtin()).unwrap();
        let (table, _) = output(LIST);
        assert!(!table.contains("reject with"), "{table}");
        let chain = table.split_once("chain do_reject {").unwrap().1;
        let chain = chain.split_once('}').unwrap().0;
        assert!(chain.trim_end().ends_with("drop"), "{chain}");
    });
}

#[test]
fn exemption_written_by_a_slow_nft_ends_on_time() {
    const SECOND: u64 = 1_000_000_000;
    within(|| async {
        let customer = CustomerId::from_name("c-1");
        let wrapper = Wrapper::new("[ -e $0.broken ] && sleep 1.9");
        let mut backend = wrapper.open();
        wrapper.break_it();
        // Looked at, nft is 1.9 seconds late, and as much again when it writes: what is written for
        // four seconds then is there for too long.
        let end = boot() + 7 * SECOND + SECOND / 2;
        let exempt = [Exemption::new(SetId::ANY, 0, end)];
        let mut image = image(customer, 1, &["192.0.2.0/24"]);
        let policy = image.customers.get(&customer).unwrap();
        let policy = policy.with_exemptions(&exempt).unwrap();
        image.customers.insert(customer, &policy);
        backend.apply(&image).unwrap();
        let gate = format!("nft list set netdev gate25 e_{:016x}_0", customer.get());
        assert!(output(&gate).0.contains("expires"), "{}", output(&gate).0);
        while boot() < end {
            if backend.due().is_some_and(|due| due <= Instant::now()) {
                backend.apply(&image).unwrap();
            }
        }
        let after = output(&gate).0;
        assert!(after.contains("timeout"), "{after}");
        assert!(!after.contains("expires"), "{after}");
    });
}

fn boot() -> u64 {
    clock::boot().unwrap().try_into().unwrap()
}

/// An nft that can be broken.
struct Wrapper {
    folder: tempfile::TempDir,
}

impl Wrapper {
    /// Does what `line` of shell says, then what nft does.
    fn new(line: &str) -> Self {
        let wrapper = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let script = format!("#!/bin/sh\n{line}\nexec nft \"$@\"\n");
        fs::write(wrapper.path("nft"), script).unwrap();
        fs::set_permissions(wrapper.path("nft"), Permissions::from_mode(0o755)).unwrap();
        wrapper
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> Nftables {
        Nftables::open(Nft::new(self.path("nft")), options()).unwrap()
    }

    fn break_it(&self) {
        fs::write(self.path("nft.broken"), "").unwrap();
    }

    fn mend(&self) {
        fs::remove_file(self.path("nft.broken")).unwrap();
    }
}

fn options() -> Options {
    Options {
        ports: vec![25, 2525],
        host: HostMode::Policy,
        guard: Some(Mark::DEFAULT),
        reject: Reject::Reset,
    }
}

fn open() -> Nftables {
    Nftables::open(Nft::default(), options()).unwrap()
}

fn builtin() -> MapImage {
    let closed = CustomerPolicy::new(
        Mode::Enforce,
        Blocked::Reject,
        Quarantine::No,
        SetId::NONE,
        SetId::NONE,
    );
    MapImage {
        customers: Customers::from([(CustomerId::UNASSIGNED, closed)]),
        ..MapImage::default()
    }
}

/// One customer with an interface, an allowlist of `nets` and exemptions of every kind.
fn image(customer: CustomerId, index: u32, nets: &[&str]) -> MapImage {
    let set = SetId::new(nets.join(",").len() as u64 * 7919).unwrap();
    let prefixes: Arc<[Prefix]> = nets
        .iter()
        .map(|net| Prefix::new(net.parse().unwrap(), 0))
        .collect();
    let exemptions = [
        Exemption::new(SetId::ANY, 0, u64::MAX / 2),
        Exemption::new(set, u64::MAX / 2, u64::MAX),
    ];
    let policy = CustomerPolicy::new(
        Mode::Enforce,
        Blocked::Drop,
        Quarantine::No,
        set,
        SetId::NONE,
    );
    let mut image = builtin();
    image
        .customers
        .insert(customer, &policy.with_exemptions(&exemptions).unwrap());
    Arc::make_mut(&mut image.sets).insert(set, prefixes);
    let owner = InterfaceOwner::new(customer, Counting::All);
    image.interfaces.insert(index, owner);
    image
}
