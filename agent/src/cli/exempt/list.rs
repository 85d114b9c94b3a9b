//! `gate25 exempt list`: the exemptions in the files, whether an agent runs or not.

use std::io;
use std::process::ExitCode;

use gate25_common::abi::CustomerId;
use jiff::Timestamp;
use serde::Serialize;

use super::ListArgs;
use crate::cli::console::{Console, Reader, Surroundings};
use crate::cli::files;
use crate::control::messages::Term;
use crate::policy::Exemption;
use crate::policy::loader::{Circumstances, Purpose};

#[derive(Serialize)]
struct Listed {
    exemptions: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    id: String,
    customer: String,
    state: Term,
    starts: Option<Timestamp>,
    expires: Timestamp,
    ticket: String,
    file: String,
    line: u32,
}

/// Reads the files and prints the exemptions, those that end first at the top.
pub(super) fn run(
    args: &ListArgs,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    let settings = match console.settings(reader, surroundings)? {
        Ok(settings) => settings,
        Err(code) => return Ok(code),
    };
    let now = surroundings.now;
    let circumstances = Circumstances {
        // What an agent would run, whatever is said of terms.
        purpose: Purpose::Run,
        now,
        customer_key: |id| CustomerId::from_name(id).get(),
    };
    let dir = args.dir.as_deref().unwrap_or(&settings.policy_dir);
    let set = files::policy(dir, &circumstances);
    let Some(policy) = set.policy else {
        return console.refuse(reader, surroundings.colour, &set.diagnostics);
    };
    let ends_soon = |exemption: &Exemption| match args.expiring {
        None => true,
        Some(term) => exemption.expires > now && exemption.expires.duration_since(now) <= term,
    };
    let mut lines: Vec<Line> = policy
        .exemptions
        .iter()
        .filter(|(_, exemption)| ends_soon(exemption))
        .map(|(id, exemption)| line(id, exemption, now))
        .collect();
    lines.sort_by(|a, b| (a.expires, &a.id).cmp(&(b.expires, &b.id)));
    match reader {
        Reader::Programs => console.json(&Listed { exemptions: lines })?,
        Reader::People => {
            let headings = [
                "id", "customer", "state", "starts", "expires", "ticket", "place",
            ];
            let rows: Vec<_> = lines.iter().map(cells).collect();
            console.rows(surroundings.layout, &headings, &rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(id: &str, exemption: &Exemption, now: Timestamp) -> Line {
    let Exemption {
        customer,
        reason: _,
        ticket,
        approved_by: _,
        starts,
        expires,
        to: _,
        origin,
    } = exemption;
    Line {
        id: id.to_owned(),
        customer: customer.clone(),
        state: Term::at(now, *starts, *expires),
        starts: *starts,
        expires: *expires,
        ticket: ticket.clone(),
        file: origin.file.to_string_lossy().into_owned(),
        line: origin.line,
    }
}

fn cells(line: &Line) -> Vec<String> {
    let Line {
        id,
        customer,
        state,
        starts,
        expires,
        ticket,
        file,
        line,
    } = line;
    vec![
        id.clone(),
        customer.clone(),
        state.as_str().to_owned(),
        starts.map_or_else(|| "-".to_owned(), |starts| starts.to_string()),
        expires.to_string(),
        ticket.clone(),
        format!("{file}:{line}"),
    ]
}
