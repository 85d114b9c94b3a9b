//! What the running agent says.

use crate::control::messages::{Bypass, Mode, Status};
use crate::doctor::facts::Agent;
use crate::doctor::findings::{Finding, Kind};
use crate::status::Source;

pub(super) fn judge(agent: &Agent) -> Vec<Finding> {
    match agent {
        Agent::Running(status) => told(status),
        Agent::Stopped => {
            let message = "no agent serves the control socket";
            vec![Finding::new(Kind::AgentStopped, "agent", message)]
        }
        Agent::Silent(why) => vec![Finding::new(Kind::AgentSilent, "agent", why)],
        Agent::Hidden(why) => vec![Finding::new(Kind::NotExamined, "agent", why)],
    }
}

fn told(status: &Status) -> Vec<Finding> {
    let Status {
        mode,
        bypass,
        policy,
        reload,
        problems,
        warnings,
        ..
    } = status;
    let mut findings = Vec::new();
    findings.extend(
        problems
            .iter()
            .map(|why| Finding::new(Kind::AgentProblem, "agent", why)),
    );
    findings.extend(
        warnings
            .iter()
            .map(|why| Finding::new(Kind::AgentWarning, "agent", why)),
    );
    if !reload.successful && reload.attempts > 0 {
        let message = match reload.last_success {
            Some(time) => format!("the last reload was refused; the last success was {time}"),
            None => "the last reload was refused, and none has succeeded yet".to_owned(),
        };
        let message = match &reload.refusal {
            Some(why) => format!("{message}: {why}"),
            None => message,
        };
        findings.push(Finding::new(Kind::ReloadRefused, "policy", message));
    }
    let known = [Source::Files, Source::Undone].map(Source::as_str);
    // That something was undone is among the warnings.
    if !known.contains(&policy.source.as_str()) {
        let message = format!("the running policy comes from `{}`", policy.source);
        findings.push(Finding::new(Kind::PolicySource, "policy", message));
    }
    if let Some(Bypass { ends, ticket, .. }) = bypass {
        let message = format!("until {ends} nothing is refused: {ticket}");
        findings.push(Finding::new(Kind::Bypassed, "agent", message));
    }
    match mode {
        Mode::Policy => {}
        Mode::Observe => {
            let message = "the settings say `enforcement: observe`: nothing is refused";
            findings.push(Finding::new(Kind::Observing, "settings", message));
        }
    }
    findings
}
