//! The table of what was tried against the promise, and what leaked.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::cargo::target;

/// The document that holds the table.
pub(crate) const DOCUMENT: &str = "tests/LEAKS.md";

/// What tests write down while a command runs them.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sums {
    times: u64,
    sent: u64,
    leaked: u64,
}

impl Ledger {
    /// An empty one.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let path = target().join("ledger");
        fs::create_dir_all(target()).context("create the target folder")?;
        fs::write(&path, "").with_context(|| format!("write {}", path.display()))?;
        Ok(Self { path })
    }

    /// For `GATE25_LEDGER`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The table in Markdown, none where nothing was tried.
    pub(crate) fn table(&self) -> anyhow::Result<Option<String>> {
        let text = fs::read_to_string(&self.path)
            .with_context(|| format!("read {}", self.path.display()))?;
        let sums = add_up(&text)?;
        Ok((!sums.is_empty()).then(|| markdown(&sums)))
    }
}

fn add_up(text: &str) -> anyhow::Result<BTreeMap<(&str, &str), Sums>> {
    let mut rows = BTreeMap::<_, Sums>::new();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let mut next = || {
            fields
                .next()
                .with_context(|| format!("a field of {line:?} is missing"))
        };
        let (trial, what) = (next()?, next()?);
        let mut number = || next()?.parse::<u64>().with_context(|| format!("{line:?}"));
        let (times, sent, leaked) = (number()?, number()?, number()?);
        let sums = rows.entry((trial, what)).or_default();
        sums.times += times;
        sums.sent += sent;
        sums.leaked += leaked;
    }
    Ok(rows)
}

fn markdown(rows: &BTreeMap<(&str, &str), Sums>) -> String {
    let mut text = String::from(
        "| | tried | times | forbidden packets sent | leaked |\n|---|---|---|---|---|\n",
    );
    let mut all = Sums::default();
    for ((trial, what), sums) in rows {
        let Sums {
            times,
            sent,
            leaked,
        } = *sums;
        // Writing to a String does not fail.
        writeln!(text, "| {trial} | {what} | {times} | {sent} | {leaked} |").ok();
        all.times += times;
        all.sent += sent;
        all.leaked += leaked;
    }
    let Sums {
        times,
        sent,
        leaked,
    } = all;
    writeln!(text, "| **all** | | {times} | {sent} | {leaked} |").ok();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_of_equal_trials_is_one_row_of_sums() {
        let text = "fault\tkill -9\t2\t10\t0\nevasion\toptions\t1\t5\t1\nfault\tkill -9\t1\t7\t0\n";
        let table = markdown(&add_up(text).unwrap());
        let rows: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| evasion | options | 1 | 5 | 1 |",
                "| fault | kill -9 | 3 | 17 | 0 |",
                "| **all** | | 4 | 22 | 1 |"
            ]
        );
    }

    #[test]
    fn add_up_of_a_torn_line_is_an_error() {
        assert!(add_up("fault\tkill -9\t2\n").is_err());
    }
}
