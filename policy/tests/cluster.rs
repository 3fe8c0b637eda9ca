//! ClusterNetworkPolicy: what the API's validation refuses is reported and closes what it touches; nodes are peers by
//! their addresses.

use reeve_policy::manifest;
use reeve_policy::model::{Action, DefaultDecider, Level, Peers, Policy, Problem, Rules, Verdict};
use reeve_policy::oracle;
use reeve_policy::store::{Change, Object, Store};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;

const CLOSED: Rules = Rules::Closed(DefaultDecider::UnreadablePolicy);

/// A policy whose spec has these members in place of good ones.
fn lower(changes: &Value) -> (Arc<Policy>, Vec<Problem>) {
    let mut spec =
        json!({ "tier": "Admin", "priority": 1, "subject": { "namespaces": {} }, "ingress": [rule(&json!({}))] });
    for (name, value) in changes.as_object().expect("members") {
        spec[name] = value.clone();
    }
    let value = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "p"}, "spec": spec});
    let mut store = Store::new("node-1");
    store.apply(Change::Apply(Object { value, origin: "test".to_owned() }));
    let mut policies = store.world().tiers.iter().flat_map(|(_, policies)| policies);
    (Arc::clone(policies.next().expect("the policy is in force")), store.problems())
}

/// An Accept rule for all namespaces, with these members in place of good ones.
fn rule(changes: &Value) -> Value {
    let mut rule = json!({ "action": "Accept", "from": [{ "namespaces": {} }] });
    for (name, value) in changes.as_object().expect("members") {
        rule[name] = value.clone();
    }
    rule
}

#[track_caller]
fn named(problems: &[Problem], field: &str, level: Level) {
    let found: Vec<_> = problems.iter().map(|problem| (problem.field.as_str(), problem.level)).collect();
    assert_eq!(found, [(field, level)]);
}

#[test]
fn a_spec_that_the_api_would_refuse_closes_both_directions() {
    for (changes, field) in [
        (json!({ "priority": 1001 }), "spec.priority"),
        (json!({ "priority": -1 }), "spec.priority"),
        (json!({ "priority": null }), "spec.priority"),
        (json!({ "tier": "admin" }), "spec.tier"),
        (json!({ "subject": {} }), "spec.subject"),
        (
            json!({ "subject": { "namespaces": {}, "pods": { "namespaceSelector": {}, "podSelector": {} } } }),
            "spec.subject",
        ),
        (json!({ "subject": { "pods": { "namespaceSelector": {} } } }), "spec.subject.pods.podSelector"),
        (json!({ "tomorrow": 1 }), "spec.tomorrow"),
    ] {
        let (policy, problems) = lower(&changes);
        named(&problems, field, Level::Warning);
        assert_eq!((&policy.ingress, &policy.egress), (&CLOSED, &CLOSED), "{field}");
    }
    let (policy, problems) = lower(&json!({}));
    assert_eq!((problems, &policy.egress), (Vec::new(), &Rules::NotApplied));
    assert!(matches!(&policy.ingress, Rules::List(list) if list[0].action == Action::Allow));
}

#[test]
fn a_rule_that_the_api_would_refuse_accepts_nobody_or_denies_everyone() {
    let protocols = |protocol: Value| json!({ "protocols": [protocol] });
    let range =
        |start: u16, end: u16| json!({ "tcp": { "destinationPort": { "range": { "start": start, "end": end } } } });
    for (changes, field) in [
        (json!({ "from": [] }), "from"),
        (json!({ "from": null }), "from"),
        (json!({ "from": [{ "namespaces": {}, "pods": { "podSelector": {} } }] }), "from[0]"),
        (json!({ "from": [{ "networks": ["10.0.0.0/8"] }] }), "from[0].networks"),
        (json!({ "protocols": [] }), "protocols"),
        (protocols(json!({ "tcp": {} })), "protocols[0].tcp.destinationPort"),
        (
            protocols(json!({ "tcp": { "destinationPort": { "number": 0 } } })),
            "protocols[0].tcp.destinationPort.number",
        ),
        (protocols(json!({ "tcp": { "destinationPort": {} } })), "protocols[0].tcp.destinationPort"),
        (protocols(range(80, 80)), "protocols[0].tcp.destinationPort.range.end"),
        (protocols(range(90, 80)), "protocols[0].tcp.destinationPort.range.end"),
        (protocols(json!({ "icmp": {} })), "protocols[0].icmp"),
        (protocols(json!({ "destinationNamedPort": "" })), "protocols[0].destinationNamedPort"),
    ] {
        for (action, want, peer) in [
            ("Accept", Action::Allow, Peers::Nobody),
            ("Deny", Action::DenyUnreadable, Peers::Anyone),
            ("Pass", Action::DenyUnreadable, Peers::Anyone),
        ] {
            let mut changes = changes.clone();
            changes["action"] = json!(action);
            let (policy, problems) = lower(&json!({ "ingress": [rule(&changes)] }));
            named(&problems, &format!("spec.ingress[0].{field}"), Level::Warning);
            let Rules::List(rules) = &policy.ingress else { panic!("the list stays a list") };
            assert_eq!((rules[0].action, &rules[0].peer), (want, &peer), "{action}: {field}");
        }
    }
}

#[test]
fn what_is_only_too_long_is_honoured_and_told() {
    let many: Vec<Value> = (0..26).map(|_| rule(&json!({}))).collect();
    let (policy, problems) = lower(&json!({ "ingress": many }));
    named(&problems, "spec.ingress", Level::Note);
    assert!(matches!(&policy.ingress, Rules::List(list) if list.len() == 26));
    let name = "x".repeat(101);
    let (policy, problems) = lower(&json!({ "ingress": [rule(&json!({ "name": name }))] }));
    named(&problems, "spec.ingress[0].name", Level::Note);
    assert!(matches!(&policy.ingress, Rules::List(list) if list[0].name.as_deref() == Some(name.as_str())));
    let peers: Vec<Value> = (0..26).map(|_| json!({ "namespaces": {} })).collect();
    let (policy, problems) = lower(&json!({ "ingress": [rule(&json!({ "from": peers }))] }));
    named(&problems, "spec.ingress[0].from", Level::Note);
    assert!(
        matches!(&policy.ingress, Rules::List(list) if matches!(&list[0].peer, Peers::OneOf(all) if all.len() == 26))
    );
}

#[test]
fn a_version_that_is_not_known_closes_the_subject_alone() {
    let text = r"
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, labels: {app: a}}, status: {podIPs: [{ip: 10.0.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: n}, status: {podIPs: [{ip: 10.0.0.2}]}}
---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: next}
spec: {later: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}}}
";
    let store = store(text);
    named(&store.problems(), "apiVersion", Level::Warning);
    assert_eq!(verdict(&store, "192.0.2.1", "10.0.0.1"), Verdict::Deny);
    assert_eq!(verdict(&store, "192.0.2.1", "10.0.0.2"), Verdict::Allow);
}

#[test]
fn nodes_are_peers_by_their_labels_and_addresses() {
    let node = |name: &str, zone: &str, address: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{zone: {zone}}}}}, status: {{addresses: [{{type: InternalIP, address: {address}}}]}}}}\n---\n"
        )
    };
    let policy = r"
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, labels: {app: a}}, spec: {nodeName: node-1}, status: {podIPs: [{ip: 10.0.0.1}]}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: nodes}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  egress: [{action: Accept, to: [{nodes: {matchLabels: {zone: x}}}]}, {action: Deny, to: [{networks: [0.0.0.0/0]}]}]
";
    let nodes = |zone: &str| node("node-1", zone, "192.0.2.1") + &node("node-2", "y", "192.0.2.2");
    let mut store = store(&(nodes("x") + policy));
    assert_eq!(store.problems(), []);
    assert_eq!(verdict(&store, "10.0.0.1", "192.0.2.1"), Verdict::Allow);
    assert_eq!(verdict(&store, "10.0.0.1", "192.0.2.2"), Verdict::Deny);
    // The labels decide, and change.
    for object in manifest::parse(&nodes("y"), "here").expect("readable") {
        store.apply(Change::Apply(object));
    }
    assert_eq!(verdict(&store, "10.0.0.1", "192.0.2.1"), Verdict::Deny);
}

#[test]
fn nodes_mean_their_status_alone_and_one_that_is_not_whole_denies_everyone_where_it_is_denied() {
    let text = |address: &str, action: &str| {
        format!(
            r"
{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: n}}, spec: {{nodeName: node-1}}, status: {{podIPs: [{{ip: 10.0.0.1}}]}}}}
---
apiVersion: v1
kind: Node
metadata: {{name: node-2, annotations: {{projectcalico.org/IPv4VXLANTunnelAddr: 10.9.9.9}}}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.2}}, {{type: ExternalIP, address: {address}}}]}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: nodes}}
spec: {{tier: Baseline, priority: 1, subject: {{namespaces: {{}}}}, egress: [{{action: {action}, to: [{{nodes: {{}}}}]}}, {{action: Pass, to: [{{networks: [0.0.0.0/0]}}]}}]}}
"
        )
    };
    let judged = |address: &str, action: &str| {
        let store = store(&text(address, action));
        let verdicts = ["192.0.2.2", "10.9.9.9", "203.0.113.1"].map(|to| verdict(&store, "10.0.0.1", to));
        (store.problems().into_iter().map(|problem| problem.field).collect::<Vec<_>>(), verdicts)
    };
    let (allow, deny) = (Verdict::Allow, Verdict::Deny);
    assert_eq!(
        judged("192.0.2.3", "Deny"),
        (vec![], [deny, allow, allow]),
        "an address in a tunnel is no node's status"
    );
    let field = vec!["status.addresses[1].address".to_owned()];
    assert_eq!(judged("192.0.2.300", "Deny"), (field.clone(), [deny, deny, deny]));
    assert_eq!(judged("192.0.2.300", "Accept"), (field, [allow, allow, allow]));
}

#[test]
fn a_pod_reaches_itself_by_its_own_address_whatever_is_said() {
    let text = r"
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n}, status: {podIPs: [{ip: 10.0.0.1}]}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: none}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
";
    let (store, own) = (store(text), "10.0.0.1".parse::<IpAddr>().expect("an address"));
    assert_eq!(oracle::explain(store.world(), own, own, 6, 80).verdict, Verdict::Allow);
    assert_eq!(oracle::explain_through_service(store.world(), own, own, 6, 80).verdict, Verdict::Deny);
}

fn store(text: &str) -> Store {
    let mut store = Store::new("node-1");
    for object in manifest::parse(text, "here").expect("the manifests are readable") {
        store.apply(Change::Apply(object));
    }
    store
}

fn verdict(store: &Store, from: &str, to: &str) -> Verdict {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    oracle::explain(store.world(), ip(from), ip(to), 6, 80).verdict
}
