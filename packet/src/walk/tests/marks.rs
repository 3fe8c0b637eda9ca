//! Marks: which count, which are lost, which are taken off, and clients from outside.

use crate::env::Action::{Continue, Drop};
use crate::host::{CLIENT, CLIENT_DEVICE, HOST, POD, POD_DEVICE, REMOTE, UPLINK, WORLD, Who, World, decided, ports};
use crate::mark;
use reeve_abi::config::Config;
use reeve_abi::decision;
use reeve_abi::device::{DEVICE_POD_BRIDGE, DeviceValue};
use reeve_abi::ids::{ClassId, IDENTITY_MASQUERADED, IDENTITY_WORLD, IdentityId};
use reeve_abi::mark::{KIND_CLIENT, KIND_NONE, KIND_PENDING, KIND_POD, MASK};
use reeve_abi::service::{SERVICE_NODE_PORT, ServiceKey, ServiceValue};
use reeve_abi::stats;

const BRIDGE: u32 = 7;
/// A bit that is not ours.
const FOREIGN: u32 = 0x4000;

/// Everybody may come in and go out; whatever comes from pods carries a mark.
fn open() -> World {
    let mut world = World::new();
    world.second();
    world.row(1, ClassId(0), decided(true, 1));
    world.row(2, ClassId(0), decided(true, 2));
    world.select(1, 2);
    world
}

#[test]
fn a_pods_packet_without_its_mark_is_lost_wherever_it_comes_to() {
    for (marked, want) in [(true, Continue), (false, Drop)] {
        let mut world = open();
        let inside = CLIENT.to(POD, false).udp(1, 2);
        world.emits(CLIENT_DEVICE, &inside);
        world.events();
        if !marked {
            world.host.mark.set(0);
        }
        assert_eq!(world.reaches(POD_DEVICE, &inside, CLIENT_DEVICE), want);
        let lost = if marked { decided(true, 1) } else { decision::MARK_LOST };
        assert_eq!(world.event().decision, lost);
        for by_host in [false, true] {
            let out = POD.to(if by_host { HOST } else { WORLD }, false).udp(1, 2);
            let mut world = open();
            world.pod_emits(&out);
            if !marked {
                world.host.mark.set(FOREIGN);
            }
            let action = if by_host { world.host_gets(&out, POD_DEVICE) } else { world.leaves(&out, POD_DEVICE) };
            assert_eq!(action, want);
            let event = world.event();
            assert_eq!(event.decision, if marked { decided(true, 2) } else { decision::MARK_LOST });
            assert_eq!((event.workload, event.local, event.direction), (POD.workload(), POD.address(false), 1));
            assert_eq!(world.host.stat(stats::MARK_LOST), u64::from(!marked));
        }
    }
}

#[test]
fn what_processes_in_pods_receive_is_no_business_of_the_nodes() {
    let mut world = open();
    // Interfaces have the same numbers there, and no mark came along.
    for by in [POD_DEVICE, CLIENT_DEVICE] {
        assert_eq!(world.host_gets(&CLIENT.to(POD, false).udp(1, 2), by), Continue);
        assert_eq!(world.host_gets(&HOST.to(POD, false).udp(1, 2), by), Continue);
        // Nor does a mark of the pod's own count.
        world.host.mark.set(mark::with(&Config::DEFAULT, 0, KIND_PENDING, 9));
        assert_eq!(world.host_gets(&CLIENT.to(POD, false).udp(1, 2), by), Continue);
        world.host.mark.set(0);
    }
    // Control: the node's own process.
    assert_eq!(world.host_gets(&CLIENT.to(HOST, false).udp(1, 2), CLIENT_DEVICE), Drop);
}

#[test]
fn an_established_flow_does_not_excuse_a_lost_mark() {
    let mut world = open();
    let inside = CLIENT.to(POD, false).udp(1, 2);
    for (marked, want) in [(true, Continue), (false, Drop), (true, Continue)] {
        world.emits(CLIENT_DEVICE, &inside);
        if !marked {
            world.host.mark.set(0);
        }
        assert_eq!(world.reaches(POD_DEVICE, &inside, CLIENT_DEVICE), want);
    }
    assert_eq!(world.host.stat(stats::MARK_LOST), 1);
}

#[test]
fn a_device_without_programs_yet_needs_no_marks() {
    let mut world = open();
    world.host.endpoints.get_mut(&CLIENT_DEVICE).unwrap().flags &= !reeve_abi::endpoint::ENDPOINT_MARKS;
    assert_eq!(world.pod_gets(&CLIENT.to(POD, false).udp(1, 2), CLIENT_DEVICE), Continue);
}

#[test]
fn what_is_kept_of_a_device_counts_until_the_agent_has_written_another() {
    let mut world = open();
    let marks = reeve_abi::endpoint::ENDPOINT_MARKS;
    let set = |world: &mut World, on: bool| {
        let flags = &mut world.host.endpoints.get_mut(&CLIENT_DEVICE).unwrap().flags;
        *flags = *flags & !marks | if on { marks } else { 0 };
    };
    let mut port = 0;
    let mut gets = |world: &mut World, told: bool| {
        world.host.generation -= u64::from(!told); // the tests' world raises it with each packet
        port += 1; // no packet finds the flow of another
        world.pod_gets(&CLIENT.to(POD, false).udp(port, 2), CLIENT_DEVICE)
    };
    set(&mut world, false);
    assert_eq!(gets(&mut world, true), Continue);
    set(&mut world, true);
    assert_eq!(gets(&mut world, false), Continue, "as was read before");
    assert_eq!(gets(&mut world, true), Drop);
    // A bridge is not kept apart from the device that had its number.
    set(&mut world, false);
    world.host.devices.insert(CLIENT_DEVICE, DeviceValue { kind: DEVICE_POD_BRIDGE, header_bytes: 14 });
    assert_eq!(gets(&mut world, true), Drop);
    world.host.devices.remove(&CLIENT_DEVICE);
    assert_eq!(gets(&mut world, true), Continue);
}

#[test]
fn a_pending_packet_whose_slot_speaks_of_another_is_lost() {
    for (same, want) in [(true, Continue), (false, Drop)] {
        let mut world = open();
        let mut out = POD.to(WORLD, false).tcp(40_000, 443, "S");
        world.pod_emits(&out);
        if !same {
            out[14 + 20 + 4] ^= 1; // the sequence number
        }
        assert_eq!(world.leaves(&out, POD_DEVICE), want);
        assert_eq!(world.event().decision, if same { decided(true, 2) } else { decision::MARK_LOST });
    }
}

#[test]
fn a_mark_counts_only_where_its_packet_came_in() {
    // By the pod's own device, by its bridge, by another's bridge and device, made here.
    for (by, bridge, want, judged) in [
        (POD_DEVICE, 0, Continue, true),
        (BRIDGE, BRIDGE, Continue, true),
        (BRIDGE, 0, Drop, false),
        (CLIENT_DEVICE, 0, Drop, false),
        (UPLINK, 0, Continue, false),
        (0, 0, Continue, false),
    ] {
        let mut world = open();
        world.host.devices.insert(BRIDGE, DeviceValue { kind: DEVICE_POD_BRIDGE, header_bytes: 14 });
        world.endpoint().bridge = bridge;
        let out = POD.to(WORLD, false).udp(1, 2);
        world.pod_emits(&out);
        assert_eq!(world.leaves(&out, by), want, "by {by}");
        let allowed = world.events().iter().any(|event| event.decision == decided(true, 2));
        assert_eq!(allowed, judged, "by {by}");
        if want == Continue {
            assert_eq!(world.kind(), KIND_NONE, "no mark leaves the node");
        }
    }
}

#[test]
fn a_packet_that_two_of_us_see_where_it_leaves_is_judged_and_counted_once() {
    for v6 in [false, true] {
        let out = POD.to(WORLD, v6).udp(40_000, 53);
        let mut world = open();
        world.pod_emits(&out);
        assert_eq!(world.leaves_first(&out, POD_DEVICE), Continue);
        assert_eq!(world.event().decision, decided(true, 2));
        assert_eq!(world.leaves(&out, POD_DEVICE), Continue, "vouched for by the first");
        assert_eq!((world.events().len(), world.kind(), world.host.stat(stats::MARK_LOST)), (0, KIND_NONE, 0));
        // One that needs no judging there, and one that nobody judges.
        for kind in [KIND_POD, KIND_NONE] {
            world.host.mark.set(mark::with(&Config::DEFAULT, FOREIGN, kind, 0));
            let want = if kind == KIND_POD { Continue } else { Drop };
            assert_eq!(world.leaves_first(&out, POD_DEVICE), want, "a pod's packet without mark stays");
            if kind == KIND_POD {
                assert_eq!(world.leaves(&out, POD_DEVICE), Continue);
                assert_eq!(world.host.mark.get(), FOREIGN);
            }
        }
        assert_eq!(world.host.stat(stats::MARK_LOST), 1);
        let mut control = open();
        control.row(2, ClassId(0), decided(false, 2));
        control.pod_emits(&out);
        assert_eq!(control.leaves_first(&out, POD_DEVICE), Drop, "control: denied");
        assert_eq!(control.event().decision, decided(false, 2));
        control.host.mark.set(mark::with(&Config::DEFAULT, FOREIGN, KIND_POD, 5));
        assert_eq!(control.leaves_first(&HOST.to(WORLD, v6).udp(1, 2), 0), Continue);
        assert_eq!(control.host.mark.get(), FOREIGN, "made here: a mark is a process's own");
    }
}

#[test]
fn a_process_that_sets_our_mark_is_the_own_node_still() {
    let mut world = open();
    world.row(1, ClassId(0), decided(false, 1));
    for kind in [KIND_NONE, KIND_POD, KIND_PENDING, KIND_CLIENT] {
        world.host.mark.set(mark::with(&Config::DEFAULT, 0, kind, 5));
        let probe = HOST.to(POD, false).tcp(1_000 + u16::try_from(kind).unwrap(), 80, "S");
        assert_eq!(world.reaches(POD_DEVICE, &probe, 0), Continue);
        assert_eq!(world.event().decision, decision::OWN_NODE);
        world.host.mark.set(mark::with(&Config::DEFAULT, 0, kind, 5));
        assert_eq!(world.reaches(POD_DEVICE, &WORLD.to(POD, false).udp(1, 2), 0), Drop);
        world.events();
        let slot = if kind == KIND_NONE { 0 } else { 5 };
        world.host.mark.set(mark::with(&Config::DEFAULT, FOREIGN, kind, slot));
        assert_eq!(world.leaves(&HOST.to(WORLD, false).udp(1, 2), 0), Continue);
        assert_eq!(world.host.mark.get(), FOREIGN);
        world.host.mark.set(mark::with(&Config::DEFAULT, 0, kind, 5));
        assert_eq!(world.host_gets(&HOST.to(HOST, false).udp(1, 2), 1), Continue, "loopback");
    }
}

#[test]
fn a_process_that_repeats_a_pods_mark_and_bytes_speaks_for_nobody() {
    for (by, as_pod) in [(POD_DEVICE, true), (0, false)] {
        let mut world = open();
        world.pod_emits(&POD.to(WORLD, false).udp(1, 2));
        assert_eq!(world.kind(), KIND_PENDING);
        world.reaches(CLIENT_DEVICE, &POD.to(CLIENT, false).udp(1, 2), by);
        let told = world.events().iter().any(|event| event.workload == POD.workload());
        assert_eq!(told, as_pod, "by {by}");
    }
}

#[test]
fn only_our_bits_of_the_mark_are_touched() {
    for shift in [0, 7, 16, 18] {
        let config = Config { mark_shift: shift, ..Config::DEFAULT };
        for mark in [0, u32::MAX, 0x1234_5678] {
            let with = mark::with(&config, mark, KIND_PENDING, 0xabc);
            assert_eq!(mark::read(&config, with), (KIND_PENDING, 0xabc));
            assert_eq!(with & !(MASK << shift), mark & !(MASK << shift));
        }
    }
    assert_eq!(mark::with(&Config::DEFAULT, u32::MAX, KIND_NONE, 0), !0x3fff_0000);
}

#[test]
fn each_cpu_uses_slots_of_its_own_by_turns() {
    let mut world = open();
    for (cpu, slots) in [(0, 0..64), (3, 192..256)] {
        world.host.cpu = cpu;
        let mut used = std::collections::BTreeSet::new();
        for _ in 0..200 {
            world.pod_emits(&POD.to(WORLD, false).udp(1, 2));
            used.insert(mark::read(&Config::DEFAULT, world.host.mark.get()).1);
        }
        assert_eq!(used, slots.collect());
    }
}

#[test]
fn foreign_marks_are_taken_off_what_enters_the_node() {
    let mut world = open();
    let frame = WORLD.to(POD, false).udp(1, 2);
    for (mark, left, cleared) in [(FOREIGN, FOREIGN, 0), (0x3fff_0000 | FOREIGN, FOREIGN, 1)] {
        world.host.mark.set(mark);
        assert_eq!(world.enters(&frame), Continue);
        assert_eq!((world.host.mark.get(), world.host.stat(stats::MARK_CLEARED)), (left, cleared));
    }
    // At a pod's device its own program puts marks on.
    world.host.mark.set(0x1000_0000);
    world.host.endpoints.insert(UPLINK, reeve_abi::endpoint::EndpointValue::default());
    world.enters(&frame);
    assert_eq!(world.host.mark.get(), 0x1000_0000);
}

/// A node port that leads to port 8080 of the pod.
fn node_port(world: &mut World, v6: bool) {
    let key = ServiceKey { address: HOST.address(v6), port: 30_080, protocol: 6 };
    world.host.services.insert(key, ServiceValue { flags: SERVICE_NODE_PORT, reserved: 0 });
}

/// The pod lets in only what policy 1's row of this class says.
fn closed() -> World {
    let mut world = open();
    world.row(1, ClassId(0), decided(false, 1));
    world
}

#[test]
fn a_client_behind_the_nodes_own_address_is_judged_and_recorded_as_itself() {
    for v6 in [false, true] {
        for (allowed, want) in [(true, Continue), (false, Drop)] {
            let mut world = closed();
            node_port(&mut world, v6);
            world.host.classes.insert(IDENTITY_WORLD, ClassId(66));
            world.row(1, ClassId(66), decided(allowed, 6));
            world.host.mark.set(0);
            assert_eq!(world.enters(&WORLD.to(HOST, v6).tcp(33_000, 30_080, "S")), Continue);
            assert_eq!(world.kind(), KIND_CLIENT);
            let shown = HOST.to(POD, v6).tcp(50_000, 8_080, "S");
            assert_eq!(world.reaches(POD_DEVICE, &shown, UPLINK), want);
            let event = world.event();
            assert_eq!((event.decision, event.peer_identity), (decided(allowed, 6), IDENTITY_WORLD));
            assert_eq!((event.remote, event.ports), (WORLD.address(v6), ports(8_080, 33_000)));
            assert_eq!((event.service, event.service_port), (HOST.address(v6), 30_080));
            if allowed {
                assert_eq!(world.pod_emits(&POD.to(HOST, v6).tcp(8_080, 50_000, "S.")), Continue);
                assert_eq!((world.kind(), world.events()), (KIND_POD, vec![]));
            }
        }
    }
}

#[test]
fn two_clients_that_share_a_masqueraded_port_are_two_flows() {
    let mut world = closed();
    node_port(&mut world, false);
    world.host.classes.insert(IDENTITY_WORLD, ClassId(66));
    world.row(1, ClassId(66), decided(true, 6));
    world.row(1, REMOTE.class(), decided(false, 7));
    let shown = HOST.to(POD, false).tcp(50_000, 8_080, "S");
    for (client, want) in [(WORLD, Continue), (REMOTE, Drop), (WORLD, Continue)] {
        world.host.mark.set(0);
        world.enters(&client.to(HOST, false).tcp(33_000, 30_080, "S"));
        assert_eq!(world.reaches(POD_DEVICE, &shown, UPLINK), want, "{client:?}");
    }
}

#[test]
fn a_client_nobody_noted_is_masqueraded_and_matched_by_prefixes_only() {
    for (network, want) in [(true, Continue), (false, Drop)] {
        let mut world = closed();
        // The node itself may come in, which is of no use here.
        world.host.classes.insert(reeve_abi::ids::IDENTITY_HOST, ClassId(88));
        world.row(1, ClassId(88), decided(true, 8));
        if network {
            let identity = IdentityId(0x9_0009);
            world.network("172.18.0.0/16", identity);
            world.host.classes.insert(identity, ClassId(99));
            world.row(1, ClassId(99), decided(true, 9));
        }
        assert_eq!(world.pod_gets(&HOST.to(POD, false).tcp(50_000, 8_080, "S"), UPLINK), want);
        let event = world.event();
        assert_eq!(event.peer_identity, IDENTITY_MASQUERADED);
        assert_eq!(event.decision, if network { decided(true, 9) } else { decided(false, 1) });
        // It stays what it is when it is judged again.
        world.select(1, 2);
        world.pod_gets(&HOST.to(POD, false).tcp(50_000, 8_080, "."), UPLINK);
        assert!(world.events().iter().all(|event| event.peer_identity == IDENTITY_MASQUERADED));
    }
}

#[test]
fn a_client_whose_slot_speaks_of_another_packet_is_masqueraded() {
    for (same, want) in [(true, Continue), (false, Drop)] {
        let mut world = closed();
        node_port(&mut world, false);
        world.row(1, REMOTE.class(), decided(true, 6));
        world.host.mark.set(0);
        world.enters(&REMOTE.to(HOST, false).tcp(33_000, 30_080, "S"));
        let mut shown = HOST.to(POD, false).tcp(50_000, 8_080, "S");
        if !same {
            shown[14 + 20 + 4] ^= 1; // the sequence number
        }
        assert_eq!(world.reaches(POD_DEVICE, &shown, UPLINK), want);
        assert_eq!(world.event().peer_identity, if same { REMOTE.identity() } else { IDENTITY_MASQUERADED });
    }
}

#[test]
fn a_client_that_shows_a_local_pods_address_is_spoofed() {
    for (client, want) in [(CLIENT, Drop), (REMOTE, Continue)] {
        let mut world = open();
        node_port(&mut world, false);
        world.host.mark.set(0);
        world.enters(&client.to(HOST, false).tcp(33_000, 30_080, "S"));
        assert_eq!(world.reaches(POD_DEVICE, &HOST.to(POD, false).tcp(50_000, 8_080, "S"), UPLINK), want);
        let decider = if want == Drop { decision::SPOOFED_SOURCE } else { decided(true, 1) };
        assert_eq!(world.event().decision, decider);
    }
}

#[test]
fn tunnels_without_a_link_layer_are_read_from_their_first_byte() {
    for (header, want) in [(0, Continue), (14, Drop)] {
        let mut world = open();
        let device = DeviceValue { kind: reeve_abi::device::DEVICE_UPLINK, header_bytes: header };
        world.host.devices.insert(UPLINK, device);
        let out = POD.to(Who::somebody("192.0.2.77", "2001:db8::77"), false).udp(1, 2);
        world.pod_emits(&out);
        assert_eq!(world.leaves(&out[14..], POD_DEVICE), want);
    }
}
