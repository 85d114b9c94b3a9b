//! What became of connections.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told the notice.
    Answered,
    /// It ended, by itself, before it tried to send mail.
    Unanswered,
    /// It was reset at once: a bound on connections was reached.
    Limited,
    /// It was cut off: too slow, or too long.
    Timeout,
    /// It broke, or was closed for what it said.
    Error,
}

impl Ended {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Answered,
        Self::Unanswered,
        Self::Limited,
        Self::Timeout,
        Self::Error,
    ];

    /// The word for it in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Unanswered => "unanswered",
            Self::Limited => "limited",
            Self::Timeout => "timeout",
            Self::Error => "error",
        }
    }
}

/// Connections so far, and now.
#[derive(Debug, Default)]
pub struct Counts {
    answered: AtomicU64,
    unanswered: AtomicU64,
    limited: AtomicU64,
    timeout: AtomicU64,
    error: AtomicU64,
    refusals: AtomicU64,
    open: AtomicUsize,
}

impl Counts {
    /// Connections that ended so.
    #[must_use]
    pub fn connections(&self, ended: Ended) -> u64 {
        self.of(ended).load(Ordering::Relaxed)
    }

    /// Times that the notice was told.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn ended(&self, ended: Ended) {
        self.of(ended).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_open(&self, open: usize) {
        self.open.store(open, Ordering::Relaxed);
    }

    fn of(&self, ended: Ended) -> &AtomicU64 {
        match ended {
            Ended::Answered => &self.answered,
            Ended::Unanswered => &self.unanswered,
            Ended::Limited => &self.limited,
            Ended::Timeout => &self.timeout,
            Ended::Error => &self.error,
        }
    }
}
