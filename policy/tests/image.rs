//! What one change of the facts does to the image: who owns an address, and which endpoints get a new revision.

use reeve_abi::address::{OWNER_CONTESTED, OWNER_REMOTE_POD};
use reeve_abi::ids::Revision;
use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::provenance::workload_id;
use reeve_policy::store::{Change, Object, ObjectKey};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn put(value: Value) -> Change {
    Change::Apply(Object { value, origin: "test".to_owned() })
}

fn pod(name: &str, node: &str, address: &str, labels: &Value) -> Change {
    put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "s", "uid": name, "labels": labels },
        "spec": { "nodeName": node }, "status": { "podIPs": [{ "ip": address }] }
    }))
}

/// `db` lets in who is a client.
fn node() -> Engine {
    let mut engine = Engine::new("node-1", 0);
    engine.apply(vec![
        pod("db", "node-1", "10.0.0.1", &json!({ "app": "db" })),
        pod("peer", "node-2", "10.0.0.2", &json!({})),
        put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "clients", "namespace": "s" },
            "spec": {
                "podSelector": { "matchLabels": { "app": "db" } },
                "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": "client" } } }] }]
            }
        })),
    ]);
    engine
}

fn revision(engine: &Engine) -> Revision {
    engine.image().endpoints[&workload_id("db")].revision
}

#[test]
fn an_address_that_two_pods_claim_is_neithers_until_one_is_gone() {
    let mut engine = node();
    let owner = |engine: &Engine| {
        let value = engine.image().addresses[&mapped("10.0.0.2".parse().expect("an address"))];
        (value.owner, value.workload)
    };
    assert_eq!(owner(&engine), (OWNER_REMOTE_POD, workload_id("peer")));
    let rival = pod("rival", "node-3", "10.0.0.2", &json!({ "role": "client" }));
    let update = engine.apply(vec![rival.clone()]);
    let told: Vec<_> = update.problems.iter().map(|one| (one.object.as_str(), one.value.as_str())).collect();
    assert_eq!(told, [("Pod/s/peer", "10.0.0.2"), ("Pod/s/rival", "10.0.0.2")]);
    assert_eq!(owner(&engine).0, OWNER_CONTESTED);
    assert!(engine.is_contested());
    let Change::Apply(object) = rival else { panic!("it is an object") };
    engine.apply(vec![Change::Delete(ObjectKey::of(&object.value).expect("it has a name"))]);
    assert_eq!(owner(&engine), (OWNER_REMOTE_POD, workload_id("peer")));
    assert!(!engine.is_contested());
}

#[test]
fn identities_of_addresses_are_counted_as_pods_come_change_and_go() {
    let mut engine = node();
    let counted = |engine: &Engine| {
        let shown: BTreeSet<_> = engine.image().addresses.values().map(|value| value.identity).collect();
        assert_eq!(engine.identities_of_addresses(), shown.len());
        shown.len()
    };
    let before = counted(&engine);
    let other = pod("other", "node-3", "10.0.0.9", &json!({ "team": "a" }));
    engine.apply(vec![other.clone()]);
    assert_eq!(counted(&engine), before, "no policy reads what makes it another than peer");
    engine.apply(vec![pod("other", "node-3", "10.0.0.9", &json!({ "role": "client" }))]);
    assert_eq!(counted(&engine), before + 1);
    let Change::Apply(object) = other else { panic!("it is an object") };
    engine.apply(vec![Change::Delete(ObjectKey::of(&object.value).expect("it has a name"))]);
    assert_eq!(counted(&engine), before);
}

#[test]
fn what_a_node_stands_for_is_touched_by_its_own_pods_services_and_addresses_alone() {
    let mut engine = node();
    let labels = json!({ "role": "client" });
    let mut stirs = |change: Change| engine.apply(vec![change]).stand_ins;
    assert!(!stirs(pod("far", "node-2", "10.0.0.20", &labels)));
    assert!(stirs(pod("near", "node-1", "10.0.0.21", &labels)));
    let key = |change: Change| match change {
        Change::Apply(object) => ObjectKey::of(&object.value).expect("it has a name"),
        _ => panic!("it is an object"),
    };
    assert!(!stirs(Change::Delete(key(pod("far", "node-2", "10.0.0.20", &labels)))));
    assert!(stirs(Change::Delete(key(pod("near", "node-1", "10.0.0.21", &labels)))));
    assert!(stirs(Change::LocalAddresses(["10.0.0.1".parse().expect("an address")].into())));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "s" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
    });
    assert!(stirs(put(service)));
}

#[test]
fn a_relabel_that_changes_an_answer_gives_the_endpoint_a_new_revision_and_no_other_does() {
    let mut engine = node();
    let before = revision(&engine);
    engine.apply(vec![pod("peer", "node-2", "10.0.0.2", &json!({ "team": "a" }))]);
    assert_eq!(revision(&engine), before, "no policy asks for that label");
    engine.apply(vec![pod("peer", "node-2", "10.0.0.2", &json!({ "team": "a", "role": "client" }))]);
    assert!(revision(&engine) > before, "live flows of the peer are to be judged again");
}
