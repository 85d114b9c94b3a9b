//! Differences in words: for a terminal, for a comment on a pull request, as annotations. Pure.

use std::io::{self, Write};

use super::Report;
use super::base::Difference;
use crate::access::{Grant, Shift};
use crate::cli::diff;
use crate::diagnostic::terminal::Colour;
use crate::diagnostic::{Diagnostic, Severity, escape};
use crate::policy::ANY;
use crate::policy::changes::{Change, Kind, Section};

/// Customers, and prefixes, that are named before the rest is counted.
const NAMED: usize = 20;
const NEWLY: &str = "may newly send to";
const NO_LONGER: &str = "may no longer send to";

/// For people at a terminal.
pub(super) fn text(difference: &Difference, colour: Colour, out: &mut dyn Write) -> io::Result<()> {
    let Difference {
        base,
        access,
        changes,
    } = difference;
    writeln!(out, "\ncompared with {}:", escape(base))?;
    if access.is_empty() {
        writeln!(out, "nobody may send anywhere else than before")?;
    }
    for line in access.iter().flat_map(sentences) {
        writeln!(out, "{line}")?;
    }
    for line in claims(changes) {
        writeln!(out, "{line}")?;
    }
    writeln!(out)?;
    diff::print(changes, colour, out)
}

/// For a comment on a pull request.
pub(super) fn markdown(
    report: &Report,
    difference: Option<&Difference>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let errors = report.errors;
    match report.valid {
        true => writeln!(out, "### gate25: the policy is valid\n")?,
        false => writeln!(out, "### gate25: the policy is refused, {errors} errors\n")?,
    }
    for diagnostic in &report.diagnostics {
        let Diagnostic {
            severity,
            message,
            help,
            primary,
            ..
        } = diagnostic;
        let help = help
            .as_deref()
            .map_or(String::new(), |help| format!(": {}", code(help)));
        let place = code(&primary.to_string());
        writeln!(out, "- {severity} in {place}: {}{help}", code(message))?;
    }
    let Some(Difference {
        base,
        access,
        changes,
    }) = difference
    else {
        return Ok(());
    };
    if !report.diagnostics.is_empty() {
        writeln!(out)?;
    }
    writeln!(out, "Compared with {}:\n", code(base))?;
    if access.is_empty() {
        writeln!(out, "- nobody may send anywhere else than before")?;
    }
    for shift in access {
        let who = who(shift, code);
        for (grants, what) in [(&shift.opened, NEWLY), (&shift.closed, NO_LONGER)] {
            for grant in grants {
                writeln!(out, "- {who} **{what}** {}", sentence(grant, code))?;
            }
        }
    }
    for line in claims(changes) {
        writeln!(out, "- {}", code(&line))?;
    }
    if changes.is_empty() {
        return Ok(());
    }
    let mut all = Vec::new();
    diff::print(changes, Colour::Never, &mut all)?;
    let all = String::from_utf8_lossy(&all);
    let fence = "`".repeat(longest_run(&all, '`').max(2) + 1);
    writeln!(
        out,
        "\n<details><summary>All changes</summary>\n\n{fence}diff"
    )?;
    for line in all.lines() {
        // Only the first column tells additions from removals there.
        let rest = line.trim_start();
        match rest.chars().next() {
            Some(sign @ ('+' | '-')) => {
                let indent = line.len() - rest.len();
                let rest = rest.get(1..).unwrap_or_default();
                writeln!(out, "{sign}{:indent$}{rest}", "")?;
            }
            Some(_) | None => writeln!(out, " {line}")?,
        }
    }
    writeln!(out, "{fence}\n\n</details>")
}

/// As workflow commands, which GitHub shows beside the lines of a pull request.
pub(super) fn github(
    report: &Report,
    difference: Option<&Difference>,
    place: impl Fn(&str) -> Option<(String, u32)>,
    out: &mut dyn Write,
) -> io::Result<()> {
    for diagnostic in &report.diagnostics {
        let Diagnostic {
            severity,
            code,
            message,
            help,
            primary,
            related: _,
        } = diagnostic;
        let level = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let position = primary.position.map_or(String::new(), |at| {
            format!(",line={},col={}", at.line, at.column)
        });
        let file = property(&primary.file.to_string_lossy());
        let help = help
            .as_deref()
            .map_or(String::new(), |help| format!("\n{help}"));
        let text = data(&format!("{message}{help}"));
        let title = property(&format!("gate25 {code}"));
        writeln!(out, "::{level} file={file}{position},title={title}::{text}")?;
    }
    let Some(difference) = difference else {
        return Ok(());
    };
    for shift in &difference.access {
        let first = shift.customers.first().map_or("", String::as_str);
        let at = place(first).map_or(String::new(), |(file, line)| {
            format!("file={},line={line},", property(&file))
        });
        for line in sentences(shift) {
            writeln!(out, "::notice {at}title=gate25::{}", data(&line))?;
        }
    }
    for line in claims(&difference.changes) {
        writeln!(out, "::notice title=gate25::{}", data(&line))?;
    }
    Ok(())
}

fn sentences(shift: &Shift) -> Vec<String> {
    let who = who(shift, str::to_owned);
    let all = |grants: &[Grant], what: &str| -> Vec<String> {
        let each = grants.iter();
        each.map(|grant| format!("{who} {what} {}", sentence(grant, str::to_owned)))
            .collect()
    };
    [all(&shift.opened, NEWLY), all(&shift.closed, NO_LONGER)].concat()
}

fn who(shift: &Shift, word: impl Fn(&str) -> String) -> String {
    named(&shift.customers, word)
}

fn sentence(grant: &Grant, word: impl Fn(&str) -> String) -> String {
    let Grant {
        from,
        until,
        to,
        except,
    } = grant;
    let mut text = match &to[..] {
        [any] if any == ANY => "any address".to_owned(),
        prefixes => named(prefixes, &word),
    };
    if !except.is_empty() {
        text.push_str(&format!(" but {}", named(except, &word)));
    }
    if let Some(from) = from {
        text.push_str(&format!(", from {from} on"));
    }
    match until {
        Some(until) => text.push_str(&format!(", until {until}")),
        None => text.push_str(", for good"),
    }
    text
}

/// Which workloads change hands.
fn claims(changes: &[Change]) -> Vec<String> {
    let customers = changes.iter().filter(|it| it.section == Section::Customers);
    let mut lines = Vec::new();
    for Change {
        name,
        change,
        fields,
        ..
    } in customers
    {
        for field in fields.iter().filter(|field| field.field == "workloads") {
            for workload in &field.removed {
                lines.push(escape(&format!("{name} no longer owns {workload}")));
            }
            for workload in &field.added {
                let newly = match change {
                    Kind::Added => "is new and owns",
                    Kind::Changed | Kind::Removed => "newly owns",
                };
                lines.push(escape(&format!("{name} {newly} {workload}")));
            }
        }
    }
    lines
}

fn named(all: &[String], word: impl Fn(&str) -> String) -> String {
    let mut text: Vec<String> = all.iter().take(NAMED).map(|one| word(one)).collect();
    if all.len() > NAMED {
        text.push(format!("{} more", all.len() - NAMED));
    }
    text.join(", ")
}

/// Text of others in Markdown: in a code span nothing of it is acted upon.
fn code(text: &str) -> String {
    let text = escape(text);
    let fence = "`".repeat(longest_run(&text, '`') + 1);
    let space = if text.starts_with('`') || text.ends_with('`') {
        " "
    } else {
        ""
    };
    format!("{fence}{space}{text}{space}{fence}")
}

fn longest_run(text: &str, of: char) -> usize {
    let runs = text.split(|c| c != of).map(str::len);
    runs.max().unwrap_or(0)
}

/// The text of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A value among the properties of a workflow command.
fn property(text: &str) -> String {
    data(&escape(text)).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_holds_backticks_and_nothing_that_ends_it() {
        assert_eq!(code("c-1"), "`c-1`");
        assert_eq!(code("a`b``c"), "```a`b``c```");
        assert_eq!(code("`"), "`` ` ``");
        assert_eq!(code("a\n@all"), "`a\\n@all`");
    }

    #[test]
    fn workflow_commands_hold_no_second_command() {
        assert_eq!(data("50% of\r\n::error::x"), "50%25 of%0D%0A::error::x");
        assert_eq!(property("a,b: c"), "a%2Cb%3A c");
    }

    #[test]
    fn sentence_says_what_for_how_long() {
        let time = |text: &str| Some(text.parse().unwrap());
        let words = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect();
        let grant = Grant {
            from: time("2026-12-01T00:00:00Z"),
            until: time("2026-12-02T00:00:00Z"),
            to: words(&["any"]),
            except: words(&["192.0.2.0/24"]),
        };
        assert_eq!(
            sentence(&grant, str::to_owned),
            "any address but 192.0.2.0/24, from 2026-12-01T00:00:00Z on, until 2026-12-02T00:00:00Z"
        );
        let prefixes: Vec<String> = (0..25).map(|n| format!("192.0.2.{n}")).collect();
        let grant = Grant {
            from: None,
            until: None,
            to: prefixes,
            except: Vec::new(),
        };
        let said = sentence(&grant, str::to_owned);
        assert!(said.ends_with("192.0.2.19, 5 more, for good"), "{said}");
    }
}
