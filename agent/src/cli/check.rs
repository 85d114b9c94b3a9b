//! `gate25 check`: tells whether a policy set would be accepted, without daemon or privileges, and what
//! it would change.

mod base;
mod words;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::console::{Console, FAILED};
use crate::cli::files;
use crate::diagnostic::terminal::{Colour, render};
use crate::diagnostic::{Diagnostic, Severity, escape};
use crate::json;
use crate::policy::changes::{Change, Section};
use crate::policy::loader::{Circumstances, Purpose};
use crate::policy::{DEFAULT_PROFILE, Policy};
use crate::settings::Missing;
use base::{BaseError, Difference, difference};

/// The set holds, but `--lint-fatal` was given and there are warnings.
const WARNINGS: u8 = 3;

/// Says whether a policy set would be accepted
///
/// With `--diff` it says, too, who may newly send where, and who no longer, compared with another
/// directory or a git revision.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Policy directory [default: `policy_dir` of the settings]
    pub dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
    /// Exit with 3 where there are warnings
    #[arg(long)]
    pub lint_fatal: bool,
    /// Compare with this directory, or with the policy directory in this git revision
    #[arg(long, value_name = "REV-OR-DIR")]
    pub diff: Option<PathBuf>,
    /// How to print: for a terminal, for a comment on a pull request, or as annotations
    #[arg(long, value_enum, default_value_t = Format::Text, conflicts_with = "json")]
    pub format: Format,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people at a terminal
    Text,
    /// For a comment on a pull request
    Markdown,
    /// Workflow commands of GitHub Actions
    Github,
}

/// What the command needs to know of its surroundings.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The settings file; read only where no directory is given.
    pub config: &'a Path,
    /// What a missing settings file means: an error where somebody named it.
    pub missing: Missing,
    /// The time.
    pub now: Timestamp,
    /// The number that stands for a customer's id in the kernel.
    pub customer_key: fn(&str) -> u64,
    /// Whether the output may hold colours.
    pub colour: Colour,
}

/// Checks the set and prints what is wrong with it and a summary.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let (mut report, policy) = check(args.dir.as_deref(), surroundings);
    let mut failed = false;
    if let (Some(base), Some(policy), Some(directory)) = (&args.diff, &policy, &report.directory) {
        match difference(policy, Path::new(directory), base, surroundings.now) {
            Ok(difference) => report.difference = Some(difference),
            Err(error) => {
                failed = true;
                if let BaseError::Invalid { diagnostics, .. } = &error {
                    console.refuse_beside(surroundings.colour, diagnostics)?;
                }
                console.complain(&error, FAILED)?;
            }
        }
    }
    let difference = report.difference.as_ref();
    let out = &mut *console.out;
    match args.format {
        Format::Text if args.json => json::print(out, &report)?,
        Format::Text => {
            print(&report, surroundings.colour, out)?;
            if let Some(difference) = difference {
                words::text(difference, surroundings.colour, out)?;
            }
        }
        Format::Markdown => words::markdown(&report, difference, out)?,
        Format::Github => {
            let changes = difference.map_or(&[][..], |it| &it.changes);
            let place = |customer: &str| {
                let directory = Path::new(report.directory.as_deref()?);
                place(policy.as_ref()?, changes, directory, customer)
            };
            words::github(&report, difference, place, out)?;
        }
    }
    Ok(if !report.valid || failed {
        ExitCode::from(FAILED)
    } else if args.lint_fatal && !report.diagnostics.is_empty() {
        ExitCode::from(WARNINGS)
    } else {
        ExitCode::SUCCESS
    })
}

#[derive(Debug, Serialize)]
struct Report {
    valid: bool,
    errors: usize,
    warnings: usize,
    directory: Option<String>,
    files: usize,
    hash: Option<String>,
    policy: Option<Counts>,
    diagnostics: Vec<Diagnostic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference>,
}

#[derive(Debug, Clone, Serialize)]
struct Counts {
    allowlists: usize,
    profiles: usize,
    customers: usize,
    exemptions: usize,
    active_exemptions: usize,
}

/// What was found before all diagnostics are known.
#[derive(Default)]
struct Findings {
    directory: Option<PathBuf>,
    files: usize,
    hash: Option<String>,
    policy: Option<Policy>,
    diagnostics: Vec<Diagnostic>,
}

fn check(dir: Option<&Path>, surroundings: &Surroundings<'_>) -> (Report, Option<Policy>) {
    let mut findings = Findings {
        directory: dir.map(Path::to_owned),
        ..Findings::default()
    };
    if dir.is_none() {
        let trust = files::trusted_at_a_start();
        match files::settings(surroundings.config, surroundings.missing, &trust) {
            Ok(loaded) => {
                findings.directory = Some(loaded.settings.policy_dir);
                findings.diagnostics.extend(loaded.warnings);
            }
            Err(diagnostics) => findings.diagnostics.extend(diagnostics),
        }
    }
    if let Some(dir) = findings.directory.clone() {
        check_directory(&dir, surroundings, &mut findings);
    }
    let Findings {
        directory,
        files,
        hash,
        policy,
        mut diagnostics,
    } = findings;
    diagnostics.sort_by_key(|one| one.severity);
    let count = |severity| {
        diagnostics
            .iter()
            .filter(|one| one.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let report = Report {
        valid: errors == 0,
        errors,
        warnings,
        directory: directory.map(|dir| dir.to_string_lossy().into_owned()),
        files,
        hash,
        policy: policy.as_ref().map(|it| counts(it, surroundings.now)),
        diagnostics,
        difference: None,
    };
    (report, policy)
}

/// Where it is written what changes for a customer.
fn place(
    policy: &Policy,
    changes: &[Change],
    directory: &Path,
    customer: &str,
) -> Option<(String, u32)> {
    let exemptions = changes
        .iter()
        .filter(|it| it.section == Section::Exemptions);
    let exemption = exemptions
        .filter_map(|change| policy.exemptions.get(&change.name))
        .find(|exemption| exemption.customer == customer);
    let origin = match (exemption, policy.customers.get(customer)) {
        (Some(exemption), _) => &exemption.origin,
        (None, Some(customer)) => &customer.origin,
        (None, None) => &policy.profiles.get(DEFAULT_PROFILE)?.origin,
    };
    let file = directory.join(&origin.file);
    Some((file.to_string_lossy().into_owned(), origin.line))
}

fn check_directory(dir: &Path, surroundings: &Surroundings<'_>, findings: &mut Findings) {
    let circumstances = Circumstances {
        purpose: Purpose::Check,
        now: surroundings.now,
        customer_key: surroundings.customer_key,
    };
    let files::Set {
        files,
        hash,
        policy,
        diagnostics,
    } = files::policy(dir, &circumstances);
    findings.files = files;
    findings.hash = hash.map(|hash| hash.to_string());
    findings.policy = policy;
    findings.diagnostics.extend(diagnostics);
}

fn counts(policy: &Policy, now: Timestamp) -> Counts {
    let Policy {
        rules: _,
        allowlists,
        profiles,
        customers,
        exemptions,
    } = policy;
    let active = exemptions
        .values()
        .filter(|one| one.expires > now && one.starts.is_none_or(|starts| starts <= now))
        .count();
    Counts {
        allowlists: allowlists.len(),
        profiles: profiles.len(),
        customers: customers.len(),
        exemptions: exemptions.len(),
        active_exemptions: active,
    }
}

fn print(report: &Report, colour: Colour, out: &mut dyn Write) -> io::Result<()> {
    for diagnostic in &report.diagnostics {
        writeln!(out, "{}\n", render(diagnostic, colour))?;
    }
    match &report.policy {
        Some(policy) => {
            let Counts {
                allowlists,
                profiles,
                customers,
                exemptions,
                active_exemptions,
            } = policy;
            write!(
                out,
                "valid: {} in {}: {}, {} ({active_exemptions} active), {}, {}",
                several(report.files, "file"),
                escape(report.directory.as_deref().unwrap_or_default()),
                several(*customers, "customer"),
                several(*exemptions, "exemption"),
                several(*allowlists, "allowlist"),
                several(*profiles, "profile"),
            )?;
        }
        None => write!(out, "refused: {}", several(report.errors, "error"))?,
    }
    writeln!(out, "; {}", several(report.warnings, "warning"))
}

fn several(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
