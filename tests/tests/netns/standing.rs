//! What becomes of each policy is told: whether it is honoured, and when it came into force.

use reeve_flow::time::Timestamp;
use reeve_tests::lab::{Mode, until};
use reeve_tests::stage::{Stage, WEB, get, shop};
use reeve_tests::traffic::NoAnswer;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// Longest wait for an agent that starts to have looked at what there is.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);

fn policies(stage: &mut Stage) -> Vec<Value> {
    let told = stage.agent().request("GET", "/policies").and_then(|answer| answer.json()).expect("the policies");
    told.as_array().expect("a list").clone()
}

/// The policy of this name, if there is one.
fn standing(stage: &mut Stage, name: &str) -> Option<Value> {
    let mut all = policies(stage).into_iter().filter(|policy| policy["name"] == name);
    let found = all.next();
    assert!(all.next().is_none(), "{name} is told twice");
    found
}

#[track_caller]
fn metric(stage: &mut Stage, name: &str) -> f64 {
    stage.agent().metric(name, &[]).expect("metrics")
}

/// How many policies are accepted, narrowed and refused.
#[track_caller]
fn check_states(stage: &mut Stage, wanted: [f64; 3]) {
    stage.settled();
    let counted = ["accepted", "narrowed", "refused"]
        .map(|state| stage.agent().metric("reeve_policy_states", &[("state", state)]).expect("metrics"));
    assert_eq!(counted, wanted, "{:?}", policies(stage));
}

fn now() -> String {
    Timestamp::from_system(SystemTime::now()).to_string()
}

/// The policy is in force, and became so since that moment, one thing after the other.
#[track_caller]
fn check_active(policy: &Value, since: &str) {
    let moment = |field: &str| policy[field].as_str().unwrap_or_else(|| panic!("no {field} in {policy}")).to_owned();
    let moments = [since.to_owned(), moment("observedAt"), moment("compiledAt"), moment("activeAt"), now()];
    assert!(moments.is_sorted(), "{moments:?}");
}

#[test]
fn policies_are_told_as_accepted_narrowed_or_refused_with_their_times_until_they_are_deleted() {
    if crate::skipped() {
        return;
    }
    let begun = now();
    let (mut stage, web, client, guest) = shop("standing", Mode::Routed);
    check_states(&mut stage, [1.0, 0.0, 0.0]);
    let first = standing(&mut stage, "web-clients").expect("it is told");
    check_active(&first, &begun);
    assert_eq!((&first["state"], &first["problems"]), (&json!("accepted"), &json!([])), "{first}");
    let named = [&first["apiVersion"], &first["kind"], &first["namespace"]];
    assert_eq!(named, ["networking.k8s.io/v1", "NetworkPolicy", "shop"]);

    // Of two peers the one that is not understood matches nobody.
    let written = now();
    let narrowed = json!({
        "podSelector": { "matchLabels": { "role": "client" } },
        "ingress": [{ "from": [
            { "podSelector": { "matchLabels": { "app": "web" } } },
            { "podSelector": {}, "serviceSelector": {} },
        ] }]
    });
    stage.policy("narrowed", &narrowed);
    check_states(&mut stage, [1.0, 1.0, 0.0]);
    let policy = standing(&mut stage, "narrowed").expect("it is told");
    check_active(&policy, &written);
    assert_eq!(policy["state"], "narrowed");
    assert!(policy["problems"][0]["field"].to_string().contains("serviceSelector"), "{policy}");
    stage.allows(&web, &client, WEB, "narrowed");
    stage.denies(&guest, &client, WEB, "");

    let written = now();
    stage.allows(&client, &guest, WEB, "noPolicySelects");
    stage.policy("refused", &json!({ "podSelector": {}, "ingress": [{}], "unheardOf": true }));
    check_states(&mut stage, [1.0, 1.0, 1.0]);
    let policy = standing(&mut stage, "refused").expect("it is told");
    check_active(&policy, &written);
    assert_eq!(policy["state"], "refused");
    assert!(policy["problems"][0]["field"].to_string().contains("unheardOf"), "{policy}");
    stage.denies(&client, &guest, WEB, "");

    // What is not enforced at all is never in force.
    let foreign = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": { "name": "foreign", "namespace": "shop" }, "spec": {}
    });
    stage.lab.manifests().write("foreign", &foreign).expect("written");
    check_states(&mut stage, [1.0, 1.0, 2.0]);
    let policy = standing(&mut stage, "foreign").expect("it is told");
    assert_eq!((&policy["state"], &policy["activeAt"]), (&json!("refused"), &Value::Null));
    assert_eq!(policy["problems"].as_array().map(Vec::len), Some(1), "{policy}");
    assert_eq!(metric(&mut stage, "reeve_policy_active_seconds_count"), 3.0);
    assert_eq!(metric(&mut stage, "reeve_policy_waiting_seconds"), 0.0);

    // One that is mended comes into force anew; nothing else is told otherwise.
    let written = now();
    stage.policy("refused", &json!({ "podSelector": {}, "ingress": [{}] }));
    check_states(&mut stage, [2.0, 1.0, 1.0]);
    let policy = standing(&mut stage, "refused").expect("it is told");
    check_active(&policy, &written);
    assert_eq!((&policy["state"], &policy["problems"]), (&json!("accepted"), &json!([])));
    assert_eq!(metric(&mut stage, "reeve_policy_active_seconds_count"), 4.0);
    let again = standing(&mut stage, "web-clients").expect("it is told");
    assert!(again["activeAt"].as_str() < Some(written.as_str()), "{again}");
    stage.allows(&client, &guest, WEB, "refused");

    for name in ["narrowed", "foreign"] {
        stage.lab.manifests().remove(name).expect("removed");
    }
    check_states(&mut stage, [2.0, 0.0, 0.0]);
    assert_eq!((standing(&mut stage, "narrowed"), standing(&mut stage, "foreign")), (None, None));
    assert_eq!(policies(&mut stage).len(), 2);
}

#[test]
fn policy_waits_and_says_so_while_the_kernel_is_left_as_it_is() {
    if crate::skipped() {
        return;
    }
    let begun = now();
    let (mut stage, web, client, guest) = shop("standing-waits", Mode::Routed);
    stage.agent().kill9().expect("killed");
    stage.allow_from("guests", ("app", "web"), ("app", "guest"));
    stage.lab.manifests().write_text("broken.yaml", "kind: [").expect("written");
    stage.agent().spawn_again().expect("started");
    let waits = until("a policy that waits", LOOK_PATIENCE, || {
        // Nobody listens at first.
        let waits = stage.agent().metric("reeve_policy_waiting_seconds", &[]).unwrap_or_default();
        Ok((waits > 0.0).then_some(()))
    });
    waits.expect("it is told");
    let policy = standing(&mut stage, "guests").expect("it is told");
    assert!(policy["compiledAt"].is_string(), "{policy}");
    assert_eq!((&policy["state"], &policy["activeAt"]), (&json!("accepted"), &Value::Null));
    assert_eq!(metric(&mut stage, "reeve_policy_active_seconds_count"), 0.0);
    assert_eq!((get(&client, &web), get(&guest, &web)), (Ok(()), Err(NoAnswer::TimedOut)));

    stage.lab.manifests().remove_file("broken.yaml").expect("removed");
    stage.settled();
    check_active(&standing(&mut stage, "guests").expect("it is told"), &begun);
    assert_eq!(metric(&mut stage, "reeve_policy_active_seconds_count"), 2.0);
    assert_eq!(metric(&mut stage, "reeve_policy_waiting_seconds"), 0.0);
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn policy_whose_tier_goes_is_refused_though_nobody_wrote_it_anew() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("standing-tier", Mode::Routed);
    let tier = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": { "name": "platform" }, "spec": { "order": 10 }
    });
    let policy = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": { "name": "platform.guests" },
        "spec": { "tier": "platform", "selector": "app == 'web'", "types": ["Ingress"],
                  "ingress": [{ "action": "Allow" }] }
    });
    stage.lab.manifests().write("platform", &tier).expect("written");
    stage.lab.manifests().write("guests", &policy).expect("written");
    check_states(&mut stage, [2.0, 0.0, 0.0]);
    let before = standing(&mut stage, "platform.guests").expect("it is told");
    stage.allows(&guest, &web, WEB, "platform.guests");
    stage.lab.manifests().remove("platform").expect("removed");
    check_states(&mut stage, [1.0, 0.0, 1.0]);
    let after = standing(&mut stage, "platform.guests").expect("it is told");
    assert_eq!((&before["state"], &after["state"]), (&json!("accepted"), &json!("refused")));
    assert!(after["problems"].to_string().contains("platform"), "{after}");
    assert_eq!(metric(&mut stage, "reeve_policy_active_seconds_count"), 2.0, "it was not written anew");
    stage.denies(&client, &web, WEB, "");
    stage.allows(&web, &client, WEB, "noPolicySelects");
}
