//! Numbers to names: typed events become records.
//!
//! Invariant: an event always gives a record; a number that has no entry is shown as one, never dropped.

use crate::decode::{Kind, TypedEvent};
use crate::record::{
    EventKind, Flag, FlowRecord, Icmp, Owner, Protocol, Reason, RecordedDecision, SCHEMA, ServiceAddress, Side,
    UnknownNumber, WorkloadKind, WorkloadRef,
};
use crate::time::Clock;
use reeve_abi::event::{EVENT_FLAG_BEGAN_UNSEEN, EVENT_FLAG_CUT, EVENT_FLAG_MAY_BE_MASQUERADED, EVENT_FLAG_PICKED_UP};
use reeve_abi::ids::{DecisionId, IdentityId, WorkloadId};
use reeve_policy::model::{Decision, Direction, Verdict};
use reeve_policy::provenance::{Dictionary, Identity, IdentityKind, WorkloadName};
use std::net::IpAddr;
use std::sync::Arc;

/// What numbers stand for.
pub trait Names {
    /// A decision.
    fn decision(&self, id: DecisionId) -> Option<Arc<Decision>>;
    /// An identity.
    fn identity(&self, id: IdentityId) -> Option<Arc<Identity>>;
    /// A pod.
    fn workload(&self, id: WorkloadId) -> Option<Arc<WorkloadName>>;
}

impl Names for Dictionary {
    fn decision(&self, id: DecisionId) -> Option<Arc<Decision>> {
        self.get_decision(id)
    }

    fn identity(&self, id: IdentityId) -> Option<Arc<Identity>> {
        self.get_identity(id)
    }

    fn workload(&self, id: WorkloadId) -> Option<Arc<WorkloadName>> {
        self.get_workload(id).cloned()
    }
}

/// Makes records on one node.
#[derive(Clone, Copy, Debug)]
pub struct Namer<'a, N> {
    /// What numbers stand for.
    pub names: &'a N,
    /// The node's name.
    pub node: &'a str,
    /// From kernel time to moments.
    pub clock: Clock,
}

impl<N: Names> Namer<'_, N> {
    /// The record of an event.
    pub fn record(&self, event: &TypedEvent) -> FlowRecord {
        let raw = &event.raw;
        let (local_port, remote_port) = ports(event.protocol, raw.ports);
        let local = self.side(raw.workload, raw.identity, event.local, local_port);
        let remote = self.side(raw.peer_workload, raw.peer_identity, event.remote, remote_port);
        let (source, mut destination) = ordered(event.direction, local, remote);
        if event.protocol.has_ports() {
            destination.port = u16::try_from(raw.port).ok().or(destination.port);
        }
        let previous = (raw.previous != DecisionId::default()).then(|| {
            // A decision that gives way to another was an allow: denied tuples are no live flows.
            self.decision(raw.previous, Verdict::Allow)
        });
        let mut flags = Vec::new();
        if raw.flags & EVENT_FLAG_PICKED_UP != 0 {
            flags.push(Flag::PickedUp);
        }
        if raw.flags & EVENT_FLAG_BEGAN_UNSEEN != 0 {
            flags.push(Flag::BeganUnseen);
        }
        if event.kind == Kind::Denied && raw.packets[0] > 1 {
            flags.push(Flag::RateLimited(raw.packets[0] - 1));
        }
        if raw.flags & EVENT_FLAG_MAY_BE_MASQUERADED != 0 {
            flags.push(Flag::MayBeMasqueraded);
        }
        let port = event.protocol.has_ports().then_some(raw.service_port);
        let service = event.service.map(|address| ServiceAddress { address, port });
        let cut = raw.flags & EVENT_FLAG_CUT != 0;
        let (kind, reason) = match event.kind {
            Kind::Opened => (EventKind::Opened, Reason::NewFlow),
            Kind::Denied if raw.time_ns == raw.first_ns => (EventKind::Denied, Reason::NewFlow),
            Kind::Denied => (EventKind::Denied, Reason::RepeatedDeny),
            Kind::Rejudged if cut => (EventKind::Rejudged, Reason::FlowCut),
            Kind::Rejudged => (EventKind::Rejudged, Reason::DecisionChanged),
            Kind::Closed if cut => (EventKind::Closed, Reason::FlowCut),
            Kind::Closed => (EventKind::Closed, Reason::FlowEnded),
        };
        FlowRecord {
            schema: SCHEMA,
            time: self.clock.moment(raw.time_ns),
            first: self.clock.moment(raw.first_ns),
            last: self.clock.moment(raw.last_ns),
            node: self.node.to_owned(),
            event: kind,
            direction: event.direction,
            verdict: event.verdict.into(),
            decision: self.decision(raw.decision, event.verdict),
            previous,
            staged: None,
            policy_revision: raw.revision.0,
            source,
            destination,
            service,
            protocol: event.protocol,
            icmp: icmp(event.protocol, raw.port),
            packets: raw.packets.into(),
            bytes: raw.bytes.into(),
            connections: None,
            flags,
            reason,
        }
    }

    /// The decision with this number; `verdict` is the kernel's, for a number without entry.
    pub fn decision(&self, id: DecisionId, verdict: Verdict) -> RecordedDecision {
        match self.names.decision(id) {
            Some(decision) => RecordedDecision::Known(decision),
            None => RecordedDecision::Unknown { verdict, unknown: id.to_string() },
        }
    }

    /// One end of a flow.
    pub fn side(&self, workload: WorkloadId, identity: IdentityId, ip: Option<IpAddr>, port: Option<u16>) -> Side {
        let mut side = Side { identity: identity.to_string(), ip, port, ..Side::default() };
        match self.names.identity(identity) {
            Some(found) => {
                side.owner = owner(found.kind);
                side.namespace.clone_from(&found.namespace);
                side.labels.clone_from(&found.labels);
                side.networks.clone_from(&found.networks);
                if side.owner == Owner::Host {
                    side.node = Some(self.node.to_owned());
                }
            }
            None => side.unknown.push(UnknownNumber::Identity(identity.to_string())),
        }
        if workload == WorkloadId::default() {
            return side;
        }
        side.owner = Owner::Pod;
        match self.names.workload(workload) {
            Some(found) => {
                side.workload = Some(WorkloadRef { kind: WorkloadKind::Pod, name: found.name.clone() });
                side.namespace = Some(found.namespace.clone());
                side.pod = Some(found.name.clone());
                side.uid = Some(found.uid.clone());
                side.node = (!found.node.is_empty()).then(|| found.node.clone());
            }
            None => side.unknown.push(UnknownNumber::Workload(workload.to_string())),
        }
        side
    }
}

fn owner(kind: IdentityKind) -> Owner {
    match kind {
        IdentityKind::Pod => Owner::Pod,
        IdentityKind::Node => Owner::Node,
        IdentityKind::Host => Owner::Host,
        IdentityKind::Network => Owner::Network,
        IdentityKind::World => Owner::World,
        IdentityKind::Contested => Owner::Contested,
        IdentityKind::Masqueraded => Owner::Masqueraded,
    }
}

/// Source and destination of a flow between the pod and its peer.
pub(crate) fn ordered(direction: Direction, local: Side, remote: Side) -> (Side, Side) {
    match direction {
        Direction::Egress => (local, remote),
        Direction::Ingress => (remote, local),
    }
}

/// The pod's port and the other side's; none for protocols without.
fn ports(protocol: Protocol, both: u32) -> (Option<u16>, Option<u16>) {
    if !protocol.has_ports() {
        return (None, None);
    }
    let [a, b, c, d] = both.to_be_bytes();
    (Some(u16::from_be_bytes([a, b])), Some(u16::from_be_bytes([c, d])))
}

/// Type and code, which share the judged port.
pub(crate) fn icmp(protocol: Protocol, port: u32) -> Option<Icmp> {
    let [_, _, kind, code] = port.to_be_bytes();
    protocol.is_icmp().then_some(Icmp { kind, code })
}

#[cfg(test)]
mod tests;
