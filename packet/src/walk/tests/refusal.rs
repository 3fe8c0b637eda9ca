//! What a pod sends to its own node, where nobody listens: judged and told when the node answers.

use crate::env::Action::{Continue, Drop};
use crate::host::{HOST, POD, POD_DEVICE, UPLINK, WORLD, World, decided, event_kinds, ports};
use reeve_abi::decision;
use reeve_abi::event::{EVENT_DENIED, EVENT_OPENED, HOOK_HOST_IN};
use reeve_abi::ids::{ClassId, IDENTITY_HOST};
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};

/// Nobody may come in; the pod may or may not reach its node, and nobody else.
fn node_is(allowed: bool) -> World {
    let mut world = World::new();
    world.host.classes.insert(IDENTITY_HOST, ClassId(9));
    world.row(1, ClassId(0), decided(false, 1));
    world.row(2, ClassId(0), decided(false, 2));
    world.row(2, ClassId(9), decided(allowed, 3));
    world.select(1, 2);
    world
}

#[test]
fn a_connection_that_the_own_node_resets_is_judged_before_the_pod_hears_of_it() {
    for v6 in [false, true] {
        for (allowed, want, verdict) in [(true, Continue, VERDICT_ALLOW), (false, Drop, VERDICT_DENY)] {
            let mut world = node_is(allowed);
            let ask = POD.to(HOST, v6).tcp(40_000, 81, "S");
            for _ in 0..3 {
                assert_eq!(world.pod_emits(&ask), Continue);
            }
            assert_eq!(world.events(), [], "nobody has judged it yet");
            assert_eq!(world.pod_gets(&HOST.to(POD, v6).tcp(81, 40_000, "R."), 0), want);
            let event = world.event();
            assert_eq!(
                (event.kind, event.decision, event.direction),
                if allowed { (EVENT_OPENED, decided(true, 3), 1) } else { (EVENT_DENIED, decided(false, 3), 1) }
            );
            assert_eq!((event.hook, u32::from(event.verdict), event.port), (HOOK_HOST_IN, verdict, 81));
            assert_eq!((event.local, event.remote), (POD.address(v6), HOST.address(v6)));
            assert_eq!((event.ports, event.packets[0]), (ports(40_000, 81), 3));
            // Every packet is in the edge or the flow, once.
            let (_, edge) = world.host.edges.all()[0];
            assert_eq!((edge.connections, edge.packets[0]), (1, 3));
        }
    }
}

#[test]
fn a_datagram_that_the_own_node_refuses_is_judged_by_what_the_error_quotes() {
    for v6 in [false, true] {
        for (allowed, want) in [(true, Continue), (false, Drop)] {
            let mut world = node_is(allowed);
            let ask = POD.to(HOST, v6).udp(40_000, 81);
            world.pod_emits(&ask);
            assert_eq!(world.pod_gets(&HOST.to(POD, v6).unreachable(&ask), 0), want);
            let event = world.event();
            assert_eq!((event.decision, event.direction, event.port), (decided(allowed, 3), 1, 81));
            assert_eq!((event.remote, event.packets[0]), (HOST.address(v6), 1));
            // The next one may be led elsewhere: it is judged anew where it arrives.
            assert_eq!(world.pod_emits(&ask), Continue);
            assert_eq!(world.leaves(&POD.to(WORLD, v6).udp(40_000, 81), POD_DEVICE), Drop);
        }
    }
}

#[test]
fn nobody_elses_answer_speaks_for_the_own_node() {
    let ask = POD.to(HOST, false).tcp(40_000, 81, "S");
    let reset = HOST.to(POD, false).tcp(81, 40_000, "R.");
    let mut world = node_is(true);
    world.pod_emits(&ask);
    // It shows the node's address and came in by a device.
    assert_eq!(world.pod_gets(&reset, UPLINK), Drop);
    assert_eq!(event_kinds(&world.events()), [(EVENT_DENIED, decided(false, 1))]);
    // Control: made here.
    assert_eq!(world.pod_gets(&reset, 0), Continue);
    assert_eq!(event_kinds(&world.events()), [(EVENT_OPENED, decided(true, 3))]);
}

#[test]
fn a_process_of_the_own_node_is_let_in_where_the_pod_asked_in_vain() {
    let mut world = node_is(false);
    world.pod_emits(&POD.to(HOST, false).tcp(40_000, 81, "S"));
    // From the very port that the pod tried: what the own node opens is let in whatever policies say.
    assert_eq!(world.pod_gets(&HOST.to(POD, false).tcp(81, 40_000, "S"), 0), Continue);
    assert_eq!(world.event().decision, decision::OWN_NODE);
}

#[test]
fn an_error_that_asks_for_smaller_packets_refuses_nothing() {
    let mut world = node_is(false);
    let ask = POD.to(HOST, false).udp(40_000, 81);
    world.pod_emits(&ask);
    let smaller = HOST.to(POD, false).icmp(3, 4, [0, 0, 5, 0], &ask[14..]);
    assert_eq!(world.pod_gets(&smaller, 0), Continue);
    assert_eq!(world.event().decision, decision::OWN_NODE);
}

#[test]
fn a_flow_that_nobody_judged_ends_untold() {
    let mut world = node_is(true);
    let ask = POD.to(WORLD, false).tcp(40_000, 81, "S");
    world.pod_emits(&ask);
    world.after_s(3_600).pod_emits(&ask);
    assert_eq!((world.events(), world.host.edges.all()), (vec![], vec![]));
    assert_eq!(world.leaves(&ask, POD_DEVICE), Drop);
    assert_eq!(world.event().decision, decided(false, 2));
}
