//! What is true now: takes objects one change at a time and keeps the [`World`] that they amount to.
//!
//! Invariant: the world depends on the objects held, not on the order they came in; one change costs in proportion to
//! what it touches (at most the number of policies, never the number of pods). Reading files and watching an API
//! server are not here.

mod address;
mod backend;
mod key;
mod place;
mod resolve;

pub use key::{ObjectKey, objects_of};
pub(crate) use place::{BUILT_IN as BUILT_IN_TIERS, REGIME as REGIME_TIER, UNREAD as UNREAD_TIER};

use crate::holders::Holders;
use crate::lower::{self, Lowered};
use crate::model::{
    EndpointSlice, Labels, NetworkSet, Node, Policy, Problem, Service, StagedPolicy, Tier, Workload, World,
};
use crate::shared::Shared;
use address::Claims;
use backend::Contradictions;
use resolve::{Source, Sources};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

/// An object as it was written, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The whole object.
    pub value: serde_json::Value,
    /// Where it was found, such as `dir/file.yaml, document 2`, or the API server's name.
    pub origin: String,
}

/// Something that happened to the facts.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An object is there, or has changed. A `List` must have been flattened with [`objects_of`].
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// All addresses of this node's own interfaces.
    LocalAddresses(BTreeSet<IpAddr>),
}

/// A part of the world that a change has altered. `before` and `after` always differ, and at least one is there.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields are what they are called: the fact's name, and the fact before and after")]
pub enum Touched {
    /// A pod. Where both are there, they have the same UID.
    Workload { before: Option<Arc<Workload>>, after: Option<Arc<Workload>> },
    /// A namespace's labels.
    Namespace { name: String, before: Option<Labels>, after: Option<Labels> },
    /// A node.
    Node { before: Option<Arc<Node>>, after: Option<Arc<Node>> },
    /// A service account's labels.
    ServiceAccount { namespace: String, name: String, before: Option<Labels>, after: Option<Labels> },
    /// A service.
    Service { before: Option<Arc<Service>>, after: Option<Arc<Service>> },
    /// A part of a service's backends. Both may be of different services.
    EndpointSlice { before: Option<Arc<EndpointSlice>>, after: Option<Arc<EndpointSlice>> },
    /// This node's own addresses.
    LocalAddresses { before: BTreeSet<IpAddr>, after: BTreeSet<IpAddr> },
    /// A policy, as it stands in its tier.
    Policy { before: Option<Arc<Policy>>, after: Option<Arc<Policy>> },
    /// Tiers came, went or changed their order or default.
    Tiers,
    /// A network set.
    NetworkSet { before: Option<Arc<NetworkSet>>, after: Option<Arc<NetworkSet>> },
    /// What would be enforced if every staged policy were applied.
    Staged,
}

/// What an object amounts to.
#[derive(Clone, Debug, PartialEq)]
enum Fact {
    Workload(Arc<Workload>),
    Namespace(Labels),
    Node(Arc<Node>),
    ServiceAccount(Labels),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    /// As lowered; the tier's existence is looked at when it is placed.
    Policy(Arc<Policy>),
    Tier(Tier),
    NetworkSet(Arc<NetworkSet>),
    Staged(Arc<StagedPolicy>),
}

/// The facts at one moment.
#[derive(Debug)]
pub struct Store {
    world: World,
    facts: BTreeMap<Arc<ObjectKey>, Fact>,
    /// Labels of pods.
    labels: Shared<Labels>,
    /// Of objects that have any.
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    /// Problems of documents that name no object, by origin.
    nameless: BTreeMap<String, Problem>,
    /// Which pods carry a UID; more than one is a fault.
    uids: Holders<String, Arc<ObjectKey>>,
    claims: Claims,
    /// Staged policies as lowered.
    staged: BTreeMap<ObjectKey, Arc<StagedPolicy>>,
    contradictions: Contradictions,
    /// Problems of the staged tiers, until they change.
    staged_placement: OnceLock<Vec<Problem>>,
    /// Problems of tiers and the policies in them, until either changes or the services that rules name do.
    placement: OnceLock<Vec<Problem>>,
}

impl Store {
    /// An empty store of the node with this name.
    pub fn new(node: &str) -> Self {
        let mut world = World { node: node.to_owned(), ..World::default() };
        let (sources, tiers, _) = Sources::beside(&mut world);
        *tiers = place::arrange(std::iter::empty(), std::iter::empty(), sources);
        Self {
            world,
            facts: BTreeMap::new(),
            labels: Shared::default(),
            problems: BTreeMap::new(),
            nameless: BTreeMap::new(),
            uids: Holders::default(),
            claims: Claims::default(),
            staged: BTreeMap::new(),
            contradictions: Contradictions::default(),
            staged_placement: OnceLock::new(),
            placement: OnceLock::new(),
        }
    }

    /// All facts and policies as they stand.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Whether this object counts as a fact: one of a kind that is of no concern, or not enforced, does not.
    pub fn holds(&self, key: &ObjectKey) -> bool {
        self.facts.contains_key(key)
    }

    /// Takes one change and says what it has altered; nothing, if it states what is known already.
    pub fn apply(&mut self, change: Change) -> Vec<Touched> {
        match change {
            Change::Apply(object) => self.put(&object),
            Change::Delete(key) => {
                self.problems.remove(&key);
                let before = self.facts.remove(&key);
                self.replace(&Arc::new(key), before, None)
            }
            Change::LocalAddresses(after) => {
                let after: BTreeSet<IpAddr> = after.iter().map(IpAddr::to_canonical).collect();
                if after == self.world.local_addresses {
                    return Vec::new();
                }
                let before = std::mem::replace(&mut self.world.local_addresses, after.clone());
                vec![Touched::LocalAddresses { before, after }]
            }
        }
    }

    /// Everything in the input that is not honoured, sorted and without repetition.
    pub fn problems(&self) -> Vec<Problem> {
        let mut all: BTreeSet<Problem> = self.problems.values().flatten().cloned().collect();
        all.extend(self.nameless.values().cloned());
        all.extend(self.shared_uids());
        all.extend(self.claims.problems(&self.world));
        all.extend(self.contradictions.problems());
        let of_policies = || {
            let policies = self.world.tiers.iter().flat_map(|(_, policies)| policies);
            let empty = policies.flat_map(|policy| backend::without_backends(&self.world, policy));
            place::problems(&self.world.tiers).into_iter().chain(empty).collect()
        };
        all.extend(self.placement.get_or_init(of_policies).iter().cloned());
        if let Some(tiers) = &self.world.staged {
            let of_staged = || place::staged_problems(tiers, &self.world.tiers, self.staged.values());
            all.extend(self.staged_placement.get_or_init(of_staged).iter().cloned());
        }
        all.into_iter().collect()
    }

    fn put(&mut self, object: &Object) -> Vec<Touched> {
        let key = match ObjectKey::of(&object.value) {
            Ok(key) => Arc::new(key),
            Err(mut problem) => {
                problem.object.clone_from(&object.origin);
                self.nameless.insert(object.origin.clone(), problem);
                return Vec::new();
            }
        };
        self.nameless.remove(&object.origin);
        let (lowered, problems) = lower::object(&key, &object.value);
        if problems.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(ObjectKey::clone(&key), problems);
        }
        let after = match lowered {
            Lowered::Workload(workload) => {
                let labels = self.labels.of(Arc::unwrap_or_clone(workload.labels));
                Some(Fact::Workload(Arc::new(Workload { labels, ..workload })))
            }
            Lowered::Namespace(labels) => Some(Fact::Namespace(labels)),
            Lowered::Node(node) => Some(Fact::Node(Arc::new(node))),
            Lowered::ServiceAccount(labels) => Some(Fact::ServiceAccount(labels)),
            Lowered::Service(service) => Some(Fact::Service(Arc::new(service))),
            Lowered::EndpointSlice(slice) => Some(Fact::EndpointSlice(Arc::new(slice))),
            Lowered::Policy(policy) => Some(Fact::Policy(Arc::new(policy))),
            Lowered::Tier(tier) => Some(Fact::Tier(tier)),
            Lowered::NetworkSet(set) => Some(Fact::NetworkSet(Arc::new(set))),
            Lowered::Staged(staged) => Some(Fact::Staged(Arc::new(staged))),
            // What was good before goes on to hold: an edit that cannot be read must not open anything.
            Lowered::Unreadable => return Vec::new(),
            Lowered::Nothing => None,
        };
        if self.facts.get(&key) == after.as_ref() {
            return Vec::new();
        }
        let before = match &after {
            Some(after) => self.facts.insert(Arc::clone(&key), after.clone()),
            None => self.facts.remove(&key),
        };
        self.replace(&key, before, after)
    }

    /// Puts one fact in the place of another; the kinds are the same, as they follow from the key.
    fn replace(&mut self, key: &Arc<ObjectKey>, before: Option<Fact>, after: Option<Fact>) -> Vec<Touched> {
        let mut touched = Vec::new();
        match (before, after) {
            (None, None) => {}
            (Some(Fact::Policy(before)), after) => {
                let after = if let Some(Fact::Policy(policy)) = after { Some(policy) } else { None };
                let (sources, tiers, _) = Sources::beside(&mut self.world);
                touched.extend(place::replace(tiers, Some(&before), after, sources));
            }
            (None, Some(Fact::Policy(after))) => {
                let (sources, tiers, _) = Sources::beside(&mut self.world);
                touched.extend(place::replace(tiers, None, Some(after), sources));
            }
            (Some(Fact::Tier(_)), _) | (None, Some(Fact::Tier(_))) => touched = self.rearrange(),
            (Some(Fact::Staged(_)), _) | (None, Some(Fact::Staged(_))) => {
                match self.facts.get(key) {
                    Some(Fact::Staged(staged)) => self.staged.insert(ObjectKey::clone(key), Arc::clone(staged)),
                    _ => self.staged.remove(key),
                };
                return self.restage();
            }
            (before, after) => {
                self.replace_object(key, before, after, &mut touched);
                self.resolve_anew(&mut touched);
            }
        }
        for touch in &touched {
            self.contradictions.take(&self.world, touch);
        }
        let of_tiers = |touch: &Touched| matches!(touch, Touched::Policy { .. } | Touched::Tiers);
        if touched.iter().any(|touch| of_tiers(touch) || matches!(touch, Touched::Service { .. })) {
            self.placement = OnceLock::new();
        }
        let of_sources = |touch: &Touched| !sources_of(touch, &self.world).is_empty();
        if touched.iter().any(|touch| of_tiers(touch) || of_sources(touch)) {
            touched.extend(self.restage());
        }
        touched
    }

    /// Resolves the policies anew that name what has changed.
    fn resolve_anew(&mut self, touched: &mut Vec<Touched>) {
        let changed: Vec<Source> = touched.iter().flat_map(|touch| sources_of(touch, &self.world)).copied().collect();
        if changed.is_empty() {
            return;
        }
        let (sources, tiers, _) = Sources::beside(&mut self.world);
        for policy in tiers.iter_mut().flat_map(|(_, policies)| policies) {
            let Some(written) = &policy.written else { continue };
            if !changed.iter().any(|source| resolve::names(written, *source)) {
                continue;
            }
            let after = sources.resolve(written);
            if after != *policy {
                let before = std::mem::replace(policy, Arc::clone(&after));
                touched.push(Touched::Policy { before: Some(before), after: Some(after) });
            }
        }
    }

    /// Puts the staged tiers as the enforced ones and the staged policies ask for.
    fn restage(&mut self) -> Vec<Touched> {
        self.staged_placement = OnceLock::new();
        let (sources, tiers, staged) = Sources::beside(&mut self.world);
        let after = (!self.staged.is_empty()).then(|| place::stage(tiers, self.staged.values(), sources));
        if *staged == after {
            return Vec::new();
        }
        *staged = after;
        vec![Touched::Staged]
    }

    fn replace_object(
        &mut self,
        key: &Arc<ObjectKey>,
        before: Option<Fact>,
        after: Option<Fact>,
        touched: &mut Vec<Touched>,
    ) {
        let kind = before.as_ref().or(after.as_ref());
        match kind {
            Some(Fact::Workload(_)) => {
                let before = before.and_then(Fact::workload);
                let after = after.and_then(Fact::workload);
                let uid = |workload: &Option<Arc<Workload>>| workload.as_ref().map(|workload| workload.uid.clone());
                let uids = self.uids.replace(key, uid(&before), uid(&after));
                self.settle(&uids, before.as_ref().map(|before| (&**key, before)), touched);
            }
            Some(Fact::Namespace(_)) => {
                let after = after.and_then(Fact::labels);
                touched.push(Touched::Namespace {
                    name: key.name.clone(),
                    before: before.and_then(Fact::labels),
                    after: after.clone(),
                });
                match after {
                    Some(labels) => self.world.namespaces.insert(key.name.clone(), labels),
                    None => self.world.namespaces.remove(&key.name),
                };
            }
            Some(Fact::ServiceAccount(_)) => {
                let namespace = key.namespace.clone().unwrap_or_default();
                let after = after.and_then(Fact::labels);
                touched.push(Touched::ServiceAccount {
                    namespace: namespace.clone(),
                    name: key.name.clone(),
                    before: before.and_then(Fact::labels),
                    after: after.clone(),
                });
                let place = (namespace, key.name.clone());
                match after {
                    Some(labels) => self.world.service_accounts.insert(place, labels),
                    None => self.world.service_accounts.remove(&place),
                };
            }
            Some(Fact::Node(_)) => {
                let after = after.and_then(Fact::node);
                let before = before.and_then(Fact::node);
                self.claims.replace_node(before.as_deref(), after.as_deref());
                match &after {
                    Some(node) => self.world.nodes.insert(key.name.clone(), Arc::clone(node)),
                    None => self.world.nodes.remove(&key.name),
                };
                touched.push(Touched::Node { before, after });
            }
            Some(Fact::Service(_)) => {
                let (before, after) = (before.and_then(Fact::service), after.and_then(Fact::service));
                if let Some(before) = &before {
                    self.world.services.remove(&before.name);
                }
                if let Some(after) = &after {
                    self.world.services.insert(after.name.clone(), Arc::clone(after));
                }
                touched.push(Touched::Service { before, after });
            }
            Some(Fact::EndpointSlice(_)) => {
                let (before, after) = (before.and_then(Fact::slice), after.and_then(Fact::slice));
                backend::replace(&mut self.world, before.as_deref(), after.as_ref());
                touched.push(Touched::EndpointSlice { before, after });
            }
            Some(Fact::NetworkSet(_)) => {
                let (before, after) = (before.and_then(Fact::network_set), after.and_then(Fact::network_set));
                let name = (key.namespace.clone(), key.name.clone());
                match &after {
                    Some(set) => self.world.network_sets.insert(name, Arc::clone(set)),
                    None => self.world.network_sets.remove(&name),
                };
                touched.push(Touched::NetworkSet { before, after });
            }
            _ => {}
        }
    }

    /// Brings the world's workloads in line with who carries these UIDs. A UID that several pods carry names none of
    /// them, so each of those goes under a number made of its name.
    fn settle(
        &mut self,
        uids: &BTreeSet<String>,
        gone: Option<(&ObjectKey, &Arc<Workload>)>,
        touched: &mut Vec<Touched>,
    ) {
        let mut want: BTreeMap<String, Option<Arc<Workload>>> = BTreeMap::new();
        if let Some((key, workload)) = gone {
            want.insert(workload.uid.clone(), None);
            want.insert(lower::made_uid(key), None);
        }
        for uid in uids {
            let alone = self.uids.of(uid).len() == 1;
            want.entry(uid.clone()).or_default();
            for key in self.uids.of(uid) {
                let Some(Fact::Workload(workload)) = self.facts.get(key) else { continue };
                let made = lower::made_uid(key);
                if alone {
                    want.entry(made).or_default();
                    want.insert(uid.clone(), Some(Arc::clone(workload)));
                } else {
                    want.insert(made.clone(), Some(Arc::new(Workload { uid: made, ..Workload::clone(workload) })));
                }
            }
        }
        // Two passes, so that a UID's old holder is gone before anything new is told.
        for (uid, after) in want {
            let before = self.world.workloads.get(&uid).cloned();
            if before == after {
                continue;
            }
            self.claims.replace_pod(before.as_deref(), after.as_deref());
            match &after {
                Some(workload) => self.world.workloads.insert(uid, Arc::clone(workload)),
                None => self.world.workloads.remove(&uid),
            };
            touched.push(Touched::Workload { before, after });
        }
        touched.sort_by_key(|touch| matches!(touch, Touched::Workload { after: Some(_), .. }));
    }

    /// Sorts all policies into the tiers anew, after tiers have changed.
    fn rearrange(&mut self) -> Vec<Touched> {
        let held = &self.facts;
        let facts = || held.values();
        let tiers = facts().filter_map(|fact| if let Fact::Tier(tier) = fact { Some(tier.clone()) } else { None });
        let policies =
            facts().filter_map(|fact| if let Fact::Policy(policy) = fact { Some(Arc::clone(policy)) } else { None });
        let (sources, arranged, _) = Sources::beside(&mut self.world);
        let after = place::arrange(tiers, policies, sources);
        let before = std::mem::replace(arranged, after);
        place::difference(&before, &self.world.tiers)
    }

    fn shared_uids(&self) -> impl Iterator<Item = Problem> {
        self.uids.shared().flat_map(|(uid, holders)| {
            let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
            holders.iter().map(move |key| Problem {
                level: crate::model::Level::Warning,
                object: key.to_string(),
                field: "metadata.uid".to_owned(),
                value: uid.clone(),
                what: format!("several pods carry this UID: {}", names.join(", ")),
                effect: "each goes under a number made of its namespace and name".to_owned(),
            })
        })
    }
}

/// The lists that a change may have altered for the rules that name them.
fn sources_of(touch: &Touched, world: &World) -> &'static [Source] {
    match touch {
        Touched::NetworkSet { .. } => &[Source::Sets],
        // Sets are found by their namespaces' labels.
        Touched::Namespace { .. } if !world.network_sets.is_empty() => &[Source::Sets],
        Touched::Node { .. } => &[Source::Nodes],
        Touched::EndpointSlice { .. } => &[Source::Services],
        _ => &[],
    }
}

impl Fact {
    fn workload(self) -> Option<Arc<Workload>> {
        if let Self::Workload(workload) = self { Some(workload) } else { None }
    }

    fn node(self) -> Option<Arc<Node>> {
        if let Self::Node(node) = self { Some(node) } else { None }
    }

    fn network_set(self) -> Option<Arc<NetworkSet>> {
        if let Self::NetworkSet(set) = self { Some(set) } else { None }
    }

    fn service(self) -> Option<Arc<Service>> {
        if let Self::Service(service) = self { Some(service) } else { None }
    }

    fn slice(self) -> Option<Arc<EndpointSlice>> {
        if let Self::EndpointSlice(slice) = self { Some(slice) } else { None }
    }

    fn labels(self) -> Option<Labels> {
        match self {
            Self::Namespace(labels) | Self::ServiceAccount(labels) => Some(labels),
            _ => None,
        }
    }
}
