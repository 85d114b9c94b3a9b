//! What came out of a trial, and of each of its phases.

use std::fmt;

use anyhow::bail;

/// Forbidden packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Those sent.
    pub sent: u64,
    /// Those that arrived.
    pub leaked: u64,
}

/// A part of a trial. What is on its way when one ends counts for the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Whether it shows anything if nothing was sent in it.
    pub(super) silence: Silence,
    /// What was sent and arrived in it.
    pub measured: Measured,
}

/// What it means that nobody has sent anything forbidden in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// That it shows nothing.
    Wrong,
    /// Nothing: there may have been nobody to send, or no time.
    Expected,
}

/// What came out of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Over all phases.
    pub measured: Measured,
    /// One after the other.
    pub phases: Vec<Phase>,
    /// What does not add up, and who was told what he must not be told; nothing where all is well.
    pub wrong: Vec<String>,
    /// Packets that the senders' own sides did not take, and why. Where interfaces come and go there
    /// are some.
    pub unsent: Vec<String>,
}

impl Verdict {
    /// Whether nothing leaked, all adds up, and something was sent in every phase.
    ///
    /// # Errors
    /// Naming the phases with leaks or without packets, and what is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        let phases = self.phases.iter();
        let amiss = phases.filter(|phase| phase.is_amiss());
        let Measured { sent, leaked } = self.measured;
        let nothing = (sent == 0).then(|| "nothing was sent".to_owned());
        let lines: Vec<String> = amiss
            .map(ToString::to_string)
            .chain(nothing)
            .chain(self.wrong.iter().cloned())
            .collect();
        if !lines.is_empty() {
            let lines = [lines, self.unsent.clone()].concat();
            bail!(
                "{leaked} of {sent} forbidden packets arrived:\n  {}",
                lines.join("\n  ")
            );
        }
        Ok(())
    }
}

impl Phase {
    pub(super) fn new(name: &str, silence: Silence, measured: Measured) -> Self {
        Self {
            name: name.to_owned(),
            silence,
            measured,
        }
    }

    /// From before the first one that is named.
    pub(super) fn begin() -> Self {
        Self::new("begin", Silence::Expected, Measured::default())
    }

    fn is_amiss(&self) -> bool {
        let Measured { sent, leaked } = self.measured;
        leaked != 0 || sent == 0 && self.silence == Silence::Wrong
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured { sent, leaked } = self.measured;
        write!(f, "{}: {leaked} of {sent} arrived", self.name)
    }
}
