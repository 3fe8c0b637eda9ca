//! One synchronous step: changes in, an update out. No clock, no IO.

use crate::compile::RowCache;
use crate::image::Image;
use crate::limits::{self, Limits};
use crate::model::{Problem, World};
use crate::plan::{Op, transition};
use crate::provenance::{Dictionary, DictionaryEntry};
use crate::store::{Change, Store};
use reeve_abi::ids::{IdentityId, Revision};
use std::collections::BTreeMap;

/// What a set of changes leads to.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// The revision that it makes.
    pub revision: Revision,
    /// Map operations, in order.
    pub plan: Vec<Op>,
    /// What new numbers stand for; to be on disk before the plan is carried out.
    pub entries: Vec<DictionaryEntry>,
    /// Everything that cannot be honoured now.
    pub problems: Vec<Problem>,
    /// Whether the image changed.
    pub changed: bool,
}

/// The facts, the image that they ask for, and the numbers told so far.
#[derive(Debug)]
pub struct Engine {
    store: Store,
    limits: Limits,
    /// The world as it is honoured, where policies had to be refused.
    honoured: Option<World>,
    cache: RowCache,
    image: Image,
    dictionary: Dictionary,
    revision: Revision,
}

impl Engine {
    /// An engine without facts for a node; `last_revision` is the highest one that this node has used.
    pub fn new(node: &str, last_revision: u64) -> Self {
        Self::with_limits(node, last_revision, Limits::NONE)
    }

    /// The same; policies for which there is no room are refused.
    pub fn with_limits(node: &str, last_revision: u64, limits: Limits) -> Self {
        Self {
            store: Store::new(node),
            limits,
            honoured: None,
            cache: RowCache::default(),
            image: Image::default(),
            dictionary: Dictionary::default(),
            revision: Revision(last_revision),
        }
    }

    /// Takes in changes and says what they lead to.
    pub fn apply(&mut self, changes: Vec<Change>) -> Update {
        for change in changes {
            self.store.apply(change);
        }
        self.revision.0 += 1;
        let (compiled, honoured) = limits::fit(self.store.world(), &self.limits, &mut self.cache);
        self.honoured = honoured;
        let mut image = compiled.image;
        self.stamp(&mut image);
        let steps = transition(&self.image, &image);
        let mut entries = compiled.entries;
        self.name_stand_ins(steps.stand_ins, &mut entries);
        entries.retain(|entry| self.dictionary.insert(entry));
        let mut problems = self.store.problems();
        problems.extend(compiled.problems);
        let changed = !steps.ops.is_empty();
        self.image = image;
        Update { revision: self.revision, plan: steps.ops, entries, problems, changed }
    }

    /// Adds what each stand-in is: the identity that it stands for.
    fn name_stand_ins(&self, stand_ins: BTreeMap<IdentityId, IdentityId>, entries: &mut Vec<DictionaryEntry>) {
        for (id, stands_for) in stand_ins {
            let told = entries.iter().find_map(|entry| match entry {
                DictionaryEntry::Identity { id, identity } if *id == stands_for => Some(identity.clone()),
                _ => None,
            });
            if let Some(identity) = told.or_else(|| self.dictionary.get_identity(stands_for)) {
                entries.push(DictionaryEntry::Identity { id, identity });
            }
        }
    }

    /// Gives each endpoint the revision that last changed what it is told about its peers.
    fn stamp(&self, image: &mut Image) {
        let (old, now) = (&self.image, self.revision);
        let mut moved = Vec::new();
        let mut reused = false;
        for (address, before) in &old.addresses {
            let after = image.addresses.get(address);
            reused |= after.is_some_and(|after| after.workload != before.workload);
            let identity = after.map_or_else(|| image.network_of(*address), |after| after.identity);
            if identity != before.identity {
                moved.push((old.class_of(before.identity), image.class_of(identity)));
            }
        }
        moved.sort_unstable();
        moved.dedup();
        let mut endpoints = std::mem::take(&mut image.endpoints);
        for (id, endpoint) in &mut endpoints {
            let before = old.endpoints.get(id);
            let same = before.is_some_and(|b| b.policies == endpoint.policies && b.identity == endpoint.identity);
            let told_otherwise = endpoint
                .policies
                .iter()
                .filter(|policy| policy.0 != 0)
                .any(|policy| moved.iter().any(|(from, to)| old.row(*policy, *from) != image.row(*policy, *to)));
            endpoint.revision = match before {
                Some(before) if same && !reused && !told_otherwise => before.revision,
                _ => now,
            };
        }
        image.endpoints = endpoints;
    }

    /// The newest revision that a change set made.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What the maps should hold now.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The facts that hold now; policies that are refused are closed in it.
    pub fn world(&self) -> &World {
        self.honoured.as_ref().unwrap_or_else(|| self.store.world())
    }

    /// What numbers stand for.
    pub fn dictionary(&self) -> &Dictionary {
        &self.dictionary
    }

    /// What brings the content of the kernel's maps to the image of now. Endpoints that are judged as before keep their
    /// revision, so that their flows are not judged again. Its problems are those of the last [`Engine::apply`]: none here.
    pub fn resume(&mut self, kernel: &Image) -> Update {
        let mut image = std::mem::replace(&mut self.image, kernel.clone());
        self.stamp(&mut image);
        let steps = transition(kernel, &image);
        self.image = image;
        let mut entries = Vec::new();
        self.name_stand_ins(steps.stand_ins, &mut entries);
        entries.retain(|entry| self.dictionary.insert(entry));
        let changed = !steps.ops.is_empty();
        Update { revision: self.revision, plan: steps.ops, entries, problems: Vec::new(), changed }
    }

    /// The operations of [`Engine::resume`], for those who name nothing.
    pub fn adopt(&mut self, kernel: &Image) -> Vec<Op> {
        self.resume(kernel).plan
    }
}
