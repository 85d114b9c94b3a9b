//! The far side of what guests send: small servers, and counters of what arrives there.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

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
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address).with_context(|| format!("listen on port {port}"))?;
    let serve = move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is no error of the server's.
            thread::spawn(move || drop(converse(stream)));
        }
    };
    thread::Builder::new()
        .name("greeter".to_owned())
        .spawn(serve)
        .context("start a thread")?;
    Ok(())
}

fn converse(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(b"220 greeter\r\n")?;
    let mut lines = BufReader::new(stream.try_clone()?).split(b'\n');
    while lines.next().transpose()?.is_some() {
        stream.write_all(b"250 ok\r\n")?;
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
