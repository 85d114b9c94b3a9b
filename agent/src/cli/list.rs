//! `gate25 list`: workloads, customers and exemptions; with the agent stopped, those in the kernel.

mod stanzas;
mod stopped;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::chain::in_full;
use crate::cli::console::{Console, Reader, Surroundings, UNREACHABLE, is_root};
use crate::control::client::{Client, ClientError};
use crate::control::messages::{Customer, Customers, Exemption, Exemptions, Workload, Workloads};
use crate::control::number_of;
use crate::kernel::bpf::leftover::LeftoverError;
use crate::kernel::bpf::pins::DEFAULT_FILESYSTEM;
use crate::kernel::nft::Nft;
use crate::kernel::nftables;
use crate::kernel::removal::Removal;
use crate::settings::Settings;
use gate25_common::abi::CustomerId;
use gate25_common::decide::Verdict;
use stopped::Stopped;

/// Lists workloads, customers or exemptions
///
/// With the agent stopped it lists, for root, what is left in the kernel; names come from the policy's
/// files.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to list
    #[command(subcommand)]
    pub what: What,
}

/// What to list.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum What {
    /// Guests and containers on this host: kind, number, name, state, customer
    Workloads(WorkloadArgs),
    /// Customers: id, number, workloads here, active exemptions, and attempts: allowed, allowed
    /// although the policy would refuse them, refused
    Customers(Form),
    /// Exemptions: id, customer, state, start, end
    Exemptions(Form),
}

/// Which workloads, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkloadArgs {
    /// Only those that no customer claims
    #[arg(long)]
    pub unassigned: bool,
    /// As stanzas of the policy, to fill in
    #[arg(long, requires = "unassigned", conflicts_with = "json")]
    pub as_yaml: bool,
    /// How to print
    #[command(flatten)]
    pub form: Form,
}

/// How to print, and where to look.
#[derive(Debug, Clone, clap::Args)]
pub struct Form {
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
    /// BPF filesystem on which tables and links are pinned
    #[arg(long, hide = true, value_name = "DIR", default_value = DEFAULT_FILESYSTEM)]
    pub bpffs: PathBuf,
}

/// Asks the agent, or the kernel where no agent runs, and prints the answer.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let form = match &args.what {
        What::Workloads(WorkloadArgs { form, .. }) => form,
        What::Customers(form) | What::Exemptions(form) => form,
    };
    let settings = console.settings_or_defaults(surroundings)?.settings;
    let desk = Desk {
        client: Client::new(&settings.control.socket),
        settings: &settings,
        form,
        surroundings,
    };
    match &args.what {
        What::Workloads(args) => desk.workloads(args, console),
        What::Customers(_) => {
            let listed = desk.either(Client::customers, |kernel| kernel.customers(), console)?;
            desk.print(
                listed,
                &[
                    "id",
                    "number",
                    "workloads",
                    "exemptions",
                    "allowed",
                    "would be refused",
                    "refused",
                ],
                |customers: &Customers| customers.customers.iter().map(customer).collect(),
                console,
            )
        }
        What::Exemptions(_) => {
            let listed = desk.either(Client::exemptions, |kernel| kernel.exemptions(), console)?;
            desk.print(
                listed,
                &["id", "customer", "state", "starts", "expires"],
                |exemptions: &Exemptions| exemptions.exemptions.iter().map(exemption).collect(),
                console,
            )
        }
    }
}

struct Desk<'a> {
    client: Client,
    settings: &'a Settings,
    form: &'a Form,
    surroundings: &'a Surroundings<'a>,
}

impl Desk<'_> {
    fn workloads(&self, args: &WorkloadArgs, console: &mut Console<'_>) -> io::Result<ExitCode> {
        let listed = self.either(Client::workloads, |kernel| kernel.workloads(), console)?;
        let mut workloads = match listed {
            Ok(workloads) => workloads,
            Err(code) => return Ok(code),
        };
        if args.unassigned {
            workloads.workloads.retain(is_unassigned);
        }
        if args.as_yaml {
            let text = stanzas::write(&workloads.host, &workloads.workloads);
            console.out.write_all(text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        self.print(
            Ok(workloads),
            &["kind", "number", "name", "state", "customer"],
            |workloads: &Workloads| workloads.workloads.iter().map(workload).collect(),
            console,
        )
    }

    /// What the agent says, or, where none runs, what the kernel holds.
    fn either<T>(
        &self,
        ask: impl FnOnce(&Client) -> Result<T, ClientError>,
        read: impl FnOnce(&Stopped<'_>) -> Result<Option<T>, LeftoverError>,
        console: &mut Console<'_>,
    ) -> io::Result<Result<T, ExitCode>> {
        match ask(&self.client) {
            Ok(listed) => return Ok(Ok(listed)),
            Err(error) if error.is_nobody() => {}
            Err(error) => return console.no_answer(&error).map(Err),
        }
        if !is_root() {
            console
                .say("the agent is not reached; only root may see what it left in the kernel")?;
            return Ok(Err(ExitCode::from(UNREACHABLE)));
        }
        let socket = &self.settings.control.socket;
        if let Err(code) = console.unless_stopped(socket, &self.form.bpffs)? {
            return Ok(Err(code));
        }
        let stopped = Stopped::new(&self.form.bpffs, self.settings, self.surroundings);
        match read(&stopped) {
            Ok(Some(listed)) => {
                console.say("the agent is not running: this is what it left in the kernel")?;
                Ok(Ok(listed))
            }
            Ok(None) => {
                console.say(&nothing_to_list())?;
                Ok(Err(ExitCode::from(UNREACHABLE)))
            }
            Err(error) => console.complain(&error, UNREACHABLE).map(Err),
        }
    }

    fn print<T: Serialize>(
        &self,
        listed: Result<T, ExitCode>,
        headings: &[&str],
        rows: impl FnOnce(&T) -> Vec<Vec<String>>,
        console: &mut Console<'_>,
    ) -> io::Result<ExitCode> {
        let listed = match listed {
            Ok(listed) => listed,
            Err(code) => return Ok(code),
        };
        match Reader::of(self.form.json) {
            Reader::Programs => console.json(&listed)?,
            Reader::People => console.rows(self.surroundings.layout, headings, &rows(&listed))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Why there is nothing to list with the agent stopped.
fn nothing_to_list() -> String {
    match nftables::remove(&Nft::default(), Removal::DryRun) {
        Ok(tables) if tables.is_empty() => {
            "the agent is not running, and has left no tables in the kernel".to_owned()
        }
        Ok(_) => {
            "the agent is not running, and backend nftables, which goes on, does not know names"
                .to_owned()
        }
        Err(error) => format!(
            "the agent is not running, and has left no eBPF tables; whether backend nftables goes on is not \
             known: {}",
            in_full(&error)
        ),
    }
}

/// Nobody's, as opposed to several customers'.
fn is_unassigned(workload: &Workload) -> bool {
    workload.claims.is_empty() && workload.customer_number == number_of(CustomerId::UNASSIGNED)
}

fn workload(workload: &Workload) -> Vec<String> {
    let Workload {
        kind,
        number,
        name,
        state,
        customer,
        customer_number,
        claims,
    } = workload;
    let owner = match customer {
        Some(customer) => customer.clone(),
        None if !claims.is_empty() => {
            let ids: Vec<&str> = claims.iter().map(|claim| claim.customer.as_str()).collect();
            ids.join(",")
        }
        None if is_unassigned(workload) => crate::policy::UNASSIGNED.to_owned(),
        None => customer_number.clone(),
    };
    vec![
        kind.as_str().to_owned(),
        number.to_string(),
        name.clone().unwrap_or_else(|| "-".to_owned()),
        state.as_str().to_owned(),
        owner,
    ]
}

fn customer(customer: &Customer) -> Vec<String> {
    let Customer {
        id,
        number,
        workloads,
        exemptions,
        connections,
    } = customer;
    let attempts = |column: Attempts| {
        let counted = connections.as_ref().map(|connections| {
            let verdicts = Verdict::ALL
                .iter()
                .filter(|it| Attempts::of(**it) == column);
            let counts = verdicts.filter_map(|verdict| connections.get(verdict.as_str()));
            counts.sum::<u64>()
        });
        counted.map_or_else(|| "-".to_owned(), |count| count.to_string())
    };
    vec![
        id.clone().unwrap_or_else(|| "-".to_owned()),
        number.clone(),
        workloads.to_string(),
        exemptions.to_string(),
        attempts(Attempts::Allowed),
        attempts(Attempts::WouldBeRefused),
        attempts(Attempts::Refused),
    ]
}

/// Columns of what a customer's workloads tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempts {
    Allowed,
    WouldBeRefused,
    Refused,
}

impl Attempts {
    /// Where attempts of this verdict are counted.
    fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allowed,
            Verdict::Observe => Self::WouldBeRefused,
            Verdict::Reject
            | Verdict::Drop
            | Verdict::Redirect
            | Verdict::Notice
            | Verdict::Throttle => Self::Refused,
        }
    }
}

fn exemption(exemption: &Exemption) -> Vec<String> {
    let Exemption {
        id,
        customer,
        customer_number,
        state,
        starts,
        expires,
    } = exemption;
    vec![
        id.clone().unwrap_or_else(|| "-".to_owned()),
        customer.clone().unwrap_or_else(|| customer_number.clone()),
        state.as_str().to_owned(),
        starts.map_or_else(|| "-".to_owned(), |starts| starts.to_string()),
        expires.to_string(),
    ]
}
