//! Flows from their first packet to their end.

use crate::env::Action::{Continue, Drop};
use crate::host::{CLIENT, CLIENT_DEVICE, POD, REMOTE, UPLINK, World, decided, event_kinds, ports};
use reeve_abi::decision;
use reeve_abi::event::{
    EVENT_CLOSED, EVENT_DENIED, EVENT_FLAG_BEGAN_UNSEEN, EVENT_FLAG_PICKED_UP, EVENT_OPENED, HOOK_FROM_POD, HOOK_TO_POD,
};
use reeve_abi::ids::ClassId;
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};
use reeve_abi::stats;

/// Nobody may reach the pod; the pod may reach anyone.
fn closed_inwards() -> World {
    let mut world = World::new();
    world.row(1, ClassId(0), decided(false, 1));
    world.row(2, ClassId(0), decided(true, 2));
    world.select(1, 2);
    world
}

#[test]
fn an_allowed_flow_is_told_once_and_then_goes_on_from_its_entry() {
    for v6 in [false, true] {
        let mut world = closed_inwards();
        let out = POD.to(REMOTE, v6);
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Continue);
        let event = world.event();
        assert_eq!((event.kind, event.decision, event.verdict), (EVENT_OPENED, decided(true, 2), 1));
        assert_eq!((event.workload, event.identity), (POD.workload(), POD.identity()));
        assert_eq!((event.peer_workload, event.peer_identity), (REMOTE.workload(), REMOTE.identity()));
        assert_eq!((event.local, event.remote), (POD.address(v6), REMOTE.address(v6)));
        assert_eq!((event.ports, event.port, event.protocol), (ports(40_000, 443), 443, 6));
        assert_eq!((event.direction, event.hook, event.flags), (1, HOOK_FROM_POD, 0));
        for flags in [".", ".", "F."] {
            assert_eq!(world.pod_sends(&out.tcp(40_000, 443, flags)), Continue);
        }
        assert_eq!(world.events(), []);
        assert_eq!((world.host.stat(stats::ALLOWED_JUDGED), world.host.stat(stats::ALLOWED_ESTABLISHED)), (1, 3));
    }
}

#[test]
fn a_reply_passes_where_the_same_packet_without_its_flow_is_denied() {
    for v6 in [false, true] {
        let back = REMOTE.to(POD, v6);
        let mut world = closed_inwards();
        assert_eq!(world.pod_sends(&back.back().udp(40_000, 53)), Continue);
        assert_eq!(world.pod_gets(&back.udp(53, 40_000), UPLINK), Continue);
        assert_eq!(event_kinds(&world.events()), [(EVENT_OPENED, decided(true, 2))]);

        let mut control = closed_inwards();
        assert_eq!(control.pod_gets(&back.udp(53, 40_000), UPLINK), Drop);
        let event = control.event();
        assert_eq!((event.kind, event.decision), (EVENT_DENIED, decided(false, 1)));
        assert_eq!((event.direction, event.hook, event.ports), (0, HOOK_TO_POD, ports(40_000, 53)));
    }
}

#[test]
fn an_answer_without_its_flow_passes_and_is_counted_while_two_generations_are_attached() {
    for v6 in [false, true] {
        let (out, back) = (POD.to(REMOTE, v6), REMOTE.to(POD, v6));
        let answers = [back.udp(53, 40_000), back.tcp(443, 40_001, "S."), back.pong(7)];
        for answer in &answers {
            let mut world = closed_inwards();
            assert_eq!(world.pod_gets(answer, UPLINK), Drop, "control: one generation");
            world.host.config.mixed_generations = 1;
            assert_eq!(world.pod_gets(answer, UPLINK), Continue);
            let told = world.events().pop().expect("it is told");
            assert_eq!((told.kind, told.decision, told.direction), (EVENT_OPENED, decided(true, 2), 1));
            assert_eq!(world.host.stat(stats::EITHER_ORIENTATION), 1);
        }
        // What opens a connection, or asks, has one orientation only; and what neither allows stays denied.
        let mut world = closed_inwards();
        world.host.config.mixed_generations = 1;
        assert_eq!(world.pod_gets(&back.tcp(443, 40_001, "S"), UPLINK), Drop);
        assert_eq!(world.pod_gets(&back.ping(7), UPLINK), Drop);
        world.row(2, ClassId(0), decided(false, 2));
        world.select(1, 2);
        assert_eq!(world.pod_gets(&answers[0], UPLINK), Drop);
        assert_eq!(world.pod_sends(&out.udp(1, 2)), Drop);
        assert_eq!(world.host.stat(stats::EITHER_ORIENTATION), 0);
    }
}

#[test]
fn a_reply_after_the_timeout_is_judged_anew_and_the_end_is_told_once() {
    let mut world = closed_inwards();
    let out = POD.to(REMOTE, false);
    assert_eq!(world.pod_sends(&out.udp(40_000, 53)), Continue);
    assert_eq!(world.after_s(30).pod_gets(&out.back().udp(53, 40_000), UPLINK), Continue);
    // Answered from both sides: 120 s now.
    assert_eq!(world.after_s(120).pod_gets(&out.back().udp(53, 40_000), UPLINK), Continue);
    world.events();
    for _ in 0..2 {
        assert_eq!(world.after_s(121).pod_gets(&out.back().udp(53, 40_000), UPLINK), Drop);
    }
    let closed = (EVENT_CLOSED, decided(true, 2));
    let denied = (EVENT_DENIED, decided(false, 1));
    assert_eq!(event_kinds(&world.events()), [closed, denied, denied]);
}

#[test]
fn an_unanswered_datagram_lets_replies_in_for_half_a_minute() {
    for (seconds, want) in [(30, Continue), (31, Drop)] {
        let mut world = closed_inwards();
        world.pod_sends(&POD.to(REMOTE, false).udp(40_000, 53));
        assert_eq!(world.after_s(seconds).pod_gets(&REMOTE.to(POD, false).udp(53, 40_000), UPLINK), want);
    }
}

#[test]
fn a_connection_may_be_idle_for_a_day_once_it_is_answered() {
    for (answered, seconds, want) in [(true, 86_400, Continue), (false, 60, Continue), (false, 61, Drop)] {
        let mut world = closed_inwards();
        let out = POD.to(REMOTE, false);
        // The pod lets nobody in and reaches only port 443, so that neither orientation of a stray segment is allowed.
        world.row(2, ClassId(0), decided(false, 3));
        world.row_with_table(2, REMOTE.class(), decided(false, 3), 9, 0);
        world.port(9, 6, 443, decided(true, 4));
        world.select(1, 2);
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Continue);
        if answered {
            world.pod_gets(&out.back().tcp(443, 40_000, "S."), UPLINK);
        }
        let segment = out.back().tcp(443, 40_000, "S.");
        assert_eq!(world.after_s(seconds).pod_gets(&segment, UPLINK), want);
    }
}

#[test]
fn a_syn_from_the_other_side_is_judged_by_itself() {
    let mut world = closed_inwards();
    let out = POD.to(CLIENT, false);
    assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Continue);
    assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "S."), CLIENT_DEVICE), Continue);
    assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "S"), CLIENT_DEVICE), Drop);
    let kinds = event_kinds(&world.events());
    assert_eq!(kinds, [(EVENT_OPENED, decided(true, 2)), (EVENT_DENIED, decided(false, 1))]);
    // What is denied does not end what lives.
    assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "."), CLIENT_DEVICE), Continue);
    assert_eq!(world.events(), []);

    // Control: the client may come in, and then its connection takes the place of the old one.
    world.row(1, CLIENT.class(), decided(true, 5));
    assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "S"), CLIENT_DEVICE), Continue);
    let kinds = event_kinds(&world.events());
    assert_eq!(kinds, [(EVENT_CLOSED, decided(true, 2)), (EVENT_OPENED, decided(true, 5))]);
}

#[test]
fn a_syn_on_a_closed_flow_is_a_new_flow() {
    for closing in [["F.", "F."], [".", "R"]] {
        let mut world = closed_inwards();
        let out = POD.to(REMOTE, false);
        world.pod_sends(&out.tcp(40_000, 443, "S"));
        world.pod_gets(&out.back().tcp(443, 40_000, "S."), UPLINK);
        world.pod_sends(&out.tcp(40_000, 443, closing[0]));
        world.pod_gets(&out.back().tcp(443, 40_000, closing[1]), UPLINK);
        assert_eq!(world.events().len(), 1);
        // Stragglers still pass.
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, ".")), Continue);
        assert_eq!(world.events(), []);
        assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Continue);
        let opened = decided(true, 2);
        assert_eq!(event_kinds(&world.events()), [(EVENT_CLOSED, opened), (EVENT_OPENED, opened)]);
        let flows = world.host.flows.all();
        assert_eq!((flows.len(), flows[0].1.packets), (1, [1, 0]));
    }
    // Control: on a live flow it is a repetition.
    let mut world = closed_inwards();
    for _ in 0..2 {
        assert_eq!(world.pod_sends(&POD.to(REMOTE, false).tcp(40_000, 443, "S")), Continue);
    }
    assert_eq!(world.events().len(), 1);
}

#[test]
fn a_closed_connection_ends_after_ten_seconds() {
    for (seconds, events) in [(10, 0), (11, 2)] {
        let mut world = closed_inwards();
        let out = POD.to(REMOTE, false);
        for flags in ["S", "R"] {
            world.pod_sends(&out.tcp(40_000, 443, flags));
        }
        world.events();
        assert_eq!(world.after_s(seconds).pod_sends(&out.tcp(40_000, 443, ".")), Continue);
        assert_eq!(world.events().len(), events);
    }
}

#[test]
fn the_middle_of_a_connection_takes_the_orientation_that_is_allowed() {
    // The pod answers a client that connected before there was an agent: the pod itself may not call out.
    let world = |ingress: bool| {
        let mut world = World::new();
        world.row(1, ClassId(0), decided(ingress, 1));
        world.row(2, ClassId(0), decided(false, 2));
        world.select(1, 2);
        world
    };
    let answer = POD.to(REMOTE, false).tcp(8_080, 40_000, ".");
    let mut open = world(true);
    assert_eq!(open.pod_sends(&answer), Continue);
    let event = open.event();
    assert_eq!((event.decision, event.direction, event.port), (decided(true, 1), 0, 8_080));
    assert_eq!(event.flags, EVENT_FLAG_PICKED_UP);
    assert_eq!(open.pod_gets(&REMOTE.to(POD, false).tcp(40_000, 8_080, "."), UPLINK), Continue);
    assert_eq!(open.host.flows.all()[0].1.packets, [1, 1]);

    let mut closed = world(false);
    assert_eq!(closed.pod_sends(&answer), Drop);
    assert_eq!(closed.event().decision, decided(false, 2));
}

#[test]
fn an_answer_to_what_no_program_has_seen_is_told_as_such() {
    let flags = |flags: &str, asked: bool| {
        let mut world = World::new();
        if asked {
            world.pod_gets(&REMOTE.to(POD, false).tcp(40_000, 8_080, "S"), UPLINK);
            world.events();
        }
        assert_eq!(world.pod_sends(&POD.to(REMOTE, false).tcp(8_080, 40_000, flags)), Continue);
        world.events().first().map(|event| event.flags)
    };
    assert_eq!(flags("S.", false), Some(EVENT_FLAG_PICKED_UP | EVENT_FLAG_BEGAN_UNSEEN));
    assert_eq!(flags(".", false), Some(EVENT_FLAG_PICKED_UP), "it may have begun before there were programs");
    assert_eq!(flags("S", false), Some(0));
    assert_eq!(flags("S.", true), None, "the answer to what was seen");

    let mut world = World::new();
    world.pod_gets(&REMOTE.to(POD, false).tcp(443, 40_000, "S."), UPLINK);
    assert_eq!(world.event().flags, EVENT_FLAG_PICKED_UP, "anybody can send a pod such a packet");

    let mut silent = World::new();
    silent.row(1, ClassId(0), decided(true, 1));
    silent.row(2, ClassId(0), decided(false, 2));
    silent.select(1, 2);
    let answer = POD.to(REMOTE, false).tcp(8_080, 40_000, "S.");
    assert_eq!(silent.pod_sends(&answer), Drop, "it may not call out, so its answer is denied");
    assert_eq!(silent.event().flags, EVENT_FLAG_BEGAN_UNSEEN);
    assert_eq!(silent.after_s(2).pod_sends(&answer), Drop);
    assert_eq!(silent.event().flags, 0, "sent again, it is no other connection");
}

#[test]
fn no_connection_begins_in_the_other_orientation() {
    for flags in ["S", "S.", "SF", "SR"] {
        let mut world = World::new();
        world.row(1, ClassId(0), decided(true, 1));
        world.row(2, ClassId(0), decided(false, 2));
        world.select(1, 2);
        assert_eq!(world.pod_sends(&POD.to(REMOTE, false).tcp(8_080, 40_000, flags)), Drop, "{flags}");
        assert_eq!(world.event().decision, decided(false, 2));
    }
}

#[test]
fn a_denied_datagram_leaves_the_pods_own_flow_on_the_same_ports_alone() {
    let mut world = closed_inwards();
    let out = POD.to(REMOTE, false);
    assert_eq!(world.pod_gets(&out.back().udp(123, 123), UPLINK), Drop);
    assert_eq!(world.event().decision, decided(false, 1));
    assert_eq!(world.pod_sends(&out.udp(123, 123)), Continue);
    assert_eq!(world.pod_gets(&out.back().udp(123, 123), UPLINK), Continue);
    assert_eq!(event_kinds(&world.events()), [(EVENT_OPENED, decided(true, 2))]);
}

#[test]
fn a_flow_that_cannot_be_stored_is_denied() {
    for (room, want, decider, verdict) in
        [(true, Continue, decided(true, 2), VERDICT_ALLOW), (false, Drop, decision::FLOW_TABLE_FULL, VERDICT_DENY)]
    {
        let mut world = closed_inwards();
        world.host.flows.has_room.set(room);
        assert_eq!(world.pod_sends(&POD.to(REMOTE, false).udp(1, 2)), want);
        let event = world.event();
        assert_eq!((event.decision, u32::from(event.verdict)), (decider, verdict));
        assert_eq!(world.host.stat(stats::FLOWS_LOST), u64::from(!room));
    }
}

#[test]
fn a_syn_with_fin_is_an_opening_segment_too() {
    let mut world = closed_inwards();
    let out = POD.to(CLIENT, false);
    assert_eq!(world.pod_sends(&out.tcp(40_000, 443, "S")), Continue);
    assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, "S."), CLIENT_DEVICE), Continue);
    world.events();
    for flags in ["S", "SF"] {
        assert_eq!(world.pod_gets(&out.back().tcp(443, 40_000, flags), CLIENT_DEVICE), Drop, "{flags}");
    }
    assert_eq!(event_kinds(&world.events()), [(EVENT_DENIED, decided(false, 1))]);
    // Alone, it is not taken for the middle of a connection that the pod might have opened.
    assert_eq!(world.pod_gets(&out.back().tcp(444, 40_001, "SF"), CLIENT_DEVICE), Drop);
    assert_eq!(world.pod_gets(&out.back().tcp(444, 40_001, "F."), CLIENT_DEVICE), Continue);
}

#[test]
fn odd_flags_open_nothing_that_a_bare_syn_would_not() {
    for flags in ["", "F", "R", ".", "SF", "SR", "SFR", "S.", "SR.", "FR."] {
        // Nobody may reach the pod, and the pod may reach nobody.
        let mut world = closed_inwards();
        world.row(2, ClassId(0), decided(false, 3));
        world.select(1, 2);
        assert_eq!(world.pod_gets(&CLIENT.to(POD, false).tcp(1, 2, flags), CLIENT_DEVICE), Drop, "to the pod: {flags}");
        assert_eq!(world.pod_sends(&POD.to(CLIENT, false).tcp(3, 4, flags)), Drop, "from the pod: {flags}");
        // Control: both may.
        world.select(0, 0);
        assert_eq!(world.pod_gets(&CLIENT.to(POD, false).tcp(1, 2, flags), CLIENT_DEVICE), Continue);
        assert_eq!(world.pod_sends(&POD.to(CLIENT, false).tcp(3, 4, flags)), Continue);
    }
}
