//! Flow state: one entry per flow and endpoint, denials apart, ports of fragmented packets.

use crate::address::Address;
use crate::ids::{DecisionId, IdentityId, Revision, WorkloadId};
use bytemuck::{Pod, Zeroable};

/// Maps `FLOWS` and `DENIED`: key. Pod-centric: both directions of a flow meet in one entry of `FLOWS`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// The pod whose interface the packet crosses.
    pub workload: WorkloadId,
    /// The other side's address.
    pub remote: Address,
    /// Pod's port << 16 | other side's port, both in host byte order. ICMP queries: the identifier on the asking side.
    /// ICMP without identifier: type << 24 | code << 16.
    pub ports: u32,
    /// IP protocol number, with `KEY_*` bits.
    pub protocol: u32,
}

/// In [`FlowKey::protocol`]: the pod asked (ICMP query, or a denied packet that the pod sent).
pub const KEY_FROM_POD: u32 = 1 << 8;
/// In [`FlowKey::protocol`]: the other side asked.
pub const KEY_TO_POD: u32 = 1 << 9;

/// In [`FragmentKey::protocol`]: seen as it left the node.
pub const KEY_LEAVING: u32 = 1 << 10;

/// Map `FLOWS`: value. Written by the programs; the agent deletes what has expired.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowValue {
    /// Who decided.
    pub decision: DecisionId,
    /// Endpoint revision under which it was judged.
    pub revision: Revision,
    /// The peer's workload as judged, 0 if it is not a pod.
    pub peer_workload: WorkloadId,
    /// The peer's identity as judged.
    pub peer_identity: IdentityId,
    /// The pod's identity as judged.
    pub own_identity: IdentityId,
    /// First packet, `CLOCK_MONOTONIC` ns.
    pub first_ns: u64,
    /// Last packet, ns.
    pub last_ns: u64,
    /// When counters were last flushed into `EDGES`, ns.
    pub flushed_ns: u64,
    /// Packets: in the flow's original direction, and back.
    pub packets: [u64; 2],
    /// Bytes from the IP header on: in the original direction, and back.
    pub bytes: [u64; 2],
    /// Part of `packets` that `EDGES` has.
    pub flushed_packets: [u64; 2],
    /// Part of `bytes` that `EDGES` has.
    pub flushed_bytes: [u64; 2],
    /// Address epoch when the peer's address was looked up.
    pub address_epoch: u64,
    /// Who the other side really is, where the key's remote address is one that translation put there: the destination
    /// reached behind a Service, or the client behind this node's address. Zero: the key says it.
    pub real: Address,
    /// The destination before translation, where it was another one than that reached. Zero: none.
    pub service: Address,
    /// Original direction: `DIRECTION_*`.
    pub direction: u32,
    /// `VERDICT_*`.
    pub verdict: u32,
    /// `FLOW_*` bits.
    pub flags: u32,
    /// Judged port: destination port of the original direction in host order, or ICMP type << 8 | code.
    pub port: u32,
    /// Through which device packets to the pod were found to come rightly: interface index + 1 (1: made on this node), 0: not seen yet.
    pub arrives_by: u32,
    /// Port that goes with `real` << 16 | port that goes with `service`, host byte order.
    pub rewritten_ports: u32,
}

/// A packet went in the original direction.
pub const FLOW_SEEN_ORIGINAL: u32 = 1;
/// A packet came back.
pub const FLOW_SEEN_REPLY: u32 = 2;
/// FIN from the original side.
pub const FLOW_FIN_ORIGINAL: u32 = 4;
/// FIN from the other side.
pub const FLOW_FIN_REPLY: u32 = 8;
/// RST from either side.
pub const FLOW_RST: u32 = 16;
/// The peer's address was unknown when judged (`address_epoch` counts).
pub const FLOW_PEER_UNKNOWN: u32 = 32;
/// Own node: let in whatever policies say.
pub const FLOW_OWN_NODE: u32 = 64;
/// TCP picked up without a SYN.
pub const FLOW_PICKED_UP: u32 = 128;
/// Sent by the pod and judged where the destination is known that it really reaches, each packet anew.
pub const FLOW_PENDING: u32 = 256;
/// The key's remote address is this node's own and stands for somebody else: `real` if that is known, else nobody.
pub const FLOW_MASQUERADED: u32 = 512;
/// What arrives comes from a pod's device of this node, so it carries a mark.
pub const FLOW_ARRIVES_MARKED: u32 = 1024;
/// The pod reaches itself through a translation.
pub const FLOW_SELF: u32 = 2048;
/// A local process receives what the pod sends, whatever address it is sent to.
pub const FLOW_TO_HOST: u32 = 4096;

/// Map `BUDGETS`: value (the key is the workload). The agent writes it whole, the programs add to `used`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct BudgetValue {
    /// Entries of `FLOWS` that the workload has: as many as the agent last counted, and those opened since.
    pub used: u64,
    /// How many it may have.
    pub limit: u64,
}

/// Map `DENIED`: value. Key: [`FlowKey`] with `KEY_FROM_POD` or `KEY_TO_POD` set.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DeniedValue {
    /// Who denied.
    pub decision: DecisionId,
    /// Endpoint revision under which it was judged.
    pub revision: Revision,
    /// The peer's workload as judged.
    pub peer_workload: WorkloadId,
    /// The peer's identity as judged.
    pub peer_identity: IdentityId,
    /// Address epoch when the peer's address was looked up; 0 if it was known.
    pub address_epoch: u64,
    /// Packets denied so far.
    pub count: u64,
    /// Bytes denied so far.
    pub bytes: u64,
    /// Part of `count` that records have told.
    pub reported: u64,
    /// First denied packet, ns.
    pub first_ns: u64,
    /// Last denied packet, ns.
    pub last_ns: u64,
    /// Last record, ns.
    pub reported_ns: u64,
}

/// Map `FRAGMENTS`: key.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification field, host byte order.
    pub identification: u32,
    /// IPv4: protocol number; IPv6: 0. With a `KEY_*` bit for the hook.
    pub protocol: u32,
}

/// Map `FRAGMENTS`: value.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentValue {
    /// Source port << 16 | destination port, host byte order.
    pub ports: u32,
    /// Protocol << 16 | ICMP type << 8 | code (the latter two 0 for other protocols).
    pub kind: u32,
    /// When the first fragment came, ns.
    pub seen_ns: u64,
    /// Where the first fragment ends, in bytes of what was fragmented: a later one that begins before overlaps it.
    pub first_end: u32,
    /// Unused, zero.
    pub reserved: u32,
}

crate::pin_size!(
    FlowKey = 32,
    FlowValue = 192,
    DeniedValue = 88,
    FragmentKey = 40,
    FragmentValue = 24,
    BudgetValue = 16
);
