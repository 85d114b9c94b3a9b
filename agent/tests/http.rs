//! The HTTP server, by clients that speak it byte by byte.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

#[path = "http/lab.rs"]
mod lab;
#[path = "http/tls.rs"]
mod tls;

use std::io::Read as _;
use std::net::TcpListener as StdListener;
use std::time::{Duration, Instant};

use gate25::http::{Limits, Settings, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use lab::{DEADLINE, Fake, Lab};

#[tokio::test]
async fn metrics_have_prometheus_content_type_and_the_page() {
    let lab = Lab::plain().await;
    let answer = lab.get("/metrics", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert_eq!(answer.text(), "gate25_metrics 1\n");
    assert_eq!(
        lab.get("/metrics/customers", "").await.text(),
        "gate25_customers 1\n"
    );
}

#[tokio::test]
async fn metrics_are_compressed_on_request_only() {
    let lab = Lab::plain().await;
    let answer = lab
        .get("/metrics", "Accept-Encoding: deflate, gzip;q=0.5\r\n")
        .await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*answer.body)
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "gate25_metrics 1\n");
    let answer = lab.get("/metrics", "Accept-Encoding: gzip;q=0\r\n").await;
    assert_eq!(answer.header("content-encoding"), None);
}

#[tokio::test]
async fn metrics_that_cannot_be_collected_are_an_error_without_details() {
    let lab = Lab::with(Fake {
        broken: true,
        ..Fake::default()
    })
    .await;
    let answer = lab.get("/metrics", "").await;
    assert_eq!(answer.status, 500);
    assert!(
        !answer.text().contains("secret detail"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn states_say_why_not() {
    let lab = Lab::plain().await;
    assert_eq!(lab.get("/readyz", "").await.text(), "ready\n");
    assert_eq!(lab.get("/healthz", "").await.text(), "healthy\n");
    let reasons = vec!["no program on tap1".to_owned(), "policy refused".to_owned()];
    let lab = Lab::with(Fake {
        reasons,
        ..Fake::default()
    })
    .await;
    for path in ["/readyz", "/healthz"] {
        let answer = lab.get(path, "").await;
        assert_eq!(answer.status, 503);
        assert!(
            answer
                .text()
                .ends_with("no program on tap1\npolicy refused\n")
        );
    }
}

#[tokio::test]
async fn landing_page_links_to_the_others() {
    let lab = Lab::plain().await;
    let answer = lab.get("/", "").await;
    assert_eq!(
        answer.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    for part in [
        "gate25",
        env!("CARGO_PKG_VERSION"),
        "href=\"/metrics\"",
        "href=\"/healthz\"",
    ] {
        assert!(answer.text().contains(part), "{part}");
    }
}

#[tokio::test]
async fn methods_and_paths_other_than_offered_are_refused() {
    let lab = Lab::plain().await;
    assert_eq!(lab.get("/nothing", "").await.status, 404);
    assert_eq!(lab.get("/metrics/../etc/passwd", "").await.status, 404);
    for path in ["/", "/metrics", "/metrics/customers", "/readyz", "/healthz"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = lab.request(method, path, "Content-Length: 0\r\n").await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(
                answer.header("allow").map(|a| a.replace(' ', "")),
                Some("GET,HEAD".into())
            );
        }
        let answer = lab.request("HEAD", path, "").await;
        assert_eq!((answer.status, answer.body.len()), (200, 0), "HEAD {path}");
    }
}

#[tokio::test]
async fn body_of_a_request_is_ignored() {
    let lab = Lab::plain().await;
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    // Announced and never sent.
    let head = b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let answer = tokio::time::timeout(DEADLINE, lab::read(stream))
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn header_without_end_is_refused() {
    let lab = Lab::plain().await;
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let line = format!("X: {}\r\n", "y".repeat(1000));
    let mut sent = 0;
    while stream.write_all(line.as_bytes()).await.is_ok() {
        sent += line.len();
        assert!(sent < 64 << 20, "the server goes on reading");
    }
}

#[tokio::test]
async fn scrapes_at_once_are_made_one_after_the_other() {
    let lab = Lab::with(Fake {
        takes: Duration::from_millis(20),
        ..Fake::default()
    })
    .await;
    let scrapes: Vec<_> = (0..8).map(|_| lab.get("/metrics", "")).collect();
    for answer in futures(scrapes).await {
        assert_eq!(answer.status, 200);
    }
    assert_eq!(lab.pages.most_at_once(), 1);
}

#[tokio::test]
async fn client_that_sends_its_header_drop_by_drop_is_cut_off() {
    let lab = Lab::plain().await;
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    let began = Instant::now();
    for byte in b"GET /metrics HTTP/1.1\r\nHost: example\r\n".iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        assert!(
            began.elapsed() < DEADLINE,
            "a slow client holds its connection"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(began.elapsed() >= lab::LIMITS.header);
}

#[tokio::test]
async fn client_that_does_not_read_its_answer_is_cut_off() {
    const SIZE: usize = 64 << 20;
    let limits = Limits {
        connections: 1,
        ..lab::LIMITS
    };
    let lab = Lab::limited(
        Fake {
            size: SIZE,
            ..Fake::default()
        },
        limits,
    )
    .await;
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    stream.readable().await.unwrap();
    // There is room for one: this one is served once the other has had to go.
    assert_eq!(lab.get("/healthz", "").await.status, 200);
    let mut rest = Vec::new();
    let _cut = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < SIZE);
}

#[tokio::test]
async fn idle_connections_beyond_the_limit_do_not_keep_a_scrape_waiting() {
    let limits = Limits {
        header: DEADLINE * 10,
        connection: DEADLINE * 10,
        ..Limits::default()
    };
    let lab = Lab::limited(Fake::default(), limits).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(lab.address).await.unwrap());
    }
    let began = Instant::now();
    assert_eq!(lab.get("/metrics", "").await.status, 200);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    // The oldest had to go, the newest stayed.
    let mut oldest = idle.remove(0);
    assert!(matches!(oldest.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    let newest = idle.pop().unwrap();
    assert!(
        newest
            .try_read(&mut [0; 1])
            .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    );
}

#[tokio::test]
async fn address_in_use_is_retried_until_it_is_free() {
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let settings = Settings {
        listen: vec![address],
        web_config: None,
        limits: Limits::default(),
    };
    let server = tokio::spawn(serve(settings, Fake::default().into(), shutdown.clone()));
    // Whether the first attempt has failed by now or not, the server has to come up.
    tokio::task::yield_now().await;
    drop(taken);
    let deadline = Instant::now() + DEADLINE;
    let stream = loop {
        assert!(Instant::now() < deadline, "the server never came up");
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!(
        lab::exchange(stream, "GET", "/healthz", "").await.status,
        200
    );
    shutdown.cancel();
    tokio::time::timeout(DEADLINE, server)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn shutdown_ends_the_server_whatever_clients_do() {
    let lab = Lab::plain().await;
    let _idle = TcpStream::connect(lab.address).await.unwrap();
    assert_eq!(lab.get("/metrics", "").await.status, 200);
    let address = lab.address;
    lab.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

async fn futures<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in all.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
