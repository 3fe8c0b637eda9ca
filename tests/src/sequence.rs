//! Random histories: objects of several worlds come, change and go, one change at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fastrand::Rng;
use reeve_policy::store::{Change, Object, ObjectKey};

use crate::worlds::{NODES, RandomWorld};

/// A history.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Its changes, in order.
    pub changes: Vec<Change>,
}

impl Sequence {
    /// The history of a seed: a world, and then this many changes towards and away from others.
    pub fn new(seed: u64, steps: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut changes = RandomWorld::new(seed).changes();
        let others: Vec<Change> = (1..=3).flat_map(|nth| RandomWorld::new(seed ^ (nth << 32)).changes()).collect();
        for _ in 0..steps {
            let change = rng.choice(&others).cloned().expect("worlds have objects");
            let change = match rng.u8(..20) {
                0..13 => change,
                13..18 => {
                    Change::Delete(key(rng.choice(&changes).and_then(object).or(object(&change)).expect("an object")))
                }
                _ => Change::LocalAddresses(local_addresses(&mut rng)),
            };
            changes.push(change);
        }
        Self { changes }
    }

    /// The changes that state only what holds in the end, in the order of the objects' names.
    pub fn last_words(&self) -> Vec<Change> {
        let mut held: BTreeMap<ObjectKey, Change> = BTreeMap::new();
        let mut local = None;
        for change in &self.changes {
            match change {
                Change::Apply(object) => drop(held.insert(key(object), change.clone())),
                Change::Delete(key) => drop(held.remove(key)),
                Change::LocalAddresses(_) => local = Some(change.clone()),
            }
        }
        held.into_values().chain(local).collect()
    }
}

fn object(change: &Change) -> Option<&Object> {
    if let Change::Apply(object) = change { Some(object) } else { None }
}

fn key(object: &Object) -> ObjectKey {
    ObjectKey::of(&object.value).expect("generated objects have names")
}

fn local_addresses(rng: &mut Rng) -> BTreeSet<IpAddr> {
    let all = [NODES[0], NODES[2], "10.244.1.1", "fd00:244:1::1", "10.244.1.20"];
    all.iter().filter(|_| rng.bool()).map(|text| text.parse().expect("an address")).collect()
}
