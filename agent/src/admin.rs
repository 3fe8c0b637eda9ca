//! The socket for questions, and the port for metrics and health. Neither changes anything; `sync` only hastens.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::records::Live;
use crate::run::{Question, Wake};
use anyhow::Context;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, oneshot};

#[derive(Clone)]
struct Shared {
    wake: mpsc::Sender<Wake>,
    live: Live,
    metrics: Arc<Metrics>,
}

/// Listens on both and serves until the process ends.
pub(crate) async fn serve(
    config: &Config,
    wake: mpsc::Sender<Wake>,
    live: Live,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let shared = Shared { wake, live, metrics };
    let open =
        Router::new().route("/metrics", get(metrics_text)).route("/healthz", get(health)).route("/readyz", get(ready));
    let private = open
        .clone()
        .route("/status", get(|shared: State<Shared>| ask(shared, Question::Status)))
        .route("/endpoints", get(|shared: State<Shared>| ask(shared, Question::Endpoints)))
        .route("/problems", get(|shared: State<Shared>| ask(shared, Question::Problems)))
        .route("/policies", get(|shared: State<Shared>| ask(shared, Question::Policies)))
        .route("/identities", get(|shared: State<Shared>| ask(shared, Question::Identities)))
        .route("/maps", get(|shared: State<Shared>| ask(shared, Question::Maps)))
        .route("/world", get(|shared: State<Shared>| ask(shared, Question::World)))
        .route("/flows", get(flows))
        .route("/sync", post(sync));
    let path = config.run_dir.join("agent.sock");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("{} cannot be replaced", path.display()));
        }
        _ => {}
    }
    let socket =
        tokio::net::UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let port = tokio::net::TcpListener::bind(config.metrics_listen)
        .await
        .with_context(|| format!("cannot listen on {} (--metrics-listen)", config.metrics_listen))?;
    let on_socket = private.with_state(shared.clone());
    let on_port = open.with_state(shared);
    tokio::spawn(async move { axum::serve(socket, on_socket).await });
    tokio::spawn(async move { axum::serve(port, on_port).await });
    Ok(())
}

/// Puts a question to the loop.
async fn put(shared: &Shared, question: Question) -> Result<Value, Response> {
    let busy = || (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n").into_response();
    let (answer, told) = oneshot::channel();
    shared.wake.send(Wake::Asked(question, answer)).await.map_err(|_| busy())?;
    told.await.map_err(|_| busy())
}

async fn ask(State(shared): State<Shared>, question: Question) -> Response {
    match put(&shared, question).await {
        Ok(value) => Json(value).into_response(),
        Err(response) => response,
    }
}

async fn sync(State(shared): State<Shared>) -> Response {
    match put(&shared, Question::Sync).await {
        Ok(value) if value.get("revision").is_some() => Json(value).into_response(),
        Ok(value) => (StatusCode::GATEWAY_TIMEOUT, Json(value)).into_response(),
        Err(response) => response,
    }
}

async fn metrics_text(State(shared): State<Shared>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.metrics.text()).into_response()
}

/// The process lives and its loop answers.
async fn health(State(shared): State<Shared>) -> Response {
    match put(&shared, Question::Status).await {
        Ok(_) => (StatusCode::OK, "ok\n").into_response(),
        Err(response) => response,
    }
}

async fn ready(State(shared): State<Shared>) -> Response {
    match put(&shared, Question::Status).await {
        Ok(status) if status["ready"] == true => (StatusCode::OK, "ready\n").into_response(),
        Ok(status) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "reasons": status["reasons"] }))).into_response(),
        Err(response) => response,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lines {
    follow: bool,
    tail: Option<usize>,
}

/// The last records, and with `follow` those that come; a slow reader is told how many it missed.
async fn flows(State(shared): State<Shared>, Query(lines): Query<Lines>) -> Response {
    let live = shared.live.follow();
    let wanted = lines.tail.unwrap_or(if lines.follow { 0 } else { usize::MAX });
    let last: String = shared.live.tail(wanted).iter().flat_map(|line| [&**line, "\n"]).collect();
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    if !lines.follow {
        return (kind, last).into_response();
    }
    let (to_reader, from_live) = mpsc::channel::<Result<String, std::convert::Infallible>>(256);
    tokio::spawn(async move {
        if !last.is_empty() && to_reader.send(Ok(last)).await.is_err() {
            return;
        }
        follow(live, to_reader).await;
    });
    (kind, Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(from_live))).into_response()
}

async fn follow(
    mut live: broadcast::Receiver<Arc<str>>,
    to_reader: mpsc::Sender<Result<String, std::convert::Infallible>>,
) {
    loop {
        let text = match live.recv().await {
            Ok(line) => format!("{line}\n"),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                format!("{}\n", reeve_flow::wire::encode_missed(missed).trim_end())
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if to_reader.send(Ok(text)).await.is_err() {
            return;
        }
    }
}
