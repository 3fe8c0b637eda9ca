//! Flow records as an agent writes them.

use serde_json::{Value, json};

/// Web is kept out of card-db.
pub(crate) fn denied() -> Value {
    json!({
        "schema": 1,
        "time": "2026-01-31T12:00:01.123000000Z",
        "first": "2026-01-31T12:00:01.123000000Z",
        "last": "2026-01-31T12:00:01.123000000Z",
        "node": "node-1",
        "event": "denied",
        "direction": "ingress",
        "verdict": "deny",
        "decision": {
            "verdict": "deny",
            "default": "tierDefault",
            "path": [{"tier": "default", "outcome": "defaultDenied"}],
            "isolating": [{"kind": "GlobalNetworkPolicy", "name": "pci-isolation", "uid": "uid-pci", "generation": 3}]
        },
        "policyRevision": 12,
        "source": {
            "owner": "pod", "namespace": "shop", "pod": "web", "uid": "uid-web", "identity": "0000000000001001",
            "ip": "10.0.0.3", "port": 40001, "node": "node-1"
        },
        "destination": {
            "owner": "pod", "namespace": "payments", "pod": "card-db", "uid": "uid-db", "labels": {"PCI": "true"},
            "identity": "0000000000001002", "ip": "10.0.0.2", "port": 5432, "node": "node-1"
        },
        "protocol": "TCP",
        "packets": {"forward": 1, "back": 0},
        "bytes": {"forward": 60, "back": 0},
        "reason": "newFlow"
    })
}

/// Card-api opens a connection to card-db.
pub(crate) fn opened() -> Value {
    let mut record = denied();
    let rule = json!({
        "kind": "GlobalNetworkPolicy", "name": "pci-isolation", "uid": "uid-pci", "generation": 3, "tier": "default",
        "direction": "egress", "rule": 0
    });
    let changes = json!({
        "time": "2026-01-31T12:00:02.000000000Z",
        "event": "opened",
        "direction": "egress",
        "verdict": "allow",
        "decision": {"verdict": "allow", "decider": rule, "path": [{
            "tier": "default", "outcome": "allowed", "rule": 0,
            "policy": {"kind": "GlobalNetworkPolicy", "name": "pci-isolation", "uid": "uid-pci", "generation": 3}
        }]},
        "source": {
            "owner": "pod", "namespace": "payments", "pod": "card-api", "uid": "uid-api", "labels": {"PCI": "true"},
            "identity": "0000000000001002", "ip": "10.0.0.1", "port": 40002, "node": "node-1"
        }
    });
    change(&mut record, changes);
    record
}

/// Web asks a name server outside for a name.
pub(crate) fn asked() -> Value {
    let mut record = opened();
    let changes = json!({
        "time": "2026-01-31T12:00:03.000000000Z",
        "node": "node-2",
        "decision": {"verdict": "allow", "default": "noPolicySelects"},
        "source": denied()["source"],
        "destination": {"owner": "world", "identity": "0000000000000001", "ip": "8.8.8.8", "port": 53},
        "protocol": "UDP"
    });
    change(&mut record, changes);
    record
}

/// What stands for records that a slow reader has lost.
pub(crate) const MISSED: &str = "{\"missed\":7}";

fn change(record: &mut Value, changes: Value) {
    let Value::Object(changes) = changes else { unreachable!("changes are an object") };
    for (key, value) in changes {
        record[key] = value;
    }
}
