//! Ordered map operations that lead from one image to another.
//!
//! Invariant: after each operation, every endpoint gets the old image's answer or the new one's for every packet: what
//! is referred to goes in first, identities that change class take a transitional class that answers old policies with
//! the old class's rows and new policies with the new one's (`middle`), endpoints flip, and removals come last.

mod middle;

use crate::delta::{self, Delta, Past, around};
use crate::image::{EndpointImage, Image};
use middle::Middle;
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::ids::{IdentityId, WorkloadId};
use reeve_abi::policy::{ClassValue, PeerKey, PeerValue, PortKey, PortValue, RangeKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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

/// How many addresses and prefixes show an identity.
pub(crate) type Shows = HashMap<IdentityId, usize>;

/// The operations that lead from `old`, which may be the remains of a plan that was cut short, to `new`.
pub fn between(old: &Image, new: &Image) -> Vec<Op> {
    let addresses = new.addresses.values().map(|value| value.identity);
    let mut shows = Shows::new();
    for identity in addresses.chain(new.networks.values().map(|value| value.identity)) {
        *shows.entry(identity).or_default() += 1;
    }
    transition(new, &Delta::between(old, new), &shows, &numbers(old)).ops
}

/// Numbers that a plan which was cut short may have made up.
pub(crate) fn numbers(image: &Image) -> BTreeSet<u64> {
    let classes = image.classes.iter().flat_map(|(id, value)| [id.0, value.class.0]);
    let peers = image.peers.keys().flat_map(|key| [key.policy.0, key.class.0]);
    let addresses = image.addresses.values().map(|value| value.identity.0);
    classes.chain(peers).chain(addresses).chain(image.networks.values().map(|value| value.identity.0)).collect()
}

/// The operations that `delta` is done by; `shows` is of the new image, and made-up numbers are none of `taken`.
pub(crate) fn transition(new: &Image, delta: &Delta, shows: &Shows, taken: &BTreeSet<u64>) -> Transition {
    let old = Past::new(new, delta);
    let mut middle = Middle::new(&old, new, delta, shows, taken);
    let moves = moves(&old, new, delta, &mut middle);
    let classes = middle.classes(delta);
    let extra = middle.rows();
    let mut ops = Vec::new();

    // Rows that something will refer to.
    ops.extend(delta::put(&new.ports, &delta.ports).map(|(key, value)| Op::PutPort(key, value)));
    ops.extend(delta::put(&new.ranges, &delta.ranges).map(|(key, value)| Op::PutRange(key, value)));
    ops.extend(delta::put(&new.peers, &delta.peers).map(|(key, value)| Op::PutPeer(key, value)));
    let missing = extra.iter().filter(|(key, value)| old.own_row(key.policy, key.class) != Some(**value));
    ops.extend(missing.map(|(key, value)| Op::PutPeer(*key, *value)));
    // Endpoints that leave a policy which others keep or join answer as before by a copy of it.
    ops.extend(delta::gone(&new.endpoints, &delta.endpoints).map(|(id, _)| Op::DeleteEndpoint(id)));
    for (id, before) in &delta.endpoints {
        let Some(before) = before else { continue };
        let policies = middle.parting(*id, before);
        if policies != before.policies {
            ops.push(Op::PutEndpoint(*id, EndpointImage { policies, ..*before }));
        }
    }
    // Classes of identities that nothing shows yet, then what takes them on, and only then those of identities that were
    // shown before: what has left them by now goes another way.
    let class = |id: &IdentityId, value: &Option<ClassValue>| match value {
        Some(value) => Op::PutClass(*id, *value),
        None => Op::DeleteClass(*id),
    };
    let (seen, unseen): (Vec<_>, Vec<_>) = classes.iter().partition(|(id, _)| middle.was_shown(**id));
    ops.extend(unseen.into_iter().map(|(id, value)| class(id, value)));
    ops.extend(moves.iter().copied());
    ops.extend(seen.into_iter().map(|(id, value)| class(id, value)));
    // Endpoints flip. Those that keep their policies get their new revision when everything else is in place, so that no
    // flow is judged by what is leaving under a revision that is new.
    let mut last = Vec::new();
    for (id, endpoint) in delta::put(&new.endpoints, &delta.endpoints) {
        let keeps = old.endpoint(id).is_some_and(|before| before.policies == endpoint.policies);
        if keeps { &mut last } else { &mut ops }.push(Op::PutEndpoint(id, endpoint));
    }
    // From now on only the new answers count: plain classes and identities, and away with addresses that are gone,
    // less specific prefixes first.
    let shown = |id: &IdentityId| -> Option<ClassValue> {
        let before = || Some(ClassValue { class: old.class_of(*id) }).filter(|_| old.has_class(*id));
        classes.get(id).copied().unwrap_or_else(before)
    };
    let all: BTreeSet<IdentityId> = classes.keys().chain(delta.classes.keys()).copied().collect();
    let plain = all.iter().filter_map(|id| new.classes.get(id).map(|value| (*id, *value)));
    ops.extend(plain.filter(|(id, value)| shown(id) != Some(*value)).map(|(id, value)| Op::PutClass(id, value)));
    ops.extend(moves.iter().filter_map(|op| match op {
        Op::PutAddress(key, value) => {
            new.addresses.get(key).filter(|last| *last != value).map(|last| Op::PutAddress(*key, *last))
        }
        Op::PutNetwork(key, value) => {
            new.networks.get(key).filter(|last| *last != value).map(|last| Op::PutNetwork(*key, *last))
        }
        _ => None,
    }));
    ops.extend(delta::gone(&new.networks, &delta.networks).map(|(key, _)| Op::DeleteNetwork(key)));
    ops.extend(delta::gone(&new.addresses, &delta.addresses).map(|(key, _)| Op::DeleteAddress(key)));
    let fresh = delta::put(&new.addresses, &delta.addresses).any(|(key, _)| delta.addresses[&key].is_none())
        || delta::put(&new.networks, &delta.networks).any(|(key, _)| delta.networks[&key].is_none());
    if fresh {
        ops.push(Op::BumpAddressEpoch);
    }
    ops.extend(last);
    // What nothing refers to any more stands at the end, where whoever carries the plan out need not wait for it.
    let left_over = all.iter().filter(|id| !new.classes.contains_key(id) && shown(id).is_some());
    ops.extend(left_over.map(|id| Op::DeleteClass(*id)));
    let left = delta::gone(&new.peers, &delta.peers).map(|(key, _)| key);
    let rows: BTreeSet<PeerKey> = left.chain(extra.keys().copied()).collect();
    ops.extend(rows.into_iter().filter(|key| !new.peers.contains_key(key)).map(Op::DeletePeer));
    ops.extend(delta::gone(&new.ports, &delta.ports).map(|(key, _)| Op::DeletePort(key)));
    ops.extend(delta::gone(&new.ranges, &delta.ranges).map(|(key, _)| Op::DeleteRange(key)));
    Transition { ops, stand_ins: middle.into_stand_ins() }
}

/// What each address and prefix that changes shows while endpoints flip.
fn moves(old: &Past<'_>, new: &Image, delta: &Delta, middle: &mut Middle<'_>) -> Vec<Op> {
    let mut moves = Vec::new();
    for (address, value) in delta::put(&new.addresses, &delta.addresses) {
        let from = delta.addresses[&address].map_or_else(|| old.network_of(address), |value| value.identity);
        moves.push(Op::PutAddress(address, AddressValue { identity: middle.arriving(from, value.identity), ..value }));
    }
    for (address, value) in delta::gone(&new.addresses, &delta.addresses) {
        let identity = middle.leaving(value.identity, new.network_of(address));
        if identity != value.identity {
            moves.push(Op::PutAddress(address, AddressValue { identity, ..value }));
        }
    }
    // More specific prefixes first: what they cover never shows a new, less specific one.
    for (key, value) in delta::put(&new.networks, &delta.networks).rev() {
        let from = old.network(&key).map_or_else(|| old.around(&key), |value| value.identity);
        moves.push(Op::PutNetwork(key, NetworkValue { identity: middle.arriving(from, value.identity) }));
    }
    for (key, NetworkValue { identity: from }) in delta::gone(&new.networks, &delta.networks) {
        let identity = middle.leaving(from, around(&new.networks, &key));
        if identity != from {
            moves.push(Op::PutNetwork(key, NetworkValue { identity }));
        }
    }
    moves
}
