//! A server on a port of the kernel's choice, with made-up pages, and a client.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gate25::http::{Limits, PageError, Pages, Site};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const LIMITS: Limits = Limits {
    connections: 16,
    header: Duration::from_millis(300),
    connection: Duration::from_millis(1500),
};

/// Pages that behave as told.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) broken: bool,
    pub(crate) reasons: Vec<String>,
    pub(crate) takes: Duration,
    pub(crate) size: usize,
    pub(crate) at_once: AtomicUsize,
    pub(crate) most: AtomicUsize,
}

impl Fake {
    pub(crate) fn most_at_once(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn state(&self) -> Result<(), Vec<String>> {
        if self.reasons.is_empty() {
            Ok(())
        } else {
            Err(self.reasons.clone())
        }
    }
}

impl From<Fake> for Arc<dyn Pages> {
    fn from(pages: Fake) -> Self {
        Arc::new(pages)
    }
}

impl Pages for Fake {
    fn metrics(&self) -> Result<String, PageError> {
        if self.broken {
            return Err(PageError::new("secret detail"));
        }
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(self.takes);
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(format!("gate25_metrics 1\n{}", "#".repeat(self.size)))
    }

    fn customers(&self) -> Result<String, PageError> {
        Ok("gate25_customers 1\n".to_owned())
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        self.state()
    }

    fn healthy(&self) -> Result<(), Vec<String>> {
        self.state()
    }
}

/// A running server.
pub(crate) struct Lab {
    pub(crate) address: SocketAddr,
    pub(crate) pages: Arc<Fake>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Lab {
    pub(crate) async fn plain() -> Self {
        Self::with(Fake::default()).await
    }

    pub(crate) async fn with(pages: Fake) -> Self {
        Self::limited(pages, LIMITS).await
    }

    pub(crate) async fn limited(pages: Fake, limits: Limits) -> Self {
        Self::start(pages, None, limits).await
    }

    pub(crate) async fn configured(web_config: PathBuf) -> Self {
        Self::start(Fake::default(), Some(web_config), LIMITS).await
    }

    async fn start(pages: Fake, web_config: Option<PathBuf>, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = Arc::new(pages);
        let shutdown = CancellationToken::new();
        let site = Site::new(web_config, limits, Arc::clone(&pages) as Arc<dyn Pages>);
        let token = shutdown.clone();
        let server = tokio::spawn(async move { site.serve(listener, token).await });
        Self {
            address,
            pages,
            shutdown,
            server,
        }
    }

    pub(crate) async fn get(&self, path: &str, headers: &str) -> Answer {
        self.request("GET", path, headers).await
    }

    pub(crate) async fn request(&self, method: &str, path: &str, headers: &str) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        exchange(stream, method, path, headers).await
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.server)
            .await
            .unwrap()
            .unwrap();
    }
}

/// An answer taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    /// 0 if the server hung up without one.
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Sends one request and reads until the server hangs up.
pub(crate) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    // A server that refuses to serve may hang up before.
    let _sent = stream.write_all(request.as_bytes()).await;
    tokio::time::timeout(DEADLINE, read(stream)).await.unwrap()
}

pub(crate) async fn read(mut stream: impl AsyncRead + Unpin) -> Answer {
    let mut bytes = Vec::new();
    // TLS reports a connection that ends without a farewell.
    let _end = stream.read_to_end(&mut bytes).await;
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Answer {
            status: 0,
            body: bytes,
            headers: Vec::new(),
        };
    };
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Answer {
        status,
        body: bytes[end + 4..].to_vec(),
        headers,
    }
}
