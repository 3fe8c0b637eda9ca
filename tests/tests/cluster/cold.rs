//! An agent that starts on a node full of pods, in a cluster of 500 pods and 100 policies.

use std::time::Instant;

use fastrand::Rng;
use reeve_policy::model::Verdict;
use reeve_policy::oracle::explain;
use reeve_tests::demo::attempt::attempt_between;
use reeve_tests::lab::{Pod, PodSpec};
use reeve_tests::stage::{Probe, get};
use reeve_tests::traffic::Server;
use serde_json::{Value, json};

use crate::town::{Company, POLICIES, Town, skipped};

/// Pods of the node, and of nodes that are elsewhere.
const HERE: usize = 50;
const ELSEWHERE: usize = 450;
/// Policies, and the applications that they are about: every one has four policies and lets four others in.
const RULES: usize = 100;
const APPLICATIONS: usize = 25;
/// Pods of one node that is elsewhere.
const PER_NODE: usize = 50;
/// Connections of either verdict that are tried.
const SAMPLE: usize = 12;

const WEB: Probe = Probe::Tcp(8080);

fn application(number: usize) -> String {
    format!("app-{}", number % APPLICATIONS)
}

fn policy(town: &Town, number: usize) -> Value {
    let selects = |number: usize| json!({ "matchLabels": { "app": application(number) } });
    let peers = json!([{ "podSelector": selects(number * 7 + 1) }]);
    // Every fifth is about what its pods may reach.
    let spec = if number.is_multiple_of(5) {
        json!({ "podSelector": selects(number), "policyTypes": ["Egress"], "egress": [{ "to": peers }] })
    } else {
        json!({ "podSelector": selects(number), "policyTypes": ["Ingress"], "ingress": [{ "from": peers }] })
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": format!("rule-{number}"), "namespace": town.name }, "spec": spec,
    })
}

/// Pods that only the API server knows, on nodes that only it knows.
fn populate(town: &Town) {
    let node = |number: usize| format!("{}-elsewhere-{number}", town.name);
    let nodes = (0..ELSEWHERE.div_ceil(PER_NODE))
        .map(|number| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node(number) } }));
    town.cluster.apply(&nodes.collect::<Vec<_>>()).expect("nodes");
    let pods = (0..ELSEWHERE).map(|number| {
        let spec = PodSpec::new(&town.name, &format!("elsewhere-{number}")).label("app", &application(number));
        let address = format!("10.200.{}.{}", number / 250, number % 250 + 1);
        let status = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
        (spec.object(&node(number / PER_NODE)), status)
    });
    let pods = pods.collect();
    town.cluster.ask(|administrator| administrator.create_running(&town.name, pods)).expect("pods");
}

#[test]
fn agent_that_starts_among_500_pods_changes_nothing_before_it_knows_all_and_judges_as_the_oracle_then() {
    if skipped() {
        return;
    }
    let mut town = Town::new("cold", Company::Alone);
    populate(&town);
    let spec =
        |name: &str, number| PodSpec::new(&town.name, &format!("{name}-{number}")).label("app", &application(number));
    let here = town.cluster.pods(&town.node, (0..HERE).map(|number| spec("here", number)).collect()).expect("pods");
    let far = town.another_node("far");
    let there = town.cluster.pods(&far, (0..5).map(|number| spec("there", number)).collect()).expect("pods");
    let policies: Vec<Value> = (0..RULES).map(|number| policy(&town, number)).collect();
    town.cluster.apply(&policies).expect("policies");
    let store = town.cluster.facts(&town.node).expect("facts");
    let (allowed, denied) = draw(&store, &here, &there);

    // All but the policies is known: nothing is taken up, and nothing is attached.
    town.grant_all_but_policies();
    town.spawn();
    town.becomes_unready(&format!("{POLICIES} cannot be listed: "));
    let known = u32::try_from(HERE + ELSEWHERE).expect("few");
    town.measures("reeve_watch_objects", "pods", |pods| pods >= f64::from(known));
    assert_eq!(town.node.links().expect("links").len(), 0);
    for map in ["ENDPOINTS", "ADDRESSES", "NETWORKS", "CLASSES", "PEERS"] {
        assert_eq!(town.node.rows(map).expect("a map"), 0, "{map}");
    }
    for (from, to) in denied.iter().take(3) {
        let _server = Server::tcp(to.netns(), to.v4(), 8080).expect("a server");
        assert_eq!(get(from, to), Ok(()), "{} to {}", from.full_name(), to.full_name());
    }
    town.agent().kill9().expect("killed");

    town.cluster.grant(&town.name, &town.name).expect("all rights");
    let begun = Instant::now();
    town.spawn();
    town.agent().wait_ready().expect("ready");
    let taken = begun.elapsed();
    let status = town.own().status().expect("a status");
    let number = |what: &str| status[what].as_u64().unwrap_or_default();
    println!(
        "ready {} ms after its start among {} pods of this node, {ELSEWHERE} elsewhere and {} policies",
        taken.as_millis(),
        status["endpoints"]["total"],
        number("policies"),
    );
    assert_eq!(status["endpoints"], json!({ "ready": HERE, "total": HERE }));
    assert!(number("policies") >= RULES as u64, "{status}");
    assert!(number("identities") >= APPLICATIONS as u64, "{status}");
    // What pods of the other node may send is its agent's to judge.
    let away = town.agent_of(&far);
    let mut records = [town.own().records(), away.records()];
    for (pairs, verdict) in [(allowed, Verdict::Allow), (denied, Verdict::Deny)] {
        for (from, to) in pairs {
            let _server = Server::tcp(to.netns(), to.v4(), 8080).expect("a server");
            let done = attempt_between(&store, &mut records, from, to, WEB, false).expect("an attempt");
            let told: Vec<String> = done.disagreements().collect();
            assert!(told.is_empty(), "{}\nagent:\n{}", told.join("\n"), town.own().log());
            let last = done.rows.last().expect("a record");
            assert_eq!(last.record.decision.verdict(), verdict, "{}", done.what);
        }
    }
    // Agents of other tests have no use for so many.
    town.cluster.ask(|administrator| administrator.clear(&town.name)).expect("cleared");
}

/// Pairs of a pod and one of this node that it may reach, and such that it may not, as the oracle has it.
#[allow(clippy::type_complexity, reason = "two lists of pairs")]
fn draw<'a>(
    store: &reeve_policy::store::Store,
    here: &'a [Pod],
    there: &'a [Pod],
) -> (Vec<(&'a Pod, &'a Pod)>, Vec<(&'a Pod, &'a Pod)>) {
    let mut rng = Rng::with_seed(500);
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    while allowed.len() < SAMPLE || denied.len() < SAMPLE {
        let senders = if rng.u8(..4) == 0 { there } else { here };
        let (from, to) = (&senders[rng.usize(..senders.len())], &here[rng.usize(..here.len())]);
        if from.uid() == to.uid() {
            continue;
        }
        let told = explain(store.world(), from.v4(), to.v4(), 6, 8080);
        let list = if told.verdict == Verdict::Allow { &mut allowed } else { &mut denied };
        if list.len() < SAMPLE {
            list.push((from, to));
        }
    }
    (allowed, denied)
}
