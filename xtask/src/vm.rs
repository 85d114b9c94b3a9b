//! The kernel matrix: the test binaries of this checkout, run on other kernels under QEMU.

mod record;
mod report;
mod scope;
mod sources;

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use gate25_tests::{Files, Kernel, Lab, Patience, Testbed};

use crate::{
    acceptance,
    binaries::{self, Binary},
    cargo::{self, Count, close, closing_line, summary},
    dist, document,
    kernels::{self, Series},
    ledger::Ledger,
};
use record::{Outcome, Record};
use scope::{LEFT_OUT_TESTS, left_out};

/// How many times slower than the machine itself the emulated one is taken to be.
const SLOWNESS: u32 = 10;
/// For one test binary, and for one test: a kernel that hangs ends by itself.
const PATIENCE: Patience = Patience {
    whole: Duration::from_secs(2 * 60 * 60),
    silent: Duration::from_secs(30 * 60),
};
/// For a command that only reads a file.
const MOMENT: Duration = Duration::from_secs(60);
const SKIPS: &str = "/run/gate25.skips";
const LEDGER: &str = "/run/gate25.ledger";
/// The document that holds the table.
const DOCUMENT: &str = "tests/KERNELS.md";

/// What to run, and where.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Only these tiers; all when none is named.
    tiers: Vec<Tier>,
    /// Only these kernels; all when none is named.
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<Series>,
    /// Only tests whose names contain this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only this test file, such as system_churn; all when none is named.
    #[arg(long, value_name = "NAME")]
    file: Vec<String>,
    /// Do not repeat what passed before with the present sources, as tests/kernels.json has it.
    #[arg(long, conflicts_with = "filter")]
    resume: bool,
    /// Put what passes into tests/kernels.json and the table of it into tests/KERNELS.md, at once. With --package
    /// put the table of the steps into tests/PACKAGE.md.
    #[arg(long, conflicts_with_all = ["tiers", "kernel", "filter"])]
    publish: bool,
    /// Instead of the tests: install the package on a Debian of its own, boot it, upgrade it, remove it.
    #[arg(long, conflicts_with_all = ["tiers", "kernel", "filter", "file", "resume"])]
    package: bool,
    /// With --package: the packages that the last run has built, as they are.
    #[arg(long, requires = "package")]
    again: bool,
}

impl Options {
    /// All tiers on all kernels.
    pub(crate) fn of_all(filter: Option<String>, resume: bool, publish: bool) -> Self {
        Self {
            filter,
            resume,
            publish,
            ..Self::default()
        }
    }
}

/// A tier that runs on other kernels, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Tier {
    /// The kernel object: its maps, programs and sizes.
    Object,
    /// Packets through the kernel programs and the pure function.
    Verdict,
    /// Namespaces, interfaces, control groups and the agent's whole life.
    System,
    /// What would harm the machine: its clock, its memory, its sleep.
    Vm,
}

impl Tier {
    fn prefix(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Verdict => "verdict",
            Self::System => "system",
            Self::Vm => "vm",
        }
    }

    /// At once.
    fn threads(self) -> u32 {
        match self {
            Self::Object | Self::Verdict => 2,
            // Senders and an agent keep both processors busy: a second test would look slow to the first.
            Self::System | Self::Vm => 1,
        }
    }
}

/// Runs the matrix as a command of its own.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.package {
        let packages = if options.again {
            dist::two_built()
        } else {
            dist::two_builds()
        };
        return acceptance::run(&packages?, options.publish).map(close);
    }
    let ledger = Ledger::begin()?;
    let count = matrix(options, &ledger)?;
    if let Some(table) = ledger.table()? {
        println!("\n{table}");
    }
    Ok(close(count))
}

/// Runs the tiers on all kernels.
pub(crate) fn matrix(options: &Options, ledger: &Ledger) -> anyhow::Result<Count> {
    let chosen = |tier: &Tier| options.tiers.is_empty() || options.tiers.contains(tier);
    let mut plan = Vec::new();
    for tier in Tier::value_variants().iter().copied().filter(chosen) {
        let mut targets = binaries::targets(tier.prefix())?;
        targets.retain(|target| left_out(target).is_none());
        let built = binaries::build(&targets, tier == Tier::System)?;
        plan.extend(built.into_iter().map(|binary| (tier, binary)));
    }
    for file in &options.file {
        if !plan.iter().any(|(_, binary)| binary.name == *file) {
            bail!("{file} is no test file of these tiers that runs on other kernels");
        }
    }
    let agent = cargo::build()?;
    let mut kernels = Vec::new();
    for series in Series::value_variants() {
        if options.kernel.is_empty() || options.kernel.contains(series) {
            kernels::provide(*series)?;
            kernels.push(Kernel::find(series.name())?);
        }
    }
    let run = Run {
        plan: &plan,
        agent: &agent,
        kernels: &kernels,
        record: &Record::open(plan.iter().map(|(_, binary)| binary))?,
        options,
        ledger,
    };
    if options.publish {
        run.publish()?;
    }
    let mut all = Count::default();
    for kernel in &kernels {
        // One after the other: an emulated machine has two processors and keeps as many of this one's busy. Where
        // two share those, senders starve the far side and commands take minutes.
        let (count, took) = run.on(kernel);
        let (count_line, seconds) = (closing_line(count), took.as_secs());
        println!("kernel {}: {count_line} ({seconds} s)", kernel.release());
        all.add(count);
    }
    Ok(all)
}

/// What is run on each kernel.
struct Run<'r> {
    plan: &'r [(Tier, Binary)],
    agent: &'r Path,
    kernels: &'r [Kernel],
    record: &'r Record,
    options: &'r Options,
    ledger: &'r Ledger,
}

impl Run<'_> {
    /// Boots the kernel for each tier, so that one tier's mess is not the next one's. A tier that cannot
    /// be run has failed.
    fn on(&self, kernel: &Kernel) -> (Count, Duration) {
        let start = Instant::now();
        let mut all = Count::default();
        for tier in Tier::value_variants() {
            let chosen = |binary: &&Binary| {
                let files = &self.options.file;
                files.is_empty() || files.contains(&binary.name)
            };
            let binaries: Vec<&Binary> = binaries_of(*tier, self.plan).filter(chosen).collect();
            if binaries.is_empty() {
                continue;
            }
            say(kernel, &format!("=== {}", tier.prefix()));
            let count = self.tier_on(kernel, *tier, &binaries);
            all.add(count.unwrap_or_else(|error| {
                say(kernel, &format!("FAILED: {}: {error:#}", tier.prefix()));
                Count::failure()
            }));
        }
        (all, start.elapsed())
    }

    fn tier_on(&self, kernel: &Kernel, tier: Tier, binaries: &[&Binary]) -> anyhow::Result<Count> {
        let lab = Lab::new("matrix")?;
        let host = lab.netns("machine")?;
        let copies = copies(binaries, self.agent);
        let files = match tier {
            Tier::Object | Tier::Verdict | Tier::System => Files::Everything,
            Tier::Vm => Files::Copies(&copies),
        };
        let boot = || -> anyhow::Result<Testbed> {
            let mut machine = Testbed::boot(&host, kernel, files)?;
            prepare(&mut machine, self.agent)?;
            Ok(machine)
        };
        let mut count = Count::default();
        let mut machine = None;
        for binary in binaries {
            let before = if self.options.resume {
                self.record.find(kernel.release(), &binary.name)
            } else {
                None
            };
            let outcome = if let Some(outcome) = before {
                say(kernel, &format!("--- {}: passed before", binary.name));
                outcome
            } else {
                let its = match &mut machine {
                    Some(machine) => machine,
                    None => machine.insert(boot()?),
                };
                let outcome = self.outcome_on(its, kernel, binary, tier);
                let outcome = outcome.unwrap_or_else(|error| {
                    say(kernel, &format!("FAILED: {}: {error:#}", binary.name));
                    Outcome::failure()
                });
                if outcome.count.failed > 0 {
                    // The next binary is not to find what this one may have left.
                    machine = None;
                }
                if self.options.publish {
                    self.record.keep(kernel.release(), &binary.name, &outcome)?;
                    self.publish()?;
                }
                outcome
            };
            count.add(outcome.count);
            count.skip(&outcome.skips);
            keep(&outcome.tried, self.ledger)?;
        }
        Ok(count)
    }

    /// Writes the table of all that has passed so far.
    fn publish(&self) -> anyhow::Result<()> {
        let mut passed = Vec::new();
        for kernel in self.kernels {
            let mut tiers = Vec::new();
            for tier in Tier::value_variants() {
                let binaries = binaries_of(*tier, self.plan);
                let outcomes = binaries.map(|Binary { name, .. }| {
                    let outcome = self.record.find(kernel.release(), name);
                    (name.as_str(), outcome)
                });
                tiers.push((tier.prefix(), outcomes.collect()));
            }
            passed.push((kernel.release(), tiers));
        }
        let table = report::markdown(&sources::commit()?, &passed);
        document::publish(DOCUMENT, &format!("{table}\n{}", scope::list()))
    }

    /// Runs one test binary, and takes what it wrote down at once: a later one may end the machine.
    fn outcome_on(
        &self,
        machine: &mut Testbed,
        kernel: &Kernel,
        binary: &Binary,
        tier: Tier,
    ) -> anyhow::Result<Outcome> {
        Ok(Outcome {
            count: binary_on(machine, kernel, binary, tier, self.options)?,
            skips: take(machine, SKIPS)?,
            tried: take(machine, LEDGER)?,
        })
    }
}

fn binaries_of(tier: Tier, plan: &[(Tier, Binary)]) -> impl Iterator<Item = &Binary> {
    let its = plan.iter().filter(move |(other, _)| *other == tier);
    its.map(|(_, binary)| binary)
}

/// Prints a line with the kernel that it is about, so that an excerpt says where it was.
fn say(kernel: &Kernel, line: &str) {
    println!("{} | {line}", kernel.release());
}

/// What a machine needs that has nothing but copies.
fn copies(binaries: &[&Binary], agent: &Path) -> Vec<PathBuf> {
    let mut files = vec![
        agent.to_owned(),
        cargo::target().join("debug/gate25-tenant"),
    ];
    for binary in binaries {
        files.push(binary.file.clone());
        // So that the folder is there.
        files.push(binary.folder.join("Cargo.toml"));
    }
    files
}

/// Sets in the machine's shell what `cargo xtask test` sets in the environment.
fn prepare(machine: &mut Testbed, agent: &Path) -> anyhow::Result<()> {
    let tools = cargo::root().join(".cache/tools/bin");
    let line = format!(
        "export GATE25_ROOT_TESTS=1 GATE25_BIN={} GATE25_SKIPS={SKIPS} GATE25_LEDGER={LEDGER} \
         GATE25_SLOWNESS={SLOWNESS} PATH={}:$PATH && : >{SKIPS} && : >{LEDGER}",
        quoted(agent),
        quoted(&tools),
    );
    let (code, said) = machine.run(&line, MOMENT)?;
    if code != 0 {
        bail!("prepare the machine: exit code {code}: {said}");
    }
    Ok(())
}

/// Runs one test binary to its end.
fn binary_on(
    machine: &mut Testbed,
    kernel: &Kernel,
    binary: &Binary,
    tier: Tier,
    options: &Options,
) -> anyhow::Result<Count> {
    say(kernel, &format!("--- {}", binary.name));
    let filter = options
        .filter
        .as_deref()
        .map_or_else(String::new, |text| format!(" {}", quoted(Path::new(text))));
    // What the verifier went through, and how many packets of which kind there were.
    let shown = match tier {
        Tier::Object | Tier::Verdict => " --show-output",
        Tier::System | Tier::Vm => "",
    };
    let skipped = LEFT_OUT_TESTS.map(|(name, _)| format!(" --skip={name}"));
    let skipped = skipped.concat();
    let line = format!(
        "cd {} && {} --color=never --test-threads={}{shown}{skipped}{filter}",
        quoted(&binary.folder),
        quoted(&binary.file),
        tier.threads()
    );
    let mut found = None;
    let code = machine.follow(&line, PATIENCE, &mut |line| {
        say(kernel, line);
        found = summary(line).or(found);
    })?;
    let count = found.with_context(|| format!("exit code {code} and no summary"))?;
    if (code == 0) != (count.failed == 0) {
        bail!("exit code {code}, although {count:?}");
    }
    Ok(count)
}

/// What is in a file of the machine, which is empty afterwards.
fn take(machine: &mut Testbed, file: &str) -> anyhow::Result<String> {
    let (code, text) = machine.run(&format!("cat {file} && : >{file}"), MOMENT)?;
    if code != 0 {
        bail!("cat {file}: exit code {code}: {text}");
    }
    Ok(text)
}

/// Adds what was tried in the machine to what is tried outside.
fn keep(tried: &str, ledger: &Ledger) -> anyhow::Result<()> {
    let path = ledger.path();
    let mut file = OpenOptions::new()
        .append(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    file.write_all(tried.as_bytes())
        .with_context(|| format!("write {}", path.display()))
}

/// As one word of shell.
fn quoted(word: &Path) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_word_with_a_quote_stays_one_word() {
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
    }
}
