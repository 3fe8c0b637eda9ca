//! Compiled policy: identity -> class, (policy, class) -> decision or port table, (table, protocol, port) -> decision.
//!
//! Look-up order: `CLASSES[identity]` (missing: class 0), `PEERS[policy, class]` (missing: `PEERS[policy, 0]`), and with
//! [`PEER_TABLE`] set: `PORTS[table, protocol, port]`, then `RANGES`, then `PORTS[table, protocol, ANY_PORT]`, then the
//! row's own decision.

use crate::ids::{ClassId, DecisionId, PolicyNumber, TableId};
use bytemuck::{Pod, Zeroable};

/// Map `CLASSES`: value (the key is an `IdentityId`).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ClassValue {
    /// The class.
    pub class: ClassId,
}

/// Map `PEERS`: key.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PeerKey {
    /// The subject's policy in the direction and family at hand.
    pub policy: PolicyNumber,
    /// The peer's class; 0 is the policy's default row, which always exists.
    pub class: ClassId,
}

/// Map `PEERS`: value.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PeerValue {
    /// Decision where no port row says otherwise.
    pub decision: DecisionId,
    /// Port table, 0 without [`PEER_TABLE`].
    pub table: TableId,
    /// Verdict of `decision`: one of the `VERDICT_*` constants.
    pub verdict: u32,
    /// `PEER_*` bits.
    pub flags: u32,
}

/// Ports matter: the table has rows.
pub const PEER_TABLE: u32 = 1;
/// The table has rows in `RANGES`.
pub const PEER_RANGES: u32 = 2;

/// Map `PORTS`: key.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PortKey {
    /// The table.
    pub table: TableId,
    /// IP protocol number.
    pub protocol: u32,
    /// Destination port in host byte order, ICMP type << 8 | code, or [`ANY_PORT`].
    pub port: u32,
}

/// Stands for every port (or ICMP type and code) of a protocol that has no row of its own.
pub const ANY_PORT: u32 = 1 << 16;

/// Maps `PORTS` and `RANGES`: value.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PortValue {
    /// Decision.
    pub decision: DecisionId,
    /// Its verdict.
    pub verdict: u32,
    /// Unused, zero.
    pub reserved: u32,
}

/// Map `RANGES` (LPM trie): key. Prefixes of one table never overlap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct RangeKey {
    /// 80 + the number of leading port bits that count.
    pub prefix_bits: u32,
    /// The table, in native byte order.
    pub table: [u8; 8],
    /// IP protocol number in network byte order.
    pub protocol_be: [u8; 2],
    /// Port in network byte order, bits beyond the prefix zero.
    pub port_be: [u8; 2],
}

/// Prefix length of a [`RangeKey`] that covers the whole table and protocol, in bits.
pub const RANGE_BASE_BITS: u32 = 80;

/// Let through.
pub const VERDICT_ALLOW: u32 = 1;
/// Dropped.
pub const VERDICT_DENY: u32 = 2;

crate::pin_size!(ClassValue = 8, PeerKey = 16, PeerValue = 24, PortKey = 16, PortValue = 16, RangeKey = 16);
