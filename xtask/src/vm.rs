//! The kernel matrix: the test binaries of this checkout, run on other kernels under QEMU.

mod passed;

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
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
use passed::{Outcome, Passed};

/// How many times slower than the machine itself the emulated one is taken to be.
const SLOWNESS: u32 = 10;
/// For one test binary.
const PATIENCE: Patience = Patience {
    whole: Duration::from_secs(60 * 60),
    silent: Duration::from_secs(10 * 60),
};
/// For a command that only reads a file.
const MOMENT: Duration = Duration::from_secs(60);
const SKIPS: &str = "/run/gate25.skips";
const LEDGER: &str = "/run/gate25.ledger";
/// The document that holds the table.
const DOCUMENT: &str = "tests/KERNELS.md";

/// What stays outside, and why.
const LEFT_OUT: [(&str, &str); 14] = [
    ("system_container", "crun, podman and LXC"),
    ("system_container_lab", "crun, podman and LXC"),
    ("system_control", "commands, not kernels"),
    ("system_exempt", "the policy's files, not kernels"),
    ("system_lab", "mail servers without an agent"),
    ("system_meter", "the leak meter itself"),
    ("system_notice", "mail servers"),
    ("system_prometheus", "Prometheus, not kernels"),
    ("system_recovery", "commands, not kernels"),
    ("system_reload", "the policy's files, not kernels"),
    ("system_state", "files, not kernels"),
    ("system_trial", "what is kept of a policy, not kernels"),
    ("system_vm", "a virtual machine in the virtual machine"),
    ("system_vm_gate", "a virtual machine in the virtual machine"),
];

/// Tests whose names contain this stay outside, and why.
const LEFT_OUT_TESTS: [(&str, &str); 4] = [
    (
        "events_that_nobody_reads",
        "half a million packets, not kernels",
    ),
    ("slow_nft", "how long a program takes, not kernels"),
    ("ten_thousand", "large numbers, not kernels"),
    ("hundred_times", "large numbers, not kernels"),
];

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
    /// Do not repeat what passed before with the very same binaries.
    #[arg(long, conflicts_with = "filter")]
    resume: bool,
    /// Put the table of kernels and what came of them into tests/KERNELS.md: the whole one. With --package
    /// that of the steps into tests/PACKAGE.md.
    #[arg(long, conflicts_with_all = ["tiers", "kernel", "filter"])]
    publish: bool,
    /// Instead of the tests: install the package on a Debian of its own, boot it, upgrade it, remove it.
    #[arg(long, conflicts_with_all = ["tiers", "kernel", "filter", "resume"])]
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

/// Runs the tiers on all kernels, side by side.
pub(crate) fn matrix(options: &Options, ledger: &Ledger) -> anyhow::Result<Count> {
    let chosen = |tier: &Tier| options.tiers.is_empty() || options.tiers.contains(tier);
    let mut plan = Vec::new();
    for tier in Tier::value_variants().iter().copied().filter(chosen) {
        let mut targets = binaries::targets(tier.prefix())?;
        targets.retain(|target| left_out(target).is_none());
        let built = binaries::build(&targets, tier == Tier::System)?;
        plan.extend(built.into_iter().map(|binary| (tier, binary)));
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
        options,
        ledger,
    };
    // An emulated machine keeps one processor busy.
    let rows = thread::scope(|scope| {
        let threads = kernels.iter().map(|kernel| scope.spawn(|| run.on(kernel)));
        let threads: Vec<_> = threads.collect();
        let rows = threads.into_iter().map(|thread| {
            let row = thread.join();
            row.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        rows.collect::<Vec<Row>>()
    });
    let mut all = Count::default();
    for row in &rows {
        all.add(row.sum());
    }
    let report = format!("{}\n{}", markdown(&rows), left_out_list());
    println!("\n{report}");
    if options.publish {
        document::publish(DOCUMENT, &report)?;
    }
    for row in rows {
        println!("{}", row.line());
    }
    Ok(all)
}

/// What came of the tiers on one kernel.
#[derive(Debug)]
struct Row {
    release: String,
    tiers: Vec<(Tier, Count)>,
    took: Duration,
}

impl Row {
    fn new(release: &str, tiers: Vec<(Tier, Count)>, took: Duration) -> Self {
        let release = release.strip_suffix("-amd64").unwrap_or(release).to_owned();
        Self {
            release,
            tiers,
            took,
        }
    }

    fn sum(&self) -> Count {
        let mut sum = Count::default();
        for (_, count) in &self.tiers {
            sum.add(*count);
        }
        sum
    }

    fn line(&self) -> String {
        let Count {
            passed,
            failed,
            skipped,
        } = self.sum();
        format!(
            "kernel {}: {passed} passed, {failed} failed, {skipped} skipped ({:.0} s)",
            self.release,
            self.took.as_secs_f64()
        )
    }
}

/// A row for each kernel, a column for each tier.
fn markdown(rows: &[Row]) -> String {
    let tiers = Tier::value_variants();
    let names: Vec<&str> = tiers.iter().map(|tier| tier.prefix()).collect();
    let mut text = format!(
        "| kernel | {} |\n|---{}|\n",
        names.join(" | "),
        "|---".repeat(tiers.len())
    );
    for row in rows {
        text.push_str(&format!("| {} |", row.release));
        for tier in tiers {
            let found = row.tiers.iter().find(|(its, _)| its == tier);
            let cell =
                found.map_or_else(|| "not run".to_owned(), |(_, count)| closing_line(*count));
            text.push_str(&format!(" {cell} |"));
        }
        text.push('\n');
    }
    text
}

fn left_out_list() -> String {
    let mut text =
        "Left out, since no kernel changes what comes of them, or the machine cannot:\n\n"
            .to_owned();
    for (name, why) in LEFT_OUT.into_iter().chain(LEFT_OUT_TESTS) {
        text.push_str(&format!("- `{name}`: {why}\n"));
    }
    text
}

fn left_out(target: &str) -> Option<&'static str> {
    let entry = LEFT_OUT.iter().find(|(name, _)| *name == target);
    entry.map(|(_, why)| *why)
}

/// What is run on each kernel.
struct Run<'r> {
    plan: &'r [(Tier, Binary)],
    agent: &'r Path,
    options: &'r Options,
    ledger: &'r Ledger,
}

impl Run<'_> {
    /// Boots the kernel for each tier, so that one tier's mess is not the next one's. A tier that cannot
    /// be run has failed.
    fn on(&self, kernel: &Kernel) -> Row {
        let start = Instant::now();
        let mut counts = Vec::new();
        for tier in Tier::value_variants() {
            let binaries: Vec<&Binary> = self
                .plan
                .iter()
                .filter(|(its, _)| its == tier)
                .map(|(_, binary)| binary)
                .collect();
            if binaries.is_empty() {
                continue;
            }
            say(kernel, &format!("=== {}", tier.prefix()));
            let count = self.tier_on(kernel, *tier, &binaries);
            let count = count.unwrap_or_else(|error| {
                say(kernel, &format!("FAILED: {}: {error:#}", tier.prefix()));
                Count::failure()
            });
            counts.push((*tier, count));
        }
        Row::new(kernel.release(), counts, start.elapsed())
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
        let passed = Passed::with(self.agent)?;
        let mut count = Count::default();
        let mut machine = None;
        for binary in binaries {
            let before = if self.options.resume {
                passed.find(kernel.release(), binary)?
            } else {
                None
            };
            let outcome = if let Some(outcome) = before {
                say(kernel, &format!("--- {}: passed before", binary.name));
                Ok(outcome)
            } else {
                let machine = match &mut machine {
                    Some(machine) => machine,
                    None => machine.insert(boot()?),
                };
                self.outcome_on(machine, kernel, binary, tier)
            };
            match outcome {
                Ok(outcome) => {
                    if outcome.count.failed > 0 {
                        // The next binary is not to find what this one may have left.
                        machine = None;
                    } else if self.options.filter.is_none() {
                        passed.keep(kernel.release(), binary, &outcome)?;
                    }
                    count.add(outcome.count);
                    count.skip(&outcome.skips);
                    keep(&outcome.tried, self.ledger)?;
                }
                Err(error) => {
                    say(kernel, &format!("FAILED: {}: {error:#}", binary.name));
                    count.add(Count::failure());
                    machine = None;
                }
            }
        }
        Ok(count)
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

/// Prints a line with the kernel that it is about, since several run.
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
    fn left_out_names_are_those_of_files() {
        let targets = binaries::targets("system").unwrap();
        for (name, _) in LEFT_OUT {
            assert!(targets.iter().any(|target| target == name), "{name}");
        }
    }

    #[test]
    fn markdown_of_a_tier_that_was_not_run_says_so() {
        let passed = Count {
            passed: 8,
            ..Count::default()
        };
        let row = Row::new(
            "6.1.0-56-amd64",
            vec![(Tier::Object, passed)],
            Duration::from_secs(30),
        );
        assert_eq!(
            row.line(),
            "kernel 6.1.0-56: 8 passed, 0 failed, 0 skipped (30 s)"
        );
        let table = markdown(&[row]);
        let last = table.lines().last().unwrap();
        assert_eq!(
            last,
            "| 6.1.0-56 | 8 passed, 0 failed | not run | not run | not run |"
        );
    }

    #[test]
    fn quoted_word_with_a_quote_stays_one_word() {
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
    }
}
