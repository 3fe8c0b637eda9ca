//! What became of a policy, as the cluster is told it.

use super::condition;
use crate::standing::{Standing, State};
use reeve_policy::model::Problem;
use reeve_policy::store::ObjectKey;
use std::sync::Arc;

/// Of all policies that there is something to tell of, once this agent enforces what it knows.
pub(crate) type Outcomes = Option<Arc<Vec<Outcome>>>;

/// What became of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) key: ObjectKey,
    /// Group and version.
    pub(crate) version: String,
    pub(crate) uid: Option<String>,
    pub(crate) generation: Option<i64>,
    pub(crate) state: State,
    /// What of it is not honoured.
    pub(crate) problems: Vec<Problem>,
}

impl Outcome {
    /// Those that there is something to tell of: all of kinds that have a status, and whatever is not honoured as it is written.
    pub(crate) fn all(standings: &[Standing<'_>]) -> Vec<Self> {
        let concerns = |one: &&Standing<'_>| one.state != State::Accepted || condition::kind(one.key).is_some();
        standings.iter().filter(concerns).filter_map(Standing::outcome).collect()
    }
}

/// One problem: where, what was written, what is wrong with it, and what that means. What other nodes may have room for is said
/// to be this node's; how many rows are wanted is not told, as it changes with every policy.
pub(super) fn sentence(problem: &Problem, node: &str) -> String {
    if problem.is_of_node() {
        return format!("Node {node}: {} has no room for all policies; {}.", problem.field, problem.effect);
    }
    let mut text = String::new();
    for part in [&problem.field, &problem.value] {
        if !part.is_empty() {
            text.push_str(part);
            text.push_str(": ");
        }
    }
    format!("{text}{}; {}.", problem.what, problem.effect)
}

/// The beginning of a text, of so many bytes at most, cut between two characters.
pub(super) fn cut(text: &str, longest: usize) -> &str {
    &text[..text.floor_char_boundary(longest)]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use reeve_policy::engine::Engine;
    use reeve_policy::model::Level;
    use reeve_policy::store::{Change, Object};
    use serde_json::{Value, json};
    use std::time::Instant;

    /// What is told of these objects when a step has put them into the kernel.
    pub(in super::super) fn outcomes(objects: &[Value]) -> Vec<Outcome> {
        let (mut standings, mut engine) = (crate::standing::Standings::default(), Engine::new("one", 0));
        let apply = |value: &Value| Change::Apply(Object { value: value.clone(), origin: "a test".to_owned() });
        let changes: Vec<Change> = objects.iter().map(apply).collect();
        let now = Instant::now();
        standings.note(&changes, now);
        let problems = engine.apply(changes).problems;
        standings.compiled(now);
        standings.activated(&engine, now);
        Outcome::all(&standings.look(&engine, &problems))
    }

    /// A policy of Kubernetes whose only peer is in this network.
    pub(in super::super) fn policy(generation: i64, network: &str) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": "web", "uid": "u", "generation": generation },
            "spec": { "podSelector": {}, "ingress": [{ "from": [{ "ipBlock": { "cidr": network } }] }] },
        })
    }

    /// A policy of a kind that has a status, with one rule that does this.
    pub(in super::super) fn admin(generation: i64, action: &str) -> Value {
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": { "name": "admin", "uid": "u", "generation": generation },
            "spec": {
                "tier": "Admin", "priority": 1, "subject": { "namespaces": {} },
                "ingress": [{ "action": action, "from": [{ "namespaces": {} }] }],
            },
        })
    }

    /// A problem of a policy, for want of room.
    pub(in super::super) fn no_room(needed: u32) -> Problem {
        Problem {
            level: Level::Warning,
            object: "ClusterNetworkPolicy/admin".to_owned(),
            field: "map PEERS".to_owned(),
            value: "8".to_owned(),
            what: format!("all policies together need {needed} rows"),
            effect: "the policy is refused".to_owned(),
        }
    }

    #[test]
    fn a_sentence_names_field_value_and_effect_and_the_node_if_another_may_have_none_of_it() {
        let problem = Problem {
            level: Level::Warning,
            object: "NetworkPolicy/shop/web".to_owned(),
            field: "spec.ingress[0].ports[1].port".to_owned(),
            value: "70000".to_owned(),
            what: "must be a port from 1 to 65535".to_owned(),
            effect: "this port matches nothing".to_owned(),
        };
        let whole = "spec.ingress[0].ports[1].port: 70000: must be a port from 1 to 65535; this port matches nothing.";
        assert_eq!(sentence(&problem, "one"), whole);
        let object = Problem { field: String::new(), value: String::new(), ..problem };
        assert_eq!(sentence(&object, "one"), "must be a port from 1 to 65535; this port matches nothing.");
        let room = "Node one: map PEERS has no room for all policies; the policy is refused.";
        assert_eq!((sentence(&no_room(9), "one"), sentence(&no_room(10), "one")), (room.to_owned(), room.to_owned()));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((cut("aßc", 2), cut("aßc", 3), cut("abc", 9)), ("a", "aß", "abc"));
    }

    #[test]
    fn of_policies_without_a_status_only_those_are_told_that_are_not_honoured() {
        let names = |objects: &[Value]| -> Vec<(String, State)> {
            outcomes(objects).iter().map(|one| (one.key.name.clone(), one.state)).collect()
        };
        let of = |name: &str, state| vec![(name.to_owned(), state)];
        assert_eq!(names(&[policy(1, "10.0.0.0/8")]), []);
        assert_eq!(names(&[policy(1, "10.0.0.0/99")]), of("web", State::Narrowed));
        assert_eq!(names(&[admin(1, "Accept")]), of("admin", State::Accepted));
    }
}
