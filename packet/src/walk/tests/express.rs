//! The short ways and the long one: the same packets in two worlds, one of which never takes a short way.

use crate::env::Action::{self, Continue, Drop};
use crate::host::{CLIENT, CLIENT_DEVICE, CPUS, HOST, POD, REMOTE, UPLINK, WORLD, Who, World, decided, event_kinds};
use fastrand::Rng;
use reeve_abi::config::Config;
use reeve_abi::conntrack::{FlowKey, FlowValue};
use reeve_abi::endpoint::{ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6, ENDPOINT_READY};
use reeve_abi::event::{EVENT_CLOSED, EVENT_OPENED};
use reeve_abi::ids::{ClassId, DecisionId, Revision, WorkloadId};
use reeve_abi::mark::{KIND_CLIENT, KIND_NONE, KIND_PENDING, KIND_POD};
use reeve_abi::policy::{VERDICT_ALLOW, VERDICT_DENY};
use reeve_abi::recent::RecentValue;
use reeve_abi::stats;
use std::collections::BTreeMap;

const HISTORIES: u64 = 400;
const STEPS: usize = 120;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// The pod sends a packet; where it goes on if it is pending is left out.
    Emits(Vec<u8>),
    /// A packet reaches the pod by this device, with a mark of this kind.
    Gets(Vec<u8>, u32, u32),
    /// Time passes, ms.
    Waits(u64),
    /// Other policies, the same revision or the next one.
    Selects(u64, u64),
    /// Flags of the endpoint.
    Flags(u32),
    /// An address has become known.
    Epoch,
}

impl Step {
    /// Itself, if it is a packet.
    fn packet(self) -> Option<Self> {
        matches!(self, Self::Emits(_) | Self::Gets(..)).then_some(self)
    }

    /// Any, or one that is like the last packet: one that follows its like at once is what the short ways are for.
    fn next(last: Option<&Self>, rng: &mut Rng) -> Self {
        match last {
            Some(Self::Emits(frame)) if rng.u8(..3) != 0 => Self::Emits(frame.clone()),
            Some(Self::Gets(frame, by, kind)) if rng.u8(..3) != 0 => match rng.u8(..12) {
                0..=2 => Self::Gets(frame.clone(), device(rng), *kind),
                3 => Self::Gets(frame.clone(), *by, kind_of_mark(rng)),
                _ => Self::Gets(frame.clone(), *by, *kind),
            },
            _ => Self::random(rng),
        }
    }

    fn random(rng: &mut Rng) -> Self {
        let peer = [CLIENT, CLIENT, REMOTE, REMOTE, WORLD, HOST][rng.usize(..6)];
        let v6 = rng.u8(..4) == 0;
        match rng.u8(..24) {
            0..=9 => {
                // Now and then in somebody else's name.
                let own = if rng.u8(..12) == 0 { CLIENT } else { POD };
                Self::Emits(frame(own, peer, v6, rng))
            }
            10..=19 => {
                let (by, kind) = (device(rng), kind_of_mark(rng));
                Self::Gets(frame(peer, POD, v6, rng), by, kind)
            }
            20 => Self::Waits([1, 5, 400, 1_500, 31_000, 130_000][rng.usize(..6)]),
            21 => Self::Selects(rng.u64(0..3), rng.u64(0..3)),
            22 if rng.u8(..3) == 0 => {
                let contested = [0, ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6][rng.usize(..3)];
                Self::Flags(if rng.u8(..4) == 0 { contested } else { ENDPOINT_READY | contested })
            }
            22 => Self::Flags(ENDPOINT_READY),
            _ => Self::Epoch,
        }
    }

    /// Does it. `raises`: the agent says after every step that endpoints have changed, so that nothing is kept.
    fn happens(&self, world: &mut World, raises: bool) -> Option<Action> {
        let keep = |world: &mut World| {
            if !raises {
                world.host.generation -= 1; // the tests' world raises it with each packet
            }
        };
        match self {
            Self::Emits(frame) => {
                keep(world);
                Some(world.pod_emits(frame))
            }
            Self::Gets(frame, by, kind) => {
                keep(world);
                world.host.mark.set(crate::mark::with(&Config::DEFAULT, 0xa000_0000, *kind, 5));
                Some(world.reaches(crate::host::POD_DEVICE, frame, *by))
            }
            Self::Waits(ms) => {
                world.host.now_ns += ms * 1_000_000;
                None
            }
            Self::Selects(ingress, egress) => {
                let before = world.endpoint().head_revision.0;
                world.select(*ingress, *egress);
                world.endpoint().head_revision = Revision(before + 1);
                world.endpoint().tail_revision = Revision(before + 1);
                world.host.generation += 1;
                None
            }
            Self::Flags(flags) => {
                world.endpoint().flags = *flags;
                world.host.generation += 1;
                None
            }
            Self::Epoch => {
                world.host.config.address_epoch += 1;
                None
            }
        }
    }
}

fn device(rng: &mut Rng) -> u32 {
    [CLIENT_DEVICE, CLIENT_DEVICE, UPLINK, UPLINK, 0][rng.usize(..5)]
}

fn kind_of_mark(rng: &mut Rng) -> u32 {
    [KIND_NONE, KIND_POD, KIND_POD, KIND_PENDING, KIND_CLIENT][rng.usize(..5)]
}

fn frame(from: Who, to: Who, v6: bool, rng: &mut Rng) -> Vec<u8> {
    let (a, b) = (rng.u16(1..4), rng.u16(1..4));
    let ends = from.to(to, v6);
    if rng.bool() { ends.udp(a, b) } else { ends.tcp(a, b, ["S", "S.", ".", ".", ".", ".", "F.", "R"][rng.usize(..8)]) }
}

/// Policies 1 and 2 deny the one half and let in the other half; nobody is under policy 0. `seed` decides whether what
/// comes from the neighbour must carry a mark, and whether counts are flushed more often than flows end.
fn world(seed: u64) -> World {
    let mut world = World::new();
    if seed.is_multiple_of(2) {
        world.second();
    }
    if seed.is_multiple_of(3) {
        world.host.config.flush_ns = u64::MAX;
    }
    for (policy, allows) in [(1, false), (2, true)] {
        world.row(policy, ClassId(0), decided(allows, policy));
        world.row(policy, CLIENT.class(), decided(!allows, policy + 2));
    }
    world
}

/// Flows with what CPUs have counted of them for themselves.
fn counted(world: &World) -> Vec<(FlowKey, FlowValue)> {
    let mut flows = world.host.flows.all();
    for (_, row) in world.host.recent.all() {
        let owed = [0, 1].map(|way| [row.packets[way] - row.added_packets[way], row.bytes[way] - row.added_bytes[way]]);
        if owed == [[0; 2]; 2] {
            continue;
        }
        let of_row = |flow: &FlowValue| flow.first_ns == row.first_ns && flow.decision == row.decision;
        let flow = flows.iter_mut().find(|(key, flow)| *key == row.key && of_row(flow));
        let (_, flow) = flow.unwrap_or_else(|| panic!("a CPU counts for a flow that is no more: {row:?}"));
        for (way, [packets, bytes]) in (0_u32..).zip(owed) {
            let back = usize::from(flow.direction != way);
            flow.packets[back] += packets;
            flow.bytes[back] += bytes;
        }
    }
    flows
}

/// Packets and bytes by whose they are, which way, how they were judged and by whom: in edges, and yet to get there.
fn tally(world: &World) -> BTreeMap<(WorkloadId, WorkloadId, DecisionId, u32), [u64; 4]> {
    let mut tally = BTreeMap::new();
    let mut add = |key, packets: [u64; 2], bytes: [u64; 2]| {
        let sum: &mut [u64; 4] = tally.entry(key).or_default();
        for (sum, more) in sum.iter_mut().zip([packets[0], packets[1], bytes[0], bytes[1]]) {
            *sum += more;
        }
    };
    for (key, row) in world.host.edges.all() {
        add((key.subject, key.peer, key.decision, key.kind), row.packets, row.bytes);
    }
    for (key, flow) in world.host.flows.all() {
        let rest = |all: [u64; 2], flushed: [u64; 2]| [0, 1].map(|way| all[way] - flushed[way]);
        let (packets, bytes) = (rest(flow.packets, flow.flushed_packets), rest(flow.bytes, flow.flushed_bytes));
        if (packets != [0; 2] || bytes != [0; 2]) && matches!(flow.verdict, VERDICT_ALLOW | VERDICT_DENY) {
            add((key.workload, flow.peer_workload, flow.decision, flow.direction | flow.verdict << 8), packets, bytes);
        }
    }
    tally
}

/// How many packets this CPU or others have let through without a look at the flow.
fn unlooked(world: &World) -> u64 {
    world.host.recent.all().iter().map(|(_, row)| row.packets[0] + row.packets[1]).sum()
}

/// Has the same happen in a world with the short ways and in one without, on CPUs as they come, and looks at both after each
/// step: `(near, far, the step as text, what became of its packet, whether it is the last)`.
fn history(
    seed: u64,
    cpus: u32,
    mut look: impl FnMut(&mut World, &mut World, &str, Option<Action>, bool),
) -> [World; 2] {
    let mut rng = Rng::with_seed(seed);
    let (mut near, mut far) = (world(seed), world(seed));
    let mut last = None;
    for nth in 0..STEPS {
        let step = Step::next(last.as_ref(), &mut rng);
        let said = format!("history {seed}, step {nth}: {step:?}");
        let cpu = rng.u32(..cpus);
        near.host.cpu = cpu;
        far.host.cpu = cpu;
        let action = step.happens(&mut near, false);
        assert_eq!(action, step.happens(&mut far, true), "{said}");
        assert_eq!(near.host.mark.get(), far.host.mark.get(), "{said}");
        look(&mut near, &mut far, &said, action, nth + 1 == STEPS);
        last = step.packet().or(last);
    }
    [near, far]
}

#[test]
fn the_short_way_leads_where_the_long_one_does() {
    let (mut short, mut shortest, mut passed, mut dropped) = (0, 0, 0, 0);
    for seed in 0..HISTORIES {
        let [mut near, far] = history(seed, 1, |near, far, said, action, _| {
            assert_eq!(near.events(), far.events(), "{said}");
            let (counted, flows) = (counted(near), far.host.flows.all());
            let differs = counted.iter().zip(&flows).find(|(near, far)| near != far);
            assert!(counted.len() == flows.len() && differs.is_none(), "{said}: {differs:#?}");
            passed += u64::from(action == Some(Continue));
            dropped += u64::from(action == Some(Drop));
        });
        shortest += unlooked(&near);
        near.settles();
        short += near.host.stat(stats::ALLOWED_ESTABLISHED);
        assert_eq!(near.host.flows.all(), far.host.flows.all(), "history {seed}");
        assert_eq!(near.host.edges.all(), far.host.edges.all(), "history {seed}");
        assert_eq!(near.host.denied.all(), far.host.denied.all(), "history {seed}");
        assert_eq!(*near.host.stats.borrow(), *far.host.stats.borrow(), "history {seed}");
    }
    assert!(
        short > 4_000 && shortest > 1_000 && passed > 5_000 && dropped > 5_000,
        "{short} established, {shortest} of them without a look at the flow, {passed} passed, {dropped} dropped"
    );
}

#[test]
fn what_two_cpus_let_through_is_counted_where_it_was_judged() {
    let (mut shortest, mut ended_elsewhere) = (0, 0);
    for seed in 0..HISTORIES {
        let mut rng = Rng::with_seed(!seed);
        let [near, far] = history(seed, CPUS, |near, _, _, _, ends| {
            if ends || rng.u8(..10) == 0 {
                let before = near.host.edges.all();
                near.settles();
                ended_elsewhere += u64::from(near.host.edges.all() != before);
            }
        });
        shortest += unlooked(&near);
        assert_eq!(tally(&near), tally(&far), "history {seed}");
    }
    assert!(
        shortest > 1_000 && ended_elsewhere > 10,
        "{shortest} without a look at the flow; {ended_elsewhere} times it had ended or was judged anew by then"
    );
}

#[test]
fn bytes_that_were_counted_while_somebody_added_up_are_added_with_the_next_look() {
    for ended in [false, true] {
        let mut world = world(1);
        let out = POD.to(REMOTE, false).udp(1, 2);
        assert_eq!(world.pod_emits(&out), Continue);
        world.host.now_ns += 5_000_000;
        for _ in 0..3 {
            world.host.generation -= 1; // the tests' world raises it with each packet
            assert_eq!(world.pod_emits(&out), Continue);
        }
        world.settles();
        let told = tally(&world).into_values().next().expect("a row");
        // As the row is left where its packets were seen and its bytes were not yet.
        let mut rows = world.host.recent.all().into_iter().filter(|(_, row)| row.frames > 0);
        let (number, row) = rows.next().expect("a row");
        assert_eq!((row.frames, row.packets), (1, [0, 1]));
        drop(rows);
        let late = RecentValue { bytes: [row.bytes[0], row.bytes[1] + 35], ..row };
        world.host.recent.put(&number, &late);
        if ended {
            let (key, flow) = world.host.flows.all()[0];
            world.host.flows.put(&key, &FlowValue { first_ns: flow.first_ns + 1, ..flow });
        }
        world.settles();
        let [packets, back, bytes, bytes_back] = tally(&world).into_values().next().expect("a row");
        assert_eq!([packets, back, bytes, bytes_back], [told[0], told[1], told[2] + 35, told[3]], "ended: {ended}");
        assert_eq!(world.host.edges.all()[0].1.bytes[0] > 35, ended, "to its flow, or to the edge");
    }
}

#[test]
fn what_another_cpu_counted_is_not_the_next_flows() {
    let mut world = world(1);
    let out = POD.to(REMOTE, false).udp(1, 2);
    let same = |world: &mut World| {
        world.host.generation -= 1; // the tests' world raises it with each packet
        assert_eq!(world.pod_emits(&out), Continue);
    };
    same(&mut world);
    world.host.now_ns += 5_000_000;
    for _ in 0..4 {
        same(&mut world);
    }
    assert_eq!(unlooked(&world), 2);
    // So long that it has ended, which the other CPU finds.
    world.after_s(1_000).host.cpu = 1;
    same(&mut world);
    let told = event_kinds(&world.events());
    assert_eq!(told.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [EVENT_OPENED, EVENT_CLOSED, EVENT_OPENED]);
    world.settles();
    let flows = world.host.flows.all();
    assert_eq!(flows.iter().map(|(_, flow)| flow.packets).collect::<Vec<_>>(), [[1, 0]]);
    assert_eq!(world.host.edges.all().iter().map(|(_, edge)| edge.packets[0]).sum::<u64>(), 6);
}

#[test]
fn a_row_that_somebody_holds_is_added_up_by_nobody_else() {
    let mut world = world(1);
    let out = POD.to(REMOTE, false).udp(1, 2);
    let same = |world: &mut World| {
        world.host.generation -= 1; // the tests' world raises it with each packet
        assert_eq!(world.pod_emits(&out), Continue);
    };
    let hold = |world: &mut World, held| {
        let mut rows = world.host.recent.all().into_iter().filter(|(_, row)| row.frames > 0);
        let (number, row) = rows.next().expect("a row");
        drop(rows);
        world.host.recent.put(&number, &RecentValue { held, ..row });
    };
    let packets = |world: &World| world.host.flows.all()[0].1.packets[0];
    same(&mut world);
    world.host.now_ns += 5_000_000;
    for _ in 0..4 {
        same(&mut world);
    }
    assert_eq!((packets(&world), unlooked(&world)), (3, 2));
    hold(&mut world, 1);
    world.settles();
    assert_eq!(packets(&world), 3, "not by the program that adds up");
    world.host.now_ns += 5_000_000;
    same(&mut world);
    assert_eq!(packets(&world), 4, "nor with the flow's next packet");
    hold(&mut world, 0);
    world.settles();
    assert_eq!(packets(&world), 6, "once, when it is free");
}

#[test]
fn a_policy_that_comes_while_a_packet_is_judged_is_asked_for_the_next() {
    for comes in [false, true] {
        let mut world = world(1);
        let out = POD.to(REMOTE, false).udp(1, 2);
        let same = |world: &mut World| {
            world.host.generation -= 1; // the tests' world raises it with each packet
            world.pod_emits(&out)
        };
        assert_eq!(same(&mut world), Continue);
        world.host.now_ns += 5_000_000;
        // The second one in this tick is that which others may be like.
        assert_eq!(same(&mut world), Continue);
        world.host.raised_after.set(comes.then_some(1));
        assert_eq!(same(&mut world), Continue);
        assert_eq!(unlooked(&world), 0);
        if comes {
            assert_eq!(world.host.raised_after.take(), Some(0), "it comes after the packet's first look");
            world.host.generation += 1;
            world.select(0, 1);
            world.endpoint().head_revision = Revision(2);
            world.endpoint().tail_revision = Revision(2);
        }
        assert_eq!((same(&mut world), unlooked(&world)), if comes { (Drop, 0) } else { (Continue, 1) });
    }
}

#[test]
fn a_device_that_becomes_another_pods_between_two_looks_takes_no_flow_along() {
    // The second look is the walk's: the control has everything read by then as it was before.
    for (raised_after, owner) in [(None, POD), (Some(1), CLIENT)] {
        let mut world = world(1);
        let out = POD.to(REMOTE, false).udp(1, 2);
        assert_eq!(world.pod_emits(&out), Continue);
        let first = world.host.flows.all();
        assert_eq!(first.iter().map(|(key, _)| key.workload).collect::<Vec<_>>(), [POD.workload()]);
        // So long that the flow wants more than to be counted.
        world.after_s(10);
        world.host.generation -= 1;
        world.host.raised_after.set(raised_after);
        world.endpoint().workload = CLIENT.workload();
        assert_eq!(world.pod_emits(&out), Continue);
        let flows = world.host.flows.all();
        let of_owner = flows.iter().find(|(key, _)| key.workload == owner.workload());
        assert!(of_owner.is_some(), "{flows:?}");
        let unchanged = flows.iter().any(|row| *row == first[0]);
        assert_eq!((flows.len(), unchanged), if owner == POD { (1, false) } else { (2, true) }, "{flows:?}");
    }
}
