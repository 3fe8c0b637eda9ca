//! Random policies of the cluster's owner.

use fastrand::Rng;
use serde_json::{Value, json};

use super::policies::label_selector;
use super::{chance, pick};

/// A `ClusterNetworkPolicy` of either tier.
pub(super) fn policy(rng: &mut Rng, number: u8) -> Value {
    let mut spec = json!({
        "tier": pick(rng, &["Admin", "Baseline", "Baseline"]), "priority": rng.u16(..=1000), "subject": pods(rng)
    });
    for (list, side) in [("ingress", "from"), ("egress", "to")] {
        if chance(rng, 75) {
            let rules: Vec<Value> = (0..rng.u8(1..=3)).map(|_| rule(rng, side)).collect();
            spec[list] = json!(rules);
        }
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": format!("cluster-{number}"), "uid": format!("cluster-{number}"), "generation": 3 },
        "spec": spec
    })
}

/// Namespaces, or pods of namespaces.
fn pods(rng: &mut Rng) -> Value {
    let namespaces = match rng.u8(..3) {
        0 => json!({ "matchLabels": { "team": pick(rng, &["a", "b"]) } }),
        1 => {
            json!({ "matchExpressions": [{ "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["red"] }] })
        }
        _ => json!({}),
    };
    if rng.bool() {
        return json!({ "namespaces": namespaces });
    }
    json!({ "pods": { "namespaceSelector": namespaces, "podSelector": label_selector(rng) } })
}

fn rule(rng: &mut Rng, side: &str) -> Value {
    let mut by_address = false;
    let peers: Vec<Value> = (0..rng.u8(1..=2))
        .map(|_| match rng.u8(..9) {
            0..4 if side == "to" => {
                by_address = true;
                json!({ "nodes": { "matchLabels": { "zone": pick(rng, &["a", "b"]) } } })
            }
            4 | 5 if side == "to" => {
                by_address = true;
                json!({ "networks": [pick(rng, &["0.0.0.0/0", "::/0", "198.51.100.0/24"]), "2001:db8::/32"] })
            }
            _ => pods(rng),
        })
        .collect();
    let mut rule = json!({ "action": pick(rng, &["Accept", "Deny", "Pass"]), side: peers });
    if chance(rng, 40) {
        rule["name"] = json!(pick(rng, &["one", "another"]));
    }
    if chance(rng, 60) {
        let protocols: Vec<Value> = (0..rng.u8(1..=2))
            .map(|_| match rng.u8(..6) {
                0 | 1 if !by_address => json!({ "destinationNamedPort": pick(rng, &["http", "dns"]) }),
                2 => json!({ "udp": { "destinationPort": { "number": 53 } } }),
                3 => json!({ "tcp": { "destinationPort": { "range": { "start": 8000, "end": 8099 } } } }),
                4 => json!({ "sctp": { "destinationPort": { "range": { "start": 1, "end": 65535 } } } }),
                _ => {
                    json!({ "tcp": { "destinationPort": { "number": *rng.choice(&[80, 8080]).expect("not empty") } } })
                }
            })
            .collect();
        rule["protocols"] = json!(protocols);
    }
    rule
}
