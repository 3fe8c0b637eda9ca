//! What people read, word for word.

use super::*;
use crate::record::RecordedDecision;
use crate::wire::{Line, parse_line};
use serde_json::{Value, json};

fn json_record() -> Value {
    json!({
        "schema": 1,
        "time": "2026-01-31T12:00:01.123000000Z",
        "first": "2026-01-31T12:00:01.000000000Z",
        "last": "2026-01-31T12:00:01.123000000Z",
        "node": "node-1",
        "event": "opened",
        "direction": "egress",
        "verdict": "allow",
        "decision": {"verdict": "allow", "default": "noPolicySelects"},
        "policyRevision": 12,
        "source": {"owner": "pod", "namespace": "shop", "pod": "web", "identity": "1", "ip": "10.0.0.3"},
        "destination": {"owner": "world", "identity": "2", "ip": "2001:db8::1", "port": 443},
        "protocol": "TCP",
        "packets": {"forward": 4, "back": 3},
        "bytes": {"forward": 240, "back": 180},
        "reason": "newFlow"
    })
}

fn record(changes: Value) -> FlowRecord {
    let mut record = json_record();
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    changes.into_iter().for_each(|(key, value)| record[key] = value);
    match parse_line(1, &record.to_string()) {
        Ok(Line::Record(record)) => *record,
        other => panic!("{other:?}"),
    }
}

fn denied() -> FlowRecord {
    record(json!({
        "event": "denied", "verdict": "deny", "direction": "ingress", "protocol": "ICMP", "icmp": {"type": 8, "code": 0},
        "decision": {"verdict": "deny", "default": "spoofedSource"}, "flags": [{"rateLimited": 3}],
        "destination": {"owner": "pod", "namespace": "payments", "pod": "card-db", "identity": "3"}
    }))
}

#[test]
fn lines_are_aligned_and_coloured_by_what_became_of_the_packets() {
    let records = [record(json!({})), denied()];
    assert_eq!(
        lines(&records, Colour::Never),
        [
            "12:00:01.123 ALLOW egress  shop/web -> [2001:db8::1]:443/TCP      by no policy selects",
            "12:00:01.123 DENY  ingress shop/web -> payments/card-db:8.0/ICMP  by spoofed source [3 more since the last record]",
        ]
    );
    let coloured = lines(&records, Colour::Ansi);
    assert!(coloured[0].contains(" \x1b[32mALLOW\x1b[0m egress "), "{coloured:?}");
    assert!(coloured[1].contains(" \x1b[31mDENY \x1b[0m ingress "), "{coloured:?}");
}

#[test]
fn dates_are_shown_where_days_differ() {
    let records = [record(json!({})), record(json!({"time": "2026-02-01T00:00:00.000000000Z"}))];
    assert_eq!(
        lines(&records, Colour::Never),
        [
            "2026-01-31T12:00:01.123Z ALLOW egress  shop/web -> [2001:db8::1]:443/TCP  by no policy selects",
            "2026-02-01T00:00:00.000Z ALLOW egress  shop/web -> [2001:db8::1]:443/TCP  by no policy selects",
        ]
    );
}

#[test]
fn notes_tell_what_else_there_is() {
    let text = |changes| lines(&[record(changes)], Colour::Never).remove(0);
    let tail = |line: String| line.split_once("by no policy selects").expect("the decider").1.to_owned();
    assert_eq!(
        tail(text(json!({"event": "closed", "reason": "flowEnded", "flags": ["pickedUp"]}))),
        " [closed, 4+3 packets, 240+180 bytes; picked up in the middle]"
    );
    assert_eq!(
        tail(text(
            json!({"event": "rejudged", "reason": "flowCut", "previous": {"verdict": "allow", "default": "reply"}})
        )),
        " [live flow cut; before: reply]"
    );
    assert_eq!(
        tail(text(json!({"staged": {"verdict": "deny", "default": "tierDefault"}}))),
        " [staged: deny by tier default deny]"
    );
    assert_eq!(
        tail(text(json!({"event": "window", "reason": "windowEnded", "connections": 9, "flags": ["backfilled"]}))),
        " [9 connections, 240+180 bytes; backfilled]"
    );
}

#[test]
fn deciders_are_named_by_kind_place_and_rule() {
    let text = |decision: Value| {
        let decision: RecordedDecision = serde_json::from_value(decision).expect("a decision");
        decision_text(&decision)
    };
    let rule = |kind: &str, namespace: Option<&str>, name: Option<&str>| {
        let mut rule = json!({"kind": kind, "name": "p", "uid": "u", "tier": "t", "direction": "ingress", "rule": 2});
        rule["namespace"] = json!(namespace);
        rule["ruleName"] = json!(name);
        text(json!({"verdict": "allow", "decider": rule}))
    };
    assert_eq!(rule("GlobalNetworkPolicy", None, Some("dns")), "GlobalNetworkPolicy p ingress rule 2 \"dns\"");
    assert_eq!(rule("CalicoNetworkPolicy", Some("shop"), None), "CalicoNetworkPolicy shop/p ingress rule 2");
    assert_eq!(rule("ClusterNetworkPolicy", None, Some("dns")), "ClusterNetworkPolicy p ingress rule 2 \"dns\"");
    assert_eq!(
        rule("StagedKubernetesNetworkPolicy", Some("shop"), None),
        "StagedKubernetesNetworkPolicy shop/p ingress[2]"
    );
    assert_eq!(rule("NetworkPolicy", Some("shop"), None), "NetworkPolicy shop/p ingress[2]");
    let isolating = json!([
        {"kind": "GlobalNetworkPolicy", "name": "a", "uid": "u"},
        {"kind": "NetworkPolicy", "namespace": "shop", "name": "b", "uid": "u"}
    ]);
    let by_default = |tier: &str| {
        let path = json!([{"tier": tier, "outcome": "defaultDenied"}]);
        text(json!({"verdict": "deny", "default": "tierDefault", "path": path, "isolating": isolating}))
    };
    let isolated = "(isolated by GlobalNetworkPolicy a, NetworkPolicy shop/b)";
    assert_eq!(by_default("default"), format!("tier default deny {isolated}"));
    assert_eq!(by_default("security"), format!("tier default deny of tier security {isolated}"));
    let path = json!([{"tier": "default", "outcome": "denied", "policy": isolating[1]}]);
    assert_eq!(
        text(json!({"verdict": "deny", "default": "unreadablePolicy", "path": path})),
        "unreadable policy (NetworkPolicy shop/b)"
    );
    assert_eq!(
        text(json!({"verdict": "deny", "unknown": "00000000000e0000"})),
        "decision 00000000000e0000, which the dictionary does not know"
    );
}

#[test]
fn steps_say_what_happened_in_which_tier() {
    let text = |step: Value| step_text(&serde_json::from_value(step).expect("a step"));
    let policy = json!({"kind": "GlobalNetworkPolicy", "name": "a", "uid": "u"});
    assert_eq!(
        text(json!({"tier": "security", "outcome": "passed", "policy": policy, "rule": 1})),
        "tier security: passed on by GlobalNetworkPolicy a rule 1"
    );
    assert_eq!(
        text(json!({"tier": "default", "outcome": "denied", "policy": policy})),
        "tier default: denied by GlobalNetworkPolicy a"
    );
    assert_eq!(text(json!({"tier": "admin", "outcome": "defaultPassed"})), "tier admin: no rule matched, default pass");
}

#[test]
fn ends_that_are_no_pods_say_what_they_are() {
    let text = |side: Value| side_text(&serde_json::from_value(side).expect("a side"));
    let (identity, v4, v6) = ("1", "10.0.0.1", "fd00::1");
    assert_eq!(text(json!({"owner": "world", "identity": identity, "ip": v6})), "[fd00::1]");
    assert_eq!(text(json!({"owner": "network", "identity": identity, "ip": v4})), "10.0.0.1");
    assert_eq!(text(json!({"owner": "host", "identity": identity, "ip": v4})), "host(10.0.0.1)");
    assert_eq!(text(json!({"owner": "contested", "identity": identity, "ip": v6})), "contested([fd00::1])");
    assert_eq!(text(json!({"owner": "world", "identity": identity})), "world");
    let unknown = json!([{"workload": "00000000000d0000"}]);
    assert_eq!(
        text(json!({"owner": "pod", "identity": identity, "ip": v4, "unknown": unknown})),
        "pod#00000000000d0000"
    );
}
