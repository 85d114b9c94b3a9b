//! The policy's files, the agent's folder, its socket.

use super::seen;
use crate::doctor::facts::{Agent, Policy};
use crate::doctor::findings::{Finding, Kind};

pub(super) fn judge(policy: &Policy, agent: &Agent) -> Vec<Finding> {
    let Policy {
        settings,
        folder,
        mistakes,
        writable,
        state,
        socket,
    } = policy;
    let mut findings = Vec::new();
    let (file, why) = settings;
    let file = file.display().to_string();
    if let Some(Some(why)) = seen(why, &file, &mut findings) {
        findings.push(Finding::new(Kind::SettingsInvalid, file, why));
    }
    if let Some(Some((first, count))) = seen(mistakes, "the policy's files", &mut findings) {
        let message = match count {
            1 => first.clone(),
            more => format!("{first}; {} more", more - 1),
        };
        let folder = folder.display().to_string();
        findings.push(Finding::new(Kind::PolicyInvalid, folder, message));
    }
    let place = folder.display().to_string();
    for path in seen(writable, &place, &mut findings).into_iter().flatten() {
        let message = "everybody on this host may write it";
        let path = path.display().to_string();
        findings.push(Finding::new(Kind::PolicyWritable, path, message));
    }
    let (path, why) = state;
    let path = path.display().to_string();
    if let Some(Some(why)) = seen(why, &path, &mut findings) {
        findings.push(Finding::new(Kind::StateFolder, path, why));
    }
    let (path, mode) = socket;
    let place = path.display().to_string();
    match agent {
        // What nobody serves lets nobody in.
        Agent::Stopped => {}
        Agent::Running(_) | Agent::Silent(_) | Agent::Hidden(_) => {
            if let Some(Some(mode)) = seen(mode, &place, &mut findings)
                && mode & 0o007 != 0
            {
                let message = format!("its mode is {mode:04o}");
                findings.push(Finding::new(Kind::SocketOpen, place, message));
            }
        }
    }
    findings
}
