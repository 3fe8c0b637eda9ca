//! UDP clients: a datagram is sent again until its echo is there or the deadline has passed.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::{Answer, NoAnswer, remaining};
use crate::lab::Netns;

/// Between two datagrams of one exchange; loss other than by policy is rare in a lab, but a first packet may meet an
/// address that is not resolved yet.
const AGAIN: Duration = Duration::from_millis(120);

/// A socket that talks to one server.
pub struct UdpClient {
    socket: UdpSocket,
    messages: u32,
}

impl UdpClient {
    /// A connected socket, from any port or from the given address.
    pub fn new(netns: &Netns, local: Option<SocketAddr>, to: SocketAddr) -> Answer<Self> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let local = local.unwrap_or(SocketAddr::new(any, 0));
        let socket = netns.run(|| UdpSocket::bind(local)).expect("a client can enter its namespace")?;
        socket.connect(to)?;
        Ok(Self { socket, messages: 0 })
    }

    /// Sends a message and waits for its echo.
    pub fn exchange(&mut self, patience: Duration) -> Answer {
        let deadline = Instant::now() + patience;
        self.messages += 1;
        let message = self.messages.to_be_bytes();
        let mut answer = [0; 64];
        loop {
            self.socket.send(&message)?;
            let round = Instant::now() + AGAIN;
            loop {
                let left = remaining(deadline)?;
                let Ok(wait) = remaining(round) else { break };
                self.socket.set_read_timeout(Some(wait.min(left)))?;
                match self.socket.recv(&mut answer) {
                    Ok(length) if answer[..length] == message => return Ok(()),
                    // The echo of an earlier message.
                    Ok(4) => {}
                    Ok(_) => return Err(NoAnswer::Garbled),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    /// Sends one datagram and waits for nothing.
    pub fn send(&self, bytes: &[u8]) -> Answer {
        self.socket.send(bytes)?;
        Ok(())
    }

    /// The client's end.
    pub fn local(&self) -> SocketAddr {
        self.socket.local_addr().expect("a bound socket has an address")
    }
}

/// One exchange on a socket of its own.
pub fn udp_exchange(netns: &Netns, to: SocketAddr, patience: Duration) -> Answer {
    UdpClient::new(netns, None, to)?.exchange(patience)
}
