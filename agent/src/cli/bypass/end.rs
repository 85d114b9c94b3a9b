//! `gate25 bypass end`: refuses again, with the agent alive or dead.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::chain::in_full;
use crate::cli::console::{Console, FAILED, Reader, Surroundings, is_root};
use crate::control::client::{Client, ClientError};
use crate::control::messages::{Bypass, BypassRequest, Mode, Status, Teller};
use crate::diagnostic::escape;
use crate::kernel::bpf::leftover::Leftover;
use crate::kernel::bpf::pins::DEFAULT_FILESYSTEM;
use crate::state::lock::ExclusiveLock;

/// How it is done.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
    /// BPF filesystem on which tables and links are pinned
    #[arg(long, hide = true, value_name = "DIR", default_value = DEFAULT_FILESYSTEM)]
    pub bpffs: PathBuf,
}

/// What was done without an agent, for programs.
#[derive(Debug, Serialize)]
struct Ended {
    agent: Teller,
    dry_run: bool,
}

/// Asks the agent, or does it where none runs.
///
/// # Errors
/// Writing failed.
pub(super) fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    let settings = console.settings_or_defaults(surroundings)?.settings;
    let client = Client::new(&settings.control.socket);
    let asked = match args.dry_run {
        true => client.status(),
        false => client.bypass(&BypassRequest::default()),
    };
    match asked {
        Ok(status) => told(args, reader, &status, console),
        Err(error) if error.is_nobody() && is_root() => {
            without_agent(args, reader, &error, console)
        }
        Err(error) => console.no_answer(&error),
    }
}

fn told(
    args: &Args,
    reader: Reader,
    status: &Status,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    match (reader, &status.bypass) {
        (Reader::Programs, _) => console.json(status)?,
        (Reader::People, Some(Bypass { ends, ticket, .. })) if args.dry_run => writeln!(
            console.out,
            "this host would refuse again what the policy refuses, before {ends} ({})",
            escape(ticket)
        )?,
        (Reader::People, Some(Bypass { ends, ticket, .. })) => writeln!(
            console.out,
            "this host only observes until {ends} ({}) all the same",
            escape(ticket)
        )?,
        (Reader::People, None) => writeln!(console.out, "{}", without_bypass(status))?,
    }
    Ok(match (args.dry_run, &status.bypass) {
        (true, _) | (false, None) => ExitCode::SUCCESS,
        (false, Some(_)) => ExitCode::from(FAILED),
    })
}

/// What a host does that nobody has bypassed.
fn without_bypass(status: &Status) -> &'static str {
    match (status.mode, status.enforcing) {
        (Mode::Observe, _) => "no bypass; this host only observes, by its settings",
        (Mode::Policy, true) => "no bypass; this host refuses what the policy refuses",
        (Mode::Policy, false) => {
            "no bypass; not everything is enforced: `gate25 status` says what is missing"
        }
    }
}

/// The programs go by a pinned table, whoever writes it.
fn without_agent(
    args: &Args,
    reader: Reader,
    error: &ClientError,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let ended = end(&args.bpffs, args.dry_run);
    if let Err(why) = ended {
        let code = console.no_answer(error)?;
        console.say(&why)?;
        return Ok(code);
    }
    match (reader, args.dry_run) {
        (Reader::Programs, dry_run) => console.json(&Ended {
            agent: Teller::Stopped,
            dry_run,
        })?,
        (Reader::People, true) => {
            writeln!(console.out, "no bypass would be set any more")?;
        }
        (Reader::People, false) => {
            writeln!(console.out, "no bypass is set any more")?;
            writeln!(
                console.out,
                "no agent runs: connections of containers that were let through hang until one does"
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn end(filesystem: &Path, dry_run: bool) -> Result<(), String> {
    let leftover = Leftover::at(filesystem);
    match leftover.exists() {
        Ok(true) => {}
        Ok(false) => return Err("no agent has left anything that could be bypassed".to_owned()),
        Err(error) => return Err(in_full(&error)),
    }
    // Held to the end, so that no agent starts meanwhile.
    let _lock = ExclusiveLock::acquire(leftover.folder()).map_err(|error| in_full(&error))?;
    match dry_run {
        true => leftover.bypass().map(drop),
        false => leftover.end_bypass(),
    }
    .map_err(|error| in_full(&error))
}
