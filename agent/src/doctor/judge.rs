//! What follows from what was seen. Pure.

mod agent;
mod bypass;
mod hooks;
mod host;
mod nft;
mod policy;

use super::facts::{Coverage, Facts, Look};
use super::findings::{Finding, Kind};

/// Everything that is wrong, errors first.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let Facts {
        coverage: covering,
        agent: told,
        host: around,
        nft: rules,
        policy: files,
    } = facts;
    let mut findings = coverage(covering);
    findings.extend(agent::judge(told));
    findings.extend(host::judge(around));
    findings.extend(nft::judge(rules, covering));
    findings.extend(policy::judge(files, told));
    sorted(findings)
}

/// What is wrong with the coverage of workloads, errors first.
#[must_use]
pub fn coverage(coverage: &Coverage) -> Vec<Finding> {
    let mut findings = hooks::judge(coverage);
    findings.extend(bypass::judge(coverage));
    sorted(findings)
}

fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort();
    findings.dedup();
    findings
}

/// What was seen; where nothing could be, a finding says so.
fn seen<'l, T>(look: &'l Look<T>, what: &str, findings: &mut Vec<Finding>) -> Option<&'l T> {
    match look {
        Ok(seen) => Some(seen),
        Err(why) => {
            findings.push(Finding::new(Kind::NotExamined, what, why.clone()));
            None
        }
    }
}
