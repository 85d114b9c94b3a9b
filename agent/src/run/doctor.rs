//! Has what covers workloads looked at, for status and metrics.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::timing::until;
use crate::chain::in_full;
use crate::doctor::{Finding, Sampling, Severity, Survey, judge_coverage};
use crate::settings::Settings;
use crate::status::Examined;

/// How long things are given to get where they belong.
const SETTLE: Duration = Duration::from_secs(1);
/// A look is followed by a rest this many times as long, so that guests that make and remove
/// interfaces cannot keep the agent busy.
const REST: u32 = 50;

/// Looks, when somebody says that something has changed.
pub(super) struct Doctor {
    survey: Survey,
    due: Option<Instant>,
    rested: Option<Instant>,
    task: Option<JoinHandle<(Vec<Finding>, Duration)>>,
    /// What is told.
    known: Vec<Finding>,
    /// What the last look has found for the first time: interfaces come and go under a look, so the
    /// next one has to find it again before it is told.
    suspected: Vec<Finding>,
}

/// What is next.
pub(super) enum Next {
    /// It is time to look.
    Due,
    /// This was found.
    Done(Examined),
}

impl Doctor {
    /// Looks with these settings at what is pinned on the BPF filesystem at `filesystem`.
    pub(super) fn new(settings: &Settings, filesystem: &Path) -> Self {
        Self {
            survey: Survey::new(settings.clone(), filesystem),
            due: None,
            rested: None,
            task: None,
            known: Vec::new(),
            suspected: Vec::new(),
        }
    }

    /// Something has changed.
    pub(super) fn soon(&mut self) {
        if self.due.is_none() {
            let settled = Instant::now() + SETTLE;
            self.due = Some(self.rested.map_or(settled, |rested| rested.max(settled)));
        }
    }

    /// Begins to look at the workloads, those interfaces among them that are `known` to be some.
    pub(super) fn look(&mut self, known: BTreeSet<u32>) {
        let survey = self.survey.clone();
        self.task = Some(tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let findings = judge_coverage(&survey.coverage(&known, Sampling::Off));
            (findings, started.elapsed())
        }));
    }

    /// Waits for what is next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Next {
        if let Some(task) = &mut self.task {
            let looked = task.await;
            self.task = None;
            match looked {
                Ok((findings, took)) => {
                    self.rested = Some(Instant::now() + took * REST);
                    return Next::Done(self.found(findings));
                }
                Err(error) => {
                    warn!(error = in_full(&error), "coverage not looked at");
                    self.soon();
                }
            }
        }
        until(self.due).await;
        self.due = None;
        Next::Due
    }

    fn found(&mut self, looked: Vec<Finding>) -> Examined {
        let is_in = |finding: &Finding, list: &[Finding]| {
            list.iter().any(|it| it.is_about_the_same(finding))
        };
        let (findings, suspected): (Vec<_>, Vec<_>) = looked
            .into_iter()
            .partition(|it| is_in(it, &self.known) || is_in(it, &self.suspected));
        if !suspected.is_empty() {
            self.soon();
        }
        self.suspected = suspected;
        for finding in findings.iter().filter(|it| !is_in(it, &self.known)) {
            let Finding {
                severity,
                kind,
                subject,
                message,
                advice: _,
            } = finding;
            let kind = kind.as_str();
            match severity {
                Severity::Error => error!(kind, subject, message, "found"),
                Severity::Warning => warn!(kind, subject, message, "found"),
            }
        }
        for finding in self.known.iter().filter(|it| !is_in(it, &findings)) {
            let (kind, subject) = (finding.kind.as_str(), &finding.subject);
            info!(kind, subject, "found no more");
        }
        self.known.clone_from(&findings);
        Examined {
            looked: Some(Timestamp::now()),
            findings,
        }
    }
}
