//! `gate25 reload`: has the agent read its policy files now.

use std::io;
use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};

use crate::cli::console::{Console, FAILED, Reader, Surroundings};
use crate::cli::term::of_trial;
use crate::control::client::Client;
use crate::control::messages::{OnTrial, Reload, ReloadRequest, TrialRequest};

/// Has the agent read the policy files now
///
/// With `--wait` it exits with 0 once they are in force, with 1 if they are refused; without, it does
/// not say what comes of it. It exits with 4 where no agent answers.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Return when the files are in force or refused, and say which
    #[arg(long)]
    pub wait: bool,
    /// Take a set over even if it lost much of the running one
    #[arg(long)]
    pub accept_shrink: bool,
    /// Take over files that were undone, too
    #[arg(long)]
    pub take_undone: bool,
    /// Only say what would come of it
    #[arg(long)]
    pub dry_run: bool,
    /// Go back to the set before after this time, as in 5m and at most 7d, unless `gate25 confirm` is
    /// run; returns as with `--wait`
    #[arg(long, value_name = "TERM", value_parser = of_trial, conflicts_with_all = ["dry_run", "wait"])]
    pub confirm_within: Option<SignedDuration>,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
}

/// Asks the agent and prints what became of it.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    let settings = console.settings_or_defaults(surroundings)?.settings;
    let client = Client::new(&settings.control.socket);
    let asked = match args.confirm_within {
        // Whoever has to confirm has to know whether there is something.
        Some(term) => client.trial(&TrialRequest {
            seconds: term.as_secs().unsigned_abs(),
            accept_shrink: args.accept_shrink,
        }),
        None => client.reload(&ReloadRequest {
            accept_shrink: args.accept_shrink,
            dry_run: args.dry_run,
            wait: args.wait,
            take_undone: args.take_undone,
        }),
    };
    let outcome = match asked {
        Ok(outcome) => outcome,
        Err(error) => return console.no_answer(&error),
    };
    match reader {
        Reader::Programs => console.json(&outcome)?,
        Reader::People => {
            print(&outcome, console)?;
            if args.confirm_within.is_some() && outcome == Reload::Unchanged {
                writeln!(
                    console.out,
                    "nothing is on trial: `gate25 undo` goes back all the same"
                )?;
            }
        }
    }
    Ok(code(&outcome))
}

/// How a command exits that had the files read.
pub(super) fn code(outcome: &Reload) -> ExitCode {
    match outcome {
        Reload::Accepted { .. }
        | Reload::Applied { .. }
        | Reload::OnTrial { .. }
        | Reload::WouldApply { .. }
        | Reload::Unchanged => ExitCode::SUCCESS,
        Reload::Held { .. } | Reload::Refused { .. } | Reload::Shrunk { .. } => {
            ExitCode::from(FAILED)
        }
    }
}

/// What is said of a change that is undone with others unless somebody confirms them.
pub(super) fn joins(ends: Timestamp) -> String {
    format!(
        "on trial with what was before, undone at {ends} unless `gate25 confirm` is run by then"
    )
}

fn held(since: Timestamp) -> String {
    format!(
        "held: what the files say was undone at {since}, and the set before runs until they change; \
         `gate25 reload --take-undone` takes them over"
    )
}

/// Says what became of it.
pub(super) fn print(outcome: &Reload, console: &mut Console<'_>) -> io::Result<()> {
    let out = &mut console.out;
    match outcome {
        Reload::Accepted { trial } => {
            writeln!(out, "accepted: the agent reads the files")?;
            match trial {
                None => Ok(()),
                Some(OnTrial::Running { ends }) => writeln!(out, "{}", joins(*ends)),
                Some(OnTrial::Undone { at }) => writeln!(out, "{}", held(*at)),
            }
        }
        Reload::Applied {
            generation,
            hash,
            writes,
        } => writeln!(
            out,
            "applied: generation {generation}, {writes} table writes, hash {hash}"
        ),
        Reload::OnTrial {
            generation,
            hash,
            writes,
            ends,
            base,
        } => {
            writeln!(
                out,
                "on trial until {ends}: generation {generation}, {writes} table writes, hash {hash}"
            )?;
            writeln!(
                out,
                "unless `gate25 confirm` is run by then, the set before runs again, hash {base}"
            )
        }
        Reload::WouldApply { hash, writes } => {
            writeln!(out, "valid: {writes} table writes, hash {hash}")
        }
        Reload::Unchanged => writeln!(out, "unchanged: these files are in force"),
        Reload::Held { since } => writeln!(out, "{}", held(*since)),
        Reload::Refused {
            message,
            diagnostics,
        } => {
            for diagnostic in diagnostics {
                writeln!(out, "{}\n", diagnostic.text)?;
            }
            writeln!(out, "refused: {message}; the running policy stays")
        }
        Reload::Shrunk { message } => {
            writeln!(out, "refused: {message}; the running policy stays")?;
            writeln!(
                out,
                "if that is meant: gate25 reload --wait --accept-shrink"
            )
        }
    }
}
