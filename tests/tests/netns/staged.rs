//! Staged policies under a running agent: records tell what they would decide, and nothing else changes.

use reeve_tests::lab::Mode;
use reeve_tests::stage::{WEB, shop};
use serde_json::json;

#[test]
fn staged_policy_is_told_beside_the_verdict_that_it_does_not_change() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("staged", Mode::Routed);
    stage.allows(&client, &web, WEB, "web-clients");
    let staged = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "StagedGlobalNetworkPolicy", "metadata": { "name": "closing" },
        "spec": { "order": 1, "selector": "app == 'web'", "types": ["Ingress"],
                  "ingress": [{ "action": "Deny", "source": { "selector": "role == 'client'" } }] }
    });
    stage.lab.manifests().write("closing", &staged).expect("written");
    stage.settled();
    let attempt = stage.allows(&client, &web, WEB, "web-clients");
    let line = &attempt.rows.last().expect("a record of the receiving end").line;
    assert_eq!(line["staged"]["verdict"], "deny", "{line}");
    assert_eq!(line["staged"]["decider"]["kind"], "StagedGlobalNetworkPolicy", "{line}");
    assert_eq!(line["staged"]["decider"]["name"], "closing", "{line}");
    // Who is not spoken of is told the same verdict twice, by the same policies.
    let attempt = stage.denies(&guest, &web, WEB, "web-clients");
    let line = &attempt.rows.last().expect("a record").line;
    assert_eq!((&line["verdict"], &line["staged"]["verdict"]), (&json!("deny"), &json!("deny")), "{line}");
    // Without it there is no second decision.
    stage.lab.manifests().remove("closing").expect("removed");
    stage.settled();
    let attempt = stage.allows(&client, &web, WEB, "web-clients");
    let line = &attempt.rows.last().expect("a record").line;
    assert!(line.get("staged").is_none(), "{line}");
}
