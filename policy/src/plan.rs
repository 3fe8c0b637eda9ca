//! Ordered map operations that lead from one image to another.
//!
//! Invariant: after each operation, every endpoint gets the old image's answer or the new one's for every packet: what
//! is referred to goes in first, identities that change class take a transitional class that answers old policies with
//! the old class's rows and new policies with the new one's (`middle`), endpoints flip, and removals come last.

mod middle;

use crate::image::{EndpointImage, Image};
use middle::Middle;
use reeve_abi::address::{Address, AddressValue, NetworkKey, NetworkValue};
use reeve_abi::ids::{IdentityId, WorkloadId};
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

/// Keys that are new or have another value.
fn changed<'a, K: Ord + Copy, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, &'a V)> {
    new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, value)| (*key, value))
}

fn gone<'a, K: Ord + Copy, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl DoubleEndedIterator<Item = K> + 'a {
    old.keys().filter(|key| !new.contains_key(key)).copied()
}

/// See [`between`].
pub fn transition(old: &Image, new: &Image) -> Transition {
    let mut middle = Middle::new(old, new);
    let moves = moves(old, new, &mut middle);
    let classes = middle.class_values();
    let extra = middle.rows();
    let mut ops = Vec::new();

    // Rows that something will refer to.
    ops.extend(changed(&old.ports, &new.ports).map(|(key, value)| Op::PutPort(key, *value)));
    ops.extend(changed(&old.ranges, &new.ranges).map(|(key, value)| Op::PutRange(key, *value)));
    ops.extend(changed(&old.peers, &new.peers).map(|(key, value)| Op::PutPeer(key, *value)));
    ops.extend(changed(&old.peers, &extra).map(|(key, value)| Op::PutPeer(key, *value)));
    // Endpoints that leave a policy which others keep or join answer as before by a copy of it.
    ops.extend(gone(&old.endpoints, &new.endpoints).map(Op::DeleteEndpoint));
    for (id, endpoint) in &old.endpoints {
        let policies = middle.parting(*id, endpoint);
        if policies != endpoint.policies {
            ops.push(Op::PutEndpoint(*id, EndpointImage { policies, ..*endpoint }));
        }
    }
    // Classes of identities that nothing shows yet, then what takes them on, and only then those of identities that were
    // shown before: what has left them by now goes another way.
    ops.extend(middle.idle_classes(&classes).map(Op::DeleteClass));
    let (seen, unseen): (Vec<_>, Vec<_>) =
        changed(&old.classes, &classes).partition(|(id, _)| middle.is_shown_before(*id));
    ops.extend(unseen.iter().map(|(id, value)| Op::PutClass(*id, **value)));
    ops.extend(moves.iter().copied());
    ops.extend(seen.iter().map(|(id, value)| Op::PutClass(*id, **value)));
    // Endpoints flip. Those that keep their policies get their new revision when everything else is in place, so that no
    // flow is judged by what is leaving under a revision that is new.
    let mut last = Vec::new();
    for (id, endpoint) in changed(&old.endpoints, &new.endpoints) {
        let keeps = old.endpoints.get(&id).is_some_and(|before| before.policies == endpoint.policies);
        if keeps { &mut last } else { &mut ops }.push(Op::PutEndpoint(id, *endpoint));
    }
    // From now on only the new answers count: plain classes and identities, and away with addresses that are gone,
    // less specific prefixes first. Classes are taken away when nothing shows them.
    ops.extend(changed(&classes, &new.classes).map(|(id, value)| Op::PutClass(id, *value)));
    ops.extend(moves.iter().filter_map(|op| match op {
        Op::PutAddress(key, value) => {
            new.addresses.get(key).filter(|last| *last != value).map(|last| Op::PutAddress(*key, *last))
        }
        Op::PutNetwork(key, value) => {
            new.networks.get(key).filter(|last| *last != value).map(|last| Op::PutNetwork(*key, *last))
        }
        _ => None,
    }));
    ops.extend(gone(&old.networks, &new.networks).map(Op::DeleteNetwork));
    ops.extend(gone(&old.addresses, &new.addresses).map(Op::DeleteAddress));
    let held: BTreeSet<IdentityId> = old.classes.keys().chain(classes.keys()).copied().collect();
    let deleted: BTreeSet<IdentityId> = middle.idle_classes(&classes).collect();
    let left_over = held.iter().filter(|id| !new.classes.contains_key(id) && !deleted.contains(id));
    ops.extend(left_over.map(|id| Op::DeleteClass(*id)));
    let is_new = |op: &Op| match op {
        Op::PutAddress(key, _) => !old.addresses.contains_key(key),
        Op::PutNetwork(key, _) => !old.networks.contains_key(key),
        _ => false,
    };
    if moves.iter().any(is_new) {
        ops.push(Op::BumpAddressEpoch);
    }
    ops.extend(last);
    let rows: BTreeSet<PeerKey> = old.peers.keys().chain(extra.keys()).copied().collect();
    ops.extend(rows.into_iter().filter(|key| !new.peers.contains_key(key)).map(Op::DeletePeer));
    ops.extend(gone(&old.ports, &new.ports).map(Op::DeletePort));
    ops.extend(gone(&old.ranges, &new.ranges).map(Op::DeleteRange));
    Transition { ops, stand_ins: middle.into_stand_ins() }
}

/// What each address and prefix that changes shows while endpoints flip.
fn moves(old: &Image, new: &Image, middle: &mut Middle<'_>) -> Vec<Op> {
    let mut moves = Vec::new();
    for (address, value) in changed(&old.addresses, &new.addresses) {
        let from = old.addresses.get(&address).map_or_else(|| old.network_of(address), |value| value.identity);
        moves.push(Op::PutAddress(address, AddressValue { identity: middle.arriving(from, value.identity), ..*value }));
    }
    for address in gone(&old.addresses, &new.addresses) {
        let value = old.addresses[&address];
        let identity = middle.leaving(value.identity, new.network_of(address));
        if identity != value.identity {
            moves.push(Op::PutAddress(address, AddressValue { identity, ..value }));
        }
    }
    // More specific prefixes first: what they cover never shows a new, less specific one.
    let mut prefixes: Vec<_> = changed(&old.networks, &new.networks).collect();
    prefixes.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
    for (key, value) in prefixes {
        let from = old.networks.get(&key).map_or_else(|| around(old, &key), |value| value.identity);
        moves.push(Op::PutNetwork(key, NetworkValue { identity: middle.arriving(from, value.identity) }));
    }
    for key in gone(&old.networks, &new.networks) {
        let from = old.networks[&key].identity;
        let identity = middle.leaving(from, around(new, &key));
        if identity != from {
            moves.push(Op::PutNetwork(key, NetworkValue { identity }));
        }
    }
    moves
}

/// Identity of the most specific other prefix that contains this one.
fn around(image: &Image, key: &NetworkKey) -> IdentityId {
    match key.prefix_bits.checked_sub(1) {
        Some(bits) => image.network_within(key.address, bits),
        None => reeve_abi::ids::IDENTITY_WORLD,
    }
}
