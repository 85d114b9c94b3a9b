//! The control socket: HTTP and JSON for the commands that need the running agent.
//!
//! What is read is served from the shared status, without the agent's loop; what changes something
//! goes to the loop as a [`Command`] and is given up after a time. Root may do everything, members
//! of the configured group may read and reload.

pub mod client;
pub mod messages;
pub mod presence;
mod routes;
mod server;
mod socket;
mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::chain::in_full;
use crate::diagnostic::Diagnostic;
use crate::figures::Figures;
use crate::policy::loader::{SetHash, SourceFile};
use crate::settings::Enforcement;
use crate::source::SourceError;
use crate::status::{Shared, Source};

pub use server::serve;
pub(crate) use socket::FOLDER_MODE;
pub use socket::{Socket, SocketError};
pub(crate) use view::{bypassed, customer_connections, host_connections, number_of};

/// Where the socket is and who may use it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The socket's path. Its folder is made if there is none.
    pub socket: PathBuf,
    /// The group whose members may read and reload.
    pub group: String,
    /// Bounds on clients.
    pub limits: Limits,
}

/// Bounds on what clients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, for root and for all others each. Beyond them the oldest one without
    /// a whole request yet is cut off.
    pub connections: usize,
    /// Time for a request's header, and for its body.
    pub request: Duration,
    /// Time in which the agent's loop has to answer.
    pub reply: Duration,
    /// Time for a whole connection, answer included.
    pub connection: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16,
            request: Duration::from_secs(5),
            reply: Duration::from_secs(60),
            connection: Duration::from_secs(75),
        }
    }
}

/// What the server shows, and whom it asks.
#[derive(Clone)]
pub struct Agent {
    /// What the agent knows of itself.
    pub status: Shared,
    /// The kernel's counters.
    pub figures: Arc<dyn Figures>,
    /// What never changes while the agent runs.
    pub constants: Arc<Constants>,
    /// The agent's loop.
    pub commands: mpsc::Sender<Command>,
}

/// What never changes while the agent runs.
#[derive(Debug, Clone)]
pub struct Constants {
    /// What `hosts:` is matched against.
    pub host: String,
    /// Whether refusals are carried out at all.
    pub enforcement: Enforcement,
    /// What enforces, and why that was chosen.
    pub backend: (&'static str, &'static str),
    /// How programs are attached to interfaces.
    pub hook: &'static str,
    /// The policy's files.
    pub policy_dir: PathBuf,
    /// When the agent started.
    pub started: Timestamp,
}

/// What only the agent's loop can do. A reply that nobody waits for any more is no error.
#[derive(Debug)]
pub enum Command {
    /// Read the files now.
    Reload {
        /// Whether a set that lost much may be taken over.
        shrink: Shrink,
        /// Whether a set that is valid is taken over.
        execution: Execution,
        /// How long it may run unless somebody confirms; for good, where nothing is said.
        confirm_within: Option<Duration>,
        /// Whether files that were undone are taken over.
        undone: Undone,
        /// What came of it, once the tables are written.
        reply: oneshot::Sender<ReloadOutcome>,
    },
    /// Keep what is on trial.
    Confirm {
        /// Whether it is done.
        execution: Execution,
        /// What came of it.
        reply: oneshot::Sender<TrialOutcome>,
    },
    /// Go back to what ran before the last change.
    Undo {
        /// Whether it is done.
        execution: Execution,
        /// What came of it, once the tables are written.
        reply: oneshot::Sender<TrialOutcome>,
    },
    /// Only observe for a time, or no longer.
    Bypass {
        /// Which of the two.
        request: BypassRequest,
        /// Why it came to nothing, if it did.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Tell what runs.
    Policy {
        /// The running set.
        reply: oneshot::Sender<RunningPolicy>,
    },
}

/// Whether a set that lost much of what the running one has may be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shrink {
    /// It is refused.
    Refused,
    /// Somebody said that it is meant.
    Accepted,
}

/// What becomes of files that were undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// They stay so.
    Held,
    /// Somebody wants them all the same.
    Taken,
}

/// Whether a change is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// It is.
    Apply,
    /// It is only worked out.
    DryRun,
}

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// The files are in force.
    Applied {
        /// Of the policy now running.
        generation: u64,
        /// Identifies the files.
        hash: SetHash,
        /// Table entries that were written.
        writes: usize,
    },
    /// The files are in force until somebody confirms, or the time is up.
    OnTrial {
        /// Of the policy now running.
        generation: u64,
        /// Identifies the files.
        hash: SetHash,
        /// Table entries that were written.
        writes: usize,
        /// When the set before runs again.
        ends: Timestamp,
        /// Identifies that set.
        base: SetHash,
    },
    /// The files would be taken over.
    WouldApply {
        /// Identifies the files.
        hash: SetHash,
        /// Table entries that would be written.
        writes: usize,
    },
    /// The files are those that run.
    Unchanged,
    /// The files are those that were undone, and stay so.
    Held {
        /// Since when.
        since: Timestamp,
    },
    /// The files are refused; the running policy stays.
    Refused {
        /// Why, in one line.
        message: String,
        /// Everything that is wrong, its paths relative to the policy directory or absolute.
        diagnostics: Vec<Diagnostic>,
    },
    /// The files lost too much of the running policy, which stays.
    Shrunk {
        /// What was lost.
        message: String,
    },
}

/// Why a host that observes is not bypassed.
pub(crate) const ONLY_OBSERVES: &str = "this host only observes by its settings";

/// Why a host is not bypassed under a second ticket: the first one's mail would stop with the second's.
pub(crate) fn already_bypassed(ticket: &str) -> String {
    format!(
        "this host is bypassed under {}: give that ticket for another end, or run `gate25 bypass end` first",
        crate::diagnostic::quoted(ticket)
    )
}

/// A time in which this host only observes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BypassRequest {
    /// It begins.
    Begin {
        /// How long it is.
        within: Duration,
        /// Under which ticket.
        ticket: String,
    },
    /// It ends now.
    End,
}

/// What became of a set on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialOutcome {
    /// It stays.
    Confirmed,
    /// The set before runs.
    Undone {
        /// Identifies it.
        hash: SetHash,
    },
    /// It would stay.
    WouldConfirm,
    /// The set before would run.
    WouldUndo {
        /// Identifies it.
        hash: SetHash,
        /// When it was accepted.
        accepted: Timestamp,
    },
    /// Nothing has changed; why.
    Refused(String),
}

impl ReloadOutcome {
    /// The outcome for files that were not accepted; `policy_dir` is where they are.
    #[must_use]
    pub fn refused(error: &SourceError, policy_dir: &std::path::Path) -> Self {
        let diagnostics = match error {
            SourceError::Directory(error) => error.diagnostics(policy_dir),
            SourceError::Refused(refused) => {
                let all = refused.diagnostics.iter().cloned();
                all.map(|one| one.below(policy_dir)).collect()
            }
            SourceError::Compile(_) => Vec::new(),
        };
        // The diagnostics are the causes.
        let message = if diagnostics.is_empty() {
            in_full(error)
        } else {
            error.to_string()
        };
        Self::Refused {
            message,
            diagnostics,
        }
    }
}

/// The policy that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningPolicy {
    /// Where it comes from.
    pub source: Source,
    /// How often a policy was put into the kernel since the start.
    pub generation: u64,
    /// Identifies the files; `None` where no files run.
    pub hash: Option<SetHash>,
    /// The files, verbatim; empty where no files run.
    pub files: Arc<[SourceFile]>,
}
