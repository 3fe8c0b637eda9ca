//! Fragments share the fate of the first one.

use crate::env::Action::{Continue, Drop};
use crate::host::{Ends, POD, REMOTE, UPLINK, WORLD, World, decided, event_kinds};
use reeve_abi::config::SECOND_NS;
use reeve_abi::decision;
use reeve_abi::event::{EVENT_DENIED, EVENT_OPENED};
use reeve_abi::ids::ClassId;

/// Only port 53 of the pod may be reached, by datagrams; the pod may send nothing.
fn only_port_53() -> World {
    let mut world = World::new();
    world.row_with_table(1, ClassId(0), decided(false, 1), 5, 0);
    world.port(5, 17, 53, decided(true, 2));
    world.row(2, ClassId(0), decided(false, 3));
    world.select(1, 2);
    world
}

/// First and later part of a packet.
fn parts(ends: Ends, whole: &[u8], id: u16) -> [Vec<u8>; 2] {
    [ends.fragment(whole, id, 0, 8, true), ends.fragment(whole, id, 1, 99, false)]
}

#[test]
fn a_later_fragment_shares_the_fate_of_the_first() {
    for v6 in [false, true] {
        for (port, want, decider) in [(53, Continue, decided(true, 2)), (54, Drop, decided(false, 1))] {
            let mut world = only_port_53();
            let ends = REMOTE.to(POD, v6);
            let [first, later] = parts(ends, &ends.udp(40_000, port), 9);
            assert_eq!(world.pod_gets(&first, UPLINK), want);
            assert_eq!(world.pod_gets(&later, UPLINK), want);
            let events = world.events();
            assert_eq!(events.len(), 1, "one tuple: {events:#?}");
            assert_eq!((events[0].decision, events[0].port), (decider, u32::from(port)));
        }
    }
}

#[test]
fn a_later_fragment_whose_first_was_not_seen_is_denied() {
    for v6 in [false, true] {
        let ends = REMOTE.to(POD, v6);
        let [first, later] = parts(ends, &ends.udp(40_000, 53), 9);
        let [_, other] = parts(ends, &ends.udp(40_000, 53), 10);
        let mut world = only_port_53();
        assert_eq!(world.pod_gets(&later, UPLINK), Drop);
        assert_eq!(world.event().decision, decision::UNKNOWN_FRAGMENT);
        assert_eq!(world.pod_gets(&first, UPLINK), Continue);
        assert_eq!(world.pod_gets(&other, UPLINK), Drop, "of another packet");
        let kinds = event_kinds(&world.events());
        assert_eq!(kinds[0], (EVENT_OPENED, decided(true, 2)));
        assert_eq!(world.pod_gets(&later, UPLINK), Continue);
    }
}

#[test]
fn fragments_at_one_hook_say_nothing_at_the_other() {
    let mut world = only_port_53();
    let ends = REMOTE.to(POD, false);
    let [first, later] = parts(ends, &ends.udp(40_000, 53), 9);
    assert_eq!(world.pod_gets(&first, UPLINK), Continue);
    world.events();
    // The pod cannot send it: its source is another's, known fragment or not.
    assert_eq!(world.pod_sends(&later), Drop);
    assert_eq!(world.pod_gets(&later, UPLINK), Continue);
}

#[test]
fn a_first_fragment_is_forgotten_after_a_minute() {
    for (ns, want) in [(60 * SECOND_NS, Continue), (60 * SECOND_NS + 4_000_000, Drop)] {
        let mut world = World::new();
        let ends = REMOTE.to(POD, false);
        let [first, later] = parts(ends, &ends.udp(40_000, 53), 9);
        world.pod_gets(&first, UPLINK);
        world.host.now_ns += ns;
        assert_eq!(world.pod_gets(&later, UPLINK), want);
    }
}

#[test]
fn a_fragmented_answer_to_a_ping_belongs_to_the_ping() {
    for v6 in [false, true] {
        let mut world = World::new();
        world.row(1, ClassId(0), decided(false, 1));
        world.select(1, 0);
        let back = REMOTE.to(POD, v6);
        assert_eq!(world.pod_sends(&back.back().ping(7)), Continue);
        let [first, later] = parts(back, &back.pong(7), 9);
        assert_eq!(world.pod_gets(&first, UPLINK), Continue);
        assert_eq!(world.pod_gets(&later, UPLINK), Continue);
        assert_eq!(world.events().len(), 1);
        let [first, later] = parts(back, &back.pong(8), 10);
        assert_eq!(world.pod_gets(&first, UPLINK), Drop);
        assert_eq!(world.pod_gets(&later, UPLINK), Drop);
        assert_eq!(event_kinds(&world.events()), [(EVENT_DENIED, decided(false, 1))]);
    }
}

#[test]
fn a_later_fragment_that_reaches_into_the_first_is_malformed() {
    for v6 in [false, true] {
        let ends = REMOTE.to(POD, v6);
        let whole = ends.tcp(40_000, 80, "S");
        let mut world = World::new();
        // Its flags stand in the first 24 bytes: from byte 8 or 16 on they would be written over.
        let first = ends.fragment(&whole, 9, 0, 24, true);
        for (offset, want) in [(1, Drop), (2, Drop), (3, Continue)] {
            assert_eq!(world.pod_gets(&first, UPLINK), Continue);
            world.events();
            let later = ends.fragment(&whole, 9, offset, 8, true);
            let later = if offset == 3 { ends.fragment(&whole, 9, 3, 8, false) } else { later };
            assert_eq!(world.pod_gets(&later, UPLINK), want, "offset {offset}");
            let kinds = event_kinds(&world.events());
            if want == Drop && offset == 1 {
                assert_eq!(kinds, [(EVENT_DENIED, decision::MALFORMED_PACKET)]);
            }
        }
        assert_eq!(world.host.stat(reeve_abi::stats::MALFORMED), 2);
    }
}

#[test]
fn another_first_fragment_is_judged_by_itself_and_the_later_ones_follow_it() {
    for v6 in [false, true] {
        let mut world = only_port_53();
        let ends = REMOTE.to(POD, v6);
        let [good, later] = parts(ends, &ends.udp(40_000, 53), 9);
        let [bad, _] = parts(ends, &ends.udp(40_000, 54), 9);
        assert_eq!(world.pod_gets(&good, UPLINK), Continue);
        assert_eq!(world.pod_gets(&bad, UPLINK), Drop);
        assert_eq!(world.pod_gets(&later, UPLINK), Drop);
        assert_eq!(world.pod_gets(&good, UPLINK), Continue);
        assert_eq!(world.pod_gets(&later, UPLINK), Continue);
    }
}

#[test]
fn a_first_fragment_in_another_pods_name_says_nothing_of_that_pods() {
    for v6 in [false, true] {
        let mut world = World::new();
        // The world tests the pod; the thief stands for another endpoint whose walk writes the same maps.
        let ends = POD.to(REMOTE, v6);
        let [first, later] = parts(ends, &ends.udp(40_000, 53), 9);
        assert_eq!(world.pod_sends(&first), Continue);
        world.events();
        let own = *world.endpoint();
        world.endpoint().address_v4 = crate::host::CLIENT.address(false);
        world.endpoint().address_v6 = crate::host::CLIENT.address(true);
        let [forged, _] = parts(ends, &ends.udp(1, 2), 9);
        assert_eq!(world.pod_sends(&forged), Drop);
        assert_eq!(world.event().decision, decision::SPOOFED_SOURCE);
        *world.endpoint() = own;
        assert_eq!(world.pod_sends(&later), Continue);
        assert_eq!(world.events(), [], "it belongs to the pod's own flow");
        assert_eq!(world.host.flows.all().len(), 1);
    }
}

#[test]
fn payload_of_a_later_fragment_is_not_read_as_a_quoted_packet() {
    for v6 in [false, true] {
        let mut world = World::new();
        world.row(1, ClassId(0), decided(false, 1));
        world.select(1, 0);
        let request = POD.to(REMOTE, v6).udp(40_000, 53);
        assert_eq!(world.pod_sends(&request), Continue);
        world.events();
        let router = WORLD.to(POD, v6);
        // The same bytes once where the quoted packet stands, once in the part behind.
        let error = router.unreachable(&request);
        assert_eq!(world.pod_gets(&error, UPLINK), Continue);
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let whole = router.icmp(kind, code, [0; 4], &[&[0; 8][..], &request[14..]].concat());
        assert_eq!(world.pod_gets(&router.fragment(&whole, 9, 0, 8, true), UPLINK), Drop);
        assert_eq!(world.pod_gets(&router.fragment(&whole, 9, 1, 99, false), UPLINK), Drop);
        assert_eq!(event_kinds(&world.events()), [(EVENT_DENIED, decided(false, 1))]);
    }
}

#[test]
fn a_later_fragment_of_a_denied_segment_opens_nothing_the_other_way_round() {
    for v6 in [false, true] {
        let mut world = World::new();
        world.row(1, ClassId(0), decided(false, 1));
        world.row(2, ClassId(0), decided(true, 2));
        world.select(1, 2);
        let ends = REMOTE.to(POD, v6);
        let whole = ends.tcp(40_000, 22, "S");
        assert_eq!(world.pod_gets(&ends.fragment(&whole, 9, 0, 24, true), UPLINK), Drop);
        assert_eq!(world.pod_gets(&ends.fragment(&whole, 9, 3, 99, false), UPLINK), Drop);
        assert_eq!(event_kinds(&world.events()), [(EVENT_DENIED, decided(false, 1))]);
        assert!(world.host.flows.all().is_empty());
    }
}
