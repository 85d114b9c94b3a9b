//! The long run: faults under the leak meter, over and over until the time is up.

use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    binaries,
    cargo::{self, Count, LIMIT, cargo, close, count_tests},
    document,
    ledger::{self, Ledger},
};

/// What the files of trials that can be repeated start with.
const TRIALS: [&str; 2] = ["system_faults", "system_churn"];
/// Tests that run at once, as in the tier `system`.
const THREADS: u64 = 2;
/// A test repeats its trial for so long before the next test has its turn.
const TURN: Duration = Duration::from_secs(60);

/// How long, and what.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Begins nothing more after so long.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Only tests whose names contain this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Put the table of what was tried, and what leaked, into tests/LEAKS.md: the whole one.
    #[arg(long, conflicts_with = "filter")]
    publish: bool,
}

/// Repeats the trials; the last line of the output counts the tests.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the trials need root");
    }
    let agent = cargo::build()?;
    let mut targets = Vec::new();
    for start in TRIALS {
        targets.extend(binaries::targets(start)?);
    }
    let tests = |list: bool, seconds: u64, target: &str| {
        let mut command = cargo("test");
        command.args([
            "--package",
            "gate25-tests",
            "--features",
            "gate25-tests/root",
        ]);
        command.args(["--no-fail-fast", "--test", target, "--"]);
        command.args(&options.filter);
        if list {
            command.arg("--list");
        } else {
            command.arg(format!("--test-threads={THREADS}"));
        }
        command
            .env("GATE25_ROOT_TESTS", "1")
            .env("GATE25_BIN", &agent)
            .env("GATE25_SOAK_SECONDS", seconds.to_string());
        command
    };
    let mut numbers = Vec::new();
    for target in &targets {
        let number = cargo::listed_tests(tests(true, 0, target))?;
        numbers.extend((number > 0).then_some((target, number)));
    }
    let ledger = Ledger::begin()?;
    let skips = cargo::target().join("soak.skips");
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut all = Count::default();
    let mut pass = 0;
    while !numbers.is_empty() && Instant::now() < end {
        pass += 1;
        for (at, (target, number)) in numbers.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            let waiting = numbers.iter().skip(at).map(|(_, number)| number).sum();
            let turn = turn(left, waiting);
            if turn.is_zero() {
                break;
            }
            println!(
                "=== soak, pass {pass}: {target}, {} s a trial",
                turn.as_secs()
            );
            let mut command = tests(false, turn.as_secs(), target);
            fs::write(&skips, "").with_context(|| format!("write {}", skips.display()))?;
            command
                .env("GATE25_LEDGER", ledger.path())
                .env("GATE25_SKIPS", &skips);
            // Longer than their turns take one after the other: worlds are made, rounds are ended.
            let limit = LIMIT + Duration::from_secs(turn.as_secs() * number);
            let mut count = count_tests(command, limit)?;
            count.skip(&fs::read_to_string(&skips).context("read the skips")?);
            all.add(count);
        }
    }
    println!();
    if let Some(table) = ledger.table()? {
        println!("{table}");
        if options.publish {
            document::publish(ledger::DOCUMENT, &table)?;
        }
    }
    Ok(close(all))
}

/// How long a test may take so that all that wait for their turn end in time; nothing where there
/// is no time left for one.
fn turn(left: Duration, waiting: u64) -> Duration {
    let turns = waiting.div_ceil(THREADS).max(1);
    let share = left.as_secs() / turns;
    let least = u64::from(!left.is_zero());
    Duration::from_secs(share.max(least)).min(TURN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_shares_what_is_left_among_those_that_wait() {
        let seconds = Duration::from_secs;
        assert_eq!(turn(seconds(600), 40), seconds(30));
        assert_eq!(turn(seconds(6000), 40), TURN);
        assert_eq!(turn(seconds(5), 40), seconds(1));
        assert_eq!(turn(Duration::ZERO, 40), Duration::ZERO);
    }
}
