//! Ordered map operations that lead from one image to another.
//!
//! Invariant: after each operation, every endpoint gets the old image's answer or the new one's for every packet: what
//! is referred to goes in first, identities that change class take a transitional class that answers old policies with
//! the old class's rows and new policies with the new one's, endpoints flip, and removals come last.

use crate::image::{EndpointImage, Image};
use crate::provenance::number;
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::ids::{ClassId, IdentityId, PolicyNumber, WorkloadId};
use reeve_abi::policy::{ClassValue, PeerKey, PeerValue, PortKey, PortValue, RangeKey};
use std::collections::{BTreeMap, BTreeSet};

/// One map operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "map, key and value say it all")]
pub enum Op {
    PutPort(PortKey, PortValue),
    DeletePort(PortKey),
    PutRange(RangeKey, PortValue),
    DeleteRange(RangeKey),
    PutPeer(PeerKey, PeerValue),
    DeletePeer(PeerKey),
    PutClass(IdentityId, ClassValue),
    DeleteClass(IdentityId),
    PutNetwork(NetworkKey, NetworkValue),
    DeleteNetwork(NetworkKey),
    PutAddress(Address, AddressValue),
    DeleteAddress(Address),
    PutEndpoint(WorkloadId, EndpointImage),
    DeleteEndpoint(WorkloadId),
    BumpAddressEpoch,
}

impl Image {
    /// Does to this image what the operation does to the maps.
    pub fn execute(&mut self, op: &Op) {
        match op {
            Op::PutPort(key, value) => drop(self.ports.insert(*key, *value)),
            Op::DeletePort(key) => drop(self.ports.remove(key)),
            Op::PutRange(key, value) => drop(self.ranges.insert(*key, *value)),
            Op::DeleteRange(key) => drop(self.ranges.remove(key)),
            Op::PutPeer(key, value) => drop(self.peers.insert(*key, *value)),
            Op::DeletePeer(key) => drop(self.peers.remove(key)),
            Op::PutClass(key, value) => drop(self.classes.insert(*key, *value)),
            Op::DeleteClass(key) => drop(self.classes.remove(key)),
            Op::PutNetwork(key, value) => drop(self.networks.insert(*key, *value)),
            Op::DeleteNetwork(key) => drop(self.networks.remove(key)),
            Op::PutAddress(key, value) => drop(self.addresses.insert(*key, *value)),
            Op::DeleteAddress(key) => drop(self.addresses.remove(key)),
            Op::PutEndpoint(key, value) => drop(self.endpoints.insert(*key, *value)),
            Op::DeleteEndpoint(key) => drop(self.endpoints.remove(key)),
            Op::BumpAddressEpoch => {}
        }
    }
}

/// A plan, and the identities that exist only while it runs with those that they stand for.
#[derive(Clone, Debug, Default)]
pub struct Transition {
    /// In this order.
    pub ops: Vec<Op>,
    /// Stand-in -> identity.
    pub stand_ins: BTreeMap<IdentityId, IdentityId>,
}

/// The operations that lead from `old` to `new`.
pub fn between(old: &Image, new: &Image) -> Vec<Op> {
    transition(old, new).ops
}

fn policies(image: &Image) -> BTreeSet<PolicyNumber> {
    image.endpoints.values().flat_map(|e| e.policies).filter(|p| p.0 != 0).collect()
}

fn mix(domain: &str, numbers: &[u64]) -> u64 {
    number(domain, bytemuck::cast_slice(numbers))
}

/// Keys that are new or have another value.
fn changed<'a, K: Ord + Copy, V: PartialEq>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> impl Iterator<Item = (K, &'a V)> {
    new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, value)| (*key, value))
}

fn gone<'a, K: Ord + Copy, V>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> impl DoubleEndedIterator<Item = K> + 'a {
    old.keys().filter(|key| !new.contains_key(key)).copied()
}

/// See [`between`].
pub fn transition(old: &Image, new: &Image) -> Transition {
    let mut out = Transition::default();
    let flips = old.endpoints.len() != new.endpoints.len()
        || new.endpoints.iter().any(|(id, e)| old.endpoints.get(id).is_none_or(|o| o.policies != e.policies));
    let mut middle = Middle { old, new, flips, pairs: BTreeMap::new(), stand_ins: BTreeMap::new(), classes: BTreeMap::new() };
    for id in new.addresses.values().map(|v| v.identity).chain(new.networks.values().map(|v| v.identity)).chain(new.classes.keys().copied()) {
        let before = old.class_of(id);
        if old_uses(old, id) {
            middle.pairs.insert(id, (before, new.class_of(id)));
        }
    }
    // (ii), computed first: what each moved address and prefix shows while endpoints flip.
    let mut moves = Vec::new();
    for (address, value) in changed(&old.addresses, &new.addresses) {
        let from = old.addresses.get(&address).map_or_else(|| old.network_of(address), |v| v.identity);
        moves.push(Op::PutAddress(address, AddressValue { identity: middle.shown(from, value.identity), ..*value }));
    }
    if flips {
        for address in gone(&old.addresses, &new.addresses) {
            let value = old.addresses[&address];
            let identity = middle.shown_leaving(value.identity, new.network_of(address));
            if identity != value.identity {
                moves.push(Op::PutAddress(address, AddressValue { identity, ..value }));
            }
        }
    }
    // More specific prefixes first: what they cover never shows a new, less specific one.
    let mut prefixes: Vec<_> = changed(&old.networks, &new.networks).collect();
    prefixes.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
    for (key, value) in prefixes {
        let from = old.networks.get(&key).map_or_else(|| most_specific(old, &key), |v| v.identity);
        moves.push(Op::PutNetwork(key, NetworkValue { identity: middle.shown(from, value.identity) }));
    }
    if flips {
        for key in gone(&old.networks, &new.networks) {
            let from = old.networks[&key].identity;
            let identity = middle.shown_leaving(from, most_specific(new, &key));
            if identity != from {
                moves.push(Op::PutNetwork(key, NetworkValue { identity }));
            }
        }
    }
    let shown: Vec<(IdentityId, ClassValue)> = middle.class_values();

    // (i) rows that something will refer to.
    let extra = middle.rows();
    out.ops.extend(changed(&old.ports, &new.ports).map(|(k, v)| Op::PutPort(k, *v)));
    out.ops.extend(changed(&old.ranges, &new.ranges).map(|(k, v)| Op::PutRange(k, *v)));
    out.ops.extend(changed(&old.peers, &new.peers).map(|(k, v)| Op::PutPeer(k, *v)));
    out.ops.extend(changed(&old.peers, &extra).map(|(k, v)| Op::PutPeer(k, *v)));
    // (ii) classes, then what refers to them.
    out.ops.extend(shown.iter().filter(|(id, v)| old.classes.get(id) != Some(v)).map(|(id, v)| Op::PutClass(*id, *v)));
    out.ops.extend(moves.iter().copied());
    if new.addresses.keys().any(|a| !old.addresses.contains_key(a)) || new.networks.keys().any(|n| !old.networks.contains_key(n)) {
        out.ops.push(Op::BumpAddressEpoch);
    }
    // (iii) endpoints; one that joins a policy that others leave waits on a copy of it.
    out.ops.extend(gone(&old.endpoints, &new.endpoints).map(Op::DeleteEndpoint));
    let mut waiting = Vec::new();
    for (id, endpoint) in changed(&old.endpoints, &new.endpoints) {
        let joined = middle.joining(id, endpoint);
        if joined != endpoint.policies {
            waiting.push(Op::PutEndpoint(id, *endpoint));
        }
        out.ops.push(Op::PutEndpoint(id, EndpointImage { policies: joined, ..*endpoint }));
    }
    // Back to plain classes and identities.
    for (id, value) in &shown {
        let last = new.classes.get(id);
        if last.is_some_and(|last| last != value) {
            out.ops.extend(last.map(|last| Op::PutClass(*id, *last)));
        }
    }
    for op in &moves {
        match op {
            Op::PutAddress(key, value) => out.ops.extend(new.addresses.get(key).filter(|v| *v != value).map(|v| Op::PutAddress(*key, *v))),
            Op::PutNetwork(key, value) => out.ops.extend(new.networks.get(key).filter(|v| *v != value).map(|v| Op::PutNetwork(*key, *v))),
            _ => {}
        }
    }
    // An identity that loses its class while it stays in use must lose it before what it shows is deleted.
    let during: BTreeSet<IdentityId> = old.classes.keys().copied().chain(shown.iter().map(|(id, _)| *id)).collect();
    out.ops.extend(waiting);
    // (iv) removals, less specific prefixes first.
    out.ops.extend(gone(&old.networks, &new.networks).map(Op::DeleteNetwork));
    out.ops.extend(gone(&old.addresses, &new.addresses).map(Op::DeleteAddress));
    out.ops.extend(during.iter().filter(|id| !new.classes.contains_key(id)).map(|id| Op::DeleteClass(*id)));
    let rows: BTreeSet<PeerKey> = old.peers.keys().chain(extra.keys()).copied().collect();
    out.ops.extend(rows.into_iter().filter(|key| !new.peers.contains_key(key)).map(Op::DeletePeer));
    out.ops.extend(gone(&old.ports, &new.ports).map(Op::DeletePort));
    out.ops.extend(gone(&old.ranges, &new.ranges).map(Op::DeleteRange));
    out.stand_ins = middle.stand_ins;
    out
}

/// Identity of the most specific other prefix that contains this one.
fn most_specific(image: &Image, key: &NetworkKey) -> IdentityId {
    (0..key.prefix_bits)
        .rev()
        .find_map(|bits| {
            image.networks.get(&NetworkKey { prefix_bits: bits, address: crate::image::truncate(key.address, bits) })
        })
        .map_or(reeve_abi::ids::IDENTITY_WORLD, |value| value.identity)
}

fn old_uses(old: &Image, id: IdentityId) -> bool {
    id == reeve_abi::ids::IDENTITY_WORLD || old.classes.contains_key(&id)
}

type Pair = (ClassId, ClassId);

/// What holds between the two images.
struct Middle<'a> {
    old: &'a Image,
    new: &'a Image,
    flips: bool,
    /// Old and new class of what shows an identity.
    pairs: BTreeMap<IdentityId, Pair>,
    stand_ins: BTreeMap<IdentityId, IdentityId>,
    /// Transitional class -> the two that it joins.
    classes: BTreeMap<ClassId, Pair>,
}

impl Middle<'_> {
    fn shown(&mut self, from: IdentityId, to: IdentityId) -> IdentityId {
        let pair = (self.old.class_of(from), self.new.class_of(to));
        if !self.flips || *self.pairs.entry(to).or_insert(pair) == pair {
            return to;
        }
        self.stand_in(to, pair)
    }

    fn shown_leaving(&mut self, from: IdentityId, to: IdentityId) -> IdentityId {
        let pair = (self.old.class_of(from), self.new.class_of(to));
        if *self.pairs.entry(from).or_insert(pair) == pair { from } else { self.stand_in(from, pair) }
    }

    fn stand_in(&mut self, identity: IdentityId, pair: Pair) -> IdentityId {
        let id = IdentityId(mix("stand-in", &[identity.0, pair.0.0, pair.1.0]));
        self.stand_ins.insert(id, identity);
        self.pairs.insert(id, pair);
        id
    }

    /// The class of each identity while endpoints flip.
    fn class_values(&mut self) -> Vec<(IdentityId, ClassValue)> {
        if !self.flips {
            return self.new.classes.iter().map(|(id, value)| (*id, *value)).collect();
        }
        let mut values: BTreeMap<IdentityId, ClassValue> = self.new.classes.clone();
        for (id, pair) in &self.pairs {
            let class = if pair.0 == pair.1 { pair.0 } else { ClassId(mix("transition", &[pair.0.0, pair.1.0])) };
            if pair.0 != pair.1 {
                self.classes.insert(class, *pair);
            }
            if class.0 != 0 {
                values.insert(*id, ClassValue { class });
            }
        }
        values.into_iter().collect()
    }

    fn left(&self) -> BTreeSet<PolicyNumber> {
        self.old
            .endpoints
            .iter()
            .flat_map(|(id, old)| {
                let now = self.new.endpoints.get(id).map_or([PolicyNumber(0); 4], |e| e.policies);
                (0..4).filter(move |at| old.policies[*at] != now[*at]).map(|at| old.policies[at])
            })
            .filter(|policy| policy.0 != 0)
            .collect()
    }

    /// Policies to flip to: a copy stands in for one that other endpoints are leaving.
    fn joining(&self, id: WorkloadId, endpoint: &EndpointImage) -> [PolicyNumber; 4] {
        if self.classes.is_empty() {
            return endpoint.policies;
        }
        let left = self.left();
        let before = self.old.endpoints.get(&id).map_or([PolicyNumber(0); 4], |e| e.policies);
        std::array::from_fn(|at| {
            let policy = endpoint.policies[at];
            if policy != before[at] && left.contains(&policy) { copy(policy) } else { policy }
        })
    }

    /// Rows that exist only while the plan runs.
    fn rows(&self) -> BTreeMap<PeerKey, PeerValue> {
        let mut rows = BTreeMap::new();
        let (was, is, left) = (policies(self.old), policies(self.new), self.left());
        let mut add = |policy, class, image: &Image, from: PolicyNumber, source: ClassId| {
            if let Some(row) = image.row(from, source) {
                rows.insert(PeerKey { policy, class }, *row);
            }
        };
        for (class, (from, to)) in &self.classes {
            for policy in was.union(&is) {
                if is.contains(policy) && !left.contains(policy) {
                    add(*policy, *class, self.new, *policy, *to);
                } else {
                    add(*policy, *class, self.old, *policy, *from);
                }
            }
            for policy in is.intersection(&left) {
                add(copy(*policy), *class, self.new, *policy, *to);
            }
        }
        if !self.classes.is_empty() {
            for (key, _) in self.new.peers.iter().filter(|(key, _)| left.contains(&key.policy)) {
                add(copy(key.policy), key.class, self.new, key.policy, key.class);
            }
        }
        rows
    }
}

fn copy(policy: PolicyNumber) -> PolicyNumber {
    PolicyNumber(mix("policy copy", &[policy.0]))
}
