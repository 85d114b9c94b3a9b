//! README's table of findings is the code's.

use std::collections::BTreeMap;

use gate25::doctor::Kind;

const README: &str = include_str!("../../../README.md");

#[test]
fn table_of_findings_is_what_the_code_says() {
    let rows: BTreeMap<&str, [String; 2]> = README
        .lines()
        .skip_while(|line| !line.starts_with("## Doctor"))
        .take_while(|line| !line.starts_with("## ") || line.starts_with("## Doctor"))
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .filter_map(|row| {
            let (kind, rest) = row.split_once("` | ")?;
            let (severity, advice) = rest.split_once(" | ")?;
            Some((kind, [severity.to_owned(), advice.to_owned()]))
        })
        .collect();
    // Within a table a bar begins another cell.
    let advice = |kind: &Kind| kind.advice().replace('|', r"\|");
    let code: BTreeMap<&str, [String; 2]> = Kind::ALL
        .iter()
        .map(|kind| {
            let severity = kind.severity().as_str().to_owned();
            (kind.as_str(), [severity, advice(kind)])
        })
        .collect();
    assert_eq!(rows, code);
}
