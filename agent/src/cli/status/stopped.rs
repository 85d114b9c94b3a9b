//! What a stopped agent left in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::{attempts, line};
use crate::cli::console::{Console, FAILED, Layout, Reader, UNREACHABLE, is_root};
use crate::control::host_connections;
use crate::control::messages::{Kind, Teller};
use crate::kernel::bpf::leftover::{Leftover, LeftoverError, Version};
use crate::kernel::bpf::place::Place;

#[derive(Debug, Serialize)]
struct Stopped {
    agent: Teller,
    /// Whether any program is in place.
    enforcing: bool,
    /// Interfaces with a program.
    interfaces: u64,
    /// Cgroups with programs.
    cgroups: u64,
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
    reader: Reader,
    layout: Layout,
    console: &mut Console<'_>,
) -> io::Result<ExitCode> {
    if !is_root() {
        console.say("the agent is not running; only root may see what it left in the kernel")?;
        return Ok(ExitCode::from(UNREACHABLE));
    }
    let stopped = match look(filesystem) {
        Ok(stopped) => stopped,
        Err(error) => return console.complain(&error, UNREACHABLE),
    };
    match reader {
        Reader::Programs => console.json(&stopped)?,
        Reader::People => console.rows(layout, &[], &lines(&stopped))?,
    }
    let nothing = stopped.versions.is_empty() && !stopped.enforcing;
    Ok(ExitCode::from(if nothing { FAILED } else { UNREACHABLE }))
}

fn look(filesystem: &Path) -> Result<Stopped, LeftoverError> {
    let leftover = Leftover::at(filesystem);
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
        enforcing: !interfaces.is_empty() || !cgroups.is_empty(),
        interfaces: interfaces.len() as u64,
        cgroups: cgroups.len() as u64,
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
        enforcing,
        interfaces,
        cgroups,
        versions,
        connections,
        foreign,
    } = stopped;
    let mut lines = vec![line("agent", "not running".to_owned())];
    if versions.is_empty() && !enforcing {
        let text = "no: nothing of gate25 is in the kernel, nothing is refused";
        lines.push(line("enforcing", text.to_owned()));
        return lines;
    }
    lines.push(line(
        "enforcing",
        format!(
            "goes on without the agent: programs on {interfaces} interfaces and {cgroups} cgroups; \
             new interfaces and changes of the policy wait for it"
        ),
    ));
    lines.push(line("exemptions", "end on time all the same".to_owned()));
    lines.push(line("connections", attempts(connections.as_ref())));
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
