//! A guest that never stops trying, with every attempt counted.

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{NetNs, Outcome, poll};

/// What became of a sender's attempts.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Those that were connected.
    pub connected: u64,
    /// Those that were refused at once.
    pub refused: u64,
    /// All others.
    pub others: u64,
    /// Those of the others that got no answer.
    pub timed_out: u64,
    /// The last of the others.
    pub last_other: Option<Outcome>,
    /// When the first one was connected.
    pub first_connected: Option<Instant>,
    /// When the last one was connected.
    pub last_connected: Option<Instant>,
}

impl Tally {
    /// All attempts.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.connected + self.refused + self.others
    }

    /// Those that ended as a refusal does where it ends so ([`World::refusal`](crate::World)).
    #[must_use]
    pub fn refusals(&self, refusal: &Outcome) -> u64 {
        if *refusal == Outcome::TimedOut {
            self.timed_out
        } else {
            self.refused
        }
    }
}

/// A thread that connects again and again.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// How long an attempt waits: long enough for an answer, and shorter than the kernel's first
    /// retransmission.
    pub const LIMIT: Duration = Duration::from_millis(800);

    /// Starts connecting from inside `from`, with a pause after every attempt.
    ///
    /// # Errors
    /// When the thread cannot be made or cannot enter the namespace.
    pub fn start(from: &NetNs, to: SocketAddr, pause: Duration) -> anyhow::Result<Self> {
        let ns = from.clone();
        Self::spawn(move || ns.enter(), to, pause)
    }

    /// The same from where the calling process is.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start_here(to: SocketAddr, pause: Duration) -> anyhow::Result<Self> {
        Self::spawn(|| Ok(()), to, pause)
    }

    fn spawn(
        enter: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
        to: SocketAddr,
        pause: Duration,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (entered, wait) = mpsc::channel();
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&tally));
        let thread = thread::Builder::new()
            .name("sender".to_owned())
            .spawn(move || {
                let inside = enter();
                let go_on = inside.is_ok();
                if entered.send(inside).is_err() || !go_on {
                    return;
                }
                while !stopped.load(Ordering::Relaxed) {
                    let outcome = TcpStream::connect_timeout(&to, Self::LIMIT)
                        .map_or_else(Outcome::from, |_| Outcome::Connected);
                    count(&counted, outcome);
                    thread::sleep(pause);
                }
            })
            .context("start a thread")?;
        wait.recv().context("the sender's thread")??;
        Ok(Self {
            stop,
            tally,
            thread: Some(thread),
        })
    }

    /// The attempts so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for so many more attempts and returns what became of all.
    ///
    /// # Errors
    /// When they take longer than ten seconds.
    pub fn more(&self, attempts: u64) -> anyhow::Result<Tally> {
        let all = self.tally().attempts() + attempts;
        self.until("a sender's attempts", Duration::from_secs(10), |tally| {
            tally.attempts() >= all
        })
    }

    /// Waits until its attempts have gone as wanted and returns what became of all.
    ///
    /// # Errors
    /// At the deadline, naming what was waited for.
    pub fn until(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Tally) -> bool,
    ) -> anyhow::Result<Tally> {
        poll(what, limit, || {
            Ok(Some(self.tally()).filter(|tally| wanted(tally)))
        })
    }

    /// Ends it; what became of all attempts, the one under way included.
    #[must_use]
    pub fn finish(mut self) -> Tally {
        self.end();
        self.tally()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }

    /// Forgets what was counted so far.
    pub fn reset(&self) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = Tally::default();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end();
    }
}

fn count(tally: &Mutex<Tally>, outcome: Outcome) {
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Outcome::Connected => {
            let now = Some(Instant::now());
            tally.connected += 1;
            tally.first_connected = tally.first_connected.or(now);
            tally.last_connected = now;
        }
        Outcome::Refused => tally.refused += 1,
        other @ (Outcome::Reset
        | Outcome::Aborted
        | Outcome::TimedOut
        | Outcome::Unreachable
        | Outcome::Other(_)) => {
            tally.others += 1;
            tally.timed_out += u64::from(other == Outcome::TimedOut);
            tally.last_other = Some(other);
        }
    }
}
