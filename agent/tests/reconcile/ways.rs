//! Where connections are led, and when not.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use gate25::control::Shrink;
use gate25::dataplane::Site;
use gate25::kernel::routes::Way;
use gate25::reconcile::Noted;
use gate25::reconcile::files::Occasion;
use gate25_common::abi::CustomerId;
use gate25_common::address::Family;
use jiff::Timestamp;

use super::Lab;

/// Where the notice is to be told.
pub(super) const NOTICE: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 2525);
const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 25)), 25);
const REDIRECTED: &str = "schema: 1
profiles: [{name: default, blocked: redirect, relay: [192.0.2.25]}]
customers: [{id: a, workloads: [{interface: tap1i0}]}]
";
const TOLD: &str = "schema: 1
profiles: [{name: default, blocked: notice}]
customers: [{id: a, workloads: [{interface: tap1i0}]}]
";
/// The guest of the customer.
const GUEST: u32 = 3;
/// No guest's.
const UPLINK: u32 = 2;

thread_local! {
    static WAYS: RefCell<BTreeMap<IpAddr, Result<Way, String>>> = RefCell::default();
}

/// As the test has set it.
pub(super) fn way_to(address: IpAddr) -> Result<Way, String> {
    let way = WAYS.with_borrow(|ways| ways.get(&address).cloned());
    way.unwrap_or(Ok(Way::Nowhere))
}

fn set_way(to: SocketAddr, way: Result<Way, String>) {
    WAYS.with_borrow_mut(|ways| ways.insert(to.ip(), way));
}

impl Lab {
    fn led(text: &str) -> Self {
        let mut lab = Self::new();
        let set = lab.read_text(text);
        let occasion = Occasion::Request(Shrink::Refused);
        lab.reconciler.files(set, occasion, Timestamp::now());
        lab.converge();
        lab
    }

    /// Where the customer's connections are led.
    fn target(&self) -> Option<SocketAddr> {
        let kernel = self.kernel();
        let policy = kernel
            .installed
            .customers
            .get(&CustomerId::from_name("a"))
            .unwrap();
        let target = policy.target(Family::V4)?;
        let port = u16::from_be_bytes(target.port());
        Some(SocketAddr::new(target.address().into(), port))
    }

    #[track_caller]
    fn check_rejected(&self, why: &str) {
        assert_eq!(self.target(), None);
        let warnings = self.status().warnings;
        let said = warnings.iter().any(|it| it.contains(why));
        assert!(said, "{why}: {warnings:?}");
    }
}

#[test]
fn relay_is_used_while_the_way_there_leads_past_every_workload() {
    set_way(RELAY, Ok(Way::By(UPLINK)));
    let mut lab = Lab::led(REDIRECTED);
    assert_eq!(lab.target(), Some(RELAY));
    assert_eq!(lab.reconciler.ways(), Noted::Known);
    for (way, why) in [
        (
            Ok(Way::By(GUEST)),
            "192.0.2.25 is behind tap1i0, a workload",
        ),
        (Ok(Way::Nowhere), "there is no route to 192.0.2.25"),
        (Err("it was not said".to_owned()), "it was not said"),
    ] {
        set_way(RELAY, way);
        assert_eq!(lab.reconciler.ways(), Noted::News, "{why}");
        lab.converge();
        lab.check_rejected(why);
        assert_eq!(lab.reconciler.ways(), Noted::Known, "{why}");
    }
    set_way(RELAY, Ok(Way::Here));
    assert_eq!(lab.reconciler.ways(), Noted::News);
    lab.converge();
    assert_eq!(lab.target(), Some(RELAY));
    assert_eq!(lab.status().warnings, Vec::<String>::new());
}

#[test]
fn notice_is_led_to_while_it_is_told_and_replies_pass_all_the_while() {
    set_way(NOTICE, Ok(Way::Here));
    let mut lab = Lab::led(TOLD);
    assert_eq!(lab.target(), None);
    let replies = Site::Replies(GUEST);
    assert!(lab.kernel().covered.contains(&replies));
    let told = || BTreeSet::from([NOTICE]);
    assert_eq!(lab.reconciler.notice_told(told()), Noted::News);
    lab.converge();
    assert_eq!(lab.target(), Some(NOTICE));
    assert_eq!(lab.reconciler.notice_told(told()), Noted::Known);
    assert_eq!(lab.reconciler.notice_told(BTreeSet::new()), Noted::News);
    lab.converge();
    assert_eq!(lab.target(), None);
    assert!(lab.kernel().covered.contains(&replies));
}

#[test]
fn notice_at_an_address_of_others_is_told_nobody() {
    for way in [Way::By(UPLINK), Way::By(GUEST), Way::Nowhere] {
        set_way(NOTICE, Ok(way));
        let mut lab = Lab::led(TOLD);
        lab.reconciler.notice_told(BTreeSet::from([NOTICE]));
        lab.converge();
        lab.check_rejected("198.51.100.1 is not an address of this host");
    }
}
