//! Names of objects, and what a document holds.

use crate::model::{Level, Problem};
use serde_json::Value;

/// Names an object among all others. The version is left out: it is one object in each of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace; none for cluster-wide kinds.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// Reads the key of an object. A namespaced kind that names no namespace is in `default`, as for kubectl. The
    /// problem's `object` is what could be read of it; the caller knows the place where it was found.
    pub fn of(value: &Value) -> Result<Self, Problem> {
        let text = |parent: &Value, field: &str, path: &str| match parent.get(field) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
            found => Err(Problem {
                level: Level::Warning,
                object: value.get("kind").and_then(Value::as_str).unwrap_or("document").to_owned(),
                field: path.to_owned(),
                value: found.map(ToString::to_string).unwrap_or_default(),
                what: "an object needs this field, as text that is not empty".to_owned(),
                effect: "the document names no object and is left out".to_owned(),
            }),
        };
        let version = text(value, "apiVersion", "apiVersion")?;
        let kind = text(value, "kind", "kind")?;
        let metadata = value.get("metadata").unwrap_or(&Value::Null);
        let name = text(metadata, "name", "metadata.name")?;
        let group = version.split_once('/').map_or("", |(group, _)| group).to_owned();
        let namespace = match (group.as_str(), kind.as_str()) {
            ("", "Node" | "Namespace")
            | (
                "projectcalico.org",
                "GlobalNetworkPolicy" | "StagedGlobalNetworkPolicy" | "GlobalNetworkSet" | "Tier",
            )
            | ("policy.networking.k8s.io", "ClusterNetworkPolicy") => None,
            (group, kind) => {
                let namespaced = matches!(
                    (group, kind),
                    ("", "Pod" | "ServiceAccount" | "Service")
                        | ("discovery.k8s.io", "EndpointSlice")
                        | (_, "NetworkPolicy")
                        | ("projectcalico.org", "NetworkSet" | "StagedNetworkPolicy" | "StagedKubernetesNetworkPolicy")
                );
                match metadata.get("namespace") {
                    None | Some(Value::Null) => namespaced.then(|| "default".to_owned()),
                    Some(Value::String(text)) if text.is_empty() => namespaced.then(|| "default".to_owned()),
                    Some(_) => Some(text(metadata, "namespace", "metadata.namespace")?),
                }
            }
        };
        Ok(Self { group, kind, namespace, name })
    }
}

/// `Kind/namespace/name` or `Kind/name`; Calico's NetworkPolicy is told from that of Kubernetes.
impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.kind == "NetworkPolicy" && self.group == "projectcalico.org" {
            f.write_str("Calico")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, "{}/{namespace}/{}", self.kind, self.name),
            None => write!(f, "{}/{}", self.kind, self.name),
        }
    }
}

/// The objects that a document holds: the items of a `List` (of any depth), nothing for an empty document, or itself.
pub fn objects_of(value: Value) -> Vec<Value> {
    let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    match value {
        Value::Null => Vec::new(),
        Value::Object(mut object) if is_list && object.get("items").is_some_and(Value::is_array) => {
            let Some(Value::Array(items)) = object.remove("items") else { return Vec::new() };
            let group = object.remove("apiVersion");
            let kind = object.remove("kind");
            let kind = kind
                .as_ref()
                .and_then(Value::as_str)
                .and_then(|kind| kind.strip_suffix("List"))
                .unwrap_or_default()
                .to_owned();
            items.into_iter().map(|item| typed(item, group.as_ref(), &kind)).flat_map(objects_of).collect()
        }
        value => vec![value],
    }
}

/// Items of a `PodList` and the like say their kind only in the list.
fn typed(mut item: Value, version: Option<&Value>, kind: &str) -> Value {
    if let Value::Object(object) = &mut item
        && !kind.is_empty()
        && let Some(version) = version
    {
        object.entry("apiVersion").or_insert_with(|| version.clone());
        object.entry("kind").or_insert_with(|| Value::String(kind.to_owned()));
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_are_flattened_and_typed_lists_type_their_items() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
        let untyped = json!({"metadata": {"name": "a"}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [pod, {"apiVersion": "v1", "kind": "PodList", "items": [untyped]}]});
        assert_eq!(objects_of(list), vec![pod.clone(), pod]);
        assert_eq!(objects_of(Value::Null), Vec::<Value>::new());
    }

    #[test]
    fn keys_leave_out_the_version_and_know_the_scope() {
        let key = |value| ObjectKey::of(&value).map(|key| key.to_string());
        let named = |version: &str, kind: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}});
        assert_eq!(key(named("v1", "Pod")), Ok("Pod/default/a".to_owned()));
        assert_eq!(key(named("v1", "Node")), Ok("Node/a".to_owned()));
        assert_eq!(key(named("projectcalico.org/v3", "NetworkPolicy")), Ok("CalicoNetworkPolicy/default/a".to_owned()));
        assert_eq!(key(named("projectcalico.org/v3", "Tier")), Ok("Tier/a".to_owned()));
        let nameless = key(json!({"apiVersion": "v1", "kind": "Pod"})).expect_err("it has no name");
        assert_eq!((nameless.object.as_str(), nameless.field.as_str()), ("Pod", "metadata.name"));
    }
}
