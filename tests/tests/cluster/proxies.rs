//! Services that the real kube-proxy translates, on each of two nodes in another way.

use std::net::{IpAddr, SocketAddr};

use reeve_tests::cluster::{ProxyMode, WiredPod, point_to_point};
use reeve_tests::lab::{Mode, until};
use reeve_tests::traffic::{PATIENCE, Server, connect};
use serde_json::{Value, json};

use crate::town::{Company, LONG, Town, skipped_without_agent};
use crate::wiring::{chain, pod};

#[test]
fn service_is_reached_by_rules_of_iptables_and_by_rules_of_nftables() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("proxies", Company::Shared);
    let (one, other) = (&town.node, town.cluster.node("proxies-far", Mode::Routed).expect("a node"));
    let (one_chain, other_chain) = (chain(&town, one, point_to_point), chain(&town, &other, point_to_point));
    let web = town.cluster.run_pod(one, &one_chain, &pod(&town, "web", None)).expect("a pod");
    let near = town.cluster.run_pod(one, &one_chain, &pod(&town, "near", None)).expect("a pod");
    let far = town.cluster.run_pod(&other, &other_chain, &pod(&town, "far", None)).expect("a pod");
    let _servers: Vec<Server> =
        web.addresses().iter().map(|address| Server::tcp(web.netns(), *address, 8080).expect("a server")).collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": town.name, "name": "web" },
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": { "app": "web" },
            "ports": [{ "port": 80, "targetPort": 8080 }],
        },
    });
    town.cluster.apply(&[service]).expect("a Service");
    let told = town.cluster.get(&["service", "web", "-n", &town.name]).expect("a Service");
    let addresses: Vec<IpAddr> = told["spec"]["clusterIPs"]
        .as_array()
        .expect("addresses")
        .iter()
        .map(|address| address.as_str().and_then(|text| text.parse().ok()).expect("an address"))
        .collect();
    assert_eq!(addresses.len(), 2, "{told}");

    // Without anybody to translate, its address leads nowhere.
    for client in [&near, &far] {
        assert!(connect(client.netns(), SocketAddr::new(addresses[0], 80), PATIENCE).is_err());
    }
    let _iptables = town.cluster.start_proxy(one, ProxyMode::Iptables).expect("kube-proxy");
    let _nftables = town.cluster.start_proxy(&other, ProxyMode::Nftables).expect("kube-proxy");
    for (client, mode) in [(&near, ProxyMode::Iptables), (&far, ProxyMode::Nftables)] {
        for address in &addresses {
            becomes_reachable(client, SocketAddr::new(*address, 80), &format!("by {mode:?}"));
        }
    }
    let node_port = told["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
    let node_port = node_port.expect("a node port");
    for node in [one, &other] {
        becomes_reachable(&far, SocketAddr::new(node.v4(), node_port), "by a port of the node");
    }
    let slices = town.cluster.get(&["endpointslices", "-n", &town.name]).expect("slices");
    let families: Vec<&Value> =
        slices["items"].as_array().expect("slices").iter().map(|one| &one["addressType"]).collect();
    assert!(families.contains(&&json!("IPv4")) && families.contains(&&json!("IPv6")), "{slices}");
}

#[track_caller]
fn becomes_reachable(client: &WiredPod, to: SocketAddr, how: &str) {
    let mut last = None;
    let reached = until("a Service", LONG, || {
        let got = connect(client.netns(), to, PATIENCE).and_then(|mut tcp| tcp.exchange(PATIENCE));
        last = Some(got);
        Ok(got.is_ok().then_some(()))
    });
    assert!(reached.is_ok(), "{to} {how}: {last:?}");
}
