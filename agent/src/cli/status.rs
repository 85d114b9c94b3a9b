//! `gate25 status`: whether this host enforces; with the agent stopped, what it left in the kernel.

mod stopped;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::console::{Assumed, Console, FAILED, Reader, Surroundings};
use crate::control::client::Client;
use crate::control::messages::{
    Bypass, Mode, NoticeListener, OnTrial, Reloads, Returns, RunningPolicy, State, Status, Term,
};
use crate::kernel::bpf::pins::DEFAULT_FILESYSTEM;

/// Says whether this host enforces, and why not
///
/// Exits with 0 where it does and nothing is wrong, with 1 where not. With the agent stopped it tells
/// root what is left in the kernel, and exits with 4.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
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
    let reader = Reader::of(args.json);
    let Assumed {
        settings,
        are_valid,
    } = console.settings_or_defaults(surroundings)?;
    let status = match Client::new(&settings.control.socket).status() {
        Ok(status) => status,
        Err(error) if error.is_nobody() => {
            let told = are_valid.then_some(settings.enforcement);
            return stopped::run(
                &args.bpffs,
                &settings.control.socket,
                told,
                reader,
                surroundings.layout,
                console,
            );
        }
        Err(error) => return console.no_answer(&error),
    };
    match reader {
        Reader::Programs => console.json(&status)?,
        Reader::People => console.rows(surroundings.layout, &[], &lines(&status))?,
    }
    Ok(if status.enforcing {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

fn lines(status: &Status) -> Vec<Vec<String>> {
    let Status {
        agent: _,
        version,
        started,
        host,
        enforcing,
        mode,
        bypass,
        backend,
        policy,
        workloads,
        cgroup_roots,
        returns,
        reload,
        trial,
        repairs,
        guard_repairs,
        tables,
        connections,
        notice,
        problems,
        warnings,
    } = status;
    let enforcing = match (enforcing, mode) {
        (true, _) => "yes".to_owned(),
        (false, Mode::Policy) if bypass.is_some() => "no: this host is bypassed".to_owned(),
        (false, Mode::Observe) => "no: this host only observes".to_owned(),
        (false, Mode::Policy) => "no, or not everywhere: see the problems".to_owned(),
    };
    let mut lines = vec![
        line(
            "agent",
            format!("running, version {version}, since {started}"),
        ),
        line("host", host.clone()),
        line("enforcing", enforcing),
        line(
            "backend",
            format!(
                "{} ({}), hook {}",
                backend.name, backend.reason, backend.hook
            ),
        ),
    ];
    lines.extend(bypass.iter().map(|it| line("bypass", bypassed(it))));
    lines.extend(policy_lines(policy));
    for (kind, states) in workloads {
        let states = counted(states, &State::ALL, State::as_str);
        lines.push(line("workloads", format!("{}: {states}", kind.as_str())));
    }
    lines.push(line("cgroup roots", cgroup_roots.to_string()));
    lines.push(line("returns", returned(returns)));
    lines.push(line("reload", last(reload)));
    lines.extend(
        reload
            .refusal
            .iter()
            .map(|why| line("refused", why.clone())),
    );
    lines.extend(trial.iter().map(|it| line("trial", on_trial(it))));
    lines.push(line("repairs", repairs.to_string()));
    lines.push(line("guard repairs", guard_repairs.to_string()));
    lines.push(line("connections", attempts(connections.as_ref())));
    lines.extend(notice.iter().map(|it| line("notice", listening(it))));
    lines.extend(
        tables
            .iter()
            .map(|(table, entries)| line("table", format!("{table}: {entries}"))),
    );
    lines.extend(problems.iter().map(|why| line("problem", why.clone())));
    lines.extend(warnings.iter().map(|why| line("warning", why.clone())));
    lines
}

fn policy_lines(policy: &RunningPolicy) -> [Vec<String>; 4] {
    let RunningPolicy {
        directory,
        source,
        generation,
        hash,
        customers,
        exemptions,
    } = policy;
    let hash = hash.as_deref().unwrap_or("none");
    [
        line(
            "policy",
            format!("{source}, generation {generation}, hash {hash}"),
        ),
        line("files", directory.clone()),
        line("customers", customers.to_string()),
        line("exemptions", counted(exemptions, &Term::ALL, Term::as_str)),
    ]
}

fn line(label: &str, text: String) -> Vec<String> {
    vec![label.to_owned(), text]
}

fn last(reload: &Reloads) -> String {
    let Reloads {
        attempts,
        failures,
        successful,
        last_success,
        refusal: _,
    } = reload;
    let outcome = match (successful, attempts) {
        (true, _) => "successful",
        (false, 0) => "none yet",
        (false, _) => "refused",
    };
    let success = match last_success {
        Some(time) => format!("last success {time}"),
        None => "no success yet".to_owned(),
    };
    format!("{outcome}, {success}, {attempts} attempts, {failures} refused")
}

fn bypassed(bypass: &Bypass) -> String {
    let Bypass {
        ends,
        since,
        ticket,
    } = bypass;
    format!("until {ends} nothing is refused, since {since}, {ticket}: `gate25 bypass end` ends it")
}

fn on_trial(trial: &OnTrial) -> String {
    match trial {
        OnTrial::Running { ends } => {
            format!("until {ends} the files run, then the set before: `gate25 confirm` keeps them")
        }
        OnTrial::Undone { at } => format!("undone at {at}: the set before runs, not the files"),
    }
}

fn counted<T: Ord + Copy>(
    counts: &BTreeMap<T, u64>,
    all: &[T],
    word: impl Fn(T) -> &'static str,
) -> String {
    let counted = all.iter().map(|one| {
        let count = counts.get(one).copied().unwrap_or_default();
        format!("{count} {}", word(*one))
    });
    counted.collect::<Vec<_>>().join(", ")
}

fn listening(listener: &NoticeListener) -> String {
    let NoticeListener {
        address,
        listening,
        error,
    } = listener;
    match (listening, error) {
        (true, _) => format!("listening on {address}"),
        (false, Some(error)) => format!("not listening on {address}: {error}"),
        (false, None) => format!("not listening on {address} yet"),
    }
}

fn returned(
    Returns {
        interfaces,
        packets,
    }: &Returns,
) -> String {
    match interfaces {
        0 => "not judged".to_owned(),
        interfaces => format!(
            "judged on {interfaces} interfaces: {}",
            attempts(packets.as_ref())
        ),
    }
}

fn attempts(connections: Option<&BTreeMap<String, u64>>) -> String {
    let Some(connections) = connections else {
        return "the kernel does not tell".to_owned();
    };
    let counted = connections
        .iter()
        .map(|(verdict, count)| format!("{count} {verdict}"));
    counted.collect::<Vec<_>>().join(", ")
}
