//! What a frame says, read by another implementation than the one under test: header by header with `etherparse`.
//!
//! Invariant: shares no code with `reeve-packet`. A frame without a plain reading has a reason, in words.

use etherparse::{
    ArpPacketSlice, Ethernet2Slice, IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, TcpHeaderSlice, UdpHeaderSlice, ip_number,
};
use std::net::IpAddr;

/// What kind of frame it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// An IP packet.
    Ip(Ip),
    /// ARP for IPv4 over Ethernet.
    Arp,
    /// Something else.
    NotIp,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Number of the protocol above all extension headers; of a later fragment, what its header says.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Which part of a packet it is.
    pub part: Part,
    /// What the protocol's own header says.
    pub upper: Upper,
    /// Bytes from the IP header on, without padding.
    pub bytes: usize,
}

/// Which part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment.
    First,
    /// Another fragment, which begins at this byte.
    Later(u32),
}

/// What the header above IP says, as far as policy asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// Source and destination port.
    Ports(u16, u16),
    /// Type and code.
    Icmp(u8, u8),
    /// Nothing that is read.
    Other,
}

/// Why a frame has no plain reading.
pub type Reason = &'static str;

/// Reads a frame that is not offloaded.
pub fn read(frame: &[u8]) -> Result<Reading, Reason> {
    let link = Ethernet2Slice::from_slice_without_fcs(frame).map_err(|_| "no Ethernet header")?;
    let payload = link.payload_slice();
    match link.ether_type() {
        etherparse::EtherType::IPV4 => ipv4(payload).map(Reading::Ip),
        etherparse::EtherType::IPV6 => ipv6(payload).map(Reading::Ip),
        etherparse::EtherType::ARP => arp(payload).map(|()| Reading::Arp),
        _ => Ok(Reading::NotIp),
    }
}

fn arp(packet: &[u8]) -> Result<(), Reason> {
    let arp = ArpPacketSlice::from_slice(packet).map_err(|_| "ARP is cut off")?;
    let kinds = (arp.hw_addr_type().0, arp.proto_addr_type().0, arp.hw_addr_size(), arp.proto_addr_size());
    if kinds == (1, 0x0800, 6, 4) { Ok(()) } else { Err("ARP of something else than IPv4 over Ethernet") }
}

fn ipv4(packet: &[u8]) -> Result<Ip, Reason> {
    let header = Ipv4HeaderSlice::from_slice(packet).map_err(|_| "no IPv4 header")?;
    let total = usize::from(header.total_len());
    let payload = packet.get(header.slice().len()..total).ok_or("the total length contradicts the frame")?;
    options(header.options())?;
    let begins = u32::from(header.fragments_offset().value()) * 8;
    let part = part(begins, header.more_fragments(), payload.len())?;
    let protocol = header.protocol();
    Ok(Ip {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: protocol.0,
        hop_limit: header.ttl(),
        part,
        upper: upper(protocol, part, payload, (ip_number::ICMP, ip_number::IPV6_ICMP))?,
        bytes: total,
    })
}

/// No option of IPv4 may send the packet elsewhere or be out of shape.
fn options(options: &[u8]) -> Result<(), Reason> {
    match options {
        [] | [0, ..] => Ok(()),
        [1, rest @ ..] => self::options(rest),
        [131 | 137, ..] => Err("a source route"),
        [_, length, ..] if *length >= 2 => {
            self::options(options.get(usize::from(*length)..).ok_or("an option beyond the header")?)
        }
        _ => Err("an option without a length"),
    }
}

fn part(begins: u32, more: bool, bytes: usize) -> Result<Part, Reason> {
    let bytes = u32::try_from(bytes).map_err(|_| "too long")?;
    match (begins, more) {
        (0, false) => return Ok(Part::Whole),
        _ if bytes == 0 => return Err("an empty fragment"),
        (_, true) if !bytes.is_multiple_of(8) => return Err("a fragment that is cut at no multiple of 8 bytes"),
        _ if begins + bytes > 65_535 => return Err("a fragment beyond the largest packet"),
        (0, true) => return Ok(Part::First),
        _ => {}
    }
    Ok(Part::Later(begins))
}

fn ipv6(packet: &[u8]) -> Result<Ip, Reason> {
    let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_| "no IPv6 header")?;
    let (source, destination) = (header.source_addr(), header.destination_addr());
    if source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
        return Err("an IPv4 address in an IPv6 header");
    }
    let length = usize::from(header.payload_length());
    let mut next = header.next_header();
    if length == 0 && next == ip_number::IPV6_HEADER_HOP_BY_HOP {
        return Err("a jumbogram");
    }
    let mut rest = packet.get(40..40 + length).ok_or("the payload length contradicts the frame")?;
    let mut found = Part::Whole;
    let mut headers = Vec::new();
    while matches!(
        next,
        ip_number::IPV6_HEADER_HOP_BY_HOP
            | ip_number::IPV6_ROUTE_HEADER
            | ip_number::IPV6_FRAGMENTATION_HEADER
            | ip_number::IPV6_DESTINATION_OPTIONS
            | ip_number::AUTHENTICATION_HEADER
    ) && !matches!(found, Part::Later(_))
    {
        headers.push(next);
        if headers.len() > 8 {
            return Err("more extension headers than anyone needs");
        }
        let this = next;
        let bytes = match this {
            ip_number::IPV6_FRAGMENTATION_HEADER => {
                let fragment = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| "a fragment header is cut off")?;
                let begins = u32::from(fragment.fragment_offset().value()) * 8;
                found = part(begins, fragment.more_fragments(), rest.len() - 8)?;
                next = fragment.next_header();
                8
            }
            ip_number::AUTHENTICATION_HEADER => {
                let header = IpAuthHeaderSlice::from_slice(rest).map_err(|_| "an authentication header is cut off")?;
                next = header.next_header();
                header.slice().len()
            }
            _ => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| "an extension header is cut off")?;
                if this == ip_number::IPV6_ROUTE_HEADER && header.payload()[1] != 0 {
                    return Err("a source route");
                }
                next = header.next_header();
                header.slice().len()
            }
        };
        rest = &rest[bytes..];
    }
    if headers.iter().skip(1).any(|header| *header == ip_number::IPV6_HEADER_HOP_BY_HOP) {
        return Err("a hop-by-hop header that is not the first");
    }
    if headers.iter().filter(|header| **header == ip_number::IPV6_FRAGMENTATION_HEADER).count() > 1 {
        return Err("a fragment of a fragment");
    }
    Ok(Ip {
        source: source.into(),
        destination: destination.into(),
        protocol: next.0,
        hop_limit: header.hop_limit(),
        part: found,
        upper: upper(next, found, rest, (ip_number::IPV6_ICMP, ip_number::ICMP))?,
        bytes: 40 + length,
    })
}

/// `icmp`: the family's own, and the other family's.
fn upper(protocol: IpNumber, part: Part, payload: &[u8], icmp: (IpNumber, IpNumber)) -> Result<Upper, Reason> {
    if matches!(part, Part::Later(_)) {
        return Ok(Upper::Other);
    }
    if protocol == icmp.1 {
        return Err("ICMP of the other family");
    }
    if protocol == icmp.0 {
        let &[kind, code, _, _, _, _, _, _] = payload.first_chunk().ok_or("ICMP is cut off")?;
        return Ok(Upper::Icmp(kind, code));
    }
    match protocol {
        ip_number::TCP => {
            let header = TcpHeaderSlice::from_slice(payload).map_err(|_| "no TCP header")?;
            Ok(Upper::Ports(header.source_port(), header.destination_port()))
        }
        // SCTP and UDP-Lite have their ports where UDP has them.
        ip_number::UDP | ip_number::UDP_LITE | ip_number::SCTP => {
            if protocol == ip_number::SCTP && payload.len() < 12 {
                return Err("SCTP is cut off");
            }
            let header = UdpHeaderSlice::from_slice(payload).map_err(|_| "no ports")?;
            Ok(Upper::Ports(header.source_port(), header.destination_port()))
        }
        _ => Ok(Upper::Other),
    }
}
