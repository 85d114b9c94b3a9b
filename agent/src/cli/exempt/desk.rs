//! The policy directory at hand, and an edit of it carried out.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use gate25_common::abi::CustomerId;
use jiff::Timestamp;
use serde::Serialize;
use similar::TextDiff;

use super::file::{Turn, WriteError, replace};
use super::{How, reader};
use crate::cli::console::{Console, FAILED, Layout, Reader, Surroundings, USAGE};
use crate::cli::reload;
use crate::control::client::Client;
use crate::control::messages::{OnTrial, Reload, ReloadRequest, Status};
use crate::diagnostic::{Diagnostic, escape, quoted};
use crate::policy::changes::{Change, Kind};
use crate::policy::directory::{self, is_policy_path};
use crate::policy::edit::{Edit, EditError, Edited, edit, has_exemptions};
use crate::policy::loader::{Circumstances, Loader, Purpose, SourceFile};
use crate::policy::{ANY, Destinations, Exemption, Policy};
use crate::trust::Trust;
use crate::yaml::read::close;

/// How long an agent may take to say whether something is on trial.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Desk<'a> {
    how: How,
    surroundings: &'a Surroundings<'a>,
    dir: PathBuf,
    socket: PathBuf,
    circumstances: Circumstances,
    files: Vec<SourceFile>,
    policy: Policy,
}

/// What became of an edit, for programs.
#[derive(Serialize)]
struct Report<'a> {
    outcome: Outcome,
    id: &'a str,
    file: Option<String>,
    starts: Option<Timestamp>,
    expires: Option<Timestamp>,
    /// What differs in the file, as a unified diff.
    diff: Option<String>,
    /// What the agent made of it, where it was waited for.
    agent: Option<&'a Reload>,
    /// Why the agent did not say.
    agent_error: Option<String>,
    /// What the edit is undone with unless somebody confirms; none, most of the time.
    trial: Option<OnTrial>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Written,
    WouldWrite,
    Unchanged,
}

impl<'a> Desk<'a> {
    /// Reads the policy as it is. Where it is not valid it must be good for what `suffices` says: to run it is enough
    /// for what closes, which does not wait until others' mistakes are mended.
    pub(super) fn open(
        how: &How,
        suffices: Purpose,
        surroundings: &'a Surroundings<'a>,
        console: &mut Console<'_>,
    ) -> io::Result<Result<Self, ExitCode>> {
        let settings = match &how.dir {
            // Whose agent answers is found out all the same.
            Some(_) => console.settings_or_defaults(surroundings)?.settings,
            None => match console.settings(reader(how), surroundings)? {
                Ok(settings) => settings,
                Err(code) => return Ok(Err(code)),
            },
        };
        let dir = how.dir.clone().unwrap_or(settings.policy_dir);
        let mut circumstances = Circumstances {
            purpose: Purpose::Check,
            now: surroundings.now,
            customer_key: |id| CustomerId::from_name(id).get(),
        };
        let refuse = |diagnostics: Vec<Diagnostic>, console: &mut Console<'_>| {
            let shown: Vec<_> = diagnostics.into_iter().map(|it| it.below(&dir)).collect();
            let code = console.refuse(reader(how), surroundings.colour, &shown)?;
            console.say("the policy is not valid as it is: mend it first")?;
            Ok(Err(code))
        };
        let mut loader = Loader::default();
        let files = match directory::read(&dir, &Trust::Anybody, &loader) {
            Ok(contents) => contents.files,
            Err(error) => {
                let code =
                    console.refuse(reader(how), surroundings.colour, &error.diagnostics(&dir))?;
                return Ok(Err(code));
            }
        };
        let mut loaded = loader.load(&files, &circumstances);
        if loaded.is_err() && suffices != circumstances.purpose {
            circumstances.purpose = suffices;
            loaded = loader.load(&files, &circumstances);
        }
        let policy = match loaded {
            Ok(loaded) => loaded.policy,
            Err(refused) => return refuse(refused.diagnostics, console),
        };
        Ok(Ok(Self {
            how: how.clone(),
            surroundings,
            dir,
            socket: settings.control.socket,
            circumstances,
            files,
            policy,
        }))
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// An exemption of the files, or a complaint.
    pub(super) fn exemption(
        &self,
        id: &str,
        console: &mut Console<'_>,
    ) -> io::Result<Result<&Exemption, ExitCode>> {
        match self.policy.exemptions.get(id) {
            Some(exemption) => Ok(Ok(exemption)),
            None => {
                let why = self.unknown("exemption", id, self.policy.exemptions.keys());
                self.refuse(&why, console).map(Err)
            }
        }
    }

    /// Why a name is of nothing.
    pub(super) fn unknown<'n>(
        &self,
        what: &str,
        name: &str,
        known: impl Iterator<Item = &'n String>,
    ) -> String {
        let near: Vec<String> = close(name, known.map(String::as_str))
            .into_iter()
            .take(3)
            .map(quoted)
            .collect();
        let meant = match near.is_empty() {
            true => String::new(),
            false => format!("; did you mean {}?", near.join(", ")),
        };
        format!("there is no {what} {}{meant}", quoted(name))
    }

    /// Why an exemption is not made twice.
    pub(super) fn is_there(&self, id: &str, exemption: &Exemption) -> String {
        let origin = &exemption.origin;
        format!(
            "the exemption {} is there already: {}:{}; `gate25 exempt extend` prolongs it",
            quoted(id),
            self.dir.join(&origin.file).display(),
            origin.line
        )
    }

    /// Files that have a section of exemptions.
    pub(super) fn files_with_exemptions(&self) -> Vec<String> {
        let files = self.files.iter().filter(|file| has_exemptions(file));
        files.map(|file| file.path.display().to_string()).collect()
    }

    pub(super) fn only_file_with_exemptions(&self) -> Option<Arc<Path>> {
        let mut files = self.files.iter().filter(|file| has_exemptions(file));
        match (files.next(), files.next()) {
            (Some(only), None) => Some(Arc::clone(&only.path)),
            (Some(_) | None, _) => None,
        }
    }

    /// What is missing where the file is not clear.
    pub(super) fn why_which_file(&self) -> String {
        let files = self.files_with_exemptions();
        match files.is_empty() {
            true => "--file (no file has a section `exemptions`)".to_owned(),
            false => format!(
                "--file (several files have exemptions: {})",
                files.join(", ")
            ),
        }
    }

    /// A file of the policy by its name, there or not.
    pub(super) fn chosen_file(&self, name: &str) -> Result<Arc<Path>, String> {
        let path = Path::new(name);
        let path = path.strip_prefix(&self.dir).unwrap_or(path);
        if !is_policy_path(path) {
            let names = self.files_with_exemptions().join(", ");
            return Err(format!(
                "{} is no name of a policy file below {}: name one that ends in .yaml, such as {}",
                quoted(name),
                self.dir.display(),
                if names.is_empty() {
                    "exemptions.yaml"
                } else {
                    &names
                }
            ));
        }
        Ok(Arc::from(path))
    }

    pub(super) fn named_file(
        &self,
        name: &Path,
        console: &mut Console<'_>,
    ) -> io::Result<Result<Arc<Path>, ExitCode>> {
        self.usage(self.chosen_file(&name.to_string_lossy()), console)
    }

    /// What makes no sense on the command line.
    pub(super) fn usage<T>(
        &self,
        result: Result<T, String>,
        console: &mut Console<'_>,
    ) -> io::Result<Result<T, ExitCode>> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(why) => {
                console.say(&why)?;
                Ok(Err(ExitCode::from(USAGE)))
            }
        }
    }

    /// Says why nothing was written.
    pub(super) fn refuse(&self, why: &str, console: &mut Console<'_>) -> io::Result<ExitCode> {
        console.say(why)?;
        Ok(ExitCode::from(FAILED))
    }

    /// Says that nothing had to be done.
    pub(super) fn unchanged(
        &self,
        id: &str,
        why: &str,
        console: &mut Console<'_>,
    ) -> io::Result<ExitCode> {
        match reader(&self.how) {
            Reader::People => writeln!(console.out, "{}", escape(why))?,
            Reader::Programs => console.json(&Report {
                outcome: Outcome::Unchanged,
                id,
                file: None,
                starts: None,
                expires: None,
                diff: None,
                agent: None,
                agent_error: None,
                trial: None,
            })?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Carries an edit out, or shows it.
    pub(super) fn edit(
        &self,
        file: &Arc<Path>,
        wanted: &Edit,
        console: &mut Console<'_>,
    ) -> io::Result<ExitCode> {
        let edited = match edit(&self.files, file, wanted, &self.circumstances) {
            Ok(edited) => edited,
            Err(error) => return self.refuse_edit(error, console),
        };
        let diff = unified(&edited);
        if self.how.dry_run {
            return self.show(wanted.id(), &edited, diff, console);
        }
        let turn = match Turn::wait(&self.dir) {
            Ok(turn) => turn,
            Err(error) => return console.complain(&error, FAILED),
        };
        if !turn.is_alone() {
            let dir = self.dir.display();
            console.say(&format!(
                "somebody holds the lock of {dir}: gone on without it"
            ))?;
        }
        if let Some(since) = self.held(console)? {
            let why = format!(
                "what the files say was undone at {since}, and an edit would put it in force again: mend the files \
                 first, or give --take-undone"
            );
            return self.refuse(&why, console);
        }
        if let Err(error) = self.write(&edited) {
            return console.complain(&error, FAILED);
        }
        drop(turn);
        if reader(&self.how) == Reader::People {
            let what = summary(wanted.id(), &edited);
            writeln!(console.out, "{}", escape(&what))?;
        }
        self.tell_agent(wanted.id(), &edited, diff, console)
    }

    /// The set must still be the one that was judged, up to the moment of the rename.
    fn write(&self, edited: &Edited) -> Result<(), WriteError> {
        let Edited {
            file,
            before,
            after,
            change: _,
            policy: _,
        } = edited;
        let path = self.dir.join(file);
        match directory::read(&self.dir, &Trust::Anybody, &Loader::default()) {
            Ok(contents) if contents.files == self.files => {}
            Ok(_) => return Err(WriteError::Changed(self.dir.clone())),
            Err(error) => return Err(WriteError::Unread(self.dir.clone(), error)),
        }
        replace(&path, before.as_deref(), after)
    }

    fn refuse_edit(&self, error: EditError, console: &mut Console<'_>) -> io::Result<ExitCode> {
        match &error {
            EditError::Invalid(diagnostics) | EditError::Refused(diagnostics) => {
                let shown = diagnostics.iter().cloned().map(|it| it.below(&self.dir));
                let shown: Vec<_> = shown.collect();
                let code = console.refuse(reader(&self.how), self.surroundings.colour, &shown)?;
                console.say(&format!("{error}: nothing was written"))?;
                Ok(code)
            }
            EditError::Unusual { .. } | EditError::Absent { .. } | EditError::Astray { .. } => {
                console.complain(&error, FAILED)
            }
        }
    }

    fn show(
        &self,
        id: &str,
        edited: &Edited,
        diff: String,
        console: &mut Console<'_>,
    ) -> io::Result<ExitCode> {
        match reader(&self.how) {
            Reader::Programs => {
                let report = report(Outcome::WouldWrite, id, edited, diff);
                console.json(&report)?;
            }
            // A terminal acts upon what a file for `patch` must hold.
            Reader::People => match self.surroundings.layout {
                Layout::Plain => write!(console.out, "{diff}")?,
                Layout::Table => diff
                    .lines()
                    .try_for_each(|line| writeln!(console.out, "{}", escape(line)))?,
            },
        }
        Ok(ExitCode::SUCCESS)
    }

    fn tell_agent(
        &self,
        id: &str,
        edited: &Edited,
        diff: String,
        console: &mut Console<'_>,
    ) -> io::Result<ExitCode> {
        let mut report = report(Outcome::Written, id, edited, diff);
        let asked = self.how.wait.then(|| {
            let request = ReloadRequest {
                wait: true,
                ..ReloadRequest::default()
            };
            Client::new(&self.socket).reload(&request)
        });
        let (answer, code) = match asked {
            None => (None, ExitCode::SUCCESS),
            Some(Ok(outcome)) => {
                let code = reload::code(&outcome);
                (Some(outcome), code)
            }
            Some(Err(error)) => {
                report.agent_error = Some(crate::chain::in_full(&error));
                (None, console.no_answer(&error)?)
            }
        };
        let agent = self.agent();
        let elsewhere = agent.as_ref().and_then(|it| self.elsewhere(it));
        if let (None, None, Some(status)) = (&answer, &elsewhere, &agent) {
            let joined = |trial: &OnTrial| matches!(trial, OnTrial::Running { .. });
            report.trial = status.trial.filter(joined);
        }
        let code = match &elsewhere {
            Some(why) if self.how.wait => {
                report.agent_error = Some(why.clone());
                ExitCode::from(FAILED)
            }
            Some(_) | None => code,
        };
        match (reader(&self.how), &answer) {
            (Reader::Programs, _) => {
                report.agent = answer.as_ref();
                console.json(&report)?;
            }
            // What it says is about other files.
            (Reader::People, _) if elsewhere.is_some() => {}
            (Reader::People, Some(outcome)) => reload::print(outcome, console)?,
            (Reader::People, None) => {
                if let Some(OnTrial::Running { ends }) = report.trial {
                    writeln!(console.out, "{}", reload::joins(ends))?;
                }
            }
        }
        if let Some(why) = &elsewhere {
            console.say(why)?;
        }
        Ok(code)
    }

    /// Since when the files are held as they are now, if an edit is not to take them over with it.
    fn held(&self, console: &mut Console<'_>) -> io::Result<Option<Timestamp>> {
        if self.how.take_undone {
            return Ok(None);
        }
        let request = ReloadRequest {
            dry_run: true,
            ..ReloadRequest::default()
        };
        match Client::new(&self.socket).reload(&request) {
            Ok(Reload::Held { since }) => {
                let agent = self.agent();
                let is_ours = agent.is_none_or(|it| self.elsewhere(&it).is_none());
                Ok(is_ours.then_some(since))
            }
            Ok(_) => Ok(None),
            // Files that are edited elsewhere than on a host.
            Err(error) if error.is_nobody() && self.how.dir.is_some() => Ok(None),
            Err(error) => {
                let error = crate::chain::in_full(&error);
                console.say(&format!(
                    "not known whether what the files say was undone: {error}"
                ))?;
                Ok(None)
            }
        }
    }

    /// How the agent is, if it tells: whoever may write files need not be one whom it answers.
    fn agent(&self) -> Option<Status> {
        let client = Client::new(&self.socket).patient(PATIENCE);
        client.status().ok()
    }

    /// Why this edit changes nothing for the agent that answers, if it reads other files.
    fn elsewhere(&self, agent: &Status) -> Option<String> {
        let directory = Path::new(&agent.policy.directory);
        let [theirs, ours] = [directory, &self.dir].map(|it| it.canonicalize().ok());
        (theirs.is_some() && theirs != ours).then(|| {
            format!(
                "the agent reads {}: what is written in {} changes nothing until it is restarted with settings that \
                 name it",
                directory.display(),
                self.dir.display()
            )
        })
    }
}

fn report<'a>(outcome: Outcome, id: &'a str, edited: &Edited, diff: String) -> Report<'a> {
    let exemption = edited.policy.exemptions.get(id);
    Report {
        outcome,
        id,
        file: Some(escape(&edited.file.to_string_lossy())),
        starts: exemption.and_then(|it| it.starts),
        expires: exemption.map(|it| it.expires),
        diff: Some(diff),
        agent: None,
        agent_error: None,
        trial: None,
    }
}

fn unified(edited: &Edited) -> String {
    let before = String::from_utf8_lossy(edited.before.as_deref().unwrap_or_default());
    let after = String::from_utf8_lossy(&edited.after);
    let file = edited.file.display();
    let (old, new) = (format!("a/{file}"), format!("b/{file}"));
    let old = match edited.before {
        Some(_) => old.as_str(),
        None => "/dev/null",
    };
    let diff = TextDiff::from_lines(&*before, &*after);
    diff.unified_diff().header(old, &new).to_string()
}

/// What was done, in a line.
fn summary(id: &str, edited: &Edited) -> String {
    let Edited {
        file,
        change: Change { change, .. },
        policy,
        ..
    } = edited;
    let file = file.display();
    let Some(exemption) = policy.exemptions.get(id) else {
        return format!("{id} is taken out of {file}");
    };
    let Exemption {
        customer,
        starts,
        expires,
        to,
        ..
    } = exemption;
    let to = match to {
        Destinations::Any => ANY.to_owned(),
        Destinations::Listed {
            prefixes,
            allowlists,
        } => {
            let prefixes = prefixes.iter().map(ToString::to_string);
            let all: Vec<String> = prefixes.chain(allowlists.iter().cloned()).collect();
            all.join(" ")
        }
    };
    let from = starts.map_or_else(String::new, |starts| format!("from {starts} "));
    match change {
        Kind::Added => format!("{id} in {file}: {customer} may send to {to} {from}until {expires}"),
        Kind::Changed | Kind::Removed => format!("{id} in {file}: ends at {expires}"),
    }
}
