//! Kinds of objects that an API server learns by their definitions.

use serde_json::{Value, json};

/// The group of policies that have a status.
const WITH_STATUS: &str = "policy.networking.k8s.io";

/// A definition that takes objects of any form, but for a status that is as its API says.
pub fn definition(group: &str, version: &str, kind: &str, plural: &str, scope: &str) -> Value {
    let singular = kind.to_lowercase();
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let mut version = json!({ "name": version, "served": true, "storage": true, "schema": { "openAPIV3Schema": any } });
    if group == WITH_STATUS {
        version["subresources"] = json!({ "status": {} });
        version["schema"]["openAPIV3Schema"]["properties"] = json!({ "status": status() });
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            // Groups of Kubernetes itself ask who has approved.
            "annotations": { "api-approved.kubernetes.io": "unapproved, a lab's" },
        },
        "spec": {
            "group": group, "scope": scope,
            "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular },
            "versions": [version],
        },
    })
}

/// As the API has it: a list of `metav1.Condition`, one of each type.
fn status() -> Value {
    let name = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
    json!({
        "type": "object", "required": ["conditions"],
        "properties": { "conditions": {
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object", "required": ["lastTransitionTime", "message", "reason", "status", "type"],
                "properties": {
                    "lastTransitionTime": { "type": "string", "format": "date-time" },
                    "message": { "type": "string", "maxLength": 32_768 },
                    "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                    "reason": {
                        "type": "string", "minLength": 1, "maxLength": 1024,
                        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    },
                    "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                    "type": {
                        "type": "string", "maxLength": 316,
                        "pattern": format!("^({name}(\\.{name})*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"),
                    },
                },
            },
        } },
    })
}
