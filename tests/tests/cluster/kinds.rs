//! Kinds of policies that come and go with their definitions, and what of the agent's rights they make use of.

use std::collections::BTreeSet;

use reeve_tests::cluster::{Rule, definition};
use reeve_tests::lab::until;
use reeve_tests::stage::get;
use serde_json::{Value, json};

use crate::town::{Company, LONG, Town, skipped};

/// The group of policies that have a status.
const WITH_STATUS: &str = "policy.networking.k8s.io";

pub(crate) const CLUSTER_POLICIES: &str = "clusternetworkpolicies.policy.networking.k8s.io";

pub(crate) fn cluster_policies() -> Value {
    definition(WITH_STATUS, "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies", "Cluster")
}

/// Defines kinds, and waits until they are served.
pub(crate) fn define(town: &Town, definitions: &[Value]) {
    town.cluster.apply(definitions).expect("definitions");
    for definition in definitions {
        let name = definition["metadata"]["name"].as_str().expect("a name");
        let place = format!("customresourcedefinition/{name}");
        town.cluster.kubectl(&["wait", "--for=condition=Established", &place, "--timeout=60s"]).expect("served");
    }
}

#[test]
fn kind_of_policies_that_is_installed_later_is_enforced_and_ends_with_its_definition() {
    if skipped() {
        return;
    }
    let mut town = Town::new("kinds", Company::Alone);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    town.start();
    assert_eq!(get(&client, &web), Ok(()));
    define(&town, &[cluster_policies()]);
    let policy = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": "nobody-to-web" },
        "spec": {
            "tier": "Admin", "priority": 10,
            "subject": { "pods": {
                "namespaceSelector": { "matchLabels": { "town": town.name } },
                "podSelector": { "matchLabels": { "app": "web" } },
            } },
            "ingress": [{ "name": "all", "action": "Deny", "from": [{ "namespaces": {} }] }],
        },
    });
    town.cluster.apply(&[policy]).expect("a policy");
    town.becomes_denied(&client, &web, "nobody-to-web");
    assert_eq!(get(&client, &front), Ok(()), "another pod is as open as before");
    town.measures("reeve_watch_objects", CLUSTER_POLICIES, |objects| objects == 1.0);
    town.cluster.delete(&["customresourcedefinition", CLUSTER_POLICIES]).expect("deleted");
    town.becomes_allowed(&client, &web);
    town.agent().wait_ready().expect("a kind that is served no longer is no reason not to be ready");
}

#[test]
fn agent_asks_for_all_that_its_role_grants_and_for_nothing_else() {
    if skipped() {
        return;
    }
    let mut town = Town::new("audit", Company::Alone);
    let cluster = town.cluster.clone();
    let calico = "projectcalico.org";
    let definitions = [
        cluster_policies(),
        definition(WITH_STATUS, "v1alpha2", "AdminNetworkPolicy", "adminnetworkpolicies", "Cluster"),
        definition(WITH_STATUS, "v1alpha2", "BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies", "Cluster"),
        definition(calico, "v3", "GlobalNetworkPolicy", "globalnetworkpolicies", "Cluster"),
        definition(calico, "v3", "NetworkPolicy", "networkpolicies", "Namespaced"),
        definition(calico, "v3", "Tier", "tiers", "Cluster"),
        definition(calico, "v3", "GlobalNetworkSet", "globalnetworksets", "Cluster"),
        definition(calico, "v3", "NetworkSet", "networksets", "Namespaced"),
        definition(calico, "v3", "StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", "Cluster"),
        definition(calico, "v3", "StagedNetworkPolicy", "stagednetworkpolicies", "Namespaced"),
        definition(calico, "v3", "StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", "Namespaced"),
    ];
    define(&town, &definitions);
    // One of each kind that has a status; those of two kinds are refused, which Events tell.
    let with_status = ["ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"].map(|kind| {
        let version = format!("{WITH_STATUS}/v1alpha2");
        json!({
            "apiVersion": version, "kind": kind, "metadata": { "name": "default" },
            "spec": { "tier": "Admin", "priority": 1, "subject": { "namespaces": {} } },
        })
    });
    cluster.apply(&with_status).expect("policies");
    town.start();

    let granted = cluster.granted().expect("roles");
    let wanted = |group: &str, resource: &str, verb: &str| (group.to_owned(), resource.to_owned(), verb.to_owned());
    let mut missing: BTreeSet<(String, String, String)> = BTreeSet::new();
    for rule in &granted {
        // A server that streams lists is never asked for them.
        let verbs = rule.verbs.iter().filter(|verb| *verb != "list");
        missing.extend(verbs.map(|verb| wanted(&rule.group, &rule.resource, verb)));
    }
    let asked = until("everything that is granted to be asked for", LONG, || {
        let calls = cluster.calls_of(&town.name, &town.name)?;
        for call in calls.keys() {
            missing.remove(&wanted(&call.group, &call.resource, &call.verb));
        }
        Ok(missing.is_empty().then_some(calls))
    });
    let calls = asked.unwrap_or_else(|error| panic!("{error:#}: nobody asks for {missing:?}"));
    for call in calls.keys() {
        // 429: a kind that was defined a moment ago is not served yet, and asked for again.
        let no_lease_yet = call.resource == "leases" && call.verb == "get" && call.code == 404;
        assert!(matches!(call.code, 200 | 201 | 429) || no_lease_yet, "{call:?}");
        // What is served is told to everybody, by a role of Kubernetes' own.
        let of_discovery = call.resource.is_empty() && call.verb == "get" && call.path.starts_with("/api");
        let of = |rule: &&Rule| rule.group == call.group && rule.resource == call.resource;
        let is_granted = granted.iter().filter(of).any(|rule| rule.verbs.contains(&call.verb));
        assert!(of_discovery || is_granted, "{call:?} is not granted");
    }
    // A server that streams lists is never asked for them, so of most kinds `watch` is all that is seen here.
    let (reads, others): (Vec<&Rule>, Vec<&Rule>) = granted.iter().partition(|rule| rule.verbs == ["list", "watch"]);
    let others: BTreeSet<(&str, Vec<&str>)> =
        others.iter().map(|rule| (rule.resource.as_str(), rule.verbs.iter().map(String::as_str).collect())).collect();
    assert!(reads.len() > others.len());
    assert_eq!(
        others,
        BTreeSet::from([
            ("adminnetworkpolicies/status", vec!["patch"]),
            ("baselineadminnetworkpolicies/status", vec!["patch"]),
            ("clusternetworkpolicies/status", vec!["patch"]),
            ("events", vec!["create"]),
            ("leases", vec!["create"]),
            ("leases", vec!["get", "watch", "update"]),
        ])
    );
    let names: Vec<String> =
        definitions.iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.delete(&[&["customresourcedefinition"], names.as_slice()].concat()).expect("deleted");
}
