//! Working memory of one walk.

use crate::judge::{Peer, Ruling};
use crate::parse::Packet;
use reeve_abi::address::Address;
use reeve_abi::conntrack::{DeniedValue, FlowKey, FlowValue};
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::EndpointValue;
use reeve_abi::event::Event;
use reeve_abi::ids::{IdentityId, WorkloadId};
use reeve_abi::mark::SlotValue;

/// Where translation has put other addresses and ports into a packet; as in `FlowValue`. Whole words, so that clearing
/// it is no loop over bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Who the other side really is.
    pub real: Address,
    /// The destination before translation.
    pub service: Address,
    /// Their ports.
    pub ports: u32,
    /// Unused.
    pub reserved: u32,
}

/// Working memory of one walk: too large for a BPF stack, so the kernel keeps one per CPU.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Scratch {
    /// The frame.
    pub packet: Packet,
    /// The packet that an ICMP error quotes.
    pub quoted: Packet,
    /// The endpoint, copied whole.
    pub endpoint: EndpointValue,
    /// Key of the flow.
    pub key: FlowKey,
    /// A flow being made or told.
    pub flow: FlowValue,
    /// A denied tuple being made.
    pub denied: DeniedValue,
    /// The other side.
    pub peer: Peer,
    /// Time of the packet, ns.
    pub now_ns: u64,
    /// Ticks and time when the clock was last looked at: kept from packet to packet.
    pub ticks: u64,
    /// See `ticks`.
    pub tick_ns: u64,
    /// The address epoch as the packet came.
    pub address_epoch: u64,
    /// What was decided.
    pub ruling: Ruling,
    /// Key of an edge row.
    pub edge_key: EdgeKey,
    /// What is added to an edge row.
    pub edge: EdgeValue,
    /// An event.
    pub event: Event,
    /// 1: a flow that is allowed now takes the place of a live one.
    pub replaces: u32,
    /// What the pod had sent of a flow before it could be judged: packets, bytes.
    pub unjudged: [u64; 2],
    /// 1: the pod that sent the packet gets it.
    pub to_itself: u32,
    /// What the packet's first hook noted, where its mark counts.
    pub slot: SlotValue,
    /// The pod that a pending packet reaches.
    pub receiver: WorkloadId,
    /// Its identity.
    pub receiver_identity: IdentityId,
    /// What the packet's mark counts for: a `KIND_*` or `mark::KIND_LOST`.
    pub carried: u32,
    /// The mark that the packet gets: `KIND_NONE` leaves it alone.
    pub stamp: u32,
    /// Where translation was at work.
    pub seen: Rewritten,
    /// Slots that this CPU has used: kept from packet to packet.
    pub next_slot: u32,
}
