//! Plain TCP connections out of a namespace, timed.

use std::{
    fmt,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{NetNs, paced};

/// How a connect ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The handshake was completed.
    Connected,
    /// ECONNREFUSED.
    Refused,
    /// ECONNRESET.
    Reset,
    /// ECONNABORTED: the kernel destroyed the socket.
    Aborted,
    /// No answer before the deadline, or ETIMEDOUT.
    TimedOut,
    /// No route, or an ICMP error that says so.
    Unreachable,
    /// Anything else, in the system's words.
    Other(String),
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        let kind = error.kind();
        if kind == ErrorKind::ConnectionRefused {
            Self::Refused
        } else if kind == ErrorKind::ConnectionReset {
            Self::Reset
        } else if kind == ErrorKind::ConnectionAborted {
            Self::Aborted
        } else if kind == ErrorKind::TimedOut || kind == ErrorKind::WouldBlock {
            Self::TimedOut
        } else if kind == ErrorKind::HostUnreachable || kind == ErrorKind::NetworkUnreachable {
            Self::Unreachable
        } else {
            Self::Other(error.to_string())
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Aborted => f.write_str("aborted"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<&str> for Outcome {
    /// Reads what `Display` wrote.
    fn from(text: &str) -> Self {
        match text {
            "connected" => Self::Connected,
            "refused" => Self::Refused,
            "reset" => Self::Reset,
            "aborted" => Self::Aborted,
            "timed out" => Self::TimedOut,
            "unreachable" => Self::Unreachable,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// One connect: how it ended, and after how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// How it ended.
    pub outcome: Outcome,
    /// From the call to its return.
    pub took: Duration,
}

impl Attempt {
    /// Times something that ends as a connect does.
    pub(crate) fn of<T>(connect: impl FnOnce() -> io::Result<T>) -> Self {
        let start = Instant::now();
        let result = connect();
        let took = start.elapsed();
        let outcome = result.map_or_else(Outcome::from, |_| Outcome::Connected);
        Self { outcome, took }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} after {:.1} ms",
            self.outcome,
            self.took.as_secs_f64() * 1e3
        )
    }
}

/// Connects from inside `from`; the connection is closed at once.
///
/// # Errors
/// When the namespace cannot be entered. A refused connect is an outcome, not an error.
pub fn connect(from: &NetNs, to: SocketAddr, limit: Duration) -> anyhow::Result<Attempt> {
    from.run(|| Attempt::of(|| TcpStream::connect_timeout(&to, limit)))
}

/// A connection held open.
#[derive(Debug)]
pub struct Held {
    stream: TcpStream,
    to: SocketAddr,
    greeting: String,
}

impl Held {
    /// Connects from inside `from` and waits for the server's first line.
    ///
    /// # Errors
    /// When the connect fails or no line comes.
    pub fn open(from: &NetNs, to: SocketAddr, limit: Duration) -> anyhow::Result<Self> {
        from.run(|| Self::open_here(to, limit))?
            .with_context(|| format!("from {}", from.name()))
    }

    /// The same from where the calling process is.
    ///
    /// # Errors
    /// As [`Held::open`].
    pub fn open_here(to: SocketAddr, limit: Duration) -> anyhow::Result<Self> {
        let limit = paced(limit);
        let stream =
            TcpStream::connect_timeout(&to, limit).with_context(|| format!("connect to {to}"))?;
        stream
            .set_read_timeout(Some(limit))
            .context("set the read timeout")?;
        stream
            .set_write_timeout(Some(limit))
            .context("set the write timeout")?;
        let mut held = Self {
            stream,
            to,
            greeting: String::new(),
        };
        held.greeting = held.line()?;
        Ok(held)
    }

    /// The server's first line.
    #[must_use]
    pub fn greeting(&self) -> &str {
        &self.greeting
    }

    /// Sends nothing, only waits, and says how the connection ended.
    ///
    /// # Errors
    /// When the other side sends something.
    pub fn wait_cut(&mut self, limit: Duration) -> anyhow::Result<Attempt> {
        self.stream
            .set_read_timeout(Some(paced(limit)))
            .context("set the read timeout")?;
        let start = Instant::now();
        let result = self.stream.read(&mut [0; 64]);
        let took = start.elapsed();
        match result {
            Ok(0) => Ok(Attempt {
                outcome: Outcome::Other("closed".to_owned()),
                took,
            }),
            Ok(_) => bail!("{} sent something", self.to),
            Err(error) => Ok(Attempt {
                outcome: error.into(),
                took,
            }),
        }
    }

    /// The next line the server sends.
    ///
    /// # Errors
    /// When the connection ends first or the read times out.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.len() < 4096 {
            let count = self
                .stream
                .read(&mut byte)
                .with_context(|| format!("read from {}", self.to))?;
            if count == 0 {
                bail!("{} closed the connection", self.to);
            }
            if byte == *b"\n" {
                break;
            }
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Sends an SMTP command and returns the answer's first line.
    ///
    /// # Errors
    /// When the connection is cut.
    pub fn command(&mut self, command: &str) -> anyhow::Result<String> {
        self.stream
            .write_all(format!("{command}\r\n").as_bytes())
            .with_context(|| format!("write to {}", self.to))?;
        self.line()
    }

    /// Writes, then reads, and says how the connection ended.
    ///
    /// # Errors
    /// When it goes on working until the deadline.
    pub fn write_until_cut(&mut self, limit: Duration) -> anyhow::Result<Attempt> {
        let limit = paced(limit);
        let start = Instant::now();
        loop {
            let mut byte = [0; 512];
            let result = self.stream.write_all(b"NOOP\r\n").and_then(|()| {
                self.stream.read(&mut byte).and_then(|count| match count {
                    0 => Err(io::Error::from(ErrorKind::UnexpectedEof)),
                    _ => Ok(()),
                })
            });
            let took = start.elapsed();
            match result {
                Err(error) => {
                    return Ok(Attempt {
                        outcome: error.into(),
                        took,
                    });
                }
                Ok(()) if took < limit => {}
                Ok(()) => bail!("the connection to {} still works after {limit:?}", self.to),
            }
        }
    }
}
