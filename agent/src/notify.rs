//! Tells the service manager how the agent is: sd_notify(3) and its watchdog.
//!
//! The crate sd-notify gives the messages their form. Sending is done here: the crate reads the
//! environment every time and knows no abstract sockets, which containers' service managers use.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// Longest status text, in bytes: systemd ignores messages over 4096 bytes, whatever they say.
const MAX_STATUS: usize = 1024;
/// How long a service manager that does not read may hold the agent up.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// What the service manager put into the environment, read once by whoever starts the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `NOTIFY_SOCKET`: a path, or `@` and the name of an abstract socket.
    pub notify_socket: Option<OsString>,
    /// `WATCHDOG_USEC`: the longest time between two pings, in microseconds.
    pub watchdog_usec: Option<OsString>,
    /// `WATCHDOG_PID`: whom the watchdog is meant for.
    pub watchdog_pid: Option<OsString>,
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            notify_socket: env::var_os("NOTIFY_SOCKET"),
            watchdog_usec: env::var_os("WATCHDOG_USEC"),
            watchdog_pid: env::var_os("WATCHDOG_PID"),
        }
    }
}

/// Why the service manager cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The socket's address has no meaning.
    #[error("NOTIFY_SOCKET {address:?} is neither a path nor the name of an abstract socket")]
    Address {
        /// The address.
        address: OsString,
        /// Why.
        source: io::Error,
    },
    /// No number.
    #[error("{variable}={value:?} is not a number from 1 on")]
    Number {
        /// The variable.
        variable: &'static str,
        /// What it says.
        value: OsString,
    },
    /// The kernel gives no socket.
    #[error("making a socket to the service manager")]
    Socket(#[source] io::Error),
    /// The message did not arrive.
    #[error("sending {message:?} to the service manager")]
    Send {
        /// The message.
        message: String,
        /// Why.
        source: io::Error,
    },
}

/// The service manager, or nobody: then nothing is sent and nothing fails.
#[derive(Debug)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The service manager that `environment` names; `pid` is this process.
    ///
    /// # Errors
    /// [`NotifyError`] if the environment makes no sense. The agent can do without.
    pub fn from_environment(environment: &Environment, pid: u32) -> Result<Self, NotifyError> {
        let Environment {
            notify_socket,
            watchdog_usec,
            watchdog_pid,
        } = environment;
        let manager = match notify_socket {
            Some(address) => Some((socket().map_err(NotifyError::Socket)?, parse(address)?)),
            None => None,
        };
        let ours = match watchdog_pid {
            Some(value) => number("WATCHDOG_PID", value)? == u64::from(pid),
            None => true,
        };
        let watchdog = match watchdog_usec {
            Some(value) if ours && manager.is_some() => {
                Some(Duration::from_micros(number("WATCHDOG_USEC", value)?) / 2)
            }
            Some(_) | None => None,
        };
        Ok(Self { manager, watchdog })
    }

    /// Nobody.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            manager: None,
            watchdog: None,
        }
    }

    /// How often [`Notifier::ping`] is to be called: twice as often as the service manager demands.
    /// `None` if it demands nothing.
    #[must_use]
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The agent enforces; `status` is one line for people.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn ready(&self, status: &str) -> Result<(), NotifyError> {
        self.send(&[NotifyState::Ready, NotifyState::Status(&line(status))])
    }

    /// What the agent does, as one line for people. Control characters become spaces, and a text
    /// over 1024 bytes ends in `…`.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn status(&self, status: &str) -> Result<(), NotifyError> {
        self.send(&[NotifyState::Status(&line(status))])
    }

    /// The agent lives.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn ping(&self) -> Result<(), NotifyError> {
        self.send(&[NotifyState::Watchdog])
    }

    /// The agent lives, and waits for something that may take long: a start or an end takes longer. Says
    /// nothing where the service manager demands nothing.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn ping_waiting(&self) -> Result<(), NotifyError> {
        let Some(period) = self.watchdog else {
            return Ok(());
        };
        // As long as the service manager waits for the next message.
        let longer = u32::try_from(2 * period.as_micros()).unwrap_or(u32::MAX);
        self.send(&[
            NotifyState::Watchdog,
            NotifyState::ExtendTimeoutUsec(longer),
        ])
    }

    /// The agent ends.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn stopping(&self) -> Result<(), NotifyError> {
        self.send(&[NotifyState::Stopping])
    }

    fn send(&self, states: &[NotifyState<'_>]) -> Result<(), NotifyError> {
        let Some((socket, address)) = &self.manager else {
            return Ok(());
        };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        match socket.send_to_addr(message.as_bytes(), address) {
            // A datagram is sent whole or not at all.
            Ok(_) => Ok(()),
            Err(source) => Err(NotifyError::Send { message, source }),
        }
    }
}

fn socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok(socket)
}

fn parse(address: &OsStr) -> Result<SocketAddr, NotifyError> {
    let parsed = match address.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(address),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    parsed.map_err(|source| NotifyError::Address {
        address: address.to_owned(),
        source,
    })
}

fn number(variable: &'static str, value: &OsStr) -> Result<u64, NotifyError> {
    let digits = value.to_str().filter(|text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits && !text.is_empty()
    });
    match digits.map(str::parse) {
        Some(Ok(number)) if number > 0 => Ok(number),
        Some(Ok(_) | Err(_)) | None => Err(NotifyError::Number {
            variable,
            value: value.to_owned(),
        }),
    }
}

/// A line break would begin another message, and names in the text come from outside.
fn line(text: &str) -> String {
    const MORE: &str = "…";
    let mut line: String = text
        .chars()
        .map(|one| if one.is_control() { ' ' } else { one })
        .collect();
    if line.len() > MAX_STATUS {
        line.truncate(line.floor_char_boundary(MAX_STATUS - MORE.len()));
        line.push_str(MORE);
    }
    line
}
