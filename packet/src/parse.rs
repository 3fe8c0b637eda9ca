//! Reads a frame down to the ports: Ethernet, ARP, IPv4 with options, IPv6 with extension headers, TCP, UDP, SCTP, ICMP.
//!
//! Invariant: a packet is read whole or not at all; lengths that contradict each other make it malformed, and so does a
//! route in the header by which it would reach another destination than it shows.

use crate::env::Bytes;
use reeve_abi::address::Address;

/// IP protocol numbers that are read further.
pub mod protocol {
    #![allow(missing_docs, reason = "the names are IANA's")]
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
    pub const UDPLITE: u8 = 136;
}

/// Bytes before the IP header of an Ethernet frame.
pub const ETHERNET_BYTES: u32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// More extension headers than this make a packet malformed.
const MAX_EXTENSIONS: u32 = 8;
/// IPv6 extension headers that are walked: RFC 8200 without those that end the chain.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}
/// IPv4 options with meaning for where a packet goes: end of list, padding, loose and strict source route.
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const PADDING: u8 = 1;
    pub(super) const LOOSE_ROUTE: u8 = 131;
    pub(super) const STRICT_ROUTE: u8 = 137;
    /// An IPv4 header has room for no more bytes of them.
    pub(super) const MAX_BYTES: u32 = 40;
}
/// No packet is larger when it is put together from fragments.
const MAX_REASSEMBLED_BYTES: u32 = 65_535;

/// TCP flags.
pub mod tcp {
    #![allow(missing_docs, reason = "the names are those of RFC 9293")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// Part of a fragmented packet.
pub const FRAGMENT_NONE: u32 = 0;
/// The first fragment, with the ports.
pub const FRAGMENT_FIRST: u32 = 1;
/// A later fragment, without ports.
pub const FRAGMENT_LATER: u32 = 2;

/// What kind of frame it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IP, read down to the ports.
    Ip,
    /// ARP; [`Packet::arp_sender`] is set.
    Arp,
    /// Something else.
    NotIp,
    /// Not to be read.
    Malformed,
}

/// What was read of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Bytes from the IP header on.
    pub bytes: u32,
    /// Offset of the layer-4 header in the frame.
    pub l4_offset: u32,
    /// Where the packet's own bytes end in the frame.
    pub end: u32,
    /// One of `FRAGMENT_*`.
    pub fragment: u32,
    /// Identification, for fragments.
    pub identification: u32,
    /// Bytes into what was fragmented: where a first fragment ends, where a later one begins.
    pub fragment_edge: u32,
    /// 1 for IPv6.
    pub v6: u32,
    /// Source port, host byte order.
    pub source_port: u16,
    /// Destination port, host byte order.
    pub destination_port: u16,
    /// ICMP query identifier, host byte order.
    pub icmp_id: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Unused.
    pub reserved: u8,
}

impl Packet {
    /// Sender protocol address of an ARP packet (kept in `source`).
    #[inline(always)]
    pub fn arp_sender(&self) -> Address {
        self.source
    }

    /// Whether the protocol has ports in its first four bytes.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::UDPLITE)
    }

    /// Where the reading of one header after another has come to. It is kept here and not in a register: the verifier
    /// follows every value that a register may have, and none that lies in a map, so a loop costs it as many steps as there
    /// may be headers and not as there are ways through them.
    #[inline(always)]
    fn at(&self) -> u32 {
        // SAFETY: a field of this value.
        unsafe { (&raw const self.l4_offset).read_volatile() }
    }

    /// See [`Packet::at`].
    #[inline(always)]
    fn move_to(&mut self, at: u32) {
        // SAFETY: a field of this value.
        unsafe { (&raw mut self.l4_offset).write_volatile(at) }
    }

    /// The kind of header that stands there; kept as [`Packet::at`] is.
    #[inline(always)]
    fn next(&self) -> u8 {
        // SAFETY: a field of this value.
        unsafe { (&raw const self.protocol).read_volatile() }
    }

    /// See [`Packet::next`].
    #[inline(always)]
    fn set_next(&mut self, next: u8) {
        // SAFETY: a field of this value.
        unsafe { (&raw mut self.protocol).write_volatile(next) }
    }

    /// Whether it is ICMP of its family.
    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        (self.v6 == 0 && self.protocol == protocol::ICMP) || (self.v6 == 1 && self.protocol == protocol::ICMPV6)
    }
}

/// Reads an Ethernet frame: what the walk does in two steps, between which most packets leave it.
#[inline(always)]
pub fn frame<B: Bytes>(env: &B, packet: &mut Packet) -> Kind {
    if usual(env, packet).is_some() { Kind::Ip } else { behind(env, ETHERNET_BYTES, packet) }
}

/// Ethernet, IPv4 without options, ports.
const HEAD_V4: usize = 42;
/// Ethernet, IPv6 without extension headers, ports.
const HEAD_V6: usize = 62;

/// Reads the usual packet, TCP or UDP in one piece and without options, where it lies: what most packets are. `None`:
/// another one, or one that wants a closer look; nothing is said of it.
///
/// Invariant: says what the reading of each header in turn would say.
#[inline(always)]
pub(crate) fn usual<B: Bytes>(env: &B, packet: &mut Packet) -> Option<()> {
    let h: &[u8; HEAD_V4] = env.head()?;
    let (v6, total, l4) = match (u16::from_be(B::half(h, 12)), h[14]) {
        // Neither more fragments nor an offset: all but the two highest bits.
        (ETHERTYPE_IPV4, 0x45) if u16::from_be(B::half(h, 20)) << 2 == 0 => {
            packet.hop_limit = h[22];
            packet.protocol = h[23];
            packet.source = Address::v4_of_word(B::word(h, 26));
            packet.destination = Address::v4_of_word(B::word(h, 30));
            packet.identification = u32::from(u16::from_be(B::half(h, 18)));
            (0, u32::from(u16::from_be(B::half(h, 16))), 34)
        }
        (ETHERTYPE_IPV6, 0x60..=0x6f) => {
            let h: &[u8; HEAD_V6] = env.head()?;
            packet.hop_limit = h[21];
            packet.protocol = h[20];
            let address = |at: usize| Address::of_words([0, 4, 8, 12].map(|word| B::word(h, at + word)));
            packet.source = address(22);
            packet.destination = address(38);
            packet.identification = 0;
            if packet.source.is_v4() || packet.destination.is_v4() {
                return None;
            }
            let payload = u32::from(u16::from_be(B::half(h, 18)));
            (1, if payload == 0 { 0 } else { payload + 40 }, 54)
        }
        _ => return None,
    };
    let available = env.frame_bytes() - ETHERNET_BYTES;
    let end = total + ETHERNET_BYTES;
    if total == 0 || total > available || env.vlan() {
        return None;
    }
    packet.tcp_flags = 0;
    let ports = match packet.protocol {
        protocol::UDP if end >= l4 + 8 => {
            if v6 == 0 {
                B::word(env.head::<HEAD_V4>()?, 34)
            } else {
                B::word(env.head::<HEAD_V6>()?, 54)
            }
        }
        protocol::TCP if end >= l4 + 20 => {
            let (ports, offset, flags) = if v6 == 0 {
                let h: &[u8; HEAD_V4 + 12] = env.head()?;
                (B::word(h, 34), h[46], h[47])
            } else {
                let h: &[u8; HEAD_V6 + 12] = env.head()?;
                (B::word(h, 54), h[66], h[67])
            };
            let header_bytes = u32::from(offset >> 4) * 4;
            if header_bytes < 20 || l4 + header_bytes > end {
                return None;
            }
            packet.tcp_flags = flags;
            ports
        }
        _ => return None,
    };
    let ports = u32::from_be(ports);
    packet.v6 = v6;
    packet.bytes = total;
    packet.end = end;
    packet.l4_offset = l4;
    packet.fragment = FRAGMENT_NONE;
    packet.fragment_edge = 0;
    packet.source_port = (ports >> 16) as u16;
    packet.destination_port = (ports & 0xffff) as u16;
    packet.icmp_type = 0;
    packet.icmp_code = 0;
    packet.icmp_id = 0;
    Some(())
}

/// Reads a frame whose IP header stands after `header` bytes: 14 (Ethernet), or 0 where there is no link layer.
#[inline(always)]
pub fn behind<B: Bytes>(env: &B, header: u32, packet: &mut Packet) -> Kind {
    if header == 0 {
        return bare(env, packet);
    }
    let mut kind = [0u8; 2];
    if !env.load(12, &mut kind) {
        return Kind::Malformed;
    }
    if env.vlan() {
        return Kind::NotIp;
    }
    match u16::from_be_bytes(kind) {
        ETHERTYPE_IPV4 => ipv4(env, header, false, packet),
        ETHERTYPE_IPV6 => ipv6(env, header, false, packet),
        ETHERTYPE_ARP => arp(env, header, packet),
        _ => Kind::NotIp,
    }
}

/// Reads a packet that begins with its IP header.
#[inline(always)]
fn bare<B: Bytes>(env: &B, packet: &mut Packet) -> Kind {
    let mut version = [0u8; 1];
    if !env.load(0, &mut version) {
        return Kind::Malformed;
    }
    match version[0] >> 4 {
        4 => ipv4(env, 0, false, packet),
        6 => ipv6(env, 0, false, packet),
        _ => Kind::NotIp,
    }
}

#[inline(always)]
fn arp<B: Bytes>(env: &B, header: u32, packet: &mut Packet) -> Kind {
    let mut h = [0u8; 28];
    if !env.load(header, &mut h) {
        return Kind::Malformed;
    }
    // Ethernet and IPv4 only.
    if h[0] != 0 || h[1] != 1 || h[2] != 8 || h[3] != 0 || h[4] != 6 || h[5] != 4 {
        return Kind::Malformed;
    }
    // Nothing is left of the packet before.
    *packet = Packet {
        source: Address::v4([h[14], h[15], h[16], h[17]]),
        destination: Address::v4([h[24], h[25], h[26], h[27]]),
        bytes: 28,
        ..Packet::default()
    };
    Kind::Arp
}

/// Reads an IPv4 packet at `offset`. `quoted`: inside an ICMP error, where the payload may be cut off.
#[inline(always)]
pub fn ipv4<B: Bytes>(env: &B, offset: u32, quoted: bool, packet: &mut Packet) -> Kind {
    let mut h = [0u8; 20];
    if !env.load(offset, &mut h) {
        return Kind::Malformed;
    }
    let header_bytes = u32::from(h[0] & 0x0f) * 4;
    if h[0] >> 4 != 4 || header_bytes < 20 {
        return Kind::Malformed;
    }
    let available = env.frame_bytes().saturating_sub(offset);
    let mut total = u32::from(u16::from_be_bytes([h[2], h[3]]));
    if total == 0 && (quoted || env.offloaded()) {
        total = available; // offloaded packets over 64 KiB do not fit the field
    }
    if total < header_bytes || (total > available && !quoted) || header_bytes > available {
        return Kind::Malformed;
    }
    if header_bytes > 20 && !quoted && !options_are_plain(env, offset + 20, offset + header_bytes, packet) {
        return Kind::Malformed;
    }
    let field = u16::from_be_bytes([h[6], h[7]]);
    packet.v6 = 0;
    packet.bytes = total;
    packet.end = if total > available { offset + available } else { offset + total };
    packet.hop_limit = h[8];
    packet.protocol = h[9];
    packet.source = Address::v4([h[12], h[13], h[14], h[15]]);
    packet.destination = Address::v4([h[16], h[17], h[18], h[19]]);
    packet.l4_offset = offset + header_bytes;
    packet.identification = u32::from(u16::from_be_bytes([h[4], h[5]]));
    let begins = u32::from(field & 0x1fff) * 8;
    if !fragment(packet, begins, field & 0x2000 != 0, total - header_bytes) && !quoted {
        return Kind::Malformed;
    }
    layer4(env, quoted, packet)
}

/// Whether every IPv4 option from `from` to `to` can be read and none makes the destination another than the header
/// shows.
#[inline(always)]
fn options_are_plain<B: Bytes>(env: &B, from: u32, to: u32, packet: &mut Packet) -> bool {
    packet.move_to(from);
    let mut left = option::MAX_BYTES;
    while packet.at() < to && left > 0 {
        left -= 1;
        let at = packet.at();
        let (mut kind, mut length) = ([0u8], [0u8]);
        if !env.load(at, &mut kind) {
            return false;
        }
        match kind[0] {
            option::END => return true,
            option::PADDING => packet.move_to(at + 1),
            option::LOOSE_ROUTE | option::STRICT_ROUTE => return false,
            _ => {
                if !env.load(at + 1, &mut length) || length[0] < 2 {
                    return false;
                }
                packet.move_to(at + u32::from(length[0]));
            }
        }
    }
    packet.at() == to
}

/// Notes which part of a fragmented packet this is: `bytes` from `begins` on, with `more` to come. False if no sender
/// cuts a packet like that: an empty part, a part that is not the last and ends between the steps of 8 bytes that
/// offsets count in, or one beyond the end of the largest packet.
#[inline(always)]
fn fragment(packet: &mut Packet, begins: u32, more: bool, bytes: u32) -> bool {
    if begins == 0 && !more {
        packet.fragment = FRAGMENT_NONE;
        packet.fragment_edge = 0;
        return true;
    }
    if begins == 0 {
        packet.fragment = FRAGMENT_FIRST;
        packet.fragment_edge = bytes;
    } else {
        packet.fragment = FRAGMENT_LATER;
        packet.fragment_edge = begins;
    }
    bytes != 0 && (!more || bytes.is_multiple_of(8)) && begins + bytes <= MAX_REASSEMBLED_BYTES
}

/// Reads an IPv6 packet at `offset`; see [`ipv4`].
#[inline(always)]
pub fn ipv6<B: Bytes>(env: &B, offset: u32, quoted: bool, packet: &mut Packet) -> Kind {
    let mut h = [0u8; 8];
    if !env.load(offset, &mut h)
        || !env.load(offset + 8, &mut packet.source.0)
        || !env.load(offset + 24, &mut packet.destination.0)
    {
        return Kind::Malformed;
    }
    if h[0] >> 4 != 6 || packet.source.is_v4() || packet.destination.is_v4() {
        return Kind::Malformed; // mapped addresses never belong on a wire, and would pass for IPv4 here
    }
    let available = env.frame_bytes().saturating_sub(offset);
    let payload = u32::from(u16::from_be_bytes([h[4], h[5]]));
    let mut total = payload + 40;
    if payload == 0 && (quoted || env.offloaded()) {
        total = available; // offloaded packets over 64 KiB do not fit the field
    } else if payload == 0 && h[6] == extension::HOP_BY_HOP {
        return Kind::Malformed; // a jumbogram, which no Ethernet device carries
    }
    if total > available && !quoted {
        return Kind::Malformed;
    }
    packet.v6 = 1;
    packet.bytes = total;
    packet.end = if total > available { offset + available } else { offset + total };
    packet.hop_limit = h[7];
    packet.fragment = FRAGMENT_NONE;
    packet.fragment_edge = 0;
    packet.identification = 0;
    packet.set_next(h[6]);
    packet.move_to(offset + 40);
    let mut left = MAX_EXTENSIONS;
    let mut cut = false;
    while packet.fragment != FRAGMENT_LATER {
        let (next, at) = (packet.next(), packet.at());
        if !matches!(
            next,
            extension::HOP_BY_HOP
                | extension::ROUTING
                | extension::FRAGMENT
                | extension::AUTHENTICATION
                | extension::DESTINATION
        ) {
            break;
        }
        if left == 0 {
            return Kind::Malformed;
        }
        left -= 1;
        let mut e = [0u8; 8];
        if at + 8 > packet.end || !env.load(at, &mut e) {
            return Kind::Malformed;
        }
        if next == extension::HOP_BY_HOP && at != offset + 40 {
            return Kind::Malformed; // its place is first; receivers know no other
        }
        if next == extension::ROUTING && e[3] != 0 && !quoted {
            return Kind::Malformed; // segments are left: the destination shown is not the one that is reached
        }
        if next == extension::FRAGMENT {
            if cut {
                return Kind::Malformed; // a fragment of a fragment
            }
            cut = true;
            let field = u16::from_be_bytes([e[2], e[3]]);
            packet.identification = u32::from_be_bytes([e[4], e[5], e[6], e[7]]);
            packet.set_next(e[0]);
            packet.move_to(at + 8);
            let begins = u32::from(field & 0xfff8);
            if !fragment(packet, begins, field & 1 != 0, packet.end.saturating_sub(at + 8)) && !quoted {
                return Kind::Malformed;
            }
            continue; // what follows a later one is payload, whatever it looks like
        }
        if next == extension::AUTHENTICATION && e[1] == 0 {
            return Kind::Malformed; // shorter than its own fixed part
        }
        // Authentication headers count in units of 4 bytes, the others in units of 8.
        let bytes =
            if next == extension::AUTHENTICATION { (u32::from(e[1]) + 2) * 4 } else { (u32::from(e[1]) + 1) * 8 };
        packet.set_next(e[0]);
        packet.move_to(at + bytes);
        if at + bytes > packet.end {
            return Kind::Malformed;
        }
    }
    layer4(env, quoted, packet)
}

#[inline(always)]
fn layer4<B: Bytes>(env: &B, quoted: bool, packet: &mut Packet) -> Kind {
    packet.source_port = 0;
    packet.destination_port = 0;
    packet.tcp_flags = 0;
    packet.icmp_type = 0;
    packet.icmp_code = 0;
    packet.icmp_id = 0;
    if packet.fragment == FRAGMENT_LATER {
        return Kind::Ip;
    }
    let at = packet.l4_offset;
    let mut h = [0u8; 8];
    if packet.has_ports() || packet.is_icmp() {
        // An error quotes eight bytes of what it is about, whatever the protocol.
        let least = if packet.protocol == protocol::SCTP && !quoted { 12 } else { 8 };
        if at + least > packet.end || !env.load(at, &mut h) {
            return Kind::Malformed;
        }
    } else if packet.protocol == protocol::ICMP || packet.protocol == protocol::ICMPV6 {
        return Kind::Malformed; // ICMP of the other family
    }
    if packet.has_ports() {
        packet.source_port = u16::from_be_bytes([h[0], h[1]]);
        packet.destination_port = u16::from_be_bytes([h[2], h[3]]);
        if packet.protocol == protocol::TCP && !quoted {
            let mut t = [0u8; 2];
            if at + 20 > packet.end || !env.load(at + 12, &mut t) {
                return Kind::Malformed;
            }
            let header_bytes = u32::from(t[0] >> 4) * 4;
            if header_bytes < 20 || at + header_bytes > packet.end {
                return Kind::Malformed;
            }
            packet.tcp_flags = t[1];
        }
    } else if packet.is_icmp() {
        packet.icmp_type = h[0];
        packet.icmp_code = h[1];
        packet.icmp_id = u16::from_be_bytes([h[4], h[5]]);
    }
    Kind::Ip
}

#[cfg(test)]
mod tests;
