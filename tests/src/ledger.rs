//! What was tried against the promise, written down for the table in the docs.

use std::{env, fmt, fs::OpenOptions, io::Write as _};

use anyhow::{Context as _, bail};

/// What kind of trial it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// Something around the guests broke, went or was changed.
    Fault,
    /// A guest or a container did it.
    Evasion,
}

impl fmt::Display for Trial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Fault => "fault",
            Self::Evasion => "evasion",
        })
    }
}

/// One trial: how often it was made, and what came of the forbidden packets meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The kind.
    pub trial: Trial,
    /// What was tried, in a few words that an operator understands: a row of the table.
    pub what: String,
    /// How often.
    pub times: u64,
    /// Forbidden packets that the senders sent meanwhile.
    pub sent: u64,
    /// Those of them that reached the far side.
    pub leaked: u64,
}

impl Tried {
    /// An evasion that was tried with each of so many packets or connects.
    #[must_use]
    pub fn evasion(what: &str, sent: u64, leaked: u64) -> Self {
        Self {
            trial: Trial::Evasion,
            what: what.to_owned(),
            times: sent,
            sent,
            leaked,
        }
    }

    /// Writes the trial down and fails if anything leaked, or if nothing was sent: a trial under
    /// which nobody sends shows nothing.
    ///
    /// Rows of the same name are added up by the runner, which names the file in `GATE25_LEDGER`.
    ///
    /// # Errors
    /// When something leaked, nothing was sent, or the file cannot be written.
    pub fn judge(&self) -> anyhow::Result<()> {
        self.write()?;
        let Self {
            trial,
            what,
            times,
            sent,
            leaked,
        } = self;
        if *times == 0 || *sent == 0 {
            bail!("{trial} {what:?}: tried {times} times with {sent} packets, which shows nothing");
        }
        if *leaked != 0 {
            bail!("{trial} {what:?}: {leaked} of {sent} forbidden packets arrived");
        }
        Ok(())
    }

    fn write(&self) -> anyhow::Result<()> {
        let Some(path) = env::var_os("GATE25_LEDGER") else {
            return Ok(());
        };
        let Self {
            trial,
            what,
            times,
            sent,
            leaked,
        } = self;
        if what.contains(['\t', '\n', '|']) {
            bail!("{what:?} does not fit a table");
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        file.write_all(format!("{trial}\t{what}\t{times}\t{sent}\t{leaked}\n").as_bytes())
            .with_context(|| format!("write {}", path.display()))
    }
}
