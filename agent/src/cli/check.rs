//! `gate25 check`: tells whether a policy set would be accepted, without daemon or privileges.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::files;
use crate::diagnostic::terminal::{Colour, render};
use crate::diagnostic::{Diagnostic, Severity};
use crate::json;
use crate::policy::Policy;
use crate::policy::loader::{Circumstances, Purpose};
use crate::settings::Missing;
use crate::trust::Trust;

/// The set is valid.
const OK: u8 = 0;
/// The set is refused.
const INVALID: u8 = 1;
/// The set holds, but `--lint-fatal` was given and there are warnings.
const WARNINGS: u8 = 3;

/// Says whether a policy set would be accepted
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
    out: &mut dyn Write,
) -> io::Result<ExitCode> {
    let report = check(args.dir.as_deref(), surroundings);
    if args.json {
        json::print(out, &report)?;
    } else {
        print(&report, surroundings.colour, out)?;
    }
    let code = if !report.valid {
        INVALID
    } else if args.lint_fatal && !report.diagnostics.is_empty() {
        WARNINGS
    } else {
        OK
    };
    Ok(ExitCode::from(code))
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
    policy: Option<Counts>,
    diagnostics: Vec<Diagnostic>,
}

fn check(dir: Option<&Path>, surroundings: &Surroundings<'_>) -> Report {
    let mut findings = Findings {
        directory: dir.map(Path::to_owned),
        ..Findings::default()
    };
    if dir.is_none() {
        match files::settings(surroundings.config, surroundings.missing, &Trust::Anybody) {
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
    Report {
        valid: errors == 0,
        errors,
        warnings,
        directory: directory.map(|dir| dir.to_string_lossy().into_owned()),
        files,
        hash,
        policy,
        diagnostics,
    }
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
    findings.policy = policy.map(|policy| counts(&policy, surroundings.now));
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
                crate::diagnostic::escape(report.directory.as_deref().unwrap_or_default()),
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
