//! Settings that the programs read at run time.

use bytemuck::{Pod, Zeroable};

/// Map `CONFIG` (array of one): value. Written by the agent.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Config {
    /// `crate::ABI_VERSION` of the writer.
    pub abi_version: u32,
    /// Bank of `EDGES` that is written now: 0 or 1.
    pub edges_bank: u32,
    /// Rises with each address that becomes known; a flow whose peer was unknown is judged again when it has changed.
    pub address_epoch: u64,
    /// Idle time after which an established TCP flow ends, in ns.
    pub tcp_established_ns: u64,
    /// Idle time for a TCP flow that is opening, in ns.
    pub tcp_opening_ns: u64,
    /// Idle time for a TCP flow after FIN or RST, in ns.
    pub tcp_closing_ns: u64,
    /// Idle time for UDP answered from both sides, in ns.
    pub udp_ns: u64,
    /// Idle time for UDP seen in one direction only, in ns.
    pub udp_opening_ns: u64,
    /// Idle time for ICMP queries, in ns.
    pub icmp_ns: u64,
    /// Idle time for other protocols, in ns.
    pub other_ns: u64,
    /// Least time between two records of the same denied tuple, in ns.
    pub deny_report_ns: u64,
    /// Least time between two flushes of an active flow's counters into `EDGES`, in ns.
    pub flush_ns: u64,
    /// 1 while programs of two generations are attached, each with a flow table of its own: a flow that has no entry is
    /// let through if either orientation is allowed.
    pub mixed_generations: u64,
    /// Lowest of the bits of `skb->mark` that are used, as a bit number; see `crate::mark`.
    pub mark_shift: u32,
    /// Slots that each CPU writes in turn, a power of two.
    pub slots_per_cpu: u32,
    /// `CONFIG_*` bits.
    pub flags: u32,
    /// Unused, zero.
    pub reserved: u32,
}

/// Nothing keeps a pending packet from leaving by a device without program: egress is judged by the destination that
/// the pod shows as well.
pub const CONFIG_UNGUARDED: u32 = 1;

impl Config {
    /// Defaults: the kernel's own connection tracking timeouts, an established TCP flow excepted (one day).
    pub const DEFAULT: Self = Self {
        abi_version: crate::ABI_VERSION,
        edges_bank: 0,
        address_epoch: 1,
        tcp_established_ns: 86_400 * SECOND_NS,
        tcp_opening_ns: 60 * SECOND_NS,
        tcp_closing_ns: 10 * SECOND_NS,
        udp_ns: 120 * SECOND_NS,
        udp_opening_ns: 30 * SECOND_NS,
        icmp_ns: 30 * SECOND_NS,
        other_ns: 600 * SECOND_NS,
        deny_report_ns: SECOND_NS,
        flush_ns: SECOND_NS,
        mixed_generations: 0,
        mark_shift: crate::mark::DEFAULT_SHIFT,
        slots_per_cpu: 64,
        flags: 0,
        reserved: 0,
    };
}

/// One second in nanoseconds.
pub const SECOND_NS: u64 = 1_000_000_000;

crate::pin_size!(Config = 112);
