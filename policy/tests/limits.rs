//! Policies for which there is no room are refused whole, the last in evaluation order first.

use reeve_policy::engine::Engine;
use reeve_policy::image::mapped;
use reeve_policy::limits::Limits;
use reeve_policy::manifest;
use reeve_policy::model::{Decider, Decision, DefaultDecider, Direction, Family, Verdict};
use reeve_policy::oracle::{self, Query};
use reeve_policy::provenance::workload_id;
use reeve_policy::store::{Change, ObjectKey};
use std::sync::Arc;

const MANIFESTS: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {name: server, namespace: shop, uid: server, labels: {app: server}}, spec: {nodeName: node-1, containers: []}, status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: shop, uid: other, labels: {app: other}}, spec: {nodeName: node-1, containers: []}, status: {phase: Running, podIPs: [{ip: 10.0.0.2}]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: first, uid: first}
spec: {order: 1, selector: app == "server", types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: ["1:1000"]}}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: second, uid: second}
spec: {order: 2, selector: app == "other", types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: ["3:2000"]}}]}
"#;

/// The decision for TCP 443 to a pod from outside; image and oracle must agree on it.
#[track_caller]
fn decision(engine: &Engine, uid: &str) -> Decision {
    let peer = "192.0.2.1".parse().expect("an address");
    let id = engine.image().lookup(workload_id(uid), Direction::Ingress, Family::V4, mapped(peer), 6, 443);
    let found = engine.dictionary().get_decision(id.expect("an endpoint")).map(Arc::unwrap_or_clone).expect("an entry");
    let subject = Arc::clone(&engine.world().workloads[uid]);
    let own = subject.addresses[0];
    let query = Query { subject, direction: Direction::Ingress, own, peer, protocol: 6, port: 443 };
    assert_eq!(found, oracle::judge(engine.world(), &query));
    found
}

#[test]
fn the_last_policy_is_refused_first_and_honoured_again_when_there_is_room() {
    let objects = manifest::parse(MANIFESTS, "here").expect("the manifests are readable");
    let changes: Vec<Change> = objects.into_iter().map(Change::Apply).collect();
    let mut roomy = Engine::new("node-1", 0);
    assert_eq!(roomy.apply(changes.clone()).problems, []);
    assert_eq!(decision(&roomy, "other").verdict, Verdict::Allow);
    let all = roomy.image().ranges.len();
    assert!(all > 2, "both policies need ranges");

    let mut tight = Engine::with_limits("node-1", 0, Limits { ranges: all - 1, ..Limits::NONE });
    let update = tight.apply(changes);
    let told: Vec<&str> = update.problems.iter().map(|problem| problem.object.as_str()).collect();
    assert_eq!(told, [tight.world().tiers.iter().flat_map(|(_, all)| all).last().unwrap().reference.to_string()]);
    assert!(told[0].contains("second"), "{told:?}");
    let problem = &update.problems[0];
    assert_eq!((problem.field.as_str(), problem.value.as_str()), ("map RANGES", (all - 1).to_string().as_str()));
    assert!(problem.is_of_node(), "{problem:?}");
    assert_eq!(decision(&tight, "server").verdict, Verdict::Allow);
    let refused = decision(&tight, "other");
    assert_eq!((refused.verdict, refused.decider), (Verdict::Deny, Decider::Default(DefaultDecider::RefusedPolicy)));

    let first = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": { "name": "first" }
    });
    let update = tight.apply(vec![Change::Delete(ObjectKey::of(&first).expect("a name"))]);
    assert_eq!(update.problems, []);
    assert_eq!(decision(&tight, "other").verdict, Verdict::Allow);
}
