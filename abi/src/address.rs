//! Who owns an address.

use crate::ids::{IdentityId, WorkloadId};
use bytemuck::{Pod, Zeroable};

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96`, in network byte order. Aligned, so that a compiler for
/// BPF copies and compares words and not bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Address(pub [u8; 16]);

/// Third word of a mapped IPv4 address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    /// Maps four IPv4 octets.
    #[inline]
    pub const fn v4(o: [u8; 4]) -> Self {
        Self::of_words([0, 0, MAPPED, u32::from_ne_bytes(o)])
    }

    /// From words whose bytes in memory are in network byte order.
    #[inline]
    pub const fn of_words(words: [u32; 4]) -> Self {
        // SAFETY: sixteen bytes of any value, both.
        Self(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) })
    }

    /// Whether this is a mapped IPv4 address.
    #[inline]
    pub fn is_v4(&self) -> bool {
        let words: [u32; 4] = bytemuck::cast(self.0);
        words[0] == 0 && words[1] == 0 && words[2] == MAPPED
    }
}

/// Map `ADDRESSES`: exact address -> owner. Written by the agent's reconciler.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AddressValue {
    /// Identity of the owner as a peer at this address (it includes the policy-named CIDRs that contain the address).
    pub identity: IdentityId,
    /// The owning pod; 0 for nodes and contested addresses.
    pub workload: WorkloadId,
    /// One of the `OWNER_*` constants.
    pub owner: u32,
    /// For a pod of this node: interface index of its endpoint, 0 until it is known.
    pub device: u32,
    /// For a pod of this node behind a bridge: interface index of the bridge, else 0.
    pub bridge: u32,
    /// Unused, zero.
    pub reserved: u32,
}

/// A pod of this node.
pub const OWNER_LOCAL_POD: u32 = 1;
/// A pod of another node.
pub const OWNER_REMOTE_POD: u32 = 2;
/// This node.
pub const OWNER_HOST: u32 = 3;
/// Another node.
pub const OWNER_NODE: u32 = 4;
/// Several pods claim it.
pub const OWNER_CONTESTED: u32 = 5;

/// Map `NETWORKS` (LPM trie): key. Only prefixes that some policy names; asked after `ADDRESSES` misses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct NetworkKey {
    /// Prefix length in bits of the mapped form: 96 + n for IPv4.
    pub prefix_bits: u32,
    /// The network's address, host bits zero.
    pub address: Address,
}

/// Map `NETWORKS`: value.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct NetworkValue {
    /// Identity of addresses whose most specific named prefix this is.
    pub identity: IdentityId,
}

crate::pin_size!(AddressValue = 32, NetworkKey = 20, NetworkValue = 8);
