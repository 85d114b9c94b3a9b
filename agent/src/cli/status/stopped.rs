//! What a stopped agent left in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use super::{attempts, bypassed, line};
use crate::chain::in_full;
use crate::cli::console::{Console, FAILED, Layout, Reader, UNREACHABLE, is_root};
use crate::control::messages::{Bypass, Kind, Teller};
use crate::control::{self, host_connections};
use crate::kernel::bpf::leftover::{Leftover, LeftoverError, Version};
use crate::kernel::bpf::place::Place;
use crate::kernel::guard;
use crate::kernel::nft::Nft;
use crate::kernel::nftables::{self, NftablesError};
use crate::kernel::removal::Removal;
use crate::settings::Enforcement;

#[derive(Debug, Serialize)]
struct Stopped {
    agent: Teller,
    /// Whether any program, or table of backend nftables, is in place.
    enforcing: bool,
    /// Whether the settings as they are now say that this host only observes; `None` where they are not valid.
    observes: Option<bool>,
    /// A time in which nothing is refused.
    bypass: Option<Bypass>,
    /// Interfaces with a program.
    interfaces: u64,
    /// Cgroups with programs.
    cgroups: u64,
    /// Tables of nftables that enforce.
    nftables: Vec<String>,
    /// Tables of the guard.
    guard: Vec<String>,
    /// What could not be found out.
    unknown: Vec<String>,
    versions: Vec<Pinned>,
    connections: Option<BTreeMap<String, u64>>,
    foreign: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Pinned {
    version: u32,
    programs: Vec<String>,
    links: Vec<Link>,
    tables: BTreeMap<String, Option<u64>>,
}

#[derive(Debug, Serialize)]
struct Link {
    kind: Kind,
    number: u64,
    hook: &'static str,
    attached: bool,
}

/// Prints what is left.
pub(super) fn run(
    filesystem: &Path,
    socket: &Path,
    told: Option<Enforcement>,
    reader: Reader,
    layout: Layout,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    if !is_root() {
        console.say("the agent is not reached; only root may see what it left in the kernel")?;
        return Ok(ExitCode::from(UNREACHABLE));
    }
    if let Err(code) = console.unless_stopped(socket, filesystem)? {
        return Ok(code);
    }
    let stopped = match look(&Leftover::at(filesystem), told) {
        Ok(stopped) => stopped,
        Err(error) => return console.complain(&error, UNREACHABLE),
    };
    match reader {
        Reader::Programs => console.json(&stopped)?,
        Reader::People => console.rows(layout, &[], &lines(&stopped))?,
    }
    Ok(ExitCode::from(if stopped.is_nothing() {
        FAILED
    } else {
        UNREACHABLE
    }))
}

impl Stopped {
    /// Whether nothing of gate25 is known to be in the kernel.
    fn is_nothing(&self) -> bool {
        self.versions.is_empty()
            && !self.enforcing
            && self.guard.is_empty()
            && self.unknown.is_empty()
    }
}

fn look(leftover: &Leftover, told: Option<Enforcement>) -> Result<Stopped, LeftoverError> {
    let (nft, mut unknown) = (Nft::default(), Vec::new());
    let nftables = match nftables::remove(&nft, Removal::DryRun) {
        Ok(tables) => tables,
        Err(NftablesError::Foreign) => Vec::new(),
        Err(error) => {
            unknown.push(in_full(&error));
            Vec::new()
        }
    };
    let guard = guard::remove(&nft, Removal::DryRun).unwrap_or_else(|error| {
        unknown.push(in_full(&error));
        Vec::new()
    });
    let mut interfaces: BTreeSet<u32> = Leftover::filtered()?
        .into_iter()
        .map(|interface| interface.index)
        .collect();
    let mut cgroups = BTreeSet::new();
    let (mut versions, mut foreign) = (Vec::new(), Vec::new());
    if leftover.exists()? {
        let survey = leftover.survey()?;
        for (place, attached) in survey.versions.iter().flat_map(|version| &version.links) {
            match place {
                _ if !attached => {}
                // It keeps nobody from sending.
                Place::Replies(_) => {}
                Place::Interface(index) => drop(interfaces.insert(*index)),
                Place::Cgroup(id, _) => drop(cgroups.insert(*id)),
            }
        }
        versions = survey.versions.into_iter().map(pinned).collect();
        foreign = survey.foreign;
    }
    Ok(Stopped {
        agent: Teller::Stopped,
        enforcing: !interfaces.is_empty() || !cgroups.is_empty() || !nftables.is_empty(),
        observes: told.map(|told| told == Enforcement::Observe),
        // A table may be missing, or of another layout.
        bypass: leftover
            .bypass()
            .ok()
            .and_then(|bypass| control::bypassed(&bypass, Timestamp::now())),
        interfaces: interfaces.len() as u64,
        cgroups: cgroups.len() as u64,
        nftables,
        guard,
        unknown,
        versions,
        // A table may be missing, or of another layout.
        connections: leftover.host().ok().as_ref().map(host_connections),
        foreign: foreign
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect(),
    })
}

fn pinned(version: Version) -> Pinned {
    let Version {
        number,
        tables,
        links,
        programs,
    } = version;
    let link = |(place, attached)| match place {
        Place::Interface(index) => Link {
            kind: Kind::Interface,
            number: u64::from(index),
            hook: "ingress",
            attached,
        },
        Place::Replies(index) => Link {
            kind: Kind::Interface,
            number: u64::from(index),
            hook: "egress",
            attached,
        },
        Place::Cgroup(number, hook) => Link {
            kind: Kind::Cgroup,
            number,
            hook: hook.word(),
            attached,
        },
    };
    Pinned {
        version: number,
        programs,
        links: links.into_iter().map(link).collect(),
        tables: tables.into_iter().collect(),
    }
}

fn lines(stopped: &Stopped) -> Vec<Vec<String>> {
    let Stopped {
        agent: _,
        enforcing: _,
        observes,
        bypass,
        interfaces,
        cgroups,
        nftables,
        guard,
        unknown,
        versions,
        connections,
        foreign,
    } = stopped;
    let mut lines = vec![line("agent", "not running".to_owned())];
    let has_unknown = !unknown.is_empty();
    let unknown = unknown.iter().map(|why| line("unknown", why.clone()));
    if stopped.is_nothing() {
        let text = "no: nothing of gate25 is in the kernel, nothing is refused";
        lines.push(line("enforcing", text.to_owned()));
        lines.extend(unknown);
        return lines;
    }
    let goes_on = |what: String| {
        format!(
            "goes on without the agent: {what}; new interfaces and changes of the policy wait for it"
        )
    };
    let enforcing = if !nftables.is_empty() {
        goes_on(format!("nftables table {}", nftables.join(", ")))
    } else if stopped.enforcing {
        goes_on(format!(
            "programs on {interfaces} interfaces and {cgroups} cgroups"
        ))
    } else if has_unknown {
        "not known".to_owned()
    } else {
        "no: no program is in place".to_owned()
    };
    lines.push(line("enforcing", enforcing));
    let mode = match observes {
        Some(false) => None,
        Some(true) => Some(
            "the settings say `enforcement: observe`: if the agent was started under them, what is in place counts \
             and refuses nothing",
        ),
        None => Some(
            "not known: the settings are not valid, and those before may have been `enforcement: observe`",
        ),
    };
    lines.extend(mode.map(|text| line("mode", text.to_owned())));
    lines.extend(bypass.iter().map(|it| line("bypass", bypassed(it))));
    let in_place = match (guard.is_empty(), has_unknown) {
        (true, false) => "not in place".to_owned(),
        (true, true) => "not known".to_owned(),
        (false, _) => format!("in place: nftables tables {}", guard.join(", ")),
    };
    lines.push(line("guard", in_place));
    lines.push(line("exemptions", "end on time all the same".to_owned()));
    lines.push(line("connections", attempts(connections.as_ref())));
    lines.extend(unknown);
    for pinned in versions {
        let Pinned {
            version,
            programs,
            links,
            tables,
        } = pinned;
        let attached = links.iter().filter(|link| link.attached).count();
        lines.push(line(
            "layout",
            format!(
                "v{version}: {} programs, {attached} of {} links attached",
                programs.len(),
                links.len()
            ),
        ));
        for (table, entries) in tables {
            let entries = entries.map_or_else(|| "pinned".to_owned(), |count| count.to_string());
            lines.push(line("table", format!("{table}: {entries}")));
        }
    }
    let foreign = foreign.iter();
    lines.extend(foreign.map(|path| line("foreign", path.clone())));
    lines
}
