//! What the programs tell through the ring buffer.

use crate::address::Address;
use crate::ids::{DecisionId, IdentityId, Revision, WorkloadId};
use bytemuck::{Pod, Zeroable};

/// One record of map `EVENTS`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Event {
    /// When, `CLOCK_MONOTONIC` ns.
    pub time_ns: u64,
    /// First packet of the flow or denied tuple, ns.
    pub first_ns: u64,
    /// Last packet, ns.
    pub last_ns: u64,
    /// Endpoint revision.
    pub revision: Revision,
    /// The workload at whose interface it was judged.
    pub workload: WorkloadId,
    /// Its identity as used.
    pub identity: IdentityId,
    /// The peer's workload, 0 if it is not a pod.
    pub peer_workload: WorkloadId,
    /// The peer's identity as used.
    pub peer_identity: IdentityId,
    /// Who decided.
    pub decision: DecisionId,
    /// Who had decided before, for [`EVENT_REJUDGED`] and [`EVENT_CLOSED`] after a cut; else 0.
    pub previous: DecisionId,
    /// The pod's address.
    pub local: Address,
    /// The other side's address, as it really is where translation hides it.
    pub remote: Address,
    /// The destination before translation, where it was another one than that reached; else zero.
    pub service: Address,
    /// Packets in the original direction, and back; denied: packets not told before, 0.
    pub packets: [u64; 2],
    /// Bytes in the original direction, and back.
    pub bytes: [u64; 2],
    /// Pod's port << 16 | other side's port, host byte order (0 where there are none).
    pub ports: u32,
    /// Judged port: destination port of the original direction, or ICMP type << 8 | code.
    pub port: u32,
    /// Interface index of the endpoint.
    pub ifindex: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// One of `EVENT_*`.
    pub kind: u8,
    /// Original direction of the flow as the pod sees it: `DIRECTION_*`.
    pub direction: u8,
    /// `VERDICT_*`.
    pub verdict: u8,
    /// Hook that judged: one of `HOOK_*`.
    pub hook: u8,
    /// `EVENT_FLAG_*` bits.
    pub flags: u8,
    /// Port that goes with `service`, host byte order.
    pub service_port: u16,
    /// Unused, zero.
    pub reserved: [u8; 4],
}

/// A flow was judged and allowed.
pub const EVENT_OPENED: u8 = 1;
/// A packet was denied; at most one a second per tuple, `packets[0]` tells how many since the last one.
pub const EVENT_DENIED: u8 = 2;
/// A live flow was judged again with another decision.
pub const EVENT_REJUDGED: u8 = 3;
/// A flow ended (expired, or replaced by a new one on the same tuple).
pub const EVENT_CLOSED: u8 = 4;

/// Judged at `FromPod`.
pub const HOOK_FROM_POD: u8 = 1;
/// Judged at `ToPod`.
pub const HOOK_TO_POD: u8 = 2;
/// Judged as it left the node.
pub const HOOK_UPLINK: u8 = 3;
/// Judged as a local process got it.
pub const HOOK_HOST_IN: u8 = 4;

/// The flow was picked up in the middle (TCP without SYN).
pub const EVENT_FLAG_PICKED_UP: u8 = 1;
/// The flow was live under an allow and is cut by this judgement.
pub const EVENT_FLAG_CUT: u8 = 2;
/// The peer shows another node's address, which that node may have put there for somebody else.
pub const EVENT_FLAG_MAY_BE_MASQUERADED: u8 = 4;
/// The pod answers what no program has seen: of the flow the first packet is the pod's, TCP with SYN and ACK.
pub const EVENT_FLAG_BEGAN_UNSEEN: u8 = 8;

crate::pin_size!(Event = 184);
