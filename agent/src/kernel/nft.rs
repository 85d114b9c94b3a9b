//! Runs `nft`: nothing else does. Rulesets go in and come out as its JSON (libnftables-json(5)).

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tracing::warn;

use crate::chain::in_full;
use crate::child::{Meanwhile, start, talk};
use crate::netfilter::{Commands, Table};
use crate::notify::Notifier;

/// Where nft is looked for, unless somebody says otherwise: in the search path.
pub const DEFAULT_PROGRAM: &str = "nft";

/// Nothing that is looked at takes longer, and no policy that fits.
const LIMIT: Duration = Duration::from_secs(120);
/// Most of what nft has said that is told, in bytes.
const MAX_SAID: usize = 1024;
/// Longest commands that are told again, in bytes. nft 1.0.6 fails beyond some 50,000 elements although
/// the kernel has taken them: what it hears of them is more than its buffer holds.
const MAX_TOLD: usize = 256 * 1024;
/// What nft says then.
const OVERHEARD: &str = "No buffer space available";
/// Of what nft says for people, errors have this in them.
const ERROR: &str = "Error:";

/// Why nft did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// It could not be run.
    #[error("run {} to {action}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What for.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It was run, and what came of it is not known.
    #[error("run {} to {action}: what came of it is not known", program.display())]
    Broken {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It was ended; what came of it is not known.
    #[error("{} did not {action} within {} s", program.display(), limit.as_secs())]
    Slow {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        action: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It refused; nothing was changed.
    #[error("{} does not {action} ({status}): {said}", program.display())]
    Refused {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        action: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The first error that it wrote, control characters escaped.
        said: String,
    },
    /// What nft wrote is no ruleset.
    #[error("{action}: what comes from nft is not a ruleset")]
    Json {
        /// What nft was asked for.
        action: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

impl NftError {
    /// Whether there is no such program.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Run { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Broken { .. } | Self::Slow { .. } | Self::Refused { .. } | Self::Json { .. } => {
                false
            }
        }
    }

    /// What a refusal means where nft was to tell what it does.
    fn of_telling(self, nft: &Nft) -> Self {
        match &self {
            Self::Refused { action, said, .. } if said.contains(OVERHEARD) => Self::Broken {
                program: nft.program.clone(),
                action,
                source: io::Error::other(said.clone()),
            },
            Self::Run { .. }
            | Self::Broken { .. }
            | Self::Slow { .. }
            | Self::Refused { .. }
            | Self::Json { .. } => self,
        }
    }

    /// Whether it is certain that nothing was changed.
    #[must_use]
    pub fn left_all_as_it_was(&self) -> bool {
        match self {
            Self::Run { .. } | Self::Refused { .. } => true,
            Self::Broken { .. } | Self::Slow { .. } | Self::Json { .. } => false,
        }
    }
}

/// The program.
#[derive(Debug, Clone)]
pub struct Nft {
    program: PathBuf,
    limit: Duration,
    /// Who is told that the caller lives while it waits.
    manager: Option<Arc<Notifier>>,
}

impl Default for Nft {
    fn default() -> Self {
        Self::new(DEFAULT_PROGRAM)
    }
}

impl Nft {
    /// Runs `program`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            limit: LIMIT,
            manager: None,
        }
    }

    /// The same for a caller that a service manager watches: while nft is waited for, it is told that the
    /// caller lives. Whoever kills it for waiting has the next start wait for the same.
    #[must_use]
    pub fn watched_by(self, manager: Arc<Notifier>) -> Self {
        Self {
            manager: Some(manager),
            ..self
        }
    }

    /// The same for another caller, who waits no longer than this and is watched by nobody.
    #[must_use]
    pub fn for_others(&self, limit: Duration) -> Self {
        Self {
            program: self.program.clone(),
            limit,
            manager: None,
        }
    }

    /// The same, which ends it after another time.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Applies commands in one transaction: all of them, or none.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn apply(&self, commands: &Commands) -> Result<(), NftError> {
        self.feed("apply a ruleset", &[], commands).map(drop)
    }

    /// As [`Self::apply`], and tells the commands again, with the numbers that the kernel has given
    /// to what they add: without, where nft cannot tell of so many, or tells nonsense.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn apply_and_tell(&self, commands: &Commands) -> Result<Value, NftError> {
        let action = "apply a ruleset";
        let json = commands.to_json();
        let input = json.to_string();
        let words: &[&str] = if input.len() > MAX_TOLD {
            &["-j", "-f", "-"]
        } else {
            &["-e", "-j", "-f", "-"]
        };
        let told = self.run(action, words, input.into_bytes());
        let told = told.map_err(|error| error.of_telling(self))?;
        if words.len() == 3 {
            return Ok(json);
        }
        Ok(serde_json::from_slice(&told).unwrap_or_else(|error| {
            let error = in_full(&error);
            warn!(error, "nft does not tell what it has done");
            json
        }))
    }

    /// Asks whether [`Self::apply`] would succeed, as far as the kernel tells without doing it.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn check(&self, commands: &Commands) -> Result<(), NftError> {
        self.feed("check a ruleset", &["-c"], commands).map(drop)
    }

    /// Everything in a table but the elements of sets; `None` if there is no such table.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn table(&self, table: Table) -> Result<Option<Value>, NftError> {
        let words = ["table", table.family.as_str(), table.name];
        self.of_table(table, "list a table", &words)
    }

    /// The counters of a table; `None` if there is no such table.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn counters(&self, table: Table) -> Result<Option<Value>, NftError> {
        let words = ["counters", "table", table.family.as_str(), table.name];
        self.of_table(table, "list counters", &words)
    }

    fn of_table(
        &self,
        table: Table,
        action: &'static str,
        what: &[&str],
    ) -> Result<Option<Value>, NftError> {
        match self.list(action, what) {
            Ok(listed) => Ok(Some(listed)),
            Err(error @ NftError::Refused { .. }) => match self.has_table(table)? {
                true => Err(error),
                false => Ok(None),
            },
            Err(error) => Err(error),
        }
    }

    /// Its version.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn version(&self) -> Result<Option<String>, NftError> {
        let listed = self.list("list tables", &["tables"])?;
        let mut objects = listed["nftables"].as_array().into_iter().flatten();
        let version = objects.find_map(|it| it["metainfo"]["version"].as_str());
        Ok(version.map(str::to_owned))
    }

    /// Whether there is a table of this name, whoever made it.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn has_table(&self, table: Table) -> Result<bool, NftError> {
        let listed = self.list("list tables", &["tables"])?;
        let mut objects = listed["nftables"].as_array().into_iter().flatten();
        Ok(objects.any(|object| {
            let listed = &object["table"];
            listed["family"] == table.family.as_str() && listed["name"] == table.name
        }))
    }

    /// Everybody's tables, but for the elements of sets.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn ruleset(&self) -> Result<Value, NftError> {
        self.list("list the ruleset", &["ruleset"])
    }

    fn list(&self, action: &'static str, what: &[&str]) -> Result<Value, NftError> {
        let words = [&["-j", "-t", "list"], what].concat();
        let listed = self.run(action, &words, Vec::new())?;
        serde_json::from_slice(&listed).map_err(|source| NftError::Json { action, source })
    }

    fn feed(
        &self,
        action: &'static str,
        options: &[&str],
        commands: &Commands,
    ) -> Result<Vec<u8>, NftError> {
        let words = [options, &["-j", "-f", "-"]].concat();
        let input = commands.to_json().to_string().into_bytes();
        self.run(action, &words, input)
    }

    /// What it writes to standard output, if it succeeds.
    fn run(
        &self,
        action: &'static str,
        words: &[&str],
        input: Vec<u8>,
    ) -> Result<Vec<u8>, NftError> {
        let program = || self.program.clone();
        let mut command = Command::new(&self.program);
        // What it says is looked at.
        command.args(words).env("LC_ALL", "C");
        let child = start(&mut command).map_err(|source| NftError::Run {
            program: program(),
            action,
            source,
        })?;
        let talked = match &self.manager {
            None => talk(child, input, self.limit, None),
            Some(manager) => {
                // Unheard, it is told of by the caller's own next ping.
                let ping = || drop(manager.ping_waiting());
                // Others may have been waited for since the caller's last.
                ping();
                let meanwhile = manager
                    .watchdog_period()
                    .map(|every| Meanwhile { every, act: &ping });
                talk(child, input, self.limit, meanwhile.as_ref())
            }
        };
        let output = talked.map_err(|source| NftError::Broken {
            program: program(),
            action,
            source,
        })?;
        match output {
            None => Err(NftError::Slow {
                program: program(),
                action,
                limit: self.limit,
            }),
            Some(output) if output.status.success() => Ok(output.stdout),
            Some(output) => Err(NftError::Refused {
                program: program(),
                action,
                status: output.status,
                said: summary(&String::from_utf8_lossy(&output.stderr)),
            }),
        }
    }
}

/// The first error in what nft has said, and how many more there are: a ruleset that does not fit
/// may bring one for each of its commands.
fn summary(said: &str) -> String {
    let lines = said.lines().filter(|line| !line.trim().is_empty());
    let errors = lines.clone().filter(|line| line.contains(ERROR));
    let more = errors.clone().count().saturating_sub(1);
    let first = errors.chain(lines).next().unwrap_or_default();
    let first = first.trim().escape_debug().to_string();
    let cut = first.floor_char_boundary(MAX_SAID);
    let (shown, rest) = first.split_at(cut);
    let cut = if rest.is_empty() { "" } else { "..." };
    match more {
        0 => format!("{shown}{cut}"),
        more => format!("{shown}{cut}, and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_error_is_told_and_how_many_more_there_are() {
        let one = "internal:0:0-0: Error: No such file or directory\n\n";
        assert_eq!(
            summary(one),
            "internal:0:0-0: Error: No such file or directory"
        );
        let many = "warning: old\nError: a\u{1b}[31m\nadd rule\n^^^^\nError: b\nError: c\n";
        assert_eq!(summary(many), "Error: a\\u{1b}[31m, and 2 more");
        assert_eq!(summary("sh: nft: not found\n"), "sh: nft: not found");
        assert_eq!(summary(""), "");
    }

    #[test]
    fn long_error_is_cut() {
        let said = summary(&format!("Error: {}", "ä".repeat(MAX_SAID)));
        assert!(said.len() <= MAX_SAID + "...".len(), "{}", said.len());
        assert!(said.ends_with("ä..."), "{said}");
    }
}
