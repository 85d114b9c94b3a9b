//! Globs against oracles that are slow and plainly right.

use proptest::prelude::*;

use gate25::policy::Pattern;
use gate25::policy::loader::{Loader, Purpose};

use super::{DEFAULT, circumstances, file};

/// What a glob matches, by its definition.
pub(super) fn oracle(glob: &[char], name: &[char]) -> bool {
    match (glob, name) {
        ([], []) => true,
        (['*', rest @ ..], _) => {
            oracle(rest, name)
                || matches!(name, [first, tail @ ..] if *first != '/' && oracle(glob, tail))
        }
        (['?', rest @ ..], [first, tail @ ..]) => *first != '/' && oracle(rest, tail),
        ([want, rest @ ..], [first, tail @ ..]) => want == first && oracle(rest, tail),
        ([], [_, ..]) | ([_, ..], []) => false,
    }
}

/// The shortest common name over a small alphabet, found by trying all of them.
fn shortest_by_trial(a: &Pattern, b: &Pattern, alphabet: &[char], longest: usize) -> Option<usize> {
    let mut names = vec![String::new()];
    for length in 0..=longest {
        if names.iter().any(|name| a.matches(name) && b.matches(name)) {
            return Some(length);
        }
        names = names
            .iter()
            .flat_map(|name| alphabet.iter().map(move |c| format!("{name}{c}")))
            .collect();
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pattern_matches_what_the_definition_says(
        glob in "[ab/*?ä]{0,8}",
        name in "[ab/ä]{0,8}",
    ) {
        let globs: Vec<_> = glob.chars().collect();
        let names: Vec<_> = name.chars().collect();
        prop_assert_eq!(Pattern::new(glob).matches(&name), oracle(&globs, &names));
    }

    #[test]
    fn matching_names_begin_and_end_with_the_literal_ends(glob in "[ab*?]{0,6}", name in "[ab]{0,6}") {
        let pattern = Pattern::new(glob);
        if pattern.matches(&name) {
            prop_assert!(name.starts_with(pattern.literal_prefix()));
            prop_assert!(name.ends_with(pattern.literal_suffix()));
            prop_assert!(pattern.shortest() <= name.len());
        }
    }

    #[test]
    fn shortest_common_name_is_what_trial_finds(a in "[ab/*?]{0,4}", b in "[ab/*?]{0,4}") {
        let (a, b) = (Pattern::new(a), Pattern::new(b));
        // `c` is what neither pattern names.
        let found = shortest_by_trial(&a, &b, &['a', 'b', 'c', '/'], 6);
        let computed = a.shortest_common(&b);
        prop_assert_eq!(computed.filter(|length| *length <= 6), found);
        prop_assert_eq!(b.shortest_common(&a), computed);
    }
}

#[test]
fn pattern_full_of_stars_is_quick_on_a_long_name() {
    let pattern = Pattern::new("a*".repeat(100) + "b");
    let begin = std::time::Instant::now();
    assert!(!pattern.matches(&"a".repeat(10_000)));
    assert!(begin.elapsed().as_secs() < 10);
}

#[test]
fn pattern_of_the_design_matches_its_guests_only() {
    let pattern = Pattern::new("tap101i*");
    assert!(pattern.matches("tap101i0"));
    assert!(pattern.matches("tap101i"));
    assert!(!pattern.matches("tap1011i0"));
    assert!(!pattern.matches("xtap101i0"));
}

#[test]
fn ten_thousand_patterns_are_compared_quickly() {
    for shape in ["lxc/N", "lxc/N-*", "*/N", "lxc/*-N", "lxc/*/N/?", "*/N-*/*"] {
        let mut text = "schema: 1\ncustomers:\n".to_owned();
        for number in 0..10_000 {
            let glob = shape.replace('N', &format!("c{number:05}x"));
            text += &format!("  - {{id: c{number}, workloads: [{{cgroup: \"{glob}\"}}]}}\n");
        }
        let set = [file("a.yaml", text), file("default.yaml", DEFAULT)];
        let begin = std::time::Instant::now();
        let loaded = Loader::default().load(&set, &circumstances(Purpose::Check));
        let elapsed = begin.elapsed();
        assert!(loaded.is_ok(), "{shape}");
        assert!(elapsed.as_secs() < 10, "{shape}: {elapsed:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The index that finds conflicts must find what comparing all pairs finds.
    #[test]
    fn conflicts_are_found_as_by_comparing_all_pairs(
        globs in prop::collection::vec("[ab?*]{1,4}", 1..8),
    ) {
        let mut text = "schema: 1\ncustomers:\n".to_owned();
        for (number, glob) in globs.iter().enumerate() {
            text += &format!("  - {{id: c{number}, workloads: [{{interface: \"{glob}\"}}]}}\n");
        }
        let set = [file("a.yaml", text), file("default.yaml", DEFAULT)];
        let found = match Loader::default().load(&set, &circumstances(Purpose::Check)) {
            Ok(_) => 0,
            Err(refused) => refused.errors(),
        };
        let patterns: Vec<_> = globs.iter().map(Pattern::new).collect();
        let pairs = (0..patterns.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        let expected = pairs
            .filter(|(a, b)| {
                shortest_by_trial(&patterns[*a], &patterns[*b], &['a', 'b', 'c'], 6).is_some()
            })
            .count();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn conflicts_on_cgroups_are_found_as_by_comparing_all_pairs(
        globs in prop::collection::vec("[ab?*]{1,2}(/[ab?*]{1,2}){0,1}", 1..8),
    ) {
        let globs: Vec<_> = globs.into_iter().map(|glob| glob.replace("**", "*")).collect();
        let mut text = "schema: 1\ncustomers:\n".to_owned();
        for (number, glob) in globs.iter().enumerate() {
            text += &format!("  - {{id: c{number}, workloads: [{{cgroup: \"{glob}\"}}]}}\n");
        }
        let set = [file("a.yaml", text), file("default.yaml", DEFAULT)];
        let found = match Loader::default().load(&set, &circumstances(Purpose::Check)) {
            Ok(_) => 0,
            Err(refused) => refused.errors(),
        };
        let patterns: Vec<_> = globs.iter().map(Pattern::new).collect();
        let pairs = (0..patterns.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        let expected = pairs
            .filter(|(a, b)| {
                shortest_by_trial(&patterns[*a], &patterns[*b], &['a', 'b', 'c', '/'], 5).is_some()
            })
            .count();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn pattern_between_quotes_may_be_followed_by_a_remark() {
    let text = format!(
        "{DEFAULT}customers:\n  - id: a # größe\n    workloads:\n      - cgroup: \"lxc/ä*\"   # one\n      \
         - cgroup: 'lxc/it''s'  # two\n      - {{cgroup: \"lxc/b\" , hosts: [\"h\" ]}} # three\n"
    );
    let loaded = Loader::default().load(&[file("a.yaml", text)], &circumstances(Purpose::Check));
    let customers = loaded.unwrap().policy.customers;
    assert_eq!(customers["a"].workloads.len(), 3);
}

#[test]
fn pattern_between_double_quotes_with_an_escape_is_still_refused() {
    for written in ["\"lxc/a\\x2d\"  # c", "\"lxc/a\\\n          b\""] {
        let text =
            format!("{DEFAULT}customers:\n  - id: a\n    workloads:\n      - cgroup: {written}\n");
        let loaded =
            Loader::default().load(&[file("a.yaml", text)], &circumstances(Purpose::Check));
        let refused = loaded.unwrap_err();
        let escaped = refused
            .diagnostics
            .iter()
            .any(|it| it.code == "escaped-pattern");
        assert!(escaped, "{written}: {refused:?}");
    }
}
