//! Events and edge counts.

use crate::env::{Env, Hook};
use crate::parse::Packet;
use reeve_abi::conntrack::{self as ct, FlowKey, FlowValue};
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::{DIRECTION_EGRESS, EndpointValue};
use reeve_abi::event::Event;
use reeve_abi::ids::DecisionId;
use reeve_abi::stats;

/// What is added to an edge row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amount {
    /// Flows or tuples.
    pub connections: u64,
    /// Packets both ways.
    pub packets: [u64; 2],
    /// Bytes both ways.
    pub bytes: [u64; 2],
}

/// Adds to an edge row.
#[inline(always)]
pub fn edge<E: Env>(env: &E, key: &EdgeKey, amount: &Amount, now_ns: u64) {
    let row = match env.edge(key) {
        Some(row) => row,
        None => {
            let fresh = EdgeValue {
                connections: amount.connections,
                packets: amount.packets,
                bytes: amount.bytes,
                first_ns: now_ns,
                last_ns: now_ns,
            };
            if env.put_edge(key, &fresh) {
                return;
            }
            match env.edge(key) {
                Some(row) => row, // another CPU was first
                None => return env.count(stats::EDGES_LOST),
            }
        }
    };
    let row = row.as_ptr();
    // SAFETY: the pointer comes from the map and is valid for the run of the program (`Env`); fields are added to
    // atomically or are plain stores of a later time.
    unsafe {
        env.add(&raw mut (*row).connections, amount.connections);
        env.add(&raw mut (*row).packets[0], amount.packets[0]);
        env.add(&raw mut (*row).packets[1], amount.packets[1]);
        env.add(&raw mut (*row).bytes[0], amount.bytes[0]);
        env.add(&raw mut (*row).bytes[1], amount.bytes[1]);
        (*row).last_ns = now_ns;
    }
}

/// Edge key of a flow.
#[inline(always)]
pub fn edge_key(endpoint: &EndpointValue, flow: &FlowValue, ip_protocol: u8, bank: u32) -> EdgeKey {
    EdgeKey {
        subject: endpoint.workload,
        peer: flow.peer_workload,
        peer_identity: flow.peer_identity,
        decision: flow.decision,
        revision: flow.revision,
        service: u32::from(ip_protocol) << 16 | flow.port & 0xffff,
        kind: flow.direction & 1 | (flow.verdict & 0xff) << 8 | (bank & 1) << 16,
    }
}

/// Tells user space of a flow.
#[inline(always)]
pub fn event<E: Env>(
    env: &E,
    hook: Hook,
    endpoint: &EndpointValue,
    packet: &Packet,
    key: &FlowKey,
    flow: &FlowValue,
    kind: u8,
    previous: DecisionId,
    flags: u8,
    now_ns: u64,
) {
    let has_ports = packet.has_ports();
    let local = match hook {
        Hook::FromPod => packet.source,
        Hook::ToPod => packet.destination,
    };
    let event = Event {
        time_ns: now_ns,
        first_ns: flow.first_ns,
        last_ns: flow.last_ns,
        revision: flow.revision,
        workload: endpoint.workload,
        identity: flow.own_identity,
        peer_workload: flow.peer_workload,
        peer_identity: flow.peer_identity,
        decision: flow.decision,
        previous,
        local,
        remote: key.remote,
        packets: flow.packets,
        bytes: flow.bytes,
        ports: if has_ports { key.ports } else { 0 },
        port: flow.port,
        ifindex: env.ifindex(),
        protocol: packet.protocol,
        kind,
        direction: if flow.direction == DIRECTION_EGRESS { 1 } else { 0 },
        verdict: (flow.verdict & 0xff) as u8,
        hook: hook.number(),
        flags: flags | if flow.flags & ct::FLOW_PICKED_UP != 0 { reeve_abi::event::EVENT_FLAG_PICKED_UP } else { 0 },
        reserved: [0; 6],
    };
    if !env.emit(&event) {
        env.count(stats::EVENTS_LOST);
    }
}
