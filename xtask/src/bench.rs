//! `bench`: what gate25 costs, measured side by side with what else does the same.

mod figures;
mod frames;
mod lane;
mod path;
mod program;
mod rules;
mod samples;
mod scale;

use std::{env, process::ExitCode, time::Duration};

use gate25_tests::Lab;

use crate::{bench::figures::Figures, cargo};

/// What to measure, and how to say it.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these parts; all when none is named.
    parts: Vec<Part>,
    /// Take less than two minutes, for noisier figures.
    #[arg(long)]
    quick: bool,
    /// Print one flat JSON object.
    #[arg(long)]
    json: bool,
    /// Print the table of the document.
    #[arg(long)]
    markdown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Programs alone.
    Program,
    /// Packets on their way through a host.
    Path,
}

/// How often things are repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Rounds in which everything has its turn.
    pub(crate) rounds: u32,
    /// Runs of a program in a turn.
    pub(crate) runs: u32,
    /// How long a turn of injected packets takes.
    pub(crate) turn: Duration,
    /// Whether policies of many sizes are measured.
    pub(crate) growth: bool,
}

impl Pace {
    const QUICK: Self = Self {
        rounds: 7,
        runs: 100_000,
        turn: Duration::from_millis(50),
        growth: false,
    };
    const FULL: Self = Self {
        rounds: 25,
        runs: 400_000,
        turn: Duration::from_millis(200),
        growth: true,
    };
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    // Another agent than this checkout's is measured where somebody names one.
    if env::var_os("GATE25_BIN").is_none() {
        cargo::build()?;
    }
    let pace = if options.quick { Pace::QUICK } else { Pace::FULL };
    let mut figures = Figures::default();
    let chosen = |part| options.parts.is_empty() || options.parts.contains(&part);
    if chosen(Part::Program) {
        program::measure(&Lab::new("program")?, pace, &mut figures)?;
    }
    if chosen(Part::Path) {
        path::measure(&Lab::new("path")?, pace, &mut figures)?;
    }
    if options.json {
        println!("{:#}", figures.json());
    }
    Ok(ExitCode::SUCCESS)
}
