//! Egress judged where the destination is known: Services, the way out, processes of the node, the pod itself.

use crate::env::Action::{Continue, Drop};
use crate::host::{
    CLIENT, CLIENT_DEVICE, HOST, POD, POD_DEVICE, REMOTE, UPLINK, WORLD, Who, World, decided, event_kinds, ports,
};
use reeve_abi::address::Address;
use reeve_abi::config::CONFIG_UNGUARDED;
use reeve_abi::conntrack::FLOW_PENDING;
use reeve_abi::decision;
use reeve_abi::event::{
    EVENT_CLOSED, EVENT_DENIED, EVENT_FLAG_CUT, EVENT_OPENED, EVENT_REJUDGED, HOOK_FROM_POD, HOOK_HOST_IN, HOOK_TO_POD,
    HOOK_UPLINK,
};
use reeve_abi::ids::{ClassId, DecisionId, IDENTITY_HOST, IDENTITY_WORLD};
use reeve_abi::mark::{KIND_NONE, KIND_PENDING, KIND_POD};
use reeve_abi::stats;

/// A Service: nobody's address, and nothing that any policy names.
const SERVICE: Who = Who::somebody("10.96.0.10", "fd00:96::a");

/// The pod may reach only `who` (by policy 2), and lets nobody in (by policy 1).
fn only(who: Who) -> World {
    let mut world = World::new();
    world.second();
    world.row(1, ClassId(0), decided(false, 1));
    world.row(2, ClassId(0), decided(false, 2));
    world.row(2, who.class(), decided(true, 2));
    world.select(1, 2);
    world
}

/// The pod may reach everybody but `who`.
fn all_but(who: Who) -> World {
    let mut world = only(who);
    world.row(2, ClassId(0), decided(true, 3));
    world.row(2, who.class(), decided(false, 4));
    world
}

#[test]
fn a_service_is_judged_as_the_pod_that_it_leads_to() {
    for v6 in [false, true] {
        for (mut world, want, decider) in
            [(only(CLIENT), Continue, decided(true, 2)), (all_but(CLIENT), Drop, decided(false, 4))]
        {
            assert_eq!(world.pod_emits(&POD.to(SERVICE, v6).tcp(40_000, 80, "S")), Continue);
            assert_eq!((world.kind(), world.events()), (KIND_PENDING, vec![]));
            let translated = POD.to(CLIENT, v6).tcp(40_000, 8_080, "S");
            assert_eq!(world.reaches(CLIENT_DEVICE, &translated, POD_DEVICE), want);
            let events = world.events();
            let event = events[0];
            assert_eq!((event.decision, event.hook, event.direction), (decider, HOOK_TO_POD, 1));
            assert_eq!((event.workload, event.peer_workload), (POD.workload(), CLIENT.workload()));
            assert_eq!((event.local, event.remote), (POD.address(v6), CLIENT.address(v6)));
            assert_eq!((event.ports, event.port), (ports(40_000, 8_080), 8_080));
            assert_eq!((event.service, event.service_port), (SERVICE.address(v6), 80));
            // The receiver's own record, where it is reached.
            let receiver: Vec<_> = events[1..].iter().map(|e| (e.workload, e.service, e.service_port)).collect();
            let reached = (CLIENT.workload(), SERVICE.address(v6), 80);
            assert_eq!(receiver, if want == Continue { vec![reached] } else { vec![] });
        }
    }
}

#[test]
fn replies_of_a_service_are_let_in_only_while_the_verdict_on_the_backend_allows() {
    for (mut world, want) in [(only(CLIENT), Continue), (all_but(CLIENT), Drop)] {
        world.pod_emits(&POD.to(SERVICE, false).tcp(40_000, 80, "S"));
        let reply = SERVICE.to(POD, false).tcp(80, 40_000, "S.");
        let mark = world.host.mark.get();
        // Nobody has judged it yet: what looks like a reply is judged on its own.
        assert_eq!(world.replies_through(CLIENT_DEVICE, &reply), Drop);
        world.host.mark.set(mark);
        assert_eq!(world.reaches(CLIENT_DEVICE, &POD.to(CLIENT, false).tcp(40_000, 8_080, "S"), POD_DEVICE), want);
        assert_eq!(world.replies_through(CLIENT_DEVICE, &reply), want);
    }
}

#[test]
fn a_rewritten_flow_stays_pending_and_is_told_once() {
    let mut world = only(CLIENT);
    for flags in ["S", ".", "."] {
        assert_eq!(world.pod_emits(&POD.to(SERVICE, false).tcp(40_000, 80, flags)), Continue);
        assert_eq!(world.kind(), KIND_PENDING);
        let translated = POD.to(CLIENT, false).tcp(40_000, 8_080, flags);
        assert_eq!(world.reaches(CLIENT_DEVICE, &translated, POD_DEVICE), Continue);
        assert_eq!(world.replies_through(CLIENT_DEVICE, &SERVICE.to(POD, false).tcp(80, 40_000, ".")), Continue);
    }
    let mine = |e: &&reeve_abi::event::Event| e.workload == POD.workload();
    assert_eq!(world.events().iter().filter(mine).count(), 1);
    let flows = world.host.flows.all();
    let (key, flow) = flows.iter().find(|(key, _)| key.workload == POD.workload()).unwrap();
    assert_eq!((key.remote, flow.real), (SERVICE.address(false), CLIENT.address(false)));
    assert_eq!((flow.packets, flow.flags & FLOW_PENDING), ([3, 3], FLOW_PENDING));
}

#[test]
fn a_service_that_changes_its_backend_is_judged_anew() {
    let mut world = only(CLIENT);
    let ask = POD.to(SERVICE, false).udp(40_000, 53);
    world.pod_emits(&ask);
    assert_eq!(world.reaches(CLIENT_DEVICE, &POD.to(CLIENT, false).udp(40_000, 53), POD_DEVICE), Continue);
    world.events();
    world.pod_emits(&ask);
    assert_eq!(world.leaves(&POD.to(REMOTE, false).udp(40_000, 53), POD_DEVICE), Drop);
    assert_eq!(event_kinds(&world.events()), [(EVENT_DENIED, decided(false, 2))]);
    // Control: allowed, the new backend takes the place of the old one.
    world.row(2, REMOTE.class(), decided(true, 6));
    world.pod_emits(&ask);
    assert_eq!(world.leaves(&POD.to(REMOTE, false).udp(40_000, 53), POD_DEVICE), Continue);
    let told = world.events();
    assert_eq!(event_kinds(&told), [(EVENT_CLOSED, decided(true, 2)), (EVENT_OPENED, decided(true, 6))]);
    assert_eq!(told.iter().map(|e| e.remote).collect::<Vec<_>>(), [CLIENT, REMOTE].map(|who| who.address(false)));
}

#[test]
fn a_change_of_policy_cuts_a_service_whose_backend_it_closes() {
    let mut world = only(CLIENT);
    let (ask, reached) = (POD.to(SERVICE, false).tcp(40_000, 80, "."), POD.to(CLIENT, false).tcp(40_000, 8_080, "."));
    let reply = SERVICE.to(POD, false).tcp(80, 40_000, ".");
    world.pod_emits(&ask);
    assert_eq!(world.reaches(CLIENT_DEVICE, &reached, POD_DEVICE), Continue);
    world.events();
    world.row(2, CLIENT.class(), decided(false, 5));
    world.select(1, 2);
    // Whichever side speaks first.
    assert_eq!(world.replies_through(CLIENT_DEVICE, &reply), Drop);
    let event = world.events()[0];
    assert_eq!((event.kind, event.decision, event.flags & EVENT_FLAG_CUT), (EVENT_REJUDGED, decided(false, 5), 2));
    assert_eq!((event.remote, event.port), (CLIENT.address(false), 8_080));
    world.pod_emits(&ask);
    assert_eq!(world.reaches(CLIENT_DEVICE, &reached, POD_DEVICE), Drop);
    world.row(2, CLIENT.class(), decided(true, 2));
    world.select(1, 2);
    world.pod_emits(&ask);
    assert_eq!(world.reaches(CLIENT_DEVICE, &reached, POD_DEVICE), Continue);
    assert_eq!(world.replies_through(CLIENT_DEVICE, &reply), Continue);
}

#[test]
fn what_leaves_the_node_is_judged_there_once_and_then_at_the_pod() {
    for v6 in [false, true] {
        for (mut world, want) in [(all_but(CLIENT), Continue), (only(CLIENT), Drop)] {
            let out = POD.to(WORLD, v6).tcp(40_000, 443, "S");
            assert_eq!(world.pod_emits(&out), Continue);
            assert_eq!(world.kind(), KIND_PENDING);
            // With the node's address for the pod's, as masquerading does, and another port.
            let shown = HOST.to(WORLD, v6).tcp(50_000, 443, "S");
            assert_eq!(world.leaves(&shown, POD_DEVICE), want);
            let event = world.event();
            assert_eq!((event.hook, event.direction, event.peer_identity), (HOOK_UPLINK, 1, IDENTITY_WORLD));
            assert_eq!((event.local, event.remote), (POD.address(v6), WORLD.address(v6)));
            assert_eq!((event.ports, event.service), (ports(40_000, 443), Address::default()));
            if want == Drop {
                continue;
            }
            assert_eq!(world.kind(), KIND_NONE, "no mark leaves the node");
            assert_eq!(world.pod_emits(&POD.to(WORLD, v6).tcp(40_000, 443, ".")), Continue);
            assert_eq!((world.kind(), world.events()), (KIND_POD, vec![]));
            world.select(1, 2);
            world.row(2, ClassId(0), decided(false, 2));
            assert_eq!(world.pod_emits(&POD.to(WORLD, v6).tcp(40_000, 443, ".")), Drop);
            assert_eq!(world.event().hook, HOOK_FROM_POD);
        }
    }
}

#[test]
fn a_denied_way_out_does_not_poison_what_comes_in_on_the_same_ports() {
    let mut world = only(CLIENT);
    world.row(1, ClassId(0), decided(true, 1));
    assert_eq!(world.pod_sends(&POD.to(WORLD, false).udp(123, 123)), Drop);
    assert_eq!(world.pod_gets(&WORLD.to(POD, false).udp(123, 123), UPLINK), Continue);
    let told = event_kinds(&world.events());
    assert_eq!(told, [(EVENT_DENIED, decided(false, 2)), (EVENT_OPENED, decided(true, 1))]);
}

#[test]
fn a_process_of_the_node_is_judged_as_the_host_whatever_its_address() {
    for v6 in [false, true] {
        for (class, want) in [(true, Continue), (false, Drop)] {
            for to in [HOST, SERVICE] {
                let mut world = only(CLIENT);
                world.host.classes.insert(IDENTITY_HOST, ClassId(88));
                if class {
                    world.row(2, ClassId(88), decided(true, 8));
                }
                world.pod_emits(&POD.to(to, v6).udp(40_000, 53));
                assert_eq!(world.host_gets(&POD.to(to, v6).udp(40_000, 53), POD_DEVICE), want);
                let event = world.event();
                assert_eq!((event.hook, event.peer_identity), (HOOK_HOST_IN, IDENTITY_HOST));
                if want == Continue {
                    let kept = world.pod_emits(&POD.to(to, v6).udp(40_000, 53));
                    assert_eq!((kept, world.kind()), (Continue, KIND_POD));
                    world.row(2, ClassId(88), decided(false, 9));
                    world.select(1, 2);
                    assert_eq!(world.pod_emits(&POD.to(to, v6).udp(40_000, 53)), Drop, "judged again as the host");
                }
            }
        }
    }
}

#[test]
fn the_answer_to_a_connection_of_the_own_node_passes_when_its_flow_is_forgotten() {
    let mut world = only(CLIENT);
    let answer = POD.to(HOST, false).tcp(8_080, 40_000, ".");
    assert_eq!(world.pod_sends(&answer), Continue);
    let event = world.event();
    assert_eq!((event.decision, event.direction, event.port), (decision::OWN_NODE, 0, 8_080));
    // It opens no way out.
    assert_eq!(world.pod_sends(&POD.to(HOST, false).tcp(8_080, 40_000, "S")), Drop);
    assert_eq!(world.pod_sends(&POD.to(HOST, false).tcp(8_081, 40_000, "S.")), Drop);
}

#[test]
fn a_pod_reaches_itself_through_a_service_whoever_isolates_it() {
    for masqueraded in [false, true] {
        let mut world = only(REMOTE);
        world.pod_emits(&POD.to(SERVICE, false).tcp(40_000, 80, "S"));
        let from = if masqueraded { HOST } else { POD };
        let back = from.to(POD, false).tcp(40_000, 8_080, "S");
        assert_eq!(world.reaches(POD_DEVICE, &back, POD_DEVICE), Continue);
        let told = event_kinds(&world.events());
        assert_eq!(told, [(EVENT_OPENED, decision::SELF), (EVENT_OPENED, decision::SELF)]);
        assert_eq!(world.emits(POD_DEVICE, &POD.to(from, false).tcp(8_080, 40_000, "S.")), Continue);
        assert_eq!((world.kind(), world.events()), (KIND_POD, vec![]));
        assert_eq!(world.reaches(POD_DEVICE, &SERVICE.to(POD, false).tcp(80, 40_000, "S."), POD_DEVICE), Continue);
        world.select(1, 2);
        world.pod_emits(&POD.to(SERVICE, false).tcp(40_000, 80, "."));
        assert_eq!(world.reaches(POD_DEVICE, &from.to(POD, false).tcp(40_000, 8_080, "."), POD_DEVICE), Continue);
        assert_eq!(world.events(), []);
        // Control: the neighbour may not.
        world.emits(CLIENT_DEVICE, &CLIENT.to(SERVICE, false).tcp(41_000, 80, "S"));
        assert_eq!(world.reaches(POD_DEVICE, &from.to(POD, false).tcp(41_000, 8_080, "S"), CLIENT_DEVICE), Drop);
    }
}

#[test]
fn a_denial_that_holds_between_a_pod_and_itself_is_asked_where_a_service_leads_back() {
    let asks = POD.to(SERVICE, false).tcp(40_000, 80, "S");
    let back = |world: &mut World| {
        world.pod_emits(&asks);
        world.reaches(POD_DEVICE, &HOST.to(POD, false).tcp(40_000, 8_080, "S"), POD_DEVICE)
    };
    let holds = DecisionId(decided(false, 7).0 | decision::HOLDS_TO_ITSELF);
    for (by, at_port) in [(2, false), (2, true), (1, false), (1, true)] {
        let mut world = only(REMOTE);
        world.host.classes.insert(POD.identity(), POD.class());
        // Control: isolation does not keep it from itself.
        assert_eq!(back(&mut world), Continue);
        world.events();
        if at_port {
            world.row_with_table(by, POD.class(), decided(true, 9), 70, 0);
            world.port(70, 6, 8_080, holds);
        } else {
            world.row(by, POD.class(), holds);
        }
        world.select(1, 2);
        // The live flow is cut at that end, and no other begins.
        assert_eq!(back(&mut world), Drop);
        let told = world.events();
        let denied = told.iter().find(|event| event.decision == holds).unwrap();
        assert_eq!((u64::from(denied.direction) + 1, denied.peer_workload), (by, POD.workload()));
        let mut fresh = only(REMOTE);
        std::mem::swap(&mut fresh.host.peers, &mut world.host.peers);
        std::mem::swap(&mut fresh.host.ports, &mut world.host.ports);
        fresh.host.classes.insert(POD.identity(), POD.class());
        assert_eq!(back(&mut fresh), Drop);
        assert!(fresh.events().iter().any(|event| event.decision == holds));
    }
}

#[test]
fn a_masqueraded_neighbour_is_judged_and_recorded_as_itself() {
    for (allowed, want) in [(true, Continue), (false, Drop)] {
        let mut world = only(REMOTE);
        world.row(1, CLIENT.class(), decided(allowed, 7));
        world.emits(CLIENT_DEVICE, &CLIENT.to(SERVICE, false).tcp(41_000, 80, "S"));
        assert_eq!(world.reaches(POD_DEVICE, &HOST.to(POD, false).tcp(50_001, 8_080, "S"), CLIENT_DEVICE), want);
        let told = world.events();
        let event = told.iter().find(|event| event.workload == POD.workload()).unwrap();
        assert_eq!((event.decision, event.peer_workload), (decided(allowed, 7), CLIENT.workload()));
        assert_eq!((event.remote, event.ports), (CLIENT.address(false), ports(8_080, 41_000)));
    }
}

#[test]
fn a_packet_to_a_group_reaches_only_members_that_the_sender_may_reach() {
    for v6 in [false, true] {
        for (denied, want) in [(CLIENT, Drop), (REMOTE, Continue)] {
            let mut world = all_but(denied);
            let out = POD.to(Who::somebody("224.0.0.251", "ff02::fb"), v6).udp(5_353, 5_353);
            for _ in 0..2 {
                world.pod_emits(&out);
                assert_eq!(world.reaches(CLIENT_DEVICE, &out, POD_DEVICE), want);
            }
            let told = world.events();
            let mine = told.iter().filter(|event| event.workload == POD.workload()).map(|event| event.decision);
            let group = decided(true, 3);
            assert!(mine.eq([group].into_iter().chain((want == Drop).then_some(decided(false, 4)))), "{told:#?}");
        }
    }
}

#[test]
fn a_ping_of_the_own_node_is_judged_at_the_pod() {
    for (mut world, want) in [(all_but(CLIENT), Continue), (only(CLIENT), Drop)] {
        assert_eq!(world.pod_emits(&POD.to(HOST, false).ping(7)), want);
        assert_eq!(world.event().hook, HOOK_FROM_POD);
    }
}

#[test]
fn an_endpoint_that_is_not_ready_sends_nothing_out() {
    let mut world = all_but(CLIENT);
    world.endpoint().flags &= !reeve_abi::endpoint::ENDPOINT_READY;
    assert_eq!(world.pod_emits(&POD.to(WORLD, false).udp(1, 2)), Drop);
    assert_eq!(world.event().decision, decision::NOT_READY);
}

#[test]
fn without_a_guard_the_destination_that_the_pod_shows_must_be_allowed_too() {
    for (unguarded, want) in [(0, Continue), (CONFIG_UNGUARDED, Drop)] {
        let mut world = only(CLIENT);
        world.host.config.flags = unguarded;
        assert_eq!(world.pod_emits(&POD.to(SERVICE, false).udp(1, 2)), want);
        // What the pod may reach by the address that it shows goes on to be judged as ever.
        let mut open = all_but(CLIENT);
        open.host.config.flags = unguarded;
        assert_eq!(open.pod_emits(&POD.to(SERVICE, false).udp(1, 2)), Continue);
        assert_eq!(open.reaches(CLIENT_DEVICE, &POD.to(CLIENT, false).udp(1, 2), POD_DEVICE), Drop);
    }
}

#[test]
fn fragments_leave_with_the_first_one_and_a_stray_one_does_not() {
    for v6 in [false, true] {
        let whole = POD.to(WORLD, v6).udp(40_000, 53);
        let ends = POD.to(WORLD, v6);
        let (first, later) = (ends.fragment(&whole, 9, 0, 8, true), ends.fragment(&whole, 9, 1, 8, false));
        let mut world = all_but(CLIENT);
        assert_eq!(world.pod_sends(&first), Continue);
        assert_eq!(world.pod_sends(&later), Continue);
        let mut stray = all_but(CLIENT);
        stray.pod_emits(&first);
        assert_eq!(stray.leaves(&later, POD_DEVICE), Drop);
        assert_eq!(stray.event().decision, decision::UNKNOWN_FRAGMENT);
    }
}

#[test]
fn an_icmp_error_about_a_service_passes_while_its_flow_is_allowed() {
    for (mut world, want) in [(only(REMOTE), Continue), (all_but(REMOTE), Drop)] {
        let ask = POD.to(SERVICE, false).udp(40_000, 53);
        world.pod_emits(&ask);
        assert_eq!(world.leaves(&POD.to(REMOTE, false).udp(40_000, 53), POD_DEVICE), want);
        let error = WORLD.to(POD, false).unreachable(&ask);
        assert_eq!(world.pod_gets(&error, UPLINK), want);
    }
}

#[test]
fn each_packet_of_a_pending_flow_leaves_by_one_exit() {
    let mut world = only(CLIENT);
    for _ in 0..4 {
        world.pod_emits(&POD.to(SERVICE, false).udp(40_000, 53));
        world.leaves(&POD.to(REMOTE, false).udp(40_000, 53), POD_DEVICE);
    }
    let stat = |stat| world.host.stat(stat);
    assert_eq!((stat(stats::PENDING), stat(stats::DENIED_JUDGED), stat(stats::DENIED_REPEATED)), (4, 1, 3));
    let (_, denied) = world.host.denied.all()[0];
    assert_eq!((denied.count, world.events().len()), (4, 1));
}
