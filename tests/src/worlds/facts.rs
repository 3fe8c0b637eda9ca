//! Random network sets and services for rules to name.

use fastrand::Rng;
use serde_json::{Value, json};

use super::{NAMESPACES, NODES, OUTSIDE, chance, pick};

/// Namespaces and names of services; the last one has no backends.
pub(super) const SERVICES: [(&str, &str); 4] = [("red", "web"), ("green", "db"), ("green", "api"), ("blue", "nothing")];

/// Adds network sets, services and their slices.
pub(super) fn add(rng: &mut Rng, objects: &mut Vec<Value>) {
    for number in 0..rng.u8(1..=3) {
        objects.push(network_set(rng, number, None));
    }
    for number in 0..rng.u8(0..=2) {
        let namespace = pick(rng, &NAMESPACES);
        objects.push(network_set(rng, number, Some(namespace)));
    }
    for (index, (namespace, name)) in SERVICES.into_iter().enumerate() {
        let spec = json!({
            "type": "NodePort",
            "clusterIP": format!("10.96.0.{}", index + 1),
            "clusterIPs": [format!("10.96.0.{}", index + 1), format!("fd00:96::{}", index + 1)],
            "ports": [
                { "name": "http", "port": 80, "targetPort": "http", "nodePort": 30_080 + index },
                { "name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30_053 + index * 100 }
            ]
        });
        objects.push(
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": namespace }, "spec": spec }),
        );
        if name != "nothing" {
            for part in 0..rng.u8(1..=3) {
                objects.push(slice(rng, namespace, name, part));
            }
        }
    }
}

fn network_set(rng: &mut Rng, number: u8, namespace: Option<&str>) -> Value {
    let kind = if namespace.is_some() { "NetworkSet" } else { "GlobalNetworkSet" };
    let mut nets = match rng.u8(..4) {
        0 => json!(["198.51.100.0/24", "2001:db8:1::/48"]),
        1 => json!(["198.51.100.128/25", "203.0.113.9", "2001:db8::/32"]),
        2 => json!(["203.0.113.0/24", "10.244.1.20/32", "2001:db8:2::/48"]),
        _ => json!(["192.168.7.0/24", "198.51.100.7/32", "fd00:7::/64", "10.244.1.32/27"]),
    };
    if chance(rng, 4) {
        nets = json!(["198.51.100.0/24", "198.51.100.0/99"]);
    }
    let labels = json!({
        "app": pick(rng, &["web", "db", "api"]), "PCI": pick(rng, &["true", "false"]), "tier": pick(rng, &["front", "back"])
    });
    let mut metadata = json!({ "name": format!("set-{number}"), "labels": labels });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": { "nets": nets } })
}

fn slice(rng: &mut Rng, namespace: &str, service: &str, part: u8) -> Value {
    let v4 = chance(rng, 70);
    let endpoints: Vec<Value> = (0..rng.u8(1..=4))
        .map(|_| {
            let address = match (chance(rng, 75), v4) {
                (true, true) => format!("10.244.1.{}", rng.u8(1..=7) * 10),
                (true, false) => format!("fd00:244:1::{}", rng.u8(1..=7) * 10),
                (false, true) => pick(rng, &[OUTSIDE[0], OUTSIDE[1], OUTSIDE[2], NODES[0]]).to_owned(),
                (false, false) => pick(rng, &[OUTSIDE[3], OUTSIDE[4], OUTSIDE[5], NODES[2]]).to_owned(),
            };
            let address = if chance(rng, 2) { "nowhere".to_owned() } else { address };
            let mut endpoint = json!({ "addresses": [address], "conditions": { "ready": rng.bool() } });
            if rng.bool() {
                let (pod, namespace) = (rng.u8(1..=7), pick(rng, &NAMESPACES));
                endpoint["targetRef"] = json!({ "kind": "Pod", "namespace": namespace, "name": format!("pod-{pod}") });
                if rng.bool() {
                    endpoint["targetRef"]["uid"] = json!(format!("uid-{pod}"));
                }
            }
            endpoint
        })
        .collect();
    let ports = match rng.u8(..4) {
        0 => json!([{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]),
        1 => json!([{ "name": "http", "port": 8080 }, { "name": "dns", "port": 53, "protocol": "UDP" }]),
        2 => json!([{ "name": "http", "port": 80 }, { "name": "alt", "port": 8080 }]),
        _ => json!([{ "name": "every", "protocol": "TCP" }]),
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{part}"), "namespace": namespace, "labels": { "kubernetes.io/service-name": service }
        },
        "addressType": if v4 { "IPv4" } else { "IPv6" }, "ports": ports, "endpoints": endpoints
    })
}
