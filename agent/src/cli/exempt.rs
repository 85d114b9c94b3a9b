//! `gate25 exempt`: grants, prolongs and ends exemptions in the policy's files.

mod ask;
mod desk;
mod file;
mod list;

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::cli::console::{Console, FAILED, Reader, Surroundings};
use crate::cli::term::term;
use crate::policy::Exemption;
use crate::policy::edit::{Edit, NewExemption, Value};
use crate::policy::loader::Purpose;
use ask::{End, Interview};
use desk::Desk;

/// Grants, prolongs and ends exemptions in the policy's files
///
/// Comments, order and notation of the files stay. The whole directory is checked as it would be
/// before anything is written. What is missing is asked for on a terminal.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub what: What,
}

/// What to do.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum What {
    /// Grants an exemption
    Add(AddArgs),
    /// Prolongs an exemption
    Extend(ExtendArgs),
    /// Ends an exemption now; it stays in the file as history
    Revoke(RevokeArgs),
    /// Lists the exemptions in the files
    List(ListArgs),
}

/// An exemption to be granted.
#[derive(Debug, Clone, clap::Args)]
pub struct AddArgs {
    /// Id of the exemption
    #[arg(value_parser = ask::id)]
    pub id: Option<String>,
    /// Id of the customer
    #[arg(long, value_name = "ID", value_parser = ask::id)]
    pub customer: Option<String>,
    /// Why it is granted
    #[arg(long, value_name = "TEXT", value_parser = ask::words)]
    pub reason: Option<String>,
    /// The ticket it is granted under
    #[arg(long, value_parser = ask::words)]
    pub ticket: Option<String>,
    /// Who grants it
    #[arg(long, value_name = "NAME", value_parser = ask::words)]
    pub approved_by: Option<String>,
    /// When it begins [default: at once]
    #[arg(long, value_name = "TIME", value_parser = ask::time)]
    pub starts: Option<Timestamp>,
    /// When it ends
    #[arg(long, value_name = "TIME", value_parser = ask::time, conflicts_with = "term")]
    pub until: Option<Timestamp>,
    /// How long it holds, as in 12h or 30d
    #[arg(long = "for", value_name = "TERM", value_parser = term)]
    pub term: Option<SignedDuration>,
    /// Where the customer may send: `any`, or a prefix or the name of an allowlist, several times
    #[arg(long, value_name = "DESTINATION", value_parser = ask::destination)]
    pub to: Vec<String>,
    /// The file it goes into, relative to the policy directory [default: the one with exemptions]
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// How
    #[command(flatten)]
    pub how: How,
}

/// An exemption to be prolonged.
#[derive(Debug, Clone, clap::Args)]
pub struct ExtendArgs {
    /// Id of the exemption
    #[arg(value_parser = ask::id)]
    pub id: Option<String>,
    /// When it ends
    #[arg(long, value_name = "TIME", value_parser = ask::time, conflicts_with = "term")]
    pub until: Option<Timestamp>,
    /// How much longer it holds: from its end on, or from now on if it has ended
    #[arg(long = "by", value_name = "TERM", value_parser = term)]
    pub term: Option<SignedDuration>,
    /// Have one hold again that has ended, or was revoked
    #[arg(long)]
    pub again: bool,
    /// The ticket it is prolonged under, instead of the one in the file
    #[arg(long, value_parser = ask::words)]
    pub ticket: Option<String>,
    /// Who prolongs it, instead of the name in the file
    #[arg(long, value_name = "NAME", value_parser = ask::words)]
    pub approved_by: Option<String>,
    /// How
    #[command(flatten)]
    pub how: How,
}

/// An exemption to be ended.
#[derive(Debug, Clone, clap::Args)]
pub struct RevokeArgs {
    /// Id of the exemption
    #[arg(value_parser = ask::id)]
    pub id: Option<String>,
    /// Take it out of the file, instead of having it end now
    #[arg(long)]
    pub delete: bool,
    /// How
    #[command(flatten)]
    pub how: How,
}

/// Exemptions to be listed.
#[derive(Debug, Clone, clap::Args)]
pub struct ListArgs {
    /// Only those that end within this time, as in 7d
    #[arg(long, value_name = "TERM", value_parser = term)]
    pub expiring: Option<SignedDuration>,
    /// Policy directory [default: `policy_dir` of the settings]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
}

/// How an edit is made.
#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// Print what would change, as a unified diff, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Return when the running agent has taken it over or refused it
    #[arg(long, conflicts_with = "dry_run")]
    pub wait: bool,
    /// Write although the files were undone and are held: this edit puts them in force
    #[arg(long)]
    pub take_undone: bool,
    /// Policy directory [default: `policy_dir` of the settings]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
}

/// Does it and says what came of it. `answers` come from a terminal.
///
/// # Errors
/// Writing to the console failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
    answers: Option<&mut dyn BufRead>,
) -> io::Result<ExitCode> {
    let outcome = match &args.what {
        What::Add(args) => add(args, surroundings, console, answers)?,
        What::Extend(args) => extend(args, surroundings, console, answers)?,
        What::Revoke(args) => revoke(args, surroundings, console, answers)?,
        What::List(args) => return list::run(args, surroundings, console),
    };
    Ok(outcome.unwrap_or_else(|code| code))
}

type Outcome = io::Result<Result<ExitCode, ExitCode>>;

/// Leaves a function that tells by an exit code that it came to nothing.
macro_rules! go_on {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(code) => return Ok(Err(code)),
        }
    };
}

fn add(
    args: &AddArgs,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
    answers: Option<&mut dyn BufRead>,
) -> Outcome {
    let desk = go_on!(Desk::open(
        &args.how,
        Purpose::Check,
        surroundings,
        console
    )?);
    let Wanted {
        id,
        customer,
        reason,
        ticket,
        approved_by,
        end,
        to,
        file,
    } = go_on!(wanted(args, &desk, console, answers)?);
    // As on the command line: `--to any --to relays` makes no list.
    let to = go_on!(desk.usage(ask::destinations(&to.join(" ")), console)?);
    let from = args.starts.unwrap_or(surroundings.now);
    let expires = go_on!(desk.usage(moment(end, from), console)?);
    if expires <= surroundings.now {
        return desk.refuse(&format!("{expires} is over"), console).map(Err);
    }
    let new = NewExemption {
        id,
        customer,
        reason,
        ticket,
        approved_by,
        starts: args.starts,
        expires,
        to,
    };
    desk.edit(&file, &Edit::Add(new), console).map(Ok)
}

/// What an exemption that is granted needs, whether it was given or asked for.
struct Wanted {
    id: String,
    customer: String,
    reason: String,
    ticket: String,
    approved_by: String,
    end: End,
    to: Vec<String>,
    file: Arc<Path>,
}

fn wanted(
    args: &AddArgs,
    desk: &Desk<'_>,
    console: &mut Console<'_>,
    answers: Option<&mut dyn BufRead>,
) -> io::Result<Result<Wanted, ExitCode>> {
    let AddArgs {
        id,
        customer,
        reason,
        ticket,
        approved_by,
        starts: _,
        until,
        term,
        to,
        file,
        how: _,
    } = args.clone();
    let new_id = |text: &str| new_id(desk, text);
    let known = |text: &str| known_customer(desk, text);
    for wrong in [id.as_deref().map(new_id), customer.as_deref().map(known)] {
        if let Some(Err(why)) = wrong {
            return desk.refuse(&why, console).map(Err);
        }
    }
    let end = until.map(End::At).or(term.map(End::After));
    let mut ask = Interview::new(answers);
    let to = (!to.is_empty()).then_some(to);
    let id = ask.want(id, "ID", "Id of the exemption", new_id, console)?;
    let customer = ask.want(customer, "--customer", "Id of the customer", known, console)?;
    let reason = ask.want(reason, "--reason", "Reason", ask::words, console)?;
    let ticket = ask.want(ticket, "--ticket", "Ticket", ask::words, console)?;
    let name = "Approved by";
    let approved_by = ask.want(approved_by, "--approved-by", name, ask::words, console)?;
    let question = "Ends (a time, or a term such as 30d)";
    let end = ask.want(end, "--until or --for", question, ask::end, console)?;
    let question = "To (any, or prefixes and names of allowlists)";
    let to = ask.want(to, "--to", question, ask::destinations, console)?;
    let choice = match file {
        Some(file) => Some(go_on!(desk.named_file(&file, console)?)),
        None => desk.only_file_with_exemptions(),
    };
    let files = desk.files_with_exemptions();
    let question = format!("File ({})", files.join(", "));
    let choose = |text: &str| desk.chosen_file(text);
    let file = ask.want(choice, &desk.why_which_file(), &question, choose, console)?;
    go_on!(ask.close(console)?);
    let wanted = (|| {
        Some(Wanted {
            id: id?,
            customer: customer?,
            reason: reason?,
            ticket: ticket?,
            approved_by: approved_by?,
            end: end?,
            to: to?,
            file: file?,
        })
    })();
    Ok(wanted.ok_or(ExitCode::from(FAILED)))
}

fn new_id(desk: &Desk<'_>, text: &str) -> Result<String, String> {
    match desk.policy().exemptions.get(text) {
        Some(exemption) => Err(desk.is_there(text, exemption)),
        None => ask::id(text),
    }
}

fn known_customer(desk: &Desk<'_>, text: &str) -> Result<String, String> {
    let customers = &desk.policy().customers;
    match customers.contains_key(text) {
        true => Ok(text.to_owned()),
        false => Err(desk.unknown("customer", text, customers.keys())),
    }
}

fn extend(
    args: &ExtendArgs,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
    answers: Option<&mut dyn BufRead>,
) -> Outcome {
    let ExtendArgs {
        id,
        until,
        term,
        again,
        ticket,
        approved_by,
        how,
    } = args.clone();
    let now = surroundings.now;
    let desk = go_on!(Desk::open(&how, Purpose::Check, surroundings, console)?);
    let end = until.map(End::At).or(term.map(End::After));
    let mut ask = Interview::new(answers);
    let id = ask.want(id, "ID", "Id of the exemption", ask::id, console)?;
    let question = "Ends (a time, or how much longer, such as 30d)";
    let end = ask.want(end, "--until or --by", question, ask::end, console)?;
    go_on!(ask.close(console)?);
    let (Some(id), Some(end)) = (id, end) else {
        return Ok(Err(ExitCode::from(FAILED)));
    };
    let exemption = go_on!(desk.exemption(&id, console)?);
    let present = exemption.expires;
    if present <= now && !again {
        let why =
            format!("{id} has ended at {present}, or was revoked: `--again` has it hold again");
        return desk.refuse(&why, console).map(Err);
    }
    let expires = go_on!(desk.usage(moment(end, present.max(now)), console)?);
    if expires <= present.max(now) {
        let why = if present > now {
            format!("it ends at {present} already: `gate25 exempt revoke` ends it earlier")
        } else {
            format!("{expires} is over")
        };
        return desk.refuse(&why, console).map(Err);
    }
    let values = [
        Some(Value::Expires(expires)),
        ticket.map(Value::Ticket),
        approved_by.map(Value::ApprovedBy),
    ];
    let values = values.into_iter().flatten().collect();
    let file = exemption.origin.file.clone();
    desk.edit(&file, &Edit::Set { id, values }, console).map(Ok)
}

fn revoke(
    args: &RevokeArgs,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
    answers: Option<&mut dyn BufRead>,
) -> Outcome {
    let RevokeArgs { id, delete, how } = args.clone();
    let desk = go_on!(Desk::open(&how, Purpose::Run, surroundings, console)?);
    let mut ask = Interview::new(answers);
    let id = ask.want(id, "ID", "Id of the exemption", ask::id, console)?;
    go_on!(ask.close(console)?);
    let Some(id) = id else {
        return Ok(Err(ExitCode::from(FAILED)));
    };
    let exemption = go_on!(desk.exemption(&id, console)?);
    let Exemption {
        starts,
        expires,
        origin,
        ..
    } = exemption;
    // Files have whole seconds, and what ends now must not hold a moment longer.
    let now = go_on!(desk.usage(whole_second(surroundings.now), console)?);
    let edit = match delete {
        true => Edit::Remove { id },
        false if *expires <= surroundings.now => {
            let done = format!("{id} has ended at {expires} already");
            return desk.unchanged(&id, &done, console).map(Ok);
        }
        false if starts.is_some_and(|starts| starts >= now) => {
            let why = format!("{id} has not begun: `--delete` takes it out of the file");
            return desk.refuse(&why, console).map(Err);
        }
        false => Edit::Set {
            id,
            values: vec![Value::Expires(now)],
        },
    };
    let file = origin.file.clone();
    desk.edit(&file, &edit, console).map(Ok)
}

/// The moment that is meant, in whole seconds.
fn moment(end: End, from: Timestamp) -> Result<Timestamp, String> {
    let moment = match end {
        End::At(moment) => return Ok(moment),
        End::After(term) => from.checked_add(term),
    };
    moment
        .map_err(|error| error.to_string())
        .and_then(whole_second)
}

fn whole_second(time: Timestamp) -> Result<Timestamp, String> {
    Timestamp::from_second(time.as_second()).map_err(|error| error.to_string())
}

/// What is printed for: people, or programs.
fn reader(how: &How) -> Reader {
    Reader::of(how.json)
}
