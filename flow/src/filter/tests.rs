//! One record against one filter each.

use super::*;
use crate::wire::{Line, parse_line};
use serde_json::json;

/// Web (shop) is denied by the default of a tier that two policies isolate it in.
fn record() -> FlowRecord {
    let text = json!({
        "schema": 1,
        "time": "2026-01-31T12:00:01.000000000Z",
        "first": "2026-01-31T12:00:01.000000000Z",
        "last": "2026-01-31T12:00:01.000000000Z",
        "node": "node-1",
        "event": "denied",
        "direction": "ingress",
        "verdict": "deny",
        "decision": {"verdict": "deny", "default": "tierDefault", "isolating": [
            {"kind": "GlobalNetworkPolicy", "name": "pci", "uid": "u1"},
            {"kind": "NetworkPolicy", "namespace": "payments", "name": "db", "uid": "u2"}
        ]},
        "policyRevision": 12,
        "source": {"owner": "pod", "namespace": "shop", "pod": "web", "labels": {"app": "web"}, "identity": "1"},
        "destination": {
            "owner": "pod", "namespace": "payments", "pod": "db", "labels": {"PCI": "true", "app": "db"},
            "identity": "2", "port": 5432
        },
        "protocol": "TCP",
        "packets": {"forward": 1, "back": 0},
        "bytes": {"forward": 60, "back": 0},
        "reason": "newFlow"
    });
    match parse_line(1, &text.to_string()) {
        Ok(Line::Record(record)) => *record,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn check(rows: &[(Filter, bool)]) {
    for (filter, want) in rows {
        assert_eq!(filter.matches(&record()), *want, "{filter:?}");
    }
}

fn any() -> Filter {
    Filter::default()
}

#[test]
fn a_filter_without_conditions_keeps_all_and_each_condition_counts() {
    let at = |text: &str| Some(text.parse().expect("a time"));
    check(&[
        (any(), true),
        (Filter { verdict: Some(RecordVerdict::Deny), ..any() }, true),
        (Filter { verdict: Some(RecordVerdict::AuditDeny), ..any() }, false),
        (Filter { port: Some(5432), ..any() }, true),
        (Filter { port: Some(80), ..any() }, false),
        (Filter { node: Some("node-1".to_owned()), ..any() }, true),
        (Filter { node: Some("node".to_owned()), ..any() }, false),
        (Filter { direction: Some(Direction::Ingress), ..any() }, true),
        (Filter { direction: Some(Direction::Egress), ..any() }, false),
        (Filter { from: at("2026-01-31T12:00:01Z"), ..any() }, true),
        (Filter { from: at("2026-01-31T12:00:01.1Z"), ..any() }, false),
        (Filter { to: at("2026-01-31T12:00:01.1Z"), ..any() }, true),
        (Filter { to: at("2026-01-31T12:00:01Z"), ..any() }, false),
    ]);
}

#[test]
fn a_policy_is_named_in_four_ways() {
    let policy = |name: &str| Filter { policy: Some(name.to_owned()), ..any() };
    check(&[
        (policy("db"), true),
        (policy("payments/db"), true),
        (policy("NetworkPolicy/db"), true),
        (policy("NetworkPolicy/payments/db"), true),
        (policy("shop/db"), false),
        (policy("CalicoNetworkPolicy/payments/db"), false),
        (policy("pci"), true),
        (policy("GlobalNetworkPolicy/pci"), true),
        (policy("payments/pci"), false),
    ]);
}

#[test]
fn namespace_pod_and_labels_are_of_the_same_end() {
    let of = |namespace: Option<&str>, pod: Option<&str>, labels: &[(&str, &str)]| Filter {
        namespace: namespace.map(str::to_owned),
        pod: pod.map(str::to_owned),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..any()
    };
    check(&[
        (of(Some("shop"), Some("web"), &[("app", "web")]), true),
        (of(Some("payments"), None, &[("app", "db"), ("PCI", "true")]), true),
        (of(None, Some("payments/db"), &[]), true),
        (of(None, Some("shop/db"), &[]), false),
        (of(Some("shop"), Some("db"), &[]), false),
        (of(Some("shop"), None, &[("PCI", "true")]), false),
        (of(None, None, &[("app", "web"), ("PCI", "true")]), false),
    ]);
}

#[test]
fn a_policy_that_is_closed_is_found_by_its_name() {
    let mut record = record();
    for default in ["unreadablePolicy", "refusedPolicy"] {
        let decision = json!({"verdict": "deny", "default": default, "path": [
            {"tier": "security", "outcome": "passed", "policy": {"kind": "GlobalNetworkPolicy", "name": "pci", "uid": "u1"}},
            {"tier": "default", "outcome": "denied", "policy": {"kind": "NetworkPolicy", "namespace": "payments", "name": "db", "uid": "u2"}}
        ]});
        record.decision = serde_json::from_value(decision).expect("a decision");
        for (policy, want) in [("payments/db", true), ("pci", false)] {
            assert_eq!(
                Filter { policy: Some(policy.to_owned()), ..any() }.matches(&record),
                want,
                "{default} {policy}"
            );
        }
    }
}
