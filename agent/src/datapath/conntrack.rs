//! Reads the kernel's connection tracking table: which way a live connection was opened, and what translation made of it.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::net::IpAddr;

/// `CTA_PROTO_ICMP_ID` and `CTA_PROTO_ICMPV6_ID`.
const ICMP_IDS: [u16; 2] = [4, 7];
/// `CTA_PROTO_ICMP_TYPE` and `CTA_PROTO_ICMPV6_TYPE`.
const ICMP_TYPES: [u16; 2] = [5, 8];

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Who sends.
    pub source: IpAddr,
    /// Who receives.
    pub destination: IpAddr,
    /// The sender's port, or 0.
    pub source_port: u16,
    /// The receiver's port, or 0.
    pub destination_port: u16,
    /// ICMP: the query's identifier.
    pub icmp_id: u16,
    /// ICMP: type.
    pub icmp_type: u8,
}

/// A connection as the kernel tracks it. One that is tracked in several zones is there once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// IP protocol number.
    pub protocol: u8,
    /// As it was opened, before any translation.
    pub original: Way,
    /// As it is answered: the answerer's own address and port, and whoever it answers to.
    pub reply: Way,
    /// Whether anything came back.
    pub answered: bool,
    /// TCP: `enum tcp_conntrack`.
    pub tcp_state: Option<u8>,
}

/// Reads the table of this network namespace, both address families and all zones.
pub fn dump() -> io::Result<Vec<Tracked>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let everything =
        NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), ConntrackMessage::Get(vec![]));
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(everything));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if !read(&bytes, &mut found)? {
            return Ok(found);
        }
    }
}

/// Reads the messages of one datagram; false once the last has been read.
fn read(mut bytes: &[u8], found: &mut Vec<Tracked>) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(message) => {
                if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner {
                    found.extend(tracked(&attributes));
                }
            }
            _ => {}
        }
        // Messages are aligned to four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// An entry with both directions; none if one is missing or of a family that is not ours.
fn tracked(attributes: &[ConntrackAttribute]) -> Option<Tracked> {
    let (mut original, mut reply, mut answered, mut tcp_state) = (None, None, false, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => original = way(parts),
            ConntrackAttribute::CtaTupleReply(parts) => reply = way(parts),
            ConntrackAttribute::CtaStatus(status) => answered = status.contains(Status::SeenReply),
            ConntrackAttribute::CtaProtoInfo(infos) => {
                let tcp = infos.iter().filter_map(|info| if let ProtoInfo::TCP(tcp) = info { Some(tcp) } else { None });
                tcp_state = tcp.flatten().find_map(|info| match info {
                    ProtoInfoTCP::State(state) => Some(*state),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    Some(Tracked { protocol, original, reply, answered, tcp_state })
}

fn way(parts: &[Tuple]) -> Option<(u8, Way)> {
    let (mut source, mut destination, mut protocol) = (None, None, None);
    let (mut source_port, mut destination_port, mut icmp_id, mut icmp_type) = (0, 0, 0, 0);
    for part in parts {
        match part {
            Tuple::Ip(ends) => {
                for end in ends {
                    match end {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(ends) => {
                for end in ends {
                    match end {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => source_port = *port,
                        ProtoTuple::DestinationPort(port) => destination_port = *port,
                        ProtoTuple::Other(other) => {
                            let mut value = vec![0; other.value_len()];
                            other.emit_value(&mut value);
                            match value[..] {
                                [high, low, ..] if ICMP_IDS.contains(&other.kind()) => {
                                    icmp_id = u16::from_be_bytes([high, low]);
                                }
                                [kind, ..] if ICMP_TYPES.contains(&other.kind()) => icmp_type = kind,
                                _ => {}
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let way = Way { source: source?, destination: destination?, source_port, destination_port, icmp_id, icmp_type };
    Some((protocol?, way))
}
