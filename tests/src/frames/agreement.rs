//! Whether `reeve-packet` reads a frame as another implementation does: what one refuses the other refuses, and what both
//! read says the same.

use super::reading::{Ip, Part, Reading, Reason, Upper, read};
use reeve_packet::env::Bytes;
use reeve_packet::parse::{self, FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_NONE, Kind, Packet};
use reeve_policy::image::mapped;

/// A frame without a tag beside it, of which so many bytes lie in one piece.
struct Plain<'a>(&'a [u8], usize);

impl Bytes for Plain<'_> {
    fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        let at = usize::try_from(offset).expect("an offset fits");
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes.map(|bytes| into.copy_from_slice(bytes)).is_some()
    }
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        self.0[..self.1].first_chunk()
    }
    fn frame_bytes(&self) -> u32 {
        u32::try_from(self.0.len()).expect("a frame is small")
    }
    fn vlan(&self) -> bool {
        false
    }
    fn offloaded(&self) -> bool {
        false
    }
}

/// What both say of a frame: its reading, or why it has none.
///
/// # Errors
///
/// What each of them says, if they disagree.
pub fn agreed(frame: &[u8]) -> Result<Result<Reading, Reason>, String> {
    let mut packet = Packet::default();
    let kind = parse::frame(&Plain(frame, frame.len()), &mut packet);
    // In pieces, the usual packet is read like any other.
    let mut pieces = Packet::default();
    let alike = parse::frame(&Plain(frame, 0), &mut pieces) == kind && (kind != Kind::Ip || pieces == packet);
    if !alike {
        return Err(format!("{frame:02x?}\nin one piece {kind:?} {packet:?}\nin pieces {pieces:?}"));
    }
    let other = read(frame);
    let same = match other {
        Err(_) => kind == Kind::Malformed,
        Ok(Reading::NotIp) => kind == Kind::NotIp,
        Ok(Reading::Arp) => kind == Kind::Arp,
        Ok(Reading::Ip(ip)) => kind == Kind::Ip && says(&packet, &ip),
    };
    if same { Ok(other) } else { Err(format!("{frame:02x?}\n{other:?}\n{kind:?} {packet:?}")) }
}

fn says(packet: &Packet, ip: &Ip) -> bool {
    let part = match packet.fragment {
        FRAGMENT_NONE => Part::Whole,
        FRAGMENT_FIRST => Part::First,
        FRAGMENT_LATER => Part::Later(packet.fragment_edge),
        other => panic!("{other} is no part of a packet"),
    };
    let upper = if matches!(part, Part::Later(_)) {
        Upper::Other
    } else if packet.has_ports() {
        Upper::Ports(packet.source_port, packet.destination_port)
    } else if packet.is_icmp() {
        Upper::Icmp(packet.icmp_type, packet.icmp_code)
    } else {
        Upper::Other
    };
    (packet.source, packet.destination) == (mapped(ip.source), mapped(ip.destination))
        && (packet.protocol, packet.hop_limit) == (ip.protocol, ip.hop_limit)
        && usize::try_from(packet.bytes).ok() == Some(ip.bytes)
        && part == ip.part
        && upper == ip.upper
}
