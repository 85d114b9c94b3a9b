//! The gate25 command.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use gate25::chain::in_full;
use gate25::cli::console::{self, Console, FAILED};
use gate25::cli::explain::{self, Layout};
use gate25::cli::{
    bypass, check, diff, doctor, exempt, guard, list, metrics, pages, prepare, reload, schema,
    status, teardown, trial,
};
use gate25::diagnostic::terminal::{Colour, render};
use gate25::kernel::bpf::Attachment;
use gate25::kernel::bpf::pins::DEFAULT_FILESYSTEM;
use gate25::kernel::privileges;
use gate25::logging;
use gate25::notify::Environment;
use gate25::run::{Surroundings, run};
use gate25::settings::{self, LogFormat, LogLevel, Missing, Settings, SettingsError};
use gate25::trust::{Keepers, Trust};
use gate25_common::abi::CustomerId;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing::warn;

/// Closes TCP port 25 of guests in the kernel and opens it for those who qualify.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Settings of this host [default: /etc/gate25/gate25.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enforces the policy on this host
    Run(RunArgs),
    Check(check::Args),
    Diff(diff::Args),
    Reload(reload::Args),
    /// Keeps the policy that is on trial (`reload --confirm-within`)
    Confirm(trial::Args),
    /// Goes back to the policy before the last change; the files are held until they change
    Undo(trial::Args),
    Status(status::Args),
    List(list::Args),
    Doctor(doctor::Args),
    Bypass(bypass::Args),
    Exempt(exempt::Args),
    Teardown(teardown::Args),
    Prepare(prepare::Args),
    Explain(explain::Args),
    Guard(guard::Args),
    Metrics(metrics::Args),
    /// Prints the JSON schema of policy files
    Schema,
    #[command(hide = true)]
    Pages(pages::Args),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// BPF filesystem on which tables and links are pinned
    #[arg(long, hide = true, value_name = "DIR", default_value = DEFAULT_FILESYSTEM)]
    bpffs: PathBuf,
    /// How programs attach
    #[arg(long, hide = true, value_enum, default_value_t = Attach::Auto)]
    attach: Attach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Attach {
    Auto,
    Filter,
}

impl Cli {
    fn config(&self) -> (&Path, Missing) {
        match &self.config {
            Some(path) => (path, Missing::Refused),
            None => (Path::new(settings::DEFAULT_PATH), Missing::Defaults),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Command::Run(args) => run_command(&cli, args),
        Command::Check(args) => check_command(&cli, args),
        Command::Diff(args) => asking(&cli, |at, console| diff::run(args, at, console)),
        Command::Reload(args) => asking(&cli, |at, console| reload::run(args, at, console)),
        Command::Confirm(args) => asking(&cli, |at, console| trial::confirm(args, at, console)),
        Command::Undo(args) => asking(&cli, |at, console| trial::undo(args, at, console)),
        Command::Status(args) => asking(&cli, |at, console| status::run(args, at, console)),
        Command::List(args) => asking(&cli, |at, console| list::run(args, at, console)),
        Command::Doctor(args) => asking(&cli, |at, console| doctor::run(args, at, console)),
        Command::Bypass(args) => asking(&cli, |at, console| bypass::run(args, at, console)),
        Command::Exempt(args) => exempt_command(&cli, args),
        Command::Teardown(args) => asking(&cli, |at, console| teardown::run(args, at, console)),
        Command::Prepare(args) => asking(&cli, |at, console| prepare::run(args, at, console)),
        Command::Explain(args) => explain_command(&cli, args),
        Command::Guard(args) => asking(&cli, |at, console| guard::run(args, at, console)),
        Command::Metrics(args) => metrics::run(args, &mut io::stdout().lock())
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        Command::Schema => schema::run(&mut io::stdout().lock())
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        Command::Pages(args) => pages::run(args, Cli::command()).map_err(Into::into),
    };
    outcome.unwrap_or_else(|error| {
        complain(&format!("gate25: {error:#}"));
        ExitCode::from(FAILED)
    })
}

fn check_command(cli: &Cli, args: &check::Args) -> anyhow::Result<ExitCode> {
    let (config, missing) = cli.config();
    let stdout = io::stdout();
    let surroundings = check::Surroundings {
        config,
        missing,
        now: Timestamp::now(),
        customer_key: |id| CustomerId::from_name(id).get(),
        colour: colour(stdout.is_terminal()),
    };
    let mut console = Console {
        out: &mut stdout.lock(),
        complaints: &mut io::stderr().lock(),
    };
    Ok(check::run(args, &surroundings, &mut console)?)
}

fn explain_command(cli: &Cli, args: &explain::Args) -> anyhow::Result<ExitCode> {
    let (config, missing) = cli.config();
    let stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let colour = colour(terminal);
    let surroundings = explain::Surroundings {
        config,
        missing,
        now: Timestamp::now(),
        hostname: &hostname()?,
        interfaces: &interfaces(),
        layout: match (terminal, colour) {
            (false, _) => Layout::Plain,
            (true, Colour::Never) => Layout::Columns,
            (true, Colour::Always) => Layout::Coloured,
        },
        colour,
    };
    let mut console = Console {
        out: &mut stdout.lock(),
        complaints: &mut io::stderr().lock(),
    };
    Ok(explain::run(args, &surroundings, &mut console)?)
}

fn exempt_command(cli: &Cli, args: &exempt::Args) -> anyhow::Result<ExitCode> {
    let stdin = io::stdin();
    let terminal = stdin.is_terminal();
    let mut answers = stdin.lock();
    asking(cli, |at, console| {
        let answers: Option<&mut dyn BufRead> = match terminal {
            true => Some(&mut answers),
            false => None,
        };
        exempt::run(args, at, console, answers)
    })
}

/// Runs a command that asks the agent, or reads what it left.
fn asking(
    cli: &Cli,
    command: impl FnOnce(&console::Surroundings<'_>, &mut Console<'_>) -> io::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let (config, missing) = cli.config();
    let stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let surroundings = console::Surroundings {
        config,
        missing,
        now: Timestamp::now(),
        hostname: &hostname()?,
        layout: if terminal {
            console::Layout::Table
        } else {
            console::Layout::Plain
        },
        colour: colour(terminal),
    };
    let mut console = Console {
        out: &mut stdout.lock(),
        complaints: &mut io::stderr().lock(),
    };
    Ok(command(&surroundings, &mut console)?)
}

/// Names of the host's interfaces: none where the kernel does not show them, which only makes
/// `explain` know fewer words.
fn interfaces() -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn run_command(cli: &Cli, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let (config, missing) = cli.config();
    let trust = Trust::Keepers(Keepers::of_process());
    let settings = match settings::read(config, missing, &trust) {
        Ok(loaded) => {
            let colour = colour(io::stderr().is_terminal());
            loaded
                .warnings
                .iter()
                .for_each(|warning| complain(&render(warning, colour)));
            loaded.settings
        }
        Err(SettingsError::Invalid { path, diagnostics }) => {
            let colour = colour(io::stderr().is_terminal());
            diagnostics
                .iter()
                .for_each(|diagnostic| complain(&render(diagnostic, colour)));
            anyhow::bail!("{} is not valid", path.display());
        }
        Err(error) => return Err(error.into()),
    };
    logging::install(log(&settings))?;
    // Before there is a second thread.
    if let Err(error) = privileges::confine() {
        warn!(
            error = in_full(&error),
            "more privileges are kept than are needed"
        );
    }
    let surroundings = Surroundings {
        bpf_filesystem: args.bpffs.clone(),
        attachment: match args.attach {
            Attach::Auto => Attachment::Auto,
            Attach::Filter => Attachment::Filter,
        },
        hostname: hostname()?,
        notify: Environment::of_process(),
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(only_enforce)
        .build()
        .context("start the runtime")?
        .block_on(until_signal(settings, surroundings))
        .map(|()| ExitCode::SUCCESS)
}

/// Programs are loaded by the first thread alone.
fn only_enforce() {
    if let Err(error) = privileges::confine_to_enforcing() {
        warn!(
            error = in_full(&error),
            "a thread keeps privileges that it does not need"
        );
    }
}

async fn until_signal(settings: Settings, surroundings: Surroundings) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let on_signal = shutdown.clone();
    let signals = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        on_signal.cancel();
    });
    let outcome = run(settings, surroundings, shutdown).await;
    signals.abort();
    outcome
}

fn log(settings: &Settings) -> logging::Settings {
    logging::Settings {
        level: match settings.log.level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        },
        format: match settings.log.format {
            LogFormat::Auto => logging::Format::Auto,
            LogFormat::Text => logging::Format::Text,
            LogFormat::Json => logging::Format::Json,
            LogFormat::Journal => logging::Format::Journald,
        },
    }
}

fn hostname() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("read the host's name")?;
    name.into_string()
        .map_err(|name| anyhow::anyhow!("the host's name {name:?} is not text"))
}

fn colour(terminal: bool) -> Colour {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if terminal && !refused {
        Colour::Always
    } else {
        Colour::Never
    }
}

/// Writes a line to standard error; where that is closed there is nobody left to tell.
fn complain(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}
