//! The SMTP notice: a small server that tells senders why their mail is not taken.
//!
//! Customers whose profile says `blocked: notice` are led here. The server speaks SMTP as far as the
//! first command that would send mail, and refuses it with the provider's text. It takes no mail,
//! keeps nothing, and is bounded in connections, memory and time: what is beyond a bound is reset,
//! which is what `blocked: reject` does.

mod connection;
pub mod counts;
mod limits;
pub mod server;
pub mod session;
pub mod template;

use std::error::Error;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use gate25_common::address::Family;
use template::Template;

/// Whose connections come from where.
pub trait Customers: Send + Sync + 'static {
    /// Who sent a connection from `peer` that was led to `local`; `None` where nobody knows, which
    /// the notice calls `unassigned`. Called once a connection, on the server's threads: it must
    /// not block for long.
    fn of(&self, peer: SocketAddr, local: SocketAddr) -> Option<Sender>;
}

/// Leads senders to the sockets on which they are answered, and nowhere else.
pub trait Lead: Send + Sync + 'static {
    /// From now on, and for as long as `listener` is open, connections over `family` may be led to it.
    ///
    /// # Errors
    /// When nobody can be led there.
    fn lead_to(&self, family: Family, listener: BorrowedFd<'_>) -> Result<(), LeadError>;
}

/// Why nobody can be led to a socket.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LeadError(Box<dyn Error + Send + Sync>);

impl LeadError {
    /// What a backend says.
    pub fn new(source: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(source))
    }
}

/// Leads nobody: whoever comes has come by himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unled;

impl Lead for Unled {
    fn lead_to(&self, _: Family, _: BorrowedFd<'_>) -> Result<(), LeadError> {
        Ok(())
    }
}

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The customer's id.
    pub customer: String,
    /// The relay that the customer should use, as it should be shown.
    pub relay: Option<String>,
}

/// Where to listen, what to say, and to how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Addresses to listen on, one a family at most; none means off.
    pub listen: Vec<SocketAddr>,
    /// What senders are told.
    pub text: Template,
    /// Bounds on clients.
    pub limits: Limits,
}

/// Bounds on what clients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one IPv4 address or IPv6 /64.
    pub per_peer: usize,
    /// New connections a second; as many may come at once after quiet. One peer gets an eighth.
    pub per_second: u32,
    /// How long a client may take to send something, and to read an answer.
    pub idle: Duration,
    /// Time for a whole connection.
    pub connection: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            per_peer: 8,
            per_second: 100,
            idle: Duration::from_secs(30),
            connection: Duration::from_secs(120),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            text: Template::standard(None),
            limits: Limits::default(),
        }
    }
}
