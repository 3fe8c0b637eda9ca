//! ARP and neighbour discovery through the whole walk.

use crate::env::Action::{self, Continue, Drop};
use crate::host::{CLIENT, CLIENT_DEVICE, Ends, HOST, POD, REMOTE, UPLINK, WORLD, World, decided};
use reeve_abi::decision;
use reeve_abi::ids::ClassId;
use reeve_abi::stats;
use std::net::IpAddr;

const LINK_LOCAL: &str = "fe80::2";

/// Nothing may come or go.
fn closed() -> World {
    let mut world = World::new();
    world.row(1, ClassId(0), decided(false, 1));
    world.select(1, 1);
    world
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

#[track_caller]
fn check_from_pod(frame: &[u8], want: Action) {
    let mut world = closed();
    assert_eq!(world.pod_sends(frame), want, "{frame:02x?}");
    if want == Continue {
        assert_eq!((world.events(), world.host.stat(stats::NEIGHBOUR)), (vec![], 1));
    } else {
        assert_eq!(world.event().decision, decision::FORGED_NEIGHBOUR);
        assert_eq!(world.host.stat(stats::FORGED_NEIGHBOUR), 1);
    }
}

#[test]
fn arp_from_a_pod_speaks_for_its_own_address_only() {
    check_from_pod(&POD.to(HOST, false).arp(), Continue);
    check_from_pod(&POD.to(POD, false).arp(), Continue); // gratuitous
    check_from_pod(&CLIENT.to(HOST, false).arp(), Drop);
    check_from_pod(&CLIENT.to(CLIENT, false).arp(), Drop);
    // A probe (RFC 5227) for its own address, and for another's.
    let unspecified = ip("0.0.0.0");
    check_from_pod(&Ends(unspecified, POD.ip(false)).arp(), Continue);
    check_from_pod(&Ends(unspecified, CLIENT.ip(false)).arp(), Drop);
}

#[test]
fn a_pod_without_ipv4_address_sends_no_arp() {
    let mut world = closed();
    world.endpoint().address_v4 = crate::host::addresses(ip("::"));
    assert_eq!(world.pod_sends(&POD.to(HOST, false).arp()), Drop);
    assert_eq!(world.pod_sends(&Ends(ip("0.0.0.0"), ip("0.0.0.0")).arp()), Drop);
}

#[test]
fn arp_reaches_the_pod() {
    for (who, by) in [(CLIENT, CLIENT_DEVICE), (HOST, 0)] {
        let mut world = closed();
        assert_eq!(world.pod_gets(&who.to(POD, false).arp(), by), Continue);
        // Control: an ordinary packet of the same sender.
        let want = if who == HOST { Continue } else { Drop };
        assert_eq!(world.pod_gets(&who.to(POD, false).udp(1, 2), by), want);
    }
}

#[test]
fn solicitations_of_a_pod_come_from_its_own_addresses() {
    let target = HOST.ip(true);
    for (source, want) in [(POD.ip(true), Continue), (ip(LINK_LOCAL), Continue), (ip("::"), Continue)] {
        // Without a source it is about the pod's own address to be.
        let about = if source == ip("::") { POD.ip(true) } else { target };
        check_from_pod(&Ends(source, ip("ff02::1:ff00:1")).discovery(135, about), want);
        check_from_pod(&router_solicitation(source, ip("ff02::2")), want);
    }
    for source in [CLIENT.ip(true), WORLD.ip(true)] {
        check_from_pod(&Ends(source, ip("ff02::1:ff00:1")).discovery(135, target), Drop);
        check_from_pod(&router_solicitation(source, ip("ff02::2")), Drop);
    }
}

#[test]
fn advertisements_of_a_pod_are_about_itself() {
    let to = HOST.ip(true);
    check_from_pod(&Ends(POD.ip(true), to).discovery(136, POD.ip(true)), Continue);
    check_from_pod(&Ends(ip(LINK_LOCAL), to).discovery(136, POD.ip(true)), Continue);
    check_from_pod(&Ends(ip(LINK_LOCAL), to).discovery(136, ip(LINK_LOCAL)), Continue);
    check_from_pod(&Ends(POD.ip(true), to).discovery(136, CLIENT.ip(true)), Drop);
    check_from_pod(&Ends(CLIENT.ip(true), to).discovery(136, POD.ip(true)), Drop);
    check_from_pod(&Ends(ip("::"), to).discovery(136, POD.ip(true)), Drop);
    // Too short for its target.
    let mut short = Ends(POD.ip(true), to).icmp(136, 0, [0; 4], &[0; 8]);
    short[14 + 7] = 255;
    check_from_pod(&short, Drop);
}

#[test]
fn a_link_local_address_that_another_pod_is_known_to_have_is_not_the_pods() {
    let mut world = closed();
    let claim = Ends(ip(LINK_LOCAL), HOST.ip(true)).discovery(136, ip(LINK_LOCAL));
    assert_eq!(world.pod_sends(&claim), Continue);
    let value = world.host.addresses[&CLIENT.address(true)];
    world.host.addresses.insert(crate::host::addresses(ip(LINK_LOCAL)), value);
    assert_eq!(world.pod_sends(&claim), Drop);
}

#[test]
fn a_pod_is_no_router() {
    for kind in [134, 137] {
        for source in [POD.ip(true), ip(LINK_LOCAL)] {
            check_from_pod(&Ends(source, ip("ff02::1")).discovery(kind, POD.ip(true)), Drop);
        }
        let mut world = closed();
        let frame = Ends(ip("fe80::1"), ip("ff02::1")).discovery(kind, POD.ip(true));
        assert_eq!(world.pod_gets(&frame, UPLINK), Continue);
    }
}

#[test]
fn discovery_that_crossed_a_router_is_ordinary_icmp() {
    let mut frame = REMOTE.to(POD, true).discovery(136, REMOTE.ip(true));
    let mut world = closed();
    assert_eq!(world.pod_gets(&frame, UPLINK), Continue);
    frame[14 + 7] = 254;
    assert_eq!(world.pod_gets(&frame, UPLINK), Drop);
    let event = world.event();
    assert_eq!((event.decision, event.port), (decided(false, 1), 136 << 8));
}

/// A message of multicast listener discovery; hop limit 1, as RFC 3810 has it.
fn listener(source: IpAddr, to: IpAddr, kind: u8) -> Vec<u8> {
    with_hop_limit(Ends(source, to).icmp(kind, 0, [0; 4], &[0; 16]), 1)
}

fn with_hop_limit(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    frame[14 + 7] = hops;
    frame
}

fn router_solicitation(source: IpAddr, to: IpAddr) -> Vec<u8> {
    with_hop_limit(Ends(source, to).icmp(133, 0, [0; 4], &[]), 255)
}

#[test]
fn multicast_listener_discovery_passes() {
    for kind in [131, 132, 143] {
        for source in [LINK_LOCAL, "::"] {
            check_from_pod(&listener(ip(source), ip("ff02::16"), kind), Continue);
        }
        // Of another pod's link-local address.
        let mut world = closed();
        let value = world.host.addresses[&CLIENT.address(true)];
        world.host.addresses.insert(crate::host::addresses(ip("fe80::3")), value);
        assert_eq!(world.pod_sends(&listener(ip("fe80::3"), ip("ff02::16"), kind)), Drop);
    }
    let mut world = closed();
    for kind in [130, 131, 132, 143] {
        assert_eq!(world.pod_gets(&listener(ip("fe80::1"), ip("ff02::1"), kind), 0), Continue);
    }
    assert_eq!(world.pod_sends(&listener(ip(LINK_LOCAL), ip("ff02::16"), 144)), Drop);
}

#[test]
fn a_pod_does_not_ask_who_listens() {
    check_from_pod(&listener(ip(LINK_LOCAL), ip("ff02::1"), 130), Drop);
}

#[test]
fn what_only_looks_like_listener_discovery_is_judged_by_policy() {
    let to_anyone = with_hop_limit(POD.to(WORLD, true).icmp(143, 0, [0; 4], b"by courier..."), 1);
    let far = with_hop_limit(listener(POD.ip(true), ip("ff02::16"), 143), 64);
    let global = listener(POD.ip(true), ip("ff02::16"), 143);
    for frame in [to_anyone, far, global] {
        let mut world = World::new();
        world.row(1, ClassId(0), decided(false, 1));
        world.row(2, ClassId(0), decided(false, 2));
        world.select(1, 2);
        assert_eq!(world.pod_sends(&frame), Drop, "{frame:02x?}");
        let event = world.event();
        assert_eq!((event.decision, event.port), (decided(false, 2), 143 << 8));
        // Control: a policy may let it out, and says so.
        world.row(2, ClassId(0), decided(true, 3));
        world.select(1, 2);
        assert_eq!(world.pod_sends(&frame), Continue);
        assert_eq!(world.event().decision, decided(true, 3));
    }
    // From this link by its addresses, but not by its hop limit.
    let routed = with_hop_limit(listener(ip("fe80::1"), ip("ff02::1"), 131), 64);
    let mut world = closed();
    assert_eq!(world.pod_gets(&routed, UPLINK), Drop);
    assert_eq!(world.event().decision, decided(false, 1));
    assert_eq!(world.pod_gets(&with_hop_limit(routed, 1), UPLINK), Continue);
    let mut world = closed();
    assert_eq!(world.pod_gets(&with_hop_limit(WORLD.to(POD, true).icmp(143, 0, [0; 4], &[0; 16]), 1), UPLINK), Drop);
}

#[test]
fn discovery_that_the_node_would_forward_is_judged_by_policy() {
    for (to, passes) in [
        (WORLD.ip(true), false),
        (ip("ff05::2"), false),
        (HOST.ip(true), true),
        (CLIENT.ip(true), true),
        (ip("fe80::9"), true),
    ] {
        for frame in [
            Ends(POD.ip(true), to).discovery(135, to),
            Ends(POD.ip(true), to).discovery(136, POD.ip(true)),
            router_solicitation(POD.ip(true), to),
        ] {
            let mut world = World::new();
            world.row(2, ClassId(0), decided(false, 2));
            world.select(0, 2);
            assert_eq!(world.pod_sends(&frame), if passes { Continue } else { Drop }, "{to} {frame:02x?}");
            let told: Vec<_> = world.events().iter().map(|event| event.decision).collect();
            assert_eq!(told, if passes { vec![] } else { vec![decided(false, 2)] });
        }
    }
}

#[test]
fn a_pod_does_not_ask_whether_anothers_address_is_taken() {
    let ask = |target| Ends(ip("::"), ip("ff02::1:ff00:3")).discovery(135, target);
    check_from_pod(&ask(CLIENT.ip(true)), Drop);
    check_from_pod(&ask(POD.ip(true)), Continue);
    check_from_pod(&ask(ip(LINK_LOCAL)), Continue);
}

#[test]
fn options_of_discovery_are_whole_and_few() {
    let link_layer = [1, 1, 2, 2, 2, 2, 2, 2];
    let message = |options: &[u8]| {
        let body = [&POD.address(true).0[..], options].concat();
        with_hop_limit(Ends(POD.ip(true), HOST.ip(true)).icmp(136, 0, [0; 4], &body), 255)
    };
    check_from_pod(&message(&[]), Continue);
    check_from_pod(&message(&link_layer), Continue);
    check_from_pod(&message(&link_layer.repeat(8)), Continue);
    check_from_pod(&message(&link_layer.repeat(9)), Drop);
    check_from_pod(&message(&[1, 0, 2, 2, 2, 2, 2, 2]), Drop); // an option without length
    check_from_pod(&message(&[1, 2, 2, 2, 2, 2, 2, 2]), Drop); // and one beyond the end
    check_from_pod(&message(&[1, 1, 2]), Drop);
}

#[test]
fn discovery_in_fragments_is_forged_wherever_it_comes_from() {
    let ends = POD.to(HOST, true);
    let whole = ends.discovery(136, POD.ip(true));
    check_from_pod(&whole, Continue);
    check_from_pod(&with_hop_limit(ends.fragment(&whole, 9, 0, 24, true), 255), Drop);
    let mut world = World::new();
    let ends = Ends(ip("fe80::1"), ip("ff02::1"));
    let whole = ends.discovery(134, POD.ip(true));
    assert_eq!(world.pod_gets(&whole, UPLINK), Continue);
    assert_eq!(world.pod_gets(&with_hop_limit(ends.fragment(&whole, 9, 0, 24, true), 255), UPLINK), Drop);
    assert_eq!(world.event().decision, reeve_abi::decision::FORGED_NEIGHBOUR);
}

#[test]
fn a_pod_redirects_nobody_and_advertises_no_route_over_ipv4() {
    let mut world = World::new();
    // A live flow that the redirect quotes would make any other error pass.
    let incoming = CLIENT.to(POD, false).udp(40_000, 53);
    assert_eq!(world.pod_gets(&incoming, CLIENT_DEVICE), Continue);
    world.events();
    let quoted = &incoming[14..];
    let about = |kind| POD.to(CLIENT, false).icmp(kind, 1, [10, 0, 0, 2], quoted);
    for (kind, want) in [(5, Drop), (9, Drop), (3, Continue), (11, Continue)] {
        assert_eq!(world.pod_sends(&about(kind)), want, "type {kind}");
    }
    let told: Vec<_> = world.events().iter().map(|event| event.decision).collect();
    assert_eq!(told, [decision::FORGED_NEIGHBOUR; 1], "the same tuple is told once");
    assert_eq!(world.host.stat(stats::FORGED_NEIGHBOUR), 2);
}
