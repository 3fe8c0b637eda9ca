//! Kubernetes objects to the model, with a [`Problem`] for each thing not understood. One file per API kind.
//!
//! Invariant: lowering is total and only ever narrows. Each field of a policy is consumed or reported; what cannot be
//! read closes what it touches. Of pods, nodes, namespaces and service accounts only what is used is read.

mod calico;
mod cluster;
mod labels;
mod namespace;
mod network_policy;
mod network_set;
mod node;
mod pod;
mod reader;
mod service;
mod service_account;
mod staged;
mod tunnel;

use crate::model::WorkloadSelector;
use crate::model::{
    DefaultDecider, EndpointSlice, Labels, Level, NamespaceMatch, NetworkSet, Node, Order, Policy, PolicyKind,
};
use crate::model::{PolicyRef, Problem, Rules, Selector, Service, ServiceAccountMatch, StagedPolicy, Tier, Workload};
use crate::store::{ObjectKey, UNREAD_TIER};
use reader::{Field, Sink};
use serde_json::Value;
use std::sync::Arc;

/// What an object amounts to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Lowered {
    Workload(Workload),
    Namespace(Labels),
    Node(Node),
    ServiceAccount(Labels),
    Service(Service),
    EndpointSlice(EndpointSlice),
    NetworkSet(NetworkSet),
    Policy(Policy),
    Staged(StagedPolicy),
    Tier(Tier),
    /// So broken that nothing can be said of it; what was known of it before goes on to hold.
    Unreadable,
    /// Of no concern to policy.
    Nothing,
}

/// Lowers one object.
pub(crate) fn object(key: &ObjectKey, value: &Value) -> (Lowered, Vec<Problem>) {
    let sink = Sink::new(key.to_string());
    let root = Field::root(&sink, value);
    let version = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let lowered = match (key.group.as_str(), key.kind.as_str(), version) {
        ("", "Pod", "v1") => pod::lower(key, &root),
        ("", "Namespace", "v1") => namespace::lower(key, &root),
        ("", "Node", "v1") => node::lower(key, &root),
        ("", "ServiceAccount", "v1") => service_account::lower(key, &root),
        ("", "Service", "v1") => service::lower(key, &root),
        ("discovery.k8s.io", "EndpointSlice", "discovery.k8s.io/v1") => service::slice(key, &root),
        ("networking.k8s.io", "NetworkPolicy", "networking.k8s.io/v1") => {
            Lowered::Policy(network_policy::policy(key, &root))
        }
        ("projectcalico.org", "GlobalNetworkPolicy" | "NetworkPolicy", "projectcalico.org/v3") => {
            Lowered::Policy(calico::policy(key, &root))
        }
        ("projectcalico.org", "Tier", "projectcalico.org/v3") => calico::tier(key, &root),
        ("projectcalico.org", "NetworkSet" | "GlobalNetworkSet", "projectcalico.org/v3") => {
            network_set::lower(key, &root)
        }
        (
            "projectcalico.org",
            "StagedGlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedKubernetesNetworkPolicy",
            "projectcalico.org/v3",
        ) => staged::lower(key, &root),
        ("policy.networking.k8s.io", "ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2") => {
            cluster::lower(key, &root)
        }
        ("policy.networking.k8s.io", "ClusterNetworkPolicy", _) => cluster::unknown_version(key, &root),
        ("", "Pod" | "Namespace" | "Node" | "ServiceAccount" | "Service", _)
        | ("discovery.k8s.io", "EndpointSlice", _)
        | ("projectcalico.org", "Tier" | "NetworkSet" | "GlobalNetworkSet", _) => {
            let effect = "left out; what was known of it before goes on to hold";
            root.at("apiVersion").with(effect).problem(Level::Warning, "this version of the kind is not known");
            Lowered::Unreadable
        }
        ("networking.k8s.io", "NetworkPolicy", _)
        | ("projectcalico.org", "GlobalNetworkPolicy" | "NetworkPolicy", _) => {
            let effect = "denies everything, both ways, for every workload it could select";
            root.at("apiVersion").with(effect).problem(Level::Warning, "this version of the kind is not known");
            Lowered::Policy(closed(key, &root))
        }
        (group, kind, _)
            if kind.ends_with("NetworkPolicy")
                || matches!(group, "policy.networking.k8s.io" | "projectcalico.org" | "crd.projectcalico.org") =>
        {
            root.at("kind")
                .with("not enforced")
                .problem(Level::Warning, "policy objects of this kind and group are not supported in this version");
            Lowered::Nothing
        }
        // Whatever else runs, routes and proxies does not restrict who may reach whom.
        _ => Lowered::Nothing,
    };
    if matches!(lowered, Lowered::Policy(_) | Lowered::Staged(_) | Lowered::NetworkSet(_) | Lowered::Tier(_))
        && let Ok(mut fields) = root.fields()
    {
        fields.ignore(&["apiVersion", "kind", "metadata", "spec", "status"]);
        fields.finish_with(Level::Warning, "this field is not known");
    }
    (lowered, sink.into_problems())
}

/// A UID for an object that has none: UUIDv5 (OID namespace) of kind/namespace/name.
pub(crate) fn made_uid(key: &ObjectKey) -> String {
    let name = format!("{}/{}/{}/{}", key.group, key.kind, key.namespace.as_deref().unwrap_or_default(), key.name);
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
}

/// The object's UID as written, or a made one.
fn uid(key: &ObjectKey, root: &Field<'_>) -> String {
    let made = "the object goes under a number made of its kind, namespace and name";
    match root.find("metadata").and_then(|metadata| metadata.find("uid")) {
        Some(field) => {
            // reported by `text`
            field.with(made).text().ok().filter(|uid| !uid.is_empty()).map_or_else(|| made_uid(key), str::to_owned)
        }
        None => made_uid(key),
    }
}

/// Who a policy is.
fn reference(key: &ObjectKey, root: &Field<'_>) -> Arc<PolicyRef> {
    let kind = match (key.group.as_str(), key.kind.as_str()) {
        ("projectcalico.org", "NetworkPolicy") => PolicyKind::CalicoNetworkPolicy,
        (_, "ClusterNetworkPolicy") => PolicyKind::ClusterNetworkPolicy,
        (_, "StagedGlobalNetworkPolicy") => PolicyKind::StagedGlobalNetworkPolicy,
        (_, "StagedNetworkPolicy") => PolicyKind::StagedNetworkPolicy,
        (_, "StagedKubernetesNetworkPolicy") => PolicyKind::StagedKubernetesNetworkPolicy,
        ("projectcalico.org", _) => PolicyKind::GlobalNetworkPolicy,
        _ => PolicyKind::NetworkPolicy,
    };
    let generation = root.find("metadata").and_then(|metadata| metadata.find("generation"));
    // reported by `integer`
    let generation = generation.and_then(|field| field.with("records name no generation").integer().ok());
    Arc::new(PolicyRef {
        kind,
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: uid(key, root),
        generation,
    })
}

/// A policy of which nothing but its name could be read: before all that it may have been meant to stand before.
fn closed(key: &ObjectKey, root: &Field<'_>) -> Policy {
    let tier = if key.group == "projectcalico.org" { UNREAD_TIER } else { "default" };
    Policy {
        reference: reference(key, root),
        tier: tier.to_owned(),
        order: Some(Order::FIRST),
        subject: everything_in(key.namespace.as_deref()),
        ingress: Rules::Closed(DefaultDecider::UnreadablePolicy),
        egress: Rules::Closed(DefaultDecider::UnreadablePolicy),
        written: None,
    }
}

/// All workloads of a namespace, or of all.
fn everything_in(namespace: Option<&str>) -> WorkloadSelector {
    WorkloadSelector {
        namespace: namespace.map_or(NamespaceMatch::Any, |name| NamespaceMatch::Named(name.to_owned())),
        pod: Selector::Everything,
        service_account: ServiceAccountMatch::Any,
    }
}

impl std::fmt::Display for PolicyRef {
    /// `Kind/namespace/name` or `Kind/name`, as in problems.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{:?}/{namespace}/{}", self.kind, self.name),
            None => write!(f, "{:?}/{}", self.kind, self.name),
        }
    }
}
