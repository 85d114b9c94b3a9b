//! `gate25 doctor`: what is wrong with this host, and what to do about it.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use gate25_common::abi::CustomerId;
use serde::Serialize;

use crate::chain::in_full;
use crate::cli::console::{Console, FAILED, Layout, Reader, Surroundings, is_root};
use crate::cli::files;
use crate::control::client::{Client, ClientError};
use crate::control::presence::Presence;
use crate::diagnostic::{Diagnostic, Severity as Bad, escape};
use crate::doctor::{
    Agent, Area, Facts, Finding, Host, Kind, Look, NftFacts, Sampling, Severity, Survey, judge,
};
use crate::kernel::bpf::pins::DEFAULT_FILESYSTEM;
use crate::policy::loader::{Circumstances, Purpose};
use crate::settings::Settings;

/// How long the agent has for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is wrong with the coverage must be so for this long: a guest that starts just now is covered
/// within milliseconds.
const SETTLE: Duration = Duration::from_secs(1);

/// Looks at this host and says what is wrong, and what to do about it
///
/// Asks the kernel what is attached, whatever the agent believes; works with the agent stopped, too.
/// Only root sees everything. Exits with 1 where an error was found, or something could not be looked
/// at.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print one JSON object
    #[arg(short, long)]
    pub json: bool,
    /// BPF filesystem on which tables and links are pinned
    #[arg(long, hide = true, value_name = "DIR", default_value = DEFAULT_FILESYSTEM)]
    pub bpffs: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether there is no error.
    healthy: bool,
    /// `running`, `stopped`, `silent`, `hidden`.
    agent: &'static str,
    host: About,
    /// Errors first.
    findings: Vec<Finding>,
}

/// What there is, wrong or not; `None` where nobody knows.
#[derive(Debug, Serialize)]
struct About {
    kernel: Option<String>,
    tcx: Option<bool>,
    connect_error: Option<bool>,
    btf: bool,
    cgroup_mount: Option<String>,
    cgroup_hybrid: Option<bool>,
    nft: Option<String>,
    bridge_reject: Option<bool>,
}

/// Looks, judges and prints.
///
/// # Errors
/// Writing failed.
pub fn run(
    args: &Args,
    surroundings: &Surroundings<'_>,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    let reader = Reader::of(args.json);
    let trust = files::trusted_at_a_start();
    let (settings, invalid) =
        match files::settings(surroundings.config, surroundings.missing, &trust) {
            Ok(loaded) => (loaded.settings, Ok(None)),
            Err(diagnostics) => (Settings::default(), unstartable(&diagnostics)),
        };
    let client = Client::new(&settings.control.socket).patient(PATIENCE);
    let agent = ask(&client, &settings.control.socket, &args.bpffs);
    let mistakes = mistakes(&settings, surroundings);
    let survey = Survey::new(settings, &args.bpffs);
    let invalid = (surroundings.config.to_owned(), invalid);
    let mut facts = survey.facts(agent, invalid, mistakes);
    let mut findings = settled(&survey, &mut facts);
    if !is_root() && matches!(facts.agent, Agent::Running(_)) {
        // The agent has looked where the caller may not.
        match client.findings() {
            Ok(told) => findings.extend(told.findings),
            Err(error) => findings.push(Finding::new(
                Kind::NotExamined,
                "what the agent found",
                in_full(&error),
            )),
        }
        findings.sort();
        findings.dedup();
    }
    let report = Report {
        healthy: findings.iter().all(|it| it.severity != Severity::Error),
        agent: word(&facts.agent),
        host: about(&facts),
        findings,
    };
    match reader {
        Reader::Programs => console.json(&report)?,
        Reader::People => print(&report, surroundings.layout, console)?,
    }
    Ok(if report.healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

/// What is wrong, and with the coverage still is after a moment.
fn settled(survey: &Survey, facts: &mut Facts) -> Vec<Finding> {
    let first = judge(facts);
    if first.iter().all(|it| it.kind.area() != Area::Coverage) {
        return first;
    }
    thread::sleep(SETTLE);
    let again = survey.coverage(&BTreeSet::new(), Sampling::Off);
    let before = std::mem::replace(&mut facts.coverage, again);
    facts.coverage.sample = before.sample;
    let mut findings = judge(facts);
    findings.retain(|it| first.iter().any(|before| before.is_about_the_same(it)));
    findings
}

fn ask(client: &Client, socket: &Path, filesystem: &Path) -> Agent {
    match client.status() {
        Ok(status) => Agent::Running(Box::new(status)),
        Err(error) if error.is_nobody() => match Presence::look(socket, filesystem) {
            Presence::Stopped => Agent::Stopped,
            Presence::Running => Agent::Silent(in_full(&error)),
            Presence::Unserved => {
                let socket = socket.display();
                Agent::Silent(format!("an agent runs, but nobody serves {socket}"))
            }
            Presence::Unknown(error) => {
                let error = in_full(&error);
                Agent::Hidden(format!("it is not known whether one runs: {error}"))
            }
        },
        Err(ClientError::Unreachable { path, source })
            if source.kind() == ErrorKind::PermissionDenied =>
        {
            let group = "only root and the members of `control.group` may ask it";
            Agent::Hidden(format!("cannot use {}: {group}", path.display()))
        }
        Err(error) => Agent::Silent(in_full(&error)),
    }
}

/// What is wrong with the policy's files.
fn mistakes(settings: &Settings, surroundings: &Surroundings<'_>) -> Look<Option<(String, usize)>> {
    let circumstances = Circumstances {
        purpose: Purpose::Run,
        now: surroundings.now,
        customer_key: |id| CustomerId::from_name(id).get(),
    };
    let set = files::policy(&settings.policy_dir, &circumstances);
    let errors = set
        .diagnostics
        .iter()
        .filter(|it| it.severity == Bad::Error);
    let errors: Vec<&Diagnostic> = errors.collect();
    let Some(first) = errors.first() else {
        return Ok(None);
    };
    let file = first.primary.file.display();
    let message = match first.primary.position {
        Some(position) => format!("{file}:{}: {}", position.line, first.message),
        None => format!("{file}: {}", first.message),
    };
    if first.code == "unreadable" && !is_root() {
        return Err(message);
    }
    Ok(Some((message, errors.len())))
}

/// Why no agent starts with these settings.
fn unstartable(diagnostics: &[Diagnostic]) -> Look<Option<String>> {
    if !is_root() && diagnostics.iter().any(|it| it.code == "unreadable") {
        return Err("only who may read them sees what depends on the settings".to_owned());
    }
    let all = diagnostics
        .iter()
        .map(|it| format!("{}: {}", it.primary, it.message));
    Ok(Some(format!(
        "{}; what depends on the settings was looked at as by default",
        all.collect::<Vec<_>>().join("; ")
    )))
}

const fn word(agent: &Agent) -> &'static str {
    match agent {
        Agent::Running(_) => "running",
        Agent::Stopped => "stopped",
        Agent::Silent(_) => "silent",
        Agent::Hidden(_) => "hidden",
    }
}

fn about(facts: &Facts) -> About {
    let Host {
        release,
        features,
        btf,
        cgroups,
        ..
    } = &facts.host;
    let NftFacts {
        version,
        bridge_reject,
        ..
    } = &facts.nft;
    let features = features.as_ref().ok();
    let cgroups = cgroups.as_ref().ok().and_then(Option::as_ref);
    About {
        kernel: release.clone().ok(),
        tcx: features.map(|it| it.tcx),
        connect_error: features.map(|it| it.connect_error),
        btf: *btf,
        cgroup_mount: cgroups.map(|(mount, _)| mount.display().to_string()),
        cgroup_hybrid: cgroups.map(|(_, hybrid)| *hybrid),
        nft: version.clone().ok().flatten(),
        bridge_reject: *bridge_reject,
    }
}

fn print(report: &Report, layout: Layout, console: &mut Console<'_>) -> io::Result<()> {
    let Report {
        healthy: _,
        agent,
        host,
        findings,
    } = report;
    let mut lines = vec![vec!["agent".to_owned(), (*agent).to_owned()]];
    lines.extend(rows(host));
    console.rows(layout, &[], &lines)?;
    for finding in findings {
        let Finding {
            severity,
            kind,
            subject,
            message,
            advice,
        } = finding;
        let (severity, kind) = (severity.as_str(), kind.as_str());
        match layout {
            Layout::Plain => {
                let cells = [severity, kind, subject, message, advice].map(str::to_owned);
                console.rows(layout, &[], &[cells.to_vec()])?;
            }
            Layout::Table => writeln!(
                console.out,
                "\n{severity}: {kind}: {}\n  {}\n  {}",
                escape(subject),
                escape(message),
                escape(advice)
            )?,
        }
    }
    if findings.is_empty() {
        writeln!(console.out, "nothing is wrong")?;
    }
    Ok(())
}

fn rows(host: &About) -> Vec<Vec<String>> {
    let About {
        kernel,
        tcx,
        connect_error,
        btf,
        cgroup_mount,
        cgroup_hybrid,
        nft,
        bridge_reject,
    } = host;
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "not known".to_owned());
    let yes = |it: Option<bool>| match it {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    };
    let layout = match cgroup_hybrid {
        Some(true) => ", version 1 beside it",
        Some(false) | None => "",
    };
    [
        ("kernel", known(kernel)),
        ("tcx", yes(*tcx).to_owned()),
        ("connect errors", yes(*connect_error).to_owned()),
        ("BTF", yes(Some(*btf)).to_owned()),
        ("cgroup2", format!("{}{layout}", known(cgroup_mount))),
        ("nft", known(nft)),
        ("bridge reject", yes(*bridge_reject).to_owned()),
    ]
    .map(|(label, text)| vec![label.to_owned(), text])
    .to_vec()
}
