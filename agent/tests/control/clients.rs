//! Clients that behave badly.

use std::time::Instant;

use gate25::settings::Enforcement;
use tokio::io::AsyncWriteExt as _;

use crate::lab::{DEADLINE, LIMITS, Lab, parse, rest};

#[tokio::test]
async fn silent_client_is_dropped_in_time() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let mut silent = lab.connect().await;
    let began = Instant::now();
    assert_eq!(rest(&mut silent).await, "");
    assert!(
        began.elapsed() >= LIMITS.request / 2,
        "{:?}",
        began.elapsed()
    );
    assert!(began.elapsed() < DEADLINE);
}

#[tokio::test]
async fn silent_clients_beyond_the_bound_hold_up_nobody() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let mut silent = Vec::new();
    for _ in 0..3 * LIMITS.connections {
        silent.push(lab.connect().await);
        let began = Instant::now();
        assert_eq!(lab.get("/v1/status").await.0, 200);
        assert!(began.elapsed() < DEADLINE);
    }
}

#[tokio::test]
async fn client_that_stalls_within_its_header_is_dropped() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let mut stalled = lab.connect().await;
    stalled
        .write_all(b"GET /v1/status HTTP/1.1\r\nHo")
        .await
        .unwrap();
    let answer = rest(&mut stalled).await;
    assert!(!answer.contains("200"), "{answer}");
}

#[tokio::test]
async fn clients_that_stall_within_their_bodies_are_answered_408_and_hold_up_nobody() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let head = b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{";
    let mut stalled = lab.connect().await;
    stalled.write_all(head).await.unwrap();
    assert_eq!(parse(&rest(&mut stalled).await).0, 408);
    let mut many = Vec::new();
    for _ in 0..LIMITS.connections {
        let mut stalled = lab.connect().await;
        stalled.write_all(head).await.unwrap();
        many.push(stalled);
    }
    assert_eq!(lab.get("/v1/status").await.0, 200);
}

#[tokio::test]
async fn oversized_body_is_refused_unread() {
    let (lab, mut asked) = Lab::silent().await;
    let (code, answer) = lab.post("/v1/reload", &" ".repeat(64 * 1024 + 1)).await;
    assert_eq!(code, 413);
    assert!(answer["error"].is_string(), "{answer}");
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn oversized_header_is_refused() {
    let lab = Lab::with(Enforcement::Policy, |_| {}).await;
    let mut stream = lab.connect().await;
    let request = format!(
        "GET /v1/status HTTP/1.1\r\nHost: {}\r\n\r\n",
        "x".repeat(64 * 1024)
    );
    // The server may hang up before it has everything.
    let _cut = stream.write_all(request.as_bytes()).await;
    let answer = rest(&mut stream).await;
    assert!(!answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn loop_that_does_not_answer_is_given_up_and_reading_goes_on() {
    let (lab, _asked) = Lab::silent().await;
    let (code, answer) = lab.post("/v1/reload", r#"{"wait": true}"#).await;
    assert_eq!(code, 503);
    assert!(answer["error"].is_string(), "{answer}");
    assert_eq!(lab.get("/v1/policy").await.0, 503);
    assert_eq!(lab.get("/v1/status").await.0, 200);
}

#[tokio::test]
async fn loop_that_has_ended_is_said_at_once() {
    let (lab, asked) = Lab::silent().await;
    drop(asked);
    assert_eq!(lab.get("/v1/policy").await.0, 503);
}

#[tokio::test]
async fn nonsense_is_refused() {
    let (lab, mut asked) = Lab::silent().await;
    assert_eq!(lab.get("/v1/nothing").await.0, 404);
    assert_eq!(lab.get("/v1/reload").await.0, 405);
    assert_eq!(lab.post("/v1/status", "").await.0, 405);
    for body in ["{", "[]", r#"{"acept_shrink": true}"#, r#"{"wait": 1}"#] {
        assert_eq!(lab.post("/v1/reload", body).await.0, 400, "{body}");
    }
    assert!(asked.try_recv().is_err());
}
