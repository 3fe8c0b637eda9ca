//! The manifests of Services and of their EndpointSlices.

use serde_json::{Value, json};

use super::Entry;
use super::spec::{Affinity, Backend, ExternalPolicy};
use crate::lab::Manifests;

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Writes or replaces them; the slices first, as nobody asks for them before the Service is there.
pub(super) fn write(manifests: &Manifests, entry: &Entry) -> anyhow::Result<()> {
    for (index, family) in FAMILIES.iter().enumerate() {
        manifests.write(&slice_name(entry, family), &slice(entry, family, index == 1))?;
    }
    manifests.write(&service_name(entry), &service(entry))
}

/// Removes them.
pub(super) fn remove(manifests: &Manifests, entry: &Entry) -> anyhow::Result<()> {
    manifests.remove(&service_name(entry))?;
    FAMILIES.iter().try_for_each(|family| manifests.remove(&slice_name(entry, family)))
}

fn service_name(entry: &Entry) -> String {
    format!("service-{}-{}", entry.spec.namespace, entry.spec.name)
}

fn slice_name(entry: &Entry, family: &str) -> String {
    format!("endpointslice-{}-{}-{}", entry.spec.namespace, entry.spec.name, family.to_lowercase())
}

fn service(entry: &Entry) -> Value {
    let spec = &entry.spec;
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            let mut value = json!({
                "name": port.name(), "protocol": port.transport.name(), "port": port.port, "targetPort": port.target,
            });
            if let Some(node_port) = port.node_port {
                value["nodePort"] = node_port.into();
            }
            value
        })
        .collect();
    let on_nodes = spec.ports.iter().any(|port| port.node_port.is_some());
    let mut value = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": spec.namespace, "name": spec.name },
        "spec": {
            "type": if on_nodes { "NodePort" } else { "ClusterIP" },
            "clusterIP": entry.addresses[0],
            "clusterIPs": entry.addresses,
            "ipFamilies": FAMILIES,
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
            "sessionAffinity": if spec.affinity == Affinity::ClientIp { "ClientIP" } else { "None" },
        },
    });
    if on_nodes {
        let policy = if spec.external_policy == ExternalPolicy::Local { "Local" } else { "Cluster" };
        value["spec"]["externalTrafficPolicy"] = policy.into();
    }
    value
}

fn slice(entry: &Entry, family: &str, v6: bool) -> Value {
    let spec = &entry.spec;
    let endpoint = |backend: &Backend| {
        let address = backend.addresses.iter().find(|address| address.is_ipv6() == v6)?;
        let mut value = json!({
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": backend.node,
        });
        if !backend.target.is_null() {
            value["targetRef"] = backend.target.clone();
        }
        Some(value)
    };
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| json!({ "name": port.name(), "protocol": port.transport.name(), "port": port.target }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": spec.namespace,
            "name": format!("{}-{}", spec.name, family.to_lowercase()),
            "labels": { "kubernetes.io/service-name": spec.name },
        },
        "addressType": family,
        "endpoints": entry.backends.iter().filter_map(endpoint).collect::<Vec<_>>(),
        "ports": ports,
    })
}
