//! The kinds of objects that facts are made of, and what is kept of each.

use ::kube::api::{ApiResource, DynamicObject};
use serde_json::{Map, Value, json};

/// A kind of object, as the API server serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) api: ApiResource,
    /// By fields, those that are of concern.
    pub(super) fields: Option<&'static str>,
}

impl Resource {
    pub(super) fn new(group: &str, version: &str, kind: &str, plural: &str) -> Self {
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        // Pods that have ended stay for hours; their addresses are others' by then.
        let of_living = group.is_empty() && kind == "Pod";
        Self {
            api: ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version,
                kind: kind.to_owned(),
                plural: plural.to_owned(),
            },
            fields: of_living.then_some("status.phase!=Succeeded,status.phase!=Failed"),
        }
    }

    /// `pods`, or `networkpolicies.networking.k8s.io`: as RBAC and `kubectl` name it.
    pub(super) fn name(&self) -> String {
        if self.api.group.is_empty() {
            self.api.plural.clone()
        } else {
            format!("{}.{}", self.api.plural, self.api.group)
        }
    }
}

/// Kinds that every API server has.
pub(super) fn built_in() -> Vec<Resource> {
    [
        ("", "v1", "Pod", "pods"),
        ("", "v1", "Namespace", "namespaces"),
        ("", "v1", "Node", "nodes"),
        ("", "v1", "Service", "services"),
        ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
        ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    ]
    .into_iter()
    .map(|(group, version, kind, plural)| Resource::new(group, version, kind, plural))
    .collect()
}

/// The kind whose labels selectors of Calico's policies may read.
pub(super) fn service_accounts() -> Resource {
    Resource::new("", "v1", "ServiceAccount", "serviceaccounts")
}

/// A group of policies that may or may not be served: with the versions that are understood, best first, and the kinds
/// beside policies.
pub(super) struct Optional {
    pub(super) group: &'static str,
    pub(super) versions: &'static [&'static str],
    pub(super) others: &'static [&'static str],
}

pub(super) const CALICO: &str = "projectcalico.org";

/// Those that are looked for.
pub(super) const OPTIONAL: [Optional; 2] = [
    Optional { group: "policy.networking.k8s.io", versions: &["v1alpha2"], others: &[] },
    Optional { group: CALICO, versions: &["v3"], others: &["Tier", "NetworkSet", "GlobalNetworkSet"] },
];

impl Optional {
    /// Whether objects of this kind say who may reach whom; kinds that are not understood are told as such.
    pub(super) fn concerns(&self, kind: &str) -> bool {
        kind.ends_with("NetworkPolicy") || self.others.contains(&kind)
    }
}

/// The annotation of a static pod with the UID that the kubelet made for it.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is kept of an object: the fields that lowering reads, and of policies everything.
pub(super) fn slim(object: DynamicObject, resource: &Resource) -> Value {
    let mut metadata = serde_json::to_value(&object.metadata).unwrap_or_default();
    keep(
        &mut metadata,
        &["name", "namespace", "uid", "labels", "annotations", "generation", "creationTimestamp", "deletionTimestamp"],
    );
    // Tunnels' addresses are told by annotations of nodes; that of a static pod says by which UID the kubelet knows it.
    if resource.api.kind != "Node"
        && let Value::Object(fields) = &mut metadata
    {
        let mirrored = fields.remove("annotations").and_then(|mut all| all.get_mut(MIRROR).map(Value::take));
        if let Some(uid) = mirrored.filter(|_| resource.api.kind == "Pod") {
            fields.insert("annotations".to_owned(), json!({ MIRROR: uid }));
        }
    }
    let mut value = object.data;
    match (resource.api.group.as_str(), resource.api.kind.as_str()) {
        ("", "Pod") => slim_pod(&mut value),
        ("", "Node") => {
            keep(&mut value, &["spec", "status"]);
            within(&mut value, "spec", |spec| keep(spec, &["podCIDRs"]));
            within(&mut value, "status", |status| keep(status, &["addresses"]));
        }
        ("", "Namespace" | "ServiceAccount") => value = json!({}),
        ("", "Service") => within(&mut value, "status", |status| keep(status, &["loadBalancer"])),
        _ => within(&mut value, "status", |status| *status = Value::Null),
    }
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, field| !field.is_null());
        fields.insert("apiVersion".to_owned(), Value::String(resource.api.api_version.clone()));
        fields.insert("kind".to_owned(), Value::String(resource.api.kind.clone()));
        fields.insert("metadata".to_owned(), metadata);
    }
    value
}

fn slim_pod(pod: &mut Value) {
    keep(pod, &["spec", "status"]);
    within(pod, "spec", |spec| {
        keep(spec, &["nodeName", "hostNetwork", "serviceAccountName", "containers", "initContainers"]);
        for list in ["containers", "initContainers"] {
            within(spec, list, |containers| {
                for container in containers.as_array_mut().into_iter().flatten() {
                    keep(container, &["ports", "restartPolicy"]);
                }
            });
        }
    });
    within(pod, "status", |status| keep(status, &["phase", "podIP", "podIPs"]));
}

fn keep(value: &mut Value, names: &[&str]) {
    if let Value::Object(fields) = value {
        let kept: Map<String, Value> =
            names.iter().filter_map(|name| fields.remove_entry(*name)).filter(|(_, field)| !field.is_null()).collect();
        *fields = kept;
    }
}

fn within(value: &mut Value, name: &str, change: impl FnOnce(&mut Value)) {
    if let Some(field) = value.get_mut(name) {
        change(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slimmed(kind: &str, object: Value) -> Value {
        let resource = built_in().into_iter().find(|one| one.api.kind == kind).expect("a built-in kind");
        slim(serde_json::from_value(object).expect("an object"), &resource)
    }

    #[test]
    fn of_a_pod_only_what_lowering_reads_is_kept() {
        let pod = json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "labels": {"PCI": "true"}, "resourceVersion": "7",
                "annotations": {"a": "b"}, "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {
                "nodeName": "one", "serviceAccountName": "web", "tolerations": [{"key": "a"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 80}]}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "Ready"}]},
        });
        let kept = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": {"PCI": "true"}},
            "spec": {
                "nodeName": "one", "serviceAccountName": "web",
                "containers": [{"ports": [{"name": "http", "containerPort": 80}]}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        assert_eq!(slimmed("Pod", pod), kept);
    }

    #[test]
    fn of_a_static_pod_the_uid_that_the_kubelet_made_is_kept() {
        let annotations = json!({"a": "b", "kubernetes.io/config.mirror": "made", "kubernetes.io/config.hash": "made"});
        let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u", "annotations": annotations}});
        assert_eq!(slimmed("Pod", pod)["metadata"]["annotations"], json!({"kubernetes.io/config.mirror": "made"}));
    }

    #[test]
    fn a_policy_is_kept_whole_but_for_who_wrote_it_and_its_status() {
        let policy = json!({
            "metadata": {"name": "p", "namespace": "n", "generation": 3, "managedFields": []},
            "spec": {"podSelector": {}, "aFieldThatNobodyKnows": 1}, "status": {"conditions": []},
        });
        let kept = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "n", "generation": 3},
            "spec": {"podSelector": {}, "aFieldThatNobodyKnows": 1},
        });
        assert_eq!(slimmed("NetworkPolicy", policy), kept);
    }

    #[test]
    fn a_nodes_tunnels_and_addresses_are_kept() {
        let node = json!({
            "metadata": {"name": "one", "annotations": {"projectcalico.org/IPv4VXLANTunnelAddr": "10.0.0.1"}},
            "spec": {"podCIDRs": ["10.0.0.0/24"], "taints": []},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "images": [{}]},
        });
        let kept = slimmed("Node", node);
        assert_eq!(kept["metadata"]["annotations"]["projectcalico.org/IPv4VXLANTunnelAddr"], "10.0.0.1");
        assert_eq!(kept["spec"], json!({"podCIDRs": ["10.0.0.0/24"]}));
        assert_eq!(kept["status"], json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}));
    }
}
