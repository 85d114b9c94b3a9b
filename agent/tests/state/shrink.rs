//! The guard against sets that shrink.

use gate25::policy::Policy;
use gate25::policy::loader::{Circumstances, Loader, Purpose, SourceFile};
use gate25::policy::shrink::{Kind, Limits, Loss, Totals, check};
use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

const LIMITS: Limits = Limits {
    max_percent: 50,
    min_objects: 20,
};

#[test]
fn totals_count_what_is_in_force_at_the_moment() {
    let policy = policy(
        "schema: 1
profiles: [{name: default}]
allowlists:
  - {name: l, to: [192.0.2.1, 192.0.2.2]}
  - {name: m, to: [192.0.2.1, \"2001:db8::/64\"]}
customers: [{id: a}, {id: b}, {id: c}]
exemptions:
  - {id: all, customer: a, reason: r, ticket: t, approved_by: n, to: any,
     starts: 2026-11-10T00:00:00Z, expires: 2026-11-20T00:00:00Z}
  - {id: some, customer: b, reason: r, ticket: t, approved_by: n, to: [l, 198.51.100.0/24, 198.51.100.7],
     starts: 2026-11-15T00:00:00Z, expires: 2026-11-25T00:00:00Z}
",
    );
    let at = |day: &str, active_exemptions, prefixes| {
        let now = format!("2026-11-{day}").parse().unwrap();
        let expected = Totals {
            customers: 3,
            active_exemptions,
            prefixes,
        };
        assert_eq!(Totals::of(&policy, now), expected, "{day}");
    };
    at("09T23:59:59Z", 0, 6);
    at("10T00:00:00Z", 1, 6);
    at("14T23:59:59Z", 1, 6);
    at("15T00:00:00Z", 2, 6);
    at("19T23:59:59Z", 2, 6);
    at("20T00:00:00Z", 1, 6);
    at("24T23:59:59Z", 1, 6);
    at("25T00:00:00Z", 0, 4);
}

#[test]
fn exemptions_that_ended_are_no_loss_whether_they_stay_as_history_or_go() {
    let text = |count: usize, expires: &str| {
        let mut text = "schema: 1\nprofiles: [{name: default}]\n".to_owned();
        text += "customers: [{id: a}, {id: b}]\nexemptions:\n";
        for number in 0..count {
            let customer = if number % 2 == 0 { "a" } else { "b" };
            text += &format!(
                "  - {{id: e{number}, customer: {customer}, reason: r, ticket: t, approved_by: n, \
                 to: [198.51.100.{number}], starts: 2026-11-01T00:00:00Z, expires: {expires}}}\n"
            );
        }
        policy(&text)
    };
    let limits = Limits {
        max_percent: 1,
        min_objects: 1,
    };
    let now = "2026-11-23T12:00:00Z".parse().unwrap();
    let before = text(8, "2026-11-23T12:00:00Z");
    for after in [
        text(8, "2026-11-23T12:00:00Z"),
        text(1, "2026-11-23T12:00:00Z"),
    ] {
        let (before, after) = (Totals::of(&before, now), Totals::of(&after, now));
        assert_eq!(check(before, after, limits), Ok(()));
    }
    // While they hold, going is a loss.
    let before = Totals::of(&text(8, "2026-12-01T00:00:00Z"), now);
    let after = Totals::of(&text(1, "2026-12-01T00:00:00Z"), now);
    let refused = check(before, after, limits).unwrap_err();
    let kinds: Vec<_> = refused.losses.iter().map(|loss| loss.kind).collect();
    assert_eq!(kinds, [Kind::ActiveExemptions, Kind::Prefixes]);
}

#[test]
fn loss_of_exactly_the_limit_passes_and_one_more_is_refused() {
    assert_eq!(customers(100, 50, LIMITS), Ok(()));
    assert_eq!(customers(100, 49, LIMITS), Err((100, 49)));
    assert_eq!(customers(101, 51, LIMITS), Ok(()));
    assert_eq!(customers(101, 50, LIMITS), Err((101, 50)));
}

#[test]
fn few_objects_are_not_judged() {
    assert_eq!(customers(19, 0, LIMITS), Ok(()));
    assert_eq!(customers(20, 0, LIMITS), Err((20, 0)));
}

#[test]
fn growth_and_a_limit_of_a_hundred_percent_are_never_refused() {
    assert_eq!(customers(20, u64::MAX, LIMITS), Ok(()));
    for max_percent in [100, 255] {
        let limits = Limits {
            max_percent,
            min_objects: 0,
        };
        assert_eq!(customers(u64::MAX, 0, limits), Ok(()));
    }
}

#[test]
fn refusal_names_every_kind_with_its_numbers_and_the_way_out() {
    let before = Totals {
        customers: 120,
        active_exemptions: 40,
        prefixes: 900,
    };
    let after = Totals {
        customers: 3,
        active_exemptions: 30,
        prefixes: 0,
    };
    let refused = check(before, after, LIMITS).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the policy set loses more than 50 % of what was there: customers from 120 to 3, prefixes \
         from 900 to 0; if that is meant, `gate25 reload --accept-shrink` puts it in force"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_kind_is_judged_by_itself_as_the_oracle_does(
        before in any::<[u16; 3]>(),
        after in any::<[u16; 3]>(),
        max_percent in 1..=100_u8,
        min_objects in any::<u16>(),
    ) {
        let totals = |[customers, active_exemptions, prefixes]: [u16; 3]| Totals {
            customers: customers.into(),
            active_exemptions: active_exemptions.into(),
            prefixes: prefixes.into(),
        };
        let limits = Limits { max_percent, min_objects: min_objects.into() };
        let kinds = [Kind::Customers, Kind::ActiveExemptions, Kind::Prefixes];
        let expected: Vec<Loss> = kinds
            .into_iter()
            .zip(before.into_iter().zip(after))
            .filter(|(_, (before, after))| {
                *before >= min_objects && after < before && before - after > may_lose(*before, max_percent)
            })
            .map(|(kind, (before, after))| Loss { kind, before: before.into(), after: after.into() })
            .collect();
        let found = check(totals(before), totals(after), limits).map_err(|refused| refused.losses);
        prop_assert_eq!(found, if expected.is_empty() { Ok(()) } else { Err(expected) });
    }

    #[test]
    fn large_numbers_are_exact(quarter in 1..=u64::MAX / 4, percent in 1..4_u64) {
        // A loss of percent times 25 %, and of one more.
        let before = quarter * 4;
        let after = before - quarter * percent;
        let limits = Limits { max_percent: (percent * 25) as u8, min_objects: 0 };
        prop_assert_eq!(customers(before, after, limits), Ok(()));
        prop_assert_eq!(customers(before, after - 1, limits), Err((before, after - 1)));
    }
}

/// The most of `before` objects that are no more than `max_percent` of them: counted up, a hundred
/// shares at a time.
fn may_lose(before: u16, max_percent: u8) -> u16 {
    let shares = u32::from(before) * u32::from(max_percent);
    let (mut objects, mut taken) = (0, 100);
    while taken <= shares {
        taken += 100;
        objects += 1;
    }
    objects
}

fn customers(before: u64, after: u64, limits: Limits) -> Result<(), (u64, u64)> {
    let totals = |customers| Totals {
        customers,
        ..Totals::default()
    };
    check(totals(before), totals(after), limits).map_err(|refused| {
        assert_eq!(refused.losses.len(), 1);
        let Loss {
            kind,
            before,
            after,
        } = refused.losses[0];
        assert_eq!(kind, Kind::Customers);
        (before, after)
    })
}

#[track_caller]
fn policy(text: &str) -> Policy {
    let file = SourceFile {
        path: std::path::Path::new("a.yaml").into(),
        bytes: text.as_bytes().into(),
    };
    let circumstances = Circumstances {
        purpose: Purpose::Run,
        now: "2026-11-01T00:00:00Z".parse().unwrap(),
        // Good enough for names of one letter.
        customer_key: |id| id.bytes().map(u64::from).sum(),
    };
    match Loader::default().load(&[file], &circumstances) {
        Ok(loaded) => loaded.policy,
        Err(refused) => panic!("{:?}", refused.diagnostics),
    }
}
