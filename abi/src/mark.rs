//! What a packet carries through this node's stack: some bits of `skb->mark`, and the slot that they number.
//!
//! The bits, from the lowest: [`SLOT_BITS`] of slot, [`KIND_BITS`] of kind. Only bits from `Config::mark_shift` on are
//! touched; they survive routing and address translation, and nothing outlives a crossing between network namespaces.

use crate::address::Address;
use crate::ids::WorkloadId;
use bytemuck::{Pod, Zeroable};

/// Bits that number a slot.
pub const SLOT_BITS: u32 = 12;
/// Bits that tell the kind.
pub const KIND_BITS: u32 = 2;
/// Slots there are.
pub const SLOTS: u32 = 1 << SLOT_BITS;
/// All bits in use, at shift 0.
pub const MASK: u32 = (1 << (SLOT_BITS + KIND_BITS)) - 1;
/// Lowest bit in use unless configured otherwise: the mask is then `0x3fff0000`.
pub const DEFAULT_SHIFT: u32 = 16;

/// No mark of ours.
pub const KIND_NONE: u32 = 0;
/// From a pod, judged as it left the pod.
pub const KIND_POD: u32 = 1;
/// From a pod, to be judged where its destination is known.
pub const KIND_PENDING: u32 = 2;
/// From outside, to a Service; the slot has the client.
pub const KIND_CLIENT: u32 = 3;

/// Map `SLOTS`: value (the key is the slot's number). Written by the programs, each CPU in slots of its own by turns.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct SlotValue {
    /// Made of what translation leaves alone in the packet, never 0; first copy.
    pub head_check: u32,
    /// Interface by which the packet came in.
    pub ifindex: u32,
    /// Bridge of that interface, else 0: further up the packet comes from there.
    pub bridge: u32,
    /// One of `KIND_*`.
    pub kind: u32,
    /// The sending pod, 0 for a client.
    pub workload: WorkloadId,
    /// Source address as it came in.
    pub source: Address,
    /// Destination address as it came in.
    pub destination: Address,
    /// As in `FlowKey::ports` of the sender: source port << 16 | destination port, or the identifier of ICMP queries.
    pub ports: u32,
    /// As in `FlowKey::protocol`, with its `KEY_*` bits.
    pub protocol: u32,
    /// Unused, zero.
    pub reserved: u32,
    /// The check, second copy.
    pub tail_check: u32,
}

crate::pin_size!(SlotValue = 72);
