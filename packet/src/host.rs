//! The walk's surroundings on the host, for tests: plain collections instead of maps, a clock that is set by hand.
//!
//! Invariant: a pointer into a map stays valid as long as the host lives, as one in the kernel does for a run; what is
//! replaced goes to a graveyard.

mod frames;
mod world;

pub(crate) use frames::{Ends, with_vlan};
pub(crate) use world::{
    CLIENT, CLIENT_DEVICE, HOST, POD, POD_DEVICE, REMOTE, UPLINK, WORLD, Who, World, addresses, decided, event_kinds,
    ports,
};

use crate::env::{Bytes, Env};
use core::ptr::NonNull;
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::config::Config;
use reeve_abi::conntrack::{BudgetValue, DeniedValue, FlowKey, FlowValue, FragmentKey, FragmentValue};
use reeve_abi::device::DeviceValue;
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::{EndpointValue, NEAR_PLACES, NearValue};
use reeve_abi::event::Event;
use reeve_abi::ids::{ClassId, IdentityId, WorkloadId};
use reeve_abi::mark::SlotValue;
use reeve_abi::policy::{PeerKey, PeerValue, PortKey, PortValue, RANGE_BASE_BITS, RangeKey};
use reeve_abi::recent::{RECENT_PLACES, RecentValue};
use reeve_abi::service::{ServiceKey, ServiceValue};
use reeve_abi::stats;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// How many CPUs the host has.
pub(crate) const CPUS: u32 = 2;

/// Between two ticks of a kernel that has 250 a second.
const TICK_NS: u64 = 4_000_000;

/// A map whose values can be written behind a pointer.
pub(crate) struct Table<K, V> {
    rows: RefCell<HashMap<K, NonNull<V>>>,
    every: RefCell<Vec<NonNull<V>>>,
    /// Whether it takes new keys.
    pub(crate) has_room: Cell<bool>,
}

impl<K: Eq + Hash + Copy + Ord, V: Copy> Table<K, V> {
    fn new() -> Self {
        Self { rows: RefCell::default(), every: RefCell::default(), has_room: Cell::new(true) }
    }

    fn get(&self, key: &K) -> Option<NonNull<V>> {
        self.rows.borrow().get(key).copied()
    }

    pub(crate) fn put(&self, key: &K, value: &V) -> bool {
        if !self.has_room.get() && self.get(key).is_none() {
            return false;
        }
        let value = NonNull::from(Box::leak(Box::new(*value)));
        self.every.borrow_mut().push(value);
        self.rows.borrow_mut().insert(*key, value);
        true
    }

    /// Everything in it, in the order of the keys.
    pub(crate) fn all(&self) -> Vec<(K, V)> {
        // SAFETY: the values live as long as the table, and nobody writes while this reads: there is one thread.
        let mut all: Vec<(K, V)> = self.rows.borrow().iter().map(|(k, v)| (*k, unsafe { *v.as_ptr() })).collect();
        all.sort_by_key(|row| row.0);
        all
    }
}

impl<K, V> Drop for Table<K, V> {
    fn drop(&mut self) {
        for value in self.every.get_mut().drain(..) {
            // SAFETY: leaked by `put`, once each, and given out for no longer than the table lives.
            drop(unsafe { Box::from_raw(value.as_ptr()) });
        }
    }
}

/// The maps, the clock and the packet at hand.
pub(crate) struct Host {
    pub(crate) frame: Vec<u8>,
    pub(crate) vlan: bool,
    pub(crate) segments: u32,
    pub(crate) offloaded: bool,
    /// How many bytes of the frame lie in one piece at its beginning.
    pub(crate) linear: usize,
    pub(crate) ifindex: u32,
    pub(crate) ingress_ifindex: u32,
    pub(crate) mark: Cell<u32>,
    pub(crate) cpu: u32,
    pub(crate) now_ns: u64,
    pub(crate) config: Config,
    pub(crate) endpoints: HashMap<u32, EndpointValue>,
    /// What the agent raises when it has written an endpoint.
    pub(crate) generation: u64,
    /// After how many more looks at it the agent raises it, once.
    pub(crate) raised_after: Cell<Option<u32>>,
    near: Table<u32, NearValue>,
    /// How many of the next reads of an endpoint are torn.
    pub(crate) torn_reads: Cell<u32>,
    pub(crate) devices: HashMap<u32, DeviceValue>,
    pub(crate) services: HashMap<ServiceKey, ServiceValue>,
    pub(crate) slots: Table<u32, SlotValue>,
    pub(crate) addresses: HashMap<Address, AddressValue>,
    pub(crate) networks: BTreeMap<NetworkKey, NetworkValue>,
    pub(crate) classes: HashMap<IdentityId, ClassId>,
    pub(crate) peers: HashMap<PeerKey, PeerValue>,
    pub(crate) ports: HashMap<PortKey, PortValue>,
    pub(crate) ranges: BTreeMap<RangeKey, PortValue>,
    pub(crate) flows: Table<FlowKey, FlowValue>,
    pub(crate) recent: Table<u32, RecentValue>,
    pub(crate) budgets: Table<WorkloadId, BudgetValue>,
    pub(crate) denied: Table<FlowKey, DeniedValue>,
    pub(crate) edges: Table<EdgeKey, EdgeValue>,
    pub(crate) overflow: Table<EdgeKey, EdgeValue>,
    pub(crate) fragments: RefCell<HashMap<FragmentKey, FragmentValue>>,
    pub(crate) events: RefCell<Vec<Event>>,
    pub(crate) stats: RefCell<Vec<u64>>,
}

impl Host {
    /// Empty maps with the default settings.
    pub(crate) fn new() -> Self {
        Self {
            frame: Vec::new(),
            vlan: false,
            segments: 1,
            offloaded: false,
            linear: usize::MAX,
            ifindex: 0,
            ingress_ifindex: 0,
            mark: Cell::new(0),
            cpu: 0,
            now_ns: 1_000 * reeve_abi::config::SECOND_NS,
            config: Config::DEFAULT,
            endpoints: HashMap::new(),
            generation: 1,
            raised_after: Cell::new(None),
            near: Table::new(),
            torn_reads: Cell::new(0),
            devices: HashMap::new(),
            services: HashMap::new(),
            slots: Table::new(),
            addresses: HashMap::new(),
            networks: BTreeMap::new(),
            classes: HashMap::new(),
            peers: HashMap::new(),
            ports: HashMap::new(),
            ranges: BTreeMap::new(),
            flows: Table::new(),
            recent: Table::new(),
            budgets: Table::new(),
            denied: Table::new(),
            edges: Table::new(),
            overflow: Table::new(),
            fragments: RefCell::default(),
            events: RefCell::default(),
            stats: RefCell::new(vec![0; stats::COUNT as usize]),
        }
    }

    /// Value of a counter of `reeve_abi::stats`.
    pub(crate) fn stat(&self, stat: u32) -> u64 {
        self.stats.borrow()[stat as usize]
    }
}

/// The first `bits` bits of a network-order number of `N` bytes are the same.
fn same_prefix<const N: usize>(a: &[u8; N], b: &[u8; N], bits: u32) -> bool {
    (0..bits as usize).all(|bit| (a[bit / 8] ^ b[bit / 8]) & (0x80 >> (bit % 8)) == 0)
}

fn range_bytes(key: &RangeKey) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&key.table);
    bytes[8..10].copy_from_slice(&key.protocol_be);
    bytes[10..].copy_from_slice(&key.port_be);
    bytes
}

impl Bytes for Host {
    fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        let at = offset as usize;
        let Some(bytes) = self.frame.get(at..at + N) else { return false };
        into.copy_from_slice(bytes);
        true
    }
    fn frame_bytes(&self) -> u32 {
        u32::try_from(self.frame.len()).expect("a frame is far below 4 GiB")
    }
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        self.frame[..self.linear.min(self.frame.len())].first_chunk()
    }
    fn vlan(&self) -> bool {
        self.vlan
    }
    fn offloaded(&self) -> bool {
        self.offloaded
    }
}

impl Env for Host {
    fn segments(&self) -> u32 {
        self.segments
    }
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }
    fn mark(&self) -> u32 {
        self.mark.get()
    }
    fn set_mark(&self, mark: u32) {
        self.mark.set(mark);
    }
    fn cpu(&self) -> u32 {
        self.cpu
    }
    fn endpoint_flags(&self, ifindex: u32) -> Option<u32> {
        self.endpoints.get(&ifindex).map(|endpoint| endpoint.flags)
    }
    fn device(&self, ifindex: u32) -> Option<DeviceValue> {
        self.devices.get(&ifindex).copied()
    }
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
        self.services.get(key).copied()
    }
    fn slot(&self, number: u32) -> Option<NonNull<SlotValue>> {
        assert!(number < reeve_abi::mark::SLOTS, "an array has no slot {number}");
        if self.slots.get(&number).is_none() {
            self.slots.put(&number, &SlotValue::default());
        }
        self.slots.get(&number)
    }
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn tick_ns(&self) -> u64 {
        self.now_ns - self.now_ns % TICK_NS
    }
    fn ticks(&self) -> u64 {
        self.now_ns / TICK_NS
    }
    fn config(&self) -> &Config {
        &self.config
    }
    fn endpoint(&self, ifindex: u32, into: &mut EndpointValue) -> bool {
        let Some(found) = self.endpoints.get(&ifindex) else { return false };
        *into = *found;
        if self.torn_reads.get() > 0 {
            self.torn_reads.set(self.torn_reads.get() - 1);
            into.tail_revision.0 += 1;
        }
        true
    }
    fn generation(&self) -> u64 {
        match self.raised_after.get() {
            None => self.generation,
            Some(0) => self.generation + 1,
            Some(looks) => {
                self.raised_after.set(Some(looks - 1));
                self.generation
            }
        }
    }
    fn near(&self, ifindex: u32) -> Option<NonNull<NearValue>> {
        let place = ifindex % NEAR_PLACES;
        if self.near.get(&place).is_none() {
            self.near.put(&place, &NearValue::default());
        }
        self.near.get(&place)
    }
    fn address(&self, address: &Address) -> Option<AddressValue> {
        self.addresses.get(address).copied()
    }
    fn network(&self, address: &Address) -> Option<IdentityId> {
        let around = self.networks.iter().filter(|(key, _)| same_prefix(&key.address.0, &address.0, key.prefix_bits));
        around.max_by_key(|(key, _)| key.prefix_bits).map(|(_, value)| value.identity)
    }
    fn class(&self, identity: IdentityId) -> Option<ClassId> {
        self.classes.get(&identity).copied()
    }
    fn peer(&self, key: &PeerKey) -> Option<PeerValue> {
        self.peers.get(key).copied()
    }
    fn port(&self, key: &PortKey) -> Option<PortValue> {
        self.ports.get(key).copied()
    }
    fn range(&self, key: &RangeKey) -> Option<PortValue> {
        assert_eq!(key.prefix_bits, RANGE_BASE_BITS + 16, "the walk asks for single ports");
        let asked = range_bytes(key);
        let around = self.ranges.iter().filter(|(row, _)| same_prefix(&range_bytes(row), &asked, row.prefix_bits));
        around.max_by_key(|(row, _)| row.prefix_bits).map(|(_, value)| *value)
    }
    fn flow(&self, key: &FlowKey) -> Option<NonNull<FlowValue>> {
        self.flows.get(key)
    }
    fn put_flow(&self, key: &FlowKey, value: &FlowValue) -> bool {
        self.flows.put(key, value)
    }
    fn recent(&self, number: u32) -> Option<NonNull<RecentValue>> {
        if number < CPUS * RECENT_PLACES && self.recent.get(&number).is_none() {
            self.recent.put(&number, &RecentValue::default());
        }
        self.recent.get(&number)
    }
    fn budget(&self, workload: WorkloadId) -> Option<NonNull<BudgetValue>> {
        self.budgets.get(&workload)
    }
    fn denied(&self, key: &FlowKey) -> Option<NonNull<DeniedValue>> {
        self.denied.get(key)
    }
    fn put_denied(&self, key: &FlowKey, value: &DeniedValue) -> bool {
        self.denied.put(key, value)
    }
    fn edge(&self, key: &EdgeKey) -> Option<NonNull<EdgeValue>> {
        self.edges.get(key)
    }
    fn put_edge(&self, key: &EdgeKey, value: &EdgeValue) -> bool {
        self.edges.get(key).is_none() && self.edges.put(key, value)
    }
    fn overflow(&self, key: &EdgeKey) -> Option<NonNull<EdgeValue>> {
        self.overflow.get(key)
    }
    fn put_overflow(&self, key: &EdgeKey, value: &EdgeValue) -> bool {
        self.overflow.get(key).is_none() && self.overflow.put(key, value)
    }
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        self.fragments.borrow().get(key).copied()
    }
    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        self.fragments.borrow_mut().insert(*key, *value);
        true
    }
    fn emit(&self, event: &Event) -> bool {
        self.events.borrow_mut().push(*event);
        true
    }
    fn count_more(&self, stat: u32, more: u64) {
        self.stats.borrow_mut()[stat as usize] += more;
    }
    fn add(&self, counter: *mut u64, amount: u64) {
        // SAFETY: the walk passes fields of values that the tables gave out.
        unsafe { *counter += amount }
    }
    fn swap(&self, place: *mut u64, value: u64) -> u64 {
        // SAFETY: as for `add`.
        unsafe { place.replace(value) }
    }
}
