//! Events and edge counts.
//!
//! Everything is put together in the scratch memory: a BPF stack has 512 bytes for all frames of a call chain.

use crate::env::{Env, Hook};
use crate::parse::protocol;
use crate::walk::Scratch;
use core::ptr::NonNull;
use reeve_abi::address::{Address, OWNER_NODE};
use reeve_abi::conntrack as ct;
use reeve_abi::edge::{EDGE_BANK, EDGE_OTHER_PROTOCOL, EDGE_OVERFLOW, EdgeKey, EdgeValue};
use reeve_abi::endpoint::{DIRECTION_EGRESS, DIRECTION_INGRESS};
use reeve_abi::ids::DecisionId;
use reeve_abi::stats;

/// Adds `connections` and what `EDGES` does not have yet of `s.flow` to the flow's edge row.
#[inline(never)]
pub fn edge<E: Env>(env: &E, s: &mut Scratch, connections: u64) {
    let (flow, now_ns) = (&s.flow, s.now_ns);
    // Whoever copies a flow while another CPU counts may have its packets without their bytes, which come later by themselves.
    let same = flow.packets[0] == flow.flushed_packets[0]
        && flow.packets[1] == flow.flushed_packets[1]
        && flow.bytes[0] == flow.flushed_bytes[0]
        && flow.bytes[1] == flow.flushed_bytes[1];
    if connections == 0 && same {
        return; // nothing to add
    }
    s.edge_key = EdgeKey {
        subject: s.endpoint.workload,
        identity: flow.own_identity,
        peer: flow.peer_workload,
        peer_identity: flow.peer_identity,
        decision: flow.decision,
        revision: flow.revision,
        service: u32::from(s.packet.protocol) << 16 | flow.port & 0xffff,
        kind: flow.direction & 1 | (flow.verdict & 0xff) << 8 | ((env.config().edges_bank & 1) * EDGE_BANK),
    };
    s.edge = EdgeValue {
        connections,
        packets: [
            flow.packets[0].wrapping_sub(flow.flushed_packets[0]),
            flow.packets[1].wrapping_sub(flow.flushed_packets[1]),
        ],
        bytes: [flow.bytes[0].wrapping_sub(flow.flushed_bytes[0]), flow.bytes[1].wrapping_sub(flow.flushed_bytes[1])],
        first_ns: now_ns,
        last_ns: now_ns,
    };
    if let Some(row) = env.edge(&s.edge_key) {
        return add(env, row, &s.edge);
    }
    if env.put_edge(&s.edge_key, &s.edge) {
        return;
    }
    match env.edge(&s.edge_key) {
        Some(row) => add(env, row, &s.edge), // another CPU was first
        None => overflowed(env, s),
    }
}

/// Counts what has no room in `EDGES` in the row that is reserved for its endpoint, direction, verdict and decision.
#[inline(never)]
fn overflowed<E: Env>(env: &E, s: &mut Scratch) {
    let protocol = match s.packet.protocol {
        protocol::ICMP | protocol::TCP | protocol::UDP | protocol::ICMPV6 | protocol::SCTP => {
            u32::from(s.packet.protocol)
        }
        _ => EDGE_OTHER_PROTOCOL,
    };
    s.edge_key = EdgeKey {
        subject: s.edge_key.subject,
        identity: s.edge_key.identity,
        decision: s.edge_key.decision,
        service: protocol << 16,
        kind: s.edge_key.kind | EDGE_OVERFLOW,
        ..EdgeKey::default()
    };
    let row = match env.overflow(&s.edge_key) {
        Some(row) => row,
        None => {
            if env.put_overflow(&s.edge_key, &s.edge) {
                return env.count(stats::EDGES_OVERFLOWED);
            }
            match env.overflow(&s.edge_key) {
                Some(row) => row,
                None => return env.count(stats::EDGES_LOST),
            }
        }
    };
    env.count(stats::EDGES_OVERFLOWED);
    add(env, row, &s.edge);
}

#[inline(always)]
fn add<E: Env>(env: &E, row: NonNull<EdgeValue>, more: &EdgeValue) {
    let row = row.as_ptr();
    // SAFETY: the pointer comes from the map and is valid for the run of the program (`Env`); fields are added to
    // atomically or are plain stores of a later time.
    unsafe {
        env.add(&raw mut (*row).connections, more.connections);
        env.add(&raw mut (*row).packets[0], more.packets[0]);
        env.add(&raw mut (*row).packets[1], more.packets[1]);
        env.add(&raw mut (*row).bytes[0], more.bytes[0]);
        env.add(&raw mut (*row).bytes[1], more.bytes[1]);
        (*row).last_ns = more.last_ns;
    }
}

/// Tells user space of `s.flow`.
#[inline(always)]
pub fn event<E: Env>(env: &E, hook: Hook, s: &mut Scratch, kind: u8, previous: DecisionId, flags: u8) {
    s.event.kind = kind;
    s.event.previous = previous;
    s.event.flags = flags;
    s.event.hook = hook.number();
    s.event.local = match hook {
        Hook::FromPod | Hook::Refused => s.packet.source,
        Hook::ToPod => s.packet.destination,
        // Translation may have put another one into the packet.
        Hook::Reached | Hook::Uplink | Hook::HostIn => s.slot.source,
    };
    emit(env, s);
}

#[inline(never)]
fn emit<E: Env>(env: &E, s: &mut Scratch) {
    let flow = &s.flow;
    let e = &mut s.event;
    e.time_ns = s.now_ns;
    e.first_ns = flow.first_ns;
    e.last_ns = flow.last_ns;
    e.revision = flow.revision;
    e.workload = s.endpoint.workload;
    e.identity = flow.own_identity;
    e.peer_workload = flow.peer_workload;
    e.peer_identity = flow.peer_identity;
    e.decision = flow.decision;
    let rewritten = flow.real != Address::default();
    e.remote = if rewritten { flow.real } else { s.key.remote };
    e.service = flow.service;
    e.service_port = (flow.rewritten_ports & 0xffff) as u16;
    e.packets = flow.packets;
    e.bytes = flow.bytes;
    e.ports = if !s.packet.has_ports() {
        0
    } else if rewritten {
        s.key.ports & !0xffff | flow.rewritten_ports >> 16
    } else {
        s.key.ports
    };
    e.port = flow.port;
    e.ifindex = s.endpoint.head_ifindex;
    e.protocol = s.packet.protocol;
    e.direction = u8::from(flow.direction == DIRECTION_EGRESS);
    e.verdict = (flow.verdict & 0xff) as u8;
    if flow.direction == DIRECTION_INGRESS && s.peer.owner == OWNER_NODE {
        e.flags |= reeve_abi::event::EVENT_FLAG_MAY_BE_MASQUERADED;
    }
    if flow.flags & ct::FLOW_PICKED_UP != 0 {
        e.flags |= reeve_abi::event::EVENT_FLAG_PICKED_UP;
    }
    if !env.emit(e) {
        env.count(stats::EVENTS_LOST);
    }
}
