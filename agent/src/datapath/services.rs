//! Which addresses and ports of this node stand for others: Services' own, their ports at the node's addresses, and
//! those of its pods there.

use reeve_abi::service::{SERVICE_ADDRESS, SERVICE_HOST_PORT, SERVICE_NODE_PORT, ServiceKey, ServiceValue};
use reeve_policy::image::mapped;
use reeve_policy::model::{NodeAddress, World};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The rows of map `SERVICES` on this node.
pub fn rows(world: &World, node: &str) -> BTreeMap<ServiceKey, ServiceValue> {
    let mut rows: BTreeMap<ServiceKey, ServiceValue> = BTreeMap::new();
    let mut add = |address: IpAddr, port: u16, protocol: u8, flag: u32| {
        let key = ServiceKey { address: mapped(address), port: port.into(), protocol: protocol.into() };
        rows.entry(key).or_default().flags |= flag;
    };
    for service in world.services.values() {
        for port in &service.ports {
            for address in service.addresses() {
                add(address, port.port, port.protocol, SERVICE_ADDRESS);
            }
            for address in world.local_addresses.iter().filter(|_| port.node_port.is_some()) {
                add(*address, port.node_port.unwrap_or_default(), port.protocol, SERVICE_NODE_PORT);
            }
        }
    }
    for pod in world.workloads.values().filter(|pod| pod.node == node) {
        for port in &pod.host_ports {
            match port.at {
                NodeAddress::One(address) => add(address, port.port, port.protocol, SERVICE_HOST_PORT),
                NodeAddress::Every => {
                    for address in &world.local_addresses {
                        add(*address, port.port, port.protocol, SERVICE_HOST_PORT);
                    }
                }
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use reeve_policy::engine::Engine;
    use reeve_policy::store::{Change, Object, ObjectKey};
    use serde_json::json;

    #[test]
    fn services_stand_at_their_addresses_and_at_the_nodes_ports() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop", "uid": "u" },
            "spec": { "type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                      "selector": { "app": "web" },
                      "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080 }] }
        });
        let mut engine = Engine::new("node-1", 0);
        let local = ["172.18.0.1", "fd00:18::1"].map(|address| address.parse().expect("written here"));
        engine.apply(vec![
            Change::Apply(Object { value: service, origin: "test".to_owned() }),
            Change::LocalAddresses(local.into()),
        ]);
        let found: Vec<_> = rows(engine.world(), "node-1")
            .into_iter()
            .map(|(key, value)| (key.address, key.port, key.protocol, value.flags))
            .collect();
        let at = |address: &str| mapped(address.parse().expect("written here"));
        let mut want = vec![
            (at("10.96.0.10"), 80, 6, SERVICE_ADDRESS),
            (at("172.18.0.1"), 30_080, 6, SERVICE_NODE_PORT),
            (at("fd00:18::1"), 30_080, 6, SERVICE_NODE_PORT),
        ];
        want.sort();
        assert_eq!(found, want);
    }

    /// A pod's object with these ports of its one container.
    fn pod(name: &str, node: &str, ports: &serde_json::Value) -> Object {
        let value = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "shop", "uid": format!("uid-{name}") },
            "spec": { "nodeName": node, "containers": [{ "name": "main", "ports": ports }] },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.244.1.10" }] },
        });
        Object { value, origin: "test".to_owned() }
    }

    #[test]
    fn host_ports_stand_at_the_addresses_of_their_pods_node_while_the_pod_does() {
        let mut engine = Engine::new("node-1", 0);
        let local = ["172.18.0.1", "fd00:18::1"].map(|address| address.parse().expect("written here"));
        let here = pod(
            "here",
            "node-1",
            &json!([
                { "containerPort": 8080, "hostPort": 9090 },
                { "containerPort": 53, "hostPort": 53, "hostIP": "172.18.0.1", "protocol": "UDP" },
                { "containerPort": 8081 },
            ]),
        );
        let there = pod("there", "node-2", &json!([{ "containerPort": 8080, "hostPort": 9091 }]));
        let key = ObjectKey::of(&here.value).expect("a pod has a key");
        engine.apply(vec![Change::Apply(here), Change::Apply(there), Change::LocalAddresses(local.into())]);
        let found: Vec<_> = rows(engine.world(), "node-1")
            .into_iter()
            .map(|(key, value)| (key.address, key.port, key.protocol, value.flags))
            .collect();
        let at = |address: &str| mapped(address.parse().expect("written here"));
        let mut want = vec![
            (at("172.18.0.1"), 53, 17, SERVICE_HOST_PORT),
            (at("172.18.0.1"), 9090, 6, SERVICE_HOST_PORT),
            (at("fd00:18::1"), 9090, 6, SERVICE_HOST_PORT),
        ];
        want.sort();
        assert_eq!(found, want);
        engine.apply(vec![Change::Delete(key)]);
        assert_eq!(rows(engine.world(), "node-1"), BTreeMap::new());
    }
}
