//! Allow and deny for every protocol in both families, routed and bridged.

use reeve_policy::model::Verdict;
use reeve_tests::lab::Mode;
use reeve_tests::stage::{NAMES, Probe, Stage, WEB};
use serde_json::json;

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
