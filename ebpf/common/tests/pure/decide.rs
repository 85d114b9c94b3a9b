//! The decision against the order of the design.

use gate25_common::abi::{
    Blocked, CustomerId, CustomerPolicy, Exemption, MAX_EXEMPTIONS, Mode, Quarantine, SetId,
};
use gate25_common::address::{Address, Family};
use gate25_common::decide::{
    CUSTOMER_SET, Decision, HostMode, Reason, Route, Subject, Verdict, decide,
};
use gate25_common::packet::{Form, Malformed};
use gate25_common::redirect::Target;
use gate25_common::testing::tables::MemoryTables;

const CUSTOMER: CustomerId = CustomerId::from_name("c-10042");
const NOW: u64 = 1_000_000;
const SMTP: [u8; 2] = [0, 25];
const ALWAYS: (u64, u64) = (0, u64::MAX);

fn set(number: u64) -> SetId {
    SetId::new(number).expect("not a reserved number")
}

fn v4(a: u8, b: u8, c: u8, d: u8) -> Address {
    Address::from_v4([a, b, c, d])
}

fn rules(mode: Mode, blocked: Blocked, quarantine: Quarantine) -> CustomerPolicy {
    CustomerPolicy::new(mode, blocked, quarantine, set(1), set(2))
}

fn enforced() -> CustomerPolicy {
    rules(Mode::Enforce, Blocked::Reject, Quarantine::No)
}

/// A customer's policy with the relays 192.0.2.25 (source 3 of the profile's set) and
/// 198.51.100.0/24 (source 4 of the customer's own).
fn tables(policy: CustomerPolicy) -> MemoryTables {
    let mut tables = MemoryTables {
        owner: Some(CUSTOMER),
        now: NOW,
        ..MemoryTables::default()
    };
    tables.policies.insert(CUSTOMER, policy);
    tables.insert(set(1), v4(192, 0, 2, 25), 128, 3);
    tables.insert(set(2), v4(198, 51, 100, 0), 120, 4);
    tables
}

fn exempt(exemptions: &[(SetId, (u64, u64))]) -> CustomerPolicy {
    let exemptions: Vec<_> = exemptions
        .iter()
        .map(|(set, (starts, expires))| Exemption::new(*set, *starts, *expires))
        .collect();
    enforced()
        .with_exemptions(&exemptions)
        .expect("not too many")
}

fn to(destination: Address) -> Subject {
    Subject::Guarded {
        destination,
        port: SMTP,
        route: Route::Direct,
        family: Family::V4,
        form: Form::Plain,
    }
}

const OUTSIDE: Address = Address::from_v4([203, 0, 113, 9]);
const RELAY: Address = Address::from_v4([192, 0, 2, 25]);
const OWN_RELAY: Address = Address::from_v4([198, 51, 100, 77]);

fn policy_mode(tables: &MemoryTables, subject: &Subject) -> Decision {
    decide(tables, HostMode::Policy, subject)
}

#[track_caller]
fn told(decision: Decision, verdict: Verdict, reason: Reason, entry: u16) {
    assert_eq!(
        (
            decision.verdict,
            decision.reason,
            decision.entry,
            decision.malformed
        ),
        (verdict, reason, entry, None)
    );
}

#[track_caller]
fn told_malformed(decision: Decision, verdict: Verdict, kind: Malformed) {
    assert_eq!(
        (
            decision.verdict,
            decision.reason,
            decision.entry,
            decision.malformed
        ),
        (verdict, Reason::Malformed, 0, Some(kind))
    );
}

#[test]
fn allowlist_of_the_profile_allows() {
    told(
        policy_mode(&tables(enforced()), &to(RELAY)),
        Verdict::Allow,
        Reason::Allowlist,
        3,
    );
}

#[test]
fn allowlist_of_the_customer_allows_and_says_so() {
    let decision = policy_mode(&tables(enforced()), &to(OWN_RELAY));
    told(
        decision,
        Verdict::Allow,
        Reason::Allowlist,
        4 | CUSTOMER_SET,
    );
    assert_eq!(decision.customer, CUSTOMER);
}

#[test]
fn allowlist_goes_before_exemption() {
    let tables = tables(exempt(&[(SetId::ANY, ALWAYS)]));
    told(
        policy_mode(&tables, &to(RELAY)),
        Verdict::Allow,
        Reason::Allowlist,
        3,
    );
    told(
        policy_mode(&tables, &to(OUTSIDE)),
        Verdict::Allow,
        Reason::Exemption,
        0,
    );
}

#[test]
fn profile_decides_what_nothing_allows() {
    for (blocked, verdict) in [
        (Blocked::Reject, Verdict::Reject),
        (Blocked::Drop, Verdict::Drop),
    ] {
        let tables = tables(rules(Mode::Enforce, blocked, Quarantine::No));
        told(
            policy_mode(&tables, &to(OUTSIDE)),
            verdict,
            Reason::Profile,
            0,
        );
    }
}

#[test]
fn workload_without_owner_is_unassigned_and_has_its_own_policy() {
    let mut tables = tables(enforced()).owned_by(None);
    let drops = rules(Mode::Enforce, Blocked::Drop, Quarantine::No);
    tables.policies.insert(CustomerId::UNASSIGNED, drops);
    let decision = policy_mode(&tables, &to(OUTSIDE));
    told(decision, Verdict::Drop, Reason::Unassigned, 0);
    assert_eq!(decision.customer, CustomerId::UNASSIGNED);
    told(
        policy_mode(&tables, &to(RELAY)),
        Verdict::Allow,
        Reason::Allowlist,
        3,
    );
}

#[test]
fn quarantine_closes_everything_relays_and_exemptions_included() {
    for (blocked, verdict) in [
        (Blocked::Reject, Verdict::Reject),
        (Blocked::Drop, Verdict::Drop),
    ] {
        let policy = rules(Mode::Enforce, blocked, Quarantine::Yes)
            .with_exemptions(&[Exemption::new(SetId::ANY, 0, u64::MAX)])
            .expect("one");
        for destination in [RELAY, OWN_RELAY, OUTSIDE] {
            told(
                policy_mode(&tables(policy), &to(destination)),
                verdict,
                Reason::Quarantine,
                0,
            );
        }
        let routed = Subject::Guarded {
            destination: RELAY,
            port: SMTP,
            route: Route::SourceRouted,
            family: Family::V4,
            form: Form::Plain,
        };
        told(
            policy_mode(&tables(policy), &routed),
            verdict,
            Reason::Quarantine,
            0,
        );
    }
}

#[test]
fn source_route_closes_even_what_is_allowed() {
    for (blocked, verdict) in [
        (Blocked::Reject, Verdict::Reject),
        (Blocked::Drop, Verdict::Drop),
    ] {
        let policy = rules(Mode::Enforce, blocked, Quarantine::No)
            .with_exemptions(&[Exemption::new(SetId::ANY, 0, u64::MAX)])
            .expect("one");
        for destination in [RELAY, OWN_RELAY, OUTSIDE] {
            let routed = Subject::Guarded {
                destination,
                port: SMTP,
                route: Route::SourceRouted,
                family: Family::V4,
                form: Form::Plain,
            };
            told_malformed(
                policy_mode(&tables(policy), &routed),
                verdict,
                Malformed::SourceRoute,
            );
        }
    }
}

#[test]
fn malformed_packets_are_dropped_and_never_answered() {
    for kind in Malformed::ALL {
        for quarantine in [Quarantine::No, Quarantine::Yes] {
            let tables = tables(rules(Mode::Enforce, Blocked::Reject, quarantine));
            told_malformed(
                policy_mode(&tables, &Subject::Malformed(kind)),
                Verdict::Drop,
                kind,
            );
        }
    }
}

/// Every refusal there is.
fn refusals() -> Vec<(MemoryTables, Subject)> {
    let mut refusals = Vec::new();
    for mode in [Mode::Enforce, Mode::Observe] {
        for blocked in [Blocked::Reject, Blocked::Drop] {
            for quarantine in [Quarantine::No, Quarantine::Yes] {
                let tables = tables(rules(mode, blocked, quarantine));
                let routed = Subject::Guarded {
                    destination: RELAY,
                    port: SMTP,
                    route: Route::SourceRouted,
                    family: Family::V4,
                    form: Form::Plain,
                };
                refusals.push((tables.clone(), to(OUTSIDE)));
                refusals.push((tables.clone(), routed));
                for kind in Malformed::ALL {
                    refusals.push((tables.clone(), Subject::Malformed(kind)));
                }
            }
        }
    }
    refusals
}

#[test]
fn host_that_observes_lets_every_refusal_pass_and_keeps_its_reason() {
    for (tables, subject) in refusals() {
        let refused = policy_mode(&tables, &subject);
        let observed = decide(&tables, HostMode::Observe, &subject);
        assert_eq!(
            observed,
            Decision {
                verdict: Verdict::Observe,
                ..refused
            }
        );
    }
}

#[test]
fn profile_that_observes_lets_every_refusal_pass_and_keeps_its_reason() {
    for (mut tables, subject) in refusals() {
        let policy = tables.policies[&CUSTOMER];
        let quarantine = policy.quarantine().expect("valid");
        let blocked = policy.blocked().expect("valid");
        tables
            .policies
            .insert(CUSTOMER, rules(Mode::Enforce, blocked, quarantine));
        let enforced = policy_mode(&tables, &subject);
        assert_ne!(enforced.verdict, Verdict::Observe);
        tables
            .policies
            .insert(CUSTOMER, rules(Mode::Observe, blocked, quarantine));
        let observed = policy_mode(&tables, &subject);
        assert_eq!(
            observed,
            Decision {
                verdict: Verdict::Observe,
                ..enforced
            }
        );
    }
}

#[test]
fn observing_does_not_change_what_is_allowed() {
    let tables = tables(rules(Mode::Observe, Blocked::Reject, Quarantine::No));
    for host in [HostMode::Policy, HostMode::Observe] {
        told(
            decide(&tables, host, &to(RELAY)),
            Verdict::Allow,
            Reason::Allowlist,
            3,
        );
    }
}

#[test]
fn exemption_holds_from_its_start_until_just_before_its_end() {
    let (starts, expires) = (5_000, 9_000);
    for (now, verdict) in [
        (0, Verdict::Reject),
        (starts - 1, Verdict::Reject),
        (starts, Verdict::Allow),
        (expires - 1, Verdict::Allow),
        (expires, Verdict::Reject),
        (u64::MAX, Verdict::Reject),
    ] {
        let mut tables = tables(exempt(&[(SetId::ANY, (starts, expires))]));
        tables.now = now;
        assert_eq!(
            policy_mode(&tables, &to(OUTSIDE)).verdict,
            verdict,
            "at {now}"
        );
    }
}

#[test]
fn exemption_that_ends_before_it_starts_never_holds() {
    for now in [0, 5, 7, 10] {
        let mut tables = tables(exempt(&[(SetId::ANY, (10, 5))]));
        tables.now = now;
        assert_eq!(policy_mode(&tables, &to(OUTSIDE)).verdict, Verdict::Reject);
    }
}

/// Sets 10, 11 and 12 hold 203.0.113.0/24, 203.0.0.0/16 and 203.0.113.9.
fn nested(order: &[u64]) -> MemoryTables {
    let exemptions: Vec<_> = order.iter().map(|number| (set(*number), ALWAYS)).collect();
    let mut tables = tables(exempt(&exemptions));
    tables.insert(set(10), v4(203, 0, 113, 0), 120, 0);
    tables.insert(set(11), v4(203, 0, 0, 0), 112, 0);
    tables.insert(set(12), OUTSIDE, 128, 0);
    tables
}

#[test]
fn longest_prefix_decides_among_exemptions() {
    for (order, slot) in [
        (&[10, 11, 12][..], 2),
        (&[12, 11, 10], 0),
        (&[11, 12, 10], 1),
        (&[11, 10], 1),
        (&[10, 11], 0),
    ] {
        let decision = policy_mode(&nested(order), &to(OUTSIDE));
        told(decision, Verdict::Allow, Reason::Exemption, slot);
    }
}

#[test]
fn first_slot_decides_among_equal_prefixes() {
    for order in [&[10, 10][..], &[12, 12, 12], &[11, 10, 10]] {
        let slot = (order.len() - 2) as u16;
        let slot = if order[0] == order[1] { 0 } else { slot };
        told(
            policy_mode(&nested(order), &to(OUTSIDE)),
            Verdict::Allow,
            Reason::Exemption,
            slot,
        );
    }
}

#[test]
fn any_is_the_shortest_prefix() {
    let mut tables = nested(&[10]);
    let policy = exempt(&[
        (SetId::ANY, ALWAYS),
        (set(11), ALWAYS),
        (SetId::ANY, ALWAYS),
    ]);
    tables.policies.insert(CUSTOMER, policy);
    told(
        policy_mode(&tables, &to(OUTSIDE)),
        Verdict::Allow,
        Reason::Exemption,
        1,
    );
    told(
        policy_mode(&tables, &to(v4(8, 8, 8, 8))),
        Verdict::Allow,
        Reason::Exemption,
        0,
    );
}

#[test]
fn expired_exemption_does_not_hide_one_that_holds() {
    let mut tables = nested(&[10]);
    let policy = exempt(&[
        (set(12), (0, NOW)),
        (set(12), (NOW + 1, u64::MAX)),
        (set(11), ALWAYS),
    ]);
    tables.policies.insert(CUSTOMER, policy);
    told(
        policy_mode(&tables, &to(OUTSIDE)),
        Verdict::Allow,
        Reason::Exemption,
        2,
    );
}

#[test]
fn exemption_for_other_destinations_does_not_help() {
    let tables = nested(&[10, 12]);
    told(
        policy_mode(&tables, &to(v4(203, 0, 112, 9))),
        Verdict::Reject,
        Reason::Profile,
        0,
    );
}

#[test]
fn every_slot_can_decide() {
    for deciding in 0..MAX_EXEMPTIONS {
        let exemptions: Vec<_> = (0..MAX_EXEMPTIONS)
            .map(|slot| (set(if slot == deciding { 12 } else { 13 }), ALWAYS))
            .collect();
        let mut tables = nested(&[]);
        tables.policies.insert(CUSTOMER, exempt(&exemptions));
        let decision = policy_mode(&tables, &to(OUTSIDE));
        told(decision, Verdict::Allow, Reason::Exemption, deciding as u16);
    }
}

#[test]
fn more_exemptions_than_there_is_room_for_are_refused() {
    let one = Exemption::new(SetId::ANY, 0, u64::MAX);
    assert!(enforced().with_exemptions(&[one; MAX_EXEMPTIONS]).is_some());
    assert!(
        enforced()
            .with_exemptions(&[one; MAX_EXEMPTIONS + 1])
            .is_none()
    );
}

#[test]
fn sets_of_nothing_allow_nothing() {
    let closed = CustomerPolicy::new(
        Mode::Enforce,
        Blocked::Reject,
        Quarantine::No,
        SetId::NONE,
        SetId::NONE,
    );
    let exempted = closed
        .with_exemptions(&[Exemption::new(SetId::NONE, 0, u64::MAX), Exemption::EMPTY])
        .expect("two");
    for policy in [closed, exempted] {
        let mut tables = tables(policy);
        // Were it looked up, it would be found.
        tables.insert(SetId::NONE, v4(0, 0, 0, 0), 0, 0);
        told(
            policy_mode(&tables, &to(OUTSIDE)),
            Verdict::Reject,
            Reason::Profile,
            0,
        );
    }
}

#[test]
fn set_of_everything_allows_everything() {
    let open = |profile, customer| {
        CustomerPolicy::new(
            Mode::Enforce,
            Blocked::Reject,
            Quarantine::No,
            profile,
            customer,
        )
    };
    let decision = policy_mode(&tables(open(SetId::ANY, SetId::NONE)), &to(OUTSIDE));
    told(decision, Verdict::Allow, Reason::Allowlist, 0);
    let decision = policy_mode(&tables(open(SetId::NONE, SetId::ANY)), &to(OUTSIDE));
    told(decision, Verdict::Allow, Reason::Allowlist, CUSTOMER_SET);
}

#[test]
fn missing_policy_closes_and_says_lookup() {
    for owner in [None, Some(CUSTOMER), Some(CustomerId::from_name("gone"))] {
        let mut tables = tables(enforced()).owned_by(owner);
        tables.policies.clear();
        for subject in [
            to(RELAY),
            to(OUTSIDE),
            Subject::Malformed(Malformed::Truncated),
        ] {
            told_malformed(
                policy_mode(&tables, &subject),
                Verdict::Drop,
                Malformed::Lookup,
            );
            let observed = decide(&tables, HostMode::Observe, &subject);
            told_malformed(observed, Verdict::Observe, Malformed::Lookup);
        }
    }
}

/// A policy as it would be read from a table that something else wrote to.
fn corrupted(at: usize, byte: u8) -> CustomerPolicy {
    let mut bytes: [u8; size_of::<CustomerPolicy>()] =
        // SAFETY: integers and byte arrays with explicit padding.
        unsafe { core::mem::transmute(enforced()) };
    bytes[at] = byte;
    // SAFETY: every bit pattern is a value.
    unsafe { core::mem::transmute(bytes) }
}

#[test]
fn bytes_that_no_agent_writes_close() {
    for at in 0..3 {
        let known = if at == 1 { 1..=4 } else { 1..=2 };
        for byte in (0..=255).filter(|byte| !known.contains(byte)) {
            let tables = tables(corrupted(at, byte));
            for destination in [RELAY, OUTSIDE] {
                let decision = policy_mode(&tables, &to(destination));
                told_malformed(decision, Verdict::Drop, Malformed::Lookup);
            }
        }
    }
}

#[test]
fn count_of_exemptions_beyond_the_table_opens_nothing() {
    let tables = tables(corrupted(3, 255));
    told(
        policy_mode(&tables, &to(OUTSIDE)),
        Verdict::Reject,
        Reason::Profile,
        0,
    );
}

const TARGET_V4: Address = Address::from_v4([192, 0, 2, 99]);

fn target_v6() -> Address {
    Address::from_v6([0x20, 1, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99])
}

/// A policy that redirects to 192.0.2.99 and `2001:db8:9::99`, ports 25.
fn redirecting() -> CustomerPolicy {
    let v4 = Target::new(TARGET_V4, SMTP).expect("a port");
    let v6 = Target::new(target_v6(), SMTP).expect("a port");
    rules(Mode::Enforce, Blocked::Redirect, Quarantine::No).with_targets(v4, v6)
}

fn at(destination: Address, port: u16, family: Family, form: Form) -> Subject {
    Subject::Guarded {
        destination,
        port: port.to_be_bytes(),
        route: Route::Direct,
        family,
        form,
    }
}

#[test]
fn profile_that_redirects_sends_away_what_nothing_allows() {
    let tables = tables(redirecting());
    for subject in [
        to(OUTSIDE),
        at(OUTSIDE, 465, Family::V4, Form::Plain),
        // By NAT64: an IPv6 packet to an IPv4 address.
        at(OUTSIDE, 25, Family::V6, Form::Plain),
    ] {
        let decision = policy_mode(&tables, &subject);
        told(decision, Verdict::Redirect, Reason::Profile, 0);
    }
    told(
        policy_mode(&tables, &to(RELAY)),
        Verdict::Allow,
        Reason::Allowlist,
        3,
    );
}

#[test]
fn target_itself_is_let_through_on_its_port_only() {
    let tables = tables(redirecting());
    for (target, family) in [(TARGET_V4, Family::V4), (target_v6(), Family::V6)] {
        let through = policy_mode(&tables, &at(target, 25, family, Form::Unusual));
        told(through, Verdict::Allow, Reason::Profile, 0);
        let other = policy_mode(&tables, &at(target, 465, family, Form::Plain));
        told(other, Verdict::Reject, Reason::Profile, 0);
    }
    // The other family's target by NAT64 is no place to send elsewhere either.
    let other = policy_mode(&tables, &at(TARGET_V4, 25, Family::V6, Form::Plain));
    told(other, Verdict::Reject, Reason::Profile, 0);
}

#[test]
fn what_cannot_be_redirected_is_rejected() {
    let unusual = at(OUTSIDE, 25, Family::V4, Form::Unusual);
    let decision = policy_mode(&tables(redirecting()), &unusual);
    told(decision, Verdict::Reject, Reason::Profile, 0);
    let v4 = Target::new(TARGET_V4, SMTP).expect("a port");
    let one = tables(redirecting().with_targets(v4, Target::NONE));
    let outside = at(target_v6(), 25, Family::V6, Form::Plain);
    told(
        policy_mode(&one, &outside),
        Verdict::Reject,
        Reason::Profile,
        0,
    );
    let none = tables(redirecting().with_targets(Target::NONE, Target::NONE));
    told(
        policy_mode(&none, &to(OUTSIDE)),
        Verdict::Reject,
        Reason::Profile,
        0,
    );
    // An address of zeros is no target's.
    let zeros = at(Address::from_words([0; 4]), 0, Family::V6, Form::Plain);
    told(
        policy_mode(&none, &zeros),
        Verdict::Reject,
        Reason::Profile,
        0,
    );
}

#[test]
fn quarantine_form_and_observation_redirect_nothing() {
    let v4 = Target::new(TARGET_V4, SMTP).expect("a port");
    let quarantined = rules(Mode::Enforce, Blocked::Redirect, Quarantine::Yes);
    let quarantined = tables(quarantined.with_targets(v4, Target::NONE));
    for destination in [OUTSIDE, TARGET_V4] {
        let decision = policy_mode(&quarantined, &to(destination));
        told(decision, Verdict::Reject, Reason::Quarantine, 0);
    }
    let truncated = Subject::Malformed(Malformed::Truncated);
    let decision = policy_mode(&tables(redirecting()), &truncated);
    told_malformed(decision, Verdict::Drop, Malformed::Truncated);
    let routed = Subject::Guarded {
        destination: OUTSIDE,
        port: SMTP,
        route: Route::SourceRouted,
        family: Family::V4,
        form: Form::Plain,
    };
    let decision = policy_mode(&tables(redirecting()), &routed);
    told_malformed(decision, Verdict::Reject, Malformed::SourceRoute);
    let watched = rules(Mode::Observe, Blocked::Redirect, Quarantine::No);
    let watched = tables(watched.with_targets(v4, Target::NONE));
    let decision = policy_mode(&watched, &to(OUTSIDE));
    told(decision, Verdict::Observe, Reason::Profile, 0);
}

#[test]
fn profile_with_a_notice_sends_away_what_nothing_allows_and_rejects_what_it_cannot() {
    const PORT: [u8; 2] = 2525u16.to_be_bytes();
    let v4 = Target::new(TARGET_V4, PORT).expect("a port");
    let noticing = rules(Mode::Enforce, Blocked::Notice, Quarantine::No);
    let noticing = tables(noticing.with_targets(v4, Target::NONE));
    for (subject, verdict) in [
        (to(OUTSIDE), Verdict::Notice),
        (at(OUTSIDE, 465, Family::V4, Form::Plain), Verdict::Notice),
        // Nobody answers over IPv6, and such headers are not rewritten.
        (at(OUTSIDE, 25, Family::V6, Form::Plain), Verdict::Reject),
        (at(OUTSIDE, 25, Family::V4, Form::Unusual), Verdict::Reject),
        // Another port of who answers was asked for by name.
        (to(TARGET_V4), Verdict::Reject),
    ] {
        told(
            policy_mode(&noticing, &subject),
            verdict,
            Reason::Profile,
            0,
        );
    }
    let quarantined = rules(Mode::Enforce, Blocked::Notice, Quarantine::Yes);
    let quarantined = tables(quarantined.with_targets(v4, Target::NONE));
    let decision = policy_mode(&quarantined, &to(OUTSIDE));
    told(decision, Verdict::Reject, Reason::Quarantine, 0);
}

/// What the kernel makes of a decision while the host is bypassed is what a host that observes decides.
#[test]
fn decision_that_is_observed_is_that_of_a_host_that_observes() {
    let target = Target::new(OUTSIDE, [0, 25]).expect("a port");
    let subjects = [OUTSIDE, RELAY, OWN_RELAY, v4(203, 0, 113, 10)].map(to);
    let routed = Subject::Guarded {
        destination: RELAY,
        port: SMTP,
        route: Route::SourceRouted,
        family: Family::V4,
        form: Form::Plain,
    };
    let malformed = Malformed::ALL.map(Subject::Malformed);
    let subjects: Vec<Subject> = subjects
        .into_iter()
        .chain([routed])
        .chain(malformed)
        .collect();
    let mut seen = Vec::new();
    for mode in [Mode::Enforce, Mode::Observe] {
        for blocked in [
            Blocked::Reject,
            Blocked::Drop,
            Blocked::Redirect,
            Blocked::Notice,
        ] {
            for quarantine in [Quarantine::No, Quarantine::Yes] {
                for exempt in [&[][..], &[Exemption::new(SetId::ANY, 0, NOW + 1)]] {
                    let policy =
                        rules(mode, blocked, quarantine).with_targets(target, Target::NONE);
                    let policy = policy.with_exemptions(exempt).expect("not too many");
                    let mut tables = tables(policy);
                    for owner in [Some(CUSTOMER), Some(CustomerId::from_raw(7)), None] {
                        tables.owner = owner;
                        for subject in &subjects {
                            let decided = policy_mode(&tables, subject);
                            let expected = decide(&tables, HostMode::Observe, subject);
                            assert_eq!(decided.observed(), expected, "{decided:?}");
                            assert!(!expected.verdict.refuses());
                            seen.push(decided.verdict);
                        }
                    }
                }
            }
        }
    }
    for verdict in Verdict::ALL {
        // No limiter is there yet.
        assert_eq!(
            seen.contains(&verdict),
            verdict != Verdict::Throttle,
            "{verdict:?}"
        );
    }
}
