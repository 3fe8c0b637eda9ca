//! The agent's socket: HTTP over a Unix socket, answers as JSON, streams as lines.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// An agent that answers does so at once; one that has not begun by then hangs.
const PATIENCE: Duration = Duration::from_secs(10);
const DEFAULT: &str = "/run/reeve/agent.sock";

/// Which agent is asked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SocketArgs {
    /// The agent's socket [default: `$REEVE_SOCKET`, or /run/reeve/agent.sock]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

impl SocketArgs {
    /// The agent.
    pub(crate) fn agent(&self) -> Agent {
        let named = self
            .socket
            .clone()
            .or_else(|| std::env::var_os("REEVE_SOCKET").filter(|named| !named.is_empty()).map(PathBuf::from));
        Agent { socket: named.unwrap_or_else(|| PathBuf::from(DEFAULT)) }
    }
}

/// The agent behind a socket.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    socket: PathBuf,
}

/// Why an agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Nobody listens.
    #[error("no agent answers at {} (is reeve-agent running on this node? --socket names another path)", socket.display())]
    Connect { socket: PathBuf, source: std::io::Error },
    /// It does not answer.
    #[error("the agent at {} has not answered GET {path} within {} s", socket.display(), PATIENCE.as_secs())]
    Silent { socket: PathBuf, path: String },
    /// The conversation broke off.
    #[error("the agent at {} broke off while it answered GET {path}", socket.display())]
    Broken { socket: PathBuf, path: String, source: hyper::Error },
    /// It refused.
    #[error("the agent at {} answers GET {path} with {status}: {body}", socket.display())]
    Refused { socket: PathBuf, path: String, status: StatusCode, body: String },
    /// The answer is not what it should be.
    #[error("the agent at {} answers GET {path} with something that is not understood", socket.display())]
    Form { socket: PathBuf, path: String, source: serde_json::Error },
    /// No event loop could be made.
    #[error("cannot wait for the agent")]
    Runtime(#[source] std::io::Error),
}

impl Agent {
    /// The whole answer.
    pub(crate) fn get(&self, path: &str) -> Result<serde_json::Value, SocketError> {
        runtime()?.block_on(async {
            let answer = async {
                let response = self.open(path).await?;
                response.into_body().collect().await.map_err(|source| self.broken(path, source))
            };
            let body = self.in_time(path, answer).await?.to_bytes();
            serde_json::from_slice(&body).map_err(|source| self.form(path, source))
        })
    }

    /// The answer line by line as it comes, until it ends or `each` fails. An unfinished last line is handed out too.
    pub(crate) fn lines<E: From<SocketError>>(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        runtime()?.block_on(async {
            let mut body = self.in_time(path, self.open(path)).await?.into_body();
            let mut waiting: Vec<u8> = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|source| self.broken(path, source))?;
                let Ok(data) = frame.into_data() else { continue };
                waiting.extend_from_slice(&data);
                if let Some(end) = waiting.iter().rposition(|byte| *byte == b'\n') {
                    let whole: Vec<u8> = waiting.drain(..=end).collect();
                    String::from_utf8_lossy(&whole).lines().try_for_each(&mut each)?;
                }
            }
            if waiting.is_empty() { Ok(()) } else { each(&String::from_utf8_lossy(&waiting)) }
        })
    }

    /// An answer that does not look as it should.
    pub(crate) fn form(&self, path: &str, source: serde_json::Error) -> SocketError {
        SocketError::Form { socket: self.socket.clone(), path: path.to_owned(), source }
    }

    async fn open(&self, path: &str) -> Result<Response<Incoming>, SocketError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| SocketError::Connect { socket: self.socket.clone(), source })?;
        let broken = |source| self.broken(path, source);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(hyper::header::HOST, "agent")
            .body(Empty::<Bytes>::new())
            .expect("paths are written in this program");
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        let body = String::from_utf8_lossy(&body).trim().to_owned();
        Err(SocketError::Refused { socket: self.socket.clone(), path: path.to_owned(), status, body })
    }

    async fn in_time<T>(
        &self,
        path: &str,
        answer: impl Future<Output = Result<T, SocketError>>,
    ) -> Result<T, SocketError> {
        let silent = |_| SocketError::Silent { socket: self.socket.clone(), path: path.to_owned() };
        tokio::time::timeout(PATIENCE, answer).await.map_err(silent)?
    }

    fn broken(&self, path: &str, source: hyper::Error) -> SocketError {
        SocketError::Broken { socket: self.socket.clone(), path: path.to_owned(), source }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, SocketError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SocketError::Runtime)
}
