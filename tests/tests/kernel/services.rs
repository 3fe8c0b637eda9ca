//! Marks and slots in the running kernel: what is pending is judged where it arrives, on what it arrives at.

use crate::world::{self, ALLOW_OUT, CLIENT, CLIENT_DEVICE, DENY_IN, DENY_OUT, HOST, POD, POD_DEVICE, REMOTE, SERVICE};
use crate::world::{UPLINK, WORLD, World, check, ports};
use crate::{FAMILIES, closed};
use reeve_abi::address::Address;
use reeve_abi::config::Config;
use reeve_abi::decision;
use reeve_abi::endpoint::{ENDPOINT_MARKS, ENDPOINT_READY, EndpointValue};
use reeve_abi::event::{EVENT_DENIED, EVENT_OPENED, HOOK_HOST_IN, HOOK_TO_POD, HOOK_UPLINK};
use reeve_abi::ids::{ClassId, IDENTITY_HOST, IDENTITY_MASQUERADED, IDENTITY_WORLD};
use reeve_abi::mark::{KIND_CLIENT, KIND_PENDING, KIND_POD};
use reeve_abi::policy::ClassValue;
use reeve_abi::service::{SERVICE_NODE_PORT, ServiceKey, ServiceValue};
use reeve_packet::mark;
use reeve_tests::kernel::Action::{Continue, Drop};
use reeve_tests::kernel::{Outcome, Program};

/// The neighbour is an endpoint too, and whatever comes from either carries a mark.
fn two_pods() -> Option<World> {
    let mut world = closed()?;
    world.endpoint.flags |= ENDPOINT_MARKS;
    world.select(world::INGRESS, world::EGRESS).unwrap();
    let client = EndpointValue {
        flags: ENDPOINT_READY | ENDPOINT_MARKS,
        workload: CLIENT.workload(),
        identity: CLIENT.identity(),
        address_v4: CLIENT.address(false),
        address_v6: CLIENT.address(true),
        ..EndpointValue::default()
    };
    world.kernel.set_endpoint(CLIENT_DEVICE, client).unwrap();
    Some(world)
}

fn kind(outcome: &Outcome) -> u32 {
    mark::read(&Config::DEFAULT, outcome.mark).0
}

/// Sends a frame out of the pod, which leaves it pending.
#[track_caller]
fn pending(world: &mut World, frame: &[u8]) -> u32 {
    let sent = world.kernel.run_marked(Program::FromPod, frame, POD_DEVICE, POD_DEVICE, 0).unwrap();
    assert_eq!((sent.action, kind(&sent)), (Continue, KIND_PENDING), "{sent:?}");
    assert_eq!(sent.events, []);
    sent.mark
}

#[test]
fn a_service_is_judged_as_the_pod_behind_it() {
    let Some(mut world) = two_pods() else { return };
    for v6 in FAMILIES {
        for (allowed, action, told) in
            [(false, Drop, (EVENT_DENIED, DENY_OUT)), (true, Continue, (EVENT_OPENED, ALLOW_OUT))]
        {
            world.kernel.forget().unwrap();
            world.row(world::EGRESS, CLIENT.class().0, if allowed { ALLOW_OUT } else { DENY_OUT });
            let mark = pending(&mut world, &POD.to(SERVICE, v6).tcp(40_000, 80, "S", 1, 0));
            let reached = POD.to(CLIENT, v6).tcp(40_000, 8_080, "S", 1, 0);
            let outcome = world.kernel.run_marked(Program::ToPod, &reached, CLIENT_DEVICE, POD_DEVICE, mark).unwrap();
            assert_eq!(outcome.action, action);
            let event = outcome.events[0];
            assert_eq!((event.kind, event.decision), told);
            assert_eq!((event.workload, event.peer_workload), (POD.workload(), CLIENT.workload()));
            assert_eq!((event.hook, event.direction), (HOOK_TO_POD, 1));
            assert_eq!((event.remote, event.ports), (CLIENT.address(v6), ports(40_000, 8_080)));
            assert_eq!((event.service, event.service_port), (SERVICE.address(v6), 80));
            // The reply, with the Service's address again.
            let reply = SERVICE.to(POD, v6).tcp(80, 40_000, "S.", 1, 2);
            let marked = mark::with(&Config::DEFAULT, 0, KIND_POD, 0);
            let back = world.kernel.run_marked(Program::ToPod, &reply, POD_DEVICE, CLIENT_DEVICE, marked).unwrap();
            assert_eq!(back.action, action, "{:?}", back.events);
        }
    }
}

#[test]
fn what_leaves_the_node_is_judged_behind_translation_and_loses_its_mark() {
    let Some(mut world) = two_pods() else { return };
    for v6 in FAMILIES {
        world.row(world::EGRESS, 0, DENY_OUT);
        let out = POD.to(WORLD, v6).udp(40_000, 53, b"question");
        let shown = HOST.to(WORLD, v6).udp(50_000, 53, b"question");
        let mark = pending(&mut world, &out) | 0x4000;
        let denied = world.kernel.run_marked(Program::Uplink, &shown, UPLINK, POD_DEVICE, mark).unwrap();
        check(&denied, Drop, Some((EVENT_DENIED, DENY_OUT)));
        let event = denied.events[0];
        assert_eq!((event.hook, event.local, event.remote), (HOOK_UPLINK, POD.address(v6), WORLD.address(v6)));
        assert_eq!((event.ports, event.service), (ports(40_000, 53), Address::default()));
        world.row(world::EGRESS, 0, ALLOW_OUT);
        let mark = pending(&mut world, &out) | 0x4000;
        let allowed = world.kernel.run_marked(Program::Uplink, &shown, UPLINK, POD_DEVICE, mark).unwrap();
        check(&allowed, Continue, Some((EVENT_OPENED, ALLOW_OUT)));
        assert_eq!(allowed.mark, 0x4000);
        // From now on the pod's own interface answers.
        let next = world.kernel.run_marked(Program::FromPod, &out, POD_DEVICE, POD_DEVICE, 0).unwrap();
        assert_eq!((next.action, kind(&next), next.events), (Continue, KIND_POD, vec![]));
        world.kernel.forget().unwrap();
    }
}

#[test]
fn a_process_of_the_node_is_judged_as_the_host() {
    let Some(mut world) = two_pods() else { return };
    world.kernel.classes().put(&IDENTITY_HOST, &ClassValue { class: ClassId(88) }).unwrap();
    for v6 in FAMILIES {
        for (decision, action, kind) in [(DENY_OUT, Drop, EVENT_DENIED), (ALLOW_OUT, Continue, EVENT_OPENED)] {
            world.row(world::EGRESS, 88, decision);
            let mark = pending(&mut world, &POD.to(SERVICE, v6).tcp(40_000, 80, "S", 1, 0));
            let reached = POD.to(HOST, v6).tcp(40_000, 9_000, "S", 1, 0);
            let outcome = world.kernel.run_marked(Program::HostIn, &reached, UPLINK, POD_DEVICE, mark).unwrap();
            check(&outcome, action, Some((kind, decision)));
            let event = outcome.events[0];
            assert_eq!((event.hook, event.peer_identity, event.port), (HOOK_HOST_IN, IDENTITY_HOST, 9_000));
            world.kernel.forget().unwrap();
        }
        // What others send to the node is none of our business.
        let other = WORLD.to(HOST, v6).tcp(1, 22, "S", 1, 0);
        let outcome = world.kernel.run_marked(Program::HostIn, &other, UPLINK, UPLINK, 0).unwrap();
        check(&outcome, Continue, None);
    }
}

#[test]
fn a_lost_mark_is_denied_by_name_wherever_the_packet_comes_to() {
    let Some(mut world) = two_pods() else { return };
    world.row(world::EGRESS, 0, ALLOW_OUT);
    let out = POD.to(WORLD, false).udp(40_000, 53, b"question");
    let marked = pending(&mut world, &out);
    let other = POD.to(WORLD, false).udp(40_000, 53, b"another!");
    let to_host = POD.to(HOST, false).udp(40_000, 53, b"question");
    for (program, shown) in [(Program::Uplink, &out), (Program::HostIn, &to_host)] {
        for (frame, mark) in [(shown, 0), (&other, marked)] {
            world.kernel.forget().unwrap();
            let outcome = world.kernel.run_marked(program, frame, UPLINK, POD_DEVICE, mark).unwrap();
            check(&outcome, Drop, Some((EVENT_DENIED, decision::MARK_LOST)));
            assert_eq!(outcome.events[0].workload, POD.workload());
        }
    }
    let outcome = world.kernel.run_marked(Program::Uplink, &out, UPLINK, POD_DEVICE, marked).unwrap();
    assert_eq!(outcome.action, Continue);
    // A local pod's packet at another pod.
    let inside = CLIENT.to(POD, false).udp(1, 2, b"");
    world.check_to_pod_by(CLIENT_DEVICE, &inside, Drop, Some((EVENT_DENIED, decision::MARK_LOST)));
    let marked = mark::with(&Config::DEFAULT, 0, KIND_POD, 0);
    let outcome = world.kernel.run_marked(Program::ToPod, &inside, POD_DEVICE, CLIENT_DEVICE, marked).unwrap();
    assert_eq!(outcome.action, Continue);
}

#[test]
fn a_process_that_sets_our_mark_gains_and_loses_nothing() {
    let Some(mut world) = two_pods() else { return };
    let forged = mark::with(&Config::DEFAULT, 0, KIND_PENDING, 7);
    let probe = HOST.to(POD, false).tcp(40_000, 8_080, "S", 1, 0);
    let outcome = world.kernel.run_marked(Program::ToPod, &probe, POD_DEVICE, 0, forged).unwrap();
    check(&outcome, Continue, Some((EVENT_OPENED, decision::OWN_NODE)));
    let other = WORLD.to(POD, false).udp(1, 2, b"");
    let outcome = world.kernel.run_marked(Program::ToPod, &other, POD_DEVICE, 0, forged).unwrap();
    check(&outcome, Drop, Some((EVENT_DENIED, DENY_IN)));
    let own = HOST.to(WORLD, false).udp(1, 2, b"");
    let outcome = world.kernel.run_marked(Program::Uplink, &own, UPLINK, 0, forged).unwrap();
    assert_eq!((outcome.action, outcome.mark), (Continue, 0));
}

#[test]
fn a_client_of_a_node_port_is_recorded_as_itself_behind_the_nodes_address() {
    let Some(mut world) = two_pods() else { return };
    world.kernel.classes().put(&IDENTITY_WORLD, &ClassValue { class: ClassId(66) }).unwrap();
    for v6 in FAMILIES {
        let key = ServiceKey { address: HOST.address(v6), port: 30_080, protocol: 6 };
        world.kernel.services().put(&key, &ServiceValue { flags: SERVICE_NODE_PORT, reserved: 0 }).unwrap();
        let asked = WORLD.to(HOST, v6).tcp(33_000, 30_080, "S", 1, 0);
        let shown = HOST.to(POD, v6).tcp(50_000, 8_080, "S", 1, 0);
        for (decision, action, told) in [(DENY_IN, Drop, EVENT_DENIED), (world::ALLOW_IN, Continue, EVENT_OPENED)] {
            world.row(world::INGRESS, 66, decision);
            let noted = world.kernel.run_marked(Program::UplinkIn, &asked, UPLINK, UPLINK, 0).unwrap();
            assert_eq!((noted.action, kind(&noted)), (Continue, KIND_CLIENT));
            let outcome = world.kernel.run_marked(Program::ToPod, &shown, POD_DEVICE, UPLINK, noted.mark).unwrap();
            check(&outcome, action, Some((told, decision)));
            let event = outcome.events[0];
            assert_eq!((event.remote, event.ports), (WORLD.address(v6), ports(8_080, 33_000)));
            assert_eq!((event.service, event.service_port), (HOST.address(v6), 30_080));
            assert_eq!(event.peer_identity, IDENTITY_WORLD);
            world.kernel.forget().unwrap();
        }
        // Nobody noted this one: it is nobody in particular, and certainly not the node.
        let outcome = world.kernel.run_marked(Program::ToPod, &shown, POD_DEVICE, UPLINK, 0).unwrap();
        assert_eq!(outcome.events[0].peer_identity, IDENTITY_MASQUERADED);
        world.kernel.forget().unwrap();
    }
}

#[test]
fn a_foreign_mark_does_not_enter_the_node() {
    let Some(mut world) = two_pods() else { return };
    let frame = REMOTE.to(POD, false).udp(1, 2, b"");
    for (mark, left) in [(0x1000_4000, 0x4000), (0x4000, 0x4000), (u32::MAX, !0x3fff_0000)] {
        let outcome = world.kernel.run_marked(Program::UplinkIn, &frame, UPLINK, UPLINK, mark).unwrap();
        assert_eq!((outcome.action, outcome.mark), (Continue, left));
    }
}
