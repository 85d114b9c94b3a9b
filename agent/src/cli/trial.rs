//! `gate25 confirm` and `gate25 undo`: what becomes of a change that undoes itself.

use std::io;
use std::process::ExitCode;

use crate::cli::console::{Console, FAILED, Reader, Surroundings};
use crate::control::client::{Client, ClientError};
use crate::control::messages::Trial;
use crate::diagnostic::escape;

/// How to print.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
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
    what: fn(&Client) -> Result<Trial, ClientError>,
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    let settings = match console.settings(reader, surroundings)? {
        Ok(settings) => settings,
        Err(code) => return Ok(code),
    };
    let outcome = match what(&Client::new(&settings.control.socket)) {
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
                    "the files are not taken over until they change, or by `gate25 reload --wait`"
                )?;
            }
            Trial::Refused { message } => console.say(&escape(message))?,
        },
    }
    Ok(match outcome {
        Trial::Confirmed | Trial::Undone { .. } => ExitCode::SUCCESS,
        Trial::Refused { .. } => ExitCode::from(FAILED),
    })
}
