//! Who a packet may come from: spoofed sources, the own node, contested addresses, unreadable state.

use crate::env::Action::{Continue, Drop};
use crate::host::{
    CLIENT, CLIENT_DEVICE, HOST, POD, POD_DEVICE, REMOTE, UPLINK, WORLD, World, decided, event_kinds, with_vlan,
};
use reeve_abi::address::{Address, OWNER_CONTESTED, OWNER_LOCAL_POD};
use reeve_abi::decision;
use reeve_abi::endpoint::{ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6, ENDPOINT_READY, EndpointValue, NEAR_PLACES};
use reeve_abi::event::EVENT_DENIED;
use reeve_abi::ids::{ClassId, DecisionId};
use reeve_abi::stats;

/// Everybody may come in and go out, by policies 1 and 2.
fn open() -> World {
    let mut world = World::new();
    world.row(1, ClassId(0), decided(true, 1));
    world.row(2, ClassId(0), decided(true, 2));
    world.select(1, 2);
    world
}

/// Only the node itself may come in.
fn closed() -> World {
    let mut world = World::new();
    world.row(1, ClassId(0), decided(false, 1));
    world.row(2, ClassId(0), decided(false, 2));
    world.select(1, 2);
    world
}

#[test]
fn a_pod_speaks_only_for_its_own_addresses() {
    for v6 in [false, true] {
        for (who, want, decider) in [
            (POD, Continue, decided(true, 2)),
            (CLIENT, Drop, decision::SPOOFED_SOURCE),
            (WORLD, Drop, decision::SPOOFED_SOURCE),
            (HOST, Drop, decision::SPOOFED_SOURCE),
        ] {
            let mut world = open();
            assert_eq!(world.pod_sends(&who.to(REMOTE, v6).udp(1, 2)), want, "{who:?}");
            let event = world.event();
            assert_eq!((event.decision, event.local), (decider, who.address(v6)));
        }
    }
}

#[test]
fn a_pod_without_an_address_of_the_family_speaks_for_none() {
    let mut world = open();
    world.endpoint().address_v6 = Address::default();
    for (v6, want) in [(true, Drop), (false, Continue)] {
        assert_eq!(world.pod_sends(&POD.to(REMOTE, v6).udp(1, 2)), want);
    }
    let unspecified = crate::host::Ends("::".parse().unwrap(), REMOTE.ip(true));
    assert_eq!(world.pod_sends(&unspecified.udp(1, 2)), Drop);
}

#[test]
fn a_local_pods_address_comes_from_its_own_device_or_bridge() {
    for (by, want) in [(CLIENT_DEVICE, Continue), (7, Continue), (UPLINK, Drop), (12, Drop), (0, Drop)] {
        for v6 in [false, true] {
            let mut world = open();
            world.host.addresses.get_mut(&CLIENT.address(v6)).unwrap().bridge = 7;
            assert_eq!(world.pod_gets(&CLIENT.to(POD, v6).tcp(1, 2, "S"), by), want, "by {by}");
            let decider = if want == Continue { decided(true, 1) } else { decision::SPOOFED_SOURCE };
            assert_eq!(world.event().decision, decider);
        }
    }
}

#[test]
fn a_local_pods_address_is_nobodys_until_its_device_is_known() {
    for (device, want) in [(0, Drop), (CLIENT_DEVICE, Continue)] {
        let mut world = open();
        world.own(CLIENT, OWNER_LOCAL_POD, device);
        assert_eq!(world.pod_gets(&CLIENT.to(POD, false).udp(1, 2), CLIENT_DEVICE), want);
    }
}

#[test]
fn a_remote_pods_address_is_not_made_on_this_node() {
    for (by, want) in [(UPLINK, Continue), (0, Drop)] {
        let mut world = open();
        assert_eq!(world.pod_gets(&REMOTE.to(POD, false).udp(1, 2), by), want);
    }
}

#[test]
fn an_established_flow_does_not_excuse_a_spoofed_source() {
    let mut world = open();
    let request = CLIENT.to(POD, false);
    assert_eq!(world.pod_gets(&request.udp(1, 2), CLIENT_DEVICE), Continue);
    world.events();
    assert_eq!(world.pod_gets(&request.udp(1, 2), 12), Drop);
    assert_eq!(world.event().decision, decision::SPOOFED_SOURCE);
    assert_eq!(world.pod_gets(&request.udp(1, 2), CLIENT_DEVICE), Continue);
    // Nor does a flow that the pod itself opened.
    assert_eq!(world.pod_sends(&POD.to(CLIENT, false).udp(5, 6)), Continue);
    world.events();
    assert_eq!(world.pod_gets(&request.udp(6, 5), 0), Drop);
    assert_eq!(world.event().decision, decision::SPOOFED_SOURCE);
    assert_eq!(world.pod_gets(&request.udp(6, 5), CLIENT_DEVICE), Continue);
}

#[test]
fn what_the_own_node_makes_is_let_in_and_nothing_that_only_shows_its_address() {
    for v6 in [false, true] {
        for (who, by, want, decider) in [
            (HOST, 0, Continue, decision::OWN_NODE),
            (HOST, UPLINK, Drop, decided(false, 1)),
            (HOST, CLIENT_DEVICE, Drop, decided(false, 1)),
            (WORLD, 0, Drop, decided(false, 1)),
        ] {
            let mut world = closed();
            assert_eq!(world.pod_gets(&who.to(POD, v6).tcp(40_000, 8_080, "S"), by), want, "{who:?} by {by}");
            assert_eq!(world.event().decision, decider);
        }
    }
}

#[test]
fn the_own_nodes_connection_goes_on_through_every_policy_change() {
    let mut world = closed();
    let probe = HOST.to(POD, false);
    assert_eq!(world.pod_gets(&probe.tcp(40_000, 8_080, "S"), 0), Continue);
    world.events();
    world.select(1, 2);
    assert_eq!(world.pod_sends(&probe.back().tcp(8_080, 40_000, "S.")), Continue);
    assert_eq!(world.pod_gets(&probe.tcp(40_000, 8_080, "."), 0), Continue);
    assert_eq!(world.events(), []);
    // Its flow is of no use to anyone who comes by another way.
    assert_eq!(world.pod_gets(&probe.tcp(40_000, 8_080, "."), UPLINK), Drop);
    assert_eq!(event_kinds(&world.events()), [(EVENT_DENIED, decided(false, 1))]);
    assert_eq!(world.pod_gets(&probe.tcp(40_000, 8_080, "."), 0), Continue);
}

#[test]
fn the_own_node_is_let_in_before_the_first_image() {
    for (by, want) in [(0, Continue), (UPLINK, Drop)] {
        let mut world = closed();
        world.endpoint().flags = 0;
        assert_eq!(world.pod_gets(&HOST.to(POD, false).tcp(1, 2, "S"), by), want);
        let decider = if want == Continue { decision::OWN_NODE } else { decision::NOT_READY };
        assert_eq!(world.event().decision, decider);
    }
}

#[test]
fn what_a_pod_sends_to_its_own_node_is_judged() {
    for (mut world, want) in [(open(), Continue), (closed(), Drop)] {
        assert_eq!(world.pod_sends(&POD.to(HOST, false).tcp(1, 22, "S")), want);
        assert_eq!(world.event().peer_identity, reeve_abi::ids::IDENTITY_HOST);
    }
}

#[test]
fn a_contested_address_is_judged_as_nobodys() {
    for (contested, want, decider) in [(true, Drop, decision_of_contested()), (false, Continue, decided(true, 8))] {
        let mut world = open();
        world.row(1, REMOTE.class(), decided(true, 8));
        world.host.classes.insert(reeve_abi::ids::IDENTITY_CONTESTED, ClassId(77));
        world.row(1, ClassId(77), decision_of_contested());
        if contested {
            let value = world.host.addresses.get_mut(&REMOTE.address(false)).unwrap();
            value.owner = OWNER_CONTESTED;
            value.identity = reeve_abi::ids::IDENTITY_CONTESTED;
            value.workload.0 = 0;
        }
        assert_eq!(world.pod_gets(&REMOTE.to(POD, false).udp(1, 2), UPLINK), want);
        let event = world.event();
        assert_eq!(event.decision, decider);
        assert_eq!(event.peer_workload.0 == 0, contested);
    }
}

fn decision_of_contested() -> DecisionId {
    decided(false, 9)
}

#[test]
fn a_pod_whose_address_is_contested_neither_sends_nor_receives_in_that_family() {
    for (flag, closed_v6) in [(ENDPOINT_CONTESTED_V4, false), (ENDPOINT_CONTESTED_V6, true)] {
        for v6 in [false, true] {
            let mut world = open();
            world.endpoint().flags |= flag;
            let want = if v6 == closed_v6 { Drop } else { Continue };
            assert_eq!(world.pod_sends(&POD.to(REMOTE, v6).udp(1, 2)), want);
            assert_eq!(world.pod_gets(&REMOTE.to(POD, v6).udp(3, 4), UPLINK), want);
            let told: Vec<_> = world.events().iter().map(|event| event.decision).collect();
            let closed = [decision::CONTESTED_ADDRESS; 2];
            assert_eq!(told, if v6 == closed_v6 { closed } else { [decided(true, 2), decided(true, 1)] });
        }
    }
}

#[test]
fn a_contested_address_is_not_made_on_this_node() {
    let mut world = open();
    world.own(REMOTE, OWNER_CONTESTED, 0);
    assert_eq!(world.pod_gets(&REMOTE.to(POD, false).udp(1, 2), 0), Drop);
    assert_eq!(world.event().decision, decision::SPOOFED_SOURCE);
}

#[test]
fn a_frame_of_a_device_without_endpoint_goes_on() {
    let mut world = closed();
    let frame = POD.to(REMOTE, false).udp(1, 2);
    assert_eq!(world.pod_sends(&frame), Drop);
    world.events();
    world.host.endpoints.remove(&POD_DEVICE);
    assert_eq!(world.pod_sends(&frame), Continue);
    assert_eq!(world.pod_sends(&[1, 2, 3]), Continue);
    assert_eq!((world.events(), world.host.stat(stats::NO_ENDPOINT)), (vec![], 2));
}

#[test]
fn what_cannot_be_read_is_denied_and_named() {
    let frame = POD.to(REMOTE, false).tcp(1, 2, "S");
    let mut world = open();
    assert_eq!(world.pod_sends(&frame[..50]), Drop);
    let event = world.event();
    assert_eq!((event.decision, event.workload), (decision::MALFORMED_PACKET, POD.workload()));
    assert_eq!((event.local, event.remote, event.protocol), (Address::default(), Address::default(), 0));
    assert_eq!(world.host.stat(stats::MALFORMED), 1);
    assert_eq!(world.pod_sends(&frame), Continue);
    world.events();
    // Neither IP nor neighbour discovery: counted only.
    assert_eq!(world.pod_sends(&with_vlan(&frame)), Drop);
    assert_eq!((world.events(), world.host.stat(stats::NOT_IP)), (vec![], 1));
}

#[test]
fn a_torn_endpoint_is_read_again_and_then_the_packet_is_dropped() {
    for (torn, want, retries, inconsistent) in [(0, Continue, 0, 0), (2, Continue, 2, 0), (3, Drop, 3, 1)] {
        let mut world = open();
        world.host.torn_reads.set(torn);
        assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(1, 2)), want, "torn {torn} times");
        assert_eq!(world.host.stat(stats::ENDPOINT_RETRIES), retries);
        assert_eq!(world.host.stat(stats::INCONSISTENT), inconsistent);
    }
    // An element that became another endpoint's under the pointer.
    for (head, tail) in [(true, true), (true, false), (false, true)] {
        let mut world = open();
        let index = |other: bool| if other { CLIENT_DEVICE } else { POD_DEVICE };
        world.endpoint().head_ifindex = index(head);
        world.endpoint().tail_ifindex = index(tail);
        assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(1, 2)), Drop);
    }
}

#[test]
fn what_a_cpu_keeps_of_an_endpoint_counts_until_the_agent_says_that_it_has_written() {
    let mut world = open();
    let out = POD.to(REMOTE, false).udp(1, 2);
    assert_eq!(world.pod_sends(&out), Continue);
    world.endpoint().flags &= !ENDPOINT_READY;
    world.endpoint().address_v4 = CLIENT.address(false);
    world.host.generation -= 1; // nobody has said so yet
    assert_eq!(world.pod_sends(&out), Continue);
    assert_eq!(world.pod_sends(&out), Drop);
    // Nor does one interface's place speak for another that shares it.
    let other = POD_DEVICE + NEAR_PLACES;
    let value = world.host.endpoints[&POD_DEVICE];
    world.host.endpoints.insert(other, EndpointValue { head_ifindex: other, tail_ifindex: other, ..value });
    world.endpoint().address_v4 = POD.address(false);
    let inside = CLIENT.to(REMOTE, false).udp(3, 4);
    world.events();
    assert_eq!(world.emits(POD_DEVICE, &inside), Drop);
    assert_eq!(world.event().decision, decision::SPOOFED_SOURCE);
    world.host.generation -= 1;
    world.emits(other, &inside);
    assert_eq!(world.event().decision, decision::NOT_READY);
}
