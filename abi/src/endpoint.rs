//! What the datapath knows of one workload's interface on this node.

use crate::address::Address;
use crate::ids::{IdentityId, PolicyNumber, Revision, WorkloadId};
use bytemuck::{Pod, Zeroable};

/// Map `ENDPOINTS`: value (the key is the interface index). Written by the agent's reconciler.
///
/// A replaced hash element is recycled at once, so a program may see it change under its pointer: it copies the value
/// and believes the copy only if both ends agree.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct EndpointValue {
    /// Interface index, first copy.
    pub head_ifindex: u32,
    /// `ENDPOINT_*` bits.
    pub flags: u32,
    /// Revision that last changed this endpoint's policies or the meaning of an address in use, first copy.
    pub head_revision: Revision,
    /// The workload.
    pub workload: WorkloadId,
    /// Its identity.
    pub identity: IdentityId,
    /// Policy by [`policy_index`]: ingress IPv4, ingress IPv6, egress IPv4, egress IPv6.
    pub policies: [PolicyNumber; 4],
    /// Its IPv6 address, zero if none.
    pub address_v6: Address,
    /// Its IPv4 address, mapped, zero if none.
    pub address_v4: Address,
    /// Interface index of the bridge that the interface is a port of, else 0.
    pub bridge: u32,
    /// Interface index, second copy.
    pub tail_ifindex: u32,
    /// Revision, second copy.
    pub tail_revision: Revision,
}

/// The endpoint's first image is in: judge by policy. Without it only the own node and established flows pass.
pub const ENDPOINT_READY: u32 = 1;
/// An address could not be stored: a look-up that misses is denied for selected subjects.
pub const ENDPOINT_ADDRESSES_INCOMPLETE: u32 = 2;
/// Its IPv4 address is claimed by others too: no IPv4 packet passes.
pub const ENDPOINT_CONTESTED_V4: u32 = 4;
/// The same for IPv6.
pub const ENDPOINT_CONTESTED_V6: u32 = 8;
/// Programs are attached: whatever comes from the interface carries a mark.
pub const ENDPOINT_MARKS: u32 = 16;

/// Map `NEAR` (per CPU, index: interface index modulo [`NEAR_PLACES`]): value. What a CPU last read of `ENDPOINTS`, and of
/// `DEVICES`, for a fraction of the price. It counts as long as `GENERATION` (array of one `u64`) is what it was before that
/// reading: the agent raises it after each write to either, and before anything goes that an endpoint referred to.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct NearValue {
    /// `GENERATION` before the reading.
    pub generation: u64,
    /// What was read, whole.
    pub endpoint: EndpointValue,
    /// `GENERATION` before the looking for `arrives_marked`.
    pub looked_generation: u64,
    /// The interface that was looked for; it need not be an endpoint's.
    pub looked_ifindex: u32,
    /// 1: whatever comes from it carries a mark.
    pub arrives_marked: u32,
}

/// Entries of map `NEAR`, a power of two.
pub const NEAR_PLACES: u32 = 256;

/// Towards the pod.
pub const DIRECTION_INGRESS: u32 = 0;
/// From the pod.
pub const DIRECTION_EGRESS: u32 = 1;

/// Position in [`EndpointValue::policies`]; `v6` is 0 or 1.
#[inline]
pub const fn policy_index(direction: u32, v6: u32) -> usize {
    ((direction & 1) << 1 | (v6 & 1)) as usize
}

crate::pin_size!(EndpointValue = 112, NearValue = 136);
