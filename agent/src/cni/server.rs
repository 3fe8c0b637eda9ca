//! The agent's socket for the plugin: takes one line, puts it to the loop, and gives one line back.
//!
//! Nothing is decided here; `waiting` keeps those for whom a step has to come first.

use super::{Answer, Request, SOCKET};
use crate::config::Config;
use crate::run::Wake;
use anyhow::Context;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// Longest request.
const MOST_BYTES: u64 = 16 << 20;
/// Within this a request has to have come, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens until the process ends.
pub(crate) fn serve(config: &Config, wake: mpsc::Sender<Wake>) -> anyhow::Result<()> {
    let path = config.run_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("{} cannot be replaced", path.display()));
        }
        _ => {}
    }
    let socket = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        loop {
            match socket.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(stream, wake.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "a plugin could not be listened to");
                    // Too many open files: accepting at once again would spin.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: UnixStream, wake: mpsc::Sender<Wake>) {
    let (reading, mut writing) = stream.split();
    let mut line = String::new();
    let mut reading = BufReader::new(reading.take(MOST_BYTES));
    let said = match tokio::time::timeout(PATIENCE, reading.read_line(&mut line)).await {
        Ok(Ok(1..)) => match serde_json::from_str::<Request>(&line) {
            Ok(request) => put(request, &wake).await,
            Err(error) => Answer::Not { why: format!("the agent cannot read the request: {error}") },
        },
        // Somebody looked whether anybody listens.
        _ => return,
    };
    let mut text = serde_json::to_vec(&said).expect("an answer is plain data");
    text.push(b'\n');
    // Who asked may have gone.
    let _ = tokio::time::timeout(PATIENCE, writing.write_all(&text)).await;
}

async fn put(request: Request, wake: &mpsc::Sender<Wake>) -> Answer {
    let (answer, told) = oneshot::channel();
    let stopping = || Answer::Not { why: "the agent is stopping".to_owned() };
    if wake.send(Wake::Cni(Box::new(request), answer)).await.is_err() {
        return stopping();
    }
    told.await.unwrap_or_else(|_| stopping())
}
