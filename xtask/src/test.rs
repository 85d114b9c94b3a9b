//! The test tiers, quick ones first, and the closing line over all of them.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;

use crate::{
    builds,
    cargo::{self, Count, LIMIT, cargo, count_tests, root, target},
    ledger::{self, Ledger},
    lint,
};

/// What to run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Only these tiers; all but the slow one when none is named.
    tiers: Vec<Tier>,
    /// The slow tier too.
    #[arg(long)]
    full: bool,
    /// Only tests whose names contain this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Put the table of what was tried, and what leaked, into tests/LEAKS.md.
    #[arg(long)]
    publish: bool,
}

impl Options {
    pub(crate) fn only(tier: Tier) -> Self {
        Self {
            tiers: vec![tier],
            ..Self::default()
        }
    }
}

/// A tier: what a test needs, from nothing to a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tier {
    /// Format, lints and shell scripts; each command counts as one test.
    Lint,
    /// Pure tests of every crate.
    Unit,
    /// The kernel object: its maps, programs and sizes.
    Object,
    /// Packets through the kernel programs and the pure function.
    Verdict,
    /// Namespaces, real mail servers and clients.
    System,
    /// What takes minutes.
    Slow,
}

impl Tier {
    /// The files of `tests/tests` that belong to the tier start with this.
    fn prefix(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Object => "object",
            Self::Verdict => "verdict",
            Self::System => "system",
            Self::Slow => "slow",
        }
    }
}

/// Runs the tiers; the last line of the output counts all their tests.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let ledger = Ledger::begin()?;
    let chosen = |tier: &Tier| {
        if options.tiers.is_empty() {
            *tier != Tier::Slow || options.full
        } else {
            options.tiers.contains(tier)
        }
    };
    let mut all = Count::default();
    let mut lines = Vec::new();
    for tier in Tier::value_variants().iter().copied().filter(chosen) {
        println!("=== {}", tier.prefix());
        let start = Instant::now();
        let count = tier_result(tier, options, &ledger);
        lines.push(format!(
            "{:8} {:>6.1} s  {}",
            tier.prefix(),
            start.elapsed().as_secs_f64(),
            closing_line(count)
        ));
        all.add(count);
    }
    println!();
    if let Some(table) = ledger.table()? {
        println!("{table}");
        if options.publish {
            ledger::publish(&table)?;
        }
    }
    for line in lines {
        println!("{line}");
    }
    println!("{}", closing_line(all));
    Ok(if all.failed == 0 && all.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(crate) fn closing_line(count: Count) -> String {
    let Count {
        passed,
        failed,
        skipped,
    } = count;
    let skips = if skipped == 0 {
        String::new()
    } else {
        format!(", {skipped} skipped")
    };
    format!("{passed} passed, {failed} failed{skips}")
}

/// A tier that cannot be run, or runs nothing, has failed.
fn tier_result(tier: Tier, options: &Options, ledger: &Ledger) -> Count {
    let result = run_tier(tier, options, ledger).and_then(|count| {
        if count.total() == 0 && options.filter.is_none() {
            bail!("the tier {} ran no test", tier.prefix());
        }
        Ok(count)
    });
    result.unwrap_or_else(|error| {
        println!("FAILED: {error:#}");
        Count {
            failed: 1,
            ..Count::default()
        }
    })
}

fn run_tier(tier: Tier, options: &Options, ledger: &Ledger) -> anyhow::Result<Count> {
    match tier {
        Tier::Lint => lint::run(),
        Tier::Unit => unit(options),
        Tier::Object | Tier::Verdict | Tier::System | Tier::Slow => {
            root_tests(tier, options, ledger)
        }
    }
}

fn unit(options: &Options) -> anyhow::Result<Count> {
    let mut others = cargo("test");
    others.args([
        "--workspace",
        "--exclude",
        "gate25-ebpf",
        "--exclude",
        "gate25-tests",
    ]);
    let mut lab = cargo("test");
    lab.args(["--package", "gate25-tests", "--lib"]);
    let mut count = Count::default();
    for mut command in [others, lab] {
        command.args(["--no-fail-fast", "--"]).args(&options.filter);
        count.add(count_tests(command, LIMIT)?);
    }
    Ok(count)
}

/// Runs the test binaries of a tier as root, in labs of their own.
fn root_tests(tier: Tier, options: &Options, ledger: &Ledger) -> anyhow::Result<Count> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the tier {} needs root", tier.prefix());
    }
    let targets = targets(tier)?;
    let agent = cargo::build()?;
    let mut command = cargo("test");
    command.args(["--package", "gate25-tests", "--no-fail-fast"]);
    if tier == Tier::System {
        // The agent's own tests against the kernel, each in a namespace of its own.
        command.args(["--package", "gate25", "--test", "root"]);
        command.args(["--features", "gate25-tests/root,gate25/root-tests"]);
    } else {
        command.args(["--features", "gate25-tests/root"]);
    }
    for target in &targets {
        command.args(["--test", target]);
    }
    let skips = target().join(format!("{}.skips", tier.prefix()));
    fs::write(&skips, "").with_context(|| format!("write {}", skips.display()))?;
    command
        .env("GATE25_ROOT_TESTS", "1")
        .env("GATE25_SKIPS", &skips)
        .env("GATE25_LEDGER", ledger.path());
    command.env("GATE25_BIN", agent);
    if tier == Tier::Slow {
        command.env("GATE25_BUILDS", builds::make()?);
    }
    command.arg("--").args(&options.filter);
    with_threads(&mut command, tier);
    let mut count = count_tests(command, LIMIT)?;
    let noted = fs::read_to_string(&skips).context("read the skips")?;
    for line in noted.lines() {
        println!("skipped: {line}");
        count.passed = count.passed.saturating_sub(1);
        count.skipped += 1;
    }
    Ok(count)
}

/// Labs wait more than they compute, but their deadlines are those of an idle machine.
fn with_threads(command: &mut Command, tier: Tier) {
    match tier {
        Tier::System => drop(command.arg("--test-threads=2")),
        Tier::Slow => drop(command.arg("--test-threads=1")),
        Tier::Lint | Tier::Unit | Tier::Object | Tier::Verdict => {}
    }
}

fn targets(tier: Tier) -> anyhow::Result<Vec<String>> {
    let targets = targets_by(|name| name.starts_with(tier.prefix()))?;
    if targets.is_empty() {
        bail!("no file tests/tests/{}*.rs", tier.prefix());
    }
    Ok(targets)
}

/// The test binaries whose names are wanted.
pub(crate) fn targets_by(wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
    let dir = root().join("tests/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("read {}", dir.display()))?
            .path();
        names.extend(target_name(&path).filter(|name| wanted(name)));
    }
    names.sort();
    Ok(names)
}

fn target_name(path: &Path) -> Option<String> {
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    let stem = path.file_stem()?.to_str()?;
    is_rust.then(|| stem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_line_without_skips_has_two_numbers() {
        let count = Count {
            passed: 12,
            failed: 0,
            skipped: 0,
        };
        assert_eq!(closing_line(count), "12 passed, 0 failed");
        let count = Count {
            passed: 12,
            failed: 1,
            skipped: 2,
        };
        assert_eq!(closing_line(count), "12 passed, 1 failed, 2 skipped");
    }
}
