//! What holds between two images while endpoints flip from the one's policies to the other's.
//!
//! A class belongs to the policies that it was made for, so an identity whose class changes takes a transitional one,
//! made of the old and the new class: its rows are the old class's for policies that end and the new class's for the
//! others. Endpoints that leave a policy which goes on wait on a copy of it. An identity that would need two classes at
//! once is shown by a stand-in where it must differ.

use crate::image::{EndpointImage, Image};
use crate::provenance::number;
use reeve_abi::ids::{ClassId, IDENTITY_WORLD, IdentityId, PolicyNumber, WorkloadId};
use reeve_abi::policy::{ClassValue, PeerKey, PeerValue};
use std::collections::{BTreeMap, BTreeSet};

/// Old and new class of an address or prefix.
type Pair = (ClassId, ClassId);

pub(super) struct Middle<'a> {
    old: &'a Image,
    new: &'a Image,
    /// Whether anything is needed between the images: otherwise each operation leads from the old to the new by itself.
    needed: bool,
    /// What all that shows an identity goes through.
    pairs: BTreeMap<IdentityId, Pair>,
    stand_ins: BTreeMap<IdentityId, IdentityId>,
    /// What addresses and prefixes of the old image show.
    shown_before: BTreeSet<IdentityId>,
    /// Transitional class -> the two that it joins.
    classes: BTreeMap<ClassId, Pair>,
    /// Policies that some endpoint leaves.
    left: BTreeSet<PolicyNumber>,
    /// Policies of the new image.
    is: BTreeSet<PolicyNumber>,
    /// Numbers of the old image, whose transition may itself have been cut short.
    taken: BTreeSet<u64>,
}

impl<'a> Middle<'a> {
    pub(super) fn new(old: &'a Image, new: &'a Image) -> Self {
        // An address that neither map knows shows the world.
        let used = |image: &Image| -> BTreeSet<IdentityId> {
            let addresses = image.addresses.values().map(|value| value.identity);
            let networks = image.networks.values().map(|value| value.identity);
            addresses.chain(networks).chain([IDENTITY_WORLD]).collect()
        };
        // An identity that has a class in the new image must not go on showing another one's until a deletion, even if no
        // address shows it any more.
        let lasts: BTreeSet<IdentityId> = used(new).into_iter().chain(new.classes.keys().copied()).collect();
        let shown_before = used(old);
        let stays: BTreeMap<IdentityId, Pair> = shown_before
            .iter()
            .filter(|id| lasts.contains(id))
            .map(|id| (*id, (old.class_of(*id), new.class_of(*id))))
            .collect();
        let policies = |image: &Image, id| image.endpoints.get(id).map(|endpoint: &EndpointImage| endpoint.policies);
        let needed = old.endpoints.keys().chain(new.endpoints.keys()).any(|id| policies(old, id) != policies(new, id))
            || stays.values().any(|(before, after)| before != after);
        let taken = old.classes.iter().flat_map(|(id, value)| [id.0, value.class.0]);
        let taken = taken.chain(old.peers.keys().flat_map(|key| [key.policy.0, key.class.0]));
        let mut left = BTreeSet::new();
        for (id, endpoint) in &old.endpoints {
            let after = policies(new, id).unwrap_or_default();
            left.extend((0..4).filter(|at| endpoint.policies[*at] != after[*at]).map(|at| endpoint.policies[at]));
        }
        left.remove(&PolicyNumber(0));
        Self {
            old,
            new,
            needed,
            pairs: stays,
            shown_before,
            stand_ins: BTreeMap::new(),
            classes: BTreeMap::new(),
            left,
            is: policies_of(new),
            taken: taken.chain(old.addresses.values().map(|value| value.identity.0)).collect(),
        }
    }

    /// Whether something shows this identity in the old image.
    pub(super) fn is_shown_before(&self, id: IdentityId) -> bool {
        self.shown_before.contains(&id)
    }

    /// What shows `from` and will show `to` shows this in between, from now on.
    pub(super) fn arriving(&mut self, from: IdentityId, to: IdentityId) -> IdentityId {
        self.shown(from, to, to)
    }

    /// What shows `from` until it is deleted, and shows `to` by that.
    pub(super) fn leaving(&mut self, from: IdentityId, to: IdentityId) -> IdentityId {
        self.shown(from, to, from)
    }

    fn shown(&mut self, from: IdentityId, to: IdentityId, wanted: IdentityId) -> IdentityId {
        let pair = (self.old.class_of(from), self.new.class_of(to));
        if !self.needed || *self.pairs.entry(wanted).or_insert(pair) == pair {
            return wanted;
        }
        let id = IdentityId(self.fresh("stand-in", &[wanted.0, pair.0.0, pair.1.0]));
        self.stand_ins.insert(id, wanted);
        self.pairs.insert(id, pair);
        id
    }

    /// A number that the old image does not use.
    fn fresh(&self, domain: &str, content: &[u64]) -> u64 {
        let mut content = content.to_vec();
        loop {
            let value = number(domain, bytemuck::cast_slice(&content));
            if !self.taken.contains(&value) {
                return value;
            }
            content.push(0);
        }
    }

    /// The class of each identity while endpoints flip.
    pub(super) fn class_values(&mut self) -> BTreeMap<IdentityId, ClassValue> {
        let mut values = self.new.classes.clone();
        if !self.needed {
            return values;
        }
        for (id, pair) in &self.pairs {
            let class =
                if pair.0 == pair.1 { pair.0 } else { ClassId(self.fresh("transition", &[pair.0.0, pair.1.0])) };
            if pair.0 != pair.1 {
                self.classes.insert(class, *pair);
            }
            if class.0 == 0 {
                values.remove(id);
            } else {
                values.insert(*id, ClassValue { class });
            }
        }
        values
    }

    /// Identities that nothing shows now, but something will, without a class.
    pub(super) fn idle_classes(&self, values: &BTreeMap<IdentityId, ClassValue>) -> impl Iterator<Item = IdentityId> {
        let idle = self.pairs.iter().filter(|(id, pair)| {
            self.needed && pair.0.0 == 0 && self.old.classes.contains_key(id) && !values.contains_key(id)
        });
        idle.map(|(id, _)| *id).collect::<Vec<_>>().into_iter()
    }

    /// The policies of an endpoint until it flips: a copy stands in for one that it leaves and that the new image has.
    pub(super) fn parting(&self, id: WorkloadId, endpoint: &EndpointImage) -> [PolicyNumber; 4] {
        let Some(after) = self.new.endpoints.get(&id).filter(|_| !self.classes.is_empty()) else {
            return endpoint.policies;
        };
        std::array::from_fn(|at| {
            let policy = endpoint.policies[at];
            let parts = policy != after.policies[at] && self.is.contains(&policy);
            if parts { self.copy(policy) } else { policy }
        })
    }

    /// Rows that exist only while the plan runs.
    pub(super) fn rows(&self) -> BTreeMap<PeerKey, PeerValue> {
        let mut rows = BTreeMap::new();
        if self.classes.is_empty() {
            return rows;
        }
        let was = policies_of(self.old);
        let mut add = |policy, class, image: &Image, from, source| {
            if let Some(row) = image.row(from, source) {
                rows.insert(PeerKey { policy, class }, *row);
            }
        };
        let parted: BTreeSet<PolicyNumber> = self.left.intersection(&self.is).copied().collect();
        for (class, (before, after)) in &self.classes {
            for policy in &self.is {
                add(*policy, *class, self.new, *policy, *after);
            }
            for policy in was.difference(&self.is) {
                add(*policy, *class, self.old, *policy, *before);
            }
            for policy in &parted {
                add(self.copy(*policy), *class, self.old, *policy, *before);
            }
        }
        for key in self.old.peers.keys().filter(|key| parted.contains(&key.policy)) {
            add(self.copy(key.policy), key.class, self.old, key.policy, key.class);
        }
        rows
    }

    fn copy(&self, policy: PolicyNumber) -> PolicyNumber {
        PolicyNumber(self.fresh("policy copy", &[policy.0]))
    }

    /// The identities that exist only while the plan runs, with those that they stand for.
    pub(super) fn into_stand_ins(self) -> BTreeMap<IdentityId, IdentityId> {
        self.stand_ins
    }
}

fn policies_of(image: &Image) -> BTreeSet<PolicyNumber> {
    image.endpoints.values().flat_map(|endpoint| endpoint.policies).filter(|policy| policy.0 != 0).collect()
}
