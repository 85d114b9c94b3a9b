//! The rules of the languages, one case each, expectations written by hand beside the input.
//!
//! A case: `#### title`, then `run` (load to run instead of to check), `bare` (without the file
//! that defines `default`), what is expected as `severity file:line:column code ~ text ~ text`
//! (nothing means a clean set), then files as `==> name`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use gate25::diagnostic::{Diagnostic, terminal};
use gate25::policy::loader::{Loader, Purpose, SourceFile};
use gate25::settings;

use super::{DEFAULT, circumstances, file};

#[test]
fn policy_cases_report_what_their_authors_expect() {
    let files = [
        "yaml",
        "sections",
        "names",
        "destinations",
        "workloads",
        "exemptions",
        "relays",
    ];
    let cases = files.iter().flat_map(|name| read(name));
    check(cases, |case| {
        let circumstances = circumstances(case.purpose);
        match Loader::default().load(&case.files, &circumstances) {
            Ok(loaded) => loaded.warnings,
            Err(refused) => refused.diagnostics,
        }
    });
}

#[test]
fn settings_cases_report_what_their_authors_expect() {
    check(read("settings").into_iter(), |case| {
        let file = case.files.first().unwrap();
        match settings::parse(&file.path, &file.bytes) {
            Ok(loaded) => loaded.warnings,
            Err(diagnostics) => diagnostics,
        }
    });
}

struct Case {
    title: String,
    purpose: Purpose,
    expected: Vec<String>,
    files: Vec<SourceFile>,
}

fn read(name: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/policy/cases/{name}.txt"));
    let text = std::fs::read_to_string(path).unwrap();
    let cases = text.split("#### ").skip(1);
    cases.map(|case| parse(case, name != "settings")).collect()
}

fn parse(text: &str, needs_default: bool) -> Case {
    let (head, files) = text.split_once("\n==> ").unwrap();
    let mut lines = head.lines();
    let mut case = Case {
        title: lines.next().unwrap().to_owned(),
        purpose: Purpose::Check,
        expected: Vec::new(),
        files: Vec::new(),
    };
    let mut bare = !needs_default;
    for line in lines {
        match line {
            "run" => case.purpose = Purpose::Run,
            "bare" => bare = true,
            line => case.expected.push(line.to_owned()),
        }
    }
    for part in files.split("\n==> ") {
        let (name, contents) = part.split_once('\n').unwrap();
        let contents = contents.trim_end_matches('\n');
        // Some cases are about files that end in the middle of something.
        case.files.push(file(name, format!("{contents}\n")));
    }
    if !bare {
        case.files.push(file("default.yaml", DEFAULT));
    }
    case
}

#[track_caller]
fn check(cases: impl Iterator<Item = Case>, run: impl Fn(&Case) -> Vec<Diagnostic>) {
    let mut failures = String::new();
    let mut titles = BTreeMap::new();
    for case in cases {
        let found = run(&case);
        let matches = found.len() == case.expected.len()
            && case
                .expected
                .iter()
                .zip(&found)
                .all(|(expected, found)| agrees(expected, found));
        if !matches {
            let found: Vec<_> = found.iter().map(shown).collect();
            failures += &format!(
                "{}\n expected:\n  {}\n found:\n  {}\n",
                case.title,
                case.expected.join("\n  "),
                found.join("\n  ")
            );
        }
        assert!(
            titles.insert(case.title.clone(), ()).is_none(),
            "two cases: {}",
            case.title
        );
    }
    assert!(failures.is_empty(), "{failures}");
}

fn shown(diagnostic: &Diagnostic) -> String {
    let Diagnostic {
        severity,
        code,
        message,
        help,
        primary,
        related,
    } = diagnostic;
    let places: Vec<_> = related
        .iter()
        .map(|one| format!("{} {}", one.location, one.label))
        .collect();
    let help = help.as_deref().unwrap_or_default();
    format!(
        "{severity} {primary} {code} ~ {message} ~ {help} ~ {}",
        places.join(", ")
    )
}

fn agrees(expected: &str, found: &Diagnostic) -> bool {
    let shown = shown(found);
    let mut parts = expected.split(" ~ ");
    let head = parts.next().unwrap_or_default();
    let has_source = found.primary.position.is_none() || found.primary.excerpt.is_some();
    let rendered = terminal::render(found, terminal::Colour::Never);
    shown.starts_with(&format!("{head} ~ "))
        && parts.all(|part| shown.contains(part))
        && has_source
        && !rendered.chars().any(|c| c.is_control() && c != '\n')
}

#[test]
fn a_case_with_a_wrong_expectation_does_not_agree() {
    let path: Arc<Path> = Arc::from(Path::new("a.yaml"));
    let location = gate25::diagnostic::Location::whole(&path);
    let found = Diagnostic::error("code", location, "message");
    assert!(agrees("error a.yaml code ~ mess", &found));
    assert!(!agrees("error a.yaml cod ~ mess", &found));
    assert!(!agrees("error a.yaml code ~ other", &found));
}
