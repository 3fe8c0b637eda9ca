//! The maps. The agent writes those of the first group (one writer each: its reconciler), the programs the others.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use reeve_abi::address::{Address, AddressValue, NetworkValue};
use reeve_abi::config::Config;
use reeve_abi::conntrack::{BudgetValue, DeniedValue, FlowKey, FlowValue, FragmentKey, FragmentValue};
use reeve_abi::device::DeviceValue;
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::{EndpointValue, NEAR_PLACES, NearValue};
use reeve_abi::mark::{SLOTS as SLOTS_COUNT, SlotValue};
use reeve_abi::policy::{ClassValue, PeerKey, PeerValue, PortKey, PortValue};
use reeve_abi::recent::{RECENT_PLACES, RecentValue};
use reeve_abi::service::{ServiceKey, ServiceValue};
use reeve_packet::walk::Scratch;

/// Interface index -> endpoint.
#[map]
pub static ENDPOINTS: HashMap<u32, EndpointValue> = HashMap::with_max_entries(4_096, 0);
/// Raised after each write to `ENDPOINTS`.
#[map]
pub static GENERATION: Array<u64> = Array::with_max_entries(1, 0);
/// What this CPU last read of `ENDPOINTS`.
#[map]
pub static NEAR: PerCpuArray<NearValue> = PerCpuArray::with_max_entries(NEAR_PLACES, 0);
/// Exact address -> owner.
#[map]
pub static ADDRESSES: HashMap<Address, AddressValue> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
/// Interface index -> what it is, if it is no pod's.
#[map]
pub static DEVICES: HashMap<u32, DeviceValue> = HashMap::with_max_entries(4_096, 0);
/// (address, port, protocol) -> stands for others.
#[map]
pub static SERVICES: HashMap<ServiceKey, ServiceValue> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
/// Prefix -> identity.
#[map]
pub static NETWORKS: LpmTrie<[u8; 16], NetworkValue> = LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);
/// Identity -> class.
#[map]
pub static CLASSES: HashMap<u64, ClassValue> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
/// (policy, class) -> decision or table.
#[map]
pub static PEERS: HashMap<PeerKey, PeerValue> = HashMap::with_max_entries(524_288, BPF_F_NO_PREALLOC);
/// (table, protocol, port) -> decision.
#[map]
pub static PORTS: HashMap<PortKey, PortValue> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
/// (table, protocol, port prefix) -> decision.
#[map]
pub static RANGES: LpmTrie<[u8; 12], PortValue> = LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);
/// Settings.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Flows.
#[map]
pub static FLOWS: LruHashMap<FlowKey, FlowValue> = LruHashMap::with_max_entries(131_072, 0);
/// What each CPU has counted of flows lately; as many rows as there are CPUs, times `RECENT_PLACES`.
#[map]
pub static RECENT: Array<RecentValue> = Array::with_max_entries(RECENT_PLACES, 0);
/// Workload -> its share of `FLOWS`.
#[map]
pub static BUDGETS: HashMap<u64, BudgetValue> = HashMap::with_max_entries(4_096, 0);
/// Denied tuples.
#[map]
pub static DENIED: LruHashMap<FlowKey, DeniedValue> = LruHashMap::with_max_entries(32_768, 0);
/// Ports of fragmented packets.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> = LruHashMap::with_max_entries(8_192, 0);
/// What the first hook of a packet noted; each CPU writes its own.
#[map]
pub static SLOTS: Array<SlotValue> = Array::with_max_entries(SLOTS_COUNT, 0);
/// Exact counts.
#[map]
pub static EDGES: HashMap<EdgeKey, EdgeValue> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
/// Exact counts of what `EDGES` has no room for: a row per endpoint, direction, verdict and decision. Preallocated, so
/// that the room is there when memory is short.
#[map]
pub static OVERFLOW: HashMap<EdgeKey, EdgeValue> = HashMap::with_max_entries(8_192, 0);
/// What happened, for user space.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4 * 1024 * 1024, 0);
/// Counters.
#[map]
pub static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(reeve_abi::stats::COUNT, 0);
/// Working memory, one per CPU.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
