//! `gate25 diff`: what would change if a directory's policy were loaded.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use gate25_common::abi::CustomerId;
use serde::Serialize;

use crate::cli::console::{Console, FAILED, Reader, Surroundings, UNREACHABLE};
use crate::cli::files;
use crate::control::client::{Client, ClientError};
use crate::control::messages::{self, Teller};
use crate::diagnostic::escape;
use crate::diagnostic::terminal::Colour;
use crate::kernel::bpf::pins::DEFAULT_FILESYSTEM;
use crate::policy::Policy;
use crate::policy::changes::{Change, Kind, compare};
use crate::policy::loader::{Circumstances, Loader, Purpose, Refused, SourceFile};
use crate::settings::Settings;
use crate::state::{FILE_NAME, LastKnownGood, StateError};

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// Says what would change if a policy were loaded
///
/// Compares with the running policy; with the agent stopped, with the last one that it accepted.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Policy directory [default: `policy_dir` of the settings]
    pub dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
    /// BPF filesystem that a running agent has locked its folder on
    #[arg(long, hide = true, value_name = "DIR", default_value = DEFAULT_FILESYSTEM)]
    pub bpffs: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    /// What it was compared with.
    agent: Teller,
    changes: Vec<Change>,
}

/// What the files are compared with.
struct Base {
    teller: Teller,
    policy: Policy,
}

/// Why there is nothing to compare with.
#[derive(Debug, thiserror::Error)]
enum BaseError {
    #[error(transparent)]
    Client(ClientError),
    /// Said already.
    #[error("whoever may run the policy does not tell it")]
    NotStopped(ExitCode),
    #[error("the agent is not running, and has kept no policy in {}", .0.display())]
    Nothing(PathBuf),
    #[error("the agent is not running, and the policy that it kept cannot be read")]
    State(#[from] StateError),
    #[error("this version refuses the policy to compare with: is the agent's another?")]
    Refused(#[from] Refused),
}

/// Compares, and prints what differs.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    let settings = match console.settings(reader, surroundings)? {
        Ok(settings) => settings,
        Err(code) => return Ok(code),
    };
    let circumstances = Circumstances {
        purpose: Purpose::Run,
        now: surroundings.now,
        customer_key: |id| CustomerId::from_name(id).get(),
    };
    let dir = args.dir.as_deref().unwrap_or(&settings.policy_dir);
    let set = files::policy(dir, &circumstances);
    let Some(policy) = set.policy else {
        return console.refuse(reader, surroundings.colour, &set.diagnostics);
    };
    let base = match base(&settings, &args.bpffs, &circumstances, console)? {
        Ok(base) => base,
        Err(BaseError::Client(error)) => return console.no_answer(&error),
        Err(BaseError::NotStopped(code)) => return Ok(code),
        Err(error @ BaseError::Nothing(_)) => return console.complain(&error, UNREACHABLE),
        Err(error @ (BaseError::State(_) | BaseError::Refused(_))) => {
            return console.complain(&error, FAILED);
        }
    };
    let report = Report {
        agent: base.teller,
        changes: compare(&base.policy, &policy),
    };
    match reader {
        Reader::Programs => console.json(&report)?,
        Reader::People => print(&report.changes, surroundings.colour, &mut *console.out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn base(
    settings: &Settings,
    filesystem: &Path,
    circumstances: &Circumstances,
    console: &mut Console<'_>,
) -> io::Result<Result<Base, BaseError>> {
    let socket = &settings.control.socket;
    match Client::new(socket).policy() {
        Ok(running) => {
            if running.files.is_empty() {
                let source = &running.source;
                console.say(&format!("no files are in force, but the policy `{source}`"))?;
            }
            Ok(of_agent(running, circumstances))
        }
        Err(error) if error.is_nobody() => {
            if let Err(code) = console.unless_stopped(socket, filesystem)? {
                return Ok(Err(BaseError::NotStopped(code)));
            }
            let kept = of_state(&settings.state_dir, circumstances);
            if kept.is_ok() {
                console.say("the agent is not running: compared with what it last accepted")?;
            }
            Ok(kept)
        }
        Err(error) => Ok(Err(BaseError::Client(error))),
    }
}

fn of_agent(running: messages::Policy, circumstances: &Circumstances) -> Result<Base, BaseError> {
    let files: Vec<SourceFile> = running
        .files
        .into_iter()
        .map(|messages::File { path, text }| SourceFile {
            path: Arc::from(Path::new(&path)),
            bytes: text.into_bytes().into(),
        })
        .collect();
    let policy = if files.is_empty() {
        Policy::default()
    } else {
        Loader::default().load(&files, circumstances)?.policy
    };
    Ok(Base {
        teller: Teller::Running,
        policy,
    })
}

fn of_state(directory: &Path, circumstances: &Circumstances) -> Result<Base, BaseError> {
    let nothing = || BaseError::Nothing(directory.to_owned());
    // Opening a store makes it, which is not for a command that only reads.
    if !directory.join(FILE_NAME).exists() {
        return Err(nothing());
    }
    let stored = LastKnownGood::look(directory)?;
    let stored = stored.ok_or_else(nothing)?;
    Ok(Base {
        teller: Teller::Stopped,
        policy: Loader::default().load(&stored.files, circumstances)?.policy,
    })
}

/// Prints what differs, for people.
pub(super) fn print(changes: &[Change], colour: Colour, out: &mut dyn Write) -> io::Result<()> {
    if changes.is_empty() {
        return writeln!(out, "no difference");
    }
    let paint = |colour_of: &str, text: String| match colour {
        Colour::Always => format!("{colour_of}{text}{RESET}"),
        Colour::Never => text,
    };
    for change in changes {
        let Change {
            section,
            name,
            change,
            fields,
        } = change;
        let object = section.object();
        let name = escape(name);
        let title = match change {
            Kind::Added => paint(GREEN, format!("+ {object} {name}")),
            Kind::Removed => paint(RED, format!("- {object} {name}")),
            Kind::Changed => format!("~ {object} {name}"),
        };
        writeln!(out, "{title}")?;
        for field in fields {
            for value in &field.removed {
                let line = format!("    - {}: {}", field.field, escape(value));
                writeln!(out, "{}", paint(RED, line))?;
            }
            for value in &field.added {
                let line = format!("    + {}: {}", field.field, escape(value));
                writeln!(out, "{}", paint(GREEN, line))?;
            }
        }
    }
    Ok(())
}
