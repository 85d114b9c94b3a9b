//! How often a trial is repeated.

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::fewer;

/// How often a trial is repeated on a slow machine, where it is repeated at all.
const LEAST: u64 = 2;

/// Numbers of rounds from 0 on: as many as asked for, or in a soak as many as there is time for,
/// and one at least.
#[derive(Debug)]
pub struct Rounds {
    begun: u64,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Times(u64),
    At(Instant),
}

impl Rounds {
    /// So many, on a slow machine [`fewer`], unless `GATE25_SOAK_SECONDS`, which `./xtask/x soak` sets,
    /// says for how long.
    ///
    /// # Errors
    /// When that is not a number.
    pub fn of(times: u64) -> anyhow::Result<Self> {
        const SOAK: &str = "GATE25_SOAK_SECONDS";
        let end = match env::var_os(SOAK) {
            None => End::Times(times.min(u64::from(fewer(times.try_into()?)).max(LEAST))),
            Some(value) => {
                let text = value.to_string_lossy();
                let seconds = text.parse().with_context(|| format!("{SOAK}={text}"))?;
                End::At(Instant::now() + Duration::from_secs(seconds))
            }
        };
        Ok(Self { begun: 0, end })
    }

    /// How many have begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }
}

impl Iterator for Rounds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let round = self.begun;
        let more = match self.end {
            End::Times(times) => round < times,
            End::At(end) => round == 0 || Instant::now() < end,
        };
        self.begun += u64::from(more);
        more.then_some(round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_three_are_three_and_counted_as_they_begin() {
        let end = End::Times(3);
        let mut rounds = Rounds { begun: 0, end };
        assert_eq!(rounds.next(), Some(0));
        assert_eq!(rounds.begun(), 1);
        assert_eq!(rounds.by_ref().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(rounds.begun(), 3);
    }

    #[test]
    fn rounds_of_a_soak_whose_time_is_up_are_one() {
        let end = End::At(Instant::now());
        let rounds = Rounds { begun: 0, end };
        assert_eq!(rounds.collect::<Vec<_>>(), [0]);
    }
}
