//! Random policies of Calico's.

use fastrand::Rng;
use serde_json::{Value, json};

use super::facts::SERVICES;
use super::{chance, pick};

pub(super) const SELECTORS: [&str; 8] = [
    "all()",
    "app == \"web\"",
    "app != \"db\"",
    "has(PCI)",
    "PCI == \"true\" && !(tier == \"back\")",
    "app in {\"web\", \"api\"} || !has(tier)",
    "app starts with \"w\" || tier ends with \"ck\"",
    "app contains \"b\"",
];

pub(super) fn calico(rng: &mut Rng, number: u8, tiers: &[&str], namespace: Option<&str>) -> Value {
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
            let mut rules: Vec<Value> = (0..rng.u8(1..=5)).map(|_| calico_rule(rng, list)).collect();
            // Without it, most flows would be left to the default of the tier.
            match rng.u8(..10) {
                0..3 => rules.push(json!({
                    "action": pick(rng, &["Allow", "Deny"]), "protocol": pick(rng, &["TCP", "UDP"]),
                    "destination": { "ports": ["http", "dns"] }
                })),
                3..5 => {
                    let (protocol, kind) = *rng.choice(&[("ICMP", 8), ("ICMPv6", 128)]).expect("not empty");
                    let action = pick(rng, &["Allow", "Pass", "Deny"]);
                    rules.push(json!({ "action": action, "protocol": protocol, "icmp": { "type": kind } }));
                }
                5 => rules.push(json!({ "action": "Pass" })),
                _ => {}
            }
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
    if chance(rng, 75) {
        rule[peer] = side(rng);
    }
    if chance(rng, 12) {
        rule[own] = json!({ "selector": pick(rng, &SELECTORS) });
    }
    // A service brings its own ports.
    let ports_allowed = list == "ingress" || rule[peer].get("services").is_none();
    match rng.u8(..17) {
        0..8 => {
            rule["protocol"] = [json!("TCP"), json!("TCP"), json!("UDP"), json!(6)][rng.usize(..4)].clone();
            if !ports_allowed {
            } else if chance(rng, 80) {
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
                let ports = if rng.bool() { json!(["http"]) } else { json!([80, "8050:8099"]) };
                rule["destination"]["notPorts"] = ports;
            }
        }
        8 => rule["notProtocol"] = [json!("UDP"), json!(132), json!("TCP")][rng.usize(..3)].clone(),
        9..12 => {
            let (protocol, kind) = *rng.choice(&[("ICMP", 8), ("ICMPv6", 128)]).expect("not empty");
            rule["protocol"] = json!(protocol);
            match rng.u8(..4) {
                0 | 1 => rule["icmp"] = json!({ "type": kind }),
                2 => rule["icmp"] = json!({ "type": kind, "code": 0 }),
                _ => rule["notICMP"] = json!({ "type": kind, "code": 1 }),
            }
        }
        12 => rule["ipVersion"] = json!(*rng.choice(&[4, 6]).expect("not empty")),
        13 | 14 => rule["protocol"] = json!(47),
        _ => {}
    }
    rule
}

/// The other side of a rule.
fn side(rng: &mut Rng) -> Value {
    match rng.u8(..21) {
        20 => json!({ "notNets": ["10.244.1.0/27", "198.51.100.0/24", "2001:db8::/32"] }),
        0 | 1 => json!({ "selector": pick(rng, &SELECTORS) }),
        2 => json!({ "namespaceSelector": pick(rng, &["team == \"b\"", "all()"]), "selector": pick(rng, &SELECTORS) }),
        3 => json!({ "namespaceSelector": "global()", "selector": pick(rng, &["all()", "has(PCI)"]) }),
        4 | 5 => json!({ "nets": ["198.51.100.0/24", "10.244.1.0/27"], "notNets": ["198.51.100.128/25"] }),
        6 => json!({ "notSelector": pick(rng, &SELECTORS) }),
        7 | 18 => json!({ "serviceAccounts": { "names": ["robot"] } }),
        8 | 19 => json!({ "serviceAccounts": { "selector": pick(rng, &["role == \"batch\"", "role != \"batch\""]) } }),
        9 => json!({ "nets": ["192.168.7.0/30", "10.244.1.16/28", "0.0.0.0/1"], "notNets": ["10.244.1.30"] }),
        10..15 => {
            let (namespace, name) = *rng.choice(&SERVICES).expect("not empty");
            json!({ "services": { "namespace": namespace, "name": name } })
        }
        15 => json!({ "selector": pick(rng, &SELECTORS), "nets": ["10.244.0.0/16", "198.51.100.0/24"] }),
        _ => json!({ "nets": ["2001:db8::/32", "fd00:244:1::/64"], "notNets": ["2001:db8:1:ff::/64"] }),
    }
}
