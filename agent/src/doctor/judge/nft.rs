//! nftables: the guard, and what others have there.

use std::collections::BTreeMap;

use super::seen;
use crate::doctor::facts::{Coverage, NftFacts, Role};
use crate::doctor::findings::{Finding, Kind};
use crate::guard::TABLES;
use crate::kernel::guard::Placement;
use crate::kernel::netfilter::{BaseChain, Family};
use crate::kernel::nftables;

pub(super) fn judge(nft: &NftFacts, coverage: &Coverage) -> Vec<Finding> {
    let NftFacts {
        version,
        needed,
        unfit,
        bridge_reject: _,
        guard,
        mark_users,
    } = nft;
    let mut findings = foreign(coverage);
    if !needed {
        return findings;
    }
    match seen(version, "nft", &mut findings) {
        Some(Some(_)) => {}
        Some(None) => {
            let message = "there is no program nft in the search path";
            findings.push(Finding::new(Kind::NftMissing, "nft", message));
            return findings;
        }
        None => return findings,
    }
    if let Some(why) = unfit {
        findings.push(Finding::new(Kind::NftUnfit, "nft", why));
    }
    let Some(guard) = guard else {
        return findings;
    };
    match seen(guard, "the guard", &mut findings) {
        None | Some(Placement::InPlace) => {}
        Some(Placement::Missing(tables)) => {
            for table in tables {
                let message = "there is no such table";
                findings.push(Finding::new(Kind::GuardMissing, table, message));
            }
        }
        Some(Placement::Altered(chains)) => {
            for chain in chains {
                let message = "its rules are not those of the settings";
                findings.push(Finding::new(Kind::GuardAltered, chain, message));
            }
        }
    }
    let users = seen(mark_users, "uses of the guard's mark", &mut findings);
    for user in users.into_iter().flatten() {
        let message = "it tests or sets the guard's bit of the mark";
        findings.push(Finding::new(Kind::MarkShared, user, message));
    }
    findings
}

/// Tables of others that see guests' frames in a bridge or at their interfaces.
fn foreign(coverage: &Coverage) -> Vec<Finding> {
    // That they cannot be looked at is said with the hooks.
    let (Ok(chains), Ok(interfaces)) = (&coverage.chains, &coverage.interfaces) else {
        return Vec::new();
    };
    let guests = |chain: &BaseChain| {
        let workloads = interfaces.iter().filter(|it| it.role == Role::Workload);
        workloads
            .map(|it| it.name.as_str())
            .any(|name| chain.is_at_ingress_of(name))
    };
    let mut tables: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for chain in chains {
        let mut ours = TABLES.into_iter().chain([nftables::TABLE]);
        let is_ours = ours.any(|table| table.name == chain.table);
        let concerns = match chain.family {
            Family::Bridge => true,
            Family::Netdev => guests(chain),
            Family::Inet | Family::Ip | Family::Ip6 | Family::Arp | Family::Other(_) => false,
        };
        if concerns && !is_ours {
            let table = format!("{} {}", chain.family, chain.table);
            tables.entry(table).or_default().push(&chain.name);
        }
    }
    let finding = |(table, chains): (String, Vec<&str>)| {
        let message = format!("guests' frames pass its chains {}", chains.join(", "));
        Finding::new(Kind::ForeignChains, table, message)
    };
    tables.into_iter().map(finding).collect()
}
