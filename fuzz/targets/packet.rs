//! Parsing of frames: the first byte says how the kernel holds the frame, the others are the frame.
//!
//! Nothing unreadable passes and nothing readable is misread: another decoder says which is which.
#![no_main]

#[path = "../../tests/src/frames/agreement.rs"]
mod agreement;
#[path = "../../tests/src/frames/reading.rs"]
mod reading;

use agreement::agreed;
use libfuzzer_sys::fuzz_target;
use reading::Reading;
use reeve_packet::env::Bytes;
use reeve_packet::parse::{self, ETHERNET_BYTES, FRAGMENT_LATER, Kind, Packet};

struct Frame<'a> {
    held: u8,
    bytes: &'a [u8],
}

impl Bytes for Frame<'_> {
    fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        let Ok(at) = usize::try_from(offset) else { return false };
        let bytes = at.checked_add(N).and_then(|end| self.bytes.get(at..end));
        bytes.map(|bytes| into.copy_from_slice(bytes)).is_some()
    }
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        if self.held & 4 == 0 { self.bytes.first_chunk() } else { None }
    }
    fn frame_bytes(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("the fuzzer's inputs are small")
    }
    fn vlan(&self) -> bool {
        self.held & 1 != 0
    }
    fn offloaded(&self) -> bool {
        self.held & 2 != 0
    }
}

/// What was read lies inside the frame, headers before their payload.
fn check(frame: &Frame<'_>, packet: &Packet) {
    assert!(packet.end <= frame.frame_bytes(), "{packet:?}");
    assert!(packet.l4_offset <= packet.end, "{packet:?}");
    let whole = packet.fragment != FRAGMENT_LATER;
    assert!(!(whole && (packet.has_ports() || packet.is_icmp())) || packet.l4_offset + 8 <= packet.end, "{packet:?}");
    assert!(whole || (packet.source_port, packet.destination_port, packet.tcp_flags) == (0, 0, 0), "{packet:?}");
    assert_eq!(packet.source.is_v4(), packet.v6 == 0);
}

/// A packet's own fields, without its place in the frame.
fn placeless(packet: &Packet, header: u32) -> Packet {
    Packet { l4_offset: packet.l4_offset - header, end: packet.end - header, ..*packet }
}

#[track_caller]
fn same(one: &Packet, other: &Packet) {
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

/// Frames held in other ways, against what the same bytes say in one piece.
fn check_others(frame: &Frame<'_>, plain: Option<&Packet>) {
    let mut packet = Packet::default();
    let kind = parse::frame(frame, &mut packet);
    if kind == Kind::Ip {
        assert!(!frame.vlan(), "a tagged frame is not read as IP");
        check(frame, &packet);
    }
    let Some(plain) = plain else { return };
    // Nothing is asked of lengths that an offloaded packet may leave out.
    let says_length = plain.v6 == 0 || plain.bytes != 40;
    if says_length && !frame.vlan() {
        assert_eq!(kind, Kind::Ip, "{plain:?}");
        same(&packet, plain);
    }
    // As devices without Ethernet show it.
    let bare = Frame { held: 0, bytes: &frame.bytes[14..] };
    assert_eq!(parse::behind(&bare, 0, &mut packet), Kind::Ip);
    same(&packet, &placeless(plain, ETHERNET_BYTES));
}

fuzz_target!(|input: &[u8]| {
    let Some((held, bytes)) = input.split_first() else { return };
    let reading = agreed(bytes).unwrap_or_else(|both| panic!("{both}"));
    let (whole, frame) = (Frame { held: 0, bytes }, Frame { held: *held, bytes });
    let mut packet = Packet::default();
    let plain = matches!(reading, Ok(Reading::Ip(_))).then(|| {
        parse::frame(&whole, &mut packet);
        packet
    });
    check_others(&frame, plain.as_ref());
    // As an ICMP error would quote it.
    if parse::ipv4(&frame, 0, true, &mut packet) == Kind::Ip || parse::ipv6(&frame, 0, true, &mut packet) == Kind::Ip {
        check(&frame, &packet);
    }
});
