//! Whether what should be attached is, before everybody else's.

use std::collections::BTreeMap;

use gate25_common::names;

use super::seen;
use crate::doctor::facts::{Coverage, Covering, Interface, Owner, Role, Root, Sample};
use crate::doctor::findings::{Finding, Kind};
use crate::kernel::bpf::hooks::Program;
use crate::kernel::filter::{ALL_PROTOCOLS, Filter, PRIORITY};
use crate::kernel::links;
use crate::kernel::netfilter::BaseChain;
use crate::kernel::nftables;

/// Numbers and names of our programs.
type Own = BTreeMap<u32, String>;

pub(super) fn judge(coverage: &Coverage) -> Vec<Finding> {
    let Coverage {
        interfaces,
        own,
        chains,
        chained,
        roots,
        functions: _,
        machines: _,
        sample,
    } = coverage;
    let mut findings = Vec::new();
    let Some(own) = seen(own, "gate25's pins", &mut findings) else {
        return findings;
    };
    let chains = seen(chains, "chains of nftables", &mut findings);
    let chained = seen(chained, "gate25's table of nftables", &mut findings);
    if let Some(interfaces) = seen(interfaces, "interfaces", &mut findings) {
        for interface in interfaces {
            let by_chain = match (chains, chained) {
                (Some(chains), Some(chained)) if chained.contains(&interface.index) => {
                    ours_of(chains, interface)
                }
                _ => None,
            };
            let place = Place {
                interface,
                own,
                chains: chains.map_or(&[], Vec::as_slice),
                by_chain,
            };
            place.judge(&mut findings);
        }
        if let Some(Some(sample)) = seen(sample, "runs of gate25's programs", &mut findings) {
            findings.extend(not_run(interfaces, own, sample));
        }
    }
    if let Some(roots) = seen(roots, "roots of cgroups", &mut findings) {
        for root in roots {
            judge_root(root, own, &mut findings);
        }
    }
    findings
}

/// Our chain at the ingress of the interface.
fn ours_of<'c>(chains: &'c [BaseChain], interface: &Interface) -> Option<&'c BaseChain> {
    let name = nftables::interface_chain(interface.index);
    chains.iter().find(|chain| {
        chain.table == nftables::TABLE.name
            && chain.name == name
            && chain.is_at_ingress_of(&interface.name)
    })
}

/// A workload's interface among what is attached to it.
struct Place<'a> {
    interface: &'a Interface,
    own: &'a Own,
    chains: &'a [BaseChain],
    by_chain: Option<&'a BaseChain>,
}

/// Where our program is among others.
enum Position<'a> {
    First,
    Behind(String),
    Absent(Option<&'a Program>),
}

impl Place<'_> {
    fn judge(&self, findings: &mut Vec<Finding>) {
        let Interface {
            name,
            kind,
            role,
            covering,
            ..
        } = self.interface;
        let Some(covering) = covering.as_ref().filter(|_| *role == Role::Workload) else {
            return;
        };
        if *kind == links::Kind::Tun {
            let message = "it carries bare IP packets, which gate25 does not read";
            findings.push(Finding::new(Kind::NoEthernet, name, message));
            return;
        }
        let Some(covering) = seen(covering, name, findings) else {
            return;
        };
        self.xdp(covering, findings);
        self.chain(findings);
        let position = position(covering, self.own);
        match position {
            Position::First => self.covered(covering, findings),
            Position::Behind(first) => {
                let message = format!("{first} runs before gate25's and may let packets pass");
                findings.push(Finding::new(Kind::ProgramNotFirst, name, message));
                self.covered(covering, findings);
            }
            Position::Absent(_) if self.by_chain.is_some() => {}
            Position::Absent(stale) => {
                let message = match stale {
                    None => "no program of gate25's is on what arrives by it".to_owned(),
                    Some(program) => format!(
                        "{program} is there, which is not the pinned one: it works on other tables"
                    ),
                };
                findings.push(Finding::new(Kind::ProgramMissing, name, message));
            }
        }
        self.foreign(covering, findings);
    }

    /// What goes with a program that is there.
    fn covered(&self, covering: &Covering, findings: &mut Vec<Finding>) {
        let name = &self.interface.name;
        match covering.owner {
            Owner::Known | Owner::NoTables => {}
            Owner::Missing => {
                let message = format!("table {} does not name it", names::MAP_INTERFACES);
                findings.push(Finding::new(Kind::OwnerMissing, name, message));
            }
        }
        let first = covering.leaving.first();
        let rewritten = first.is_some_and(|it| is(self.own, it, names::PROGRAM_TC_EGRESS));
        if covering.rewrites_replies && !rewritten {
            let message = match first {
                Some(program) => format!("{program} runs before gate25's on what leaves by it"),
                None => "no program of gate25's is on what leaves by it".to_owned(),
            };
            findings.push(Finding::new(Kind::RepliesNotFirst, name, message));
        }
    }

    fn xdp(&self, covering: &Covering, findings: &mut Vec<Finding>) {
        if let Some(program) = covering.xdp.first() {
            let message = format!("XDP {program} sees packets before gate25 does");
            let name = &self.interface.name;
            findings.push(Finding::new(Kind::XdpProgram, name, message));
        }
    }

    /// Others' chains at ingress that run before ours.
    fn chain(&self, findings: &mut Vec<Finding>) {
        let Some(ours) = self.by_chain else {
            return;
        };
        let name = &self.interface.name;
        let before = self.chains.iter().filter(|chain| {
            chain.table != nftables::TABLE.name
                && chain.is_at_ingress_of(name)
                && chain.priority <= ours.priority
        });
        for BaseChain {
            table,
            name: chain,
            priority,
            ..
        } in before
        {
            let message = format!("chain {chain} of table netdev {table} has priority {priority}");
            findings.push(Finding::new(Kind::ChainNotFirst, name, message));
        }
    }

    /// Others' programs behind ours.
    fn foreign(&self, covering: &Covering, findings: &mut Vec<Finding>) {
        let mut arriving = covering.arriving.iter();
        if arriving
            .by_ref()
            .any(|it| self.own.contains_key(&it.number))
        {
            for program in arriving.filter(|it| !self.own.contains_key(&it.number)) {
                let message = format!("{program} runs behind gate25's");
                let name = &self.interface.name;
                findings.push(Finding::new(Kind::InterfaceProgramForeign, name, message));
            }
        }
    }
}

fn position<'a>(covering: &'a Covering, own: &Own) -> Position<'a> {
    let Covering {
        arriving, filters, ..
    } = covering;
    let ours = |program: &Program| is(own, program, names::PROGRAM_TC_INGRESS);
    let by_filter = |filter: &Filter| {
        let number = filter.program.and_then(|number| own.get(&number));
        number.is_some_and(|name| name == names::PROGRAM_TC_INGRESS)
    };
    match (arriving.first(), arriving.iter().any(ours)) {
        (Some(first), true) if ours(first) => return Position::First,
        (Some(first), true) => return Position::Behind(first.to_string()),
        (_, false) | (None, _) => {}
    }
    match (
        filters.iter().any(by_filter),
        arriving.first(),
        filters.first(),
    ) {
        // tcx programs run before filters.
        (true, Some(first), _) => Position::Behind(first.to_string()),
        (true, None, Some(first)) if by_filter(first) && sees_everything(first) => Position::First,
        (true, None, Some(first)) => Position::Behind(format!(
            "a {} filter of priority {}",
            first.kind, first.priority
        )),
        (true, None, None) | (false, _, _) => Position::Absent(
            arriving
                .iter()
                .find(|program| program.name == names::PROGRAM_TC_INGRESS),
        ),
    }
}

fn sees_everything(filter: &Filter) -> bool {
    filter.protocol == ALL_PROTOCOLS && filter.priority == PRIORITY
}

/// Whether it is the pinned program of that name.
fn is(own: &Own, program: &Program, name: &str) -> bool {
    own.get(&program.number).is_some_and(|it| it == name)
}

/// Packets that arrive and that no program of ours meets. Programs are counted for all interfaces
/// together, so that nothing follows where one of them has run.
fn not_run(interfaces: &[Interface], own: &Own, sample: &Sample) -> Option<Finding> {
    if sample.runs > 0 {
        return None;
    }
    let first = |interface: &&Interface| {
        let covering = interface.covering.as_ref().and_then(|it| it.as_ref().ok());
        covering.is_some_and(|it| matches!(position(it, own), Position::First))
    };
    let busy: Vec<&str> = interfaces
        .iter()
        .filter(first)
        .filter(|it| sample.received.get(&it.index).is_some_and(|more| *more > 0))
        .map(|interface| interface.name.as_str())
        .collect();
    (!busy.is_empty()).then(|| {
        let message = "packets arrived and gate25's program did not run";
        Finding::new(Kind::ProgramNotRun, busy.join(", "), message)
    })
}

fn judge_root(root: &Root, own: &Own, findings: &mut Vec<Finding>) {
    let Root { path, hooks } = root;
    let Some(hooks) = seen(hooks, path, findings) else {
        return;
    };
    let lacking: Vec<&str> = hooks
        .iter()
        .filter(|hook| !hook.programs.iter().any(|it| is(own, it, hook.program)))
        .map(|hook| hook.program)
        .collect();
    if !lacking.is_empty() {
        let message = format!("it is without {}", lacking.join(", "));
        findings.push(Finding::new(Kind::CgroupProgramMissing, path, message));
    }
    for hook in hooks {
        let others = hook.programs.iter();
        for program in others.filter(|program| !own.contains_key(&program.number)) {
            let message = format!("{program} is attached to its hook {}", hook.hook.word());
            findings.push(Finding::new(Kind::CgroupProgramForeign, path, message));
        }
    }
}
