//! The server's bounds, by real connections over the loopback.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gate25::notice::counts::{Counts, Ended};
use gate25::notice::server::{Listener, Listening, Responder, serve};
use gate25::notice::template::Template;
use gate25::notice::{Customers, Lead, LeadError, Limits, Sender, Settings, Unled};
use gate25_common::address::Family;

/// Knows nobody.
struct Nobody;

impl Customers for Nobody {
    fn of(&self, _: SocketAddr, _: SocketAddr) -> Option<Sender> {
        None
    }
}

/// Takes every connection for another customer's.
struct Strangers;

impl Customers for Strangers {
    fn of(&self, peer: SocketAddr, _: SocketAddr) -> Option<Sender> {
        Some(Sender {
            customer: peer.to_string(),
            relay: None,
        })
    }
}

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);
const LIMITS: Limits = Limits {
    connections: 100,
    per_peer: 100,
    per_second: 10_000,
    idle: Duration::from_secs(20),
    connection: Duration::from_secs(20),
};

#[tokio::test]
async fn sender_is_told_who_he_is_and_where_he_was_led() {
    struct Known;
    impl Customers for Known {
        fn of(&self, peer: SocketAddr, local: SocketAddr) -> Option<Sender> {
            Some(Sender {
                customer: format!("c-{}", peer.port()),
                relay: Some(local.to_string()),
            })
        }
    }
    let lab = Lab::with(LIMITS, "{customer} at {relay}", Known).await;
    let mut client = lab.client().await;
    let expected = format!(
        "220 hv1 ESMTP\r\n554 5.7.1 c-{} at {}\r\n221 2.0.0 hv1 closes\r\n",
        client.local_addr().unwrap().port(),
        lab.address
    );
    client.write_all(b"MAIL FROM:<>\r\nQUIT\r\n").await.unwrap();
    assert_eq!(rest(&mut client).await.unwrap(), expected);
    lab.wait(Ended::Answered, 1).await;
    assert_eq!((lab.counts.refusals(), lab.counts.open()), (1, 0));
    lab.stop().await;
}

#[tokio::test]
async fn client_that_leaves_before_mail_is_counted_as_unanswered() {
    let lab = Lab::of(LIMITS).await;
    let mut client = lab.client().await;
    client.write_all(b"EHLO x\r\nQUIT\r\n").await.unwrap();
    assert!(rest(&mut client).await.unwrap().ends_with("closes\r\n"));
    lab.wait(Ended::Unanswered, 1).await;
}

#[tokio::test]
async fn chunk_in_the_packet_of_its_command_is_refused_at_once() {
    let lab = Lab::of(LIMITS).await;
    let mut client = lab.client().await;
    client.write_all(b"BDAT 5 LAST\r\nabcde").await.unwrap();
    let said = until(&mut client, "notice\r\n").await;
    assert_eq!(said, "220 hv1 ESMTP\r\n554 5.7.1 The notice\r\n");
}

#[tokio::test]
async fn client_that_goes_too_far_is_told_and_counted_as_an_error() {
    let lab = Lab::of(LIMITS).await;
    let mut client = lab.client().await;
    // More than is read before the last word: closing must not take that away.
    client
        .write_all(&b"nonsense\r\n".repeat(300))
        .await
        .unwrap();
    let said = rest(&mut client).await.unwrap();
    assert!(
        said.ends_with("421 4.7.0 Too many errors: come back later\r\n"),
        "{said}"
    );
    lab.wait(Ended::Error, 1).await;
}

#[tokio::test]
async fn connections_beyond_the_bound_are_reset_at_once_until_one_ends() {
    let limits = Limits {
        connections: 3,
        ..LIMITS
    };
    let lab = Lab::of(limits).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(lab.greeted().await);
    }
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(lab.refused().await, ErrorKind::ConnectionReset);
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    lab.wait(Ended::Limited, 20).await;
    assert_eq!(lab.counts.open(), 3);
    drop(held.pop());
    lab.wait(Ended::Unanswered, 1).await;
    lab.greeted().await;
}

#[tokio::test]
async fn connections_of_one_peer_beyond_its_bound_leave_the_others_alone() {
    let limits = Limits {
        per_peer: 2,
        ..LIMITS
    };
    let lab = Lab::of(limits).await;
    let _held = [lab.greeted().await, lab.greeted().await];
    assert_eq!(lab.refused().await, ErrorKind::ConnectionReset);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(lab.address).await.unwrap();
    assert_eq!(until(&mut other, "\n").await, "220 hv1 ESMTP\r\n");
}

#[tokio::test]
async fn connections_of_one_customer_beyond_its_share_are_reset() {
    let limits = Limits {
        connections: 8,
        ..LIMITS
    };
    let lab = Lab::with(limits, "The notice", Nobody).await;
    let held = [lab.greeted().await, lab.greeted().await];
    assert_eq!(lab.refused().await, ErrorKind::ConnectionReset);
    lab.wait(Ended::Limited, 1).await;
    drop(held);
    lab.wait(Ended::Unanswered, 2).await;
    lab.greeted().await;
}

#[tokio::test]
async fn connections_beyond_the_rate_are_reset() {
    let limits = Limits {
        per_second: 1,
        ..LIMITS
    };
    let lab = Lab::of(limits).await;
    let began = Instant::now();
    let _first = lab.greeted().await;
    let second = lab.refused().await;
    // On a busy machine a second may have gone by.
    if began.elapsed() < Duration::from_secs(1) {
        assert_eq!(second, ErrorKind::ConnectionReset);
    }
    timeout(DEADLINE, async {
        while lab.try_greeting().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn client_that_says_nothing_is_told_and_cut_off() {
    let limits = Limits {
        idle: Duration::from_millis(300),
        ..LIMITS
    };
    let lab = Lab::of(limits).await;
    let mut client = lab.client().await;
    let began = Instant::now();
    let said = rest(&mut client).await.unwrap();
    assert_eq!(
        said,
        "220 hv1 ESMTP\r\n421 4.4.2 hv1 has waited long enough\r\n"
    );
    assert!(began.elapsed() >= limits.idle);
    lab.wait(Ended::Timeout, 1).await;
    lab.wait_open(0).await;
}

#[tokio::test]
async fn client_that_sends_octet_by_octet_is_cut_off_after_the_whole_time() {
    let limits = Limits {
        idle: Duration::from_secs(10),
        connection: Duration::from_millis(700),
        ..LIMITS
    };
    let lab = Lab::of(limits).await;
    let mut client = lab.greeted().await;
    let began = Instant::now();
    let cut = timeout(DEADLINE, async {
        loop {
            if client.write_all(b"x").await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    cut.await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(500));
    lab.wait(Ended::Timeout, 1).await;
    lab.wait_open(0).await;
}

#[tokio::test]
async fn client_that_reads_nothing_is_reset() {
    let limits = Limits {
        idle: Duration::from_millis(500),
        ..LIMITS
    };
    // Replies of some 8 KB: a few fill what the kernel keeps.
    let text = vec!["x".repeat(500); 16].join("\n");
    let lab = Lab::with(limits, &text, Nobody).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(lab.address).await.unwrap();
    client
        .write_all(&b"MAIL FROM:<>\r\n".repeat(90))
        .await
        .unwrap();
    lab.wait(Ended::Timeout, 1).await;
    lab.wait_open(0).await;
    assert!(lab.counts.refusals() < 20, "{}", lab.counts.refusals());
    let error = rest(&mut client).await.unwrap_err();
    assert_eq!(error, ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn client_that_does_not_hang_up_after_the_last_reply_is_reset() {
    let lab = Lab::of(LIMITS).await;
    let mut client = lab.client().await;
    let began = Instant::now();
    client.write_all(b"QUIT\r\n").await.unwrap();
    assert!(rest(&mut client).await.unwrap().ends_with("closes\r\n"));
    // Not at once: a reset could overtake the reply.
    client.write_all(b"x").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let written = client.write_all(b"x").await;
    assert!(written.is_ok() || began.elapsed() > Duration::from_millis(900));
    lab.wait_open(0).await;
    lab.wait(Ended::Unanswered, 1).await;
    // The other direction was left open.
    let refused = timeout(DEADLINE, async {
        loop {
            if let Err(error) = client.write_all(b"x").await {
                return error.kind();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let kind = refused.await.unwrap();
    assert!(
        [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&kind),
        "{kind}"
    );
}

#[tokio::test]
async fn shutdown_tells_open_connections_and_ends_soon() {
    let lab = Lab::of(LIMITS).await;
    let mut client = lab.greeted().await;
    lab.stop().await;
    assert_eq!(rest(&mut client).await.unwrap(), "421 4.3.2 hv1 stops\r\n");
}

#[tokio::test]
async fn address_to_which_nobody_can_be_led_is_told() {
    struct Full;
    impl Lead for Full {
        fn lead_to(&self, family: Family, _: BorrowedFd<'_>) -> Result<(), LeadError> {
            assert_eq!(family, Family::V4);
            Err(LeadError::new(std::io::Error::other("the table is full")))
        }
    }
    let settings = Settings {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        ..Settings::default()
    };
    let responder = Responder::new(settings, "hv1", Arc::new(Nobody), Arc::default());
    let (sender, mut heard) = watch::channel(Vec::new());
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(responder, Arc::new(Full), sender, shutdown.clone()));
    let told = |it: &Vec<Listener>| {
        let why = "the table is full".to_owned();
        it.first().map(|it| &it.state) == Some(&Listening::No(why))
    };
    timeout(DEADLINE, heard.wait_for(told))
        .await
        .unwrap()
        .unwrap();
    shutdown.cancel();
    timeout(DEADLINE, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn address_that_is_taken_is_told_and_bound_once_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let settings = Settings {
        listen: vec![address],
        ..Settings::default()
    };
    let responder = Responder::new(settings, "hv1", Arc::new(Nobody), Arc::default());
    let (sender, mut heard) = watch::channel(Vec::new());
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(responder, Arc::new(Unled), sender, shutdown.clone()));
    let state = |listeners: &Vec<Listener>| listeners.first().map(|it| it.state.clone());
    let failed = |it: &Vec<Listener>| matches!(state(it), Some(Listening::No(why)) if why.contains("in use"));
    timeout(DEADLINE, heard.wait_for(failed))
        .await
        .unwrap()
        .unwrap();
    drop(taken);
    let bound = |it: &Vec<Listener>| state(it) == Some(Listening::Yes);
    timeout(DEADLINE, heard.wait_for(bound))
        .await
        .unwrap()
        .unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    assert_eq!(until(&mut client, "\n").await, "220 hv1 ESMTP\r\n");
    shutdown.cancel();
    timeout(DEADLINE, server).await.unwrap().unwrap();
}

/// A responder on a port of the kernel's choice.
struct Lab {
    address: SocketAddr,
    counts: Arc<Counts>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Lab {
    async fn of(limits: Limits) -> Self {
        Self::with(limits, "The notice", Strangers).await
    }

    async fn with(limits: Limits, text: &str, customers: impl Customers) -> Self {
        let settings = Settings {
            listen: Vec::new(),
            text: Template::new(text, None).unwrap(),
            limits,
        };
        let counts = Arc::new(Counts::default());
        let responder = Responder::new(settings, "hv1", Arc::new(customers), Arc::clone(&counts));
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(128).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let server = tokio::spawn(async move { responder.serve(listener, token).await });
        Self {
            address,
            counts,
            shutdown,
            server,
        }
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn greeted(&self) -> TcpStream {
        let mut client = self.client().await;
        assert_eq!(until(&mut client, "\n").await, "220 hv1 ESMTP\r\n");
        client
    }

    async fn try_greeting(&self) -> Result<u8, ErrorKind> {
        let mut client = TcpStream::connect(self.address)
            .await
            .map_err(|error| error.kind())?;
        let first = timeout(DEADLINE, client.read_u8()).await.unwrap();
        first.map_err(|error| error.kind())
    }

    /// How a connection that is not let in ends.
    async fn refused(&self) -> ErrorKind {
        match self.try_greeting().await {
            Ok(_) => ErrorKind::Other,
            Err(kind) => kind,
        }
    }

    async fn wait(&self, ended: Ended, count: u64) {
        let counted = timeout(DEADLINE, async {
            while self.counts.connections(ended) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(counted.await.is_ok(), "{ended:?}: {:?}", self.counts);
        assert_eq!(self.counts.connections(ended), count);
    }

    async fn wait_open(&self, count: usize) {
        let closed = timeout(DEADLINE, async {
            while self.counts.open() != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(closed.await.is_ok(), "{:?}", self.counts);
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(Duration::from_secs(5), self.server)
            .await
            .unwrap()
            .unwrap();
    }
}

/// Everything up to the server's end of the connection.
async fn rest(client: &mut TcpStream) -> Result<String, ErrorKind> {
    let mut bytes = Vec::new();
    let end = timeout(DEADLINE, client.read_to_end(&mut bytes))
        .await
        .unwrap();
    end.map_err(|error| error.kind())?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// Everything up to and with `end`.
async fn until(client: &mut TcpStream, end: &str) -> String {
    let mut said = String::new();
    let read = timeout(DEADLINE, async {
        while !said.ends_with(end) {
            said.push(char::from(client.read_u8().await.unwrap()));
        }
    });
    read.await.unwrap();
    said
}
