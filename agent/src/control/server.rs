//! Connections to the control socket: who connects, and for how long.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use hyper::body::Incoming;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::routes::{self, failure};
use super::{Agent, Limits, Settings, Socket};
use crate::chain::in_full;
use crate::http::connections::{self, Connections, Slot};
use crate::kernel::peer::{Peer, peer};
use crate::listen::{FIRST_RETRY, until_it_works};

/// Bytes of a request's body.
const BODY_BYTES: usize = 64 * 1024;
/// How long a new connection waits for others to make room.
const ROOM: Duration = Duration::from_secs(1);

/// Serves the socket until `shutdown` is cancelled, then removes its file. A socket that cannot be
/// bound is tried again: it holds nothing else up.
pub async fn serve(settings: Settings, agent: Agent, shutdown: CancellationToken) {
    let Settings {
        socket,
        group,
        limits,
    } = settings;
    let bound = until_it_works(
        || Socket::bind(&socket, &group),
        |error, wait| {
            let retry = wait.as_secs_f64();
            let error = in_full(error);
            warn!(path = %socket.display(), error, retry, "no control socket");
        },
    );
    let Some(socket) = shutdown.run_until_cancelled(bound).await else {
        return;
    };
    info!("control socket open");
    let desk = Desk {
        router: routes::router(agent, limits.reply),
        limits,
        group: socket.group(),
        root: Arc::new(Connections::new(limits.connections)),
        others: Arc::new(Connections::new(limits.connections)),
    };
    desk.serve(&socket, shutdown).await;
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visitor {
    /// May do everything.
    Root,
    /// Of the group: may read and reload.
    Member,
    /// May do nothing.
    Stranger,
}

#[derive(Clone)]
struct Desk {
    router: axum::Router,
    limits: Limits,
    group: Option<u32>,
    /// Of their own, so that nobody else can take root's place.
    root: Arc<Connections>,
    others: Arc<Connections>,
}

impl Desk {
    async fn serve(&self, socket: &Socket, shutdown: CancellationToken) {
        let mut open = JoinSet::new();
        while let Some(accepted) = shutdown
            .run_until_cancelled(socket.listener().accept())
            .await
        {
            while open.try_join_next().is_some() {}
            match accepted {
                // Twice as many may have a place, and as many again wait for one.
                Ok(_) if open.len() >= 4 * self.limits.connections => {
                    debug!("control connection refused: too many");
                }
                Ok((stream, _)) => {
                    let desk = self.clone();
                    open.spawn(async move { desk.receive(stream).await });
                }
                // Out of descriptors, most likely: some come free when connections end.
                Err(error) => {
                    warn!(
                        error = in_full(&error),
                        "cannot accept a control connection"
                    );
                    let pause = tokio::time::sleep(FIRST_RETRY);
                    shutdown.run_until_cancelled(pause).await;
                }
            }
        }
        open.shutdown().await;
    }

    async fn receive(&self, stream: UnixStream) {
        let visitor = match peer(stream.as_fd()) {
            Ok(peer) => self.visitor(&peer),
            Err(error) => {
                warn!(
                    error = in_full(&error),
                    "cannot tell who uses the control socket"
                );
                return;
            }
        };
        let places = match visitor {
            Visitor::Root => &self.root,
            Visitor::Member | Visitor::Stranger => &self.others,
        };
        let Ok(slot) = timeout(ROOM, places.slot()).await else {
            debug!("control connection refused: all places are taken");
            return;
        };
        let limits = crate::http::Limits {
            connections: self.limits.connections,
            header: self.limits.request,
            connection: self.limits.connection,
        };
        let exchange = connections::answer(stream, &limits, |request| {
            respond(self, visitor, &slot, request)
        });
        connections::bounded(limits.connection, &slot, exchange).await;
    }

    fn visitor(&self, peer: &Peer) -> Visitor {
        if peer.user == 0 {
            Visitor::Root
        } else if self.group.is_some_and(|group| peer.groups.contains(&group)) {
            Visitor::Member
        } else {
            Visitor::Stranger
        }
    }
}

async fn respond(
    desk: &Desk,
    visitor: Visitor,
    slot: &Slot,
    request: Request<Incoming>,
) -> Response {
    match visitor {
        Visitor::Member if routes::OF_ROOT.contains(&request.uri().path()) => {
            return failure(StatusCode::FORBIDDEN, "only root may ask for this");
        }
        Visitor::Root | Visitor::Member => {}
        Visitor::Stranger => {
            let message = "only root and members of the group may use this socket";
            return failure(StatusCode::FORBIDDEN, message);
        }
    }
    let (head, body) = request.into_parts();
    let body = to_bytes(Body::new(body), BODY_BYTES);
    let body = match timeout(desk.limits.request, body).await {
        Ok(Ok(body)) => body,
        Ok(Err(_broken)) => {
            let message = format!("no whole body of at most {BODY_BYTES} bytes");
            return failure(StatusCode::PAYLOAD_TOO_LARGE, message);
        }
        Err(_elapsed) => {
            return failure(
                StatusCode::REQUEST_TIMEOUT,
                "the request's body took too long",
            );
        }
    };
    // Not before: whoever holds a request back is pushed out.
    slot.requested();
    let request = Request::from_parts(head, Body::from(body));
    connections::call(&mut desk.router.clone(), request).await
}
