//! Egress that could not be judged as the packet left its pod: judged where the destination that it reaches is known.
//!
//! Invariant: the flow's one entry stands under the address that the pod knows, and holds the verdict on the address
//! that was reached; what comes back is let in only while that verdict allows.

use crate::budget;
use crate::env::{Action, Env, Hook};
use crate::flow;
use crate::judge::{self, Peer, Ruling};
use crate::mark;
use crate::parse::{FRAGMENT_LATER, Packet};
use crate::walk::{self, Rewritten, Scratch};
use crate::words;
use reeve_abi::address::{OWNER_HOST, OWNER_LOCAL_POD};
use reeve_abi::config::CONFIG_UNGUARDED;
use reeve_abi::conntrack::{self as ct, FlowKey, FlowValue};
use reeve_abi::decision;
use reeve_abi::endpoint::{DIRECTION_EGRESS, ENDPOINT_READY};
use reeve_abi::ids::DecisionId;
use reeve_abi::mark::KIND_PENDING;
use reeve_abi::stats;

/// Whether translation may still give the packet another destination than the one the pod sends it to.
#[inline(always)]
pub fn may_be_rewritten(peer: &Peer, s: &Scratch) -> bool {
    // What has no ports goes to no Service. The kernel itself answers it at this node, where no hook would see it.
    !judge::is_pod(peer) && (peer.owner != OWNER_HOST || s.packet.has_ports())
}

/// Makes the entry of a flow that nobody has judged yet; 1: the packet goes on, 0: denied by `s.ruling`.
#[inline(always)]
pub fn open<E: Env>(env: &E, s: &mut Scratch) -> u32 {
    if s.endpoint.flags & ENDPOINT_READY == 0 {
        s.ruling = Ruling::deny(decision::NOT_READY);
        return 0;
    }
    words::zero(&mut s.flow);
    s.flow.revision = s.endpoint.head_revision;
    s.flow.own_identity = s.endpoint.identity;
    s.flow.first_ns = s.now_ns;
    s.flow.last_ns = s.now_ns;
    s.flow.flushed_ns = s.now_ns;
    s.flow.direction = DIRECTION_EGRESS;
    s.flow.verdict = flow::VERDICT_PENDING;
    s.flow.flags = ct::FLOW_PENDING;
    s.flow.port = u32::from(flow::judged_port(&s.packet));
    s.flow.packets[0] = u64::from(env.segments());
    s.flow.bytes[0] = u64::from(s.packet.bytes);
    if !budget::take(env, s.endpoint.workload) || !env.put_flow(&s.key, &s.flow) {
        env.count(stats::FLOWS_LOST);
        s.ruling = Ruling::deny(decision::FLOW_TABLE_FULL);
        return 0;
    }
    forward(env, s)
}

/// Sends the packet on, marked; 0: the destination that it shows is denied already, by `s.ruling`.
#[inline(always)]
pub fn forward<E: Env>(env: &E, s: &mut Scratch) -> u32 {
    if env.config().flags & CONFIG_UNGUARDED != 0 && judge_shown(env, s) == 0 {
        return 0;
    }
    s.stamp = KIND_PENDING;
    env.count(stats::PENDING);
    1
}

/// Judges the destination that the packet shows; 0: denied. A call of its own, for the sake of the stack.
#[inline(never)]
fn judge_shown<E: Env>(env: &E, s: &mut Scratch) -> u32 {
    s.peer = judge::peer(env, &s.key.remote);
    let port = flow::judged_port(&s.packet);
    s.ruling = judge::rule(env, &s.endpoint, DIRECTION_EGRESS, s.packet.v6, &s.peer, s.packet.protocol, port);
    u32::from(s.ruling.allows())
}

/// Judges, for the sender in `s.slot`, a packet where it leaves the node or reaches somebody on it; 1: it goes on.
#[inline(never)]
pub fn settle<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    s.receiver = s.endpoint.workload;
    s.receiver_identity = s.endpoint.identity;
    match walk::read_endpoint(env, s.slot.ifindex, s) {
        Some(true) if s.endpoint.workload == s.slot.workload => {}
        _ => {
            // The pod has gone, or its place could not be read whole.
            env.count(stats::INCONSISTENT);
            return 0;
        }
    }
    s.key = FlowKey {
        workload: s.slot.workload,
        remote: s.slot.destination,
        ports: s.slot.ports,
        protocol: s.slot.protocol,
    };
    words::zero(&mut s.seen);
    let port = s.key.ports & 0xffff;
    let moved = s.packet.has_ports() && u32::from(s.packet.destination_port) != port;
    if s.packet.destination != s.slot.destination || moved {
        s.seen = Rewritten {
            real: s.packet.destination,
            service: s.slot.destination,
            ports: u32::from(s.packet.destination_port) << 16 | if s.packet.has_ports() { port } else { 0 },
            reserved: 0,
        };
    }
    s.to_itself = u32::from(matches!(hook, Hook::Reached) && s.receiver == s.slot.workload);
    if let Some(found) = env.flow(&s.key) {
        // SAFETY: valid for the run of the program (`Env`).
        let found = unsafe { &mut *found.as_ptr() };
        if let Some(action) = walk::known(env, hook, s, found) {
            return if matches!(action, Action::Continue) { group_member(env, hook, s) } else { 0 };
        }
    }
    if s.packet.fragment == FRAGMENT_LATER {
        // Its slot could not be checked against it: only a flow that was judged speaks for it.
        walk::refuse(env, hook, s, decision::UNKNOWN_FRAGMENT);
        return 0;
    }
    if walk::miss(env, hook, s) == 1 { group_member(env, hook, s) } else { 0 }
}

/// Whether a packet is for several receivers at once, each of which is judged.
#[inline(always)]
pub fn to_group(packet: &Packet) -> bool {
    let to = &packet.destination.0;
    if packet.v6 == 1 { to[0] == 0xff } else { to[12] >= 224 }
}

/// Whether the sender may reach the pod that gets a packet to a group as well as the group; others are reached by
/// address.
#[inline(always)]
fn group_member<E: Env>(env: &E, hook: Hook, s: &mut Scratch) -> u32 {
    if !to_group(&s.packet) || !matches!(hook, Hook::Reached) || s.to_itself != 0 {
        return 1;
    }
    if judge_member(env, s) == 1 { 1 } else { walk::deny(env, hook, s) }
}

/// A call of its own: its stack is not there while a new flow is judged, or a denial told.
#[inline(never)]
fn judge_member<E: Env>(env: &E, s: &mut Scratch) -> u32 {
    words::zero(&mut s.peer);
    s.peer.workload = s.receiver;
    s.peer.identity = s.receiver_identity;
    s.peer.judged_as = s.receiver_identity;
    let port = flow::judged_port(&s.packet);
    s.ruling = judge::rule(env, &s.endpoint, DIRECTION_EGRESS, s.packet.v6, &s.peer, s.packet.protocol, port);
    u32::from(s.ruling.allows())
}

/// Drops what comes from a pod and has lost what was noted of it there. It is told if the pod can be made out.
#[inline(never)]
pub fn refuse_sender<E: Env>(env: &E, hook: Hook, s: &mut Scratch, by: DecisionId) -> u32 {
    if by == decision::MARK_LOST {
        env.count(stats::MARK_LOST);
    }
    let mut device = env.ingress_ifindex();
    let source = judge::peer(env, &s.packet.source);
    if source.owner == OWNER_LOCAL_POD && (source.device == device || source.bridge == device) {
        device = source.device;
    }
    if walk::read_endpoint(env, device, s) != Some(true) {
        return 0;
    }
    s.key = flow::key(s.endpoint.workload, Hook::FromPod, &s.packet);
    s.slot.source = s.packet.source;
    words::zero(&mut s.seen);
    s.peer = judge::peer(env, &s.packet.destination);
    walk::refuse(env, hook, s, by);
    0
}

/// Whether an entry speaks of the destination that this packet reaches.
#[inline(always)]
pub fn same_destination(s: &Scratch, found: &FlowValue) -> bool {
    found.verdict != flow::VERDICT_PENDING
        && found.real == s.seen.real
        && found.service == s.seen.service
        && found.rewritten_ports == s.seen.ports
}

/// Whether an entry made for a client behind this node's address is another client's than the packet in `s.slot`.
#[inline(always)]
pub fn other_client(s: &Scratch, found: &FlowValue) -> bool {
    found.flags & ct::FLOW_MASQUERADED != 0
        && mark::has_slot(s.carried)
        && (found.real != s.slot.source || found.rewritten_ports >> 16 != client_port(s))
}

/// The port that the client in `s.slot` sends from; 0 where there are none.
#[inline(always)]
pub fn client_port(s: &Scratch) -> u32 {
    if s.packet.has_ports() { s.slot.ports >> 16 } else { 0 }
}
