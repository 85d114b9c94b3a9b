//! The notice's responder beside the loop: how its listening goes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::sync::watch;

use crate::notice::server::{Listener, Listening};

/// Hears how listening goes.
pub(super) struct Notice {
    listeners: watch::Receiver<Vec<Listener>>,
}

/// How listening goes.
pub(super) struct Heard {
    /// By address.
    pub(super) listeners: Vec<Listener>,
    /// Addresses that are listened on.
    pub(super) told: BTreeSet<SocketAddr>,
    /// What is wrong.
    pub(super) complaint: Option<String>,
}

impl Notice {
    /// Hears what the server is to say by the other half.
    pub(super) fn new() -> (watch::Sender<Vec<Listener>>, Self) {
        let (sender, listeners) = watch::channel(Vec::new());
        (sender, Self { listeners })
    }

    /// Waits for a change. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Heard {
        self.change().await;
        self.heard()
    }

    /// Waits until every address was tried, which takes no longer than binding a socket.
    pub(super) async fn first(&mut self) -> Heard {
        loop {
            self.change().await;
            let heard = self.heard();
            let tried = |it: &Listener| it.state != Listening::Starting;
            if heard.listeners.iter().all(tried) {
                return heard;
            }
        }
    }

    async fn change(&mut self) {
        if self.listeners.changed().await.is_err() {
            // The server ends when the agent does.
            std::future::pending::<()>().await;
        }
    }

    fn heard(&mut self) -> Heard {
        let listeners = self.listeners.borrow_and_update().clone();
        let failures: Vec<String> = listeners.iter().filter_map(failure).collect();
        let told = listeners.iter().filter(|it| it.state == Listening::Yes);
        Heard {
            told: told.map(|it| it.address).collect(),
            complaint: (!failures.is_empty()).then(|| {
                let failures = failures.join("; ");
                format!("senders get no notice, they are refused: {failures}")
            }),
            listeners,
        }
    }
}

fn failure(Listener { address, state }: &Listener) -> Option<String> {
    match state {
        Listening::Starting | Listening::Yes => None,
        Listening::No(why) => Some(format!("cannot listen on {address}: {why}")),
    }
}
