//! Random staged policies: of the names of enforced ones, and others.

use fastrand::Rng;
use serde_json::{Value, json};

use super::calico::calico;
use super::policies::kubernetes;
use super::{NAMESPACES, chance, pick};

/// Staged kinds, and the kinds and versions that they are previews of.
pub const STAGED: [(&str, &str, &str); 3] = [
    ("StagedGlobalNetworkPolicy", "GlobalNetworkPolicy", "projectcalico.org/v3"),
    ("StagedNetworkPolicy", "NetworkPolicy", "projectcalico.org/v3"),
    ("StagedKubernetesNetworkPolicy", "NetworkPolicy", "networking.k8s.io/v1"),
];

/// Adds staged policies to a third of all worlds.
pub(super) fn add(rng: &mut Rng, objects: &mut Vec<Value>, tiers: &[&str]) {
    if chance(rng, 67) {
        return;
    }
    for number in 0..rng.u8(1..=3) {
        let namespace = pick(rng, &NAMESPACES);
        let object = match rng.u8(..3) {
            0 => calico(rng, number, tiers, None),
            1 => calico(rng, number, tiers, Some(namespace)),
            _ => kubernetes(rng, number),
        };
        objects.push(staged(rng, object));
    }
}

fn staged(rng: &mut Rng, mut object: Value) -> Value {
    let of = |object: &Value| {
        STAGED.iter().find(|(_, kind, version)| object["kind"] == *kind && object["apiVersion"] == *version)
    };
    let (kind, _, _) = of(&object).expect("each enforced kind has a staged one");
    object["apiVersion"] = json!("projectcalico.org/v3");
    object["kind"] = json!(kind);
    if chance(rng, 30) {
        let mut spec = json!({ "stagedAction": "Delete" });
        if let Some(tier) = object["spec"].get("tier") {
            spec["tier"] = tier.clone();
        }
        object["spec"] = spec;
    } else if rng.bool() {
        object["spec"]["stagedAction"] = json!("Set");
    }
    object
}
