//! Everything that the kernel's maps should hold, and what a look-up in it answers.

use crate::model::{Direction, Family};
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::decision;
use reeve_abi::endpoint::policy_index;
use reeve_abi::ids::{
    ClassId, DecisionId, FIRST_HASHED, IDENTITY_WORLD, IdentityId, PolicyNumber, Revision, WorkloadId,
};
use reeve_abi::policy::{
    ANY_PORT, ClassValue, PEER_RANGES, PEER_TABLE, PeerKey, PeerValue, PortKey, PortValue, RANGE_BASE_BITS, RangeKey,
};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One workload's interface on this node; the agent adds the interface's index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "plain data")]
pub struct EndpointImage {
    /// Its identity.
    pub identity: IdentityId,
    /// Policy by `abi::endpoint::policy_index`.
    pub policies: [PolicyNumber; 4],
    /// Its IPv4 address, mapped, zero if none.
    pub address_v4: Address,
    /// Its IPv6 address, zero if none.
    pub address_v6: Address,
    /// Revision that last changed its policies or the meaning of an address in use.
    pub revision: Revision,
    /// Judge by policy.
    pub ready: bool,
    /// An address could not be stored: a look-up that misses is denied where a policy selects it.
    pub incomplete: bool,
    /// Whether others claim its address of a family (IPv4, IPv6) too: nothing of that family passes.
    pub contested: [bool; 2],
}

/// The maps' content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// By workload.
    pub endpoints: BTreeMap<WorkloadId, EndpointImage>,
    /// Exact addresses; `device` and `bridge` are 0 here, the agent fills them in.
    pub addresses: BTreeMap<Address, AddressValue>,
    /// Prefixes that some policy names.
    pub networks: BTreeMap<NetworkKey, NetworkValue>,
    /// Identities of a class other than 0.
    pub classes: BTreeMap<IdentityId, ClassValue>,
    /// Rows of policies.
    pub peers: BTreeMap<PeerKey, PeerValue>,
    /// Single ports.
    pub ports: BTreeMap<PortKey, PortValue>,
    /// Ranges of ports.
    pub ranges: BTreeMap<RangeKey, PortValue>,
}

/// The mapped form of an address.
pub fn mapped(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::v4(v4.octets()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}

impl Image {
    /// What the kernel decides for a packet of `subject` with this peer, walking the maps as it does.
    /// `port` is the destination port, or ICMP type << 8 | code, or 0. `None`: no such endpoint.
    pub fn lookup(
        &self,
        subject: WorkloadId,
        direction: Direction,
        family: Family,
        peer: Address,
        protocol: u8,
        port: u16,
    ) -> Option<DecisionId> {
        let endpoint = self.endpoints.get(&subject)?;
        if endpoint.contested[usize::from(family == Family::V6)] {
            return Some(decision::CONTESTED_ADDRESS);
        }
        if !endpoint.ready {
            return Some(decision::NOT_READY);
        }
        let policy = endpoint.policies[position(direction, family)];
        if policy.0 == 0 {
            return Some(decision::NO_POLICY_SELECTS);
        }
        let identity = match self.addresses.get(&peer) {
            Some(value) => value.identity,
            None if endpoint.incomplete => return Some(decision::ADDRESSES_INCOMPLETE),
            None => self.network_of(peer),
        };
        Some(self.judge(policy, self.class_of(identity), protocol, port))
    }

    /// What the kernel decides where a pod reaches itself through a Service, and all that isolates it is left out.
    pub fn lookup_to_itself(
        &self,
        subject: WorkloadId,
        direction: Direction,
        family: Family,
        protocol: u8,
        port: u16,
    ) -> Option<DecisionId> {
        let endpoint = self.endpoints.get(&subject)?;
        let own = if family == Family::V4 { endpoint.address_v4 } else { endpoint.address_v6 };
        let found = self.lookup(subject, direction, family, own, protocol, port)?;
        let allows = found.0 < FIRST_HASHED && found < decision::MALFORMED_PACKET;
        Some(if !allows && decision::holds_to_itself(found) { found } else { decision::SELF })
    }

    /// Identity of an address by the most specific stored prefix.
    pub fn network_of(&self, address: Address) -> IdentityId {
        network_among(&self.networks, address, 128)
    }

    /// Class of an identity.
    pub fn class_of(&self, identity: IdentityId) -> ClassId {
        self.classes.get(&identity).map_or(ClassId(0), |value| value.class)
    }

    /// The row that holds for a policy and a class.
    pub fn row(&self, policy: PolicyNumber, class: ClassId) -> Option<&PeerValue> {
        self.peers.get(&PeerKey { policy, class }).or_else(|| self.peers.get(&PeerKey { policy, class: ClassId(0) }))
    }

    fn judge(&self, policy: PolicyNumber, class: ClassId, protocol: u8, port: u16) -> DecisionId {
        let Some(row) = self.row(policy, class) else { return decision::INCONSISTENT_STATE };
        if row.flags & PEER_TABLE == 0 {
            return row.decision;
        }
        let key = |port: u32| PortKey { table: row.table, protocol: u32::from(protocol), port };
        if let Some(value) = self.ports.get(&key(u32::from(port))) {
            return value.decision;
        }
        if row.flags & PEER_RANGES != 0 {
            let found =
                (0..=16_u32).rev().find_map(|bits| self.ranges.get(&range_key(row.table.0, protocol, port, bits)));
            if let Some(value) = found {
                return value.decision;
            }
        }
        self.ports.get(&key(ANY_PORT)).map_or(row.decision, |value| value.decision)
    }

    /// The image without what depends on history (revisions) or on this machine (devices).
    #[must_use]
    pub fn canonical(&self) -> Self {
        let mut image = self.clone();
        for endpoint in image.endpoints.values_mut() {
            endpoint.revision = Revision(0);
        }
        for address in image.addresses.values_mut() {
            address.device = 0;
            address.bridge = 0;
        }
        image
    }
}

/// Identity of an address by the most specific of these prefixes that has at most so many bits.
pub(crate) fn network_among(networks: &BTreeMap<NetworkKey, NetworkValue>, address: Address, bits: u32) -> IdentityId {
    most_specific(address, bits, |bits| longest(networks, bits), |key| networks.get(key).copied())
}

/// The same for prefixes that are looked up by these: the longest length in use up to one, and a prefix's value.
pub(crate) fn most_specific(
    address: Address,
    mut bits: u32,
    longest: impl Fn(u32) -> Option<u32>,
    value: impl Fn(&NetworkKey) -> Option<NetworkValue>,
) -> IdentityId {
    // From one length in use to the next shorter one.
    while let Some(length) = longest(bits) {
        let key = NetworkKey { prefix_bits: length, address: truncate(address, length) };
        if let Some(value) = value(&key) {
            return value.identity;
        }
        match length.checked_sub(1) {
            Some(shorter) => bits = shorter,
            None => break,
        }
    }
    IDENTITY_WORLD
}

/// The longest length of these prefixes, up to so many bits.
pub(crate) fn longest<V>(networks: &BTreeMap<NetworkKey, V>, bits: u32) -> Option<u32> {
    let last = NetworkKey { prefix_bits: bits, address: Address([0xff; 16]) };
    networks.range(..=last).next_back().map(|(key, _)| key.prefix_bits)
}

/// Key of the range of ports that share the first `bits` bits with `port`.
pub fn range_key(table: u64, protocol: u8, port: u16, bits: u32) -> RangeKey {
    let mask = if bits == 0 { 0 } else { u16::MAX << (16 - bits) };
    RangeKey {
        prefix_bits: RANGE_BASE_BITS + bits,
        table: table.to_ne_bytes(),
        protocol_be: u16::from(protocol).to_be_bytes(),
        port_be: (port & mask).to_be_bytes(),
    }
}

/// Position of a direction and family in [`EndpointImage::policies`].
pub fn position(direction: Direction, family: Family) -> usize {
    policy_index(u32::from(direction == Direction::Egress), u32::from(family == Family::V6))
}

/// The first `bits` bits of an address.
pub(crate) fn truncate(address: Address, bits: u32) -> Address {
    let value = u128::from_be_bytes(address.0);
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
    Address((value & mask).to_be_bytes())
}
