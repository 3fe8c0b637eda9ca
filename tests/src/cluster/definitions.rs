//! Kinds of objects that an API server learns by their definitions.

use serde_json::{Value, json};

/// A definition that takes objects of any form.
pub fn definition(group: &str, version: &str, kind: &str, plural: &str, scope: &str) -> Value {
    let singular = kind.to_lowercase();
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
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
            "versions": [{
                "name": version, "served": true, "storage": true, "schema": { "openAPIV3Schema": any },
            }],
        },
    })
}
