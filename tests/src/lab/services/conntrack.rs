//! Makes a node's kernel forget where it led datagrams whose backend is gone, as kube-proxy does: a client that goes on
//! sending from the same port would otherwise be led there for as long as it sends.
//!
//! The request is a filtered flush of the connection tracking table by netlink (`linux/netfilter/nfnetlink_conntrack.h`).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Node;

const UDP: u8 = 17;

/// What of an entry is compared with the request.
const SOURCE: u32 = 1;
const DESTINATION: u32 = 1 << 1;
const PROTOCOL: u32 = 1 << 3;
const DESTINATION_PORT: u32 = 1 << 5;

/// Forgets datagrams to `asked` that were led to `backend`; with IPv6 all to that port, because kernels compare these
/// addresses the wrong way round there. Who asked another Service is led to where it was or to a backend as good.
pub(super) fn forget(node: &Node, asked: SocketAddr, backend: IpAddr) -> anyhow::Result<()> {
    node.netns().run(|| send(&request(asked, backend)))?.context("cannot flush connection tracking")
}

fn send(request: &[u8]) -> anyhow::Result<()> {
    let mut socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))?;
    socket.write_all(request)?;
    let mut answer = [0; 4096];
    let length = socket.read(&mut answer)?;
    // An acknowledgement is an error message whose number, behind the header of 16 bytes, is 0.
    match answer[..length].get(16..20) {
        Some([0, 0, 0, 0]) => Ok(()),
        Some(number) => {
            let number = i32::from_ne_bytes(number.try_into().expect("they are four"));
            Err(std::io::Error::from_raw_os_error(-number)).context("the kernel refuses")
        }
        None => bail!("the kernel's answer has {length} bytes"),
    }
}

/// What went to `asked`, and is answered by `backend`.
fn request(asked: SocketAddr, backend: IpAddr) -> Vec<u8> {
    const DELETE: u16 = 1 << 8 | 2;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
    let (family, source, destination) = if asked.is_ipv6() { (libc::AF_INET6, 3, 4) } else { (libc::AF_INET, 1, 2) };
    let family = u8::try_from(family).expect("families are small numbers");
    let sent_to = nested(1, &attribute(destination, &octets(asked.ip())));
    let by_udp = nested(2, &[attribute(1, &[UDP]), attribute(3, &asked.port().to_be_bytes())].concat());
    let answered_by = nested(1, &attribute(source, &octets(backend)));
    let of_sent = PROTOCOL | DESTINATION_PORT | if asked.is_ipv4() { DESTINATION } else { 0 };
    let of_answers = if asked.is_ipv4() { SOURCE } else { 0 };
    let compared = [attribute(1, &of_sent.to_ne_bytes()), attribute(2, &of_answers.to_ne_bytes())].concat();
    // Version 1: the flush is for this family only; without, the kernel reads no addresses.
    let mut body = vec![family, 1, 0, 0];
    body.extend(nested(1, &[sent_to, by_udp].concat()));
    body.extend(nested(2, &answered_by));
    body.extend(nested(25, &compared));
    let mut message = u32::try_from(body.len() + 16).expect("it is short").to_ne_bytes().to_vec();
    message.extend(DELETE.to_ne_bytes());
    message.extend(REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
    message.extend([0; 8]); // sequence and sender
    message.extend(body);
    message
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attribute(kind | NESTED, attributes)
}

/// An attribute, filled up to whole words.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len() + 4).expect("it is short").to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
