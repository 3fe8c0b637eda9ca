//! Parsing of frames: the first byte says how the kernel holds the frame, the others are the frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reeve_packet::env::Bytes;
use reeve_packet::parse::{self, FRAGMENT_LATER, Kind, Packet};

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

fuzz_target!(|input: &[u8]| {
    let Some((held, bytes)) = input.split_first() else { return };
    let frame = Frame { held: *held, bytes };
    let mut packet = Packet::default();
    if parse::frame(&frame, &mut packet) == Kind::Ip {
        assert_eq!(held & 1, 0, "a tagged frame is not read as IP");
        check(&frame, &packet);
    }
    // As an ICMP error would quote it.
    if parse::ipv4(&frame, 0, true, &mut packet) == Kind::Ip || parse::ipv6(&frame, 0, true, &mut packet) == Kind::Ip {
        check(&frame, &packet);
    }
});
