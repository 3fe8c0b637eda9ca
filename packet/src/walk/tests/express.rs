//! The short way and the long one: the same packets in two worlds, one of which never takes the short way.

use crate::env::Action::{self, Continue, Drop};
use crate::host::{CLIENT, CLIENT_DEVICE, HOST, POD, REMOTE, UPLINK, WORLD, Who, World, decided};
use fastrand::Rng;
use reeve_abi::config::Config;
use reeve_abi::endpoint::{ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6, ENDPOINT_READY};
use reeve_abi::ids::{ClassId, Revision};
use reeve_abi::mark::{KIND_CLIENT, KIND_NONE, KIND_PENDING, KIND_POD};
use reeve_abi::stats;

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
                let by = [CLIENT_DEVICE, CLIENT_DEVICE, UPLINK, UPLINK, 0][rng.usize(..5)];
                let kind = [KIND_NONE, KIND_POD, KIND_POD, KIND_PENDING, KIND_CLIENT][rng.usize(..5)];
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

#[test]
fn the_short_way_leads_where_the_long_one_does() {
    let (mut short, mut passed, mut dropped) = (0, 0, 0);
    for seed in 0..HISTORIES {
        let mut rng = Rng::with_seed(seed);
        let (mut near, mut far) = (world(seed), world(seed));
        for nth in 0..STEPS {
            let step = Step::random(&mut rng);
            let said = || format!("history {seed}, step {nth}: {step:?}");
            let known_before = near.host.stat(stats::ALLOWED_ESTABLISHED);
            let action = step.happens(&mut near, false);
            assert_eq!(action, step.happens(&mut far, true), "{}", said());
            assert_eq!(near.host.mark.get(), far.host.mark.get(), "{}", said());
            assert_eq!(near.events(), far.events(), "{}", said());
            assert_eq!(near.host.flows.all(), far.host.flows.all(), "{}", said());
            passed += u64::from(action == Some(Continue));
            dropped += u64::from(action == Some(Drop));
            short += near.host.stat(stats::ALLOWED_ESTABLISHED) - known_before;
        }
        assert_eq!(near.host.edges.all(), far.host.edges.all(), "history {seed}");
        assert_eq!(near.host.denied.all(), far.host.denied.all(), "history {seed}");
        assert_eq!(*near.host.stats.borrow(), *far.host.stats.borrow(), "history {seed}");
    }
    assert!(
        short > 1_000 && passed > 5_000 && dropped > 5_000,
        "{short} established, {passed} passed, {dropped} dropped"
    );
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
