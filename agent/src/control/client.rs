//! Asks the running agent, for commands.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{Method, Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::messages::{
    BypassRequest, Customers, Exemptions, Failure, Findings, Policy, Reload, ReloadRequest, Status,
    Trial, TrialRequest, Workloads,
};

/// Longer than the agent takes to say that it is busy.
const PATIENCE: Duration = Duration::from_secs(80);
/// Longer than from fork(2) to exec(2).
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of an answer: a policy set comes in one.
const ANSWER_BYTES: usize = 1 << 30;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot reach the agent at {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the agent did not answer in {0:?}")]
    Slow(Duration),
    /// It is there but does not get to it.
    #[error("{0}")]
    Busy(String),
    /// It said no.
    #[error("the agent refuses: {0}")]
    Refused(String),
    /// The connection broke off.
    #[error("talk to the agent")]
    Http(#[from] hyper::Error),
    /// The answer broke off, or is too long.
    #[error("read the agent's answer")]
    Answer(#[source] axum::Error),
    /// The answer is none that this version knows.
    #[error("the agent's answer is not understood; is its version another?")]
    Message(#[from] serde_json::Error),
    /// The request could not be made.
    #[error("make a request to the agent")]
    Request(#[from] axum::http::Error),
    /// There is no runtime.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
}

impl ClientError {
    /// Whether the agent cannot be asked at all, as opposed to saying no.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Slow(_) | Self::Busy(_) => true,
            Self::Refused(_)
            | Self::Http(_)
            | Self::Answer(_)
            | Self::Message(_)
            | Self::Request(_)
            | Self::Runtime(_) => false,
        }
    }

    /// Whether the connection was cut, as by an agent that was killed just now: a program that it was
    /// about to start keeps its socket open until the exec(2).
    fn is_reset(&self) -> bool {
        let Self::Http(error) = self else {
            return false;
        };
        let source = error.source().and_then(|it| it.downcast_ref::<io::Error>());
        source.is_some_and(|it| it.kind() == io::ErrorKind::ConnectionReset)
    }

    /// Whether no agent serves the socket.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        match self {
            Self::Unreachable { path: _, source } => is_nobody(source),
            Self::Slow(_)
            | Self::Busy(_)
            | Self::Refused(_)
            | Self::Http(_)
            | Self::Answer(_)
            | Self::Message(_)
            | Self::Request(_)
            | Self::Runtime(_) => false,
        }
    }
}

/// Whether a connection failed because no process listens.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// The agent behind a socket. Every call blocks.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// The agent behind this socket.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            patience: PATIENCE,
        }
    }

    /// The same for callers that wait no longer than this for an answer.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The process that serves the socket.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn process(&self) -> io::Result<u32> {
        let socket = std::os::unix::net::UnixStream::connect(&self.socket)?;
        let credentials = getsockopt(&socket, PeerCredentials)?;
        u32::try_from(credentials.pid()).map_err(io::Error::other)
    }

    /// How it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status")
    }

    /// The workloads of its host.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn workloads(&self) -> Result<Workloads, ClientError> {
        self.get("/v1/workloads")
    }

    /// The customers of its policy.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn customers(&self) -> Result<Customers, ClientError> {
        self.get("/v1/customers")
    }

    /// The exemptions of its policy.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn exemptions(&self) -> Result<Exemptions, ClientError> {
        self.get("/v1/exemptions")
    }

    /// What it found wrong with the coverage of workloads when it last looked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn findings(&self) -> Result<Findings, ClientError> {
        self.get("/v1/findings")
    }

    /// The running set.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn policy(&self) -> Result<Policy, ClientError> {
        self.get("/v1/policy")
    }

    /// Has it read its files.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reload(&self, request: &ReloadRequest) -> Result<Reload, ClientError> {
        self.ask(Method::POST, "/v1/reload", Some(request))
    }

    /// Has it only observe for a time, or no longer; tells how it is then.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn bypass(&self, request: &BypassRequest) -> Result<Status, ClientError> {
        self.ask(Method::POST, "/v1/bypass", Some(request))
    }

    /// Has it read its files, and go back from them unless somebody confirms.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn trial(&self, request: &TrialRequest) -> Result<Reload, ClientError> {
        self.ask(Method::POST, "/v1/trial", Some(request))
    }

    /// Has it keep what is on trial.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn confirm(&self) -> Result<Trial, ClientError> {
        self.ask(Method::POST, "/v1/confirm", None::<&()>)
    }

    /// Has it go back to what ran before the last change.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn undo(&self) -> Result<Trial, ClientError> {
        self.ask(Method::POST, "/v1/undo", None::<&()>)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, None::<&()>)
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = content.map(serde_json::to_vec).transpose()?;
        let body = Bytes::from(body.unwrap_or_default());
        match self.ask_once(&method, path, &body) {
            Err(error) if error.is_reset() => {
                thread::sleep(PAUSE);
                self.ask_once(&method, path, &body)
            }
            answered => answered,
        }
    }

    fn ask_once<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<T, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "gate25")
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body.clone()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        let (status, body) = runtime
            .block_on(async { timeout(self.patience, self.exchange(request)).await })
            .map_err(|_elapsed| ClientError::Slow(self.patience))??;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let error = match serde_json::from_slice(&body) {
            Ok(Failure { error }) => error,
            Err(_) => status.to_string(),
        };
        if status == StatusCode::SERVICE_UNAVAILABLE {
            Err(ClientError::Busy(error))
        } else {
            Err(ClientError::Refused(error))
        }
    }

    async fn exchange(&self, request: Request<Body>) -> Result<(StatusCode, Bytes), ClientError> {
        let connected = UnixStream::connect(&self.socket).await;
        let stream = connected.map_err(|source| ClientError::Unreachable {
            path: self.socket.clone(),
            source,
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = to_bytes(Body::new(response.into_body()), ANSWER_BYTES).await;
            Ok((status, body.map_err(ClientError::Answer)?))
        };
        tokio::pin!(answer);
        tokio::select! {
            // Both are polled until the answer is whole; the connection ends after it.
            answered = &mut answer => answered,
            Err(error) = connection => Err(error.into()),
        }
    }
}
