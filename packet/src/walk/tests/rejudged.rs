//! Flows under a policy, or an address, that changes.

use crate::env::Action::{Continue, Drop};
use crate::host::{POD, REMOTE, UPLINK, World, decided, event_kinds};
use reeve_abi::address::OWNER_REMOTE_POD;
use reeve_abi::endpoint::ENDPOINT_READY;
use reeve_abi::event::{EVENT_CLOSED, EVENT_DENIED, EVENT_FLAG_CUT, EVENT_OPENED, EVENT_REJUDGED};
use reeve_abi::ids::ClassId;
use reeve_abi::stats;

/// Egress by policy 2 (allow) or 3 (deny); ingress not selected, so that a revived flow would be let in.
fn world() -> World {
    let mut world = World::new();
    world.row(2, ClassId(0), decided(true, 2));
    world.row(3, ClassId(0), decided(false, 3));
    world.row(4, ClassId(0), decided(true, 4));
    world.select(0, 2);
    world
}

#[test]
fn a_policy_that_denies_now_cuts_the_flow_in_both_directions() {
    for v6 in [false, true] {
        let mut world = world();
        let out = POD.to(REMOTE, v6);
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Continue);
        assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "S."), UPLINK), Continue);
        assert_eq!(world.event().kind, EVENT_OPENED);
        world.select(0, 3);
        assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "."), UPLINK), Drop);
        let event = world.event();
        assert_eq!((event.kind, event.flags, event.verdict), (EVENT_REJUDGED, EVENT_FLAG_CUT, 2));
        assert_eq!((event.previous, event.decision), (decided(true, 2), decided(false, 3)));
        assert_eq!((event.direction, event.port, event.packets), (1, 443, [1, 1]));
        assert_eq!(world.host.stat(stats::REJUDGED), 1);
        // Resent after up to two minutes, either way: nothing revives it.
        for _ in 0..3 {
            assert_eq!(world.after_s(120).pod_gets(&out.back().tcp(443, 40_000, "."), UPLINK), Drop);
            assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), Drop);
        }
        let events = world.events();
        assert!(
            events.iter().all(|e| (e.kind, e.flags, e.decision) == (EVENT_DENIED, EVENT_FLAG_CUT, decided(false, 3)))
        );
        let told: u64 = events.iter().map(|e| e.packets[0]).sum();
        let flow = world.host.flows.all()[0].1;
        assert_eq!(told, flow.flushed_packets.iter().sum::<u64>() - 2, "what was not told is yet to be flushed");
        // A new connection is a new judgement.
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Drop);
        assert_eq!(world.event().kind, EVENT_DENIED);
    }
}

#[test]
fn a_change_that_leaves_the_decision_is_silent() {
    let mut world = world();
    let out = POD.to(REMOTE, false);
    world.pod_sends(&out.udp(40_000, 53));
    world.events();
    world.select(0, 2);
    assert_eq!(world.pod_gets(&out.back().udp(53, 40_000), UPLINK), Continue);
    assert_eq!((world.events(), world.host.stat(stats::REJUDGED)), (vec![], 1));
    // It is judged once per revision.
    assert_eq!(world.pod_gets(&out.back().udp(53, 40_000), UPLINK), Continue);
    assert_eq!(world.host.stat(stats::REJUDGED), 1);
}

#[test]
fn another_decider_is_told_though_the_flow_goes_on() {
    let mut world = world();
    let out = POD.to(REMOTE, false);
    world.pod_sends(&out.udp(40_000, 53));
    world.events();
    world.select(0, 4);
    assert_eq!(world.pod_sends(&out.udp(40_000, 53)), Continue);
    let event = world.event();
    assert_eq!((event.kind, event.flags), (EVENT_REJUDGED, 0));
    assert_eq!((event.previous, event.decision), (decided(true, 2), decided(true, 4)));
}

#[test]
fn a_cut_flow_goes_on_when_the_policy_allows_it_again() {
    let mut world = world();
    let out = POD.to(REMOTE, false);
    world.pod_sends(&out.tcp(40_000, 443, "S"));
    world.select(0, 3);
    assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), Drop);
    world.events();
    world.select(0, 2);
    assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), Continue);
    let event = world.event();
    assert_eq!((event.kind, event.flags), (EVENT_REJUDGED, 0));
    assert_eq!((event.previous, event.decision), (decided(false, 3), decided(true, 2)));
    assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "."), UPLINK), Continue);
}

#[test]
fn a_denied_tuple_is_allowed_as_soon_as_policy_allows_it() {
    let mut world = world();
    world.select(0, 3);
    let datagram = POD.to(REMOTE, false).udp(40_000, 53);
    assert_eq!(world.pod_sends(&datagram), Drop);
    world.select(0, 2);
    assert_eq!(world.pod_sends(&datagram), Continue);
    let kinds = event_kinds(&world.events());
    assert_eq!(kinds, [(EVENT_DENIED, decided(false, 3)), (EVENT_OPENED, decided(true, 2))]);
}

#[test]
fn datagrams_of_the_other_side_of_a_cut_flow_are_judged_by_themselves_after_a_minute() {
    for (ingress, want) in [(0, Continue), (3, Drop)] {
        let mut world = world();
        let out = POD.to(REMOTE, false);
        world.pod_sends(&out.udp(123, 123));
        world.select(ingress, 3);
        for _ in 0..3 {
            assert_eq!(world.after_s(15).pod_gets(&out.back().udp(123, 123), UPLINK), Drop);
        }
        world.events();
        assert_eq!(world.after_s(30).pod_gets(&out.back().udp(123, 123), UPLINK), want);
        let event = world.event();
        assert_eq!(event.direction, 0, "judged as what it is: from outside to the pod");
    }
}

#[test]
fn a_flow_whose_peer_becomes_known_is_judged_again() {
    for (known_allows, want) in [(true, Continue), (false, Drop)] {
        let mut world = world();
        world.host.addresses.remove(&REMOTE.address(false));
        world.row(2, REMOTE.class(), decided(known_allows, 7));
        let out = POD.to(REMOTE, false);
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Continue);
        assert_eq!((world.event().decision, world.host.flows.all()[0].1.peer_workload.0), (decided(true, 2), 0));
        // Something else became known: the same decision.
        world.host.config.address_epoch += 1;
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), Continue);
        assert_eq!(world.events(), []);
        // The epoch rises after the address is stored.
        world.own(REMOTE, OWNER_REMOTE_POD, 0);
        world.host.config.address_epoch += 1;
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), want);
        let event = world.event();
        assert_eq!((event.kind, event.decision), (EVENT_REJUDGED, decided(known_allows, 7)));
        assert_eq!((event.peer_workload, event.peer_identity), (REMOTE.workload(), REMOTE.identity()));
        // Known now: the epoch means nothing to it any more.
        let judged = world.host.stat(stats::REJUDGED);
        world.host.config.address_epoch += 1;
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), want);
        assert_eq!(world.host.stat(stats::REJUDGED), judged);
    }
}

#[test]
fn a_pod_that_is_not_ready_keeps_what_is_established_and_opens_nothing() {
    let mut world = world();
    let out = POD.to(REMOTE, false);
    assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Continue);
    world.select(0, 3);
    world.endpoint().flags &= !ENDPOINT_READY;
    assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), Continue);
    assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "."), UPLINK), Continue);
    assert_eq!(world.pod_sends(&out.tcp(40_001, 443, "S")), Drop);
    let kinds = event_kinds(&world.events());
    assert_eq!(kinds, [(EVENT_OPENED, decided(true, 2)), (EVENT_DENIED, reeve_abi::decision::NOT_READY)]);
    // Ready: what is established is judged now.
    world.endpoint().flags |= ENDPOINT_READY;
    assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), Drop);
    assert_eq!(event_kinds(&world.events()), [(EVENT_REJUDGED, decided(false, 3))]);
    // What was cut stays cut, and counted, while it is not ready again.
    world.endpoint().flags &= !ENDPOINT_READY;
    world.select(0, 2);
    let before = world.host.flows.all()[0].1.packets[0];
    assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), Drop);
    assert_eq!(world.host.flows.all()[0].1.packets[0], before + 1);
}

#[test]
fn a_cut_flow_ends_without_a_record_of_its_own() {
    let mut world = world();
    let out = POD.to(REMOTE, false);
    world.pod_sends(&out.udp(40_000, 53));
    world.select(0, 3);
    world.pod_sends(&out.udp(40_000, 53));
    world.events();
    assert_eq!(world.after_s(61).pod_sends(&out.udp(40_000, 53)), Drop);
    let kinds: Vec<u8> = world.events().iter().map(|event| event.kind).collect();
    assert!(!kinds.contains(&EVENT_CLOSED), "{kinds:?}");
}
