//! An explanation as people read it.

use std::io::{self, Write};

use crate::diagnostic::{escape, quoted};
use crate::explain::report::{
    AllowlistStep, Asked, Chain, ClaimStep, CustomerStep, Entry, EntryKind, ExemptionState,
    ExemptionStep, Explanation, HostStep, Of, Outcome, Place, ProfileStep, RootStep, WorkloadName,
    WorkloadState, WorkloadStep,
};
use crate::settings::Enforcement;

/// How lines are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `label: text (file:line)`, one fact a line.
    Plain,
    /// In columns.
    Columns,
    /// In columns with ANSI colours.
    Coloured,
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";
/// Width of the first column: the longest label and a space.
const LABELS: usize = 10;

/// One fact.
struct Line {
    label: &'static str,
    text: String,
    places: Vec<String>,
}

impl Line {
    fn new(label: &'static str, text: impl Into<String>) -> Self {
        Self {
            label,
            text: text.into(),
            places: Vec::new(),
        }
    }

    fn at(mut self, place: &Place) -> Self {
        self.places.push(written(place));
        self
    }
}

/// Prints the chain from the question to the verdict.
///
/// # Errors
/// Writing failed.
pub(super) fn print(
    explanation: &Explanation,
    host: &str,
    layout: Layout,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Explanation {
        question,
        workload,
        chain,
        decision,
    } = explanation;
    let mut lines = vec![asked(question)];
    if let Some(workload) = workload {
        lines.push(on_host(workload, host));
        lines.extend(workload.root.as_ref().map(root));
    }
    if let Some(chain) = chain {
        describe(chain, &mut lines);
    }
    lines.push(outcome(decision, question.port));
    lines.iter().try_for_each(|line| write(line, layout, out))
}

fn write(line: &Line, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
    let Line {
        label,
        text,
        places,
    } = line;
    let places = places.join(", ");
    match (layout, places.is_empty()) {
        (Layout::Plain, true) => writeln!(out, "{label}: {text}"),
        (Layout::Plain, false) => writeln!(out, "{label}: {text} ({places})"),
        (Layout::Columns, true) => writeln!(out, "{label:LABELS$} {text}"),
        (Layout::Columns, false) => writeln!(out, "{label:LABELS$} {text}  {places}"),
        (Layout::Coloured, _) => {
            let (on, off) = match *label {
                "verdict" => (BOLD, RESET),
                _ => ("", ""),
            };
            writeln!(
                out,
                "{DIM}{label:LABELS$}{RESET} {on}{text}{off}  {DIM}{places}{RESET}"
            )
        }
    }
}

fn asked(question: &Asked) -> Line {
    let Asked {
        subject,
        destination,
        judged_as,
        port,
        at,
    } = question;
    let same = if destination == judged_as {
        String::new()
    } else {
        format!(" (judged as {judged_as})")
    };
    let subject = escape(subject);
    let text = format!("{subject} to {destination}{same} port {port} at {at}");
    Line::new("question", text)
}

fn on_host(workload: &WorkloadStep, host: &str) -> Line {
    let WorkloadStep {
        name: WorkloadName::Interface(name) | WorkloadName::Cgroup(name),
        root: _,
        state,
    } = workload;
    let name = escape(name);
    let host = escape(host);
    match state {
        WorkloadState::Customer {
            customer,
            pattern,
            claimed,
            place,
        } => {
            let text = format!(
                "{name} on {host} is claimed by {} of customer {customer}{}",
                quoted(pattern),
                above(claimed.as_deref(), &name)
            );
            Line::new("workload", text).at(place)
        }
        WorkloadState::Unassigned => {
            Line::new("workload", format!("no customer claims {name} on {host}"))
        }
        WorkloadState::Conflict { claims, claimed } => {
            let ids: Vec<&str> = claims.iter().map(|claim| claim.customer.as_str()).collect();
            let text = format!(
                "{name} on {host} is claimed by {}{}, so it is nobody's",
                ids.join(" and "),
                above(claimed.as_deref(), &name)
            );
            let line = Line::new("workload", text);
            claims
                .iter()
                .fold(line, |line, claim| line.at(&claim.place))
        }
        WorkloadState::Ignored { pattern } => {
            let pattern = quoted(pattern);
            let text = format!("{name} is none here: {pattern} of `interfaces.ignore` matches");
            Line::new("workload", text)
        }
        WorkloadState::Unmatched { patterns } => {
            let patterns: Vec<_> = patterns.iter().map(|pattern| quoted(pattern)).collect();
            let text = format!(
                "{name} is none here: `interfaces.match` has only {}",
                patterns.join(", ")
            );
            Line::new("workload", text)
        }
        WorkloadState::OutsideRoots { roots, claims } => outside(&name, roots, claims),
    }
}

fn outside(name: &str, roots: &[String], claims: &[ClaimStep]) -> Line {
    let roots: Vec<_> = roots.iter().map(|root| quoted(root)).collect();
    let roots = match &*roots {
        [] => "is empty".to_owned(),
        roots => format!("has only {}", roots.join(", ")),
    };
    let ids: Vec<&str> = claims.iter().map(|claim| claim.customer.as_str()).collect();
    let claimed = match &*ids {
        [] => String::new(),
        ids => format!("; claimed in vain by {}", ids.join(" and ")),
    };
    let text = format!("{name} is none here: `cgroups.roots` {roots}{claimed}");
    let line = Line::new("workload", text);
    claims
        .iter()
        .fold(line, |line, claim| line.at(&claim.place))
}

/// Which cgroup above the one asked about a pattern matched.
fn above(claimed: Option<&str>, name: &str) -> String {
    match claimed.map(escape) {
        Some(claimed) if claimed != name => format!(", with all of {claimed}"),
        Some(_) | None => String::new(),
    }
}

fn root(root: &RootStep) -> Line {
    let RootStep { cgroup, pattern } = root;
    let text = format!(
        "{}, by {} of `cgroups.roots`",
        escape(cgroup),
        quoted(pattern)
    );
    Line::new("root", text)
}

fn describe(chain: &Chain, lines: &mut Vec<Line>) {
    let Chain {
        customer,
        allowlists,
        exemptions,
        profile,
        host,
    } = chain;
    let CustomerStep { id, name, place } = customer;
    let text = match name {
        Some(name) if !name.is_empty() => format!("{id}, {}", escape(name)),
        Some(_) => id.clone(),
        None => format!("{id} (built in)"),
    };
    let line = Line::new("customer", text);
    lines.push(match place {
        Some(place) => line.at(place),
        None => line,
    });
    lines.extend(allowlists.iter().map(allowlist));
    if allowlists.is_empty() {
        lines.push(Line::new("allowlist", "none"));
    }
    lines.extend(exemptions.iter().map(exemption));
    if exemptions.is_empty() {
        lines.push(Line::new("exemption", "none"));
    }
    let ProfileStep {
        name,
        default,
        mode,
        blocked,
        relay,
        place,
    } = profile;
    let default = if *default {
        "the default profile"
    } else {
        "not the default profile"
    };
    let mut text = format!("{name} ({default}): mode {mode}, blocked {blocked}");
    if !relay.is_empty() {
        let relay: Vec<_> = relay.iter().map(ToString::to_string).collect();
        text += &format!(" to {}", relay.join(", "));
    }
    lines.push(Line::new("profile", text).at(place));
    let HostStep { name, enforcement } = host;
    let meaning = match enforcement {
        Enforcement::Observe => "observe: nothing is refused here",
        Enforcement::Policy => "policy",
    };
    lines.push(Line::new(
        "host",
        format!("{}, enforcement {meaning}", escape(name)),
    ));
}

fn allowlist(step: &AllowlistStep) -> Line {
    let AllowlistStep {
        name,
        of,
        matched,
        place,
    } = step;
    let of = match of {
        Of::Profile => "profile",
        Of::Customer => "customer",
    };
    let text = format!("{name} (of the {of}): {}", found(matched.as_deref()));
    Line::new("allowlist", text).at(place)
}

fn exemption(step: &ExemptionStep) -> Line {
    let ExemptionStep {
        id,
        state,
        starts,
        expires,
        ticket,
        matched,
        place,
    } = step;
    let state = match (state, starts) {
        (ExemptionState::NotStarted, Some(starts)) => {
            format!("not started, from {starts} until {expires}")
        }
        (ExemptionState::NotStarted, None) => format!("not started, until {expires}"),
        (ExemptionState::Active, _) => format!("active until {expires}"),
        (ExemptionState::Expired, _) => format!("expired at {expires}"),
    };
    let ticket = escape(ticket);
    let text = format!("{id} ({ticket}): {state}; {}", found(matched.as_deref()));
    Line::new("exemption", text).at(place)
}

fn found(matched: Option<&str>) -> String {
    match matched {
        Some(prefix) => format!("{prefix} matches"),
        None => "no match".to_owned(),
    }
}

fn outcome(decision: &Outcome, port: u16) -> Line {
    match decision {
        Outcome::Judged {
            verdict,
            reason,
            entry,
            redirected_to,
        } => match entry {
            Some(entry) => {
                let Entry {
                    kind,
                    name,
                    matched,
                    place,
                } = entry;
                let kind = match kind {
                    EntryKind::Allowlist => "allowlist",
                    EntryKind::Exemption => "exemption",
                    EntryKind::Profile => "profile",
                };
                let by = match matched {
                    Some(prefix) => format!("{kind} {name}, {prefix}"),
                    None => format!("{kind} {name}"),
                };
                let to = match redirected_to {
                    Some(relay) => format!(" to {relay}"),
                    None => String::new(),
                };
                let text = format!("{verdict}{to}, reason {reason}: {by}");
                Line::new("verdict", text).at(place)
            }
            None => Line::new("verdict", format!("{verdict}, reason {reason}")),
        },
        Outcome::PortNotGuarded { guarded_ports } => {
            let ports: Vec<_> = guarded_ports.iter().map(ToString::to_string).collect();
            let text = format!(
                "passes, not judged: port {port} is not guarded here, only {}",
                ports.join(", ")
            );
            Line::new("verdict", text)
        }
        Outcome::NotAWorkload => {
            Line::new("verdict", "passes, not judged: not a workload on this host")
        }
    }
}

fn written(place: &Place) -> String {
    let Place {
        file,
        line,
        column: _,
    } = place;
    format!("{}:{line}", escape(file))
}
