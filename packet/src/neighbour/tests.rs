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
        check_from_pod(&Ends(source, ip("ff02::1:ff00:1")).discovery(135, target), want);
        check_from_pod(&Ends(source, ip("ff02::2")).discovery(133, target), want);
    }
    for source in [CLIENT.ip(true), WORLD.ip(true)] {
        check_from_pod(&Ends(source, ip("ff02::1:ff00:1")).discovery(135, target), Drop);
        check_from_pod(&Ends(source, ip("ff02::2")).discovery(133, target), Drop);
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

#[test]
fn multicast_listener_discovery_passes() {
    for kind in [130, 131, 132, 143] {
        check_from_pod(&Ends(ip(LINK_LOCAL), ip("ff02::16")).icmp(kind, 0, [0; 4], &[0; 16]), Continue);
    }
    let mut world = closed();
    assert_eq!(world.pod_sends(&POD.to(REMOTE, true).icmp(144, 0, [0; 4], &[0; 16])), Drop);
}
