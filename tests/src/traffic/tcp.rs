//! TCP clients: connections that tests open, use in the middle of changes, and close.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::{Answer, NoAnswer, remaining};
use crate::lab::Netns;

/// An open connection to an echo server.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    /// Makes every message another one, so that a late answer is not taken for the present one.
    messages: u32,
}

/// Opens a connection from any port.
pub fn connect(netns: &Netns, to: SocketAddr, patience: Duration) -> Answer<Tcp> {
    connect_from(netns, None, to, patience)
}

/// Opens a connection from a port, if one is given.
pub fn connect_from(netns: &Netns, local: Option<SocketAddr>, to: SocketAddr, patience: Duration) -> Answer<Tcp> {
    let socket = netns.run(|| Socket::new(Domain::for_address(to), Type::STREAM, None));
    let socket = socket.expect("a client can enter its namespace")?;
    if let Some(local) = local {
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    socket.set_tcp_nodelay(true)?;
    Ok(Tcp { stream: socket.into(), messages: 0 })
}

/// One exchange on a connection of its own.
pub fn tcp_exchange(netns: &Netns, to: SocketAddr, patience: Duration) -> Answer {
    connect(netns, to, patience)?.exchange(patience)
}

impl Tcp {
    /// Sends a message and waits for its echo.
    ///
    /// After [`NoAnswer::TimedOut`] the message is still on its way and can be answered later: use another connection,
    /// or another exchange, which passes over it.
    pub fn exchange(&mut self, patience: Duration) -> Answer {
        let deadline = Instant::now() + patience;
        self.messages += 1;
        let message = format!("message {:08}\n", self.messages);
        self.stream.set_write_timeout(Some(patience))?;
        self.stream.write_all(message.as_bytes())?;
        let mut answer = vec![0; message.len()];
        loop {
            let mut filled = 0;
            while filled < answer.len() {
                self.stream.set_read_timeout(Some(remaining(deadline)?))?;
                match self.stream.read(&mut answer[filled..])? {
                    0 => return Err(NoAnswer::Closed),
                    length => filled += length,
                }
            }
            if answer == message.as_bytes() {
                return Ok(());
            }
            // All messages are of one length, so an answer to an earlier one ends where this one begins.
            if !answer.starts_with(b"message ") {
                return Err(NoAnswer::Garbled);
            }
        }
    }

    /// The client's end.
    pub fn local(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket has an address")
    }

    /// The plain stream, for anything else.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}
