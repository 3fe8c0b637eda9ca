//! What the walk needs from its surroundings: packet bytes, maps, clock, counters.

use core::ptr::NonNull;
use reeve_abi::address::{Address, AddressValue};
use reeve_abi::config::Config;
use reeve_abi::conntrack::{BudgetValue, DeniedValue, FlowKey, FlowValue, FragmentKey, FragmentValue};
use reeve_abi::device::DeviceValue;
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::{EndpointValue, NearValue};
use reeve_abi::event::Event;
use reeve_abi::ids::{ClassId, IdentityId, WorkloadId};
use reeve_abi::mark::SlotValue;
use reeve_abi::policy::{PeerKey, PeerValue, PortKey, PortValue, RangeKey};
use reeve_abi::recent::RecentValue;
use reeve_abi::service::{ServiceKey, ServiceValue};

/// One frame: all that parsing asks for.
pub trait Bytes {
    /// Copies `N` bytes of the frame from `offset` on; false if the frame is shorter.
    fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool;
    /// Length of the frame in bytes, headers of all layers included.
    fn frame_bytes(&self) -> u32;
    /// The frame's first `N` bytes, if they lie in one piece. `None` says nothing of the frame.
    fn head<const N: usize>(&self) -> Option<&[u8; N]>;
    /// Two of its bytes, in the order in which they lie there.
    #[inline(always)]
    fn half<const N: usize>(head: &[u8; N], at: usize) -> u16 {
        u16::from_ne_bytes([head[at], head[at + 1]])
    }
    /// Four of its bytes, in the order in which they lie there.
    #[inline(always)]
    fn word<const N: usize>(head: &[u8; N], at: usize) -> u32 {
        u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
    }
    /// Whether the frame carries a VLAN tag outside its bytes.
    fn vlan(&self) -> bool;
    /// Whether the frame is to be cut into packets later (segmentation offload): only then may it be too long for the
    /// length fields of its headers.
    fn offloaded(&self) -> bool;
}

/// The surroundings of one packet. In the kernel a TC context with BPF maps, on the host plain collections.
///
/// Pointers into maps stay valid until the program ends; other CPUs may write behind them at the same time.
pub trait Env: Bytes {
    /// How many packets the frame stands for on the wire (segmentation offload), at least 1.
    fn segments(&self) -> u32;
    /// Interface at which the program runs.
    fn ifindex(&self) -> u32;
    /// Interface by which the packet entered this node's stack; 0 if a local process made it.
    fn ingress_ifindex(&self) -> u32;
    /// The packet's mark.
    fn mark(&self) -> u32;
    /// Puts another mark on the packet.
    fn set_mark(&self, mark: u32);
    /// Number of this CPU.
    fn cpu(&self) -> u32;
    /// `CLOCK_MONOTONIC` in ns.
    fn now_ns(&self) -> u64;
    /// The same as of the last tick (up to 10 ms ago), for less than half the price.
    fn tick_ns(&self) -> u64;
    /// Ticks of the kernel's timer so far.
    fn ticks(&self) -> u64;
    /// Settings, as they stand at this moment.
    fn config(&self) -> &Config;
    /// Copies the endpoint's value as it stands, perhaps torn; false if there is none.
    fn endpoint(&self, ifindex: u32, into: &mut EndpointValue) -> bool;
    /// `GENERATION`, as it stands.
    fn generation(&self) -> u64;
    /// Where this CPU keeps what it read of an interface's endpoint.
    fn near(&self, ifindex: u32) -> Option<NonNull<NearValue>>;
    /// Flags of the endpoint as they stand; `None` if the interface is no endpoint's.
    fn endpoint_flags(&self, ifindex: u32) -> Option<u32>;
    /// An interface that is no pod's.
    fn device(&self, ifindex: u32) -> Option<DeviceValue>;
    /// Whether an address and port stand for others.
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue>;
    /// A slot by its number.
    fn slot(&self, number: u32) -> Option<NonNull<SlotValue>>;
    /// Owner of an exact address.
    fn address(&self, address: &Address) -> Option<AddressValue>;
    /// Identity of the most specific named prefix around the address.
    fn network(&self, address: &Address) -> Option<IdentityId>;
    /// Class of an identity.
    fn class(&self, identity: IdentityId) -> Option<ClassId>;
    /// Row of a policy.
    fn peer(&self, key: &PeerKey) -> Option<PeerValue>;
    /// Row of a port table.
    fn port(&self, key: &PortKey) -> Option<PortValue>;
    /// Range row of a port table.
    fn range(&self, key: &RangeKey) -> Option<PortValue>;
    /// Flow entry.
    fn flow(&self, key: &FlowKey) -> Option<NonNull<FlowValue>>;
    /// Writes a flow entry.
    fn put_flow(&self, key: &FlowKey, value: &FlowValue) -> bool;
    /// Row of `RECENT`.
    fn recent(&self, number: u32) -> Option<NonNull<RecentValue>>;
    /// What an endpoint may still put into the flow table; none: nobody has set a limit.
    fn budget(&self, workload: WorkloadId) -> Option<NonNull<BudgetValue>>;
    /// Denied tuple's entry.
    fn denied(&self, key: &FlowKey) -> Option<NonNull<DeniedValue>>;
    /// Writes a denied tuple's entry.
    fn put_denied(&self, key: &FlowKey, value: &DeniedValue) -> bool;
    /// Edge row.
    fn edge(&self, key: &EdgeKey) -> Option<NonNull<EdgeValue>>;
    /// Writes an edge row that is not there yet; false if it is there or there is no room.
    fn put_edge(&self, key: &EdgeKey, value: &EdgeValue) -> bool;
    /// Reserved row for counts that `EDGES` has no room for.
    fn overflow(&self, key: &EdgeKey) -> Option<NonNull<EdgeValue>>;
    /// Writes a reserved row that is not there yet; false if it is there or there is no room.
    fn put_overflow(&self, key: &EdgeKey, value: &EdgeValue) -> bool;
    /// Ports of a fragmented packet.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue>;
    /// Remembers the ports of a fragmented packet.
    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool;
    /// Tells user space; false if the ring buffer had no room.
    fn emit(&self, event: &Event) -> bool;
    /// Adds to a counter of `reeve_abi::stats`.
    fn count_more(&self, stat: u32, more: u64);
    /// Adds one to it.
    #[inline(always)]
    fn count(&self, stat: u32) {
        self.count_more(stat, 1);
    }
    /// Adds to a counter that other CPUs add to as well.
    fn add(&self, counter: *mut u64, amount: u64);
    /// Puts a value where other CPUs put theirs as well, and returns what was there.
    fn swap(&self, place: *mut u64, value: u64) -> u64;
}

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The pod sends.
    FromPod,
    /// The pod receives.
    ToPod,
    /// What a pod sent reaches another one: judged for the sender.
    Reached,
    /// What a pod sent leaves the node: judged for the sender.
    Uplink,
    /// What a pod sent reaches a process of this node: judged for the sender.
    HostIn,
    /// What a pod sent to this node, where nobody listens: judged for the sender when the kernel says so.
    Refused,
}

impl Hook {
    /// Direction of a packet at this hook as the pod sees it: `DIRECTION_*`.
    #[inline(always)]
    pub const fn direction(self) -> u32 {
        match self {
            Self::FromPod | Self::Reached | Self::Uplink | Self::HostIn | Self::Refused => {
                reeve_abi::endpoint::DIRECTION_EGRESS
            }
            Self::ToPod => reeve_abi::endpoint::DIRECTION_INGRESS,
        }
    }

    /// Number in events.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        match self {
            Self::FromPod => reeve_abi::event::HOOK_FROM_POD,
            Self::ToPod | Self::Reached => reeve_abi::event::HOOK_TO_POD,
            Self::Uplink => reeve_abi::event::HOOK_UPLINK,
            Self::HostIn | Self::Refused => reeve_abi::event::HOOK_HOST_IN,
        }
    }

    /// Whether it judges what was pending.
    #[inline(always)]
    pub const fn settles(self) -> bool {
        matches!(self, Self::Reached | Self::Uplink | Self::HostIn | Self::Refused)
    }
}

/// What happens to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Goes on to whoever is next in the chain.
    Continue,
    /// Dropped.
    Drop,
}
