//! The sockets: who is let in, and for how long.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25_common::address::Family;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::connection::Connection;
use super::counts::{Counts, Ended};
use super::limits::{Pace, Place, Places};
use super::session::Session;
use super::{Customers, Lead, Settings};
use crate::chain::in_full;
use crate::listen::{self, Buffers, FIRST_RETRY};

/// What the kernel keeps of a connection in each direction: more than the longest reply.
const BUFFER: u32 = 16 * 1024;
/// Connections a second that are accepted only to be reset. Beyond that they wait in the kernel,
/// which drops what it has no room for.
const RESETS: u32 = 5_000;

/// An address to listen on, and how that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The address.
    pub address: SocketAddr,
    /// How it goes.
    pub state: Listening,
}

/// Whether an address is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listening {
    /// Not tried yet.
    Starting,
    /// It is.
    Yes,
    /// It is not, for this reason; it is tried again.
    No(String),
}

/// Serves on the addresses of the settings until `shutdown` is cancelled, and has senders led there by
/// `lead`. Those that cannot be bound are tried again for as long; `listeners` says how that goes.
pub async fn serve(
    responder: Responder,
    lead: Arc<dyn Lead>,
    listeners: watch::Sender<Vec<Listener>>,
    shutdown: CancellationToken,
) {
    let starting = |address: &SocketAddr| Listener {
        address: *address,
        state: Listening::Starting,
    };
    let addresses = responder.settings.listen.clone();
    listeners.send_replace(addresses.iter().map(starting).collect());
    let listeners = Arc::new(listeners);
    let mut tasks = JoinSet::new();
    for address in addresses {
        let (responder, shutdown) = (responder.clone(), shutdown.clone());
        let (lead, listeners) = (Arc::clone(&lead), Arc::clone(&listeners));
        tasks.spawn(async move {
            let failed = |error: &io::Error, wait: Duration| {
                let retry = wait.as_secs_f64();
                let error = in_full(error);
                warn!(%address, error, retry, "cannot listen for the notice");
                tell(&listeners, address, Listening::No(error));
            };
            let bound = listen::bind(address, Buffers::Fixed(BUFFER), failed);
            let Some(listener) = shutdown.run_until_cancelled(bound).await else {
                return;
            };
            let state = match lead.lead_to(family(address), listener.as_fd()) {
                Ok(()) => {
                    info!(%address, "answering with the notice");
                    Listening::Yes
                }
                Err(error) => {
                    let error = in_full(&error);
                    error!(%address, error, "nobody is led to the notice");
                    Listening::No(error)
                }
            };
            tell(&listeners, address, state);
            responder.serve(listener, shutdown).await;
        });
    }
    tasks.join_all().await;
}

fn family(address: SocketAddr) -> Family {
    match address {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    }
}

fn tell(listeners: &watch::Sender<Vec<Listener>>, address: SocketAddr, state: Listening) {
    listeners.send_if_modified(|listeners| {
        let ours = listeners.iter_mut().find(|it| it.address == address);
        ours.is_some_and(|listener| std::mem::replace(&mut listener.state, state.clone()) != state)
    });
}

/// Answers connections.
#[derive(Clone)]
pub struct Responder {
    settings: Arc<Settings>,
    host: Arc<str>,
    customers: Arc<dyn Customers>,
    counts: Arc<Counts>,
    places: Arc<Places>,
}

impl Responder {
    /// Answers in the name of `host`; what becomes of connections is counted in `counts`.
    #[must_use]
    pub fn new(
        settings: Settings,
        host: &str,
        customers: Arc<dyn Customers>,
        counts: Arc<Counts>,
    ) -> Self {
        let places = Places::new(settings.limits, Arc::clone(&counts), Instant::now());
        Self {
            settings: Arc::new(settings),
            host: Arc::from(host),
            customers,
            counts,
            places: Arc::new(places),
        }
    }

    /// Answers what connects to `listener` until `shutdown` is cancelled; connections still open
    /// then are told and closed.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        let mut open = JoinSet::new();
        let mut resets = Pace::new(RESETS, RESETS, Instant::now());
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            while open.try_join_next().is_some() {}
            let pause = match accepted {
                Ok((stream, peer)) => match self.places.take(peer.ip(), Instant::now()) {
                    Some(place) => {
                        let (responder, shutdown) = (self.clone(), shutdown.clone());
                        open.spawn(async move {
                            responder.answer(stream, peer, place, shutdown).await;
                        });
                        None
                    }
                    None => {
                        reset(stream);
                        self.counts.ended(Ended::Limited);
                        resets.take(Instant::now()).err()
                    }
                },
                Err(error) if is_the_peers(&error) => {
                    self.counts.ended(Ended::Error);
                    None
                }
                // Out of descriptors, most likely: some come free when connections end.
                Err(error) => {
                    let error = in_full(&error);
                    warn!(error, "cannot accept a connection for the notice");
                    Some(FIRST_RETRY)
                }
            };
            if let Some(pause) = pause {
                let pause = tokio::time::sleep(pause);
                shutdown.run_until_cancelled(pause).await;
            }
        }
        open.join_all().await;
    }

    async fn answer(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        place: Place,
        shutdown: CancellationToken,
    ) {
        let sender = match stream.local_addr() {
            Ok(local) => self.customers.of(peer, local),
            Err(error) => {
                debug!(error = in_full(&error), "connection is gone already");
                self.counts.ended(Ended::Error);
                return;
            }
        };
        let customer = sender.as_ref().map(|sender| sender.customer.as_str());
        let Some(_place) = place.of_customer(customer) else {
            reset(stream);
            self.counts.ended(Ended::Limited);
            return;
        };
        let refusal = self.settings.text.reply(sender.as_ref());
        let session = Session::new(&self.host, refusal);
        let connection = Connection::new(stream, session, self.settings.limits);
        if let Some(ended) = connection.serve(&self.counts, &shutdown).await {
            debug!(%peer, ended = ended.as_str(), "notice connection");
            self.counts.ended(ended);
        }
    }
}

/// Whether an error of accept(2) is the connection's own, not the listener's.
fn is_the_peers(error: &io::Error) -> bool {
    [
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable,
        io::ErrorKind::TimedOut,
    ]
    .contains(&error.kind())
}

/// Ends a connection so that its peer is refused, and the kernel keeps nothing of it.
pub(super) fn reset(stream: TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        debug!(error = in_full(&error), "connection is closed, not reset");
    }
}
