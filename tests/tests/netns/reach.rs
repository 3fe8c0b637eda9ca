//! Allow and deny for every protocol in both families, routed and bridged.

use reeve_policy::model::Verdict;
use reeve_tests::lab::Mode;
use reeve_tests::stage::{NAMES, Probe, RECORD_PATIENCE, Stage, WEB};
use reeve_tests::traffic::{self, NoAnswer, PATIENCE};
use serde_json::json;
use std::net::SocketAddr;

#[track_caller]
fn check_family(name: &str, mode: Mode, v6: bool) {
    let mut stage = Stage::new(name, mode);
    let web = stage.pod("web", &[("app", "web")]);
    let good = stage.pod("good", &[("role", "client")]);
    let bad = stage.pod("bad", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    stage.start();
    for probe in [WEB, NAMES, Probe::Ping] {
        stage.check(&good, &web, probe, v6, Verdict::Allow, "web-clients");
        stage.check(&bad, &web, probe, v6, Verdict::Deny, "web-clients");
        stage.check(&good, &bad, probe, v6, Verdict::Allow, "noPolicySelects");
    }
}

#[test]
fn routed_pods_over_ipv4() {
    if !crate::skipped() {
        check_family("reach-routed4", Mode::Routed, false);
    }
}

#[test]
fn routed_pods_over_ipv6() {
    if !crate::skipped() {
        check_family("reach-routed6", Mode::Routed, true);
    }
}

#[test]
fn bridged_pods_over_ipv4() {
    if !crate::skipped() {
        check_family("reach-bridged4", Mode::Bridged, false);
    }
}

#[test]
fn bridged_pods_over_ipv6() {
    if !crate::skipped() {
        check_family("reach-bridged6", Mode::Bridged, true);
    }
}

#[test]
fn egress_is_denied_at_the_sender_and_ports_count() {
    if crate::skipped() {
        return;
    }
    let mut stage = Stage::new("reach-egress", Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    stage.policy(
        "client-web",
        &json!({
            "podSelector": { "matchLabels": { "role": "client" } },
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{ "podSelector": { "matchLabels": { "app": "web" } } }],
                "ports": [{ "protocol": "TCP", "port": 8080 }]
            }]
        }),
    );
    stage.start();
    stage.allows(&client, &web, WEB, "noPolicySelects");
    for probe in [NAMES, Probe::Ping] {
        let denied = stage.denies(&client, &web, probe, "client-web");
        assert_eq!(denied.rows.len(), 1, "the receiver sees nothing of what its sender may not send");
    }
    stage.allows(&web, &client, WEB, "noPolicySelects");
}

/// What a pod sends to a port of its own node at which nobody listens is judged like any other egress, though no process
/// receives it: the pod hears of the refusal only where it may reach its node.
#[track_caller]
fn check_closed_port(name: &str, mode: Mode) {
    let mut stage = Stage::new(name, mode);
    let free = stage.pod("free", &[("app", "free")]);
    let locked = stage.pod("locked", &[("app", "locked")]);
    stage.policy(
        "locked",
        &json!({ "podSelector": { "matchLabels": { "app": "locked" } }, "policyTypes": ["Egress"], "egress": [] }),
    );
    stage.start();
    for node in [stage.node.v4(), stage.node.v6()] {
        let to = SocketAddr::new(node, 4_444);
        for (pod, refused) in [(&free, true), (&locked, false)] {
            for (protocol, number) in [("TCP", 6), ("UDP", 17)] {
                stage.records().rest().expect("records");
                let answer = if number == 6 {
                    traffic::connect(pod.netns(), to, PATIENCE).map(drop)
                } else {
                    traffic::udp_exchange(pod.netns(), to, PATIENCE)
                };
                let (want, verdict) = if refused { (NoAnswer::Refused, "allow") } else { (NoAnswer::TimedOut, "deny") };
                assert_eq!(answer, Err(want), "{protocol} to {to}");
                let line = stage
                    .records()
                    .wait_for(RECORD_PATIENCE, |line| line["destination"]["port"] == 4_444)
                    .expect("a record");
                assert_eq!((&line["verdict"], &line["direction"]), (&verdict.into(), &"egress".into()), "{line}");
                assert_eq!(line["destination"]["ip"], node.to_string(), "{line}");
                let decision = &line["decision"];
                if refused {
                    assert_eq!(decision["default"], "noPolicySelects", "{line}");
                } else {
                    assert_eq!(decision["isolating"][0]["name"], "locked", "{line}");
                }
            }
        }
    }
}

#[test]
fn closed_port_of_the_own_node_is_judged_for_routed_pods() {
    if !crate::skipped() {
        check_closed_port("closed-port-routed", Mode::Routed);
    }
}

#[test]
fn closed_port_of_the_own_node_is_judged_for_bridged_pods() {
    if !crate::skipped() {
        check_closed_port("closed-port-bridged", Mode::Bridged);
    }
}
