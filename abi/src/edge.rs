//! Exact counts per subject, peer, port, verdict and decision; the evidence that outlives lost events.

use crate::ids::{DecisionId, IdentityId, Revision, WorkloadId};
use bytemuck::{Pod, Zeroable};

/// Maps `EDGES` and `OVERFLOW`: key. Written by the programs, drained by the agent.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct EdgeKey {
    /// The workload at whose interface it was judged.
    pub subject: WorkloadId,
    /// Its identity as judged.
    pub identity: IdentityId,
    /// The peer's workload, 0 if it is not a pod.
    pub peer: WorkloadId,
    /// The peer's identity as judged.
    pub peer_identity: IdentityId,
    /// Who decided.
    pub decision: DecisionId,
    /// Endpoint revision.
    pub revision: Revision,
    /// IP protocol << 16 | judged port.
    pub service: u32,
    /// `DIRECTION_*` | verdict << 8 | `EDGE_*` bits.
    pub kind: u32,
}

/// In [`EdgeKey::kind`]: the row lies in bank 1, not 0.
pub const EDGE_BANK: u32 = 1 << 16;
/// In [`EdgeKey::kind`]: a reserved row of map `OVERFLOW`, for whatever found no room in `EDGES`. It tells subject,
/// its identity, direction, verdict and decision; the other fields are 0, a common protocol excepted.
pub const EDGE_OVERFLOW: u32 = 1 << 17;
/// Stands in a reserved row for every protocol that is not a common one, so that their number is bounded.
pub const EDGE_OTHER_PROTOCOL: u32 = 255;

/// Maps `EDGES` and `OVERFLOW`: value. Written with atomic adds.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct EdgeValue {
    /// Flows judged (allow) or tuples denied.
    pub connections: u64,
    /// Packets in the original direction, and back.
    pub packets: [u64; 2],
    /// Bytes in the original direction, and back.
    pub bytes: [u64; 2],
    /// First judgement, `CLOCK_MONOTONIC` ns.
    pub first_ns: u64,
    /// Last packet flushed, ns.
    pub last_ns: u64,
}

crate::pin_size!(EdgeKey = 56, EdgeValue = 56);
