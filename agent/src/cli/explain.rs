//! `gate25 explain`: why a connection passes or does not, without daemon or privileges.

mod text;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use gate25_common::abi::CustomerId;
use jiff::Timestamp;

use crate::cli::console::{Console, Reader, USAGE};
use crate::cli::files;
use crate::diagnostic::terminal::Colour;
use crate::explain::{ExplainError, Host, Question, explain};
use crate::policy::loader::{Circumstances, Purpose};
use crate::policy::scalar::Time;
use crate::settings::Missing;
use crate::trust::Trust;
use crate::yaml::read::Scalar as _;
use crate::yaml::tree::Style;
pub use text::Layout;

/// Says why a connection passes or does not
///
/// Judges by the files of the policy directory, with the function that the kernel runs. Every
/// allowlist and exemption of the customer is shown, those behind the one that decided too.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A customer's id, `unassigned`, an interface's name, or the path of a cgroup
    #[arg(value_name = "CUSTOMER|WORKLOAD")]
    pub subject: String,
    /// Address, with a port or not: 192.0.2.1, 192.0.2.1:25, 2001:db8::1 or [2001:db8::1]:25
    #[arg(value_name = "DST[:PORT]")]
    pub destination: Destination,
    /// Judge as of this time, such as 2026-11-23T08:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub at: Option<Timestamp>,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// The port; `None` means the first that is guarded.
    pub port: Option<u16>,
}

/// Why a word is no destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write an address, with a port or not, as 192.0.2.1:25 or [2001:db8::1]:25")]
pub struct DestinationError;

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(word: &str) -> Result<Self, DestinationError> {
        let bracketed = word
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .and_then(|inside| inside.parse::<Ipv6Addr>().ok());
        if let Some(address) = bracketed.map(IpAddr::V6).or_else(|| word.parse().ok()) {
            let port = None;
            return Ok(Self { address, port });
        }
        match word.parse::<SocketAddr>() {
            Ok(SocketAddr::V6(v6)) if v6.scope_id() != 0 => Err(DestinationError),
            Ok(socket) => Ok(Self {
                address: socket.ip(),
                port: Some(socket.port()),
            }),
            Err(_) => Err(DestinationError),
        }
    }
}

/// What the command needs to know of its surroundings.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The settings file.
    pub config: &'a Path,
    /// What a missing settings file means: an error where somebody named it.
    pub missing: Missing,
    /// The time.
    pub now: Timestamp,
    /// The host's name, where the settings give none.
    pub hostname: &'a str,
    /// Names of the interfaces that exist.
    pub interfaces: &'a BTreeSet<String>,
    /// How the answer is laid out.
    pub layout: Layout,
    /// Whether what is wrong may be printed in colours.
    pub colour: Colour,
}

/// Prints the answer, or what is wrong with the files or the question.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    let settings = match files::settings(surroundings.config, surroundings.missing, &Trust::Anybody)
    {
        Ok(loaded) => loaded.settings,
        Err(diagnostics) => return console.refuse(reader, surroundings.colour, &diagnostics),
    };
    let at = args.at.unwrap_or(surroundings.now);
    // As the agent would have taken the files at that time.
    let circumstances = Circumstances {
        purpose: Purpose::Run,
        now: at,
        customer_key: |id| CustomerId::from_name(id).get(),
    };
    let set = files::policy(&settings.policy_dir, &circumstances);
    let Some(policy) = set.policy else {
        return console.refuse(reader, surroundings.colour, &set.diagnostics);
    };
    let host = Host {
        name: settings.host.as_deref().unwrap_or(surroundings.hostname),
        settings: &settings,
        interfaces: surroundings.interfaces,
        directory: &settings.policy_dir,
    };
    let question = Question {
        subject: args.subject.clone(),
        destination: args.destination.address,
        port: args.destination.port,
        at,
    };
    match explain(&policy, &host, &question) {
        Ok(explanation) => {
            match reader {
                Reader::Programs => console.json(&explanation)?,
                Reader::People => {
                    let out = &mut *console.out;
                    text::print(&explanation, host.name, surroundings.layout, out)?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(
            error @ (ExplainError::Unknown { .. } | ExplainError::Path(_) | ExplainError::Time(_)),
        ) => console.complain(&error, USAGE),
        Err(error @ (ExplainError::Compile(_) | ExplainError::Capacity(_))) => {
            Err(io::Error::other(error))
        }
    }
}

/// A time in the policy's own notation.
fn time(word: &str) -> Result<Timestamp, String> {
    Time::parse(word, Style::Plain)
        .map(|time| time.0)
        .map_err(|fault| match fault.help {
            Some(help) => format!("{}; {help}", fault.message),
            None => fault.message,
        })
}
