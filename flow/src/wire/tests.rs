//! Lines read and written.

use super::*;
use serde_json::{Value, json};

fn record() -> Value {
    json!({
        "schema": 1,
        "time": "2026-01-31T12:00:01.123000000Z",
        "first": "2026-01-31T12:00:01.000000000Z",
        "last": "2026-01-31T12:00:01.123000000Z",
        "node": "node-1",
        "event": "rejudged",
        "direction": "ingress",
        "verdict": "established_grace",
        "decision": {
            "verdict": "deny",
            "decider": {
                "kind": "CalicoNetworkPolicy", "namespace": "shop", "name": "web", "uid": "u1", "generation": 2,
                "tier": "security", "direction": "ingress", "rule": 3, "ruleName": "no-scans"
            },
            "path": [
                {"tier": "security", "outcome": "denied", "rule": 3, "policy": {
                    "kind": "CalicoNetworkPolicy", "namespace": "shop", "name": "web", "uid": "u1", "generation": 2
                }}
            ],
            "also": [{"kind": "GlobalNetworkPolicy", "name": "rest", "uid": "u2"}]
        },
        "previous": {"verdict": "allow", "unknown": "00000000000e0000"},
        "staged": {"verdict": "deny", "default": "tierDefault", "isolating": [
            {"kind": "StagedNetworkPolicy", "namespace": "shop", "name": "next", "uid": "u4"}
        ]},
        "policyRevision": 12,
        "source": {
            "owner": "network", "networks": ["10.0.0.0/8"], "identity": "0000000000c10000", "ip": "10.0.0.3", "port": 9
        },
        "destination": {
            "owner": "pod", "workload": {"kind": "Pod", "name": "web"}, "namespace": "shop", "pod": "web", "uid": "u3",
            "labels": {"app": "web"}, "identity": "0000000000b10000", "ip": "fd00::3", "port": 80, "node": "node-1"
        },
        "protocol": "SCTP",
        "packets": {"forward": 4, "back": 3},
        "bytes": {"forward": 240, "back": 180},
        "flags": ["pickedUp", {"rateLimited": 3}],
        "reason": "decisionChanged"
    })
}

#[track_caller]
fn refused(text: &str, error: &str) {
    assert_eq!(parse_line(3, text).map_err(|error| error.to_string()), Err(error.to_owned()));
}

#[test]
fn record_is_read_and_written_without_loss() {
    let Ok(Line::Record(read)) = parse_line(1, &record().to_string()) else { panic!("it is a record") };
    let text = encode(&read);
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), record());
    assert!(!text.contains('\n'));
}

#[test]
fn missed_records_have_a_line_of_their_own() {
    assert_eq!(encode_missed(7), "{\"missed\":7}");
    assert_eq!(parse_line(1, "{\"missed\":7}").expect("as written"), Line::Missed(7));
}

#[test]
fn lines_are_counted_and_empty_ones_skipped() {
    let text = format!("\n{}\n  \n{{}}\n", record());
    let found: Vec<Option<String>> = parse(&text).map(|line| line.err().map(|error| error.to_string())).collect();
    let error = "line 4 is no flow record: missing field `schema` at line 1 column 2".to_owned();
    assert_eq!(found, [None, Some(error)]);
}

#[test]
fn what_is_no_record_says_why() {
    let with = |key: &str, value: Value| {
        let mut record = record();
        record[key] = value;
        record.to_string()
    };
    refused("{\"schema\":2}", "line 3 has schema 2; this version reads schema 1");
    for decision in [
        json!({"verdict": "deny"}),
        json!({"verdict": "deny", "default": "tierDefault", "unknown": "1"}),
        json!({"verdict": "deny", "default": "tierDefault", "decider": record()["decision"]["decider"]}),
    ] {
        let error = parse_line(3, &with("decision", decision)).expect_err("no record").to_string();
        let begin = "line 3 is no flow record: a decision has exactly one of the keys decider, default and unknown";
        assert!(error.starts_with(begin), "{error}");
    }
    let error = parse_line(3, &with("verdict", json!("drop"))).expect_err("no record").to_string();
    assert!(error.starts_with("line 3 is no flow record: unknown variant `drop`"), "{error}");
}
