//! Fuzzing by cargo-fuzz: each target counts as one test.

use std::{
    fs,
    path::PathBuf,
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    binaries,
    cargo::{Count, LIMIT, cargo, close, display, root, target, wait},
};

/// In the short run, for each target.
const SHORT: u64 = 15;
/// Inputs longer than this teach nothing new.
const MAX_LENGTH: usize = 4096;
/// libFuzzer's bound on one input, in seconds.
const ONE_INPUT: u64 = 10;

/// What to fuzz, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only targets whose names contain this.
    filter: Option<String>,
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
}

impl Options {
    pub(crate) fn short(filter: Option<String>) -> Self {
        Self {
            filter,
            seconds: SHORT,
        }
    }
}

/// Runs the targets and says how many held.
pub(crate) fn command(options: &Options) -> anyhow::Result<ExitCode> {
    run(options).map(close)
}

/// Runs each target on its corpus and on what grows from it. What is found is kept below the target
/// folder; the corpus in the repository is for people to extend.
pub(crate) fn run(options: &Options) -> anyhow::Result<Count> {
    let mut count = Count::default();
    for name in binaries::targets_in(&folder().join("targets"), "")? {
        if let Some(filter) = &options.filter
            && !name.contains(filter.as_str())
        {
            continue;
        }
        if fuzz(&name, options.seconds)? {
            println!("test fuzz {name} ... ok");
            count.passed += 1;
        } else {
            println!("test fuzz {name} ... FAILED");
            count.failed += 1;
        }
    }
    Ok(count)
}

fn fuzz(name: &str, seconds: u64) -> anyhow::Result<bool> {
    let grown = target().join("fuzz-corpus").join(name);
    fs::create_dir_all(&grown).with_context(|| format!("create {}", grown.display()))?;
    let mut command = cargo("fuzz");
    // The code under test has no unsafe parts; coverage without a sanitizer needs no nightly Rust.
    command
        .args(["run", "--sanitizer", "none", "--fuzz-dir"])
        .arg(folder())
        .arg("--target-dir")
        .arg(target().join("fuzz"))
        .args([name.to_owned()])
        .args([&grown, &folder().join("corpus").join(name)])
        .args([
            "--".to_owned(),
            format!("-max_total_time={seconds}"),
            format!("-max_len={MAX_LENGTH}"),
            format!("-timeout={ONE_INPUT}"),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
        ]);
    println!("$ {}", display(&command));
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .context("start cargo fuzz")?;
    Ok(wait(&mut child, LIMIT + Duration::from_secs(seconds))?.success())
}

fn folder() -> PathBuf {
    root().join("tests/fuzz")
}
