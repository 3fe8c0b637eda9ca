//! Who owns an address.

use crate::ids::{IdentityId, WorkloadId};
use bytemuck::{Pod, Zeroable};
use core::hash::{Hash, Hasher};

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96`, in network byte order. Aligned, so that a compiler for
/// BPF copies and compares words and not bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct Address(pub [u8; 16]);

/// By words: what is derived compares byte by byte in the kernel, which is most of what a packet of a live flow costs.
impl PartialEq for Address {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.words(), other.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }
}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// Third word of a mapped IPv4 address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    /// Maps four IPv4 octets.
    #[inline]
    pub const fn v4(o: [u8; 4]) -> Self {
        Self::v4_of_word(u32::from_ne_bytes(o))
    }

    /// Maps an IPv4 address, from a word whose bytes in memory are in network byte order.
    #[inline]
    pub const fn v4_of_word(word: u32) -> Self {
        Self::of_words([0, 0, MAPPED, word])
    }

    /// From words whose bytes in memory are in network byte order.
    #[inline]
    pub const fn of_words(words: [u32; 4]) -> Self {
        // SAFETY: sixteen bytes of any value, both.
        Self(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) })
    }

    /// As words whose bytes in memory are in network byte order.
    #[inline]
    pub const fn words(&self) -> [u32; 4] {
        // SAFETY: sixteen bytes of any value, both, and aligned alike.
        unsafe { *core::ptr::from_ref(self).cast::<[u32; 4]>() }
    }

    /// Whether this is a mapped IPv4 address.
    #[inline]
    pub fn is_v4(&self) -> bool {
        let words = self.words();
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
