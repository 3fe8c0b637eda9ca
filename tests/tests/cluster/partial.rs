//! Lists that are cut in the middle: what an agent has heard by then changes nothing, and it goes on until it has all.

use reeve_tests::cluster::Relay;
use reeve_tests::lab::{AgentOptions, Facts, Pod, PodSpec, until};
use reeve_tests::stage::get;
use reeve_tests::traffic::NoAnswer;
use serde_json::{Value, json};

use crate::town::{Company, LONG, Town, skipped};

/// Pods that are elsewhere: their list is some hundred kilobytes long, and all others are a few.
const ELSEWHERE: usize = 200;

/// What the API server may say on one connection: all lists but that of pods, and the beginning of that one.
const SOME_BYTES: u64 = 100_000;
const ALL_BYTES: u64 = u64::MAX;

/// Lists that are cut before something is looked at.
const CUTS: u64 = 3;

/// Pods whose objects are long.
fn populate(town: &Town) {
    let node = format!("{}-elsewhere", town.name);
    let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } });
    town.cluster.apply(&[object]).expect("a node");
    let pods = (0..ELSEWHERE).map(|number| {
        let spec = PodSpec::new(&town.name, &format!("elsewhere-{number}"));
        let address = format!("10.201.0.{}", number + 1);
        let status = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
        let mut object = spec.object(&node);
        object["metadata"]["annotations"] = json!({ "long": "x".repeat(2_000) });
        (object, status)
    });
    let pods = pods.collect();
    town.cluster.ask(|administrator| administrator.create_running(&town.name, pods)).expect("pods");
}

impl Town {
    /// Waits until lists were cut, of which the agent has heard a part, and only the pods' is missing.
    #[track_caller]
    fn becomes_partial(&self, relay: &Relay) {
        let enough = relay.cuts() + CUTS;
        let mut last = String::new();
        let partial = until("lists to be cut", LONG, || {
            // Its socket may not be there yet.
            let Ok(answer) = self.own().request("GET", "/readyz") else { return Ok(None) };
            last = format!("{} {}", answer.status, answer.body);
            let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            let reasons = body["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let unread: Vec<&str> = reasons.filter(|reason| reason.contains(" listed")).collect();
            let only_pods = matches!(unread.as_slice(), [one] if one.starts_with("pods "));
            Ok((only_pods && relay.cuts() >= enough).then_some(()))
        });
        partial.unwrap_or_else(|error| panic!("{error:#}: {} cuts, {last}\n{}", relay.cuts(), self.own().log()));
        let heard = self.own().metric("reeve_watch_objects", &[("kind", "pods")]).expect("a metric");
        assert!(heard > 10.0 && heard < 200.0, "{heard} of all pods");
    }

    /// How many rows the maps have that say who is who and who may reach whom.
    fn rows(&self) -> Vec<usize> {
        let maps = ["ENDPOINTS", "ADDRESSES", "NETWORKS", "CLASSES", "PEERS", "PORTS"];
        maps.iter().map(|map| self.node.rows(map).expect("a map")).collect()
    }
}

/// `web`, which lets `client` in, and `front`, `client`, `guest`; and an agent that reaches the API server by a relay.
fn shop(town: &mut Town, allowance_bytes: u64) -> ([Pod; 4], Relay) {
    populate(town);
    let pods = ["web", "front", "client", "guest"].map(|name| town.pod(name));
    let peers = json!([{ "podSelector": { "matchLabels": { "app": "client" } } }]);
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "into-web", "namespace": town.name },
        "spec": { "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": peers }] },
    });
    town.cluster.apply(&[policy]).expect("a policy");
    town.cluster.grant(&town.name, &town.name).expect("rights");
    let relay = Relay::start(&town.cluster, &town.node, allowance_bytes).expect("a relay");
    let kubeconfig = town.cluster.kubeconfig_by(&town.name, &town.name, &relay).expect("a kubeconfig");
    town.spawn_with(AgentOptions { facts: Facts::Kubeconfig(kubeconfig), ..AgentOptions::default() });
    (pods, relay)
}

#[test]
fn list_of_pods_that_is_cut_again_and_again_changes_nothing_until_one_is_whole() {
    if skipped() {
        return;
    }
    let mut town = Town::new("partial", Company::Shared);
    let ([web, front, client, guest], relay) = shop(&mut town, SOME_BYTES);
    // Nothing is in force yet, and nothing comes into force by halves.
    town.becomes_partial(&relay);
    assert_eq!(town.rows(), [0; 6]);
    assert_eq!(town.node.links().expect("links").len(), 0);
    assert_eq!((get(&client, &web), get(&guest, &web)), (Ok(()), Ok(())), "nobody is enforced");
    relay.allow(ALL_BYTES);
    town.agent().wait_ready().expect("ready");
    town.is_denied(&guest, &web, "into-web");
    assert_eq!(get(&client, &web), Ok(()));

    // What is in force stays, though most of whom it is about have not been heard of again.
    town.agent().terminate().expect("ended");
    let before = town.rows();
    town.close("front", "nobody-to-front");
    relay.allow(SOME_BYTES);
    town.agent().spawn_again().expect("spawned");
    town.becomes_partial(&relay);
    let as_before = |client_to_front| {
        let wanted = [Ok(()), Err(NoAnswer::TimedOut), client_to_front];
        assert_eq!([get(&client, &web), get(&guest, &web), get(&client, &front)], wanted);
    };
    as_before(Ok(()));
    assert_eq!(town.rows(), before);
    relay.allow(ALL_BYTES);
    town.agent().wait_ready().expect("ready");
    town.is_denied(&client, &front, "nobody-to-front");
    as_before(Err(NoAnswer::TimedOut));
    // Agents of other tests have no use for so many.
    town.cluster.ask(|administrator| administrator.clear(&town.name)).expect("cleared");
}

#[test]
fn pods_that_a_cut_list_lacks_are_not_taken_for_gone_until_one_is_whole() {
    if skipped() {
        return;
    }
    let mut town = Town::new("relisted", Company::Alone);
    let ([web, front, client, guest], relay) = shop(&mut town, ALL_BYTES);
    town.agent().wait_ready().expect("ready");
    town.is_denied(&guest, &web, "into-web");
    let lists = town.measures("reeve_watch_lists_total", "pods", |lists| lists >= 1.0);
    let ghost = town.cluster.get(&["pod", "elsewhere-199", "-n", &town.name]).expect("a pod");
    let ghost = ghost["metadata"]["uid"].as_str().expect("a UID").to_owned();
    town.agent().heard_of(&ghost).expect("it is known");

    // The server that comes back does not remember where the agent's watches were, so it lists again.
    relay.allow(0);
    town.becomes_unready("pods have not been heard of since");
    let delete = ["delete", "pod", "elsewhere-199", "-n", &town.name, "--grace-period=0", "--force"];
    town.cluster.kubectl(&delete).expect("deleted");
    town.close("front", "nobody-to-front");
    town.cluster.kill_api_server().expect("killed");
    town.cluster.start_api_server().expect("an API server");
    let before = relay.cuts();
    relay.allow(SOME_BYTES);
    town.becomes_denied(&client, &front, "nobody-to-front");
    until("lists to be cut", LONG, || Ok((relay.cuts() >= before + 2).then_some(()))).expect("cuts");
    let world = town.own().request("GET", "/world").expect("facts").body;
    assert!(world.contains(&ghost), "whoever a list lacks that is not whole may be there");
    assert_eq!((get(&client, &web), get(&guest, &web)), (Ok(()), Err(NoAnswer::TimedOut)));
    assert_eq!(town.measures("reeve_watch_lists_total", "pods", |_| true), lists, "no list was whole");

    relay.allow(ALL_BYTES);
    town.measures("reeve_watch_lists_total", "pods", |now| now > lists);
    town.agent().wait_ready().expect("ready");
    let world = town.own().request("GET", "/world").expect("facts").body;
    assert!(!world.contains(&ghost), "it is gone");
    town.is_denied(&guest, &web, "into-web");
    assert_eq!(get(&client, &web), Ok(()));
    // Agents of other tests have no use for so many.
    town.cluster.ask(|administrator| administrator.clear(&town.name)).expect("cleared");
}
