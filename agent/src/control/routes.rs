//! Paths, methods and messages.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use gate25_common::bypass::MAX_TICKET;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;

use super::messages::{
    self, DecisionRequest, Failure, LONGEST_BYPASS, LONGEST_TRIAL, Reload, ReloadRequest,
    TrialRequest,
};
use super::{Agent, BypassRequest, Command, Execution, Shrink, Undone, view};
use crate::chain::in_full;
use crate::figures::{Figures, FiguresError};

const TRIAL: &str = "/v1/trial";
const CONFIRM: &str = "/v1/confirm";
const UNDO: &str = "/v1/undo";
const BYPASS: &str = "/v1/bypass";
/// What opens more than the files say, or what they no longer say: not for members of the group.
pub(super) const OF_ROOT: [&str; 4] = [TRIAL, CONFIRM, UNDO, BYPASS];

#[derive(Clone)]
struct Desk {
    agent: Agent,
    reply: Duration,
}

/// All paths. The agent's loop has `reply` to answer.
pub(super) fn router(agent: Agent, reply: Duration) -> Router {
    let refuse = || async { failure(StatusCode::METHOD_NOT_ALLOWED, "not with this method") };
    Router::new()
        .route("/v1/status", get(status).fallback(refuse))
        .route("/v1/workloads", get(workloads).fallback(refuse))
        .route("/v1/customers", get(customers).fallback(refuse))
        .route("/v1/exemptions", get(exemptions).fallback(refuse))
        .route("/v1/findings", get(findings).fallback(refuse))
        .route("/v1/policy", get(policy).fallback(refuse))
        .route("/v1/reload", post(reload).fallback(refuse))
        .route(TRIAL, post(trial).fallback(refuse))
        .route(CONFIRM, post(confirm).fallback(refuse))
        .route(UNDO, post(undo).fallback(refuse))
        .route(BYPASS, post(bypass).fallback(refuse))
        .fallback(|| async { failure(StatusCode::NOT_FOUND, "there is nothing here") })
        .with_state(Desk { agent, reply })
}

async fn status(State(desk): State<Desk>) -> Response {
    let Agent {
        status, constants, ..
    } = desk.agent.clone();
    let now = Timestamp::now();
    let counters = figures(&desk.agent, |it| Ok((it.host()?, it.returns()?))).await;
    if let Err(error) = &counters {
        warn!(error, "status without counters");
    }
    let bypass = figures(&desk.agent, |it| it.bypass()).await;
    let counters = counters.as_ref().ok();
    success(&view::status(
        status.get(),
        &constants,
        counters,
        bypass,
        now,
    ))
}

async fn workloads(State(desk): State<Desk>) -> Response {
    let Agent {
        status, constants, ..
    } = &desk.agent;
    success(&view::workloads(&status.get(), constants))
}

async fn customers(State(desk): State<Desk>) -> Response {
    let status = desk.agent.status.get();
    let now = Timestamp::now();
    let listed = figures(&desk.agent, move |figures| {
        view::customers(&status, now, |id| figures.customer(id))
    });
    match listed.await {
        Ok(customers) => success(&customers),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn exemptions(State(desk): State<Desk>) -> Response {
    let status = desk.agent.status.get();
    success(&view::exemptions(&status.policy, Timestamp::now()))
}

async fn findings(State(desk): State<Desk>) -> Response {
    success(&desk.agent.status.read(view::findings))
}

async fn policy(State(desk): State<Desk>) -> Response {
    let (reply, answer) = oneshot::channel();
    match desk.ask(Command::Policy { reply }, answer).await {
        Ok(policy) => success(&view::policy(policy)),
        Err(busy) => busy,
    }
}

async fn reload(State(desk): State<Desk>, body: Bytes) -> Response {
    let ReloadRequest {
        accept_shrink,
        dry_run,
        wait,
        take_undone,
    } = match request_or_default(&body) {
        Ok(request) => request,
        Err(refused) => return *refused,
    };
    let (reply, answer) = oneshot::channel();
    let command = Command::Reload {
        confirm_within: None,
        shrink: shrink(accept_shrink),
        execution: execution(dry_run),
        undone: match take_undone {
            true => Undone::Taken,
            false => Undone::Held,
        },
        reply,
    };
    if !wait && !dry_run {
        return match desk.send(command).await {
            Ok(()) => {
                let trial = desk.agent.status.read(view::on_trial);
                message(StatusCode::ACCEPTED, &Reload::Accepted { trial })
            }
            Err(busy) => busy,
        };
    }
    match desk.ask(command, answer).await {
        Ok(outcome) => success(&view::reload(outcome)),
        Err(busy) => busy,
    }
}

async fn trial(State(desk): State<Desk>, body: Bytes) -> Response {
    let (seconds, accept_shrink) = match request(&body) {
        Ok(TrialRequest {
            seconds: seconds @ 1..=LONGEST_TRIAL,
            accept_shrink,
        }) => (seconds, accept_shrink),
        Ok(TrialRequest { .. }) => {
            let message = format!("a trial takes 1 to {LONGEST_TRIAL} seconds");
            return failure(StatusCode::BAD_REQUEST, message);
        }
        Err(refused) => return *refused,
    };
    let (reply, answer) = oneshot::channel();
    let command = Command::Reload {
        confirm_within: Some(Duration::from_secs(seconds)),
        shrink: shrink(accept_shrink),
        execution: Execution::Apply,
        // Whoever tries them again has heard that they were undone.
        undone: Undone::Taken,
        reply,
    };
    match desk.ask(command, answer).await {
        Ok(outcome) => success(&view::reload(outcome)),
        Err(busy) => busy,
    }
}

fn shrink(accepted: bool) -> Shrink {
    match accepted {
        true => Shrink::Accepted,
        false => Shrink::Refused,
    }
}

fn execution(dry_run: bool) -> Execution {
    match dry_run {
        true => Execution::DryRun,
        false => Execution::Apply,
    }
}

async fn confirm(State(desk): State<Desk>, body: Bytes) -> Response {
    let execution = match request_or_default(&body) {
        Ok(DecisionRequest { dry_run }) => execution(dry_run),
        Err(refused) => return *refused,
    };
    let (reply, answer) = oneshot::channel();
    let command = Command::Confirm { execution, reply };
    match desk.ask(command, answer).await {
        Ok(outcome) => success(&view::trial(outcome)),
        Err(busy) => busy,
    }
}

async fn bypass(State(desk): State<Desk>, body: Bytes) -> Response {
    let request = match request(&body) {
        Ok(messages::BypassRequest {
            seconds: Some(seconds @ 1..=LONGEST_BYPASS),
            ticket: Some(ticket),
        }) if !ticket.trim().is_empty() && ticket.len() <= MAX_TICKET => BypassRequest::Begin {
            within: Duration::from_secs(seconds),
            ticket,
        },
        Ok(messages::BypassRequest {
            seconds: None,
            ticket: None,
        }) => BypassRequest::End,
        Ok(_) => {
            let message = format!(
                "a bypass takes 1 to {LONGEST_BYPASS} seconds and a ticket of at most {MAX_TICKET} bytes"
            );
            return failure(StatusCode::BAD_REQUEST, message);
        }
        Err(refused) => return *refused,
    };
    let (reply, answer) = oneshot::channel();
    match desk.ask(Command::Bypass { request, reply }, answer).await {
        Ok(Ok(())) => status(State(desk)).await,
        Ok(Err(why)) => failure(StatusCode::CONFLICT, why),
        Err(busy) => busy,
    }
}

async fn undo(State(desk): State<Desk>, body: Bytes) -> Response {
    let execution = match request_or_default(&body) {
        Ok(DecisionRequest { dry_run }) => execution(dry_run),
        Err(refused) => return *refused,
    };
    let (reply, answer) = oneshot::channel();
    match desk.ask(Command::Undo { execution, reply }, answer).await {
        Ok(outcome) => success(&view::trial(outcome)),
        Err(busy) => busy,
    }
}

/// The same where nothing asks for what is usual.
fn request_or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Box<Response>> {
    match body.is_empty() {
        true => Ok(T::default()),
        false => request(body),
    }
}

/// What a body asks for, or the answer to one that asks for nothing that there is.
fn request<T: DeserializeOwned>(body: &[u8]) -> Result<T, Box<Response>> {
    // Not at once: serde takes an array for an object, by position.
    let object = serde_json::from_slice(body);
    let request = object.and_then(|object| serde_json::from_value(Value::Object(object)));
    request.map_err(|error| {
        let message = format!("the body is no such request: {error}");
        Box::new(failure(StatusCode::BAD_REQUEST, message))
    })
}

impl Desk {
    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T, Response> {
        let asked = async {
            self.agent.commands.send(command).await.ok()?;
            answer.await.ok()
        };
        self.in_time(asked).await
    }

    async fn send(&self, command: Command) -> Result<(), Response> {
        let sent = async { self.agent.commands.send(command).await.ok() };
        self.in_time(sent).await
    }

    async fn in_time<T>(&self, asked: impl Future<Output = Option<T>>) -> Result<T, Response> {
        match timeout(self.reply, asked).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(failure(
                StatusCode::SERVICE_UNAVAILABLE,
                "the agent is stopping",
            )),
            Err(_elapsed) => Err(failure(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("the agent did not answer in {:?}", self.reply),
            )),
        }
    }
}

/// Reads counters where that may block.
async fn figures<T: Send + 'static>(
    agent: &Agent,
    read: impl FnOnce(&dyn Figures) -> Result<T, FiguresError> + Send + 'static,
) -> Result<T, String> {
    let figures = Arc::clone(&agent.figures);
    match spawn_blocking(move || read(&*figures)).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(in_full(&error)),
        Err(error) => Err(in_full(&error)),
    }
}

fn success(content: &impl Serialize) -> Response {
    message(StatusCode::OK, content)
}

/// The answer to what comes to nothing.
pub(super) fn failure(status: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into();
    message(status, &Failure { error })
}

fn message(status: StatusCode, content: &impl Serialize) -> Response {
    let json = [(CONTENT_TYPE, "application/json")];
    match serde_json::to_vec(content) {
        Ok(body) => (status, json, body).into_response(),
        Err(error) => {
            let text = error.to_string();
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}
