//! The test tiers, quick ones first, and the closing line over all of them.

use std::{
    fs,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;

use crate::{
    acceptance, binaries, builds,
    cargo::{self, Count, LIMIT, cargo, close, closing_line, count_tests, target},
    dist, document, fuzz,
    kernels::{self, Series},
    ledger::{self, Ledger},
    lint, vm,
};

/// For the slow tier, which repeats hundreds of times what the others try a few times.
const SLOW: Duration = Duration::from_secs(2 * 60 * 60);

/// What to run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Only these tiers; all but the packages and their acceptance, the slow one and the matrix when none is
    /// named.
    tiers: Vec<Tier>,
    /// The packages and their acceptance, the slow tier and the matrix of kernels, too.
    #[arg(long)]
    full: bool,
    /// Only tests whose names contain this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Put the tables of the run into the documents: what the tiers system and slow have tried, both of them,
    /// into tests/LEAKS.md, that of the acceptance into tests/PACKAGE.md, that of the matrix into
    /// tests/KERNELS.md.
    #[arg(long, conflicts_with = "filter")]
    publish: bool,
    /// In the matrix, do not repeat what passed before with the present sources, as tests/kernels.json has it.
    #[arg(long, conflicts_with = "filter")]
    resume: bool,
}

impl Options {
    pub(crate) fn only(tier: Tier) -> Self {
        Self {
            tiers: vec![tier],
            ..Self::default()
        }
    }

    /// The tiers to run, quick ones first.
    fn chosen(&self) -> Vec<Tier> {
        let is_chosen = |tier: &Tier| {
            if self.tiers.is_empty() {
                self.full
                    || !matches!(
                        tier,
                        Tier::Package | Tier::Acceptance | Tier::Slow | Tier::Matrix
                    )
            } else {
                self.tiers.contains(tier)
            }
        };
        let all = Tier::value_variants().iter().copied();
        all.filter(is_chosen).collect()
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
    /// Anything at all as packets, policies and settings, for some seconds each.
    Fuzz,
    /// Namespaces, real mail servers and clients.
    System,
    /// The packages, inspected, and on a Debian machine under systemd.
    Package,
    /// The package on a Debian of its own kernel, from installation to purge; each step counts as one test.
    Acceptance,
    /// What takes minutes.
    Slow,
    /// The object, verdict and system tiers on other kernels, under QEMU.
    Matrix,
}

impl Tier {
    /// The files of `tests/tests` that belong to the tier start with this.
    fn prefix(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Object => "object",
            Self::Verdict => "verdict",
            Self::Fuzz => "fuzz",
            Self::System => "system",
            Self::Package => "package",
            Self::Acceptance => "acceptance",
            Self::Slow => "slow",
            Self::Matrix => "matrix",
        }
    }
}

/// Runs the tiers; the last line of the output counts all their tests.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let tiers = options.chosen();
    if options.publish && !(tries_all(&tiers) || has_table(&tiers)) {
        bail!("nothing to publish: neither system and slow, nor acceptance, nor matrix are run");
    }
    let ledger = Ledger::begin()?;
    let mut all = Count::default();
    let mut lines = Vec::new();
    for tier in tiers.iter().copied() {
        println!("=== {}", tier.prefix());
        let start = Instant::now();
        let count = tier_result(tier, options, &ledger);
        lines.push(format!(
            "{:10} {:>6.1} s  {}",
            tier.prefix(),
            start.elapsed().as_secs_f64(),
            closing_line(count)
        ));
        all.add(count);
    }
    println!();
    if let Some(table) = ledger.table()? {
        println!("{table}");
        if options.publish && tries_all(&tiers) {
            document::publish(ledger::DOCUMENT, &table)?;
        }
    }
    for line in lines {
        println!("{line}");
    }
    Ok(close(all))
}

/// Whether all is tried that [`ledger::DOCUMENT`] has a row for.
fn tries_all(tiers: &[Tier]) -> bool {
    tiers.contains(&Tier::System) && tiers.contains(&Tier::Slow)
}

/// Whether a tier writes a document of its own.
fn has_table(tiers: &[Tier]) -> bool {
    tiers.contains(&Tier::Acceptance) || tiers.contains(&Tier::Matrix)
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
        Count::failure()
    })
}

fn run_tier(tier: Tier, options: &Options, ledger: &Ledger) -> anyhow::Result<Count> {
    match tier {
        Tier::Lint => lint::run(),
        Tier::Unit => unit(options),
        Tier::Fuzz => fuzz::run(&fuzz::Options::short(options.filter.clone())),
        Tier::Object | Tier::Verdict | Tier::System | Tier::Package | Tier::Slow => {
            root_tests(tier, options, ledger)
        }
        Tier::Acceptance if options.filter.is_some() => {
            println!("its steps go on from each other: none is run alone");
            Ok(Count::default())
        }
        Tier::Acceptance => acceptance::run(&dist::two_builds()?, options.publish),
        Tier::Matrix => {
            let filter = options.filter.clone();
            let asked = vm::Options::of_all(filter, options.resume, options.publish);
            vm::matrix(&asked, ledger)
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
    let targets = binaries::targets(tier.prefix())?;
    let agent = cargo::build()?;
    let mut command = cargo("test");
    command.args(["--package", "gate25-tests", "--no-fail-fast"]);
    if tier == Tier::System {
        // For the virtual machine that is a guest.
        kernels::provide(Series::V6_1)?;
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
    if tier == Tier::Package {
        command.env("GATE25_PACKAGES", dist::to_be_tried()?);
    }
    command.arg("--").args(&options.filter);
    with_threads(&mut command, tier);
    let limit = if tier == Tier::Slow { SLOW } else { LIMIT };
    let mut count = count_tests(command, limit)?;
    count.skip(&fs::read_to_string(&skips).context("read the skips")?);
    Ok(count)
}

/// Labs wait more than they compute, but their deadlines are those of an idle machine.
fn with_threads(command: &mut Command, tier: Tier) {
    match tier {
        Tier::System | Tier::Slow => drop(command.arg("--test-threads=2")),
        Tier::Package => drop(command.arg("--test-threads=1")),
        Tier::Lint
        | Tier::Unit
        | Tier::Object
        | Tier::Verdict
        | Tier::Fuzz
        | Tier::Acceptance
        | Tier::Matrix => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_of_a_part_of_what_a_table_holds_is_refused() {
        assert!(tries_all(&[Tier::Unit, Tier::System, Tier::Slow]));
        assert!(has_table(&[Tier::Matrix]) && has_table(&[Tier::Acceptance]));
        let options = Options {
            publish: true,
            ..Options::only(Tier::System)
        };
        let refused = run(&options).map(drop).unwrap_err();
        assert!(refused.to_string().contains("nothing to publish"));
    }
}
