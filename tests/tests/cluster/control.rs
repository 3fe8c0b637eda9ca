//! The control plane itself: what it says it is, what it keeps, whom it lets in, and what it refuses.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::town::{Company, Town, skipped_without_agent};

/// The version of Kubernetes that the repository pins, as in `v1.36.2`.
fn pinned() -> String {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes/go.mod");
    let text = fs::read_to_string(module).expect("go.mod");
    let line = text.lines().find(|line| line.trim().starts_with("k8s.io/kubernetes v")).expect("a requirement");
    line.split_whitespace().nth(1).expect("a version").to_owned()
}

#[test]
fn control_plane_is_ready_and_is_of_the_pinned_version() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("version", Company::Shared);
    assert_eq!(town.cluster.kubectl(&["get", "--raw", "/readyz"]).expect("an answer").trim(), "ok");
    let version: Value =
        serde_json::from_str(&town.cluster.kubectl(&["get", "--raw", "/version"]).expect("an answer")).expect("JSON");
    if std::env::var_os("KUBEBUILDER_ASSETS").is_none() {
        assert_eq!(version["gitVersion"], pinned().as_str());
    }
    let node = town.cluster.get(&["node", &town.name]).expect("a node");
    assert_eq!(node["spec"]["podCIDRs"].as_array().map(Vec::len), Some(2), "{node}");
}

#[test]
fn objects_outlive_an_api_server_that_is_killed() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("outlive", Company::Alone);
    let kept = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": town.name, "name": "kept" }, "data": { "word": "before" },
    });
    town.cluster.apply(&[kept]).expect("an object");
    let read = || town.cluster.get(&["configmap", "kept", "-n", &town.name]);
    let before = read().expect("an object");
    town.cluster.kill_api_server().expect("killed");
    assert!(town.cluster.kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"]).is_err());
    town.cluster.start_api_server().expect("an API server");
    assert_eq!(read().expect("an object"), before);
}

#[test]
fn service_account_may_read_pods_only_with_a_role_that_says_so() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("role", Company::Shared);
    let (cluster, name) = (&town.cluster, town.name.as_str());
    cluster.kubectl(&["create", "serviceaccount", "reader", "-n", name]).expect("an account");
    let kubeconfig = cluster.kubeconfig(name, "reader").expect("a kubeconfig");
    let pods = |code: u64| {
        let answer = cluster.kubectl_as(&kubeconfig, &["get", "pods", "-n", name, "-o", "json"], None);
        let calls = cluster.calls_of(name, "reader").expect("an audit log");
        let listed = calls.keys().any(|call| call.resource == "pods" && call.verb == "list" && call.code == code);
        (answer, listed)
    };
    let (answer, refused) = pods(403);
    let error = answer.expect_err("no rights").to_string();
    assert!(error.contains("(Forbidden)") && refused, "{error}");

    let role = ["create", "role", "reads-pods", "--verb=get,list,watch", "--resource=pods", "-n", name];
    cluster.kubectl(&role).expect("a role");
    let account = format!("--serviceaccount={name}:reader");
    cluster.kubectl(&["create", "rolebinding", "reads", "--role=reads-pods", &account, "-n", name]).expect("a binding");
    // The authorizer hears of a binding a little later than whoever made it.
    let allowed = reeve_tests::lab::until("the role to count", crate::town::LONG, || Ok(pods(200).0.ok()));
    let list: Value = serde_json::from_str(&allowed.expect("rights")).expect("JSON");
    assert_eq!(list["kind"], "List", "{list}");
    assert!(pods(200).1, "the audit log tells the answer");
}

#[test]
fn dry_run_refuses_a_policy_that_is_invalid_and_keeps_none_that_is_valid() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("dry-run", Company::Shared);
    let policy = |port: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web, namespace: {}}}\n\
             spec:\n  podSelector: {{}}\n  ingress:\n  - ports: [{{protocol: TCP, port: {port}}}]\n",
            town.name
        )
    };
    let error = town.cluster.dry_run(&policy("70000")).expect_err("no such port").to_string();
    assert!(error.contains("spec.ingress[0].ports[0].port"), "{error}");
    town.cluster.dry_run(&policy("443")).expect("a valid policy");
    let kept = town.cluster.get(&["networkpolicies", "-n", &town.name]).expect("a list");
    assert_eq!(kept["items"], json!([]), "a dry run keeps nothing");
}

#[test]
fn chart_is_taken_by_the_api_server_as_it_is_and_with_every_setting() {
    if skipped_without_agent() {
        return;
    }
    let town = Town::new("chart", Company::Shared);
    let monitor = ["--set", "metrics.serviceMonitor.enabled=true"];
    for arguments in [
        &[][..],
        &["--set", "cni.enabled=false,networkPolicy.enabled=false,status.enabled=false,image.tag=1"],
        &["--set", "agent.mapEntries.FLOWS=65536,podLabels.team=net,imagePullSecrets[0].name=key"],
    ] {
        let objects = town.cluster.rendered(&town.name, "reeve", arguments).expect("a chart");
        let kinds: Vec<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
        assert!(kinds.contains(&"DaemonSet") && kinds.contains(&"ClusterRole"), "{arguments:?}: {kinds:?}");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
        let said = town.cluster.dry_run(&list).unwrap_or_else(|error| panic!("{arguments:?}: {error:#}"));
        assert!(said.contains("daemonset.apps/reeve serverside-applied"), "{said}");
        // A field that the API does not know is an error of the chart, not left out.
        let wrong = list.replace("\"hostNetwork\"", "\"hostNetwrk\"");
        assert_ne!(wrong, list);
        let refused = town.cluster.dry_run(&wrong).expect_err("a field that is not known");
        assert!(format!("{refused:#}").contains("hostNetwrk"), "{refused:#}");
    }
    let kinds = town.cluster.rendered(&town.name, "reeve", &monitor).expect("a chart");
    assert!(kinds.iter().any(|object| object["kind"] == "ServiceMonitor"));
}
