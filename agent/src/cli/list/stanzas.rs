//! Workloads that nobody claims, as customers to fill in. Pure.

use std::collections::BTreeMap;

use crate::control::messages::{Kind, Workload};
use crate::diagnostic::escape;
use crate::policy::scalar::OwnedInterface;
use crate::policy::scalar::cgroups::OwnedCgroup;
use crate::yaml::read::Scalar as _;
use crate::yaml::tree::Style;
use crate::yaml::write::quoted;

/// The stanzas, as a policy file. A stanza without an id is refused, so that none is loaded
/// before somebody has said whose it is.
pub(super) fn write(host: &str, workloads: &[Workload]) -> String {
    let mut text = format!(
        "# Workloads of {} that no customer claims: fill in each id, then run `gate25 check`.\n\
         # A guest that may move needs its other hosts in `hosts` too.\n",
        escape(host)
    );
    let mut guests: BTreeMap<(Kind, &str), Vec<&Workload>> = BTreeMap::new();
    let mut unnamed = Vec::new();
    for workload in workloads {
        match workload
            .name
            .as_deref()
            .filter(|name| fits(workload.kind, name))
        {
            Some(name) => {
                let guest = (workload.kind, guest(workload.kind, name));
                guests.entry(guest).or_default().push(workload);
            }
            None => unnamed.push(workload),
        }
    }
    for workload in unnamed {
        let name = workload.name.as_deref().unwrap_or("?");
        text.push_str(&format!(
            "# {} {} ({}): no pattern stands for this name alone\n",
            workload.kind.as_str(),
            workload.number,
            escape(name)
        ));
    }
    text.push_str("schema: 1\n");
    if guests.is_empty() {
        text.push_str("customers: []\n");
        return text;
    }
    text.push_str("customers:\n");
    for workloads in guests.values() {
        text.push_str("  - id:\n    workloads:\n");
        for workload in workloads {
            let name = workload.name.as_deref().unwrap_or_default();
            text.push_str(&format!(
                "      - {{{}: {}, hosts: [{}]}}\n",
                workload.kind.as_str(),
                quoted(name),
                quoted(host)
            ));
        }
    }
    text
}

/// Whether the name, taken as a pattern, is accepted and means this workload alone.
fn fits(kind: Kind, name: &str) -> bool {
    let pattern = match kind {
        // Bytes that are not UTF-8 are shown by a backslash, which no pattern undoes.
        Kind::Interface if name.contains('\\') => None,
        Kind::Interface => OwnedInterface::parse(name, Style::Quoted)
            .ok()
            .map(|it| it.0),
        Kind::Cgroup => OwnedCgroup::parse(name, Style::Quoted).ok().map(|it| it.0),
    };
    escape(name) == name && pattern.is_some_and(|pattern| pattern.is_literal())
}

/// The guest that a name belongs to: Proxmox's `tap101i0` and `tap101i1` are both guest 101's.
fn guest(kind: Kind, name: &str) -> &str {
    match kind {
        Kind::Cgroup => name,
        Kind::Interface => numbered(name).unwrap_or(name),
    }
}

fn numbered(name: &str) -> Option<&str> {
    let rest = name
        .strip_prefix("tap")
        .or_else(|| name.strip_prefix("veth"))?;
    let (guest, card) = rest.split_once('i')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(guest) && digits(card)).then_some(guest)
}
