//! Who may newly send where: against the order of decision, moment by moment.

use std::collections::BTreeMap;
use std::net::IpAddr;

use gate25::access::{Grant, Shift, shifts};
use gate25::compile::compile;
use gate25::policy::{Blocked, Destinations, Mode, Policy};
use ipnet::IpNet;
use jiff::Timestamp;
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use proptest::sample::subsequence;

use super::oracle::{ADDRESSES, CUSTOMERS, any_policy, oracle};
use super::{allowlist, at, customer, exemption, listed, policy};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn access_that_changes_is_what_the_one_policy_lets_through_and_the_other_does_not(
        mut before in any_policy(),
        mut after in any_policy(),
        known in subsequence(&CUSTOMERS[..], 0..=3),
    ) {
        // Exemptions are of customers that there are.
        for policy in [&mut before, &mut after] {
            policy.exemptions.retain(|_, it| known.contains(&it.customer.as_str()));
        }
        before.customers.retain(|id, _| known.contains(&id.as_str()));
        let shifts = between(&before, &after);
        for second in 0..12 {
            for address in ADDRESSES {
                for subject in CUSTOMERS.into_iter().chain(["unassigned"]) {
                    let passes = |policy: &Policy| {
                        let verdict = oracle(policy, subject, address, at(second), false).verdict;
                        verdict == "allow" || verdict == "observe"
                    };
                    let (was, is) = (passes(&before), passes(&after));
                    let told = |grants: fn(&Shift) -> &Vec<Grant>| {
                        let mut own = shifts.iter().filter(|it| it.customers.contains(&subject.into()));
                        own.any(|shift| grants(shift).iter().any(|it| holds(it, address, second)))
                    };
                    let case = (subject, address, second);
                    prop_assert_eq!(told(|it| &it.opened), is && !was, "{:?} {:?}", case, shifts);
                    prop_assert_eq!(told(|it| &it.closed), was && !is, "{:?} {:?}", case, shifts);
                }
            }
        }
    }
}

#[test]
fn exemption_that_is_granted_is_told_with_its_time() {
    let before = base();
    let mut after = base();
    let to = listed(&["198.51.100.0/24"], &[]);
    let granted = exemption("c0", Some(at(100)), at(200), to);
    after.exemptions.insert("e".to_owned(), granted);
    let told = between(&before, &after);
    let expected = Shift {
        customers: vec!["c0".to_owned()],
        opened: vec![Grant {
            from: Some(at(100)),
            until: Some(at(200)),
            to: vec!["198.51.100.0/24".to_owned()],
            except: Vec::new(),
        }],
        closed: Vec::new(),
    };
    assert_eq!(told, [expected]);
    let back = between(&after, &before);
    assert_eq!(back[0].closed, told[0].opened);
    assert_eq!(back[0].opened, []);
}

#[test]
fn everything_but_what_was_open_already_is_told_as_such() {
    let mut before = base();
    before
        .allowlists
        .insert("l".to_owned(), allowlist(&["192.0.2.0/24"]));
    before.customers.get_mut("c0").unwrap().allow = vec!["l".to_owned()];
    let mut after = before.clone();
    let granted = exemption("c0", None, at(200), Destinations::Any);
    after.exemptions.insert("e".to_owned(), granted);
    let told = between(&before, &after);
    let [Shift { opened, .. }] = &told[..] else {
        panic!("{told:?}")
    };
    let [
        Grant {
            from: None,
            until,
            to,
            except,
        },
    ] = &opened[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!(*until, Some(at(200)));
    assert_eq!(
        (&to[..], &except[..]),
        (&["any".to_owned()][..], &["192.0.2.0/24".to_owned()][..])
    );
}

#[test]
fn what_is_said_in_another_way_changes_nothing() {
    let mut before = base();
    before
        .allowlists
        .insert("l".to_owned(), allowlist(&["192.0.2.0/24"]));
    let mut after = before.clone();
    let halves = allowlist(&["192.0.2.0/25", "192.0.2.128/25"]);
    after.allowlists.insert("m".to_owned(), halves);
    before.customers.get_mut("c0").unwrap().allow = vec!["l".to_owned()];
    after.customers.get_mut("c0").unwrap().allow = vec!["m".to_owned()];
    assert_eq!(between(&before, &after), []);
}

#[test]
fn customers_to_whom_the_same_happens_are_told_together() {
    let before = base();
    let mut after = base();
    after
        .allowlists
        .insert("l".to_owned(), allowlist(&["192.0.2.25/32"]));
    after.profiles.get_mut("default").unwrap().allow = vec!["l".to_owned()];
    let told = between(&before, &after);
    let [Shift { customers, .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(customers[..], ["c0", "c1", "unassigned"]);
}

#[test]
fn relay_that_others_are_led_to_is_open_and_observing_opens_everything() {
    let before = base();
    let mut after = base();
    let profile = after.profiles.get_mut("default").unwrap();
    profile.blocked = Blocked::Redirect;
    profile.relay.v4 = Some("192.0.2.25".parse().unwrap());
    let told = between(&before, &after);
    assert_eq!(told[0].opened[0].to, ["192.0.2.25"]);
    after.profiles.get_mut("default").unwrap().mode = Mode::Observe;
    assert_eq!(between(&before, &after)[0].opened[0].to, ["any"]);
}

fn base() -> Policy {
    let mut policy = policy();
    policy.customers =
        BTreeMap::from(["c0", "c1"].map(|id| (id.to_owned(), customer("default", &[], &[]))));
    policy
}

fn between(before: &Policy, after: &Policy) -> Vec<Shift> {
    let now = Timestamp::UNIX_EPOCH;
    shifts(
        &compile(before, now).unwrap(),
        &compile(after, now).unwrap(),
        now,
    )
}

/// Whether a grant is about the address at the moment.
fn holds(grant: &Grant, address: &str, second: i64) -> bool {
    let address: IpAddr = match address.strip_prefix("64:ff9b::") {
        Some(v4) => v4.parse().unwrap(),
        None => address.parse().unwrap(),
    };
    let within = |words: &[String]| {
        words.iter().any(|word| match word.as_str() {
            "any" => true,
            word => match word.parse::<IpNet>() {
                Ok(net) => net.contains(&address),
                Err(_) => word.parse::<IpAddr>().unwrap() == address,
            },
        })
    };
    let now = at(second);
    let in_time =
        grant.from.is_none_or(|from| from <= now) && grant.until.is_none_or(|it| now < it);
    in_time && within(&grant.to) && !within(&grant.except)
}
