//! Records made of kernel events and a dictionary.

use super::*;
use crate::decode;
use crate::time::Timestamp;
use crate::wire;
use reeve_abi::address::Address;
use reeve_abi::event::{EVENT_DENIED, EVENT_REJUDGED, Event, HOOK_FROM_POD, HOOK_TO_POD};
use reeve_abi::ids::{IDENTITY_WORLD, Revision};
use reeve_policy::model::DefaultDecider;
use reeve_policy::provenance::DictionaryEntry;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const POD: WorkloadId = WorkloadId(0xa1_0000);
const POD_IDENTITY: IdentityId = IdentityId(0xb1_0000);
const WALL_NS: i64 = 1_769_860_800_000_000_000;

fn names() -> Dictionary {
    let mut identity = Identity::bare(IdentityKind::Pod, BTreeSet::new());
    identity.namespace = Some("shop".to_owned());
    identity.labels.insert("app".to_owned(), "web".to_owned());
    let workload = WorkloadName {
        uid: "uid-web".to_owned(),
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        node: "node-1".to_owned(),
    };
    let decision = contested();
    Dictionary::load([
        DictionaryEntry::Decision { id: decision.id(), decision: Arc::new(decision) },
        DictionaryEntry::Identity { id: POD_IDENTITY, identity: Arc::new(identity) },
        DictionaryEntry::Workload { id: POD, workload: Arc::new(workload) },
    ])
}

fn contested() -> Decision {
    Decision::bare(Verdict::Deny, DefaultDecider::ContestedAddress)
}

/// The pod is denied a connection to an address outside.
fn denied() -> Event {
    Event {
        time_ns: 2_000,
        first_ns: 1_000,
        last_ns: 2_000,
        revision: Revision(12),
        workload: POD,
        identity: POD_IDENTITY,
        peer_identity: IDENTITY_WORLD,
        decision: contested().id(),
        local: Address::v4([10, 0, 0, 3]),
        remote: Address::v4([8, 8, 8, 8]),
        packets: [4, 0],
        bytes: [240, 0],
        ports: (40_001 << 16) + 443,
        port: 443,
        protocol: 6,
        kind: EVENT_DENIED,
        direction: 1,
        verdict: 2,
        hook: HOOK_FROM_POD,
        ..Event::default()
    }
}

fn recorded(raw: Event) -> Value {
    let names = names();
    let clock = Clock::from_readings(0, Timestamp { unix_ns: WALL_NS });
    let namer = Namer { names: &names, node: "node-1", clock };
    let record = namer.record(&decode::typed(raw).expect("known values"));
    serde_json::from_str(&wire::encode(&record)).expect("JSON")
}

#[test]
fn pod_that_sends_is_the_source_with_its_names_and_labels() {
    let want = json!({
        "schema": 1,
        "time": "2026-01-31T12:00:00.000002000Z",
        "first": "2026-01-31T12:00:00.000001000Z",
        "last": "2026-01-31T12:00:00.000002000Z",
        "node": "node-1",
        "event": "denied",
        "direction": "egress",
        "verdict": "deny",
        "decision": {"verdict": "deny", "default": "contestedAddress"},
        "policyRevision": 12,
        "source": {
            "owner": "pod", "workload": {"kind": "Pod", "name": "web"}, "namespace": "shop", "pod": "web",
            "uid": "uid-web", "labels": {"app": "web"}, "identity": "0000000000b10000", "ip": "10.0.0.3",
            "port": 40_001, "node": "node-1"
        },
        "destination": {"owner": "world", "identity": "0000000000000001", "ip": "8.8.8.8", "port": 443},
        "protocol": "TCP",
        "packets": {"forward": 4, "back": 0},
        "bytes": {"forward": 240, "back": 0},
        "flags": [{"rateLimited": 3}],
        "reason": "repeatedDeny"
    });
    assert_eq!(recorded(denied()), want);
}

#[test]
fn pod_that_receives_is_the_destination_and_icmp_has_no_ports() {
    let record = recorded(Event {
        direction: 0,
        hook: HOOK_TO_POD,
        protocol: 1,
        ports: 0,
        port: 8 << 8,
        packets: [1, 0],
        ..denied()
    });
    assert_eq!((&record["source"]["ip"], &record["destination"]["pod"]), (&json!("8.8.8.8"), &json!("web")));
    assert_eq!((&record["icmp"], record["destination"].get("port")), (&json!({"type": 8, "code": 0}), None));
    assert_eq!((record.get("flags"), &record["reason"]), (None, &json!("repeatedDeny")));
}

#[test]
fn numbers_without_entry_stay_numbers() {
    let unknown = |identity, workload| {
        let raw = Event { peer_identity: IdentityId(identity), peer_workload: WorkloadId(workload), ..denied() };
        recorded(raw)["destination"].clone()
    };
    let want = json!({
        "owner": "pod", "identity": "00000000000c0000", "ip": "8.8.8.8", "port": 443,
        "unknown": [{"identity": "00000000000c0000"}, {"workload": "00000000000d0000"}]
    });
    assert_eq!(unknown(0xc_0000, 0xd_0000), want);
    let want = json!({
        "owner": "unknown", "identity": "00000000000c0000", "ip": "8.8.8.8", "port": 443,
        "unknown": [{"identity": "00000000000c0000"}]
    });
    assert_eq!(unknown(0xc_0000, 0), want);
    let record = recorded(Event { decision: DecisionId(0xe_0000), ..denied() });
    assert_eq!(record["decision"], json!({"verdict": "deny", "unknown": "00000000000e0000"}));
}

#[test]
fn cut_flow_tells_what_had_allowed_it() {
    let before = Decision::bare(Verdict::Allow, DefaultDecider::NoPolicySelects).id();
    let record = recorded(Event { kind: EVENT_REJUDGED, flags: EVENT_FLAG_CUT, previous: before, ..denied() });
    assert_eq!(record["previous"], json!({"verdict": "allow", "default": "noPolicySelects"}));
    assert_eq!((&record["event"], &record["reason"]), (&json!("rejudged"), &json!("flowCut")));
}
