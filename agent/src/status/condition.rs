//! The condition of a policy whose kind has a status: whether all of it is honoured.
//!
//! These are the kinds of `policy.networking.k8s.io`, whose `status.conditions` are a list by type. The API names no types; ours
//! has a prefix, as `metav1.Condition` asks of those who are not the kind's owner, so that another engine's stay as they are.

use super::outcome::sentence;
use super::standing::{Standing, State};
use reeve_policy::store::ObjectKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The condition's type.
pub(crate) const TYPE: &str = "reeve/Accepted";
/// Whose fields of the status are ours.
pub(super) const MANAGER: &str = "reeve";

const GROUP: &str = "policy.networking.k8s.io";

/// Kinds that have conditions, with their plurals.
const KINDS: [(&str, &str); 3] = [
    ("ClusterNetworkPolicy", "clusternetworkpolicies"),
    ("AdminNetworkPolicy", "adminnetworkpolicies"),
    ("BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies"),
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

    /// What a policy's condition should be; `now` is RFC 3339, and counts if it differs from the one there is.
    pub(super) fn of(standing: &Standing, there: Option<&Self>, now: &str) -> Self {
        let (status, reason, message) = match standing.state {
            State::Accepted => ("True", "Accepted", "The policy is enforced as it is written.".to_owned()),
            State::Narrowed => ("False", "NotUnderstood", message(standing)),
            State::Refused => ("False", "Refused", message(standing)),
        };
        let kept = there.filter(|there| there.status == status).map(|there| there.last_transition_time.clone());
        Self {
            kind: TYPE.to_owned(),
            status: status.to_owned(),
            observed_generation: standing.named.generation,
            last_transition_time: kept.unwrap_or_else(|| now.to_owned()),
            reason: reason.to_owned(),
            message,
        }
    }

    /// The object to apply to the status of this policy: ours alone.
    pub(super) fn applied_to(&self, standing: &Standing) -> Value {
        let named = &standing.named;
        let mut metadata = json!({ "name": named.key.name });
        if let Some(uid) = &named.uid {
            // Not to another that has taken its name meanwhile.
            metadata["uid"] = json!(uid);
        }
        json!({
            "apiVersion": named.version, "kind": named.key.kind, "metadata": metadata,
            "status": { "conditions": [self] },
        })
    }
}

/// Our condition in an object, apart from its metadata.
pub(crate) fn own(object: &Value) -> Option<Condition> {
    let conditions = object.get("status")?.get("conditions")?.as_array()?;
    let ours = conditions.iter().find(|condition| condition["type"] == TYPE)?;
    // One that somebody has spoilt is as good as none: it is written anew.
    Condition::deserialize(ours).ok()
}

/// The plural of a kind that has conditions.
pub(super) fn plural(key: &ObjectKey) -> Option<&'static str> {
    let kind = KINDS.iter().find(|(kind, _)| key.group == GROUP && key.kind == *kind);
    kind.map(|(_, plural)| *plural)
}

fn message(standing: &Standing) -> String {
    let warnings: Vec<String> = standing.warnings().take(TOLD).map(sentence).collect();
    let all = standing.warnings().count();
    let mut text = if warnings.is_empty() {
        // The world knows it as closed, and no problem says why: so much is certain.
        "The policy denies everything for the workloads it selects, in a direction at least.".to_owned()
    } else {
        warnings.join(" ")
    };
    if all > TOLD {
        text = format!("{text} There are {} more.", all - TOLD);
    }
    super::outcome::cut(&text, LONGEST).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::standing::tests::standings;
    use super::*;

    fn policy(generation: i64, action: &str) -> Standing {
        standings(&[json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": { "name": "admin", "uid": "u", "generation": generation },
            "spec": {
                "tier": "Admin", "priority": 1, "subject": { "namespaces": {} },
                "ingress": [{ "action": action, "from": [{ "namespaces": {} }] }],
            },
        })])
        .swap_remove(0)
    }

    #[test]
    fn a_condition_names_generation_field_and_value_and_moves_its_time_only_with_its_status() {
        let first = Condition::of(&policy(1, "Accept"), None, "T1");
        assert_eq!(
            (first.status.as_str(), first.observed_generation, first.last_transition_time.as_str()),
            ("True", Some(1), "T1")
        );
        let second = Condition::of(&policy(2, "Accept"), Some(&first), "T2");
        assert_eq!((second.observed_generation, second.last_transition_time.as_str()), (Some(2), "T1"));
        assert!(!second.says(&first), "another generation is another condition");
        let third = Condition::of(&policy(3, "Perhaps"), Some(&second), "T3");
        assert_eq!((third.status.as_str(), third.last_transition_time.as_str()), ("False", "T3"));
        assert!(third.message.contains("spec.ingress[0].action") && third.message.contains("Perhaps"), "{third:?}");
        assert!(third.says(&Condition { last_transition_time: "T9".to_owned(), ..third.clone() }));
    }

    #[test]
    fn what_is_applied_is_ours_alone_and_what_is_read_back_is_what_was_applied() {
        let standing = policy(1, "Accept");
        let condition = Condition::of(&standing, None, "2026-01-01T00:00:00Z");
        let mut object = condition.applied_to(&standing);
        assert_eq!(object["metadata"], json!({ "name": "admin", "uid": "u" }));
        let others = object["status"]["conditions"].as_array_mut().expect("a list");
        others.insert(0, json!({ "type": "Ready-In-Zone-a", "status": "True" }));
        assert_eq!(own(&object), Some(condition));
        object["status"]["conditions"][1]["reason"] = json!(7);
        assert_eq!(own(&object), None);
    }

    #[test]
    fn only_kinds_with_a_status_have_conditions() {
        let key = |group: &str, kind: &str| ObjectKey {
            group: group.to_owned(),
            kind: kind.to_owned(),
            namespace: None,
            name: "a".to_owned(),
        };
        assert_eq!(plural(&key(GROUP, "BaselineAdminNetworkPolicy")), Some("baselineadminnetworkpolicies"));
        assert_eq!(plural(&key("networking.k8s.io", "NetworkPolicy")), None);
        assert_eq!(plural(&key("projectcalico.org", "GlobalNetworkPolicy")), None);
    }
}
