//! One connection: TLS, one request, one answer, each within its time. The control socket's
//! connections are bounded here too.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;
use tracing::debug;

use super::auth::{Access, Users};
use super::pages;
use super::web_config::WebConfig;
use super::{Limits, Site};

use crate::chain::in_full;

/// Bytes of a request's header that are read at most.
const HEADER_BYTES: usize = 16 * 1024;

/// Why a connection ended early.
#[derive(Debug, Error)]
pub(crate) enum ConnectionError {
    #[error("the web configuration is not valid")]
    NoConfig,
    #[error("took too long")]
    Slow,
    #[error("pushed out by newer connections")]
    PushedOut,
    #[error("tls handshake failed")]
    Tls(#[source] io::Error),
    #[error("http failed")]
    Http(#[source] hyper::Error),
}

/// The connections that are open, and a bound on them.
pub(crate) struct Connections {
    permits: Arc<Semaphore>,
    /// One at a time makes room, so that each cuts off another one.
    turn: Semaphore,
    waiting: Mutex<VecDeque<Arc<Waiting>>>,
}

/// What the others may know and do about a connection.
struct Waiting {
    requested: AtomicBool,
    cut: CancellationToken,
}

/// Leave to serve one connection.
pub(crate) struct Slot {
    waiting: Arc<Waiting>,
    connections: Arc<Connections>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            turn: Semaphore::new(1),
            waiting: Mutex::default(),
        }
    }

    /// Waits for leave to serve one more. If there is none to be had, the oldest connection that
    /// has not asked for anything yet has to go: whoever holds connections open for their own sake
    /// only pushes out his own.
    pub(crate) async fn slot(self: &Arc<Self>) -> Slot {
        // Neither semaphore is ever closed.
        let _turn = self.turn.acquire().await;
        if self.permits.available_permits() == 0 {
            let oldest = self
                .lock()
                .iter()
                .find(|w| !w.requested.load(Ordering::Relaxed))
                .cloned();
            if let Some(oldest) = oldest {
                oldest.cut.cancel();
            }
        }
        let permit = loop {
            // The semaphore is never closed, and trying again is right if it were.
            if let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await {
                break permit;
            }
        };
        let waiting = Arc::new(Waiting {
            requested: AtomicBool::new(false),
            cut: CancellationToken::new(),
        });
        self.lock().push_back(Arc::clone(&waiting));
        Slot {
            waiting,
            connections: Arc::clone(self),
            _permit: permit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Waiting>>> {
        // Nothing that holds it can panic halfway.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The connection has asked for something: from here on it is not pushed out.
    pub(crate) fn requested(&self) {
        self.waiting.requested.store(true, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections
            .lock()
            .retain(|other| !Arc::ptr_eq(other, &self.waiting));
    }
}

/// Serves one request, if one comes in time.
pub(super) async fn serve(site: Site, stream: TcpStream, slot: Slot) {
    let limit = site.limits.connection;
    bounded(limit, &slot, exchange(site, stream, &slot)).await;
}

/// Carries out an exchange until it ends, `limit` is over, or its slot is needed.
pub(crate) async fn bounded(
    limit: Duration,
    slot: &Slot,
    exchange: impl Future<Output = Result<(), ConnectionError>>,
) {
    let served = timeout(limit, slot.waiting.cut.run_until_cancelled(exchange)).await;
    let outcome = match served {
        Ok(Some(outcome)) => outcome,
        Ok(None) => Err(ConnectionError::PushedOut),
        Err(_elapsed) => Err(ConnectionError::Slow),
    };
    if let Err(error) = outcome {
        debug!(error = in_full(&error), "http connection");
    }
}

async fn exchange(site: Site, stream: TcpStream, slot: &Slot) -> Result<(), ConnectionError> {
    let config = match &site.config {
        None => Arc::new(WebConfig::default()),
        Some(file) => file.current().await.ok_or(ConnectionError::NoConfig)?,
    };
    let users = Arc::clone(&config.users);
    match &config.tls {
        None => respond_to(site, users, stream, slot).await,
        Some(tls) => {
            let handshake = timeout(site.limits.header, tls.accept(stream)).await;
            let Ok(stream) = handshake else {
                return Err(ConnectionError::Slow);
            };
            let stream = stream.map_err(ConnectionError::Tls)?;
            respond_to(site, users, stream, slot).await
        }
    }
}

async fn respond_to(
    site: Site,
    users: Arc<Users>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    slot: &Slot,
) -> Result<(), ConnectionError> {
    let Site { router, limits, .. } = site;
    answer(stream, &limits, |request| {
        slot.requested();
        respond(router.clone(), Arc::clone(&users), request)
    })
    .await
}

/// Answers one request.
pub(crate) async fn answer<R: Future<Output = Response>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    limits: &Limits,
    respond: impl Fn(Request<Incoming>) -> R,
) -> Result<(), ConnectionError> {
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let response = respond(request);
        async { Ok::<_, Infallible>(response.await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(HEADER_BYTES)
        // One scrape every some seconds gains nothing from keeping connections, and without it
        // each has a bounded life.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(ConnectionError::Http)
}

async fn respond(
    mut router: axum::Router,
    users: Arc<Users>,
    request: Request<Incoming>,
) -> Response {
    match users.admit(request.headers()).await {
        Access::Granted => call(&mut router, request.map(Body::new)).await,
        Access::Denied => pages::unauthorized(),
    }
}

/// What the router answers.
pub(crate) async fn call(router: &mut axum::Router, request: Request<Body>) -> Response {
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
