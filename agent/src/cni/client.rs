//! Asks the agent over its socket: one line each way, every wait bounded.

use super::{Answer, Request};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest answer that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentence of each variant says it")]
pub enum ClientError {
    #[error("nobody listens at the agent's socket")]
    Absent(#[source] io::Error),
    #[error("the agent gives no answer")]
    Silent(#[source] io::Error),
    #[error("the agent's answer cannot be read")]
    Answer(#[source] serde_json::Error),
}

/// Asks and waits for the answer.
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Answer, ClientError> {
    let deadline = Instant::now() + patience;
    let stream = connect(socket, patience).map_err(ClientError::Absent)?;
    let text = exchange(&stream, request, deadline).map_err(ClientError::Silent)?;
    serde_json::from_str(&text).map_err(ClientError::Answer)
}

/// A socket whose queue is full blocks as long as it may take to send.
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn exchange(mut stream: &UnixStream, request: &Request, deadline: Instant) -> io::Result<String> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let left = deadline.saturating_duration_since(Instant::now());
    stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    let mut text = String::new();
    BufReader::new(stream.take(MOST_BYTES)).read_line(&mut text)?;
    if text.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(text) }
}
