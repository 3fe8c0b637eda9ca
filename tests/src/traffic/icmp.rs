//! ICMP echo through raw sockets, for both families.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Answer, remaining};
use crate::lab::Netns;

/// Between two requests of one ping.
const AGAIN: Duration = Duration::from_millis(120);

const PAYLOAD: &[u8] = b"reeve lab";

/// Every ping has its own number, because a raw socket hears the answers to all of them.
static NEXT: AtomicU16 = AtomicU16::new(1);

/// Sends echo requests until one is answered.
pub fn ping(netns: &Netns, to: IpAddr, patience: Duration) -> Answer {
    let deadline = Instant::now() + patience;
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket =
        netns.run(|| Socket::new(domain, Type::RAW, Some(protocol))).expect("a client can enter its namespace")?;
    let echo = IcmpEchoHeader { id: NEXT.fetch_add(1, Ordering::Relaxed), seq: 1 };
    let request = request(to, echo);
    let target = SocketAddr::new(to, 0).into();
    let mut answer = [0; 1500];
    loop {
        socket.send_to(&request, &target)?;
        let round = Instant::now() + AGAIN;
        loop {
            let left = remaining(deadline)?;
            let Ok(wait) = remaining(round) else { break };
            socket.set_read_timeout(Some(wait.min(left)))?;
            match socket.read(&mut answer) {
                Ok(length) if is_reply(to, &answer[..length], echo) => return Ok(()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn request(to: IpAddr, echo: IcmpEchoHeader) -> Vec<u8> {
    let mut bytes = match to {
        IpAddr::V4(_) => Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), PAYLOAD).to_bytes().to_vec(),
        // The kernel fills in the checksum, which covers addresses that only it knows yet.
        IpAddr::V6(_) => {
            let mut header = vec![128, 0, 0, 0];
            header.extend(echo.to_bytes());
            header
        }
    };
    bytes.extend(PAYLOAD);
    bytes
}

/// Whether these bytes, as a raw socket gives them, answer our request.
fn is_reply(to: IpAddr, bytes: &[u8], echo: IcmpEchoHeader) -> bool {
    let (reply, message) = match to {
        // IPv4 sockets show the IP header, whose length is in its first byte.
        IpAddr::V4(_) => (0, bytes.first().and_then(|first| bytes.get(usize::from(first & 15) * 4..))),
        IpAddr::V6(_) => (129, Some(bytes)),
    };
    message.is_some_and(|message| {
        message.first() == Some(&reply)
            && message.get(4..8) == Some(&echo.to_bytes())
            && message.get(8..) == Some(PAYLOAD)
    })
}
