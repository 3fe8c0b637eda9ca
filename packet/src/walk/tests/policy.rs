//! Look-ups: address, network, class, row, ports.

use crate::env::Action::{self, Continue, Drop};
use crate::host::{CLIENT, CLIENT_DEVICE, POD, REMOTE, UPLINK, WORLD, Who, World, decided};
use reeve_abi::decision;
use reeve_abi::endpoint::ENDPOINT_ADDRESSES_INCOMPLETE;
use reeve_abi::ids::{ClassId, DecisionId, IDENTITY_WORLD, IdentityId, PolicyNumber, TableId};
use reeve_abi::policy::{ANY_PORT, PEER_RANGES, PortValue, RANGE_BASE_BITS, RangeKey, VERDICT_ALLOW};

/// A datagram from `who` to a port of the pod: what happens, and who decided.
#[track_caller]
fn check(world: &mut World, who: Who, port: u16, want: (Action, DecisionId)) {
    let by = if who == CLIENT { CLIENT_DEVICE } else { UPLINK };
    let action = world.pod_gets(&who.to(POD, false).udp(40_000, port), by);
    let event = world.event();
    assert_eq!((action, event.decision), want);
    let verdict = if action == Continue { 1 } else { 2 };
    assert_eq!((event.verdict, event.port), (verdict, u32::from(port)));
}

#[test]
fn without_a_policy_everything_passes_and_the_record_says_so() {
    let mut world = World::new();
    check(&mut world, WORLD, 80, (Continue, decision::NO_POLICY_SELECTS));
    assert_eq!(world.pod_sends(&POD.to(WORLD, true).udp(1, 2)), Continue);
    assert_eq!(world.event().decision, decision::NO_POLICY_SELECTS);
}

#[test]
fn each_direction_and_family_has_a_policy_of_its_own() {
    for position in 0..4 {
        let mut world = World::new();
        world.row(7, ClassId(0), decided(false, 7));
        world.endpoint().policies[position] = PolicyNumber(7);
        for (egress, v6) in [(false, false), (false, true), (true, false), (true, true)] {
            let action = if egress {
                world.pod_sends(&POD.to(REMOTE, v6).tcp(1, 2, "S"))
            } else {
                world.pod_gets(&REMOTE.to(POD, v6).tcp(1, 2, "S"), UPLINK)
            };
            let here = position == usize::from(egress) * 2 + usize::from(v6);
            assert_eq!(action, if here { Drop } else { Continue }, "policy {position}, egress {egress}, v6 {v6}");
        }
    }
}

#[test]
fn a_class_has_its_row_and_an_unknown_one_the_default_row() {
    let mut world = World::new();
    world.row(1, ClassId(0), decided(false, 1));
    world.row(1, CLIENT.class(), decided(true, 2));
    world.select(1, 0);
    check(&mut world, CLIENT, 80, (Continue, decided(true, 2)));
    check(&mut world, REMOTE, 80, (Drop, decided(false, 1)));
    check(&mut world, WORLD, 80, (Drop, decided(false, 1)));
}

#[test]
fn a_missing_default_row_is_denied_as_inconsistent() {
    let mut world = World::new();
    world.row(1, CLIENT.class(), decided(true, 2));
    world.select(1, 0);
    check(&mut world, CLIENT, 80, (Continue, decided(true, 2)));
    check(&mut world, REMOTE, 80, (Drop, decision::INCONSISTENT_STATE));
}

#[test]
fn an_exact_port_comes_before_a_range_and_that_before_any_port_and_that_before_the_row() {
    let mut world = World::new();
    world.row_with_table(1, ClassId(0), decided(false, 1), 5, PEER_RANGES);
    let range = |port: u16, bits: u32| RangeKey {
        prefix_bits: RANGE_BASE_BITS + bits,
        table: 5_u64.to_ne_bytes(),
        protocol_be: [0, 17],
        port_be: port.to_be_bytes(),
    };
    let value = PortValue { decision: decided(true, 3), verdict: VERDICT_ALLOW, reserved: 0 };
    world.host.ranges.insert(range(8_000, 6), PortValue { decision: decided(false, 9), verdict: 2, reserved: 0 });
    world.host.ranges.insert(range(8_064, 10), value);
    world.port(5, 17, 8_080, decided(false, 2));
    world.select(1, 0);
    check(&mut world, WORLD, 8_080, (Drop, decided(false, 2)));
    check(&mut world, WORLD, 8_081, (Continue, decided(true, 3)));
    check(&mut world, WORLD, 8_127, (Continue, decided(true, 3)));
    check(&mut world, WORLD, 8_128, (Drop, decided(false, 9)));
    check(&mut world, WORLD, 80, (Drop, decided(false, 1)));
    world.port(5, 17, ANY_PORT, decided(true, 4));
    world.select(1, 0);
    check(&mut world, WORLD, 80, (Continue, decided(true, 4)));
    check(&mut world, CLIENT, 8_081, (Continue, decided(true, 3)));
    // Rows of a protocol say nothing of another one.
    assert_eq!(world.pod_gets(&WORLD.to(POD, false).tcp(1, 8_081, "S"), UPLINK), Drop);
    assert_eq!(world.event().decision, decided(false, 1));
}

#[test]
fn ranges_are_asked_only_where_the_row_says_so() {
    let mut world = World::new();
    world.row_with_table(1, ClassId(0), decided(false, 1), 5, 0);
    let key =
        RangeKey { prefix_bits: RANGE_BASE_BITS, table: 5_u64.to_ne_bytes(), protocol_be: [0, 17], port_be: [0; 2] };
    world.host.ranges.insert(key, PortValue { decision: decided(true, 3), verdict: VERDICT_ALLOW, reserved: 0 });
    world.select(1, 0);
    check(&mut world, WORLD, 80, (Drop, decided(false, 1)));
    world.row_with_table(1, ClassId(0), decided(false, 1), 5, PEER_RANGES);
    check(&mut world, WORLD, 80, (Continue, decided(true, 3)));
}

#[test]
fn a_table_is_asked_only_where_the_row_says_so() {
    let mut world = World::new();
    world.row(1, ClassId(0), decided(false, 1));
    world.port(5, 17, 80, decided(true, 2));
    world.host.peers.values_mut().for_each(|row| row.table = TableId(5));
    world.select(1, 0);
    check(&mut world, WORLD, 80, (Drop, decided(false, 1)));
    world.row_with_table(1, ClassId(0), decided(false, 1), 5, 0);
    check(&mut world, WORLD, 80, (Continue, decided(true, 2)));
}

#[test]
fn the_most_specific_network_gives_the_identity_and_an_exact_address_comes_first() {
    let mut world = World::new();
    let (wide, narrow) = (IdentityId(0x9_0001), IdentityId(0x9_0002));
    world.network("192.0.2.0/24", wide);
    world.network("192.0.2.8/29", narrow);
    world.network("10.0.0.0/8", wide);
    world.network("::/0", IdentityId(0x9_0003));
    world.row(1, ClassId(0), decided(false, 1));
    world.host.classes.insert(narrow, ClassId(5));
    world.row(1, ClassId(5), decided(true, 5));
    world.select(1, 0);
    check(&mut world, WORLD, 80, (Continue, decided(true, 5)));
    world.host.networks.retain(|_, value| value.identity != narrow);
    check(&mut world, WORLD, 81, (Drop, decided(false, 1)));
    assert_eq!(world.pod_gets(&WORLD.to(POD, false).udp(1, 2), UPLINK), Drop);
    assert_eq!(world.event().peer_identity, wide);
    assert_eq!(world.pod_gets(&REMOTE.to(POD, false).udp(1, 2), UPLINK), Drop);
    assert_eq!(world.event().peer_identity, REMOTE.identity());
    world.host.networks.clear();
    assert_eq!(world.pod_gets(&WORLD.to(POD, false).udp(1, 3), UPLINK), Drop);
    assert_eq!(world.event().peer_identity, IDENTITY_WORLD);
}

#[test]
fn incomplete_addresses_close_what_is_not_found_for_selected_pods() {
    let mut world = World::new();
    world.row(1, ClassId(0), decided(true, 1));
    world.endpoint().flags |= ENDPOINT_ADDRESSES_INCOMPLETE;
    check(&mut world, WORLD, 80, (Continue, decision::NO_POLICY_SELECTS));
    world.select(1, 0);
    check(&mut world, WORLD, 81, (Drop, decision::ADDRESSES_INCOMPLETE));
    check(&mut world, REMOTE, 80, (Continue, decided(true, 1)));
    world.endpoint().flags &= !ENDPOINT_ADDRESSES_INCOMPLETE;
    check(&mut world, WORLD, 81, (Continue, decided(true, 1)));
}

#[test]
fn other_protocols_are_judged_without_ports() {
    let mut world = World::new();
    world.row_with_table(1, ClassId(0), decided(false, 1), 5, 0);
    world.port(5, 47, ANY_PORT, decided(true, 2));
    world.select(1, 0);
    for (protocol, want) in [(47, Continue), (50, Drop)] {
        let frame = WORLD.to(POD, false).ip(etherparse::IpNumber(protocol), &[9; 16]);
        assert_eq!(world.pod_gets(&frame, UPLINK), want);
        let event = world.event();
        assert_eq!((event.protocol, event.port, event.ports), (protocol, 0, 0));
    }
}
