//! `gate25 teardown`: takes everything of gate25 out of the kernel. Nothing else does.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::chain::in_full;
use crate::cli::console::{Console, FAILED, Reader, Surroundings, is_root};
use crate::control::presence::Presence;
use crate::diagnostic::escape;
use crate::kernel::bpf::leftover::{Leftover, Removals};
use crate::kernel::bpf::pins::DEFAULT_FILESYSTEM;
use crate::kernel::guard;
use crate::kernel::nft::{Nft, NftError};
use crate::kernel::nftables::{self, NftablesError};
use crate::kernel::removal::Removal;
use crate::state::lock::ExclusiveLock;

/// Takes everything of gate25 out of the kernel: nothing is refused any more
///
/// Only root may, and only while no agent runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
    /// BPF filesystem on which tables and links are pinned
    #[arg(long, hide = true, value_name = "DIR", default_value = DEFAULT_FILESYSTEM)]
    pub bpffs: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    removed: Vec<String>,
    /// Interfaces that lose a filter.
    filters: Vec<String>,
    /// Tables of nftables.
    tables: Vec<String>,
    /// What is not gate25's.
    foreign: Vec<String>,
    errors: Vec<String>,
}

/// Removes, unless an agent runs, and prints what was removed.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    if !is_root() {
        console.say("only root may take gate25 out of the kernel")?;
        return Ok(ExitCode::from(FAILED));
    }
    let settings = console.settings_or_defaults(surroundings)?.settings;
    let socket = &settings.control.socket;
    let why = match Presence::look(socket, &args.bpffs) {
        Presence::Stopped => None,
        Presence::Running => Some(format!(
            "an agent serves {}: stop it first",
            socket.display()
        )),
        Presence::Unserved => Some(format!(
            "another gate25 runs on this host, and does not serve {}: stop it first",
            socket.display()
        )),
        Presence::Unknown(error) => {
            let error = in_full(&error);
            Some(format!("it is not known whether an agent runs: {error}"))
        }
    };
    if let Some(why) = why {
        console.say(&why)?;
        return Ok(ExitCode::from(FAILED));
    }
    let leftover = Leftover::at(&args.bpffs);
    // Held to the end, so that no agent starts meanwhile.
    let _lock = match leftover.exists() {
        Ok(false) => None,
        Ok(true) => match ExclusiveLock::acquire(leftover.folder()) {
            Ok(lock) => Some(lock),
            Err(error) => return console.complain(&error, FAILED),
        },
        Err(error) => return console.complain(&error, FAILED),
    };
    let removal = if args.dry_run {
        Removal::DryRun
    } else {
        Removal::Real
    };
    // First, and alone if it stays: without what marks packets for it, it would stop what that allows.
    let guard = guard::remove(&Nft::default(), removal);
    let (rules, removals) = match &guard {
        Ok(_) => (
            nftables::remove(&Nft::default(), removal),
            leftover.remove(removal),
        ),
        Err(_) => (Ok(Vec::new()), Removals::default()),
    };
    let report = report(removals, guard, rules, args.dry_run);
    match reader {
        Reader::Programs => console.json(&report)?,
        Reader::People => print(&report, console)?,
    }
    Ok(if report.errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

fn report(
    removals: Removals,
    guard: Result<Vec<String>, NftError>,
    rules: Result<Vec<String>, NftablesError>,
    dry_run: bool,
) -> Report {
    let Removals {
        pins,
        filters,
        foreign,
        errors,
    } = removals;
    let paths = |paths: Vec<PathBuf>| {
        let paths = paths.iter().map(|path| path.to_string_lossy().into_owned());
        paths.collect()
    };
    let mut errors: Vec<String> = errors.iter().map(|error| in_full(error)).collect();
    let mut tables = guard.unwrap_or_else(|error| {
        errors.push(in_full(&error));
        errors.push(
            "the guard may be there, so programs and rules stay: without them it would stop what they allow"
                .to_owned(),
        );
        Vec::new()
    });
    match rules {
        Ok(rules) => tables.extend(rules),
        Err(error) => errors.push(in_full(&error)),
    }
    Report {
        dry_run,
        removed: paths(pins),
        filters: filters.into_iter().map(|one| one.name).collect(),
        tables,
        foreign: paths(foreign),
        errors,
    }
}

fn print(report: &Report, console: &mut Console<'_>) -> io::Result<()> {
    let Report {
        dry_run,
        removed,
        filters,
        tables,
        foreign,
        errors,
    } = report;
    let verb = if *dry_run { "would remove" } else { "removed" };
    let out = &mut console.out;
    for interface in filters {
        writeln!(out, "{verb} filter of interface {}", escape(interface))?;
    }
    for table in tables {
        writeln!(out, "{verb} nftables table {}", escape(table))?;
    }
    for path in removed {
        writeln!(out, "{verb} {}", escape(path))?;
    }
    for path in foreign {
        writeln!(out, "left {}: not gate25's", escape(path))?;
    }
    if removed.is_empty() && filters.is_empty() && tables.is_empty() && errors.is_empty() {
        writeln!(out, "nothing of gate25 is in the kernel")?;
    }
    for error in errors {
        console.say(error)?;
    }
    Ok(())
}
