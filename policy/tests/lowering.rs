//! Bad input: each fault is named by field and value, and what it touches is closed, never wider.
#![allow(clippy::needless_pass_by_value, reason = "rows of data are made where they are passed")]

use reeve_policy::model::{Action, DefaultDecider, HostPort, NodeAddress, Peers, Policy, Problem, Rules};
use reeve_policy::store::{Change, Object, Store};
use serde_json::{Value, json};
use std::sync::Arc;

fn lower(spec: Value, calico: bool) -> (Arc<Policy>, Vec<Problem>) {
    let version = if calico { "projectcalico.org/v3" } else { "networking.k8s.io/v1" };
    let value = json!({"apiVersion": version, "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "n"}, "spec": spec});
    let mut store = Store::new("node-1");
    store.apply(Change::Apply(Object { value: value.clone(), origin: "test".to_owned() }));
    assert_eq!(
        store.apply(Change::Apply(Object { value, origin: "test".to_owned() })),
        [],
        "the same again is no change"
    );
    let policies = store.world().tiers.iter().flat_map(|(_, policies)| policies);
    (Arc::clone(policies.last().expect("the policy is in force")), store.problems())
}

#[track_caller]
fn named(problems: &[Problem], field: &str, value: &str) {
    let found: Vec<_> = problems.iter().map(|problem| (problem.field.as_str(), problem.value.as_str())).collect();
    assert_eq!(found, [(field, value)]);
}

#[test]
fn an_unreadable_peer_of_a_network_policy_matches_nobody() {
    for (peer, field, value) in [
        (json!({"ipBlock": {"cidr": "10.0.0.0/99"}}), "ipBlock.cidr", "10.0.0.0/99"),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["192.168.0.0/16"]}}),
            "ipBlock.except[0]",
            "192.168.0.0/16",
        ),
        (json!({"podSelector": {}, "tomorrow": 1}), "tomorrow", "1"),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            "podSelector.matchExpressions[0].values",
            "",
        ),
    ] {
        let (policy, problems) = lower(json!({"ingress": [{"from": [peer]}]}), false);
        named(&problems, &format!("spec.ingress[0].from[0].{field}"), value);
        let Rules::List(rules) = &policy.ingress else { panic!("the list stays a list") };
        assert_eq!(rules[0].peer, Peers::Nobody);
    }
}

#[test]
fn an_unreadable_port_matches_nothing() {
    let (policy, problems) = lower(json!({"ingress": [{"ports": [{"port": 70_000}]}]}), false);
    named(&problems, "spec.ingress[0].ports[0].port", "70000");
    let Rules::List(rules) = &policy.ingress else { panic!("the list stays a list") };
    assert_eq!(rules[0].traffic.any_of, Some(Vec::new()));
}

#[test]
fn an_unknown_field_or_bad_selector_closes_the_policy() {
    let closed = Rules::Closed(DefaultDecider::UnreadablePolicy);
    let (policy, problems) = lower(json!({"tomorrow": true}), false);
    named(&problems, "spec.tomorrow", "true");
    assert_eq!((&policy.ingress, &policy.egress), (&closed, &Rules::NotApplied));
    let (policy, problems) = lower(json!({"selector": "a = 'b'", "types": ["Ingress", "Egress"]}), true);
    named(&problems, "spec.selector", "a = 'b'");
    assert_eq!((&policy.ingress, &policy.egress), (&closed, &closed));
    let (policy, problems) = lower(json!({"tier": "nowhere", "ingress": [{"action": "Allow"}]}), true);
    named(&problems, "spec.tier", "nowhere");
    assert_eq!(policy.ingress, closed);
}

#[test]
fn an_unreadable_calico_rule_allows_nobody_or_denies_everyone() {
    let rule = |action| json!({"ingress": [{"action": action, "source": {"nets": ["10.0.0.0/8", "x"]}}]});
    for (action, want, peer) in [
        ("Allow", Action::Allow, Peers::Nobody),
        ("Deny", Action::DenyUnreadable, Peers::Anyone),
        ("Pass", Action::DenyUnreadable, Peers::Anyone),
    ] {
        let (policy, problems) = lower(rule(action), true);
        named(&problems, "spec.ingress[0].source.nets[1]", "x");
        let Rules::List(rules) = &policy.ingress else { panic!("the list stays a list") };
        assert_eq!((rules[0].action, &rules[0].peer), (want, &peer));
    }
}

#[test]
fn selectors_of_what_a_pod_inherits_or_lacks_close_the_policy() {
    let closed = Rules::Closed(DefaultDecider::UnreadablePolicy);
    for selector in ["pcns.team == 'a'", "app == 'x' && has(pcsa.role)", "!(pcns.team in {'a'})"] {
        let (policy, problems) = lower(json!({"selector": selector}), true);
        named(&problems, "spec.selector", selector);
        assert_eq!(policy.ingress, closed);
        let (policy, problems) =
            lower(json!({"ingress": [{"action": "Deny", "source": {"selector": selector}}]}), true);
        named(&problems, "spec.ingress[0].source.selector", selector);
        let Rules::List(rules) = &policy.ingress else { panic!("the list stays a list") };
        assert_eq!((rules[0].action, &rules[0].peer), (Action::DenyUnreadable, &Peers::Anyone));
    }
    let (_, problems) = lower(json!({"selector": "pcnstance == 'a' && projectcalico.org/namespace == 'n'"}), true);
    assert_eq!(problems, []);
    let global = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "p"},
        "spec": {"namespaceSelector": "global()"}});
    let mut store = Store::new("node-1");
    store.apply(Change::Apply(Object { value: global, origin: "test".to_owned() }));
    named(&store.problems(), "spec.namespaceSelector", "global()");
    let policy = store.world().tiers.iter().find_map(|(_, policies)| policies.first()).expect("it is in force");
    assert_eq!(policy.ingress, closed);
}

#[test]
fn labels_that_only_calico_knows_close_a_kubernetes_policy() {
    for selector in [
        json!({"matchLabels": {"projectcalico.org/namespace": "n"}}),
        json!({"matchExpressions": [{"key": "projectcalico.org/serviceaccount", "operator": "DoesNotExist"}]}),
    ] {
        let (policy, problems) = lower(json!({"podSelector": selector}), false);
        assert_eq!(problems.iter().map(|one| one.field.as_str()).collect::<Vec<_>>(), ["spec.podSelector"]);
        assert_eq!(policy.ingress, Rules::Closed(DefaultDecider::UnreadablePolicy));
    }
    assert_eq!(lower(json!({"podSelector": {"matchLabels": {"projectcalico.org/other": "n"}}}), false).1, []);
}

#[test]
fn policies_of_versions_that_are_not_known_go_before_all_that_they_may_stand_before() {
    for (version, kind, tier) in [
        ("projectcalico.org/v4", "GlobalNetworkPolicy", "unknown tier (unread)"),
        ("projectcalico.org/v4", "NetworkPolicy", "unknown tier (unread)"),
        ("networking.k8s.io/v2", "NetworkPolicy", "default"),
    ] {
        let objects = [
            json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "a"},
                "spec": {"order": -7, "ingress": [{"action": "Allow"}]}}),
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": "p", "namespace": "n"}, "spec": {}}),
        ];
        let mut store = Store::new("node-1");
        for value in objects {
            store.apply(Change::Apply(Object { value, origin: "test".to_owned() }));
        }
        named(&store.problems(), "apiVersion", version);
        let first = store.world().tiers.iter().find(|(_, policies)| !policies.is_empty()).expect("policies");
        assert_eq!((first.0.name.as_str(), first.1[0].reference.name.as_str()), (tier, "p"), "{version} {kind}");
    }
}

#[test]
fn policies_of_other_engines_are_told_of() {
    for (version, kind) in [("cilium.io/v2", "CiliumClusterwideNetworkPolicy"), ("acme/v1", "NetworkPolicy")] {
        let value = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "p"}});
        let mut store = Store::new("node-1");
        store.apply(Change::Apply(Object { value, origin: "test".to_owned() }));
        named(&store.problems(), "kind", kind);
    }
}

#[test]
fn a_document_that_names_no_object_is_told_of_beside_others_of_its_list() {
    let text = "{apiVersion: v1, kind: List, items: [{kind: NetworkPolicy, spec: {}}, {apiVersion: v1, kind: Namespace, metadata: {name: n}}]}";
    let mut store = Store::new("node-1");
    for object in reeve_policy::manifest::parse(text, "p.yaml").expect("it can be read") {
        store.apply(Change::Apply(object));
    }
    let found: Vec<_> = store.problems().into_iter().map(|problem| (problem.object, problem.field)).collect();
    assert_eq!(found, [("p.yaml, document 1, item 1".to_owned(), "apiVersion".to_owned())]);
    assert_eq!(store.world().namespaces.len(), 1);
}

/// The addresses of a node with these annotations, and how many problems there are.
fn node(annotations: Value, networks: Value) -> (Vec<String>, Vec<Problem>) {
    let value = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "node-2", "annotations": annotations },
        "spec": { "podCIDRs": networks },
        "status": { "addresses": [{ "type": "InternalIP", "address": "172.18.0.2" }] }
    });
    let mut store = Store::new("node-1");
    store.apply(Change::Apply(Object { value, origin: "test".to_owned() }));
    let addresses = store.world().nodes["node-2"].own_addresses().map(|address| address.to_string()).collect();
    (addresses, store.problems())
}

#[test]
fn a_nodes_addresses_in_tunnels_are_its_own() {
    let networks = json!(["10.244.2.0/24", "fd00:244:2::/64"]);
    for (annotations, want) in [
        (json!({}), vec!["172.18.0.2"]),
        (json!({"flannel.alpha.coreos.com/backend-type": "host-gw"}), vec!["172.18.0.2"]),
        (json!({"flannel.alpha.coreos.com/backend-type": "vxlan"}), vec!["172.18.0.2", "10.244.2.0", "fd00:244:2::"]),
        (
            json!({
                "projectcalico.org/IPv4VXLANTunnelAddr": "10.244.2.1",
                "projectcalico.org/IPv6WireguardInterfaceAddr": "fd00:244:2::1"
            }),
            vec!["172.18.0.2", "10.244.2.1", "fd00:244:2::1"],
        ),
    ] {
        let (addresses, problems) = node(annotations.clone(), networks.clone());
        assert_eq!((addresses, problems), (want.into_iter().map(str::to_owned).collect(), vec![]), "{annotations}");
    }
}

#[test]
fn an_unreadable_address_in_a_tunnel_is_reported_and_the_others_are_known() {
    let (addresses, problems) = node(json!({"projectcalico.org/IPv4IPIPTunnelAddr": "10.244.2"}), json!([]));
    assert_eq!(addresses, ["172.18.0.2"]);
    named(&problems, "metadata.annotations.projectcalico.org/IPv4IPIPTunnelAddr", "10.244.2");
    let annotations = json!({"flannel.alpha.coreos.com/backend-type": "vxlan"});
    let (addresses, problems) = node(annotations, json!(["10.244.2.0/240", "fd00:244:2::/64"]));
    assert_eq!(addresses, ["172.18.0.2", "fd00:244:2::"]);
    named(&problems, "spec.podCIDRs[0]", "10.244.2.0/240");
}

/// The ports of its node that a pod of this `spec` and phase has, as text, and the problems.
fn host_ports(mut spec: Value, phase: &str) -> (Vec<String>, Vec<Problem>) {
    spec["nodeName"] = json!("node-1");
    let value = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "n", "uid": "u" },
        "spec": spec, "status": { "phase": phase, "podIPs": [{ "ip": "10.244.1.10" }] }
    });
    let mut store = Store::new("node-1");
    store.apply(Change::Apply(Object { value, origin: "test".to_owned() }));
    let text = |port: &HostPort| match port.at {
        NodeAddress::Every => format!("every:{}/{}", port.port, port.protocol),
        NodeAddress::One(address) => format!("{address}:{}/{}", port.port, port.protocol),
    };
    (store.world().workloads["u"].host_ports.iter().map(text).collect(), store.problems())
}

#[test]
fn a_pods_ports_of_its_node_are_those_of_the_containers_that_keep_running() {
    let ports = json!([
        { "containerPort": 8080, "hostPort": 9090 },
        { "containerPort": 8081, "hostPort": 9091, "hostIP": "0.0.0.0", "protocol": "UDP" },
        { "containerPort": 8082, "hostPort": 9092, "hostIP": "::", "protocol": "SCTP" },
        { "containerPort": 8083, "hostPort": 9093, "hostIP": "" },
        { "containerPort": 8084, "hostPort": 9094, "hostIP": "172.18.0.1" },
        { "containerPort": 8085, "hostPort": 0 },
        { "containerPort": 8086 }
    ]);
    let containers = json!([{ "name": "main", "ports": ports }]);
    let once = json!([{ "name": "once", "ports": [{ "containerPort": 1, "hostPort": 1 }] }]);
    let kept = json!([{ "name": "kept", "restartPolicy": "Always", "ports": [{ "containerPort": 2, "hostPort": 2 }] }]);
    let all = ["every:9090/6", "every:9091/17", "every:9092/132", "every:9093/6", "172.18.0.1:9094/6"];
    for (init, phase, want) in [
        (json!([]), "Running", all.to_vec()),
        (once, "Running", all.to_vec()),
        (kept.clone(), "Running", ["every:2/6"].into_iter().chain(all).collect()),
        (kept.clone(), "Pending", ["every:2/6"].into_iter().chain(all).collect()),
        (kept.clone(), "Succeeded", vec![]),
        (kept, "Failed", vec![]),
    ] {
        let (mut found, problems) = host_ports(json!({ "containers": containers, "initContainers": init }), phase);
        let mut want: Vec<String> = want.into_iter().map(str::to_owned).collect();
        found.sort();
        want.sort();
        assert_eq!((found, problems), (want, vec![]), "{phase}");
    }
    let (found, _) = host_ports(json!({ "hostNetwork": true, "containers": containers }), "Running");
    assert_eq!(found, Vec::<String>::new(), "the node's own ports are not translated");
}

#[test]
fn a_pod_with_two_addresses_of_a_family_is_reported_and_known_by_both() {
    for (ips, want, told) in [
        (vec!["10.0.0.1", "fd00::1"], vec!["10.0.0.1", "fd00::1"], None),
        (vec!["10.0.0.1", "10.0.0.1"], vec!["10.0.0.1"], None),
        (vec!["10.0.0.1", "fd00::1", "10.0.0.2"], vec!["10.0.0.1", "fd00::1", "10.0.0.2"], Some((2, "10.0.0.2"))),
    ] {
        let podips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let value = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "n", "uid": "u" },
            "spec": { "nodeName": "node-1" }, "status": { "phase": "Running", "podIPs": podips }
        });
        let mut store = Store::new("node-1");
        store.apply(Change::Apply(Object { value, origin: "test".to_owned() }));
        let addresses: Vec<String> = store.world().workloads["u"].addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, want);
        let problems = store.problems();
        assert_eq!(problems.len(), usize::from(told.is_some()), "{problems:?}");
        if let Some((index, value)) = told {
            named(&problems, &format!("status.podIPs[{index}].ip"), value);
        }
    }
}

#[test]
fn an_unreadable_port_of_a_node_is_reported_and_left_out() {
    for (port, field, value) in [
        (json!({ "containerPort": 1, "hostPort": 70_000 }), "hostPort", "70000"),
        (json!({ "containerPort": 1, "hostPort": "web" }), "hostPort", "web"),
        (json!({ "containerPort": 1, "hostPort": 9090, "hostIP": "172.18.0" }), "hostIP", "172.18.0"),
        (json!({ "containerPort": 1, "hostPort": 9090, "protocol": "QUIC" }), "protocol", "QUIC"),
    ] {
        let good = json!({ "containerPort": 2, "hostPort": 9092 });
        let (found, problems) =
            host_ports(json!({ "containers": [{ "name": "main", "ports": [port, good] }] }), "Running");
        assert_eq!(found, ["every:9092/6"]);
        named(&problems, &format!("spec.containers[0].ports[0].{field}"), value);
        assert!(problems[0].effect.contains("judged as masqueraded"), "{}", problems[0].effect);
    }
}
