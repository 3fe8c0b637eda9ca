//! Frames for tests, built by another implementation than the one that reads them.

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader,
    UdpHeader,
};
use std::net::IpAddr;

/// The two ends of a packet, of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends(pub(crate) IpAddr, pub(crate) IpAddr);

impl Ends {
    pub(crate) fn back(self) -> Self {
        Self(self.1, self.0)
    }

    /// A TCP segment; letters of `flags` as in tcpdump: S, F, R, and `.` for ACK.
    pub(crate) fn tcp(self, source_port: u16, destination_port: u16, flags: &str) -> Vec<u8> {
        let mut header = TcpHeader::new(source_port, destination_port, 7, 1_024);
        header.syn = flags.contains('S');
        header.fin = flags.contains('F');
        header.rst = flags.contains('R');
        header.ack = flags.contains('.');
        self.ip(IpNumber::TCP, &[&header.to_bytes()[..], b"payload"].concat())
    }

    pub(crate) fn udp(self, source_port: u16, destination_port: u16) -> Vec<u8> {
        let header = UdpHeader { source_port, destination_port, length: 15, checksum: 0 };
        self.ip(IpNumber::UDP, &[&header.to_bytes()[..], b"payload"].concat())
    }

    pub(crate) fn ping(self, id: u16) -> Vec<u8> {
        self.icmp(
            if self.is_v4() { 8 } else { 128 },
            0,
            [id.to_be_bytes(), [0, 1]].concat().try_into().expect("4"),
            b"abcdefgh",
        )
    }

    pub(crate) fn pong(self, id: u16) -> Vec<u8> {
        self.icmp(
            if self.is_v4() { 0 } else { 129 },
            0,
            [id.to_be_bytes(), [0, 1]].concat().try_into().expect("4"),
            b"abcdefgh",
        )
    }

    /// An ICMP error (port unreachable) that quotes a frame from its IP header on, cut off like routers do.
    pub(crate) fn unreachable(self, quoted: &[u8]) -> Vec<u8> {
        let quoted = &quoted[14..];
        let kept = quoted.len().min(if self.is_v4() { 28 } else { 48 });
        let (kind, code) = if self.is_v4() { (3, 3) } else { (1, 4) };
        self.icmp(kind, code, [0; 4], &quoted[..kept])
    }

    /// The same with all of the quoted packet.
    pub(crate) fn unreachable_whole(self, quoted: &[u8]) -> Vec<u8> {
        let (kind, code) = if self.is_v4() { (3, 3) } else { (1, 4) };
        self.icmp(kind, code, [0; 4], &quoted[14..])
    }

    pub(crate) fn icmp(self, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
        if self.is_v4() {
            let header = Icmpv4Header::new(Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest });
            self.ip(IpNumber::ICMP, &[&header.to_bytes()[..], payload].concat())
        } else {
            let header = Icmpv6Header::new(Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest });
            self.ip(IpNumber::IPV6_ICMP, &[&header.to_bytes()[..], payload].concat())
        }
    }

    /// Neighbour discovery: hop limit 255, and a target where the type has one.
    pub(crate) fn discovery(self, kind: u8, target: IpAddr) -> Vec<u8> {
        let IpAddr::V6(target) = target else { panic!("neighbour discovery is of IPv6") };
        let mut frame = self.icmp(kind, 0, [0; 4], &target.octets());
        frame[14 + 7] = 255;
        frame
    }

    /// An IP packet of any protocol.
    pub(crate) fn ip(self, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        // 253 is for experiments: the builder would look for the extension headers of others.
        let experiment = IpNumber(253);
        match (self.0, self.1) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = u16::try_from(payload.len()).expect("a packet is below 64 KiB");
                let header =
                    Ipv4Header::new(length, 64, experiment, source.octets(), destination.octets()).expect("it fits");
                builder.ip(etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    source: source.octets(),
                    destination: destination.octets(),
                    next_header: experiment,
                    hop_limit: 64,
                    ..Ipv6Header::default()
                };
                builder.ip(etherparse::IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default()))
            }
            _ => panic!("both ends are of one family: {self:?}"),
        }
        .write(&mut bytes, experiment, payload)
        .expect("a vector takes any frame");
        bytes[if self.is_v4() { 23 } else { 20 }] = protocol.0;
        bytes
    }

    /// A fragment of a packet: `offset` in units of 8 bytes.
    pub(crate) fn fragment(self, whole: &[u8], id: u16, offset: u16, bytes: usize, more: bool) -> Vec<u8> {
        let header = if self.is_v4() { 34 } else { 54 };
        let from = header + usize::from(offset) * 8;
        let part = &whole[from..whole.len().min(from + bytes)];
        if self.is_v4() {
            let mut frame = self.ip(IpNumber(whole[23]), part);
            frame[18..20].copy_from_slice(&id.to_be_bytes());
            frame[20..22].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
            return frame;
        }
        let mut extension = vec![whole[20], 0];
        extension.extend((offset << 3 | u16::from(more)).to_be_bytes());
        extension.extend(u32::from(id).to_be_bytes());
        self.ip(IpNumber::IPV6_FRAGMENTATION_HEADER, &[&extension, part].concat())
    }

    /// An ARP packet that says its sender is the first end and asks for the second.
    pub(crate) fn arp(self) -> Vec<u8> {
        let (IpAddr::V4(sender), IpAddr::V4(target)) = (self.0, self.1) else { panic!("ARP is of IPv4") };
        let mut frame = [&[0xff; 6][..], &[2; 6], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[2; 6]].concat();
        frame.extend(sender.octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        frame
    }

    pub(crate) fn is_v4(self) -> bool {
        self.0.is_ipv4()
    }
}

/// The frame with an 802.1Q tag in its bytes.
pub(crate) fn with_vlan(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat()
}
