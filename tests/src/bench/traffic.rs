//! Traffic that is timed: from one pod of a node to another, a few ms at a time, so that sides can take turns.
//!
//! Client and server share a thread, which never sleeps: on a busy core a packet's whole way is in the calls of the
//! sender, and nothing of it is the waking of somebody.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Socket, Type};

use super::offload::{self, Offload};
use super::policies::{TCP_PORT, UDP_PORT};
use super::side::Side;
use crate::lab::Pod;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a datagram, a request and a response.
const MESSAGE: [u8; 64] = [7; 64];
/// Datagrams between two readings of the clock, and such batches in a slice.
const DATAGRAMS: (u32, u32) = (32, 20);
/// Slices of each side in a round.
pub const SLICES: usize = 25;
/// Slices that are not counted, before those.
pub const WARMING: usize = 3;
/// Requests in a slice.
const REQUESTS: u32 = 100;
/// Connections in a slice.
const CONNECTIONS: usize = 20;
/// Bytes of one write, which are read before the next one.
const WRITE: usize = 64 << 10;
/// Writes of one sample, a MiB.
const WRITES: u32 = 16;
/// Buffers of connections, in bytes: left alone, each connection would come to a size of its own.
static BUFFER: libc::c_int = 1 << 20;
/// Samples in a slice.
const MEBIBYTES: u32 = 4;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `send()` of a datagram that nobody answers.
    UdpSend,
    /// A request and its response on an open connection.
    TcpRequest,
    /// Connecting, a request, its response and closing.
    TcpConnect,
    /// Bytes through one connection whose segments are large until the receiver.
    TcpThroughput,
    /// The same in packets of the wire's size.
    TcpThroughputNoTso,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::UdpSend, Self::TcpRequest, Self::TcpConnect, Self::TcpThroughput, Self::TcpThroughputNoTso];

    /// In names of measures.
    pub fn word(self) -> &'static str {
        match self {
            Self::UdpSend => "udp-send",
            Self::TcpRequest => "tcp-request",
            Self::TcpConnect => "tcp-connect",
            Self::TcpThroughput => "tcp-throughput",
            Self::TcpThroughputNoTso => "tcp-throughput-no-tso",
        }
    }

    /// Whether more is better.
    pub fn is_throughput(self) -> bool {
        matches!(self, Self::TcpThroughput | Self::TcpThroughputNoTso)
    }
}

/// One side's traffic of a kind.
pub struct Line(Ends);

enum Ends {
    Datagrams { sender: UdpSocket, receiver: UdpSocket },
    Requests { client: TcpStream, server: TcpStream },
    Connections { client: Pod, listener: TcpListener, to: SocketAddr },
    Bytes { client: TcpStream, server: TcpStream, block: Vec<u8> },
}

impl Line {
    /// Opens what the traffic needs on a side.
    pub fn open(side: &Side, kind: Kind) -> anyhow::Result<Self> {
        let (client, server) = (&side.client, &side.server);
        let to = SocketAddr::new(server.v4(), TCP_PORT);
        if kind == Kind::UdpSend {
            let receiver = server.netns().run(|| UdpSocket::bind((server.v4(), UDP_PORT)))??;
            let sender = client.netns().run(|| UdpSocket::bind((client.v4(), 0)))??;
            sender.connect((server.v4(), UDP_PORT))?;
            for socket in [&receiver, &sender] {
                socket.set_read_timeout(Some(PATIENCE))?;
            }
            return Ok(Self(Ends::Datagrams { sender, receiver }));
        }
        let listener = server.netns().run(|| listen(to))??;
        if kind == Kind::TcpConnect {
            return Ok(Self(Ends::Connections { client: client.clone(), listener, to }));
        }
        let offload = if kind == Kind::TcpThroughputNoTso { Offload::Off } else { Offload::On };
        for pod in [client, server] {
            offload::set(pod.netns(), "eth0", offload)?;
        }
        let stream = client.netns().run(|| connect(to))??;
        let (peer, _) = listener.accept()?;
        for stream in [&stream, &peer] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
        }
        if kind == Kind::TcpRequest {
            return Ok(Self(Ends::Requests { client: stream, server: peer }));
        }
        Ok(Self(Ends::Bytes { client: stream, server: peer, block: vec![7; WRITE] }))
    }

    /// Adds samples in ns: of one `send()`, one exchange, one connection, or one MiB.
    pub fn slice(&mut self, samples: &mut Vec<f64>) -> anyhow::Result<()> {
        match &mut self.0 {
            Ends::Datagrams { sender, receiver } => datagrams(sender, receiver, samples),
            Ends::Requests { client, server } => requests(client, server, samples),
            Ends::Connections { client, listener, to } => connections(client, listener, *to, samples),
            Ends::Bytes { client, server, block } => {
                for _ in 0..MEBIBYTES {
                    let begun = Instant::now();
                    for _ in 0..WRITES {
                        client.write_all(block)?;
                        server.read_exact(block).context("bytes are lost")?;
                    }
                    samples.push(ns_since(begun));
                }
                Ok(())
            }
        }
    }
}

fn listen(at: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    fix_buffers(&socket)?;
    socket.bind(&at.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    fix_buffers(&socket)?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

/// Beyond what ordinary processes may ask for.
fn fix_buffers(socket: &Socket) -> anyhow::Result<()> {
    for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
        let length = libc::socklen_t::try_from(size_of_val(&BUFFER))?;
        // SAFETY: the option's value is a number of that length, which outlives the call.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const BUFFER).cast(), length)
        };
        anyhow::ensure!(result == 0, "cannot set a buffer's size: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

fn ns_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e9
}

fn datagrams(sender: &UdpSocket, receiver: &UdpSocket, samples: &mut Vec<f64>) -> anyhow::Result<()> {
    let mut bytes = MESSAGE;
    // Connection tracking calls `established` what has been answered.
    sender.send(&MESSAGE)?;
    let (_, client) = receiver.recv_from(&mut bytes).context("a datagram is lost")?;
    receiver.send_to(&MESSAGE, client)?;
    sender.recv(&mut bytes).context("an answer is lost")?;
    for _ in 0..DATAGRAMS.1 {
        let begun = Instant::now();
        for _ in 0..DATAGRAMS.0 {
            sender.send(&MESSAGE)?;
        }
        samples.push(ns_since(begun) / f64::from(DATAGRAMS.0));
        for _ in 0..DATAGRAMS.0 {
            receiver.recv(&mut bytes).context("a datagram is lost")?;
        }
    }
    Ok(())
}

fn requests(client: &mut TcpStream, server: &mut TcpStream, samples: &mut Vec<f64>) -> anyhow::Result<()> {
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        exchange(client, server)?;
        samples.push(ns_since(begun));
    }
    Ok(())
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> anyhow::Result<()> {
    let mut bytes = MESSAGE;
    client.write_all(&MESSAGE)?;
    server.read_exact(&mut bytes)?;
    server.write_all(&MESSAGE)?;
    Ok(client.read_exact(&mut bytes)?)
}

fn connections(client: &Pod, listener: &TcpListener, to: SocketAddr, samples: &mut Vec<f64>) -> anyhow::Result<()> {
    let sockets = client.netns().run(|| {
        (0..CONNECTIONS).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None)).collect::<Result<Vec<_>, _>>()
    })??;
    let to = to.into();
    for socket in sockets {
        let begun = Instant::now();
        socket.connect(&to)?;
        let mut stream = TcpStream::from(socket);
        let (mut peer, _) = listener.accept()?;
        exchange(&mut stream, &mut peer)?;
        drop(stream);
        let rest = peer.read(&mut [0])?;
        drop(peer);
        samples.push(ns_since(begun));
        anyhow::ensure!(rest == 0, "the client sends more than a request");
    }
    Ok(())
}

/// Keeps the calling thread on one core while it lives; whom it starts meanwhile stays there too.
pub struct OneCore(CpuSet);

impl OneCore {
    /// The last of the cores that the thread may use.
    pub fn last() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let last = (0..CpuSet::MAX_CPU).rfind(|core| allowed.is_set(*core)).context("no core is allowed")?;
        let mut one = CpuSet::new();
        one.set(last);
        sched_setaffinity(None, &one).context("cannot stay on one core")?;
        Ok(Self(allowed))
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        // What was allowed before still is, or the thread stays where it is.
        let _ = sched_setaffinity(None, &self.0);
    }
}
