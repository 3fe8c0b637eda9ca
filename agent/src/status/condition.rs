//! The condition of a policy whose kind has a status: whether all of it is honoured.
//!
//! These are the kinds of `policy.networking.k8s.io`, whose `status.conditions` are a list by type. The API names no types; ours
//! has a prefix, as `metav1.Condition` asks of those who are not the kind's owner, so that another engine's stay as they are.

use super::outcome::{Outcome, cut, sentence};
use crate::standing::State;
use k8s_openapi::jiff::Timestamp;
use kube::api::ApiResource;
use reeve_policy::store::ObjectKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Ours in the status of policies, as they are in the cluster.
pub(crate) type Conditions = BTreeMap<ObjectKey, Condition>;

/// The condition's type.
const TYPE: &str = "reeve/Accepted";

const GROUP: &str = "policy.networking.k8s.io";

/// Kinds that have conditions, as RBAC names them.
const KINDS: [(&str, &str); 3] = [
    ("ClusterNetworkPolicy", "clusternetworkpolicies.policy.networking.k8s.io"),
    ("AdminNetworkPolicy", "adminnetworkpolicies.policy.networking.k8s.io"),
    ("BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies.policy.networking.k8s.io"),
];

/// Problems that a message tells one by one.
const TOLD: usize = 10;

/// Longest message, in bytes; the API allows 32,768.
const LONGEST: usize = 16_384;

/// As the API has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    observed_generation: Option<i64>,
    /// RFC 3339.
    last_transition_time: String,
    reason: String,
    message: String,
}

impl Condition {
    /// Whether it says the same, whenever it came to be so.
    pub(super) fn says(&self, other: &Self) -> bool {
        let when = other.last_transition_time.clone();
        Self { last_transition_time: when, ..self.clone() } == *other
    }

    /// What a policy's condition should be, as this node sees it; `there`: the one that it has. Now is when its status comes to
    /// be another, if it does.
    pub(super) fn of(outcome: &Outcome, there: Option<&Self>, node: &str, now: Timestamp) -> Self {
        let (status, reason, message) = match outcome.state {
            State::Accepted => {
                ("True", "Accepted", "All of the policy is understood; agents enforce it as it is written.".to_owned())
            }
            State::Narrowed => ("False", "NotUnderstood", message(outcome, node)),
            State::Refused => ("False", "Refused", message(outcome, node)),
        };
        let kept = there.filter(|there| there.status == status).map(|there| there.last_transition_time.clone());
        Self {
            kind: TYPE.to_owned(),
            status: status.to_owned(),
            observed_generation: outcome.generation,
            last_transition_time: kept.unwrap_or_else(|| format!("{now:.0}")),
            reason: reason.to_owned(),
            message,
        }
    }

    /// The object to apply to the status of this policy: ours alone. The API server compares no UID here: a policy that has taken
    /// the name of this one meanwhile has its condition until it is heard of, which makes its own due.
    pub(super) fn applied_to(&self, outcome: &Outcome) -> Value {
        json!({
            "apiVersion": outcome.version, "kind": outcome.key.kind, "metadata": { "name": outcome.key.name },
            "status": { "conditions": [self] },
        })
    }
}

/// Our condition in an object, apart from its metadata; none, if it is of a kind that has none.
pub(crate) fn own(group: &str, object: &Value) -> Option<Condition> {
    if group != GROUP {
        return None;
    }
    let conditions = object.get("status")?.get("conditions")?.as_array()?;
    let ours = conditions.iter().find(|condition| condition["type"] == TYPE)?;
    // One that somebody has spoilt is as good as none: it is written anew.
    Condition::deserialize(ours).ok()
}

/// The kind of an object that has conditions, as RBAC names it.
pub(super) fn kind(key: &ObjectKey) -> Option<&'static str> {
    let kind = KINDS.iter().find(|(kind, _)| key.group == GROUP && key.kind == *kind);
    kind.map(|(_, name)| *name)
}

/// As the API server serves a kind of that name.
pub(super) fn resource(outcome: &Outcome, kind: &str) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: outcome.version.rsplit('/').next().unwrap_or_default().to_owned(),
        api_version: outcome.version.clone(),
        kind: outcome.key.kind.clone(),
        plural: kind.split('.').next().unwrap_or(kind).to_owned(),
    }
}

fn message(outcome: &Outcome, node: &str) -> String {
    if outcome.problems.is_empty() {
        // The engine has closed it, and no problem says why: so much is certain.
        return "The policy denies everything for the workloads it selects, in a direction at least.".to_owned();
    }
    let told: Vec<String> = outcome.problems.iter().take(TOLD).map(|problem| sentence(problem, node)).collect();
    let mut text = told.join(" ");
    let left = outcome.problems.len().saturating_sub(TOLD);
    if left > 0 {
        text = format!("{text} There are {left} more.");
    }
    cut(&text, LONGEST).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::{admin, no_room, outcomes};
    use super::*;

    fn policy(generation: i64, action: &str) -> Outcome {
        outcomes(&[admin(generation, action)]).swap_remove(0)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a moment")
    }

    #[test]
    fn a_condition_names_generation_field_and_value_and_moves_its_time_only_with_its_status() {
        let (one, two, three) = ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z", "1970-01-01T00:00:03Z");
        let first = Condition::of(&policy(1, "Accept"), None, "one", at(1));
        assert_eq!(
            (first.status.as_str(), first.observed_generation, first.last_transition_time.as_str()),
            ("True", Some(1), one)
        );
        let second = Condition::of(&policy(2, "Accept"), Some(&first), "one", at(2));
        assert_eq!((second.observed_generation, second.last_transition_time.as_str()), (Some(2), one));
        assert!(!second.says(&first), "another generation is another condition");
        let third = Condition::of(&policy(3, "Perhaps"), Some(&second), "one", at(3));
        assert_eq!((third.status.as_str(), third.last_transition_time.as_str()), ("False", three));
        assert!(third.message.contains("spec.ingress[0].action") && third.message.contains("Perhaps"), "{third:?}");
        assert!(third.says(&Condition { last_transition_time: two.to_owned(), ..third.clone() }));
    }

    #[test]
    fn a_condition_is_the_same_whoever_writes_it_unless_it_is_about_room() {
        let of = |outcome: &Outcome, node: &str| Condition::of(outcome, None, node, at(1));
        let wrong = policy(1, "Perhaps");
        assert_eq!(of(&wrong, "one"), of(&wrong, "two"));
        let crowded =
            |needed| Outcome { problems: vec![no_room(needed)], state: State::Refused, ..policy(1, "Accept") };
        assert_eq!(of(&crowded(9), "one"), of(&crowded(10), "one"));
        assert!(of(&crowded(9), "two").message.starts_with("Node two: "), "{:?}", of(&crowded(9), "two"));
    }

    #[test]
    fn a_policy_with_very_many_problems_has_a_message_that_counts_them() {
        let problems = (0..30).map(|_| policy(1, "Perhaps").problems.swap_remove(0)).collect();
        let message = message(&Outcome { problems, ..policy(1, "Perhaps") }, "one");
        assert!(message.ends_with(" There are 20 more."), "{message}");
    }

    #[test]
    fn what_is_applied_is_ours_alone_and_what_is_read_back_is_what_was_applied() {
        let outcome = policy(1, "Accept");
        let condition = Condition::of(&outcome, None, "one", at(1));
        let mut object = condition.applied_to(&outcome);
        assert_eq!(object["metadata"], json!({ "name": "admin" }));
        let others = object["status"]["conditions"].as_array_mut().expect("a list");
        others.insert(0, json!({ "type": "Ready-In-Zone-a", "status": "True" }));
        assert_eq!((own(GROUP, &object), own("projectcalico.org", &object)), (Some(condition), None));
        object["status"]["conditions"][1]["reason"] = json!(7);
        assert_eq!(own(GROUP, &object), None);
    }

    #[test]
    fn only_kinds_with_a_status_have_conditions() {
        let key = |group: &str, kind: &str| ObjectKey {
            group: group.to_owned(),
            kind: kind.to_owned(),
            namespace: None,
            name: "a".to_owned(),
        };
        assert_eq!(kind(&key(GROUP, "BaselineAdminNetworkPolicy")), Some(KINDS[2].1));
        assert_eq!(kind(&key("networking.k8s.io", "NetworkPolicy")), None);
        assert_eq!(kind(&key("projectcalico.org", "GlobalNetworkPolicy")), None);
    }
}
