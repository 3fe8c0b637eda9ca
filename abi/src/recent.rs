//! Flows of which a CPU has just let packets through: it counts further ones there, and `FLOWS` gets the counts later.

use crate::address::Address;
use crate::conntrack::FlowKey;
use crate::ids::{DecisionId, IdentityId, Revision, WorkloadId};
use bytemuck::{Pod, Zeroable};

/// Rows that each CPU has in map `RECENT`, a power of two.
pub const RECENT_PLACES: u32 = 256;

/// Map `RECENT` (index: CPU × [`RECENT_PLACES`] + place): value.
///
/// What is wanted of it for each packet comes first, and is in few cache lines so.
///
/// Written by the programs: what a packet must match and the counts by the row's own CPU, the rest by whoever holds the
/// row. Counts only grow, so that whoever adds them to `FLOWS` needs no help from the CPU that counts.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RecentValue {
    /// The flow.
    pub key: FlowKey,
    /// The pod's address.
    pub local: Address,
    /// Ticks of the kernel's timer when the row was filled. Only until the next one it lets anything through.
    pub ticks: u64,
    /// `GENERATION` when the row was filled. Only while it stands it lets anything through.
    pub generation: u64,
    /// The pod's interface.
    pub ifindex: u32,
    /// Bit `1 << DIRECTION_*`: packets that go this way are let through.
    pub ways: u32,
    /// By which interface packets to the pod came in.
    pub arrives_by: u32,
    /// `KIND_*` of the mark that packets to the pod had.
    pub carried: u32,
    /// Packets counted here: to the pod (`DIRECTION_INGRESS`), and from it.
    pub packets: [u64; 2],
    /// Bytes counted here, likewise.
    pub bytes: [u64; 2],
    /// Frames counted here, of any number of packets each: for `STATS`.
    pub frames: u64,
    /// Part of `packets` that `FLOWS` or `EDGES` has.
    pub added_packets: [u64; 2],
    /// Part of `bytes` that `FLOWS` or `EDGES` has.
    pub added_bytes: [u64; 2],
    /// Part of `frames` that `STATS` has.
    pub added_frames: u64,
    /// 1: somebody holds the row.
    pub held: u64,
    /// `FlowValue::first_ns`: the key's flow that is meant.
    pub first_ns: u64,
    /// Who decided that flow.
    pub decision: DecisionId,
    /// As in `FlowValue`.
    pub revision: Revision,
    /// As in `FlowValue`.
    pub peer_workload: WorkloadId,
    /// As in `FlowValue`.
    pub peer_identity: IdentityId,
    /// As in `FlowValue`.
    pub own_identity: IdentityId,
    /// As in `FlowValue`.
    pub direction: u32,
    /// As in `FlowValue`.
    pub port: u32,
}

crate::pin_size!(RecentValue = 224);
