//! What became of what one way of sending sent, as its own side saw it.

use anyhow::bail;

use super::source::Lane;
use crate::{Tally, flood::Sent, slowness};

/// What one way of sending has sent so far, and what its own side told.
pub(super) enum Seen {
    Flood(Sent),
    Sender(Tally),
    /// A container's sender.
    Connects(Tally),
    /// Answers, or how the connection ended.
    Echo(anyhow::Result<u64>),
}

impl Seen {
    /// Packets of its lane's kind.
    pub(super) fn attempts(&self) -> u64 {
        match self {
            Self::Flood(sent) => sent.packets,
            Self::Sender(tally) | Self::Connects(tally) => tally.attempts(),
            Self::Echo(_) => 1,
        }
    }

    /// Those of them that a container's sockets asked for.
    pub(super) fn connects(&self) -> u64 {
        match self {
            Self::Connects(tally) => tally.attempts(),
            Self::Flood(_) | Self::Sender(_) | Self::Echo(_) => 0,
        }
    }

    /// How much its own side did not take, and why.
    pub(super) fn unsent(&self) -> Option<String> {
        match self {
            Self::Flood(Sent {
                unsent, trouble, ..
            }) if *unsent != 0 => {
                let why = trouble.as_deref().unwrap_or("for no reason");
                Some(format!("{unsent} not sent, the last: {why}"))
            }
            Self::Flood(_) | Self::Sender(_) | Self::Connects(_) | Self::Echo(_) => None,
        }
    }

    pub(super) fn uses(&self) -> u64 {
        match self {
            Self::Flood(_) | Self::Sender(_) | Self::Connects(_) => self.attempts(),
            Self::Echo(answers) => answers.as_ref().copied().unwrap_or_default(),
        }
    }

    /// Attempts that had no answer in time, as there may be some where a machine is slow: what became of their
    /// packets shows in the accounts, and the kernel may have sent one of each again.
    pub(super) fn late(&self) -> u64 {
        match self {
            Self::Sender(tally) | Self::Connects(tally) => tally.timed_out,
            Self::Flood(_) | Self::Echo(_) => 0,
        }
    }

    /// Whether sockets were told what this lane asks for. A flood waits for no answer.
    pub(super) fn check(self, lane: Lane) -> anyhow::Result<()> {
        let late = self.late();
        let (right, tally) = match (self, lane) {
            (Self::Flood(_), _) => return Ok(()),
            (Self::Echo(answers), _) => return answers.map(drop),
            (Self::Sender(tally) | Self::Connects(tally), Lane::Forbidden | Lane::Midway) => {
                (tally.refused, tally)
            }
            (Self::Sender(tally) | Self::Connects(tally), Lane::Allowed | Lane::Free) => {
                (tally.connected, tally)
            }
        };
        let attempts = tally.attempts();
        let may_be_late = match slowness() {
            1 => 0,
            _ => attempts / 10 + 1,
        };
        if right + late != attempts || late > may_be_late {
            bail!("not every attempt ended as it must: {tally:?}");
        }
        Ok(())
    }
}
