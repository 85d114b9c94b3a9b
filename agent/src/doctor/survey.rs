//! Looks at the host. Everything that cannot be seen is noted with its reason.

mod around;
mod attached;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use gate25_common::names;

use super::facts::{Agent, Coverage, Facts, Interface, Look, Role, Sample, Station};
use crate::chain::in_full;
use crate::kernel::bpf::hooks::{self, Catalogue};
use crate::kernel::bpf::leftover::{Leftover, Pinned};
use crate::kernel::functions::{self, SYSFS};
use crate::kernel::links::{self, Detail};
use crate::kernel::machines::{self, PROCFS};
use crate::kernel::netfilter::{self, BaseChain, Family};
use crate::kernel::nft::Nft;
use crate::kernel::nftables;
use crate::settings::Settings;
use crate::workloads::{Standing, standing};
use attached::Attached;

/// How long packets are counted for.
const SAMPLE: Duration = Duration::from_millis(500);

/// Looks at this network namespace and the machine around it.
#[derive(Debug, Clone)]
pub struct Survey {
    nft: Nft,
    settings: Settings,
    filesystem: PathBuf,
}

/// Whether packets and runs of programs are counted for a moment, which takes that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// They are, where the kernel counts runs.
    Moment,
    /// They are not.
    Off,
}

impl Survey {
    /// Looks with these settings at what is pinned on the BPF filesystem at `filesystem`.
    #[must_use]
    pub fn new(settings: Settings, filesystem: &Path) -> Self {
        Self {
            nft: Nft::default(),
            settings,
            filesystem: filesystem.to_owned(),
        }
    }

    /// Everything. `mistakes` is what is wrong with the policy's files, `invalid` the settings' file, and why no agent
    /// starts with it.
    #[must_use]
    pub fn facts(
        &self,
        agent: Agent,
        invalid: (PathBuf, Look<Option<String>>),
        mistakes: Look<Option<(String, usize)>>,
    ) -> Facts {
        let mut coverage = self.coverage(&BTreeSet::new(), Sampling::Moment);
        // Whoever asks is told; an agent that may not see them leaves them to him.
        if let Ok(machines) = &coverage.machines
            && machines.iter().any(|machine| machine.taps.is_none())
        {
            coverage.machines = Err("their taps are shown to root alone".to_owned());
        }
        Facts {
            coverage,
            host: around::host(&self.settings, &self.filesystem, &agent),
            nft: around::nft(&self.nft, &self.settings, &agent),
            policy: around::policy(&self.settings, &agent, invalid, mistakes),
            agent,
        }
    }

    /// What covers workloads: interfaces whose names say so, those that have an owner in the tables,
    /// and those that are `known` to be some. Blocks, for some 50 us an interface.
    #[must_use]
    pub fn coverage(&self, known: &BTreeSet<u32>, sampling: Sampling) -> Coverage {
        let leftover = Leftover::at(&self.filesystem);
        let pinned = leftover.pinned().map_err(|error| in_full(&error));
        let owners = leftover.owned_interfaces().map_err(|error| in_full(&error));
        let mut programs = Catalogue::default();
        let details = links::details().map_err(|error| in_full(&error));
        let chains = netfilter::base_chains().map_err(|error| in_full(&error));
        let none = Pinned::default();
        let attached = Attached {
            pinned: pinned.as_ref().unwrap_or(&none),
            owners: &owners,
            programs: &mut programs,
        };
        let interfaces = details.as_ref().map_err(Clone::clone);
        let interfaces = interfaces.map(|details| self.interfaces(details, known, attached));
        let own = pinned.map(|pinned| pinned.programs);
        Coverage {
            sample: match (sampling, &own, &details) {
                (Sampling::Moment, Ok(own), Ok(before)) => sample(own, before),
                // That either cannot be read is told as such.
                (Sampling::Moment | Sampling::Off, Ok(_) | Err(_), Ok(_) | Err(_)) => Ok(None),
            },
            interfaces,
            chained: self.chained(&chains),
            chains,
            roots: attached::roots(&self.settings.cgroups.roots, &mut programs),
            functions: functions::functions(Path::new(SYSFS)).map_err(|error| in_full(&error)),
            machines: machines::machines(Path::new(PROCFS)).map_err(|error| in_full(&error)),
            own,
        }
    }

    fn interfaces(
        &self,
        details: &[Detail],
        known: &BTreeSet<u32>,
        mut attached: Attached<'_>,
    ) -> Vec<Interface> {
        let by_index: BTreeMap<u32, &Detail> =
            details.iter().map(|it| (it.interface.index, it)).collect();
        let mut interfaces = Vec::new();
        for detail in details {
            let Detail {
                interface,
                kind,
                parent,
                xdp: _,
                carrier,
                received,
            } = detail;
            let role = self.role(&interface.name, interface.index, known, &attached);
            let covering = match role {
                Role::Workload => match attached.to(detail) {
                    Ok(Some(covering)) => Some(Ok(covering)),
                    // Gone meanwhile.
                    Ok(None) => continue,
                    Err(why) => Some(Err(why)),
                },
                Role::Ignored | Role::Other => None,
            };
            let other = |index: Option<u32>| index.and_then(|index| by_index.get(&index));
            interfaces.push(Interface {
                index: interface.index,
                name: interface.name.clone(),
                kind: interface.kind,
                kind_name: kind.clone(),
                role,
                master: other(interface.master).map(|master| Station {
                    name: master.interface.name.clone(),
                    kind: master.kind.clone(),
                }),
                parent: other(*parent).map(|parent| parent.interface.name.clone()),
                carrier: *carrier,
                received: *received,
                covering,
            });
        }
        interfaces
    }

    fn role(&self, name: &str, index: u32, known: &BTreeSet<u32>, attached: &Attached<'_>) -> Role {
        match standing(&self.settings.interfaces, name) {
            Standing::Workload(_) => Role::Workload,
            Standing::Ignored(_) => Role::Ignored,
            Standing::Unmatched if known.contains(&index) || attached.owns(index) => Role::Workload,
            Standing::Unmatched => Role::Other,
        }
    }

    /// nft is run only where there is a table to list.
    fn chained(&self, chains: &Look<Vec<BaseChain>>) -> Look<BTreeSet<u32>> {
        let is_ours = |chain: &BaseChain| {
            chain.family == Family::Netdev && chain.table == nftables::TABLE.name
        };
        match chains {
            Ok(chains) if chains.iter().any(is_ours) => {
                nftables::chained(&self.nft).map_err(|error| in_full(&error))
            }
            Ok(_) => Ok(BTreeSet::new()),
            Err(why) => Err(why.clone()),
        }
    }
}

/// What is counted from now on for a moment; `None` where the kernel does not count runs.
fn sample(own: &BTreeMap<u32, String>, before: &[Detail]) -> Look<Option<Sample>> {
    if !hooks::counts_runs().map_err(|error| in_full(&error))? {
        return Ok(None);
    }
    let before: BTreeMap<u32, u64> = before
        .iter()
        .map(|detail| (detail.interface.index, detail.received))
        .collect();
    let ran = runs(own)?;
    thread::sleep(SAMPLE);
    let after = links::details().map_err(|error| in_full(&error))?;
    let received = after.iter().filter_map(|detail| {
        let index = detail.interface.index;
        let more = detail.received.checked_sub(*before.get(&index)?)?;
        Some((index, more))
    });
    Ok(Some(Sample {
        received: received.collect(),
        runs: runs(own)?.saturating_sub(ran),
    }))
}

/// How often our programs at the ingress of interfaces have run.
fn runs(own: &BTreeMap<u32, String>) -> Look<u64> {
    let mut programs = Catalogue::default();
    let mut runs = 0;
    for (number, name) in own {
        if name == names::PROGRAM_TC_INGRESS {
            let program = programs.program(*number);
            let program = program.map_err(|error| in_full(&error))?;
            runs += program.map_or(0, |program| program.runs);
        }
    }
    Ok(runs)
}
