//! Sockets of pods: servers that are listening when their constructor returns, clients with deadlines.
//!
//! Nothing here sleeps, and every wait has an end: what a policy denies shows as [`NoAnswer::TimedOut`].

mod datagrams;
mod icmp;
mod server;
mod tcp;
mod udp;

use std::io;
use std::time::Duration;

pub use datagrams::Datagrams;
pub use icmp::ping;
pub use server::Server;
pub use tcp::{Tcp, connect, connect_from, tcp_exchange};
pub use udp::{UdpClient, udp_exchange};

/// How long a test waits before it calls something denied: long against the microseconds that an answer takes.
pub const PATIENCE: Duration = Duration::from_millis(400);

/// Why nothing came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoAnswer {
    /// Silence until the deadline: the packet or its answer was dropped.
    TimedOut,
    /// The other machine is there, the port is not.
    Refused,
    /// No route, or a router said so.
    Unreachable,
    /// A live connection was reset by the other side.
    Reset,
    /// A live connection was closed by the other side.
    Closed,
    /// Something came back, but not what was sent.
    Garbled,
    /// The operating system refuses for another reason.
    Failed(io::ErrorKind),
}

/// What a client got.
pub type Answer<T = ()> = Result<T, NoAnswer>;

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            io::ErrorKind::UnexpectedEof => Self::Closed,
            kind => Self::Failed(kind),
        }
    }
}

/// What is left until a deadline; an error once it has passed.
fn remaining(deadline: std::time::Instant) -> Answer<Duration> {
    let left = deadline.saturating_duration_since(std::time::Instant::now());
    if left.is_zero() { Err(NoAnswer::TimedOut) } else { Ok(left) }
}
