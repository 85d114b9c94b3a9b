//! Files meant to break the reader: none may panic, and all are refused in bounded time.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use gate25::policy::loader::{Loader, Purpose};
use gate25::settings;

use super::{circumstances, file};

/// The codes that a set of one file is refused with.
fn codes(bytes: &[u8]) -> Vec<(&'static str, Option<(u32, u32)>)> {
    let refused = Loader::default().load(&[file("a.yaml", bytes)], &circumstances(Purpose::Check));
    let diagnostics = refused
        .err()
        .map(|refused| refused.diagnostics)
        .unwrap_or_default();
    let place = |one: &gate25::diagnostic::Diagnostic| {
        (
            one.code,
            one.primary.position.map(|at| (at.line, at.column)),
        )
    };
    diagnostics.iter().map(place).collect()
}

#[test]
fn bytes_that_are_not_utf8_are_refused_at_their_place() {
    let bytes = b"schema: 1\r\ncustomers:\r\n  - name: \xc3\xa4\xff\r\n";
    assert_eq!(codes(bytes), [("not-utf8", Some((3, 12)))]);
}

#[test]
fn utf16_is_refused_as_such() {
    assert_eq!(codes(b"\xff\xfes\0c\0"), [("not-utf8", None)]);
}

#[test]
fn byte_order_mark_is_passed_over() {
    assert_eq!(
        codes(b"\xef\xbb\xbfschema: 1\nprofiles: [{name: default}]\n"),
        []
    );
    let found = codes(b"\xef\xbb\xbfschma: 1\n");
    assert!(found.contains(&("unknown-key", Some((1, 1)))), "{found:?}");
}

#[test]
fn file_of_five_megabytes_is_refused() {
    let mut bytes = b"schema: 1\n".to_vec();
    bytes.resize(5_000_000, b'\n');
    assert_eq!(codes(&bytes), [("file-too-large", None)]);
}

#[test]
fn four_mebibytes_of_anything_are_judged_in_bounded_time() {
    let size = 4 << 20;
    let deep: String = (0..2800)
        .map(|indent| format!("{}a:\n", " ".repeat(indent)))
        .collect();
    let fill = |text: &str| text.repeat(size / text.len());
    let mut cases: Vec<String> = [
        "[", "{", "- ", "? ", "[a,", "{a: ", "[[],", "\n", "#\n", "\"", "a: ",
    ]
    .iter()
    .map(|text| fill(text))
    .collect();
    cases.push(deep);
    cases.push(format!(
        "schema: 1\ncustomers: [{}]",
        &fill("a,")[..size - 100]
    ));
    cases.push(
        (0..size / 12)
            .map(|i| format!("k{i}: v\n"))
            .collect::<String>()[..size / 2]
            .to_owned(),
    );
    cases.push(format!(
        "schema: 1\ncustomers:\n{}",
        &fill("- {id: a}\n")[..size - 100]
    ));
    let wild = "- {id: c, allow: [a, b, c, d, e, f, g, h]}\n";
    cases.push(format!(
        "schema: 1\ncustomers:\n{}",
        &fill(wild)[..size - 100]
    ));
    let grabby: String = (0..60_000)
        .map(|i| format!("- {{id: c{i}, workloads: [{{interface: \"*\"}}]}}\n"))
        .collect();
    cases.push(format!("schema: 1\ncustomers:\n{grabby}"));
    for case in cases {
        let begin = Instant::now();
        let found = codes(case.as_bytes());
        let taken = begin.elapsed();
        let start = case.get(..20).unwrap_or(&case).to_owned();
        assert!(!found.is_empty(), "{start:?}");
        assert!(
            found.len() <= 1001,
            "{start:?}: {} diagnostics",
            found.len()
        );
        // Seconds in a build for tests; a quadratic step would take hours.
        assert!(taken < Duration::from_secs(60), "{start:?}: {taken:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn loader_never_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _found = codes(&bytes);
        let path: Arc<Path> = Arc::from(Path::new("gate25.yaml"));
        let _settings = settings::parse(&path, &bytes);
    }

    #[test]
    fn loader_never_panics_on_damaged_policies(
        cut in 0_usize..2000,
        junk in "[\\[\\]{}:,&*!|>'\"%@`# \n\t~a-z0-9]{0,20}",
        drop in 0_usize..10,
    ) {
        let text = concat!(
            include_str!("../../../deploy/policy.d/00-base.yaml"),
            include_str!("../../../deploy/policy.d/customers.yaml"),
        );
        let at = text.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(text.len());
        let rest = text[at..].chars().skip(drop).collect::<String>();
        let _found = codes(format!("{}{junk}{rest}", &text[..at]).as_bytes());
        let _truncated = codes(&text.as_bytes()[..at]);
    }
}
