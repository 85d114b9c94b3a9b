//! The table of kernels and what has passed on them.

use std::fmt::Write as _;

use super::record::Outcome;
use crate::cargo::Count;

/// The test binaries of a tier, each with what it came to when it passed.
type TierOutcomes<'a> = (&'a str, Vec<(&'a str, Option<Outcome>)>);
/// A kernel's release and its tiers.
type KernelOutcomes<'a> = (&'a str, Vec<TierOutcomes<'a>>);

/// A row for each kernel, a column for each tier, and what has not passed.
pub(super) fn markdown(sources: &str, kernels: &[KernelOutcomes<'_>]) -> String {
    let mut text = format!("The agent and the lab are those of {sources}.\n\n| kernel |");
    // Writing to a String does not fail.
    let tiers = kernels.first().map_or(&[][..], |(_, tiers)| tiers);
    for (tier, _) in tiers {
        write!(text, " {tier} |").ok();
    }
    writeln!(text, "\n|---{}|", "|---".repeat(tiers.len())).ok();
    let mut missing = String::new();
    for (release, tiers) in kernels {
        write!(text, "| {} |", short(release)).ok();
        for (_, outcomes) in tiers {
            write!(text, " {} |", cell(outcomes)).ok();
        }
        text.push('\n');
        let outcomes = tiers.iter().flat_map(|(_, outcomes)| outcomes);
        let names: Vec<_> = outcomes
            .filter(|(_, outcome)| outcome.is_none())
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        if !names.is_empty() {
            let (release, names) = (short(release), names.join(", "));
            writeln!(missing, "\nNot passed yet on {release}: {names}.").ok();
        }
    }
    text + &missing
}

/// Debian's kernels have the architecture in their release.
fn short(release: &str) -> &str {
    release.strip_suffix("-amd64").unwrap_or(release)
}

fn cell(outcomes: &[(&str, Option<Outcome>)]) -> String {
    let mut sum = Count::default();
    let mut files = 0;
    for (_, outcome) in outcomes {
        if let Some(outcome) = outcome {
            files += 1;
            sum.add(outcome.count);
            sum.note_skips(&outcome.skips);
        }
    }
    let Count {
        passed, skipped, ..
    } = sum;
    let skipped = if skipped > 0 {
        format!(", {skipped} skipped")
    } else {
        String::new()
    };
    match files {
        0 => "not run".to_owned(),
        all if all == outcomes.len() => format!("{passed} passed{skipped}"),
        some => format!(
            "{some} of {} files: {passed} passed{skipped}",
            outcomes.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(passed: u32, skips: &str) -> Option<Outcome> {
        Some(Outcome {
            count: Count {
                passed,
                ..Count::default()
            },
            skips: skips.to_owned(),
            tried: String::new(),
        })
    }

    #[test]
    fn markdown_says_what_has_passed_and_what_has_not() {
        let kernels = [
            (
                "6.1.0-56-amd64",
                vec![
                    ("object", vec![("object", outcome(8, ""))]),
                    (
                        "system",
                        vec![
                            ("system_one", outcome(5, "a: no tcx\n")),
                            ("system_two", None),
                        ],
                    ),
                ],
            ),
            (
                "6.12.1-amd64",
                vec![
                    ("object", vec![("object", None)]),
                    (
                        "system",
                        vec![
                            ("system_one", outcome(5, "")),
                            ("system_two", outcome(6, "")),
                        ],
                    ),
                ],
            ),
        ];
        assert_eq!(
            markdown("commit abc", &kernels),
            "The agent and the lab are those of commit abc.\n\n\
             | kernel | object | system |\n\
             |---|---|---|\n\
             | 6.1.0-56 | 8 passed | 1 of 2 files: 4 passed, 1 skipped |\n\
             | 6.12.1 | not run | 11 passed |\n\n\
             Not passed yet on 6.1.0-56: `system_two`.\n\n\
             Not passed yet on 6.12.1: `object`.\n"
        );
    }
}
