//! The HTTP server for Prometheus and for people who look.
//!
//! It never holds anything else up: an address that cannot be bound is tried again, connections
//! are few and short-lived, and pages are made outside the reactor, one at a time.

mod auth;
pub(crate) mod connections;
mod pages;
mod web_config;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use connections::Connections;
use web_config::WebConfigFile;

use crate::chain::in_full;
use crate::listen::{self, Buffers, FIRST_RETRY};

/// What the pages show. The functions may block; they are called one at a time.
pub trait Pages: Send + Sync + 'static {
    /// The metrics of the host in Prometheus' text format.
    ///
    /// # Errors
    /// When they cannot be collected.
    fn metrics(&self) -> Result<String, PageError>;

    /// The metrics of every customer, in the same format.
    ///
    /// # Errors
    /// When they cannot be collected.
    fn customers(&self) -> Result<String, PageError>;

    /// Whether the policy is in force.
    ///
    /// # Errors
    /// The reasons why it is not.
    fn ready(&self) -> Result<(), Vec<String>>;

    /// Whether the agent works.
    ///
    /// # Errors
    /// The reasons why a restart is in order.
    fn healthy(&self) -> Result<(), Vec<String>>;
}

/// Why a page could not be made.
#[derive(Debug, Error)]
#[error("cannot make the page")]
pub struct PageError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl PageError {
    /// The error for this reason.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// Where to listen and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses to listen on; none turns the server off.
    pub listen: Vec<SocketAddr>,
    /// File with TLS and basic auth settings. While there is none, plain HTTP is served to
    /// everybody; once there has been one, nothing is served without it.
    pub web_config: Option<PathBuf>,
    /// Bounds on clients.
    pub limits: Limits,
}

/// Bounds on what clients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. Beyond them the oldest one without a request yet is cut off.
    pub connections: usize,
    /// Time for a TLS handshake and for a request's header, each.
    pub header: Duration,
    /// Time for a whole connection, answer included.
    pub connection: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            header: Duration::from_secs(5),
            connection: Duration::from_secs(30),
        }
    }
}

/// Serves `pages` until `shutdown` is cancelled. Addresses that cannot be bound are tried again
/// for as long.
pub async fn serve(settings: Settings, pages: Arc<dyn Pages>, shutdown: CancellationToken) {
    let site = Site::new(settings.web_config, settings.limits, pages);
    let mut listeners = JoinSet::new();
    for address in settings.listen {
        let (site, shutdown) = (site.clone(), shutdown.clone());
        listeners.spawn(async move {
            let bound = shutdown.run_until_cancelled(bind(address)).await;
            if let Some(listener) = bound {
                site.serve(listener, shutdown).await;
            }
        });
    }
    listeners.join_all().await;
}

async fn bind(address: SocketAddr) -> TcpListener {
    let listener = listen::bind(address, Buffers::Automatic, |error, wait| {
        let retry = wait.as_secs_f64();
        warn!(%address, error = in_full(error), retry, "cannot listen for http");
    });
    let listener = listener.await;
    info!(%address, "serving http");
    listener
}

/// What is served, apart from the addresses.
#[derive(Clone)]
pub struct Site {
    router: axum::Router,
    config: Option<Arc<WebConfigFile>>,
    connections: Arc<Connections>,
    limits: Limits,
}

impl Site {
    /// The site of `pages`.
    #[must_use]
    pub fn new(web_config: Option<PathBuf>, limits: Limits, pages: Arc<dyn Pages>) -> Self {
        Self {
            router: pages::router(pages),
            config: web_config.map(|path| Arc::new(WebConfigFile::new(path))),
            connections: Arc::new(Connections::new(limits.connections)),
            limits,
        }
    }

    /// Serves what connects to `listener` until `shutdown` is cancelled; connections still open
    /// then are cut.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        let mut open = JoinSet::new();
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            while open.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) => {
                    let Some(slot) = shutdown.run_until_cancelled(self.connections.slot()).await
                    else {
                        break;
                    };
                    let site = self.clone();
                    open.spawn(async move { connections::serve(site, stream, slot).await });
                }
                // Out of descriptors, most likely: some come free when connections end.
                Err(error) => {
                    warn!(error = in_full(&error), "cannot accept an http connection");
                    let pause = tokio::time::sleep(FIRST_RETRY);
                    shutdown.run_until_cancelled(pause).await;
                }
            }
        }
        open.shutdown().await;
    }
}
