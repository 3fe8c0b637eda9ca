//! The policies that this node has heard of, what became of each, and how far each has come: heard of, compiled, in force.
//!
//! Invariant: telling never delays enforcing: a step without policies among its changes costs a look at each change. What is
//! gone is forgotten, so this is as small as what there is.

use crate::status::Outcome;
use reeve_flow::time::Timestamp;
use reeve_policy::engine::Engine;
use reeve_policy::model::{Level, Policy, Problem, Rules, World};
use reeve_policy::store::{Change, ObjectKey};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant, SystemTime};

/// What becomes of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// It is enforced, or previewed, as it is written.
    Accepted,
    /// A part of it cannot be honoured, and matches less than it may have been meant to.
    Narrowed,
    /// It denies everything in a direction at least, or is of a kind that is not enforced.
    Refused,
}

/// One policy as it stands.
#[derive(Debug)]
pub(crate) struct Standing<'a> {
    pub(crate) key: &'a ObjectKey,
    entry: &'a Entry,
    pub(crate) state: State,
    problems: Vec<&'a Problem>,
}

/// All policies.
#[derive(Debug, Default)]
pub(crate) struct Standings {
    entries: BTreeMap<ObjectKey, Entry>,
    /// Those that are not in force as they were last written, and since when that is so.
    coming: BTreeMap<ObjectKey, Instant>,
    /// Whether anything may stand otherwise than it was last counted.
    stirred: bool,
}

/// As it was last written.
#[derive(Debug)]
struct Entry {
    /// As problems name it.
    name: String,
    version: String,
    uid: Option<String>,
    generation: Option<i64>,
    /// A hash of everything but metadata and status.
    content: u64,
    observed: Instant,
    compiled: Option<Instant>,
    active: Option<Instant>,
}

impl Standings {
    /// Takes note of changes before they are compiled; all were heard of at this moment.
    pub(crate) fn note(&mut self, changes: &[Change], now: Instant) {
        for change in changes {
            match change {
                Change::Apply(object) if object.value["kind"].as_str().is_some_and(is_policy) => {
                    // A document that names no object is a problem of the place where it was found.
                    if let Ok(key) = ObjectKey::of(&object.value) {
                        self.put(key, &object.value, now);
                    }
                }
                Change::Delete(key) if is_policy(&key.kind) => {
                    self.stirred |= self.entries.remove(key).is_some();
                    self.coming.remove(key);
                }
                _ => {}
            }
        }
    }

    fn put(&mut self, key: ObjectKey, value: &Value, observed: Instant) {
        let metadata = &value["metadata"];
        let entry = Entry {
            name: key.to_string(),
            version: value["apiVersion"].as_str().unwrap_or_default().to_owned(),
            uid: metadata["uid"].as_str().map(str::to_owned),
            generation: metadata["generation"].as_i64(),
            content: content(value),
            observed,
            compiled: None,
            active: None,
        };
        if let Some(before) = self.entries.get(&key) {
            if before.written() == entry.written() {
                return;
            }
            // One of another UID has another history.
            if before.uid != entry.uid {
                self.coming.remove(&key);
            }
        }
        self.coming.entry(key.clone()).or_insert(observed);
        self.entries.insert(key, entry);
        self.stirred = true;
    }

    /// Everything noted has been compiled.
    pub(crate) fn compiled(&mut self, now: Instant) {
        for key in self.coming.keys() {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.compiled.get_or_insert(now);
            }
        }
    }

    /// Everything compiled is in force, but for what the engine does not enforce at all; how long each policy took that was
    /// not in force before.
    pub(crate) fn activated(&mut self, engine: &Engine, now: Instant) -> Vec<Duration> {
        let mut took = Vec::new();
        for (key, since) in std::mem::take(&mut self.coming) {
            match self.entries.get_mut(&key) {
                Some(entry) if entry.compiled.is_none() => drop(self.coming.insert(key, since)),
                Some(entry) if engine.holds(&key) => {
                    entry.active = Some(now);
                    took.push(now.saturating_duration_since(entry.observed));
                }
                _ => {}
            }
        }
        self.stirred |= !took.is_empty();
        took
    }

    /// What cannot be honoured is not what it was.
    pub(crate) fn stir(&mut self) {
        self.stirred = true;
    }

    /// Whether anything may stand otherwise than when this was last asked.
    pub(crate) fn take_stirred(&mut self) -> bool {
        std::mem::take(&mut self.stirred)
    }

    /// How long the policy has waited that has done so longest; nothing, if all are in force.
    pub(crate) fn waiting(&self, now: Instant) -> Duration {
        self.coming.values().min().map_or(Duration::ZERO, |since| now.saturating_duration_since(*since))
    }

    /// How policies stand, by the engine's facts and what it cannot honour of them.
    pub(crate) fn look<'a>(&'a self, engine: &Engine, problems: &'a [Problem]) -> Vec<Standing<'a>> {
        let mut wrong: BTreeMap<&str, Vec<&Problem>> = BTreeMap::new();
        for problem in problems {
            wrong.entry(&problem.object).or_default().push(problem);
        }
        let closed = closed(engine.world());
        let standing = |(key, entry): (&'a ObjectKey, &'a Entry)| {
            let problems = wrong.remove(entry.name.as_str()).unwrap_or_default();
            let state = if closed.contains(&entry.name) || !engine.holds(key) {
                State::Refused
            } else if problems.iter().any(|problem| problem.level == Level::Warning) {
                State::Narrowed
            } else {
                State::Accepted
            };
            Standing { key, entry, state, problems }
        };
        self.entries.iter().map(standing).collect()
    }
}

impl Entry {
    /// What tells one writing of it from another.
    fn written(&self) -> (Option<&str>, Option<i64>, u64) {
        (self.uid.as_deref(), self.generation, self.content)
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

impl Standing<'_> {
    /// It as the cluster is told of it; nothing, while it may still come to stand otherwise.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        // What is refused is so as soon as it is compiled; nothing else counts before the kernel has it.
        let certain = match self.state {
            State::Refused => self.entry.compiled.is_some(),
            State::Accepted | State::Narrowed => self.entry.active.is_some(),
        };
        certain.then(|| Outcome {
            key: self.key.clone(),
            version: self.entry.version.clone(),
            uid: self.entry.uid.clone(),
            generation: self.entry.generation,
            state: self.state,
            problems: self.problems.iter().filter(|one| one.level == Level::Warning).copied().cloned().collect(),
        })
    }

    /// As `GET /policies` tells it, where both clocks read this.
    pub(crate) fn told(&self, now: Instant, wall: SystemTime) -> Value {
        let (key, entry) = (self.key, self.entry);
        let moment = |at: Instant| {
            let before = wall.checked_sub(now.saturating_duration_since(at)).unwrap_or(SystemTime::UNIX_EPOCH);
            Timestamp::from_system(before).to_string()
        };
        json!({
            "apiVersion": entry.version, "kind": key.kind, "namespace": key.namespace, "name": key.name,
            "uid": entry.uid, "generation": entry.generation, "state": self.state.name(),
            "observedAt": moment(entry.observed), "compiledAt": entry.compiled.map(moment),
            "activeAt": entry.active.map(moment), "problems": self.problems,
        })
    }
}

fn is_policy(kind: &str) -> bool {
    kind.ends_with("NetworkPolicy")
}

fn content(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (field, value) in value.as_object().into_iter().flatten() {
        if field != "metadata" && field != "status" {
            (field, value).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// The names of policies that deny everything in a direction because they could not be honoured.
fn closed(world: &World) -> BTreeSet<String> {
    let is_closed =
        |policy: &Policy| [&policy.ingress, &policy.egress].iter().any(|rules| matches!(rules, Rules::Closed(_)));
    let placed = world.tiers.iter().chain(world.staged.iter().flatten()).flat_map(|(_, policies)| policies);
    placed.filter(|policy| is_closed(policy)).map(|policy| policy.reference.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reeve_policy::limits::Limits;
    use reeve_policy::store::Object;

    fn apply(value: &Value) -> Change {
        Change::Apply(Object { value: value.clone(), origin: "a test".to_owned() })
    }

    /// What becomes of these objects in an engine with such limits, once they are in force.
    fn states(objects: &[Value], limits: Limits) -> Vec<(String, State)> {
        let (mut standings, mut engine) = (Standings::default(), Engine::with_limits("one", 0, limits));
        let changes: Vec<Change> = objects.iter().map(apply).collect();
        standings.note(&changes, Instant::now());
        let problems = engine.apply(changes).problems;
        standings.look(&engine, &problems).iter().map(|one| (one.key.to_string(), one.state)).collect()
    }

    fn named<const N: usize>(states: [(&str, State); N]) -> Vec<(String, State)> {
        states.map(|(name, state)| (name.to_owned(), state)).into()
    }

    /// A policy of Kubernetes whose only peer is in this network.
    fn policy(generation: i64, network: &str) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": "web", "uid": "u", "generation": generation },
            "spec": { "podSelector": {}, "ingress": [{ "from": [{ "ipBlock": { "cidr": network } }] }] },
        })
    }

    #[test]
    fn a_policy_is_accepted_narrowed_or_refused_by_what_becomes_of_its_rules() {
        let closed = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": "db" }, "spec": { "podSelector": {}, "ingress": "all" },
        });
        let of_calico = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": "db" }, "spec": { "selector": "all()", "tier": "none" },
        });
        let foreign = json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
            "metadata": { "name": "all" }, "spec": {},
        });
        let staged = |name: &str, action: &str| {
            json!({
                "apiVersion": "projectcalico.org/v3", "kind": "StagedGlobalNetworkPolicy", "metadata": { "name": name },
                "spec": { "stagedAction": action, "selector": "all()", "types": ["Ingress"] },
            })
        };
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "shop", "name": "web" } });
        let objects =
            [policy(1, "10.0.0.0/8"), closed, of_calico, foreign, staged("set", "Set"), staged("gone", "Delete"), pod];
        let wanted = named([
            ("NetworkPolicy/shop/db", State::Refused),
            ("NetworkPolicy/shop/web", State::Accepted),
            ("AdminNetworkPolicy/all", State::Refused),
            ("CalicoNetworkPolicy/shop/db", State::Refused),
            ("StagedGlobalNetworkPolicy/gone", State::Accepted),
            ("StagedGlobalNetworkPolicy/set", State::Accepted),
        ]);
        assert_eq!(states(&objects, Limits::NONE), wanted);
        let narrowed = named([("NetworkPolicy/shop/web", State::Narrowed)]);
        assert_eq!(states(&[policy(1, "10.0.0.0/99")], Limits::NONE), narrowed);
    }

    #[test]
    fn a_policy_without_room_is_refused() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "shop", "name": "web", "uid": "w" },
            "spec": { "nodeName": "one" }, "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] },
        });
        let objects = [pod, policy(1, "10.0.0.0/8")];
        let of = |state| named([("NetworkPolicy/shop/web", state)]);
        assert_eq!(states(&objects, Limits::NONE), of(State::Accepted));
        assert_eq!(states(&objects, Limits { networks: 0, ..Limits::NONE }), of(State::Refused));
    }

    #[test]
    fn each_version_of_a_policy_is_compiled_and_active_once_and_forgotten_when_it_is_gone() {
        let (mut standings, mut engine) = (Standings::default(), Engine::new("one", 0));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let hear = |standings: &mut Standings, engine: &mut Engine, change: Change, seconds| {
            standings.note(std::slice::from_ref(&change), at(seconds));
            engine.apply([change]);
        };
        let times = |standings: &Standings| {
            let (_, entry) = standings.entries.first_key_value().expect("a policy");
            (entry.generation, entry.observed, entry.compiled, entry.active)
        };
        let first = policy(1, "10.0.0.0/8");
        hear(&mut standings, &mut engine, apply(&first), 0);
        assert_eq!(standings.activated(&engine, at(1)).len(), 0, "what is not compiled is not in force");
        assert_eq!(standings.waiting(at(3)), Duration::from_secs(3));
        standings.compiled(at(2));
        standings.compiled(at(3));
        assert_eq!(standings.activated(&engine, at(4)), [Duration::from_secs(4)]);
        assert_eq!((standings.waiting(at(5)), standings.take_stirred()), (Duration::ZERO, true));
        assert_eq!(times(&standings), (Some(1), at(0), Some(at(2)), Some(at(4))));

        // The same again, with another note of no concern, is no news.
        let mut again = first;
        again["metadata"]["labels"] = json!({ "a": "b" });
        hear(&mut standings, &mut engine, apply(&again), 5);
        assert_eq!((standings.waiting(at(6)), standings.take_stirred()), (Duration::ZERO, false));
        assert_eq!(times(&standings), (Some(1), at(0), Some(at(2)), Some(at(4))));

        hear(&mut standings, &mut engine, apply(&policy(2, "10.0.0.0/9")), 6);
        standings.compiled(at(7));
        hear(&mut standings, &mut engine, apply(&policy(3, "10.0.0.0/7")), 8);
        assert_eq!(times(&standings), (Some(3), at(8), None, None));
        assert_eq!(standings.waiting(at(9)), Duration::from_secs(3), "it has not been as written since the second");
        hear(&mut standings, &mut engine, Change::Delete(ObjectKey::of(&again).expect("a name")), 9);
        assert_eq!((standings.waiting(at(9)), standings.entries.len()), (Duration::ZERO, 0));
        assert!(standings.take_stirred());
        assert_eq!(standings.activated(&engine, at(9)).len(), 0);
    }

    #[test]
    fn what_is_not_enforced_is_never_in_force_and_nobody_waits_for_it() {
        let (mut standings, mut engine) = (Standings::default(), Engine::new("one", 0));
        let foreign =
            json!({ "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": { "name": "a" } });
        let now = Instant::now();
        standings.note(&[apply(&foreign)], now);
        let problems = engine.apply([apply(&foreign)]).problems;
        standings.compiled(now);
        assert_eq!(standings.activated(&engine, now).len(), 0);
        assert_eq!(standings.waiting(now + Duration::from_secs(1)), Duration::ZERO);
        let told = standings.look(&engine, &problems)[0].told(now, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!((&told["state"], &told["activeAt"]), (&json!("refused"), &Value::Null));
        assert_eq!(told["observedAt"], "1970-01-01T00:00:01.000000000Z");
        assert_eq!(told["problems"].as_array().map(Vec::len), Some(1), "{told}");
    }
}
