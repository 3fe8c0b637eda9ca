//! An uninstallation as a pod of the DaemonSet: it takes everything off the node, says so on the agent's port, and stays,
//! as a pod that ended would be started again.

use super::{Done, node};
use crate::config::Config;
use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Between two attempts: somebody may mend what stood in the way.
const AGAIN: Duration = Duration::from_secs(2);

/// Uninstalls until nothing is left and then waits to be ended. `/readyz` says what is in the way.
pub async fn stay(config: Config) -> anyhow::Result<()> {
    let left = Arc::new(Mutex::new(Some("it has only begun".to_owned())));
    let port = tokio::net::TcpListener::bind(config.metrics_listen)
        .await
        .with_context(|| format!("cannot listen on {} (--metrics-listen)", config.metrics_listen))?;
    let told = Arc::clone(&left);
    let ready = move || async move {
        match &*told.lock().expect("nobody panics while telling") {
            None => (StatusCode::OK, "nothing of reeve is left on this node\n".to_owned()),
            Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("reeve is not off this node yet: {what}\n")),
        }
    };
    let answers = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready));
    tokio::spawn(async move { axum::serve(port, answers).await });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut again = tokio::time::interval(AGAIN);
    let mut is_done = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = again.tick(), if !is_done => {
                let config = config.clone();
                let tried = tokio::task::spawn_blocking(move || node(&config)).await?;
                let what = match tried {
                    Ok(done) => {
                        done.lines().iter().for_each(|line| println!("{line}"));
                        done.complaint()
                    }
                    Err(error) => Some(format!("{error:#}")),
                };
                if let Some(what) = &what {
                    tracing::warn!(what, "not everything could be taken off this node");
                }
                is_done = what.is_none();
                *left.lock().expect("nobody panics while telling") = what;
            }
        }
    }
}

impl Done {
    /// What is left, in one clause.
    fn complaint(&self) -> Option<String> {
        let all: Vec<String> =
            self.complaints.iter().map(|(path, what)| format!("{}: {what}", path.display())).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}
