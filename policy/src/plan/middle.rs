//! What holds between two images while endpoints flip from the one's policies to the other's.
//!
//! A class belongs to the policies that it was made for, so an identity whose class changes takes a transitional one,
//! made of the old and the new class: its rows are the old class's for policies that end and the new class's for the
//! others. Endpoints that leave a policy which goes on wait on a copy of it. An identity that would need two classes at
//! once is shown by a stand-in where it must differ.

use super::Shows;
use crate::delta::{self, Delta, Past};
use crate::image::{EndpointImage, Image};
use crate::provenance::number;
use reeve_abi::ids::{ClassId, IDENTITY_WORLD, IdentityId, PolicyNumber, WorkloadId};
use reeve_abi::policy::{ClassValue, PeerKey, PeerValue};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Old and new class of an address or prefix.
type Pair = (ClassId, ClassId);

pub(super) struct Middle<'a> {
    old: &'a Past<'a>,
    new: &'a Image,
    delta: &'a Delta,
    /// How much shows an identity in the new image.
    shows: &'a Shows,
    /// By how much more shows an identity in the old image than in the new one.
    surplus: HashMap<IdentityId, isize>,
    /// Whether anything is needed between the images: otherwise each operation leads from the old to the new by itself.
    needed: bool,
    /// What all that shows an identity goes through, as far as it has been asked.
    pairs: BTreeMap<IdentityId, Pair>,
    stand_ins: BTreeMap<IdentityId, IdentityId>,
    /// Transitional class -> the two that it joins.
    joined: BTreeMap<ClassId, Pair>,
    /// Policies that some endpoint leaves.
    left: BTreeSet<PolicyNumber>,
    /// Policies of the new image.
    is: BTreeSet<PolicyNumber>,
    /// Numbers that must not be made up, as they are in use.
    taken: &'a BTreeSet<u64>,
}

impl<'a> Middle<'a> {
    pub(super) fn new(
        old: &'a Past<'a>,
        new: &'a Image,
        delta: &'a Delta,
        shows: &'a Shows,
        taken: &'a BTreeSet<u64>,
    ) -> Self {
        let mut surplus: HashMap<IdentityId, isize> = HashMap::new();
        let addresses = delta.addresses.values().flatten().map(|value| value.identity);
        let networks = delta.networks.values().flatten().map(|value| value.identity);
        addresses.chain(networks).for_each(|id| *surplus.entry(id).or_default() += 1);
        let addresses = delta::put(&new.addresses, &delta.addresses).map(|(_, value)| value.identity);
        let networks = delta::put(&new.networks, &delta.networks).map(|(_, value)| value.identity);
        addresses.chain(networks).for_each(|id| *surplus.entry(id).or_default() -= 1);

        let mut left = BTreeSet::new();
        let mut flips = false;
        for (id, before) in &delta.endpoints {
            let after = new.endpoints.get(id).map(|endpoint| endpoint.policies);
            flips |= before.map(|endpoint| endpoint.policies) != after;
            let Some(before) = before else { continue };
            let after = after.unwrap_or_default();
            left.extend((0..4).filter(|at| before.policies[*at] != after[*at]).map(|at| before.policies[at]));
        }
        left.remove(&PolicyNumber(0));
        let mut middle = Self {
            old,
            new,
            delta,
            shows,
            surplus,
            needed: false,
            pairs: BTreeMap::new(),
            stand_ins: BTreeMap::new(),
            joined: BTreeMap::new(),
            left,
            is: BTreeSet::new(),
            taken,
        };
        middle.needed = flips || delta.classes.keys().any(|id| middle.stays(*id).is_some_and(|(a, b)| a != b));
        if middle.needed {
            let policies = new.endpoints.values().flat_map(|endpoint| endpoint.policies);
            middle.is = policies.filter(|policy| policy.0 != 0).collect();
        }
        middle
    }

    /// Whether something shows this identity in the old image: an address that neither map knows shows the world.
    pub(super) fn was_shown(&self, id: IdentityId) -> bool {
        let now = isize::try_from(self.shows.get(&id).copied().unwrap_or_default()).unwrap_or(isize::MAX);
        id == IDENTITY_WORLD || now.saturating_add(self.surplus.get(&id).copied().unwrap_or_default()) > 0
    }

    /// What an identity goes through that is shown before and lasts. One that has a class in the new image must not go
    /// on showing another one's until a deletion, even if no address shows it any more.
    fn stays(&self, id: IdentityId) -> Option<Pair> {
        let lasts = id == IDENTITY_WORLD
            || self.shows.get(&id).is_some_and(|shows| *shows > 0)
            || self.new.classes.contains_key(&id);
        (lasts && self.was_shown(id)).then(|| (self.old.class_of(id), self.new.class_of(id)))
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
        if !self.needed {
            return wanted;
        }
        let pair = (self.old.class_of(from), self.new.class_of(to));
        let held = self.pairs.get(&wanted).copied().or_else(|| self.stays(wanted)).unwrap_or(pair);
        self.pairs.insert(wanted, held);
        if held == pair {
            return wanted;
        }
        let id = IdentityId(self.fresh("stand-in", &[wanted.0, pair.0.0, pair.1.0]));
        self.stand_ins.insert(id, wanted);
        self.pairs.insert(id, pair);
        id
    }

    /// A number that is not in use.
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

    /// The classes that change before endpoints flip; `None`: none any more.
    pub(super) fn classes(&mut self, delta: &Delta) -> BTreeMap<IdentityId, Option<ClassValue>> {
        let mut values = BTreeMap::new();
        let all: BTreeSet<IdentityId> = self.pairs.keys().chain(delta.classes.keys()).copied().collect();
        for id in all {
            let pair = self.pairs.get(&id).copied().or_else(|| self.stays(id)).filter(|_| self.needed);
            let value = match pair {
                Some((before, after)) if before == after => before,
                Some(pair) => {
                    let class = ClassId(self.fresh("transition", &[pair.0.0, pair.1.0]));
                    self.joined.insert(class, pair);
                    class
                }
                // What nothing shows takes its class now, what is shown until it is gone keeps its own.
                None if self.new.classes.contains_key(&id) => self.new.class_of(id),
                None => continue,
            };
            let value = Some(ClassValue { class: value }).filter(|value| value.class.0 != 0);
            let before = self.old.has_class(id).then(|| ClassValue { class: self.old.class_of(id) });
            if value != before {
                values.insert(id, value);
            }
        }
        values
    }

    /// The policies of an endpoint until it flips: a copy stands in for one that it leaves and that the new image has.
    pub(super) fn parting(&self, id: WorkloadId, endpoint: &EndpointImage) -> [PolicyNumber; 4] {
        let Some(after) = self.new.endpoints.get(&id).filter(|_| !self.joined.is_empty()) else {
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
        if self.joined.is_empty() {
            return rows;
        }
        let parted: BTreeSet<PolicyNumber> = self.left.intersection(&self.is).copied().collect();
        let ending: BTreeSet<PolicyNumber> =
            if self.delta.endpoints.is_empty() { BTreeSet::new() } else { self.old.policies() };
        for (class, (before, after)) in &self.joined {
            // Where a class has no row of its own, neither has what stands for it.
            let mut add = |policy, row: Option<PeerValue>| {
                rows.extend(row.map(|row| (PeerKey { policy, class: *class }, row)));
            };
            for policy in &self.is {
                let own = self.new.peers.get(&PeerKey { policy: *policy, class: *after });
                add(*policy, own.copied());
            }
            for policy in ending.difference(&self.is) {
                add(*policy, self.old.own_row(*policy, *before));
            }
            for policy in &parted {
                add(self.copy(*policy), self.old.own_row(*policy, *before));
            }
        }
        for policy in parted {
            let copy = self.copy(policy);
            let all = self.old.rows(policy).into_iter();
            rows.extend(all.map(|(key, row)| (PeerKey { policy: copy, class: key.class }, row)));
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
