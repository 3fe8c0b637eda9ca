//! What a step altered in an image: the value before, for each key that has another one now.
//!
//! Invariant: with the image of now it gives the image before back, so that a plan costs what has changed, not what there
//! is.

use crate::image::{EndpointImage, Image, longest, most_specific, network_among};
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::ids::{ClassId, IDENTITY_WORLD, IdentityId, PolicyNumber, WorkloadId};
use reeve_abi::policy::{ClassValue, PeerKey, PeerValue, PortKey, PortValue, RangeKey};
use std::collections::{BTreeMap, BTreeSet};

/// Values before, by key; `None`: there was nothing.
pub(crate) type Before<K, V> = BTreeMap<K, Option<V>>;

/// See the module; by the fields of [`Image`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) endpoints: Before<WorkloadId, EndpointImage>,
    pub(crate) addresses: Before<Address, AddressValue>,
    pub(crate) networks: Before<NetworkKey, NetworkValue>,
    pub(crate) classes: Before<IdentityId, ClassValue>,
    pub(crate) peers: Before<PeerKey, PeerValue>,
    pub(crate) ports: Before<PortKey, PortValue>,
    pub(crate) ranges: Before<RangeKey, PortValue>,
}

/// Puts a value (`None`: nothing) into a map and remembers what was there at first.
pub(crate) fn set<K: Ord + Copy, V: Copy + PartialEq>(
    map: &mut BTreeMap<K, V>,
    before: &mut Before<K, V>,
    key: K,
    value: Option<V>,
) {
    let held = match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
    if held != value {
        before.entry(key).or_insert(held);
    }
}

fn prune<K: Ord, V: PartialEq>(map: &BTreeMap<K, V>, before: &mut Before<K, V>) {
    before.retain(|key, value| map.get(key) != value.as_ref());
}

fn difference<K: Ord + Copy, V: Copy + PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Before<K, V> {
    let gone = old.iter().filter(|(key, _)| !new.contains_key(key)).map(|(key, value)| (*key, Some(*value)));
    let other = new.iter().map(|(key, value)| (*key, old.get(key).copied(), *value));
    gone.chain(other.filter(|(_, old, new)| old.as_ref() != Some(new)).map(|(key, old, _)| (key, old))).collect()
}

/// Keys whose value is new or another one, with it.
pub(crate) fn put<'a, K: Ord + Copy, V: Copy>(
    map: &'a BTreeMap<K, V>,
    before: &'a Before<K, V>,
) -> impl DoubleEndedIterator<Item = (K, V)> + 'a {
    before.keys().filter_map(|key| map.get(key).map(|value| (*key, *value)))
}

/// Keys that are gone, with the value that they had.
pub(crate) fn gone<'a, K: Ord + Copy, V: Copy>(
    map: &'a BTreeMap<K, V>,
    before: &'a Before<K, V>,
) -> impl DoubleEndedIterator<Item = (K, V)> + 'a {
    before.iter().filter(|(key, _)| !map.contains_key(key)).filter_map(|(key, value)| value.map(|value| (*key, value)))
}

impl Delta {
    /// What leads from one image to the other.
    pub(crate) fn between(old: &Image, new: &Image) -> Self {
        Self {
            endpoints: difference(&old.endpoints, &new.endpoints),
            addresses: difference(&old.addresses, &new.addresses),
            networks: difference(&old.networks, &new.networks),
            classes: difference(&old.classes, &new.classes),
            peers: difference(&old.peers, &new.peers),
            ports: difference(&old.ports, &new.ports),
            ranges: difference(&old.ranges, &new.ranges),
        }
    }

    /// The image before.
    pub(crate) fn undone(&self, now: &Image) -> Image {
        fn undo<K: Ord + Copy, V: Copy>(map: &mut BTreeMap<K, V>, before: &Before<K, V>) {
            for (key, value) in before {
                match value {
                    Some(value) => map.insert(*key, *value),
                    None => map.remove(key),
                };
            }
        }
        let mut image = now.clone();
        undo(&mut image.endpoints, &self.endpoints);
        undo(&mut image.addresses, &self.addresses);
        undo(&mut image.networks, &self.networks);
        undo(&mut image.classes, &self.classes);
        undo(&mut image.peers, &self.peers);
        undo(&mut image.ports, &self.ports);
        undo(&mut image.ranges, &self.ranges);
        image
    }

    /// Forgets keys that have come back to the value before.
    pub(crate) fn settle(&mut self, now: &Image) {
        prune(&now.endpoints, &mut self.endpoints);
        prune(&now.addresses, &mut self.addresses);
        prune(&now.networks, &mut self.networks);
        prune(&now.classes, &mut self.classes);
        prune(&now.peers, &mut self.peers);
        prune(&now.ports, &mut self.ports);
        prune(&now.ranges, &mut self.ranges);
    }
}

/// The image before.
pub(crate) struct Past<'a> {
    now: &'a Image,
    delta: &'a Delta,
}

fn then<K: Ord, V: Copy>(now: &BTreeMap<K, V>, before: &Before<K, V>, key: &K) -> Option<V> {
    before.get(key).copied().unwrap_or_else(|| now.get(key).copied())
}

impl<'a> Past<'a> {
    /// The image that `delta` led to `now` from.
    pub(crate) fn new(now: &'a Image, delta: &'a Delta) -> Self {
        Self { now, delta }
    }

    pub(crate) fn endpoint(&self, id: WorkloadId) -> Option<EndpointImage> {
        then(&self.now.endpoints, &self.delta.endpoints, &id)
    }

    pub(crate) fn class_of(&self, identity: IdentityId) -> ClassId {
        then(&self.now.classes, &self.delta.classes, &identity).map_or(ClassId(0), |value| value.class)
    }

    pub(crate) fn has_class(&self, identity: IdentityId) -> bool {
        then(&self.now.classes, &self.delta.classes, &identity).is_some()
    }

    pub(crate) fn own_row(&self, policy: PolicyNumber, class: ClassId) -> Option<PeerValue> {
        then(&self.now.peers, &self.delta.peers, &PeerKey { policy, class })
    }

    pub(crate) fn row(&self, policy: PolicyNumber, class: ClassId) -> Option<PeerValue> {
        self.own_row(policy, class).or_else(|| self.own_row(policy, ClassId(0)))
    }

    /// All rows of a policy.
    pub(crate) fn rows(&self, policy: PolicyNumber) -> BTreeMap<PeerKey, PeerValue> {
        let range = PeerKey { policy, class: ClassId(0) }..=PeerKey { policy, class: ClassId(u64::MAX) };
        let mut rows: BTreeMap<_, _> = self.now.peers.range(range.clone()).map(|(key, value)| (*key, *value)).collect();
        for (key, value) in self.delta.peers.range(range) {
            match value {
                Some(value) => rows.insert(*key, *value),
                None => rows.remove(key),
            };
        }
        rows
    }

    pub(crate) fn network(&self, key: &NetworkKey) -> Option<NetworkValue> {
        then(&self.now.networks, &self.delta.networks, key)
    }

    pub(crate) fn network_of(&self, address: Address) -> IdentityId {
        self.network_within(address, 128)
    }

    /// Identity of the most specific prefix around this one.
    pub(crate) fn around(&self, key: &NetworkKey) -> IdentityId {
        key.prefix_bits.checked_sub(1).map_or(IDENTITY_WORLD, |bits| self.network_within(key.address, bits))
    }

    /// Identity of an address by the most specific prefix of at most so many bits.
    fn network_within(&self, address: Address, bits: u32) -> IdentityId {
        let longest = |bits| longest(&self.now.networks, bits).max(longest(&self.delta.networks, bits));
        most_specific(address, bits, longest, |key| self.network(key))
    }

    /// Policies of all its endpoints.
    pub(crate) fn policies(&self) -> BTreeSet<PolicyNumber> {
        let lasting = self.now.endpoints.iter().filter(|(id, _)| !self.delta.endpoints.contains_key(id));
        let endpoints = lasting.map(|(_, endpoint)| endpoint).chain(self.delta.endpoints.values().flatten());
        endpoints.flat_map(|endpoint| endpoint.policies).filter(|policy| policy.0 != 0).collect()
    }
}

/// Identity of the most specific other prefix that contains this one.
pub(crate) fn around(networks: &BTreeMap<NetworkKey, NetworkValue>, key: &NetworkKey) -> IdentityId {
    match key.prefix_bits.checked_sub(1) {
        Some(bits) => network_among(networks, key.address, bits),
        None => IDENTITY_WORLD,
    }
}
