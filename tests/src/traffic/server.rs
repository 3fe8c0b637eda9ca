//! Servers that send back what they receive, one thread each.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::lab::Netns;

/// Who came, as seen from the server, in the order of their connections or datagrams.
type Clients = Arc<Mutex<Vec<SocketAddr>>>;

/// A server that echoes; it stops, and its connections close, when it is dropped.
pub struct Server {
    address: SocketAddr,
    clients: Clients,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A TCP server; it listens when this returns. Port 0 takes any.
    pub fn tcp(netns: &Netns, address: IpAddr, port: u16) -> anyhow::Result<Self> {
        let listener = netns.run(|| TcpListener::bind((address, port)))?;
        let listener = listener.with_context(|| format!("cannot listen on {address} port {port}"))?;
        listener.set_nonblocking(true)?;
        Self::start(listener.local_addr()?, move |stop, clients| serve_tcp(&listener, stop, clients))
    }

    /// A UDP server; its socket is bound when this returns. Port 0 takes any.
    pub fn udp(netns: &Netns, address: IpAddr, port: u16) -> anyhow::Result<Self> {
        let socket = netns.run(|| UdpSocket::bind((address, port)))?;
        let socket = socket.with_context(|| format!("cannot bind {address} port {port}"))?;
        socket.set_nonblocking(true)?;
        Self::start(socket.local_addr()?, move |stop, clients| serve_udp(&socket, stop, clients, Answers::Echo))
    }

    /// A UDP server that only notes who came.
    pub fn sink(netns: &Netns, address: IpAddr, port: u16) -> anyhow::Result<Self> {
        let socket = netns.run(|| UdpSocket::bind((address, port)))?;
        let socket = socket.with_context(|| format!("cannot bind {address} port {port}"))?;
        socket.set_nonblocking(true)?;
        Self::start(socket.local_addr()?, move |stop, clients| serve_udp(&socket, stop, clients, Answers::Nothing))
    }

    fn start(
        address: SocketAddr,
        serve: impl FnOnce(&OwnedFd, &Clients) -> io::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let theirs = stop.try_clone()?;
        let clients = Clients::default();
        let noted = Arc::clone(&clients);
        let thread = std::thread::Builder::new().name(format!("echo {address}")).spawn(move || {
            if let Err(error) = serve(&theirs, &noted) {
                eprintln!("the echo server on {address} stops: {error}");
            }
        })?;
        Ok(Self { address, clients, stop, thread: Some(thread) })
    }

    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who has come since this was asked last, as the server sees them. Whoever has an answer is in it.
    pub fn clients(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.clients.lock().expect("no thread panics while it holds the clients"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| told) {
            // A server thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: &OwnedFd, clients: &Clients) -> io::Result<()> {
    let mut connections: Vec<TcpStream> = Vec::new();
    loop {
        let mut waiting = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        waiting
            .extend(connections.iter().map(|connection| PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN)));
        poll(&mut waiting, None)?;
        let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return Ok(());
        }
        let mut is_ready = ready[2..].iter();
        connections.retain_mut(|connection| !is_ready.next().copied().unwrap_or(false) || echo(connection).is_ok());
        if ready[1] {
            match listener.accept() {
                Ok((connection, client)) => {
                    note(clients, client);
                    connection.set_nodelay(true)?;
                    connections.push(connection);
                }
                // The client gave up between the poll and the accept.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn note(clients: &Clients, client: SocketAddr) {
    clients.lock().expect("no thread panics while it holds the clients").push(client);
}

/// Sends back what there is; an error ends the connection.
fn echo(connection: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; 4096];
    let length = connection.read(&mut bytes)?;
    if length == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    connection.write_all(&bytes[..length])
}

/// What a UDP server sends back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    Echo,
    Nothing,
}

fn serve_udp(socket: &UdpSocket, stop: &OwnedFd, clients: &Clients, answers: Answers) -> io::Result<()> {
    let mut bytes = vec![0; 65_536];
    loop {
        let mut waiting = [PollFd::new(stop, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        poll(&mut waiting, None)?;
        if !waiting[0].revents().is_empty() {
            return Ok(());
        }
        // An error here is news about an answer that could not be delivered: the client's matter.
        if let Ok((length, client)) = socket.recv_from(&mut bytes) {
            note(clients, client);
            if answers == Answers::Echo {
                let _ = socket.send_to(&bytes[..length], client);
            }
        }
    }
}
