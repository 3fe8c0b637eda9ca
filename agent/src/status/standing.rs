//! The policies that this node has heard of, and how far each has come.
//!
//! Invariant: what is gone is forgotten, so this is as small as what there is.

use reeve_flow::time::Timestamp;
use reeve_policy::model::{Level, Policy, Problem, Rules, World};
use reeve_policy::store::{Change, ObjectKey};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// A policy's object, as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) key: ObjectKey,
    /// As problems name it.
    pub(crate) text: String,
    /// Group and version.
    pub(crate) version: String,
    pub(crate) uid: Option<String>,
    pub(crate) generation: Option<i64>,
}

/// What becomes of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum State {
    /// It is enforced as it is written.
    Accepted,
    /// A part of it is not understood, and matches less than it may have been meant to.
    Narrowed,
    /// It is closed as a whole, in a direction at least, or is of a kind that is not enforced.
    Refused,
}

/// One policy as it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) named: Arc<Named>,
    pub(crate) state: State,
    observed: Instant,
    compiled: Option<Instant>,
    active: Option<Instant>,
    /// Since when nothing of it is wrong any more.
    pub(crate) mended: Option<Instant>,
    pub(crate) problems: Vec<Problem>,
}

/// All policies.
#[derive(Debug)]
pub(crate) struct Register {
    entries: BTreeMap<ObjectKey, Entry>,
    /// Those that are not in force yet.
    coming: BTreeSet<ObjectKey>,
    /// Whether anything may stand otherwise than it was last told.
    stirred: bool,
    told: watch::Sender<Arc<Vec<Standing>>>,
}

#[derive(Debug)]
struct Entry {
    named: Arc<Named>,
    /// Of what is asked for.
    spec: u64,
    observed: Instant,
    compiled: Option<Instant>,
    active: Option<Instant>,
    /// Whether something was wrong with it when it was last looked at.
    troubled: bool,
    mended: Option<Instant>,
}

impl Default for Register {
    fn default() -> Self {
        let told = watch::Sender::new(Arc::default());
        Self { entries: BTreeMap::new(), coming: BTreeSet::new(), stirred: false, told }
    }
}

impl Register {
    /// Takes note of changes before they are compiled. `heard`: when those were heard of that are known to the moment; all
    /// others were heard of now.
    pub(crate) fn note(&mut self, changes: &[Change], heard: &BTreeMap<ObjectKey, Instant>, now: Instant) {
        for change in changes {
            match change {
                Change::Apply(object) if is_policy(&object.value) => {
                    // A document that names no object is a problem of where it was found.
                    let Ok(key) = ObjectKey::of(&object.value) else { continue };
                    let observed = heard.get(&key).copied().unwrap_or(now);
                    self.apply(key, &object.value, observed);
                }
                Change::Delete(key) if key.kind.ends_with("NetworkPolicy") => {
                    self.stirred |= self.entries.remove(key).is_some();
                    self.coming.remove(key);
                }
                _ => {}
            }
        }
    }

    fn apply(&mut self, key: ObjectKey, value: &Value, observed: Instant) {
        let metadata = &value["metadata"];
        let named = Named {
            text: key.to_string(),
            key: key.clone(),
            version: value["apiVersion"].as_str().unwrap_or_default().to_owned(),
            uid: metadata["uid"].as_str().map(str::to_owned),
            generation: metadata["generation"].as_i64(),
        };
        let mut hasher = DefaultHasher::new();
        value["spec"].hash(&mut hasher);
        let spec = hasher.finish();
        let before = self.entries.get(&key);
        if before.is_some_and(|before| *before.named == named && before.spec == spec) {
            return;
        }
        let same = before.filter(|before| before.named.uid == named.uid);
        let (troubled, mended) = same.map_or((false, None), |before| (before.troubled, before.mended));
        let (compiled, active) = (None, None);
        self.entries.insert(
            key.clone(),
            Entry { named: Arc::new(named), spec, observed, compiled, active, troubled, mended },
        );
        self.coming.insert(key);
        self.stirred = true;
    }

    /// Everything noted has been compiled.
    pub(crate) fn compiled(&mut self, now: Instant) {
        for key in &self.coming {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.compiled.get_or_insert(now);
            }
        }
    }

    /// Everything compiled is in force; how long each policy took that was not before.
    pub(crate) fn activated(&mut self, now: Instant) -> Vec<Duration> {
        let mut took = Vec::new();
        for key in std::mem::take(&mut self.coming) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if entry.compiled.is_some() {
                entry.active = Some(now);
                took.push(now.saturating_duration_since(entry.observed));
            } else {
                self.coming.insert(key);
            }
        }
        self.stirred |= !took.is_empty();
        took
    }

    /// What cannot be honoured is not what it was.
    pub(crate) fn stir(&mut self) {
        self.stirred = true;
    }

    /// When the first policy was heard of that is not in force yet.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.coming.iter().filter_map(|key| self.entries.get(key)).map(|entry| entry.observed).min()
    }

    /// Those who want to know how policies stand; they see the last only.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Vec<Standing>>> {
        self.told.subscribe()
    }

    /// Tells how policies stand, if that may have changed: returns it then.
    pub(crate) fn tell<'a>(
        &mut self,
        world: &World,
        problems: impl Iterator<Item = &'a Problem>,
        now: Instant,
    ) -> Option<Arc<Vec<Standing>>> {
        if !std::mem::take(&mut self.stirred) {
            return None;
        }
        let standings = Arc::new(self.look(world, problems, now));
        self.told.send_if_modified(|told| {
            let other = *told != standings;
            *told = Arc::clone(&standings);
            other
        });
        Some(standings)
    }

    /// How policies stand now.
    pub(crate) fn look<'a>(
        &mut self,
        world: &World,
        problems: impl Iterator<Item = &'a Problem>,
        now: Instant,
    ) -> Vec<Standing> {
        let mut wrong: BTreeMap<&str, Vec<Problem>> = BTreeMap::new();
        for problem in problems {
            wrong.entry(&problem.object).or_default().push(problem.clone());
        }
        let placed = || world.tiers.iter().chain(world.staged.iter().flatten()).flat_map(|(_, policies)| policies);
        let closed: BTreeSet<String> =
            placed().filter(|policy| is_closed(policy)).map(|policy| policy.reference.to_string()).collect();
        // Of those with problems, the ones that are in no tier are not enforced at all.
        let known: BTreeSet<String> = if wrong.is_empty() {
            BTreeSet::new()
        } else {
            placed().map(|policy| policy.reference.to_string()).collect()
        };
        let standing = |entry: &mut Entry| {
            let text = &entry.named.text;
            let problems = wrong.remove(text.as_str()).unwrap_or_default();
            let warned = problems.iter().any(|problem| problem.level == Level::Warning);
            let state = if closed.contains(text) || (warned && !known.contains(text)) {
                State::Refused
            } else if warned {
                State::Narrowed
            } else {
                State::Accepted
            };
            if state != State::Accepted {
                (entry.troubled, entry.mended) = (true, None);
            } else if std::mem::take(&mut entry.troubled) {
                entry.mended = Some(now);
            }
            Standing {
                named: Arc::clone(&entry.named),
                state,
                observed: entry.observed,
                compiled: entry.compiled,
                active: entry.active,
                mended: entry.mended,
                problems,
            }
        };
        self.entries.values_mut().map(standing).collect()
    }
}

impl State {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Accepted, Self::Narrowed, Self::Refused];

    /// As metrics and answers say it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Narrowed => "narrowed",
            Self::Refused => "refused",
        }
    }
}

impl Standing {
    /// Whether the kernel has it.
    pub(crate) const fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// What of it is not honoured.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.level == Level::Warning)
    }

    /// As `GET /policies` tells it.
    pub(crate) fn told(&self, now: Instant) -> Value {
        let named = &self.named;
        let moment = |at: Instant| {
            let ago = now.saturating_duration_since(at);
            Timestamp::from_system(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)).to_string()
        };
        json!({
            "apiVersion": named.version, "kind": named.key.kind, "namespace": named.key.namespace,
            "name": named.key.name, "uid": named.uid, "generation": named.generation,
            "state": self.state.name(), "observedAt": moment(self.observed),
            "compiledAt": self.compiled.map(moment), "activeAt": self.active.map(moment),
            "problems": self.problems,
        })
    }
}

fn is_policy(value: &Value) -> bool {
    value["kind"].as_str().is_some_and(|kind| kind.ends_with("NetworkPolicy"))
}

fn is_closed(policy: &Policy) -> bool {
    [&policy.ingress, &policy.egress].into_iter().any(|rules| matches!(rules, Rules::Closed(_)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use reeve_policy::engine::Engine;
    use reeve_policy::store::Object;

    /// How these objects stand after a step that put them into the kernel.
    pub(in super::super) fn standings(objects: &[Value]) -> Vec<Standing> {
        let (mut register, mut engine) = (Register::default(), Engine::new("one", 0));
        step(&mut register, &mut engine, objects, Instant::now())
    }

    fn step(register: &mut Register, engine: &mut Engine, objects: &[Value], now: Instant) -> Vec<Standing> {
        let apply = |value: &Value| Change::Apply(Object { value: value.clone(), origin: "a test".to_owned() });
        let changes: Vec<Change> = objects.iter().map(apply).collect();
        register.note(&changes, &BTreeMap::new(), now);
        let problems = engine.apply(changes).problems;
        register.compiled(now);
        register.activated(now);
        register.look(engine.world(), problems.iter(), now)
    }

    /// A policy of Kubernetes whose only peer is in this network.
    pub(in super::super) fn policy(generation: i64, network: &str) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": "web", "uid": "u", "generation": generation },
            "spec": { "podSelector": {}, "ingress": [{ "from": [{ "ipBlock": { "cidr": network } }] }] },
        })
    }

    fn states(standings: &[Standing]) -> Vec<(&str, State)> {
        standings.iter().map(|standing| (standing.named.text.as_str(), standing.state)).collect()
    }

    #[test]
    fn a_policy_is_accepted_narrowed_or_refused_by_what_becomes_of_its_rules() {
        let closed = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": "db" }, "spec": { "podSelector": {}, "ingress": "all" },
        });
        let foreign = json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
            "metadata": { "name": "all" }, "spec": {},
        });
        let staged = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "StagedGlobalNetworkPolicy",
            "metadata": { "name": "try" }, "spec": { "selector": "all()", "types": ["Ingress"] },
        });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "shop", "name": "web" } });
        assert_eq!(
            states(&standings(&[policy(1, "10.0.0.0/8"), closed.clone(), foreign, staged, pod])),
            [
                ("NetworkPolicy/shop/db", State::Refused),
                ("NetworkPolicy/shop/web", State::Accepted),
                ("AdminNetworkPolicy/all", State::Refused),
                ("StagedGlobalNetworkPolicy/try", State::Accepted),
            ]
        );
        assert_eq!(states(&standings(&[policy(1, "10.0.0.0/99")])), [("NetworkPolicy/shop/web", State::Narrowed)]);
    }

    #[test]
    fn a_policy_is_compiled_and_active_once_for_each_time_that_it_is_asked_for_otherwise() {
        let mut register = Register::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let change = |value| [Change::Apply(Object { value, origin: "a test".to_owned() })];
        register.note(&change(policy(1, "10.0.0.0/8")), &BTreeMap::new(), at(0));
        assert_eq!(register.waiting_since(), Some(at(0)));
        assert_eq!(register.activated(at(1)), [], "what is not compiled is not in force");
        register.compiled(at(2));
        register.compiled(at(3));
        assert_eq!(register.activated(at(4)), [Duration::from_secs(4)]);
        assert_eq!(register.waiting_since(), None);
        let standing = |register: &mut Register| register.look(&World::default(), [].iter(), at(9)).swap_remove(0);
        let first = standing(&mut register);
        assert_eq!((first.observed, first.compiled, first.active), (at(0), Some(at(2)), Some(at(4))));

        // The same again is no news.
        register.note(&change(policy(1, "10.0.0.0/8")), &BTreeMap::new(), at(5));
        assert_eq!((register.waiting_since(), standing(&mut register)), (None, first));

        let key = ObjectKey::of(&policy(1, "")).expect("a name");
        register.note(&change(policy(2, "10.0.0.0/9")), &BTreeMap::from([(key.clone(), at(6))]), at(7));
        let second = standing(&mut register);
        assert_eq!((second.observed, second.compiled, second.active), (at(6), None, None));
        register.note(&[Change::Delete(key)], &BTreeMap::new(), at(8));
        assert_eq!((register.waiting_since(), register.look(&World::default(), [].iter(), at(9))), (None, vec![]));
    }

    #[test]
    fn a_policy_is_mended_when_nothing_of_it_is_wrong_any_more_and_no_other_is() {
        let (mut register, mut engine) = (Register::default(), Engine::new("one", 0));
        let start = Instant::now();
        let mut look = |object: Value| {
            let found = step(&mut register, &mut engine, &[object], start).swap_remove(0);
            (found.state, found.mended)
        };
        assert_eq!(look(policy(1, "10.0.0.0/8")), (State::Accepted, None));
        assert_eq!(look(policy(2, "10.0.0.0/99")), (State::Narrowed, None));
        assert_eq!(look(policy(3, "10.0.0.0/8")), (State::Accepted, Some(start)));
        let mut other = policy(1, "10.0.0.0/8");
        other["metadata"]["uid"] = json!("another");
        assert_eq!(look(other), (State::Accepted, None));
    }

    #[test]
    fn who_follows_hears_of_changes_only() {
        let mut register = Register::default();
        let mut told = register.follow();
        let now = Instant::now();
        assert!(register.tell(&World::default(), [].iter(), now).is_none());
        let change = [Change::Apply(Object { value: policy(1, "10.0.0.0/8"), origin: "a test".to_owned() })];
        register.note(&change, &BTreeMap::new(), now);
        assert_eq!(register.tell(&World::default(), [].iter(), now).map(|all| all.len()), Some(1));
        assert!(told.has_changed().expect("it is there"));
        told.mark_unchanged();
        register.stir();
        assert!(register.tell(&World::default(), [].iter(), now).is_some());
        assert!(!told.has_changed().expect("it is there"));
    }
}
