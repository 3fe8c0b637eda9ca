//! Random policies of all API families, weighted so that each kind of rule decides a fair share of flows.

use fastrand::Rng;
use serde_json::{Value, json};

use super::calico::calico;
use super::{NAMESPACES, chance, cluster, pick, staged};

/// Adds tiers and policies.
pub(super) fn add(rng: &mut Rng, objects: &mut Vec<Value>) {
    let tiers: Vec<&str> = ["security", "platform"].into_iter().filter(|_| chance(rng, 60)).collect();
    for (index, tier) in tiers.iter().enumerate() {
        let mut spec = json!({ "order": 100 * (index + 1) });
        if chance(rng, 60) {
            spec["defaultAction"] = json!(pick(rng, &["Pass", "Deny"]));
        }
        objects.push(
            json!({ "apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": { "name": tier }, "spec": spec }),
        );
    }
    for number in 0..rng.u8(2..=5) {
        objects.push(kubernetes(rng, number));
    }
    for number in 0..rng.u8(1..=3) {
        objects.push(calico(rng, number, &tiers, None));
    }
    for number in 0..rng.u8(2..=6) {
        let namespace = pick(rng, &NAMESPACES);
        objects.push(calico(rng, number, &tiers, Some(namespace)));
    }
    for number in 0..rng.u8(1..=4) {
        objects.push(cluster::policy(rng, number));
    }
    staged::add(rng, objects, &tiers);
}

pub(super) fn label_selector(rng: &mut Rng) -> Value {
    match rng.u8(..5) {
        0 => json!({}),
        1 => json!({ "matchLabels": { "app": pick(rng, &["web", "db", "api"]) } }),
        2 => json!({ "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["front"] }] }),
        3 => json!({ "matchExpressions": [{ "key": "PCI", "operator": pick(rng, &["Exists", "DoesNotExist"]) }] }),
        _ => json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["db"] }] }),
    }
}

fn block(rng: &mut Rng) -> Value {
    match rng.u8(..7) {
        5 => json!({ "cidr": "::/0" }),
        6 => json!({ "cidr": "::/0", "except": ["fd00:244:1::/64", "2001:db8:1::/48"] }),
        0 if chance(rng, 50) => json!({ "cidr": "0.0.0.0/0" }),
        0 | 1 => json!({ "cidr": "0.0.0.0/0", "except": ["10.244.0.0/16", "198.51.100.128/25"] }),
        2 => json!({ "cidr": "2001:db8::/32", "except": ["2001:db8:1:ff::/64"] }),
        3 => json!({ "cidr": "198.51.100.0/24", "except": ["198.51.100.128/25"] }),
        _ => json!({ "cidr": "10.244.1.0/26", "except": ["10.244.1.20/32"] }),
    }
}

pub(super) fn kubernetes(rng: &mut Rng, number: u8) -> Value {
    let mut spec = json!({ "podSelector": label_selector(rng) });
    let types = match rng.u8(..4) {
        0 => None,
        1 => Some(json!(["Ingress"])),
        2 => Some(json!(["Egress"])),
        _ => Some(json!(["Ingress", "Egress"])),
    };
    let has =
        |direction: &str| types.as_ref().is_none_or(|t| t.as_array().is_some_and(|t| t.contains(&json!(direction))));
    for (direction, list, side) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
        if has(direction) && chance(rng, 85) {
            let rules: Vec<Value> = (0..rng.u8(1..=5)).map(|_| kubernetes_rule(rng, side)).collect();
            spec[list] = json!(rules);
        }
    }
    if let Some(types) = types {
        spec["policyTypes"] = types;
    }
    let namespace = pick(rng, &NAMESPACES);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": format!("np-{number}"), "namespace": namespace, "uid": format!("np-{number}"), "generation": 1 },
        "spec": spec
    })
}

fn kubernetes_rule(rng: &mut Rng, side: &str) -> Value {
    let mut rule = json!({});
    if chance(rng, 65) {
        let peers: Vec<Value> = (0..rng.u8(1..=2))
            .map(|_| match rng.u8(..8) {
                0 => json!({ "podSelector": label_selector(rng) }),
                1 => json!({ "namespaceSelector": { "matchLabels": { "team": pick(rng, &["a", "b"]) } } }),
                2 => json!({ "namespaceSelector": {}, "podSelector": label_selector(rng) }),
                _ => json!({ "ipBlock": block(rng) }),
            })
            .collect();
        rule[side] = json!(peers);
    }
    if chance(rng, 75) {
        let ports: Vec<Value> = (0..rng.u8(1..=2))
            .map(|_| match rng.u8(..10) {
                0..5 => {
                    let (name, protocol) = *rng.choice(&[("http", "TCP"), ("http", "TCP"), ("dns", "UDP"), ("dns", "TCP")]).expect("not empty");
                    json!({ "port": name, "protocol": protocol })
                }
                5..8 => json!({ "port": 8000, "endPort": *rng.choice(&[8099, 65535]).expect("not empty") }),
                8 => json!({ "port": *rng.choice(&[80, 443, 53]).expect("not empty"), "protocol": pick(rng, &["TCP", "UDP", "SCTP"]) }),
                _ => json!({ "protocol": pick(rng, &["TCP", "UDP", "SCTP"]) }),
            })
            .collect();
        rule["ports"] = json!(ports);
    }
    rule
}
