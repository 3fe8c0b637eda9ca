//! Pods that are created through the API server, bound, and wired by the reference CNI plugins: who reaches whom.

use std::net::{IpAddr, SocketAddr};

use reeve_tests::cluster::{Chain, CniError, WiredPod, bridged, point_to_point, port_mapping};
use reeve_tests::lab::{Mode, Netns, Node};
use reeve_tests::traffic::{Server, connect};
use serde_json::{Value, json};

use crate::town::{Company, GENEROUS, Town, skipped_without_agent};

/// A pod as somebody would create it, with a port of its node if one is given.
pub(crate) fn pod(town: &Town, name: &str, host_port: Option<u16>) -> Value {
    let mut port = json!({ "containerPort": 8080, "protocol": "TCP" });
    if let Some(number) = host_port {
        port["hostPort"] = json!(number);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": town.name, "name": name, "labels": { "app": name } },
        "spec": { "containers": [{ "name": "main", "image": "none", "ports": [port] }] },
    })
}

/// The chain of `ptp` or `bridge`, with `portmap` behind.
pub(crate) fn chain(town: &Town, node: &Node, wire: fn(&Node) -> anyhow::Result<Value>) -> Chain {
    let plugins = town.cluster.programs().plugins();
    Chain::of(wire(node).expect("a conflist"), &[&plugins]).expect("a chain").then(port_mapping())
}

#[track_caller]
fn reaches(from: &Netns, to: SocketAddr) {
    assert_eq!(connect(from, to, GENEROUS).and_then(|mut tcp| tcp.exchange(GENEROUS)), Ok(()), "{to}");
}

/// Pods of two nodes reach each other in both families and by a port of the node, until they are deleted.
#[track_caller]
fn check_wiring(name: &str, wire: fn(&Node) -> anyhow::Result<Value>) {
    let town = Town::new(name, Company::Shared);
    let (near, far) = (&town.node, town.cluster.node(&format!("{name}-far"), Mode::Routed).expect("a node"));
    let (near_chain, far_chain) = (chain(&town, near, wire), chain(&town, &far, wire));
    let web = town.cluster.run_pod(near, &near_chain, &pod(&town, "web", Some(9080))).expect("a pod");
    let beside = town.cluster.run_pod(near, &near_chain, &pod(&town, "beside", None)).expect("a pod");
    let away = town.cluster.run_pod(&far, &far_chain, &pod(&town, "away", None)).expect("a pod");

    let told = town.cluster.get(&["pod", "web", "-n", &town.name]).expect("a pod");
    let ips: Vec<Value> = web.addresses().iter().map(|address| json!({ "ip": address })).collect();
    assert_eq!(told["status"]["podIPs"], json!(ips));
    assert_eq!(told["spec"]["nodeName"], near.name());
    assert_eq!(told["metadata"]["uid"], web.sandbox().uid.as_str());
    assert_eq!(web.addresses().iter().map(IpAddr::is_ipv4).collect::<Vec<_>>(), [true, false], "one of each family");

    let servers: Vec<Server> =
        web.addresses().iter().map(|address| Server::tcp(web.netns(), *address, 8080).expect("a server")).collect();
    for server in &servers {
        reaches(beside.netns(), server.address());
        reaches(away.netns(), server.address());
    }
    reaches(far.netns(), SocketAddr::new(near.v4(), 9080));
    // Not of `web`: where a port of the node has two families, portmap 1.1 looks for IPv4's rules among IPv6's.
    beside.check().expect("as it was attached");

    town.cluster.end_pod(&web).expect("deleted");
    assert!(web.netns().mac("eth0").is_err(), "nothing is attached");
    let left = town.cluster.get(&["pods", "-n", &town.name]).expect("a list");
    let names: Vec<&Value> =
        left["items"].as_array().expect("pods").iter().map(|pod| &pod["metadata"]["name"]).collect();
    assert_eq!(names, ["away", "beside"]);
    assert!(connect(far.netns(), SocketAddr::new(near.v4(), 9080), GENEROUS).is_err(), "the node's port leads nowhere");
}

#[test]
fn pods_that_ptp_and_portmap_wire_are_reached_on_their_node_and_from_another() {
    if skipped_without_agent() {
        return;
    }
    check_wiring("wired-ptp", point_to_point);
}

#[test]
fn pods_that_bridge_and_portmap_wire_are_reached_on_their_node_and_from_another() {
    if skipped_without_agent() {
        return;
    }
    check_wiring("wired-bridge", bridged);
}

#[test]
fn plugin_that_fails_is_told_by_its_code_and_leaves_no_wire() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("failing", Company::Shared);
    let good = chain(&town, &town.node, point_to_point);
    // A pod has one `eth0`: who would make it a second time has to fail, with the first one's work to be taken back.
    let failing = good.clone().then(json!({ "type": "bridge", "bridge": "cni9" }));
    let error = town.cluster.run_pod(&town.node, &failing, &pod(&town, "web", None)).map(drop).expect_err("a failure");
    let error = error.downcast::<CniError>().expect("a CNI error");
    assert!(error.plugin == "bridge" && error.code != 0 && error.message.contains("eth0"), "{error:?}");
    let devices = town.node.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("a thread");
    assert!(!devices.expect("devices").contains("veth"), "the wire was taken back");
    let told = town.cluster.get(&["pod", "web", "-n", &town.name]).expect("a pod");
    assert_eq!(told["spec"]["nodeName"], town.name.as_str());
    assert_eq!(told["status"]["podIPs"], Value::Null);
    let again: WiredPod = town.cluster.run_pod(&town.node, &good, &pod(&town, "again", None)).expect("a pod");
    assert_eq!(again.addresses().len(), 2);
}
