//! The walk's surroundings in the kernel: a packet's context and BPF maps.

use crate::maps;
use aya_ebpf::bindings::{__sk_buff, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated};
use aya_ebpf::maps::lpm_trie::Key;
use core::intrinsics::{AtomicOrdering, atomic_xadd, atomic_xchg};
use core::ptr::NonNull;
use reeve_abi::address::{Address, AddressValue};
use reeve_abi::config::Config;
use reeve_abi::conntrack::{BudgetValue, DeniedValue, FlowKey, FlowValue, FragmentKey, FragmentValue};
use reeve_abi::device::DeviceValue;
use reeve_abi::edge::{EdgeKey, EdgeValue};
use reeve_abi::endpoint::{EndpointValue, NEAR_PLACES, NearValue};
use reeve_abi::event::Event;
use reeve_abi::ids::{ClassId, IdentityId, WorkloadId};
use reeve_abi::mark::SlotValue;
use reeve_abi::policy::{PeerKey, PeerValue, PortKey, PortValue, RangeKey};
use reeve_abi::recent::RecentValue;
use reeve_abi::service::{ServiceKey, ServiceValue};
use reeve_packet::env::{Bytes, Env};

const BPF_NOEXIST: u64 = 1;

/// One run of a program.
pub struct Kernel {
    /// Its packet, valid for the whole run.
    pub skb: *mut __sk_buff,
    /// Settings.
    pub config: &'static Config,
}

impl Kernel {
    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        // SAFETY: the kernel passes a valid context for the whole run.
        unsafe { &*self.skb }
    }
}

impl Bytes for Kernel {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        // SAFETY: `into` has N bytes; the helper copies from linear and paged parts alike, or fails whole.
        unsafe { generated::bpf_skb_load_bytes(self.skb.cast(), offset, into.as_mut_ptr().cast(), N as u32) == 0 }
    }
    #[inline(always)]
    fn frame_bytes(&self) -> u32 {
        self.skb().len
    }
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        let (begins, ends) = (self.skb().data as usize, self.skb().data_end as usize);
        if begins + N > ends {
            return None;
        }
        // SAFETY: the bytes up to `ends` are the packet's, and nothing that moves them is called.
        Some(unsafe { &*(begins as *const [u8; N]) })
    }
    // One read each, where a compiler for BPF would put bytes together: programs may read packets where they please.
    #[inline(always)]
    fn half<const N: usize>(head: &[u8; N], at: usize) -> u16 {
        assert!(at + 2 <= N);
        // SAFETY: the head has these bytes, and the machine reads numbers at any address.
        unsafe { head.as_ptr().add(at).cast::<u16>().read_volatile() }
    }
    #[inline(always)]
    fn word<const N: usize>(head: &[u8; N], at: usize) -> u32 {
        assert!(at + 4 <= N);
        // SAFETY: as in `half`.
        unsafe { head.as_ptr().add(at).cast::<u32>().read_volatile() }
    }
    #[inline(always)]
    fn vlan(&self) -> bool {
        self.skb().vlan_present != 0
    }
    #[inline(always)]
    fn offloaded(&self) -> bool {
        self.skb().gso_size != 0
    }
}

impl Env for Kernel {
    #[inline(always)]
    fn segments(&self) -> u32 {
        let segments = self.skb().gso_segs;
        if segments == 0 { 1 } else { segments }
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.skb().ifindex
    }
    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        self.skb().ingress_ifindex
    }
    #[inline(always)]
    fn mark(&self) -> u32 {
        self.skb().mark
    }
    #[inline(always)]
    fn set_mark(&self, mark: u32) {
        // SAFETY: valid for the whole run; the kernel lets programs write this field.
        unsafe { (&raw mut (*self.skb).mark).write(mark) }
    }
    #[inline(always)]
    fn cpu(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_smp_processor_id() as u32 }
    }
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
    }
    #[inline(always)]
    fn tick_ns(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { generated::bpf_ktime_get_coarse_ns() }
    }
    #[inline(always)]
    fn ticks(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { generated::bpf_jiffies64() }
    }
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }
    #[inline(always)]
    fn endpoint(&self, ifindex: u32, into: &mut EndpointValue) -> bool {
        let Some(found) = maps::ENDPOINTS.get_ptr(&ifindex) else { return false };
        const WORDS: usize = size_of::<EndpointValue>() / 8;
        let (from, to) = (found.cast::<u64>(), (&raw mut *into).cast::<u64>());
        let mut i = 0;
        while i < WORDS {
            // SAFETY: both have WORDS aligned words. The value may change meanwhile, which the caller checks: volatile,
            // so that each word is read once, in this order.
            unsafe { to.add(i).write(from.add(i).read_volatile()) };
            i += 1;
        }
        true
    }
    #[inline(always)]
    fn generation(&self) -> u64 {
        // SAFETY: an array's only element, read once.
        maps::GENERATION.get_ptr(0).map_or(0, |generation| unsafe { generation.read_volatile() })
    }
    #[inline(always)]
    fn near(&self, ifindex: u32) -> Option<NonNull<NearValue>> {
        maps::NEAR.get_ptr_mut(ifindex & (NEAR_PLACES - 1)).and_then(NonNull::new)
    }
    #[inline(always)]
    fn endpoint_flags(&self, ifindex: u32) -> Option<u32> {
        // SAFETY: one word, read once.
        maps::ENDPOINTS.get_ptr(&ifindex).map(|found| unsafe { (&raw const (*found).flags).read_volatile() })
    }
    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<DeviceValue> {
        // SAFETY: copied at once.
        unsafe { maps::DEVICES.get(&ifindex) }.copied()
    }
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
        // SAFETY: copied at once.
        unsafe { maps::SERVICES.get(key) }.copied()
    }
    #[inline(always)]
    fn slot(&self, number: u32) -> Option<NonNull<SlotValue>> {
        maps::SLOTS.get_ptr_mut(number).and_then(NonNull::new)
    }
    #[inline(always)]
    fn address(&self, address: &Address) -> Option<AddressValue> {
        // SAFETY: copied at once.
        unsafe { maps::ADDRESSES.get(address) }.copied()
    }
    #[inline(always)]
    fn network(&self, address: &Address) -> Option<IdentityId> {
        maps::NETWORKS.get(&Key::new(128, address.0)).map(|v| v.identity)
    }
    #[inline(always)]
    fn class(&self, identity: IdentityId) -> Option<ClassId> {
        // SAFETY: copied at once.
        unsafe { maps::CLASSES.get(&identity.0) }.map(|v| v.class)
    }
    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<PeerValue> {
        // SAFETY: copied at once; rows are content-addressed and never rewritten with another meaning.
        unsafe { maps::PEERS.get(key) }.copied()
    }
    #[inline(always)]
    fn port(&self, key: &PortKey) -> Option<PortValue> {
        // SAFETY: as for `peer`.
        unsafe { maps::PORTS.get(key) }.copied()
    }
    #[inline(always)]
    fn range(&self, key: &RangeKey) -> Option<PortValue> {
        let mut data = [0u8; 12];
        data[..8].copy_from_slice(&key.table);
        data[8..10].copy_from_slice(&key.protocol_be);
        data[10..].copy_from_slice(&key.port_be);
        maps::RANGES.get(&Key::new(key.prefix_bits, data)).copied()
    }
    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<NonNull<FlowValue>> {
        maps::FLOWS.get_ptr_mut(key).and_then(NonNull::new)
    }
    #[inline(always)]
    fn put_flow(&self, key: &FlowKey, value: &FlowValue) -> bool {
        maps::FLOWS.insert(key, value, 0).is_ok()
    }
    #[inline(always)]
    fn recent(&self, number: u32) -> Option<NonNull<RecentValue>> {
        maps::RECENT.get_ptr_mut(number).and_then(NonNull::new)
    }
    #[inline(always)]
    fn budget(&self, workload: WorkloadId) -> Option<NonNull<BudgetValue>> {
        maps::BUDGETS.get_ptr_mut(&workload.0).and_then(NonNull::new)
    }
    #[inline(always)]
    fn denied(&self, key: &FlowKey) -> Option<NonNull<DeniedValue>> {
        maps::DENIED.get_ptr_mut(key).and_then(NonNull::new)
    }
    #[inline(always)]
    fn put_denied(&self, key: &FlowKey, value: &DeniedValue) -> bool {
        maps::DENIED.insert(key, value, 0).is_ok()
    }
    #[inline(always)]
    fn edge(&self, key: &EdgeKey) -> Option<NonNull<EdgeValue>> {
        maps::EDGES.get_ptr_mut(key).and_then(NonNull::new)
    }
    #[inline(always)]
    fn put_edge(&self, key: &EdgeKey, value: &EdgeValue) -> bool {
        maps::EDGES.insert(key, value, BPF_NOEXIST).is_ok()
    }
    #[inline(always)]
    fn overflow(&self, key: &EdgeKey) -> Option<NonNull<EdgeValue>> {
        maps::OVERFLOW.get_ptr_mut(key).and_then(NonNull::new)
    }
    #[inline(always)]
    fn put_overflow(&self, key: &EdgeKey, value: &EdgeValue) -> bool {
        maps::OVERFLOW.insert(key, value, BPF_NOEXIST).is_ok()
    }
    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        // SAFETY: copied at once.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }
    #[inline(always)]
    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        maps::FRAGMENTS.insert(key, value, 0).is_ok()
    }
    #[inline(always)]
    fn emit(&self, event: &Event) -> bool {
        // The agent polls every few milliseconds: waking it costs 200 times as much as the record.
        maps::EVENTS.output::<Event>(event, BPF_RB_NO_WAKEUP as u64).is_ok()
    }
    #[inline(always)]
    fn count_more(&self, stat: u32, more: u64) {
        if let Some(counter) = maps::STATS.get_ptr_mut(stat) {
            // SAFETY: per CPU, and bottom halves are disabled.
            unsafe { *counter += more }
        }
    }
    #[inline(always)]
    fn add(&self, counter: *mut u64, amount: u64) {
        // SAFETY: the walk passes fields of map values that are valid for the run.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount) };
    }
    #[inline(always)]
    fn swap(&self, place: *mut u64, value: u64) -> u64 {
        // SAFETY: as for `add`.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::Relaxed }>(place, value) }
    }
}
