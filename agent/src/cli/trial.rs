//! `gate25 confirm` and `gate25 undo`: what becomes of a change that undoes itself.

use std::io;
use std::process::ExitCode;

use crate::cli::console::{Console, FAILED, Reader, Surroundings};
use crate::control::client::{Client, ClientError};
use crate::control::messages::{DecisionRequest, Trial};
use crate::diagnostic::escape;

/// How it is done.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only say what would come of it
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
}

/// Has the agent keep what is on trial.
///
/// # Errors
/// Writing failed.
pub fn confirm(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    ask(Client::confirm, args, surroundings, console)
}

/// Has the agent go back to what ran before the last change.
///
/// # Errors
/// Writing failed.
pub fn undo(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    ask(Client::undo, args, surroundings, console)
}

fn ask(
    what: fn(&Client, &DecisionRequest) -> Result<Trial, ClientError>,
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    let settings = console.settings_or_defaults(surroundings)?.settings;
    let request = DecisionRequest {
        dry_run: args.dry_run,
    };
    let outcome = match what(&Client::new(&settings.control.socket), &request) {
        Ok(outcome) => outcome,
        Err(error) => return console.no_answer(&error),
    };
    match reader {
        Reader::Programs => console.json(&outcome)?,
        Reader::People => match &outcome {
            Trial::Confirmed => writeln!(console.out, "confirmed: the files stay in force")?,
            Trial::Undone { hash } => {
                writeln!(console.out, "undone: the set before runs, hash {hash}")?;
                writeln!(
                    console.out,
                    "the files are not taken over until they change, or by `gate25 reload --take-undone`"
                )?;
            }
            Trial::WouldConfirm => writeln!(console.out, "the files would stay in force")?,
            Trial::WouldUndo { hash, accepted } => writeln!(
                console.out,
                "the set before would run, accepted at {accepted}, hash {hash}"
            )?,
            Trial::Refused { message } => console.say(&escape(message))?,
        },
    }
    Ok(match outcome {
        Trial::Confirmed | Trial::Undone { .. } | Trial::WouldConfirm | Trial::WouldUndo { .. } => {
            ExitCode::SUCCESS
        }
        Trial::Refused { .. } => ExitCode::from(FAILED),
    })
}
