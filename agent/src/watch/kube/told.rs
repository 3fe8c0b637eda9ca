//! A pod as an object again, for those who ask for the facts: what the engine knows of it, under the API's names.

use reeve_policy::model::{NodeAddress, Workload};
use serde_json::{Map, Value, json};

/// An object that is lowered to the same workload.
pub(super) fn pod(workload: &Workload) -> Value {
    let mut metadata = json!({
        "namespace": workload.namespace, "name": workload.name, "uid": workload.uid, "labels": workload.labels,
    });
    if workload.terminating {
        // When that was is not kept.
        metadata["deletionTimestamp"] = json!("1970-01-01T00:00:00Z");
    }
    let mut spec = json!({ "nodeName": workload.node, "serviceAccountName": workload.service_account });
    if workload.host_network {
        spec["hostNetwork"] = json!(true);
    }
    let named = workload
        .named_ports
        .iter()
        .map(|port| json!({ "name": port.name, "containerPort": port.port, "protocol": protocol(port.protocol) }));
    let of_host = workload.host_ports.iter().map(|port| {
        let mut fields = Map::new();
        fields.insert("containerPort".to_owned(), json!(port.port));
        fields.insert("hostPort".to_owned(), json!(port.port));
        fields.insert("protocol".to_owned(), json!(protocol(port.protocol)));
        if let NodeAddress::One(address) = port.at {
            fields.insert("hostIP".to_owned(), json!(address));
        }
        Value::Object(fields)
    });
    let ports: Vec<Value> = named.chain(of_host).collect();
    if !ports.is_empty() {
        spec["containers"] = json!([{ "ports": ports }]);
    }
    let addresses: Vec<Value> = workload.addresses.iter().map(|address| json!({ "ip": address })).collect();
    let phase = match (workload.ended, workload.addresses.is_empty()) {
        (true, _) => "Succeeded",
        (false, true) if !workload.host_network => "Pending",
        _ => "Running",
    };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec,
        "status": { "phase": phase, "podIPs": addresses },
    })
}

fn protocol(number: u8) -> &'static str {
    match number {
        17 => "UDP",
        132 => "SCTP",
        _ => "TCP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reeve_policy::store::{Change, Object, Store};

    #[test]
    fn a_pod_that_is_told_is_the_same_pod_when_it_is_read() {
        let read = |value: Value| {
            let mut store = Store::new("one");
            store.apply(Change::Apply(Object { value, origin: "here".to_owned() }));
            store.world().workloads.values().next().cloned().expect("a pod")
        };
        let pods = [
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "shop", "name": "web", "uid": "u", "labels": {"PCI": "true"}, "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": "one", "serviceAccountName": "till", "containers": [{"ports": [
                    {"name": "http", "containerPort": 80}, {"containerPort": 53, "hostPort": 53, "hostIP": "192.0.2.1", "protocol": "UDP"},
                ]}]},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
            }),
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "agent", "uid": "v"},
                "spec": {"nodeName": "one", "hostNetwork": true}, "status": {"phase": "Running"},
            }),
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "new", "uid": "w"},
                "spec": {}, "status": {"phase": "Pending"},
            }),
        ];
        for object in pods {
            let known = read(object);
            assert_eq!(read(pod(&known)), known);
        }
    }
}
