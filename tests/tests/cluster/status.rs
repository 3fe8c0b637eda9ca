//! How policies stand, as the cluster is told it: one agent of all writes conditions and Events, and another goes on with it.

use std::collections::BTreeSet;

use reeve_tests::cluster::definition;
use reeve_tests::lab::{Agent, AgentOptions, Facts, Mode, Node, until};
use reeve_tests::stage::get;
use serde_json::{Value, json};

use crate::kinds::{CLUSTER_POLICIES, cluster_policies, define};
use crate::town::{Company, LONG, Town, skipped};

const GROUP: &str = "policy.networking.k8s.io";
const OURS: &str = "reeve/Accepted";
const EVENTS: &str = "events.events.k8s.io";
const LEASES: &str = "leases.coordination.k8s.io";

/// A policy of the cluster for pods named `web`, with one rule that does this to everybody.
fn policy(town: &Town, name: &str, action: &str) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1alpha2"), "kind": "ClusterNetworkPolicy", "metadata": { "name": name },
        "spec": {
            "tier": "Admin", "priority": 10,
            "subject": { "pods": {
                "namespaceSelector": { "matchLabels": { "town": town.name } },
                "podSelector": { "matchLabels": { "app": "web" } },
            } },
            "ingress": [{ "name": "all", "action": action, "from": [{ "namespaces": {} }] }],
        },
    })
}

fn object(town: &Town, name: &str) -> Value {
    town.cluster.get(&[CLUSTER_POLICIES, name, "--show-managed-fields"]).expect("a policy")
}

fn conditions(object: &Value) -> Vec<Value> {
    object["status"]["conditions"].as_array().cloned().unwrap_or_default()
}

/// Waits until our condition is about the policy as it is written now, and says this.
#[track_caller]
fn becomes(town: &Town, name: &str, status: &str) -> Value {
    let mut last = Value::Null;
    let found = until("a condition", LONG, || {
        last = object(town, name);
        let of_now = |condition: &&Value| {
            condition["type"] == OURS && condition["observedGeneration"] == last["metadata"]["generation"]
        };
        Ok(conditions(&last).iter().find(of_now).filter(|condition| condition["status"] == status).cloned())
    });
    found.unwrap_or_else(|error| panic!("{error:#}: {name} is not {status}: {last}"))
}

/// Events about an object, as docs/install.md asks for them.
fn events(town: &Town, namespace: &str, about: &Value) -> Vec<Value> {
    let all = town.cluster.get(&["events", "-n", namespace, "--field-selector", "reportingComponent=reeve"]);
    let all = all.expect("a list");
    let regards = |event: &&Value| event["involvedObject"]["uid"] == about["metadata"]["uid"];
    all["items"].as_array().expect("a list").iter().filter(regards).cloned().collect()
}

/// The only event about an object, once it is there.
#[track_caller]
fn event(town: &Town, namespace: &str, about: &Value) -> Value {
    until("an event", LONG, || Ok(events(town, namespace, about).into_iter().next())).expect("an event");
    let mut all = events(town, namespace, about);
    assert_eq!(all.len(), 1, "{all:?}");
    all.swap_remove(0)
}

/// An agent of another node of the town, with an account of its own, and whether it has the Lease.
struct Second {
    _node: Node,
    agent: Agent,
    account: String,
}

impl Second {
    fn start(town: &Town) -> Self {
        let account = format!("{}-second", town.name);
        town.cluster.grant(&town.name, &account).expect("rights");
        let node = town.cluster.node(&account, Mode::Routed).expect("a node");
        let facts = Facts::Kubeconfig(town.cluster.kubeconfig(&town.name, &account).expect("a kubeconfig"));
        let agent = node.start_agent(AgentOptions { facts, ..AgentOptions::default() }).expect("an agent");
        Self { _node: node, agent, account }
    }
}

#[track_caller]
fn comes_to_lead(agent: &Agent) {
    let led = until("the agent to lead", LONG, || Ok((agent.metric("reeve_status_leader", &[])? == 1.0).then_some(())));
    led.unwrap_or_else(|error| panic!("{error:#}; the agent's log:\n{}", agent.log()));
}

/// What an account has written, but for the Lease.
fn written(town: &Town, account: &str) -> BTreeSet<String> {
    let calls = town.cluster.calls_of(&town.name, account).expect("an audit log");
    let writes =
        calls.keys().filter(|call| matches!(call.verb.as_str(), "patch" | "create") && call.resource != "leases");
    writes.map(|call| call.path.clone()).collect()
}

fn holder(town: &Town) -> String {
    let lease = town.cluster.get(&[LEASES, "reeve-status", "-n", &town.name]).expect("a lease");
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn one_agent_of_two_tells_how_policies_stand_and_the_other_goes_on_when_it_is_gone() {
    if skipped() {
        return;
    }
    let mut town = Town::new("status", Company::Alone);
    let calico = "projectcalico.org";
    let tenants = definition(calico, "v3", "NetworkPolicy", "networkpolicies", "Namespaced");
    define(&town, &[cluster_policies(), tenants]);
    town.start();
    comes_to_lead(town.agent());
    let mut second = Second::start(&town);
    assert_eq!(second.agent.metric("reeve_status_leader", &[]).expect("a metric"), 0.0);

    // Accepted, refused, and refused of a kind without status.
    let unreadable = json!({
        "apiVersion": format!("{calico}/v3"), "kind": "NetworkPolicy",
        "metadata": { "namespace": town.name, "name": "tenant" }, "spec": { "selector": "app ==", "types": ["Ingress"] },
    });
    town.cluster
        .apply(&[policy(&town, "good", "Deny"), policy(&town, "bad", "Perhaps"), unreadable])
        .expect("policies");
    let good = becomes(&town, "good", "True");
    assert_eq!((&good["reason"], &good["observedGeneration"]), (&json!("Accepted"), &json!(1)));
    let fields = object(&town, "good")["metadata"]["managedFields"].clone();
    let ours = |entry: &&Value| entry["manager"] == "reeve";
    let ours: Vec<&Value> = fields.as_array().expect("a list").iter().filter(ours).collect();
    assert_eq!(ours.len(), 1, "{fields}");
    assert_eq!((&ours[0]["subresource"], &ours[0]["operation"]), (&json!("status"), &json!("Apply")));

    let bad = becomes(&town, "bad", "False");
    let message = bad["message"].as_str().expect("text");
    assert!(message.contains("spec.ingress[0].action: Perhaps: "), "{bad}");
    let told = event(&town, "default", &object(&town, "bad"));
    assert_eq!((&told["message"], &told["involvedObject"]["name"]), (&bad["message"], &json!("bad")));
    assert_eq!((&told["reason"], &told["type"]), (&bad["reason"], &json!("Warning")));
    let place = format!("networkpolicies.{calico}");
    let tenant = || town.cluster.get(&[&place, "tenant", "-n", &town.name]).expect("a policy");
    let told = event(&town, &town.name, &tenant());
    assert!(told["message"].as_str().is_some_and(|text| text.contains("spec.selector: app ==: ")), "{told}");
    let tenant = tenant();
    assert_eq!(tenant["status"], Value::Null);
    assert_eq!(events(&town, "default", &object(&town, "good")), Vec::<Value>::new());
    assert_eq!(written(&town, &second.account), BTreeSet::new(), "one writes for all");

    // What others say stays; what is taken away from us is said again, and costs nobody a step.
    let name = town.name.clone();
    let compiled = |agent: &Agent| agent.metric("reeve_compile_seconds_count", &[]).expect("a metric");
    let before = (compiled(town.agent()), compiled(&second.agent));
    let other = json!({
        "type": "Seen", "status": "True", "reason": "Seen", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let status = json!({ "status": { "conditions": [other] } });
    town.cluster.patch(&["--subresource=status", CLUSTER_POLICIES, "good"], &status).expect("a status");
    becomes(&town, "good", "True");
    let types: BTreeSet<String> =
        conditions(&object(&town, "good")).iter().map(|one| one["type"].as_str().expect("text").to_owned()).collect();
    assert_eq!(types, BTreeSet::from([OURS.to_owned(), "Seen".to_owned()]));
    assert_eq!((compiled(town.agent()), compiled(&second.agent)), before, "a status is no part of the facts");

    // Mended.
    town.cluster.apply(&[policy(&town, "bad", "Accept")]).expect("a policy");
    let mended = becomes(&town, "bad", "True");
    assert_eq!(mended["observedGeneration"], 2);
    assert_eq!(events(&town, "default", &object(&town, "bad")).len(), 1);
    town.measures("reeve_status_requests_total", CLUSTER_POLICIES, |count| count >= 4.0);
    let agent = town.agent();
    assert_eq!(
        agent.metric("reeve_status_requests_total", &[("kind", CLUSTER_POLICIES), ("state", "failed")]).unwrap(),
        0.0
    );

    // Killed, it gives nothing back: it is waited out.
    let first = holder(&town);
    assert!(first.starts_with(&format!("{name}_")), "{first}");
    town.agent().kill9().expect("killed");
    town.cluster.apply(&[policy(&town, "later", "Deny")]).expect("a policy");
    comes_to_lead(&second.agent);
    becomes(&town, "later", "True");
    assert!(holder(&town).starts_with(&format!("{}_", second.account)));
    let path = format!("/apis/{GROUP}/v1alpha2/clusternetworkpolicies/later/status");
    assert!(written(&town, &second.account).contains(&path), "{:?}", written(&town, &second.account));
    // It has to find out what was told before it: nothing is there twice.
    let found = [("kind", EVENTS), ("state", "there")];
    let agent = &second.agent;
    let looked = until("the events to be found", LONG, || {
        Ok((agent.metric("reeve_status_requests_total", &found)? >= 1.0).then_some(()))
    });
    looked.expect("it looks for them");
    assert_eq!(events(&town, &town.name, &tenant).len(), 1);
    assert_eq!(agent.metric("reeve_status_due", &[]).expect("a metric"), 0.0);

    // Told to end, it gives the Lease back, and the next one has it at once.
    town.agent().start_again().expect("an agent");
    assert_eq!(town.agent().metric("reeve_status_leader", &[]).expect("a metric"), 0.0);
    let ended = std::time::Instant::now();
    second.agent.terminate().expect("ended");
    comes_to_lead(town.agent());
    assert!(ended.elapsed().as_secs() < 25, "sooner than a Lease that is waited out");
    town.cluster.apply(&[policy(&town, "last", "Perhaps")]).expect("a policy");
    becomes(&town, "last", "False");
    town.cluster.delete(&["customresourcedefinition", CLUSTER_POLICIES, &place]).expect("deleted");
}

#[test]
fn agent_that_may_not_write_enforces_all_the_same_and_says_so_until_it_may() {
    if skipped() {
        return;
    }
    let mut town = Town::new("silent", Company::Alone);
    let (web, front, client) = (town.pod("web"), town.pod("front"), town.pod("client"));
    define(&town, &[cluster_policies()]);
    town.cluster.apply(&[policy(&town, "nobody-to-web", "Deny")]).expect("a policy");
    let rights = town.cluster.rights(&town.name, &town.name).expect("rights");
    let writes = |rule: &Value| rule["verbs"] == json!(["patch"]) || rule["verbs"] == json!(["create"]);
    let mut reading = rights.clone();
    for role in reading.iter_mut().filter(|object| object["kind"] == "ClusterRole") {
        role["rules"].as_array_mut().expect("rules").retain(|rule| !writes(rule));
    }
    // Not even the Lease.
    let cluster_wide: Vec<Value> =
        reading.iter().filter(|one| !matches!(one["kind"].as_str(), Some("Role" | "RoleBinding"))).cloned().collect();
    town.cluster.apply(&cluster_wide).expect("rights to read");
    town.spawn();
    town.agent().wait_ready().expect("ready");
    town.is_denied(&client, &web, "nobody-to-web");
    assert_eq!(get(&client, &front), Ok(()));
    says(&mut town, LEASES, "get, watch");
    town.measures("reeve_status_requests_total", LEASES, |count| count >= 1.0);

    // The Lease, and nothing else.
    town.cluster.apply(&reading).expect("rights to the Lease");
    comes_to_lead(town.agent());
    says(&mut town, CLUSTER_POLICIES, "patch");
    assert_eq!(conditions(&object(&town, "nobody-to-web")), Vec::<Value>::new());
    let agent = town.agent();
    assert_eq!(agent.metric("reeve_status_due", &[]).expect("a metric"), 1.0);
    let forbidden = [("kind", CLUSTER_POLICIES), ("state", "forbidden")];
    assert!(agent.metric("reeve_status_requests_total", &forbidden).expect("a metric") >= 1.0);
    town.is_denied(&client, &web, "nobody-to-web");

    town.cluster.apply(&rights).expect("all rights");
    becomes(&town, "nobody-to-web", "True");
    let agent = town.agent();
    let silent = until("nothing to be said of it", LONG, || {
        let all = agent.request("GET", "/problems")?.body;
        Ok((![LEASES, CLUSTER_POLICIES].iter().any(|kind| all.contains(kind))).then_some(()))
    });
    silent.expect("no problem");
    town.cluster.delete(&["customresourcedefinition", CLUSTER_POLICIES]).expect("deleted");
}

/// Waits until a problem names this kind, and the verbs that are wanted.
#[track_caller]
fn says(town: &mut Town, kind: &str, verbs: &str) {
    let agent = town.agent();
    let told = until("the problem to be told", LONG, || {
        let all = agent.request("GET", "/problems")?.json()?;
        let names = |problem: &&Value| problem["object"] == kind && problem.to_string().contains("forbidden");
        Ok(all.as_array().into_iter().flatten().find(names).cloned())
    });
    let problem = told.expect("a problem that names the kind");
    assert!(problem["field"].as_str().is_some_and(|field| field.contains(verbs)), "{problem}");
}
