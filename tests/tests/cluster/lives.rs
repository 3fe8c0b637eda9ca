//! Pods that are not as most are: addresses shown twice, ended pods, static ones, those of the node's network, namespaces
//! that go; and an agent whose way to the API server is not one.

use std::net::{IpAddr, SocketAddr};

use reeve_tests::lab::{AgentOptions, Facts, PodSpec, until};
use reeve_tests::stage::get;
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, connect};
use serde_json::{Value, json};

use crate::town::{Company, LONG, Town, skipped};

/// Lets pods with this label at the one named `web`, and nobody else.
fn only(town: &Town, peer: &Value) {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "web-peers", "namespace": town.name },
        "spec": { "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": [peer] }] },
    });
    town.cluster.apply(&[policy]).expect("a policy");
}

fn status(town: &Town, pod: &str, phase: &str, address: IpAddr) {
    let status = json!({ "status": { "phase": phase, "podIP": address, "podIPs": [{ "ip": address }] } });
    town.cluster.patch(&["--subresource=status", "pod", pod, "-n", &town.name], &status).expect("a status");
}

fn told(town: &mut Town, what: &str) -> bool {
    let all = town.agent().request("GET", "/problems").expect("an answer").body;
    all.contains(what)
}

#[test]
fn address_that_two_pods_show_is_closed_until_one_of_them_has_completed() {
    if skipped() {
        return;
    }
    let mut town = Town::new("twins", Company::Shared);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    only(&town, &json!({ "podSelector": { "matchLabels": { "app": "client" } } }));
    town.start();
    assert_eq!(get(&client, &web), Ok(()));
    assert_eq!(get(&front, &web), Err(NoAnswer::TimedOut));
    let far = PodSpec::new(&town.name, "job").label("app", "job");
    town.cluster.apply(&[far.object("elsewhere")]).expect("a pod of another node");
    status(&town, "job", "Running", client.v4());
    let both = until("both to be named", LONG, || {
        let all = town.agent().request("GET", "/problems")?.body;
        Ok((all.contains("/client") && all.contains("/job")).then_some(()))
    });
    both.expect("a problem that names both");
    assert_eq!(get(&client, &web), Err(NoAnswer::TimedOut), "nobody knows who that is");
    assert_eq!(get(&front, &client), Err(NoAnswer::TimedOut), "nor who is reached");
    // A job that has ended shows the address that it had, which is another pod's by now.
    status(&town, "job", "Succeeded", client.v4());
    town.becomes_allowed(&client, &web);
    assert_eq!(get(&front, &web), Err(NoAnswer::TimedOut));
    assert!(!told(&mut town, "/job"));
}

#[test]
fn pod_without_address_concerns_nobody_and_one_of_the_nodes_network_is_no_pod_to_policies() {
    if skipped() {
        return;
    }
    let mut town = Town::new("hosts", Company::Shared);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    only(&town, &json!({ "podSelector": { "matchLabels": { "app": "client" } } }));
    // Selected by the same policy as `web`, and by its peers.
    let waits = PodSpec::new(&town.name, "waits").label("app", "client").object(town.node.name());
    let mut host = PodSpec::new(&town.name, "host").label("app", "web").object(town.node.name());
    host["spec"]["hostNetwork"] = json!(true);
    town.cluster.apply(&[waits, host]).expect("pods");
    status(&town, "host", "Running", town.node.v4());
    town.start();
    assert_eq!((get(&client, &web), get(&front, &web)), (Ok(()), Err(NoAnswer::TimedOut)));
    let endpoints = town.agent().request("GET", "/endpoints").expect("an answer").json().expect("endpoints");
    let state = |pod: &str| {
        let found = endpoints.as_array().expect("a list").iter().find(|endpoint| endpoint["pod"] == pod);
        found.map(|endpoint| endpoint["state"].as_str().unwrap_or_default())
    };
    assert_eq!((state("client"), state("waits"), state("host")), (Some("ready"), Some("unattached"), None));
    // The node's own address stays the node's: a policy for pods does not close what listens there.
    let server = Server::tcp(town.node.netns(), town.node.v4(), 8080).expect("a server of the node");
    let address = SocketAddr::new(town.node.v4(), 8080);
    let reached = connect(front.netns(), address, PATIENCE).and_then(|mut connection| connection.exchange(PATIENCE));
    assert_eq!(reached, Ok(()), "the policy that selects the host's pod by its label is not about the node");
    drop(server);
}

#[test]
fn static_pod_is_enforced_by_the_labels_of_its_mirror() {
    if skipped() {
        return;
    }
    let mut town = Town::new("static", Company::Shared);
    let (front, client) = (town.pod("front"), town.pod("client"));
    let mut spec = PodSpec::new(&town.name, "web").label("app", "web");
    let mut mirror = spec.object(town.node.name());
    mirror["metadata"]["annotations"] =
        json!({ "kubernetes.io/config.mirror": "0123abcd", "kubernetes.io/config.source": "file" });
    // The API server takes no mirror of a pod that has a service account.
    mirror["spec"].as_object_mut().expect("a spec").remove("serviceAccountName");
    town.cluster.apply(&[mirror]).expect("a mirror");
    let made = town.cluster.get(&["pod", "web", "-n", &town.name]).expect("the mirror");
    spec.uid = made["metadata"]["uid"].as_str().map(str::to_owned);
    let web = town.node.pod(spec).expect("a pod");
    town.cluster.tell_running(&town.node, &town.name, "web", web.addresses()).expect("a status");
    let _server = Server::tcp(web.netns(), web.v4(), 8080).expect("a server");
    only(&town, &json!({ "podSelector": { "matchLabels": { "app": "client" } } }));
    town.start();
    town.becomes_denied(&front, &web, "web-peers");
    assert_eq!(get(&client, &web), Ok(()));
}

#[test]
fn namespace_that_is_deleted_takes_its_policies_and_what_they_let_in_along() {
    if skipped() {
        return;
    }
    let mut town = Town::new("leaving", Company::Shared);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    let guests = format!("{}-guests", town.name);
    town.cluster.namespace(&guests, &json!({ "guests": "yes" })).expect("a namespace");
    let guest = town.cluster.pod(&town.node, PodSpec::new(&guests, "guest")).expect("a pod");
    only(&town, &json!({ "namespaceSelector": { "matchLabels": { "guests": "yes" } } }));
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "nobody", "namespace": guests }, "spec": { "podSelector": {} },
    });
    town.cluster.apply(&[policy]).expect("a policy");
    town.start();
    assert_eq!((get(&guest, &web), get(&client, &web)), (Ok(()), Err(NoAnswer::TimedOut)));
    let policies = town.agent().request("GET", "/policies").expect("an answer").body;
    assert!(policies.contains(&guests), "{policies}");
    town.cluster.kubectl(&["delete", "namespace", &guests, "--wait=false"]).expect("deleted");
    // The kubelet's part: its containers have ended.
    let (namespace, name) = guest.name();
    town.cluster.delete(&["pod", name, "-n", namespace, "--grace-period=0", "--force"]).expect("deleted");
    town.cluster.kubectl(&["wait", "--for=delete", "namespace", &guests, "--timeout=60s"]).expect("gone");
    let forgotten = until("its policy to be forgotten", LONG, || {
        let policies = town.agent().request("GET", "/policies")?.body;
        Ok((!policies.contains(&guests)).then_some(()))
    });
    forgotten.expect("it is");
    // What is left of the pod is nobody's: not even its own address is.
    let closed =
        until("the guest to be shut out", LONG, || Ok((get(&guest, &web) == Err(NoAnswer::TimedOut)).then_some(())));
    closed.expect("it is");
    assert_eq!((get(&client, &front), get(&client, &web)), (Ok(()), Err(NoAnswer::TimedOut)));
    town.agent().wait_ready().expect("ready");
}

#[test]
fn kubeconfig_that_is_none_is_named_with_what_is_wrong() {
    if skipped() {
        return;
    }
    let town = Town::new("misled", Company::Shared);
    let path = town.cluster.directory().join("misled.kubeconfig");
    for (text, said) in [
        ("clusters: 7\n", "clusters"),
        (r#"{"apiVersion":"v1","kind":"Config","current-context":"no","clusters":[],"users":[],"contexts":[]}"#, "no"),
    ] {
        std::fs::write(&path, text).expect("written");
        let facts = Facts::Kubeconfig(path.clone());
        let agent = town.node.start_agent(AgentOptions { facts, ..AgentOptions::default() });
        let error = format!("{:#}", agent.err().expect("it does not start"));
        assert!(error.contains("misled.kubeconfig") && error.contains(said), "{error}");
    }
}
