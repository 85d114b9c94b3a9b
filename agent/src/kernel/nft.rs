//! Runs `nft`: nothing else does. Rulesets go in and come out as its JSON (libnftables-json(5)).
//!
//! The `nftables` crate gives the types. Its own way of running nft leaves standard error to the
//! terminal, where nobody looks for it.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;

use nftables::schema::{NfListObject, NfObject, Nftables};
use nftables::types::NfFamily;

/// Where nft is looked for, unless somebody says otherwise: in the search path.
pub const DEFAULT_PROGRAM: &str = "nft";

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
    /// It refused.
    #[error("{} does not {action} ({status}): {said}", program.display())]
    Refused {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        action: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error, control characters escaped.
        said: String,
    },
    /// The ruleset could not be written as JSON, or what nft wrote is none.
    #[error("{action}: what goes to or comes from nft is not a ruleset")]
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
            Self::Refused { .. } | Self::Json { .. } => false,
        }
    }
}

/// The program.
#[derive(Debug, Clone)]
pub struct Nft {
    program: PathBuf,
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
        }
    }

    /// Applies commands in one transaction: all of them, or none.
    ///
    /// # Errors
    /// [`NftError`]; nothing has changed then.
    pub fn apply(&self, commands: &Nftables<'_>) -> Result<(), NftError> {
        self.feed("apply a ruleset", &[], commands).map(drop)
    }

    /// As [`Self::apply`], for what the crate has no types for.
    ///
    /// # Errors
    /// [`NftError`]; nothing has changed then.
    pub fn apply_json(&self, commands: &serde_json::Value) -> Result<(), NftError> {
        self.feed("apply a ruleset", &[], commands).map(drop)
    }

    /// As [`Self::check`], for what the crate has no types for.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn check_json(&self, commands: &serde_json::Value) -> Result<(), NftError> {
        self.feed("check a ruleset", &["-c"], commands).map(drop)
    }

    /// As [`Self::list`], for what the crate has no types for, without the elements of sets.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn list_json(
        &self,
        action: &'static str,
        what: &[&str],
    ) -> Result<serde_json::Value, NftError> {
        let words = [&["-j", "-t", "list"], what].concat();
        let output = self.run(action, &words, None)?;
        if !output.status.success() {
            return Err(self.refused(action, output));
        }
        serde_json::from_slice(&output.stdout).map_err(|source| NftError::Json { action, source })
    }

    /// What `nft list` with these words gives for people to read: its JSON does not name the
    /// devices of chains before nftables 1.0.8.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn list_text(&self, action: &'static str, what: &[&str]) -> Result<String, NftError> {
        let words = [&["list"], what].concat();
        let output = self.run(action, &words, None)?;
        if !output.status.success() {
            return Err(self.refused(action, output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// As [`Self::apply`], and tells the commands again, with the handles that the kernel has given
    /// to what they add.
    ///
    /// # Errors
    /// [`NftError`]; nothing has changed then, unless it is [`NftError::Json`].
    pub fn apply_and_tell(&self, commands: &Nftables<'_>) -> Result<Nftables<'static>, NftError> {
        let action = "apply a ruleset";
        let output = self.feed(action, &["-e"], commands)?;
        parse(action, &output.stdout)
    }

    /// Asks whether [`Self::apply`] would succeed, as far as the kernel tells without doing it.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn check(&self, commands: &Nftables<'_>) -> Result<(), NftError> {
        self.feed("check a ruleset", &["-c"], commands).map(drop)
    }

    /// Everything in a table; `None` if there is no such table.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn table(
        &self,
        family: NfFamily,
        name: &str,
    ) -> Result<Option<Nftables<'static>>, NftError> {
        if !self.has_table(family, name)? {
            return Ok(None);
        }
        let action = "list a table";
        let word = family_word(family);
        let output = self.run(action, &["-j", "list", "table", word, name], None)?;
        if output.status.success() {
            return parse(action, &output.stdout).map(Some);
        }
        // Gone since it was seen, or a real refusal?
        if self.has_table(family, name)? {
            Err(self.refused(action, output))
        } else {
            Ok(None)
        }
    }

    /// Whether there is a table of this name, whoever made it.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn has_table(&self, family: NfFamily, name: &str) -> Result<bool, NftError> {
        let listed = self.list("list tables", &["tables"])?;
        Ok(listed.objects.iter().any(|object| match object {
            NfObject::ListObject(NfListObject::Table(table)) => {
                table.family == family && table.name == name
            }
            NfObject::ListObject(_) | NfObject::CmdObject(_) => false,
        }))
    }

    /// What `nft list` with these words gives.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn list(&self, action: &'static str, what: &[&str]) -> Result<Nftables<'static>, NftError> {
        let words = [&["-j", "list"], what].concat();
        let output = self.run(action, &words, None)?;
        if !output.status.success() {
            return Err(self.refused(action, output));
        }
        parse(action, &output.stdout)
    }

    fn feed(
        &self,
        action: &'static str,
        options: &[&str],
        commands: &impl serde::Serialize,
    ) -> Result<Output, NftError> {
        let input =
            serde_json::to_vec(commands).map_err(|source| NftError::Json { action, source })?;
        let words = [options, &["-j", "-f", "-"]].concat();
        let output = self.run(action, &words, Some(&input))?;
        if output.status.success() {
            Ok(output)
        } else {
            Err(self.refused(action, output))
        }
    }

    fn run(
        &self,
        action: &'static str,
        words: &[impl AsRef<OsStr>],
        input: Option<&[u8]>,
    ) -> Result<Output, NftError> {
        let failed = |source| NftError::Run {
            program: self.program.clone(),
            action,
            source,
        };
        let stdin = match input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        };
        let mut child = Command::new(&self.program)
            .args(words)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let pipe = child.stdin.take();
        // Written beside the reading: nft may fill its own pipes before it has read everything.
        thread::scope(|scope| {
            let writer = pipe
                .zip(input)
                .map(|(mut pipe, input)| scope.spawn(move || pipe.write_all(input)));
            let output = child.wait_with_output().map_err(failed)?;
            let written = writer.map(thread::ScopedJoinHandle::join);
            match written {
                // Who refuses need not have read everything.
                Some(Ok(Err(error))) if output.status.success() => Err(failed(error)),
                Some(Err(_)) => Err(failed(io::Error::other("the writer ended early"))),
                Some(Ok(_)) | None => Ok(output),
            }
        })
    }

    fn refused(&self, action: &'static str, output: Output) -> NftError {
        NftError::Refused {
            program: self.program.clone(),
            action,
            status: output.status,
            said: String::from_utf8_lossy(&output.stderr)
                .trim()
                .escape_debug()
                .to_string(),
        }
    }
}

/// The word for a family on nft's command line.
#[must_use]
pub fn family_word(family: NfFamily) -> &'static str {
    match family {
        NfFamily::IP => "ip",
        NfFamily::IP6 => "ip6",
        NfFamily::INet => "inet",
        NfFamily::ARP => "arp",
        NfFamily::Bridge => "bridge",
        NfFamily::NetDev => "netdev",
    }
}

fn parse(action: &'static str, text: &[u8]) -> Result<Nftables<'static>, NftError> {
    serde_json::from_slice(text).map_err(|source| NftError::Json { action, source })
}
