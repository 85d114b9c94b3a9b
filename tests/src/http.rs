//! Just enough HTTP to read the agent's pages.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context as _;

use crate::{NetNs, paced};

/// Fetches a page from inside a namespace: its status and body.
///
/// # Errors
/// When the server cannot be reached or answers with something that is not HTTP.
pub fn get(from: &NetNs, server: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    const LIMIT: Duration = Duration::from_secs(5);
    const LARGEST: u64 = 64 << 20;
    let answer = from.run(|| {
        let limit = paced(LIMIT);
        let mut stream = TcpStream::connect_timeout(&server, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        // HTTP/1.0: the answer ends with the connection and is not chunked.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: gate25\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.take(LARGEST).read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    })?;
    let answer = answer.with_context(|| format!("GET http://{server}{path}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an HTTP answer without a body")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("not an HTTP answer: {head}"))?;
    Ok((status, body.to_owned()))
}
