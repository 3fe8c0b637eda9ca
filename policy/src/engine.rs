//! One synchronous step: changes in, an update out. No clock, no IO.

use crate::compile::{Compiler, Preview};
use crate::delta::{Delta, Past, set};
use crate::image::{EndpointImage, Image};
use crate::limits::{self, Limits, Refused};
use crate::model::{Problem, Workload, World};
use crate::plan::{self, Op, transition};
use crate::provenance::{Dictionary, DictionaryEntry};
use crate::store::{Change, ObjectKey, Store, Touched};
use reeve_abi::ids::{IdentityId, Revision, WorkloadId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
    /// Whether what a node stands for did: its own addresses, a service, or a pod of this node.
    pub stand_ins: bool,
}

/// The facts, the image that they ask for, and the numbers told so far.
#[derive(Debug)]
pub struct Engine {
    store: Store,
    limits: Limits,
    compiler: Compiler,
    /// The world as it is honoured, where policies had to be refused.
    honoured: Option<World>,
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
            compiler: Compiler::new(node),
            honoured: None,
            dictionary: Dictionary::default(),
            revision: Revision(last_revision),
        }
    }

    /// Takes in changes and says what they lead to. Each is let go of once it is taken in: who has many need not hold them
    /// all at once.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Update {
        let touched: Vec<Touched> = changes.into_iter().flat_map(|change| self.store.apply(change)).collect();
        self.revision.0 += 1;
        let here = |pod: &Option<Arc<Workload>>| pod.as_ref().is_some_and(|pod| pod.node == self.store.world().node);
        let stand_ins = touched.iter().any(|touched| match touched {
            Touched::Service { .. } | Touched::LocalAddresses { .. } => true,
            Touched::Workload { before, after } => here(before) || here(after),
            _ => false,
        });
        let mut problems = self.store.problems();
        let (delta, entries) = if self.honoured.is_none() {
            let stepped = self.compiler.step(self.store.world(), &touched);
            match limits::refuse(self.store.world(), &self.compiler.image, &self.limits) {
                None => (stepped.delta, stepped.entries),
                Some(refused) => {
                    let old = stepped.delta.undone(&self.compiler.image);
                    self.adopt_refusal(refused, &old, &mut problems)
                }
            }
        } else {
            // Rare, and a problem already: which policies are refused is found anew each time.
            let old = std::mem::take(&mut self.compiler.image);
            let (compiler, entries) = Compiler::of(self.store.world());
            self.compiler = compiler;
            self.honoured = None;
            match limits::refuse(self.store.world(), &self.compiler.image, &self.limits) {
                None => (Delta::between(&old, &self.compiler.image), entries),
                Some(refused) => self.adopt_refusal(refused, &old, &mut problems),
            }
        };
        let update = self.lead(delta, entries, &BTreeSet::new());
        Update { problems, stand_ins, ..update }
    }

    fn adopt_refusal(
        &mut self,
        refused: Refused,
        old: &Image,
        problems: &mut Vec<Problem>,
    ) -> (Delta, Vec<DictionaryEntry>) {
        self.compiler = refused.compiler;
        self.honoured = Some(refused.honoured);
        problems.extend(refused.problems);
        (Delta::between(old, &self.compiler.image), refused.entries)
    }

    /// The update that leads to the compiler's image from what it was before `delta`; made-up numbers are none of `taken`.
    fn lead(&mut self, mut delta: Delta, mut entries: Vec<DictionaryEntry>, taken: &BTreeSet<u64>) -> Update {
        self.stamp(&mut delta);
        let steps = transition(&self.compiler.image, &delta, self.compiler.shows(), taken);
        self.name_stand_ins(steps.stand_ins, &mut entries);
        entries.retain(|entry| self.dictionary.insert(entry));
        let changed = !steps.ops.is_empty();
        Update { revision: self.revision, plan: steps.ops, entries, changed, ..Update::default() }
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
    fn stamp(&mut self, delta: &mut Delta) {
        let (now, image) = (self.revision, &self.compiler.image);
        let old = Past::new(image, delta);
        let mut moved = BTreeSet::new();
        let mut reused = false;
        for (address, before) in &delta.addresses {
            let Some(before) = before else { continue };
            let after = image.addresses.get(address);
            reused |= after.is_some_and(|after| after.workload != before.workload);
            let identity = after.map_or_else(|| image.network_of(*address), |after| after.identity);
            if identity != before.identity {
                moved.insert((old.class_of(before.identity), image.class_of(identity)));
            }
        }
        let told_otherwise = |endpoint: &EndpointImage| {
            let mut policies = endpoint.policies.iter().filter(|policy| policy.0 != 0);
            policies.any(|policy| {
                moved.iter().any(|(from, to)| old.row(*policy, *from).as_ref() != image.row(*policy, *to))
            })
        };
        let revised = |(id, endpoint): (&WorkloadId, &EndpointImage)| {
            let before = old.endpoint(*id);
            let same = before.is_some_and(|b| b.policies == endpoint.policies && b.identity == endpoint.identity);
            let revision = match before {
                Some(before) if same && !reused && !told_otherwise(endpoint) => before.revision,
                _ => now,
            };
            (revision != endpoint.revision).then_some((*id, EndpointImage { revision, ..*endpoint }))
        };
        let revised: Vec<_> = if reused || !moved.is_empty() {
            image.endpoints.iter().filter_map(revised).collect()
        } else {
            let endpoints = delta.endpoints.keys().filter_map(|id| image.endpoints.get_key_value(id));
            endpoints.filter_map(revised).collect()
        };
        for (id, endpoint) in revised {
            set(&mut self.compiler.image.endpoints, &mut delta.endpoints, id, Some(endpoint));
        }
        delta.settle(&self.compiler.image);
    }

    /// The newest revision that a change set made.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What the maps should hold now.
    pub fn image(&self) -> &Image {
        &self.compiler.image
    }

    /// How many identities addresses are seen as.
    pub fn identities_of_addresses(&self) -> usize {
        self.compiler.seen().identities()
    }

    /// Whether several pods claim one address.
    pub fn is_contested(&self) -> bool {
        self.compiler.seen().is_contested()
    }

    /// The facts that hold now; policies that are refused are closed in it.
    pub fn world(&self) -> &World {
        self.honoured.as_ref().unwrap_or_else(|| self.store.world())
    }

    /// Whether this object counts as a fact: one of a kind that is of no concern, or not enforced, does not.
    pub fn holds(&self, key: &ObjectKey) -> bool {
        self.store.holds(key)
    }

    /// What staged policies would decide for this node's endpoints.
    pub fn preview(&self) -> &Preview {
        self.compiler.preview()
    }

    /// What numbers stand for.
    pub fn dictionary(&self) -> &Dictionary {
        &self.dictionary
    }

    /// What brings the content of the kernel's maps to the image of now. Endpoints that are judged as before keep their
    /// revision, so that their flows are not judged again. Its problems are those of the last [`Engine::apply`]: none here.
    pub fn resume(&mut self, kernel: &Image) -> Update {
        let delta = Delta::between(kernel, &self.compiler.image);
        self.lead(delta, Vec::new(), &plan::numbers(kernel))
    }

    /// The operations of [`Engine::resume`], for those who name nothing.
    pub fn adopt(&mut self, kernel: &Image) -> Vec<Op> {
        self.resume(kernel).plan
    }
}
