//! The programs in the running kernel: the verifier takes them, and single frames get the verdict and the decision that
//! the walk's own tests ask for on the host.

#[path = "kernel/packets.rs"]
mod packets;
#[path = "kernel/services.rs"]
mod services;
#[path = "kernel/world.rs"]
mod world;

use reeve_abi::address::{NetworkKey, NetworkValue};
use reeve_abi::config::Config;
use reeve_abi::endpoint::{ENDPOINT_ADDRESSES_INCOMPLETE, ENDPOINT_READY};
use reeve_abi::event::{EVENT_DENIED, EVENT_FLAG_CUT, EVENT_OPENED, EVENT_REJUDGED};
use reeve_abi::ids::{ClassId, DecisionId, IDENTITY_WORLD, IdentityId, TableId};
use reeve_abi::policy::{
    ANY_PORT, ClassValue, PEER_RANGES, PortKey, PortValue, RANGE_BASE_BITS, RangeKey, VERDICT_ALLOW, VERDICT_DENY,
};
use reeve_abi::{decision, stats};
use reeve_packet::env::Hook;
use reeve_policy::engine::Engine;
use reeve_tests::judge::{Case, CompiledImage, InKernel, Judge as _};
use reeve_tests::kernel::Action::{Continue, Drop};
use reeve_tests::kernel::Program;
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::worlds::{NODE, RandomWorld, flows};
use world::{ALLOW_IN, ALLOW_OUT, CLIENT, DENY_IN, DENY_OUT, HOST, POD, REMOTE, WORLD, World, ports};

const NEEDS: [Capability; 3] = [Capability::Root, Capability::Bpf, Capability::Netns];
const FAMILIES: [bool; 2] = [false, true];

/// A world with everything closed but what the client and the rows of a test open; none: the test is skipped.
fn closed() -> Option<World> {
    if skip_unless(&NEEDS) { None } else { Some(World::closed().unwrap()) }
}

#[test]
fn all_programs_pass_the_verifier_with_room_to_spare() {
    let Some(world) = closed() else { return };
    for program in Program::ALL {
        // Without an answer, that they were loaded is all that there is to say.
        if let Some(walked) = world.kernel.verified_instructions(program).unwrap() {
            println!("{program:?}: {walked} instructions verified");
            assert!(walked < 500_000, "{program:?}: {walked} of a million instructions");
        }
    }
}

#[test]
fn an_allowed_flow_opens_and_its_replies_pass() {
    let Some(mut world) = closed() else { return };
    for v6 in FAMILIES {
        world.allow_out(REMOTE);
        let out = POD.to(REMOTE, v6);
        world.check_from_pod(&out.tcp(40_000, 443, "S", 1, 0), Continue, Some((EVENT_OPENED, ALLOW_OUT)));
        let back = REMOTE.to(POD, v6);
        world.check_to_pod(&back.tcp(443, 40_000, "S.", 1, 2), Continue, None);
        world.check_from_pod(&out.tcp(40_000, 443, ".", 2, 2), Continue, None);
        let flows = world.kernel.flows().all().unwrap();
        let (key, flow) = flows.iter().find(|(key, _)| key.remote == REMOTE.address(v6)).unwrap();
        assert_eq!((key.workload, key.ports, key.protocol), (POD.workload(), ports(40_000, 443), 6));
        assert_eq!((flow.decision, flow.verdict, flow.packets), (ALLOW_OUT, VERDICT_ALLOW, [2, 1]));
        assert_eq!(flow.peer_workload, REMOTE.workload());
        // Control: the same packet without the flow.
        world.kernel.forget().unwrap();
        world.check_to_pod(&back.tcp(443, 40_000, "S.", 1, 2), Drop, Some((EVENT_DENIED, DENY_IN)));
    }
}

#[test]
fn an_answer_without_its_flow_passes_and_is_counted_while_two_generations_are_attached() {
    for v6 in FAMILIES {
        let Some(mut world) = closed() else { return };
        world.allow_out(REMOTE);
        let back = REMOTE.to(POD, v6);
        let answers = [back.udp(53, 40_000, b""), back.tcp(443, 40_001, "S.", 1, 2), world::echo_reply(back, 7)];
        for answer in &answers {
            world.check_to_pod(answer, Drop, Some((EVENT_DENIED, DENY_IN)));
        }
        world.kernel.forget().unwrap();
        world.kernel.config().put(&0, &Config { mixed_generations: 1, ..Config::DEFAULT }).unwrap();
        for (counted, answer) in (1..).zip(&answers) {
            world.check_to_pod(answer, Continue, Some((EVENT_OPENED, ALLOW_OUT)));
            assert_eq!(world.kernel.stat(stats::EITHER_ORIENTATION).unwrap(), counted);
        }
        // What opens a connection has one orientation only, and what neither allows stays denied.
        world.check_to_pod(&back.tcp(443, 40_002, "S", 1, 0), Drop, Some((EVENT_DENIED, DENY_IN)));
        world.check_to_pod(&WORLD.to(POD, v6).udp(53, 40_000, b""), Drop, Some((EVENT_DENIED, DENY_IN)));
        assert_eq!(world.kernel.stat(stats::EITHER_ORIENTATION).unwrap(), 3);
    }
}

#[test]
fn a_denial_names_its_decider_and_is_told_once_a_second() {
    let Some(mut world) = closed() else { return };
    for v6 in FAMILIES {
        let frame = REMOTE.to(POD, v6).udp(40_000, 53, b"question");
        world.check_to_pod(&frame, Drop, Some((EVENT_DENIED, DENY_IN)));
        world.check_to_pod(&frame, Drop, None);
        let denied = world.kernel.denied().all().unwrap();
        let (_, row) = denied.iter().find(|(key, _)| key.remote == REMOTE.address(v6)).unwrap();
        assert_eq!((row.decision, row.count, row.reported), (DENY_IN, 2, 1));
        assert_eq!((row.peer_workload, row.peer_identity), (REMOTE.workload(), REMOTE.identity()));
        // Control: the client may.
        let frame = CLIENT.to(POD, v6).udp(40_000, 53, b"question");
        world.check_to_pod(&frame, Continue, Some((EVENT_OPENED, ALLOW_IN)));
    }
}

#[test]
fn without_a_policy_the_record_says_so() {
    let Some(mut world) = closed() else { return };
    world.select(0, 0).unwrap();
    for v6 in FAMILIES {
        let told = Some((EVENT_OPENED, decision::NO_POLICY_SELECTS));
        world.check_to_pod(&WORLD.to(POD, v6).udp(1, 2, b""), Continue, told);
        world.check_out(&POD.to(WORLD, v6).udp(3, 4, b""), Continue, told);
    }
}

#[test]
fn a_missing_default_row_is_inconsistent() {
    let Some(mut world) = closed() else { return };
    world.select(99, 99).unwrap();
    let told = Some((EVENT_DENIED, decision::INCONSISTENT_STATE));
    world.check_to_pod(&WORLD.to(POD, false).udp(1, 2, b""), Drop, told);
}

#[test]
fn rows_of_ports_are_asked_from_the_exact_to_the_widest() {
    let Some(mut world) = closed() else { return };
    world.table(world::INGRESS, 0, 5, PEER_RANGES);
    let value = |decision, verdict| PortValue { decision, verdict, reserved: 0 };
    let (exact, narrow, wide, any) =
        (DecisionId(0x7_0000), DecisionId(0x7_0001), DecisionId(0x7_0002), DecisionId(0x7_0003));
    let range = |port: u16, bits| RangeKey {
        prefix_bits: RANGE_BASE_BITS + bits,
        table: 5_u64.to_ne_bytes(),
        protocol_be: [0, 17],
        port_be: port.to_be_bytes(),
    };
    let port = |protocol, port| PortKey { table: TableId(5), protocol, port };
    world.kernel.ports().put(&port(17, 8_080), &value(exact, VERDICT_DENY)).unwrap();
    world.kernel.ranges().put(&range(8_064, 10), &value(narrow, VERDICT_ALLOW)).unwrap();
    world.kernel.ranges().put(&range(8_000, 6), &value(wide, VERDICT_DENY)).unwrap();
    world.kernel.ports().put(&port(17, ANY_PORT), &value(any, VERDICT_ALLOW)).unwrap();
    for (to, action, told) in [
        (8_080, Drop, (EVENT_DENIED, exact)),
        (8_081, Continue, (EVENT_OPENED, narrow)),
        (8_128, Drop, (EVENT_DENIED, wide)),
        (80, Continue, (EVENT_OPENED, any)),
    ] {
        world.check_to_pod(&WORLD.to(POD, false).udp(40_000, to, b""), action, Some(told));
    }
    world.check_to_pod(&WORLD.to(POD, false).tcp(1, 8_081, "S", 1, 0), Drop, Some((EVENT_DENIED, DENY_IN)));
}

#[test]
fn the_most_specific_network_gives_the_identity() {
    let Some(mut world) = closed() else { return };
    let (wide, narrow) = (IdentityId(0x9_0001), IdentityId(0x9_0002));
    for v6 in FAMILIES {
        let (bits, address) = if v6 { (32, WORLD.address(v6)) } else { (96 + 24, WORLD.address(v6)) };
        let mut network = address;
        network.0[if v6 { 4 } else { 15 }..].fill(0);
        let key = NetworkKey { prefix_bits: bits, address: network };
        world.kernel.networks().put(&key, &NetworkValue { identity: wide }).unwrap();
        let key = NetworkKey { prefix_bits: 128, address };
        world.kernel.networks().put(&key, &NetworkValue { identity: narrow }).unwrap();
    }
    world.kernel.classes().put(&narrow, &ClassValue { class: ClassId(55) }).unwrap();
    world.row(world::INGRESS, 55, ALLOW_IN);
    for v6 in FAMILIES {
        let frame = WORLD.to(POD, v6).udp(1, 2, b"");
        world.check_to_pod(&frame, Continue, Some((EVENT_OPENED, ALLOW_IN)));
        let key = NetworkKey { prefix_bits: 128, address: WORLD.address(v6) };
        world.kernel.networks().remove(&key).unwrap();
        world.kernel.forget().unwrap();
        let event = world.pod_gets(&frame).events[0];
        assert_eq!((event.decision, event.peer_identity), (DENY_IN, wide));
    }
    world.kernel.networks().clear().unwrap();
    let event = world.pod_gets(&WORLD.to(POD, false).udp(1, 3, b"")).events[0];
    assert_eq!(event.peer_identity, IDENTITY_WORLD);
}

#[test]
fn a_change_of_policy_cuts_the_flow_and_another_lets_it_go_on() {
    let Some(mut world) = closed() else { return };
    for v6 in FAMILIES {
        world.allow_out(REMOTE);
        world.select(0, world::EGRESS).unwrap();
        let (out, back) = (POD.to(REMOTE, v6), REMOTE.to(POD, v6));
        world.check_from_pod(&out.tcp(40_000, 443, "S", 1, 0), Continue, Some((EVENT_OPENED, ALLOW_OUT)));
        world.row(world::EGRESS, REMOTE.class().0, DENY_OUT);
        world.select(0, world::EGRESS).unwrap();
        let event = world.pod_gets(&back.tcp(443, 40_000, ".", 1, 2)).events[0];
        assert_eq!((event.kind, event.flags, event.previous), (EVENT_REJUDGED, EVENT_FLAG_CUT, ALLOW_OUT));
        assert_eq!((event.decision, u32::from(event.verdict)), (DENY_OUT, VERDICT_DENY));
        world.check_to_pod(&back.tcp(443, 40_000, ".", 1, 2), Drop, None);
        world.check_from_pod(&out.tcp(40_000, 443, ".", 2, 2), Drop, None);
        // The pod lets everybody in, and still the other side does not revive it.
        assert_eq!(world.kernel.flows().all().unwrap()[0].1.verdict, VERDICT_DENY);
        world.allow_out(REMOTE);
        world.select(0, world::EGRESS).unwrap();
        world.check_from_pod(&out.tcp(40_000, 443, ".", 2, 2), Continue, Some((EVENT_REJUDGED, ALLOW_OUT)));
        world.check_to_pod(&back.tcp(443, 40_000, ".", 1, 2), Continue, None);
        world.kernel.forget().unwrap();
    }
}

#[test]
fn a_peer_that_becomes_known_is_judged_again() {
    let Some(mut world) = closed() else { return };
    world.kernel.addresses().remove(&REMOTE.address(false)).unwrap();
    world.row(world::EGRESS, 0, ALLOW_OUT);
    let frame = POD.to(REMOTE, false).udp(40_000, 53, b"");
    world.check_out(&frame, Continue, Some((EVENT_OPENED, ALLOW_OUT)));
    world.row(world::EGRESS, REMOTE.class().0, DENY_OUT);
    world.own(REMOTE, reeve_abi::address::OWNER_REMOTE_POD, 0).unwrap();
    world.check_from_pod(&frame, Continue, None);
    let config = Config { address_epoch: Config::DEFAULT.address_epoch + 1, ..Config::DEFAULT };
    world.kernel.config().put(&0, &config).unwrap();
    world.check_from_pod(&frame, Drop, Some((EVENT_REJUDGED, DENY_OUT)));
}

#[test]
fn incomplete_addresses_close_what_is_not_found() {
    let Some(mut world) = closed() else { return };
    world.row(world::INGRESS, 0, ALLOW_IN);
    let frame = WORLD.to(POD, false).udp(1, 2, b"");
    world.check_to_pod(&frame, Continue, Some((EVENT_OPENED, ALLOW_IN)));
    world.endpoint.flags |= ENDPOINT_ADDRESSES_INCOMPLETE;
    world.select(world::INGRESS, world::EGRESS).unwrap();
    world.check_to_pod(&frame, Drop, Some((EVENT_REJUDGED, decision::ADDRESSES_INCOMPLETE)));
}

#[test]
fn an_endpoint_that_is_not_ready_lets_in_only_the_own_node() {
    let Some(mut world) = closed() else { return };
    world.endpoint.flags &= !ENDPOINT_READY;
    world.select(0, 0).unwrap();
    for v6 in FAMILIES {
        let told = Some((EVENT_DENIED, decision::NOT_READY));
        world.check_to_pod(&CLIENT.to(POD, v6).udp(1, 2, b""), Drop, told);
        let probe = HOST.to(POD, v6).tcp(40_000, 8_080, "S", 1, 0);
        world.check_to_pod(&probe, Continue, Some((EVENT_OPENED, decision::OWN_NODE)));
        world.check_from_pod(&POD.to(HOST, v6).tcp(8_080, 40_000, "S.", 1, 2), Continue, None);
        let answer = POD.to(HOST, v6).tcp(8_080, 40_001, "S.", 1, 2);
        world.check_from_pod(&answer, Drop, told);
    }
}

#[test]
fn the_own_node_is_who_made_the_packet_here_and_not_who_shows_its_address() {
    let Some(mut world) = closed() else { return };
    for v6 in FAMILIES {
        let probe = HOST.to(POD, v6).tcp(40_000, 8_080, "S", 1, 0);
        world.check_to_pod_by(world::UPLINK, &probe, Drop, Some((EVENT_DENIED, DENY_IN)));
        world.check_to_pod_by(0, &probe, Continue, Some((EVENT_OPENED, decision::OWN_NODE)));
        world.check_to_pod_by(world::UPLINK, &HOST.to(POD, v6).tcp(40_000, 8_080, ".", 2, 2), Drop, None);
        world.check_to_pod_by(0, &HOST.to(POD, v6).tcp(40_000, 8_080, ".", 2, 2), Continue, None);
    }
}

#[test]
fn a_source_that_is_not_the_senders_is_spoofed_at_both_hooks() {
    let Some(mut world) = closed() else { return };
    world.allow_out(REMOTE);
    for v6 in FAMILIES {
        let told = Some((EVENT_DENIED, decision::SPOOFED_SOURCE));
        world.check_from_pod(&CLIENT.to(REMOTE, v6).udp(1, 2, b""), Drop, told);
        world.check_from_pod(&POD.to(REMOTE, v6).udp(1, 2, b""), Continue, Some((EVENT_OPENED, ALLOW_OUT)));
        let frame = CLIENT.to(POD, v6).udp(3, 4, b"");
        world.check_to_pod_by(world::UPLINK, &frame, Drop, told);
        world.check_to_pod_by(0, &frame, Drop, None);
        world.check_to_pod_by(world::CLIENT_DEVICE, &frame, Continue, Some((EVENT_OPENED, ALLOW_IN)));
        world.check_to_pod_by(world::UPLINK, &frame, Drop, None);
    }
}

#[test]
fn what_cannot_be_read_is_malformed() {
    let Some(mut world) = closed() else { return };
    world.select(0, 0).unwrap();
    for v6 in FAMILIES {
        let whole = POD.to(REMOTE, v6).tcp(1, 2, "S", 1, 0);
        world.check_from_pod(&whole, Continue, Some((EVENT_OPENED, decision::NO_POLICY_SELECTS)));
        // A test run wants the IP header whole; the walk's own tests cut everywhere.
        for length in [whole.len() - 1, whole.len() - 16, whole.len() - 20] {
            world.kernel.forget().unwrap();
            let told = Some((EVENT_DENIED, decision::MALFORMED_PACKET));
            world.check_from_pod(&whole[..length], Drop, told);
        }
    }
    assert_eq!(world.kernel.stat(stats::MALFORMED).unwrap(), 6);
    let mut other = POD.to(REMOTE, false).udp(1, 2, b"");
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    world.check_from_pod(&other, Drop, None);
    assert_eq!(world.kernel.stat(stats::NOT_IP).unwrap(), 1);
}

#[test]
fn a_ping_is_answered_and_one_from_the_other_side_is_judged_on_its_own() {
    let Some(mut world) = closed() else { return };
    world.allow_out(REMOTE);
    for v6 in FAMILIES {
        world.check_from_pod(&POD.to(REMOTE, v6).echo_request(7, 1), Continue, Some((EVENT_OPENED, ALLOW_OUT)));
        world.check_to_pod(&world::echo_reply(REMOTE.to(POD, v6), 7), Continue, None);
        world.check_to_pod(&REMOTE.to(POD, v6).echo_request(7, 1), Drop, Some((EVENT_DENIED, DENY_IN)));
        world.check_to_pod(&world::echo_reply(REMOTE.to(POD, v6), 8), Drop, Some((EVENT_DENIED, DENY_IN)));
    }
}

#[test]
fn an_icmp_error_passes_if_it_quotes_a_live_flow() {
    let Some(mut world) = closed() else { return };
    world.allow_out(REMOTE);
    for (round, v6) in FAMILIES.into_iter().enumerate() {
        let request = POD.to(REMOTE, v6).udp(40_000, 53, b"");
        let error = world::unreachable(WORLD.to(POD, v6), &request);
        world.check_to_pod(&error, Drop, Some((EVENT_DENIED, DENY_IN)));
        world.check_from_pod(&request, Continue, Some((EVENT_OPENED, ALLOW_OUT)));
        world.check_to_pod(&error, Continue, None);
        assert_eq!(world.kernel.stat(stats::RELATED_ICMP).unwrap(), round as u64 + 1);
    }
}

#[test]
fn a_later_fragment_shares_the_fate_of_the_first_and_a_stray_one_is_denied() {
    let Some(mut world) = closed() else { return };
    for v6 in FAMILIES {
        let [first, later] = world::fragments(CLIENT.to(POD, v6), 40_000, 53);
        world.check_to_pod(&later, Drop, Some((EVENT_DENIED, decision::UNKNOWN_FRAGMENT)));
        world.check_to_pod(&first, Continue, Some((EVENT_OPENED, ALLOW_IN)));
        world.check_to_pod(&later, Continue, None);
        let [first, later] = world::fragments(REMOTE.to(POD, v6), 40_000, 53);
        world.check_to_pod(&first, Drop, Some((EVENT_DENIED, DENY_IN)));
        world.check_to_pod(&later, Drop, None);
    }
}

#[test]
fn edges_have_every_packet_by_verdict_and_decision() {
    let Some(mut world) = closed() else { return };
    let frame = CLIENT.to(POD, false).udp(1, 2, b"four");
    for _ in 0..5 {
        world.pod_gets(&frame);
        world.pod_gets(&REMOTE.to(POD, false).udp(1, 2, b"four"));
    }
    let mut rows: Vec<_> = world.kernel.edges().all().unwrap();
    rows.sort_by_key(|(key, _)| key.kind);
    let told: Vec<_> = rows.iter().map(|(key, value)| (key.decision, key.kind >> 8, value.connections)).collect();
    assert_eq!(told, [(ALLOW_IN, VERDICT_ALLOW, 1), (DENY_IN, VERDICT_DENY, 1)]);
    let flow = world.kernel.flows().all().unwrap()[0].1;
    assert_eq!(rows[0].1.packets[0] + flow.packets[0] - flow.flushed_packets[0], 5);
    assert_eq!((rows[1].1.packets, rows[1].1.bytes), ([5, 0], [5 * 32, 0]));
}

#[test]
fn edges_stay_exact_while_cpus_flush_the_same_flow_at_once() {
    // Long enough that threads run at the same time, on a busy machine too.
    const EACH: u32 = 1_000_000;
    let Some(mut world) = closed() else { return };
    world.allow_out(REMOTE);
    world.kernel.config().put(&0, &Config { flush_ns: 0, ..Config::DEFAULT }).unwrap();
    let frame = POD.to(REMOTE, false).udp(1, 2, b"four");
    world.check_from_pod(&frame, Continue, Some((EVENT_OPENED, ALLOW_OUT)));
    world.kernel.hammer(Hook::FromPod, &frame, world::POD_DEVICE, 4, EACH).unwrap();
    let total = 4 * u64::from(EACH) + 1;
    let flow = world.kernel.flows().all().unwrap()[0].1;
    let edge = world.kernel.edges().all().unwrap()[0].1;
    assert_eq!((flow.packets, flow.bytes), ([total, 0], [total * 32, 0]));
    let unflushed = flow.packets[0] - flow.flushed_packets[0];
    assert_eq!((edge.connections, edge.packets), (1, [total - unflushed, 0]));
    let unlooked = world.kernel.recent().all().unwrap().iter().map(|(_, row)| row.packets[1]).sum::<u64>();
    assert!(unlooked > total / 2, "most of {total} go without a look at the flow: {unlooked}");
}

#[test]
fn a_frame_of_an_interface_without_endpoint_goes_on() {
    let Some(mut world) = closed() else { return };
    let frame = WORLD.to(POD, false).udp(1, 2, b"");
    world.check_to_pod(&frame, Drop, Some((EVENT_DENIED, DENY_IN)));
    world.kernel.endpoints().remove(&world::POD_DEVICE).unwrap();
    world.check_to_pod(&frame, Continue, None);
    assert_eq!(world.kernel.stat(stats::NO_ENDPOINT).unwrap(), 1);
}

#[test]
fn random_worlds_are_judged_as_their_images_say() {
    if skip_unless(&NEEDS) {
        return;
    }
    let mut kernel = InKernel::load().unwrap();
    let mut judged = 0;
    for seed in 0..20 {
        let mut engine = Engine::new(NODE, 0);
        engine.apply(RandomWorld::new(seed).changes());
        kernel.prepare(&engine);
        for flow in flows(&mut fastrand::Rng::with_seed(seed), engine.world(), 50) {
            for case in Case::of(&engine, flow) {
                let told = kernel.decide(&engine, &case);
                assert_eq!(told, CompiledImage.decide(&engine, &case), "world {seed}: {case:?}");
                judged += 1;
            }
        }
    }
    assert!(judged > 500, "{judged}");
}
