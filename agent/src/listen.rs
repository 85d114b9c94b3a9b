//! Listening on an address or a socket, however long it takes until that works.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};

/// Waits between attempts grow from here...
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(250);
/// ...to here.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// How much the kernel keeps for a connection in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Buffers {
    /// As much as it likes.
    Automatic,
    /// About so many octets.
    Fixed(u32),
}

/// Listens on `address`, after as many attempts as it takes; `failed` is told of those that came to
/// nothing, with the time until the next.
pub(crate) async fn bind(
    address: SocketAddr,
    buffers: Buffers,
    failed: impl FnMut(&io::Error, Duration),
) -> TcpListener {
    until_it_works(|| open(address, buffers), failed).await
}

/// Tries after growing waits until it works; `failed` is told of attempts that came to nothing, with
/// the time until the next.
pub(crate) async fn until_it_works<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    mut failed: impl FnMut(&E, Duration),
) -> T {
    let mut wait = FIRST_RETRY;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) => failed(&error, wait),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
}

fn open(address: SocketAddr, buffers: Buffers) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // As TcpListener::bind does: a restart need not wait for the last one's connections.
    socket.set_reuseaddr(true)?;
    if let Buffers::Fixed(octets) = buffers {
        // Accepted sockets inherit them.
        socket.set_send_buffer_size(octets)?;
        socket.set_recv_buffer_size(octets)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
