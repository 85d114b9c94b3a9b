//! The far side of what guests send: small servers, and counters of what arrives there.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::socket::{Backlog, listen};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream},
    net::{TcpListener, TcpStream},
    runtime,
};

use crate::{NetNs, poll};

/// Greets whoever connects to a port of a namespace, and answers every line, as long as the
/// process lives.
///
/// # Errors
/// When the port cannot be had.
pub fn greet(ns: &NetNs, port: u16) -> anyhow::Result<()> {
    ns.run(|| greet_here(port))?
        .with_context(|| format!("in {}", ns.name()))
}

/// The same where the calling thread is.
pub(crate) fn greet_here(port: u16) -> anyhow::Result<()> {
    // Not a thread a connection: on a busy machine thousands a second would wait for theirs.
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("make a runtime")?;
    let listener = {
        let _inside = runtime.enter();
        listener(port).with_context(|| format!("listen on port {port}"))?
    };
    thread::Builder::new()
        .name("greeter".to_owned())
        .spawn(move || runtime.block_on(serve(listener)))
        .context("start a thread")?;
    Ok(())
}

fn listener(port: u16) -> io::Result<TcpListener> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = std::net::TcpListener::bind(address)?;
    // What is beyond the queue gets no answer, and many senders fill one of 128 while this thread waits for a
    // processor.
    listen(&listener, Backlog::MAXCONN)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve(listener: TcpListener) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            // A client that goes away is no error of the server's.
            tokio::spawn(async move { drop(converse(stream).await) });
        }
    }
}

async fn converse(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufStream::new(stream);
    stream.write_all(b"220 greeter\r\n").await?;
    stream.flush().await?;
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).await? != 0 {
        line.clear();
        stream.write_all(b"250 ok\r\n").await?;
        stream.flush().await?;
    }
    Ok(())
}

/// Counts the packets to port 25 that arrive in a namespace, before anything there judges them.
#[derive(Debug)]
pub struct Witness {
    ns: NetNs,
}

impl Witness {
    /// The rules that count, for nft.
    pub const RULES: &str = "table inet witness { counter seen {}; chain arrive { type filter hook prerouting priority -400; tcp dport 25 counter name seen; }; }";

    /// Begins to count.
    ///
    /// # Errors
    /// When nft fails.
    pub fn start(ns: &NetNs) -> anyhow::Result<Self> {
        ns.exec("nft", &[Self::RULES])?;
        Ok(Self { ns: ns.clone() })
    }

    /// Packets so far, once none has come for a tenth of a second: connections that were closed
    /// have said goodbye.
    ///
    /// # Errors
    /// When packets keep coming, or nft fails.
    pub fn settled(&self) -> anyhow::Result<u64> {
        let mut last = (self.packets()?, Instant::now());
        poll("packets to port 25 to end", Duration::from_secs(10), || {
            let now = self.packets()?;
            if now != last.0 {
                last = (now, Instant::now());
            }
            Ok((last.1.elapsed() > Duration::from_millis(100)).then_some(now))
        })
    }

    /// Packets so far.
    ///
    /// # Errors
    /// When nft fails.
    pub fn packets(&self) -> anyhow::Result<u64> {
        let text = self.ns.exec("nft", &["list counter inet witness seen"])?;
        Self::packets_in(&text)
    }

    /// The packets in what nft tells of a counter.
    ///
    /// # Errors
    /// When it tells none.
    pub fn packets_in(listed: &str) -> anyhow::Result<u64> {
        let mut words = listed.split_whitespace();
        words
            .by_ref()
            .find(|word| *word == "packets")
            .and_then(|_| words.next())
            .and_then(|word| word.parse().ok())
            .with_context(|| format!("no count in {listed}"))
    }
}
