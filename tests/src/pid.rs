//! Processes named so that a re-used number is not taken for the old process.

use std::{fmt, fs, str::FromStr};

use anyhow::{Context as _, bail};

/// A process: its number and the time it started, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pid {
    number: u32,
    started: u64,
}

impl Pid {
    pub(crate) fn own() -> anyhow::Result<Self> {
        Self::of(std::process::id())
    }

    fn of(number: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{number}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The second field is the name in brackets and may hold anything.
        let after_name = stat
            .rsplit_once(')')
            .with_context(|| format!("parse {path}"))?
            .1;
        let started = after_name
            .split_whitespace()
            .nth(19)
            .and_then(|field| field.parse().ok())
            .with_context(|| format!("no start time in {path}"))?;
        Ok(Self { number, started })
    }

    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.number).is_ok_and(|now| now == self)
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.started)
    }
}

impl FromStr for Pid {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split_whitespace();
        let (Some(number), Some(started), None) = (words.next(), words.next(), words.next()) else {
            bail!("not a process: {text:?}");
        };
        Ok(Self {
            number: number.parse()?,
            started: started.parse()?,
        })
    }
}
