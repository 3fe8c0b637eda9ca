//! Frames built by another implementation, whole, cut, patched and random.

use super::*;
use crate::host::{Ends, Host, with_vlan};
use etherparse::IpNumber;

const V4: [&str; 2] = ["10.0.0.2", "192.0.2.9"];
const V6: [&str; 2] = ["fd00::2", "2001:db8::9"];

fn ends(addresses: [&str; 2]) -> Ends {
    Ends(addresses[0].parse().unwrap(), addresses[1].parse().unwrap())
}

fn read(bytes: &[u8]) -> (Kind, Packet) {
    let mut host = Host::new();
    host.frame = bytes.to_vec();
    let mut packet = Packet::default();
    let kind = frame(&host, &mut packet);
    // However much of it lies in one piece.
    for linear in [0, 41, 42, 53, 61, 73] {
        host.linear = linear;
        let mut again = Packet { icmp_type: 7, tcp_flags: 7, destination_port: 7, fragment: 7, ..Packet::default() };
        assert_eq!(frame(&host, &mut again), kind, "{linear} bytes in one piece: {bytes:02x?}");
        assert!(kind != Kind::Ip || again == packet, "{linear} bytes in one piece: {again:?} {packet:?}");
    }
    (kind, packet)
}

/// Kind, protocol, ports, fragment.
#[track_caller]
fn check(bytes: &[u8], want: (Kind, u8, u16, u16, u32)) {
    let (kind, p) = read(bytes);
    assert_eq!((kind, p.protocol, p.source_port, p.destination_port, p.fragment), want, "{bytes:02x?}");
}

#[track_caller]
fn malformed(bytes: &[u8]) {
    assert_eq!(read(bytes).0, Kind::Malformed, "{bytes:02x?}");
}

/// The frame with bytes replaced from `at` on.
fn patched(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn udp_bytes() -> Vec<u8> {
    [&[0x30, 0x39, 0, 53, 0, 15, 0, 0][..], b"payload"].concat()
}

#[test]
fn ports_and_addresses_are_read_in_both_families() {
    for (pair, v6) in [(V4, 0), (V6, 1)] {
        let frame = ends(pair).tcp(40_000, 443, "S.");
        check(&frame, (Kind::Ip, protocol::TCP, 40_000, 443, FRAGMENT_NONE));
        let (_, packet) = read(&frame);
        assert_eq!((packet.v6, packet.tcp_flags), (v6, tcp::SYN | tcp::ACK));
        assert_eq!(packet.bytes as usize, frame.len() - 14);
        assert_eq!(packet.source, crate::host::addresses(pair[0].parse().unwrap()));
        assert_eq!(packet.destination, crate::host::addresses(pair[1].parse().unwrap()));
        check(&ends(pair).udp(5_353, 53), (Kind::Ip, protocol::UDP, 5_353, 53, FRAGMENT_NONE));
        check(&ends(pair).ip(IpNumber::SCTP, &udp_bytes()), (Kind::Ip, protocol::SCTP, 12_345, 53, FRAGMENT_NONE));
        check(&ends(pair).ip(IpNumber::GRE, &[0; 8]), (Kind::Ip, 47, 0, 0, FRAGMENT_NONE));
    }
}

#[test]
fn icmp_identifier_type_and_code_are_read() {
    for (pair, request, unreachable) in [(V4, 8, (3, 3)), (V6, 128, (1, 4))] {
        let (kind, packet) = read(&ends(pair).ping(77));
        assert_eq!((kind, packet.icmp_type, packet.icmp_id), (Kind::Ip, request, 77));
        let error = ends(pair).unreachable(&ends(pair).back().udp(1, 2));
        let (kind, packet) = read(&error);
        assert_eq!((kind, (packet.icmp_type, packet.icmp_code)), (Kind::Ip, unreachable));
    }
    malformed(&ends(V4).ip(IpNumber::IPV6_ICMP, &[0; 16]));
    malformed(&ends(V6).ip(IpNumber::ICMP, &[0; 16]));
}

#[test]
fn ipv4_options_are_skipped() {
    let plain = ends(V4).ip(IpNumber::UDP, &[&[1, 1, 1, 0][..], &udp_bytes()].concat());
    let with_options = patched(&plain, 14, &[0x46]);
    check(&with_options, (Kind::Ip, protocol::UDP, 12_345, 53, FRAGMENT_NONE));
    check(&plain, (Kind::Ip, protocol::UDP, 0x0101, 0x0100, FRAGMENT_NONE));
}

#[test]
fn ipv6_extension_headers_are_walked() {
    // hop-by-hop, destination options, routing, authentication (counts in 4 bytes)
    let chain =
        [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[43, 1], &[0; 14], &[51, 0], &[0; 6], &[17, 1], &[0; 10], &udp_bytes()];
    let frame = ends(V6).ip(IpNumber(0), &chain.concat());
    check(&frame, (Kind::Ip, protocol::UDP, 12_345, 53, FRAGMENT_NONE));
    let eight = [60, 0, 1, 4, 0, 0, 0, 0].repeat(7);
    let last = [17, 0, 1, 4, 0, 0, 0, 0];
    check(
        &ends(V6).ip(IpNumber(60), &[&eight[..], &last, &udp_bytes()].concat()),
        (Kind::Ip, protocol::UDP, 12_345, 53, FRAGMENT_NONE),
    );
    let nine = [60, 0, 1, 4, 0, 0, 0, 0].repeat(8);
    malformed(&ends(V6).ip(IpNumber(60), &[&nine[..], &last, &udp_bytes()].concat()));
    // An authentication header without room for its own fields.
    malformed(&ends(V6).ip(IpNumber(51), &[&[17, 0, 0, 0, 0, 0, 0, 0][..], &udp_bytes()].concat()));
    // A header that says it is longer than the packet.
    malformed(&ends(V6).ip(IpNumber(60), &[&[17, 9, 1, 4, 0, 0, 0, 0][..], &udp_bytes()].concat()));
}

#[test]
fn every_truncation_is_malformed_and_none_panics() {
    let frames = [
        ends(V4).tcp(1, 2, "S"),
        ends(V6).tcp(1, 2, "S"),
        ends(V4).udp(1, 2),
        ends(V6).udp(1, 2),
        ends(V4).ping(3),
        ends(V6).ping(3),
        ends(V4).arp(),
        patched(&ends(V4).ip(IpNumber::UDP, &[&[1, 1, 1, 0][..], &udp_bytes()].concat()), 14, &[0x46]),
        ends(V6).ip(IpNumber(60), &[&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp_bytes()].concat()),
        ends(V6).fragment(&ends(V6).udp(1, 2), 9, 0, 8, true),
        ends(V4).fragment(&ends(V4).udp(1, 2), 9, 1, 8, false),
        ends(V4).ip(IpNumber::SCTP, &[&[0, 1, 0, 2][..], &[0; 8]].concat()),
        ends(V6).ip(IpNumber::SCTP, &[&[0, 1, 0, 2][..], &[0; 8]].concat()),
    ];
    for frame in frames {
        assert!(matches!(read(&frame).0, Kind::Ip | Kind::Arp), "the whole frame is fine: {frame:02x?}");
        for length in 0..frame.len() {
            malformed(&frame[..length]);
        }
    }
}

#[test]
fn no_bytes_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let seeds = [ends(V4).tcp(1, 2, "S"), ends(V6).udp(1, 2), ends(V6).fragment(&ends(V6).udp(1, 2), 9, 0, 8, true)];
    for round in 0..30_000 {
        let mut frame = seeds[round % seeds.len()].clone();
        for _ in 0..4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = 12 + usize::try_from(state >> 40).unwrap() % (frame.len() - 12);
            frame[at] = state.to_be_bytes()[3];
        }
        read(&frame);
    }
}

#[test]
fn lengths_that_contradict_are_malformed() {
    let v4 = ends(V4).udp(1, 2);
    let length = u16::try_from(v4.len() - 14).unwrap();
    malformed(&patched(&v4, 16, &(length + 1).to_be_bytes()));
    malformed(&patched(&v4, 16, &19_u16.to_be_bytes()));
    malformed(&patched(&v4, 14, &[0x44])); // a header below 20 bytes
    malformed(&patched(&v4, 14, &[0x65])); // another version than the frame says
    malformed(&patched(&v4, 16, &27_u16.to_be_bytes())); // no room for the ports
    let gre = ends(V4).ip(IpNumber::GRE, &[0; 8]);
    assert_eq!(read(&patched(&gre, 16, &20_u16.to_be_bytes())).0, Kind::Ip);
    malformed(&patched(&gre, 16, &19_u16.to_be_bytes()));
    let v6 = ends(V6).udp(1, 2);
    malformed(&patched(&v6, 18, &16_u16.to_be_bytes()));
    malformed(&patched(&v6, 14, &[0x45]));
    malformed(&patched(&v6, 18, &7_u16.to_be_bytes()));
    let tcp = ends(V4).tcp(1, 2, "S");
    malformed(&patched(&tcp, 46, &[0x40])); // a TCP header below 20 bytes
    malformed(&patched(&tcp, 46, &[0xf0])); // and one longer than the packet
}

#[test]
fn padding_is_not_read_as_ports() {
    let frame = [&ends(V4).udp(1, 2)[..], &[0xee; 20]].concat();
    check(&frame, (Kind::Ip, protocol::UDP, 1, 2, FRAGMENT_NONE));
    assert_eq!(read(&frame).1.bytes, 35);
    malformed(&patched(&frame, 16, &24_u16.to_be_bytes()));
}

#[test]
fn fragments_are_told_apart() {
    for pair in [V4, V6] {
        let whole = ends(pair).udp(1, 2);
        check(&ends(pair).fragment(&whole, 9, 0, 8, true), (Kind::Ip, protocol::UDP, 1, 2, FRAGMENT_FIRST));
        check(&ends(pair).fragment(&whole, 9, 1, 8, false), (Kind::Ip, protocol::UDP, 0, 0, FRAGMENT_LATER));
        assert_eq!(read(&ends(pair).fragment(&whole, 9, 1, 8, false)).1.identification, 9);
        // A first fragment too short for the ports, or for the flags of TCP.
        malformed(&ends(pair).fragment(&whole, 9, 0, 4, true));
        malformed(&ends(pair).fragment(&ends(pair).tcp(1, 2, "S"), 9, 0, 8, true));
    }
    // IPv6 "atomic" fragment: whole.
    check(&ends(V6).fragment(&ends(V6).udp(1, 2), 9, 0, 99, false), (Kind::Ip, protocol::UDP, 1, 2, FRAGMENT_NONE));
    // A fragment header in a first fragment.
    let inner = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp_bytes()].concat();
    let frame = ends(V6).ip(IpNumber(44), &[&[44, 0, 0, 1, 0, 0, 0, 9][..], &inner].concat());
    malformed(&frame);
}

#[test]
fn vlan_tags_and_other_ethertypes_are_not_ip() {
    let plain = ends(V4).udp(1, 2);
    assert_eq!(read(&with_vlan(&plain)).0, Kind::NotIp);
    assert_eq!(read(&patched(&plain, 12, &[0x88, 0xcc])).0, Kind::NotIp);
    let mut host = Host::new();
    host.frame = plain.clone();
    host.vlan = true;
    assert_eq!(frame(&host, &mut Packet::default()), Kind::NotIp);
    assert_eq!(read(&plain).0, Kind::Ip);
}

#[test]
fn arp_of_ipv4_over_ethernet_is_read_and_nothing_else() {
    let frame = ends(V4).arp();
    let (kind, packet) = read(&frame);
    assert_eq!((kind, packet.arp_sender()), (Kind::Arp, Address::v4([10, 0, 0, 2])));
    assert_eq!(packet.destination, Address::v4([192, 0, 2, 9]));
    malformed(&patched(&frame, 14, &[0, 6]));
    malformed(&patched(&frame, 16, &[0x86, 0xdd]));
    malformed(&patched(&frame, 18, &[6, 16]));
}

#[test]
fn nothing_of_the_packet_before_is_left_in_an_arp_packet() {
    let mut host = Host::new();
    let mut packet = Packet::default();
    host.frame = ends(V4).tcp(1, 2, "S");
    frame(&host, &mut packet);
    host.frame = ends(V4).arp();
    frame(&host, &mut packet);
    assert_eq!((packet.protocol, packet.destination_port, packet.tcp_flags, packet.v6), (0, 0, 0, 0));
    assert_eq!(packet.bytes, 28);
}

#[test]
fn mapped_addresses_never_pass_for_ipv4() {
    let mapped = |at: usize| {
        let mut address = [0; 16];
        address[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 2]);
        patched(&ends(V6).udp(1, 2), at, &address)
    };
    malformed(&mapped(14 + 8));
    malformed(&mapped(14 + 24));
}

#[test]
fn a_hop_by_hop_header_stands_first_or_nowhere() {
    let (hop, destination) = ([60, 0, 1, 4, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]);
    let first = [&hop[..], &destination, &udp_bytes()].concat();
    check(&ends(V6).ip(IpNumber(0), &first), (Kind::Ip, protocol::UDP, 12_345, 53, FRAGMENT_NONE));
    let second = [&[0, 0, 1, 4, 0, 0, 0, 0][..], &destination, &udp_bytes()].concat();
    malformed(&ends(V6).ip(IpNumber(60), &second));
}

#[test]
fn a_packet_that_is_on_its_way_elsewhere_is_malformed() {
    for kind in [0, 2, 3, 4, 253] {
        for (left, want) in [(0, Kind::Ip), (1, Kind::Malformed), (255, Kind::Malformed)] {
            let route = [&[17, 2, kind, left][..], &[0; 20], &udp_bytes()].concat();
            assert_eq!(read(&ends(V6).ip(IpNumber(43), &route)).0, want, "type {kind}, {left} segments left");
        }
    }
    let with_options = |options: [u8; 8]| {
        let frame = ends(V4).ip(IpNumber::UDP, &[&options[..], &udp_bytes()].concat());
        read(&patched(&frame, 14, &[0x47]))
    };
    let (router_alert, record_route) = ([148, 4, 0, 0, 0, 0, 0, 0], [7, 7, 4, 0, 0, 0, 0, 1]);
    for options in [router_alert, record_route, [1, 1, 1, 1, 1, 1, 1, 1], [0, 131, 7, 4, 192, 0, 2, 1]] {
        let (kind, packet) = with_options(options);
        assert_eq!((kind, packet.source_port, packet.destination_port), (Kind::Ip, 12_345, 53), "{options:?}");
    }
    for options in [
        [131, 7, 4, 192, 0, 2, 1, 0], // loose source route
        [137, 7, 4, 192, 0, 2, 1, 0], // strict source route
        [1, 131, 7, 4, 192, 0, 2, 1], // after padding
        [148, 4, 0, 0, 131, 4, 4, 0], // after another option
        [148, 1, 0, 0, 0, 0, 0, 0],   // an option that does not say how long it is
        [148, 0, 0, 0, 0, 0, 0, 0],
        [7, 9, 4, 0, 0, 0, 0, 0],   // one longer than the header
        [1, 1, 1, 1, 1, 1, 1, 148], // one without room for its length
    ] {
        assert_eq!(with_options(options).0, Kind::Malformed, "{options:?}");
    }
}

#[test]
fn a_length_of_zero_is_an_offloaded_packets_and_else_says_what_it_says() {
    let read_as = |frame: &[u8], offloaded| {
        let mut host = Host::new();
        (host.frame, host.offloaded) = (frame.to_vec(), offloaded);
        let mut packet = Packet::default();
        (super::frame(&host, &mut packet), packet.bytes)
    };
    let v4 = patched(&ends(V4).tcp(1, 2, "."), 16, &[0, 0]);
    assert_eq!(read_as(&v4, true), (Kind::Ip, 47));
    assert_eq!(read_as(&v4, false).0, Kind::Malformed);
    let v6 = patched(&ends(V6).tcp(1, 2, "."), 18, &[0, 0]);
    assert_eq!(read_as(&v6, true), (Kind::Ip, 67));
    assert_eq!(read_as(&v6, false).0, Kind::Malformed, "a receiver cuts the segment off");
    // Nothing behind the header is a packet too; a jumbogram is none that could be on this device.
    let empty = ends(V6).ip(IpNumber(59), &[]);
    assert_eq!(read_as(&empty, false), (Kind::Ip, 40));
    let jumbo = [&[6, 0, 0xc2, 4, 0, 1, 0, 0][..], &ends(V6).tcp(1, 2, ".")[54..]].concat();
    let jumbo = patched(&ends(V6).ip(IpNumber(0), &jumbo), 18, &[0, 0]);
    assert_eq!(read_as(&jumbo, false).0, Kind::Malformed);
    assert_eq!(read_as(&jumbo, true), (Kind::Ip, 75));
}

#[test]
fn fragments_that_nobody_would_cut_are_malformed() {
    for pair in [V4, V6] {
        let whole = ends(pair).ip(IpNumber::UDP, &[&[0, 1, 0, 2, 0, 40, 0, 0][..], &[7; 32]].concat());
        for (offset, bytes, more, want) in [
            (0, 16, true, Kind::Ip),
            (0, 12, true, Kind::Malformed), // ends between two steps
            (2, 8, true, Kind::Ip),
            (2, 12, true, Kind::Malformed),
            (2, 12, false, Kind::Ip),       // the last may end anywhere
            (5, 8, false, Kind::Malformed), // empty
        ] {
            let frame = ends(pair).fragment(&whole, 9, offset, bytes, more);
            assert_eq!(read(&frame).0, want, "{bytes} bytes from {offset}, more: {more}");
        }
        // As far back as offsets reach, and beyond the largest packet.
        let last = ends(pair).fragment(&whole, 9, 1, 7, false);
        let at = if pair == V4 { 20 } else { 56 };
        let shift = if pair == V4 { 0 } else { 3 };
        let placed = |units: u16| patched(&last, at, &(units << shift).to_be_bytes());
        assert_eq!(read(&placed(8_191)).0, Kind::Ip, "65,528 + 7 bytes");
        let one_more = patched(&ends(pair).fragment(&whole, 9, 1, 8, false), at, &(8_191_u16 << shift).to_be_bytes());
        malformed(&one_more);
    }
}

#[test]
fn two_fragment_headers_are_malformed_whichever_cuts() {
    let whole_first = [&[44, 0, 0, 0, 0, 0, 0, 9][..], &[17, 0, 0, 1, 0, 0, 0, 9], &udp_bytes()].concat();
    malformed(&ends(V6).ip(IpNumber(44), &whole_first));
    let once = [&[17, 0, 0, 0, 0, 0, 0, 9][..], &udp_bytes()].concat();
    check(&ends(V6).ip(IpNumber(44), &once), (Kind::Ip, protocol::UDP, 12_345, 53, FRAGMENT_NONE));
}

#[test]
fn headers_behind_the_fragment_header_belong_to_the_first_fragment() {
    let inner = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &[0, 1, 0, 2, 0, 16, 0, 0], &[7; 8]].concat();
    let first = [&[60, 0, 0, 1, 0, 0, 0, 9][..], &inner].concat();
    check(&ends(V6).ip(IpNumber(44), &first), (Kind::Ip, protocol::UDP, 1, 2, FRAGMENT_FIRST));
    // The headers go on beyond it: what would be judged is in the next one.
    malformed(&ends(V6).ip(IpNumber(44), &first[..16]));
    // In a later one the same bytes are payload.
    let later = [&[60, 0, 0, 8, 0, 0, 0, 9][..], &inner].concat();
    check(&ends(V6).ip(IpNumber(44), &later), (Kind::Ip, 60, 0, 0, FRAGMENT_LATER));
}

#[test]
fn sealed_and_empty_packets_and_unknown_protocols_are_told_by_number() {
    for pair in [V4, V6] {
        for number in [4, 33, 41, 47, 50, 59, 103, 135, 139, 255] {
            check(&ends(pair).ip(IpNumber(number), &[0xff; 24]), (Kind::Ip, number, 0, 0, FRAGMENT_NONE));
        }
        check(&ends(pair).ip(IpNumber(136), &udp_bytes()), (Kind::Ip, protocol::UDPLITE, 12_345, 53, FRAGMENT_NONE));
        malformed(&ends(pair).ip(IpNumber::SCTP, &[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0]));
    }
}
