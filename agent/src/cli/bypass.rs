//! `gate25 bypass`: this host only observes for a time, which the kernel ends.

mod end;

use std::convert::Infallible;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use gate25_common::bypass::MAX_TICKET;
use jiff::{SignedDuration, Timestamp};

use crate::chain::in_full;
use crate::cli::console::{Console, FAILED, Reader, Surroundings};
use crate::cli::term::of_bypass;
use crate::control::client::{Client, ClientError};
use crate::control::messages::{Bypass, BypassRequest, Mode, Status};
use crate::control::{ONLY_OBSERVES, already_bypassed};
use crate::dataplane::BypassError;
use crate::diagnostic::{escape, is_deceptive};

/// Has this host only observe for a time, whatever its settings say
///
/// Nothing is refused until the time is up; the kernel ends it, with the agent alive or dead. For
/// root, with the agent running and backend ebpf.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// What else
    #[command(subcommand)]
    pub what: Option<What>,
    /// How long, at most 24h
    #[arg(long = "for", value_name = "TERM", value_parser = of_bypass, required = true)]
    pub term: Option<SignedDuration>,
    /// The ticket under which
    #[arg(long, value_parser = ticket, required = true)]
    pub ticket: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
}

/// What else can be done.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum What {
    /// Refuses again, now, with the agent dead, too
    End(end::Args),
}

/// Asks the agent and says what came of it.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    if let Some(What::End(args)) = &args.what {
        return end::run(args, surroundings, console);
    }
    let request = BypassRequest {
        seconds: args.term.map(|term| term.as_secs().unsigned_abs()),
        ticket: args.ticket.clone(),
    };
    let reader = Reader::of(args.json);
    let settings = console.settings_or_defaults(surroundings)?.settings;
    let client = Client::new(&settings.control.socket);
    let answered = if args.dry_run {
        let status = client.status();
        status.and_then(|status| bypassed(status, &request, surroundings.now))
    } else {
        client.bypass(&request)
    };
    let status = match answered {
        Ok(status) => status,
        Err(error) => return console.no_answer(&error),
    };
    match (reader, &status.bypass) {
        (Reader::Programs, _) => console.json(&status)?,
        (Reader::People, Some(Bypass { ends, ticket, .. })) if args.dry_run => writeln!(
            console.out,
            "this host would only observe until {ends} ({})",
            escape(ticket)
        )?,
        (Reader::People, Some(Bypass { ends, ticket, .. })) => writeln!(
            console.out,
            "this host only observes until {ends} ({}): `gate25 bypass end` ends it now",
            escape(ticket)
        )?,
        (Reader::People, None) => {
            writeln!(console.out, "this host refuses what the policy refuses")?
        }
    }
    // What was asked for must be so.
    Ok(match &status.bypass {
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::from(FAILED),
    })
}

/// How the agent would be, or why it would refuse.
fn bypassed(
    status: Status,
    request: &BypassRequest,
    now: Timestamp,
) -> Result<Status, ClientError> {
    if status.mode == Mode::Observe {
        return Err(ClientError::Refused(ONLY_OBSERVES.to_owned()));
    }
    if status.backend.name == "nftables" {
        let why = BypassError::<Infallible>::Unsupported.to_string();
        return Err(ClientError::Refused(why));
    }
    if let Some(other) = &status.bypass
        && request.ticket.as_ref() != Some(&other.ticket)
    {
        return Err(ClientError::Refused(already_bypassed(&other.ticket)));
    }
    let seconds = request.seconds.unwrap_or_default();
    let ends = now.checked_add(Duration::from_secs(seconds));
    let ends = ends.map_err(|error| ClientError::Refused(in_full(&error)))?;
    Ok(Status {
        enforcing: false,
        bypass: Some(Bypass {
            ends,
            since: now,
            ticket: request.ticket.clone().unwrap_or_default(),
        }),
        ..status
    })
}

fn ticket(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.len() > MAX_TICKET || text.contains(is_deceptive) {
        return Err(format!("write a ticket's name of 1 to {MAX_TICKET} bytes"));
    }
    Ok(text.to_owned())
}
