//! Random policies of both API families, weighted so that each kind of rule decides a fair share of flows.

use fastrand::Rng;
use serde_json::{Value, json};

use super::{NAMESPACES, chance, pick};

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
    for number in 0..rng.u8(3..=6) {
        objects.push(kubernetes(rng, number));
    }
    for number in 0..rng.u8(0..=2) {
        objects.push(calico(rng, number, &tiers, None));
    }
    for number in 0..rng.u8(1..=4) {
        let namespace = pick(rng, &NAMESPACES);
        objects.push(calico(rng, number, &tiers, Some(namespace)));
    }
}

fn label_selector(rng: &mut Rng) -> Value {
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

fn kubernetes(rng: &mut Rng, number: u8) -> Value {
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
            let rules: Vec<Value> = (0..rng.u8(0..=4)).map(|_| kubernetes_rule(rng, side)).collect();
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
            .map(|_| match rng.u8(..6) {
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

const SELECTORS: [&str; 8] = [
    "all()",
    "app == \"web\"",
    "app != \"db\"",
    "has(PCI)",
    "PCI == \"true\" && !(tier == \"back\")",
    "app in {\"web\", \"api\"} || !has(tier)",
    "app starts with \"w\" || tier ends with \"ck\"",
    "app contains \"b\"",
];

fn calico(rng: &mut Rng, number: u8, tiers: &[&str], namespace: Option<&str>) -> Value {
    let tier = if !tiers.is_empty() && chance(rng, 75) { pick(rng, tiers) } else { "default" };
    let kind = if namespace.is_some() { "NetworkPolicy" } else { "GlobalNetworkPolicy" };
    let prefix = if namespace.is_some() { "cnp" } else { "gnp" };
    let mut spec = json!({ "tier": tier, "selector": pick(rng, &SELECTORS) });
    if chance(rng, 70) {
        spec["order"] = json!(rng.u16(1..2000));
    }
    if namespace.is_none() && chance(rng, 25) {
        spec["namespaceSelector"] = json!("team == \"a\"");
    }
    if chance(rng, 10) {
        spec["serviceAccountSelector"] = json!("role == \"batch\"");
    }
    let mut types = Vec::new();
    for (direction, list) in [("Ingress", "ingress"), ("Egress", "egress")] {
        if chance(rng, 85) {
            types.push(direction);
            let rules: Vec<Value> = (0..rng.u8(1..=5)).map(|_| calico_rule(rng, list)).collect();
            spec[list] = json!(rules);
        }
    }
    if types.is_empty() {
        types.push("Ingress");
    }
    spec["types"] = json!(types);
    let name = format!("{tier}.{prefix}-{number}");
    let mut metadata = json!({ "name": name, "uid": format!("{prefix}-{number}"), "generation": 2 });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec })
}

fn calico_rule(rng: &mut Rng, list: &str) -> Value {
    let action = pick(rng, &["Allow", "Allow", "Deny", "Deny", "Pass", "Pass", "Log"]);
    let mut rule = json!({ "action": action });
    let (peer, own) = if list == "ingress" { ("source", "destination") } else { ("destination", "source") };
    if chance(rng, 70) {
        rule[peer] = match rng.u8(..9) {
            6 => json!({ "serviceAccounts": { "names": ["robot"] } }),
            7 => json!({ "nets": ["192.168.7.0/30", "10.244.1.16/28"] }),
            0 | 1 => json!({ "selector": pick(rng, &SELECTORS) }),
            2 => {
                json!({ "namespaceSelector": pick(rng, &["team == \"b\"", "all()"]), "selector": pick(rng, &SELECTORS) })
            }
            3 | 8 => json!({ "nets": ["198.51.100.0/24", "10.244.1.0/27"], "notNets": ["198.51.100.128/25"] }),
            4 => json!({ "notSelector": pick(rng, &SELECTORS) }),
            _ => json!({ "nets": ["2001:db8::/32", "fd00:244:1::/64"], "notNets": ["2001:db8:1:ff::/64"] }),
        };
    }
    if chance(rng, 12) {
        rule[own] = json!({ "selector": pick(rng, &SELECTORS) });
    }
    match rng.u8(..14) {
        0..8 => {
            rule["protocol"] = json!(pick(rng, &["TCP", "TCP", "UDP"]));
            if chance(rng, 80) {
                let ports = [
                    json!([80, 443]),
                    json!(["8000:8099"]),
                    json!(["8000:8099"]),
                    json!(["http", "dns"]),
                    json!(["http", "dns"]),
                    json!(["http"]),
                    json!(["1:65535"]),
                    json!(["dns", 5432]),
                ];
                rule["destination"]["ports"] = ports[rng.usize(..ports.len())].clone();
            } else if chance(rng, 50) {
                rule["destination"]["notPorts"] = json!([80, "8050:8099"]);
            }
        }
        8 => rule["notProtocol"] = json!("UDP"),
        9 => {
            rule["protocol"] = json!("ICMP");
            rule["icmp"] = json!({ "type": 8 });
        }
        10 => rule["ipVersion"] = json!(*rng.choice(&[4, 6]).expect("not empty")),
        11 => rule["protocol"] = json!(47),
        _ => {}
    }
    rule
}
