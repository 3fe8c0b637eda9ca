//! Pings, answers and errors.

use crate::env::Action::{Continue, Drop};
use crate::host::{HOST, POD, REMOTE, UPLINK, WORLD, World, decided};
use reeve_abi::config::SECOND_NS;
use reeve_abi::event::{EVENT_DENIED, EVENT_OPENED};
use reeve_abi::ids::ClassId;
use reeve_abi::policy::ANY_PORT;
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
fn an_answer_to_the_pods_own_ping_passes_and_no_other() {
    for v6 in [false, true] {
        let mut world = closed_inwards();
        let out = POD.to(REMOTE, v6);
        assert_eq!(world.pod_sends(&out.ping(7)), Continue);
        let event = world.event();
        assert_eq!((event.kind, event.port), (EVENT_OPENED, if v6 { 128 << 8 } else { 8 << 8 }));
        assert_eq!(world.pod_gets(&out.back().pong(7), UPLINK), Continue);
        assert_eq!(world.events(), []);
        assert_eq!(world.pod_gets(&out.back().pong(8), UPLINK), Drop);
        assert_eq!(world.event().decision, decided(false, 1));
    }
}

#[test]
fn a_ping_from_the_other_side_with_the_same_identifier_is_judged_on_its_own() {
    for v6 in [false, true] {
        let mut world = closed_inwards();
        let out = POD.to(REMOTE, v6);
        assert_eq!(world.pod_sends(&out.ping(7)), Continue);
        world.events();
        assert_eq!(world.pod_gets(&out.back().ping(7), UPLINK), Drop);
        let event = world.event();
        assert_eq!((event.kind, event.decision, event.direction), (EVENT_DENIED, decided(false, 1), 0));
        // Control: allowed, it is a second flow.
        world.row(1, REMOTE.class(), decided(true, 3));
        assert_eq!(world.pod_gets(&out.back().ping(7), UPLINK), Continue);
        assert_eq!(world.event().decision, decided(true, 3));
        assert_eq!(world.pod_sends(&out.pong(7)), Continue);
        assert_eq!(world.host.flows.all().len(), 2);
    }
}

#[test]
fn type_and_code_are_the_port() {
    for (v6, protocol, port) in [(false, 1, 8 << 8), (true, 58, 128 << 8)] {
        let mut world = closed_inwards();
        world.row_with_table(1, ClassId(0), decided(false, 1), 5, 0);
        assert_eq!(world.pod_gets(&REMOTE.to(POD, v6).ping(7), UPLINK), Drop);
        world.port(5, protocol, port, decided(true, 4));
        assert_eq!(world.pod_gets(&REMOTE.to(POD, v6).ping(7), UPLINK), Continue);
        assert_eq!(
            world.pod_gets(&REMOTE.to(POD, v6).icmp(if v6 { 144 } else { 13 }, 0, [0; 4], &[0; 8]), UPLINK),
            Drop
        );
    }
}

#[test]
fn an_error_about_a_live_flow_passes_in_both_directions() {
    for v6 in [false, true] {
        let mut world = closed_inwards();
        let out = POD.to(REMOTE, v6);
        let request = out.udp(40_000, 53);
        let router = WORLD.to(POD, v6);
        assert_eq!(world.pod_gets(&router.unreachable(&request), UPLINK), Drop);
        assert_eq!(world.event().decision, decided(false, 1));
        assert_eq!(world.pod_sends(&request), Continue);
        world.events();
        assert_eq!(world.pod_gets(&router.unreachable(&request), UPLINK), Continue);
        // The pod complains about the answer.
        world.pod_gets(&out.back().udp(53, 40_000), UPLINK);
        assert_eq!(world.pod_sends(&out.unreachable(&out.back().udp(53, 40_000))), Continue);
        assert_eq!((world.events(), world.host.stat(stats::RELATED_ICMP)), (vec![], 2));
    }
}

#[test]
fn an_error_that_quotes_nothing_of_the_pod_is_judged_by_policy() {
    for v6 in [false, true] {
        let out = POD.to(REMOTE, v6);
        let router = WORLD.to(POD, v6);
        for quoted in [
            out.udp(40_001, 53),                 // another port
            out.tcp(40_000, 53, "."),            // another protocol
            HOST.to(REMOTE, v6).udp(40_000, 53), // not what this pod sent
            out.back().udp(53, 40_000),          // the wrong way round
        ] {
            let mut world = closed_inwards();
            world.pod_sends(&out.udp(40_000, 53));
            world.events();
            assert_eq!(world.pod_gets(&router.unreachable(&quoted), UPLINK), Drop, "{quoted:02x?}");
            let event = world.event();
            assert_eq!(event.decision, decided(false, 1));
            assert_eq!(event.port, if v6 { 1 << 8 | 4 } else { 3 << 8 | 3 });
            world.row_with_table(1, ClassId(0), decided(false, 1), 5, 0);
            world.port(5, if v6 { 58 } else { 1 }, ANY_PORT, decided(true, 6));
            assert_eq!(world.pod_gets(&router.unreachable(&quoted), UPLINK), Continue);
        }
    }
}

#[test]
fn an_error_about_a_flow_that_is_over_or_cut_is_not_related() {
    let out = POD.to(REMOTE, false);
    let request = out.udp(40_000, 53);
    let error = WORLD.to(POD, false).unreachable(&request);
    let mut world = closed_inwards();
    world.pod_sends(&request);
    world.host.now_ns += 30 * SECOND_NS;
    assert_eq!(world.pod_gets(&error, UPLINK), Continue);
    world.host.now_ns += 4_000_000; // a tick
    assert_eq!(world.pod_gets(&error, UPLINK), Drop);

    let mut world = closed_inwards();
    world.pod_sends(&request);
    world.row(3, ClassId(0), decided(false, 3));
    world.select(1, 3);
    // Not judged under the new policy yet, then cut by it.
    assert_eq!(world.pod_gets(&error, UPLINK), Drop);
    assert_eq!(world.pod_sends(&request), Drop);
    assert_eq!(world.pod_gets(&error, UPLINK), Drop);
}

#[test]
fn an_error_that_quotes_a_ping_is_about_that_ping() {
    for v6 in [false, true] {
        let mut world = closed_inwards();
        let out = POD.to(REMOTE, v6);
        world.pod_sends(&out.ping(7));
        assert_eq!(world.pod_gets(&WORLD.to(POD, v6).unreachable(&out.ping(7)), UPLINK), Continue);
        assert_eq!(world.pod_gets(&WORLD.to(POD, v6).unreachable(&out.ping(8)), UPLINK), Drop);
    }
}

#[test]
fn a_path_mtu_message_about_a_live_flow_passes_and_about_none_is_judged() {
    for v6 in [false, true] {
        let mut world = closed_inwards();
        let request = POD.to(REMOTE, v6).udp(40_000, 53);
        let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
        let too_big = WORLD.to(POD, v6).icmp(kind, code, [0, 0, 5, 0], &request[14..]);
        assert_eq!(world.pod_gets(&too_big, UPLINK), Drop);
        let event = world.event();
        assert_eq!((event.decision, event.port), (decided(false, 1), u32::from(kind) << 8 | u32::from(code)));
        assert_eq!(world.pod_sends(&request), Continue);
        assert_eq!(world.pod_gets(&too_big, UPLINK), Continue);
        // With a later fragment, or a packet that is cut off, nobody can say which flow it is about.
        let later = POD.to(REMOTE, v6).fragment(&request, 9, 1, 7, false);
        for quoted in [&later[14..], &request[14..request.len() - 8]] {
            let error = WORLD.to(POD, v6).icmp(kind, code, [0, 0, 5, 0], quoted);
            assert_eq!(world.pod_gets(&error, UPLINK), Drop, "{quoted:02x?}");
        }
    }
}

#[test]
fn a_quoted_packet_is_found_behind_its_own_options_and_extension_headers() {
    for v6 in [false, true] {
        let mut world = closed_inwards();
        let request = POD.to(REMOTE, v6).udp(40_000, 53);
        assert_eq!(world.pod_sends(&request), Continue);
        let (router, header) = (WORLD.to(POD, v6), if v6 { 54 } else { 34 });
        let shifted = if v6 {
            let chain = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &request[header..]].concat();
            POD.to(REMOTE, v6).ip(etherparse::IpNumber(60), &chain)
        } else {
            let mut frame =
                POD.to(REMOTE, v6).ip(etherparse::IpNumber::UDP, &[&[1; 4][..], &request[header..]].concat());
            frame[14] = 0x46;
            frame
        };
        assert_eq!(world.pod_gets(&router.unreachable_whole(&shifted), UPLINK), Continue);
        let mut other = shifted.clone();
        let last = other.len() - 15 + 1;
        other[last] ^= 1; // the source port
        assert_eq!(world.pod_gets(&router.unreachable_whole(&other), UPLINK), Drop);
    }
}
