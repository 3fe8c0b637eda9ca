//! The plain manifests are the chart, and the chart's hook has no more rights than it needs.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::town::{Company, Town, skipped_without_agent};

fn written(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let documents = serde_norway::Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect("YAML"));
    documents.filter(|object| !object.is_null()).collect()
}

#[test]
fn plain_manifests_are_what_the_chart_renders() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("manifests", Company::Shared);
    let rendered =
        |arguments: &[&str]| town.cluster.rendered("reeve-system", "reeve", arguments).expect("a chart that renders");
    let (namespace, mut plain) = (json!("Namespace"), written("reeve.yaml"));
    assert_eq!(plain.remove(0)["kind"], namespace, "where the others are");
    assert_eq!(plain, rendered(&["--no-hooks"]), "`cargo xtask manifests` writes them anew");
    let hook = written("uninstall.yaml");
    assert_eq!(hook, rendered(&["--show-only", "templates/uninstall.yaml"]), "`cargo xtask manifests` writes it anew");
    assert!(!plain.iter().any(|object| object["kind"] == "Job") && hook.iter().any(|object| object["kind"] == "Job"));
}

#[test]
fn uninstalling_hook_is_no_root_and_may_touch_its_own_daemonset_only() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("hook", Company::Shared);
    let objects = town.cluster.rendered("any", "mine", &[]).expect("a chart that renders");
    let of_hook = |kind: &str| {
        let is_hook = |object: &&Value| object["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete";
        objects.iter().filter(is_hook).find(|object| object["kind"] == kind).expect("an object of the hook")
    };
    let container = &of_hook("Job")["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    assert_eq!(container["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(container["runAsNonRoot"], true);
    assert_eq!(
        of_hook("Role")["rules"],
        json!([
            { "apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["mine"], "verbs": ["get", "patch"] },
            { "apiGroups": [""], "resources": ["pods"], "verbs": ["list"] },
        ])
    );
    let cluster_wide = |object: &&Value| object["kind"] == "ClusterRole";
    assert_eq!(objects.iter().filter(cluster_wide).count(), 1, "the agent's own");
}

#[test]
fn chart_without_status_grants_nothing_but_reading_and_agents_do_not_try() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("reading", Company::Shared);
    let check = |enabled: bool| {
        let status = format!("status.enabled={enabled}");
        let objects = town.cluster.rendered("any", "mine", &["--no-hooks", "--set", &status]).expect("a chart");
        let of = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
        let rules = of("ClusterRole")[0]["rules"].as_array().expect("rules");
        let reads = rules.iter().all(|rule| rule["verbs"] == json!(["list", "watch"]));
        let settings = of("ConfigMap")[0]["data"]["agent.toml"].as_str().expect("text");
        (reads, of("Role").len(), settings.contains("status-lease = \"\""))
    };
    assert_eq!((check(false), check(true)), ((true, 0, true), (false, 1, false)));
}
