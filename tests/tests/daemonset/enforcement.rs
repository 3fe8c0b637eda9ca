//! Policies between Deployments of two nodes, as seen by `kubectl exec` and `kubectl logs`.

use serde_json::Value;

use crate::city::{Stay, skipped};

#[test]
fn deployments_reach_each_other_as_policy_says_and_records_name_the_policy() {
    if skipped() {
        return;
    }
    let stay = Stay::new("enforced");
    stay.deploy("web", "one", &["serve", "8080"]);
    stay.deploy("front", "two", &[]);
    stay.deploy("other", "two", &[]);
    let (web, front, other) = (stay.running("web"), stay.running("front"), stay.running("other"));
    for client in [&front, &other] {
        assert_eq!(stay.ask(&client.0, &web.1), Ok(format!("hello {}", client.1)));
    }
    stay.lets_in("front-to-web", "web", "front");
    stay.becomes(&other.0, &web.1, false);
    assert_eq!(stay.ask(&front.0, &web.1), Ok(format!("hello {}", front.1)));
    let decided = |record: &Value, verdict: &str, from: &str| {
        record["verdict"] == verdict
            && record["source"].to_string().contains(from)
            && record["destination"].to_string().contains(&web.0)
            && record["decision"].to_string().contains("front-to-web")
    };
    stay.record("one", |record| decided(record, "deny", &other.0));
    stay.record("one", |record| decided(record, "allow", &front.0));
}
