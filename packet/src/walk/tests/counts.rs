//! Counters, edges and how often denials are told: every packet once.

use crate::env::Action::{Continue, Drop};
use crate::host::{CLIENT, CLIENT_DEVICE, POD, REMOTE, UPLINK, WORLD, World, decided, ports};
use reeve_abi::conntrack::BudgetValue;
use reeve_abi::decision;
use reeve_abi::edge::{EDGE_BANK, EDGE_OVERFLOW};
use reeve_abi::event::EVENT_DENIED;
use reeve_abi::ids::ClassId;
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};
use reeve_abi::stats;

/// Nobody may reach the pod but the client; the pod may reach anyone.
fn world() -> World {
    let mut world = World::new();
    world.row(1, ClassId(0), decided(false, 1));
    world.row(1, CLIENT.class(), decided(true, 2));
    world.row(2, ClassId(0), decided(true, 3));
    world.row(3, ClassId(0), decided(false, 4));
    world.select(1, 2);
    world
}

/// Packets in edge rows of a verdict.
fn in_edges(world: &World, verdict: u32) -> u64 {
    let rows = world.host.edges.all();
    rows.iter().filter(|(key, _)| key.kind >> 8 & 0xff == verdict).flat_map(|(_, value)| value.packets).sum()
}

/// Packets that live flows have not flushed yet.
fn unflushed(world: &World, verdict: u32) -> u64 {
    let flows = world.host.flows.all();
    let of = flows.iter().filter(|(_, flow)| flow.verdict == verdict);
    of.map(|(_, flow)| flow.packets.iter().sum::<u64>() - flow.flushed_packets.iter().sum::<u64>()).sum()
}

#[test]
fn repeated_denials_are_told_once_a_second_with_the_count() {
    let mut world = world();
    let datagram = REMOTE.to(POD, false).udp(40_000, 53);
    for _ in 0..100 {
        assert_eq!(world.pod_gets(&datagram, UPLINK), Drop);
        world.host.now_ns += 50_000_000;
    }
    let events = world.events();
    let told: Vec<u64> = events.iter().map(|event| event.packets[0]).collect();
    assert_eq!(told, [1, 20, 20, 20, 20]);
    assert!(events.iter().all(|event| event.kind == EVENT_DENIED && event.first_ns == events[0].time_ns));
    assert_eq!(in_edges(&world, VERDICT_DENY), 100);
    assert_eq!((world.host.stat(stats::DENIED_JUDGED), world.host.stat(stats::DENIED_REPEATED)), (1, 99));
    // Another tuple has a second of its own.
    assert_eq!(world.pod_gets(&REMOTE.to(POD, false).udp(40_001, 53), UPLINK), Drop);
    assert_eq!(world.event().packets, [1, 0]);
}

#[test]
fn a_denial_by_another_decider_is_told_at_once() {
    let mut world = world();
    let datagram = REMOTE.to(POD, false).udp(40_000, 53);
    world.pod_gets(&datagram, UPLINK);
    world.row(1, ClassId(0), decided(false, 5));
    world.select(1, 2);
    world.pod_gets(&datagram, UPLINK);
    let deciders: Vec<_> = world.events().iter().map(|event| event.decision).collect();
    assert_eq!(deciders, [decided(false, 1), decided(false, 5)]);
}

#[test]
fn denied_datagrams_of_the_pod_and_to_it_are_counted_apart() {
    let mut world = world();
    world.select(1, 3);
    let out = POD.to(REMOTE, false).udp(123, 123);
    let back = REMOTE.to(POD, false).udp(123, 123);
    assert_eq!((world.pod_sends(&out), world.pod_gets(&back, UPLINK)), (Drop, Drop));
    assert_eq!(world.host.denied.all().len(), 2);
    let directions: Vec<u32> = world.host.edges.all().iter().map(|(key, _)| key.kind & 1).collect();
    assert_eq!(directions.len(), 2);
    assert_ne!(directions[0], directions[1]);
}

#[test]
fn an_edge_has_the_packets_of_both_ways_and_one_connection() {
    let mut world = world();
    let ends = CLIENT.to(POD, false);
    world.pod_gets(&ends.tcp(40_000, 80, "S"), CLIENT_DEVICE);
    world.pod_sends(&ends.back().tcp(80, 40_000, "S."));
    world.after_s(1).pod_gets(&ends.tcp(40_000, 80, "."), CLIENT_DEVICE);
    let rows = world.host.edges.all();
    assert_eq!(rows.len(), 1);
    let (key, value) = rows[0];
    assert_eq!((key.subject, key.peer, key.peer_identity), (POD.workload(), CLIENT.workload(), CLIENT.identity()));
    assert_eq!((key.decision, key.revision.0), (decided(true, 2), 2));
    assert_eq!((key.service, key.kind), (ports(6, 80), VERDICT_ALLOW << 8));
    assert_eq!((value.connections, value.packets, value.bytes), (1, [2, 1], [94, 47]));
    assert_eq!(value.last_ns - value.first_ns, 1_000_000_000);
    // Another connection to the same port adds to the same row.
    world.pod_gets(&ends.tcp(40_001, 80, "S"), CLIENT_DEVICE);
    assert_eq!(world.host.edges.all()[0].1.connections, 2);
}

#[test]
fn offloaded_segments_count_each() {
    let mut world = world();
    world.host.segments = 40;
    world.pod_sends(&POD.to(REMOTE, false).tcp(1, 443, "S"));
    world.host.segments = 3;
    world.pod_gets(&REMOTE.to(POD, false).udp(1, 53), UPLINK);
    assert_eq!((in_edges(&world, VERDICT_ALLOW), in_edges(&world, VERDICT_DENY)), (40, 3));
}

#[test]
fn the_bank_in_the_settings_is_the_one_that_is_written() {
    let mut world = world();
    for bank in [0, 1] {
        world.host.config.edges_bank = bank;
        world.pod_gets(&REMOTE.to(POD, false).udp(1, 53), UPLINK);
    }
    let banks: Vec<u32> = world.host.edges.all().iter().map(|(key, _)| key.kind >> 16).collect();
    assert_eq!(banks, [0, 1]);
}

#[test]
fn an_edge_that_does_not_fit_is_counted_in_the_row_reserved_for_its_decision() {
    let mut world = world();
    world.host.edges.has_room.set(false);
    world.host.config.edges_bank = 1;
    for port in 1..=40 {
        assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(1, port)), Continue);
        assert_eq!(world.pod_gets(&REMOTE.to(POD, false).udp(port, 54), UPLINK), Drop);
        assert_eq!(world.pod_gets(&WORLD.to(POD, true).tcp(port, 54, "S"), UPLINK), Drop);
    }
    let rows = world.host.overflow.all();
    let told: Vec<_> = rows.iter().map(|(key, value)| (key.decision, key.service >> 16, value.packets[0])).collect();
    assert_eq!(told, [(decided(false, 1), 6, 40), (decided(false, 1), 17, 40), (decided(true, 3), 17, 40)]);
    for (key, value) in rows {
        assert_eq!((key.subject, key.peer.0, key.service & 0xffff), (POD.workload(), 0, 0));
        assert_eq!((key.kind & (EDGE_BANK | EDGE_OVERFLOW), value.connections), (EDGE_BANK | EDGE_OVERFLOW, 40));
    }
    assert_eq!((world.host.stat(stats::EDGES_OVERFLOWED), world.host.stat(stats::EDGES_LOST)), (120, 0));
}

#[test]
fn a_count_without_any_row_is_counted_as_lost_and_the_packet_judged_all_the_same() {
    let mut world = world();
    world.host.edges.has_room.set(false);
    world.host.overflow.has_room.set(false);
    assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(1, 53)), Continue);
    assert_eq!(world.pod_gets(&REMOTE.to(POD, false).udp(1, 54), UPLINK), Drop);
    assert_eq!(world.host.stat(stats::EDGES_LOST), 2);
}

#[test]
fn a_pod_that_has_used_up_its_share_opens_nothing_more_and_keeps_what_it_has() {
    let mut world = world();
    world.host.budgets.put(&POD.workload(), &BudgetValue { used: 0, limit: 3 });
    for port in 1..=3 {
        assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(port, 53)), Continue);
    }
    assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(4, 53)), Drop);
    let told = world.events().pop().expect("the denial is told");
    assert_eq!((told.kind, told.decision), (EVENT_DENIED, decision::FLOW_TABLE_FULL));
    assert_eq!(world.host.stat(stats::FLOW_BUDGET), 1);
    assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(3, 53)), Continue, "a flow that it has goes on");
    // The agent has counted anew.
    world.host.budgets.put(&POD.workload(), &BudgetValue { used: 2, limit: 3 });
    assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(4, 53)), Continue);
    assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(5, 53)), Drop);
}

#[test]
fn a_denied_tuple_that_does_not_fit_is_told_and_counted_as_lost() {
    let mut world = world();
    world.host.denied.has_room.set(false);
    assert_eq!(world.pod_gets(&REMOTE.to(POD, false).udp(1, 54), UPLINK), Drop);
    assert_eq!((world.event().kind, world.host.stat(stats::DENIED_LOST)), (EVENT_DENIED, 1));
}

#[test]
fn edges_and_live_flows_have_every_packet_once() {
    for seed in 1..40_u64 {
        let mut world = world();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (mut allowed, mut denied) = (0, 0);
        for _ in 0..400 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = |n: u64, shift: u32| (state >> shift) % n;
            let (who, by) =
                [(CLIENT, CLIENT_DEVICE), (REMOTE, UPLINK), (WORLD, UPLINK)][usize::try_from(pick(3, 60)).unwrap()];
            let v6 = pick(2, 10) == 1;
            let port = 40_000 + u16::try_from(pick(3, 20)).unwrap();
            let flags = ["S", "S.", ".", "F.", "R"][usize::try_from(pick(5, 24)).unwrap()];
            let ends = POD.to(who, v6);
            world.host.segments = 1 + u32::try_from(pick(3, 30)).unwrap();
            let (kind, out) = (pick(4, 34), pick(2, 40) == 1);
            let ends = if out { ends } else { ends.back() };
            let (a, b) = if out { (port, 80) } else { (80, port) };
            let frame = match kind {
                0 => ends.udp(a, b),
                1 => ends.ping(port),
                2 => ends.pong(port),
                _ => ends.tcp(a, b, flags),
            };
            let action = if out { world.pod_sends(&frame) } else { world.pod_gets(&frame, by) };
            if action == Continue {
                allowed += u64::from(world.host.segments);
            } else {
                denied += u64::from(world.host.segments);
            }
            world.host.now_ns += pick(40, 44) * pick(40, 50) * 25_000_000;
            match pick(60, 54) {
                0 => world.select(1, 3),
                1 => world.select(0, 2),
                2 => world.select(1, 2),
                _ => {}
            }
        }
        assert_eq!(allowed + denied, world.sent);
        let sum = |verdict| in_edges(&world, verdict) + unflushed(&world, verdict);
        assert_eq!(sum(VERDICT_ALLOW), allowed, "allowed, seed {seed}");
        assert_eq!(sum(VERDICT_DENY), denied, "denied, seed {seed}");
        let told: u64 =
            [stats::ALLOWED_ESTABLISHED, stats::ALLOWED_JUDGED, stats::DENIED_JUDGED, stats::DENIED_REPEATED]
                .map(|stat| world.host.stat(stat))
                .iter()
                .sum();
        assert_eq!(told, 400, "each frame leaves by one exit");
        assert!(allowed > 50 && denied > 50, "both happen: {allowed} and {denied}");
    }
}

#[test]
fn every_record_names_a_decider() {
    let mut world = world();
    for frame in [POD.to(REMOTE, false).udp(1, 2), CLIENT.to(REMOTE, false).udp(1, 2), POD.to(REMOTE, false).arp()] {
        world.pod_sends(&frame);
    }
    world.pod_sends(&[0; 20]);
    let events = world.events();
    assert!(events.iter().all(|event| event.decision.0 != 0 && event.time_ns != 0), "{events:#?}");
    assert_eq!(events.last().unwrap().decision, decision::SPOOFED_SOURCE);
}
