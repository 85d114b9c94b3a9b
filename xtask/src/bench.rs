//! `bench`: what gate25 costs, measured side by side with what else does the same.

mod agreement;
mod control;
mod figures;
mod frames;
mod lane;
mod path;
mod plot;
mod program;
mod report;
mod rules;
mod samples;
mod scale;
mod targets;

use std::{
    env,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use gate25_tests::Lab;
use serde_json::Value;

use crate::{bench::figures::Figures, cargo, document};

/// What to measure, and how to say it.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these parts; all when none is named.
    parts: Vec<Part>,
    /// Run programs on this packet alone, by the name that its figure has, so that a profiler sees nothing else.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["parts", "json", "markdown", "publish"])]
    packet: Option<String>,
    /// Take less than two minutes, for noisier figures.
    #[arg(long)]
    quick: bool,
    /// Print one flat JSON object.
    #[arg(long)]
    json: bool,
    /// Print the table of the document.
    #[arg(long)]
    markdown: bool,
    /// Put the table into the document and draw its pictures.
    #[arg(long, conflicts_with = "quick")]
    publish: bool,
    /// Say which figures differ from those of an earlier run, its `--json`, by more than both runs' spreads.
    #[arg(long, value_name = "FILE", conflicts_with = "packet")]
    against: Option<PathBuf>,
}

/// The document that holds the table.
const DOCUMENT: &str = "tests/SPEED.md";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Programs alone.
    Program,
    /// Packets on their way through a host.
    Path,
    /// The agent: starts, edits, new guests.
    Control,
}

/// How often things are repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// How often everything is set up anew: where things come to lie in memory is another each time.
    sittings: u32,
    /// Rounds in which everything has its turn.
    pub(crate) rounds: u32,
    /// Runs of a program in a turn.
    pub(crate) runs: u32,
    /// How long a turn of injected packets takes.
    pub(crate) turn: Duration,
    /// Whether policies of many sizes are measured.
    pub(crate) growth: bool,
    /// Starts of an agent.
    pub(crate) starts: u32,
    /// Edits of one exemption, and new guests.
    pub(crate) edits: u32,
}

impl Pace {
    const QUICK: Self = Self {
        sittings: 1,
        rounds: 7,
        runs: 100_000,
        turn: Duration::from_millis(50),
        growth: false,
        starts: 2,
        edits: 8,
    };
    const FULL: Self = Self {
        sittings: 3,
        rounds: 9,
        runs: 400_000,
        turn: Duration::from_millis(150),
        growth: true,
        starts: 3,
        edits: 100,
    };
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    // Another agent than this checkout's is measured where somebody names one.
    if env::var_os("GATE25_BIN").is_none() {
        cargo::build()?;
    }
    let pace = if options.quick {
        Pace::QUICK
    } else {
        Pace::FULL
    };
    if let Some(name) = &options.packet {
        let cost = program::repeat(&Lab::new("program")?, pace, name)?;
        println!("{name}: {cost:.1} ns");
        return Ok(ExitCode::SUCCESS);
    }
    // Read before the minutes that a run takes.
    let earlier = options
        .against
        .as_deref()
        .map(agreement::read)
        .transpose()?;
    let mut figures = Figures::default();
    for _ in 0..pace.sittings {
        figures.add(sitting(options, pace)?);
    }
    let table = report::markdown(&figures);
    if options.publish {
        document::publish(DOCUMENT, &(table.clone() + &report::pictures()))?;
        plot::draw(&figures)?;
    }
    let json = figures.json();
    if let Some(earlier) = earlier {
        // Beside the JSON, where that is asked for.
        writeln!(io::stderr(), "{}", agreement::of(&earlier, &json)).context("say it")?;
    }
    if options.json {
        println!("{:#}", Value::Object(json));
    }
    if options.markdown || !options.json {
        println!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets everything up, and measures it.
fn sitting(options: &Options, pace: Pace) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let chosen = |part| options.parts.is_empty() || options.parts.contains(&part);
    if chosen(Part::Program) {
        program::measure(&Lab::new("program")?, pace, &mut figures)?;
    }
    if chosen(Part::Path) {
        path::measure(&Lab::new("path")?, pace, &mut figures)?;
    }
    if chosen(Part::Control) {
        control::measure(&Lab::new("control")?, pace, &mut figures)?;
    }
    Ok(figures)
}
