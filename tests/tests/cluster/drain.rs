//! A node that is drained: its pods are evicted and run on another one, under other addresses, and policies follow them.

use std::net::SocketAddr;

use reeve_tests::cluster::{Chain, WiredPod};
use reeve_tests::lab::{Agent, Netns, Node, until};
use reeve_tests::stage::RECORD_PATIENCE;
use reeve_tests::traffic::{Answer, NoAnswer, PATIENCE, Server, tcp_exchange};
use serde_json::{Value, json};

use crate::town::{Company, LONG, Town, is_judged, skipped};
use crate::wiring::pod;

/// Pods that move.
const NAMES: [&str; 3] = ["web", "client", "guest"];

fn ask(from: &Netns, to: &WiredPod) -> Answer {
    tcp_exchange(from, SocketAddr::new(to.address(false), 8080), PATIENCE)
}

fn run(town: &Town, node: &Node, chain: &Chain) -> [WiredPod; 3] {
    NAMES.map(|name| town.cluster.run_pod(node, chain, &pod(town, name, None)).expect("a pod"))
}

/// Waits until an agent's kernel knows these pods where they are now.
#[track_caller]
fn known(agent: &Agent, pods: &[WiredPod]) {
    for pod in pods {
        let known = until("a pod to be known", LONG, || {
            let facts = agent.request("GET", "/world")?.json()?;
            let is = |object: &Value| {
                object["metadata"]["uid"] == pod.sandbox().uid.as_str()
                    && object["status"]["podIPs"].as_array().is_some_and(|ips| !ips.is_empty())
            };
            Ok(facts["objects"].as_array().into_iter().flatten().any(is).then_some(()))
        });
        known.expect("it is");
    }
}

#[test]
fn pods_of_a_drained_node_are_judged_where_they_run_next_and_leave_nothing_behind() {
    if skipped() {
        return;
    }
    let mut town = Town::new("drained", Company::Shared);
    let far = town.another_node("far");
    town.start();
    let away = town.agent_of(&far);
    town.let_in("web", &[json!({ "podSelector": { "matchLabels": { "app": "client" } } })], &[town.own(), &away]);
    let before = town.node.objects().expect("what is held");
    let links = town.node.links().expect("links");
    assert_eq!(town.node.rows("ENDPOINTS").expect("a map"), 0);

    let (chain, far_chain) = (town.enforced_chain(&town.node), town.enforced_chain(&far));
    let [web, client, guest] = run(&town, &town.node, &chain);
    // These stay where they are.
    let other = town.cluster.run_pod(&far, &far_chain, &labelled(&town, "other", "client")).expect("a pod");
    let stranger = town.cluster.run_pod(&far, &far_chain, &labelled(&town, "stranger", "guest")).expect("a pod");
    let server = Server::tcp(web.netns(), web.address(false), 8080).expect("a server");
    let moving = [web, client, guest];
    known(town.own(), &moving);
    known(&away, &moving);
    known(town.own(), std::slice::from_ref(&other));
    known(town.own(), std::slice::from_ref(&stranger));
    let [web, client, guest] = &moving;
    let shut = Err(NoAnswer::TimedOut);
    assert_eq!((ask(client.netns(), web), ask(guest.netns(), web)), (Ok(()), shut));
    assert_eq!((ask(other.netns(), web), ask(stranger.netns(), web)), (Ok(()), shut));
    assert_eq!(town.node.links().expect("links").len(), links.len() + 2 * moving.len(), "two of each pod");

    // `kubectl drain` evicts, and waits until the node's kubelet has ended them; that part is ours.
    let drain = ["drain", town.node.name(), "--force", "--ignore-daemonsets", "--timeout=60s"];
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| town.cluster.kubectl(&drain));
        for pod in &moving {
            let name = pod.sandbox().name.as_str();
            let evicted = until("an eviction", LONG, || {
                let object = town.cluster.get(&["pod", name, "-n", &town.name])?;
                Ok(object["metadata"]["deletionTimestamp"].is_string().then_some(()))
            });
            evicted.expect("it is evicted");
            town.cluster.finish_pod(pod).expect("ended");
        }
        let said = draining.join().expect("no panic").expect("drained");
        assert!(said.contains(&format!("node/{} drained", town.node.name())), "{said}");
    });
    drop(server);
    let left = until("nothing to be left", LONG, || {
        let endpoints = town.own().request("GET", "/endpoints")?.json()?;
        Ok((endpoints == json!([]) && town.node.objects()? == before).then_some(()))
    });
    left.unwrap_or_else(|error| {
        panic!("{error:#}: {:#?}\nand before {before:#?}", town.node.objects().expect("what is held"))
    });
    assert_eq!(town.node.links().expect("links"), links);
    assert_eq!(town.node.rows("ENDPOINTS").expect("a map"), 0);

    let moved = run(&town, &far, &far_chain);
    for (old, new) in moving.iter().zip(&moved) {
        assert!(old.addresses().iter().all(|address| !new.addresses().contains(address)), "{:?}", new.addresses());
        assert_ne!(old.sandbox().uid, new.sandbox().uid);
    }
    known(&away, &moved);
    let [web, client, guest] = &moved;
    let _server = Server::tcp(web.netns(), web.address(false), 8080).expect("a server");
    let mut records = away.records();
    records.rest().expect("records");
    for (from, wanted, verdict) in
        [(client, Ok(()), "allow"), (guest, shut, "deny"), (&other, Ok(()), "allow"), (&stranger, shut, "deny")]
    {
        assert_eq!(ask(from.netns(), web), wanted, "{}", from.sandbox().name);
        let uid = from.sandbox().uid.as_str();
        let of_it = |line: &Value| is_judged(line, "ingress") && line["source"]["uid"] == uid;
        let line = records.wait_for(RECORD_PATIENCE, of_it).expect("a record");
        assert_eq!((&line["verdict"], &line["node"]), (&json!(verdict), &json!(far.name())), "{line}");
        assert!(line["decision"].to_string().contains("into-web"), "{line}");
    }
    // The node takes pods again when it is told to.
    town.cluster.kubectl(&["uncordon", town.node.name()]).expect("uncordoned");
    let back = town.cluster.run_pod(&town.node, &chain, &labelled(&town, "back", "client")).expect("a pod");
    known(&away, std::slice::from_ref(&back));
    assert_eq!(ask(back.netns(), web), Ok(()));
}

/// A pod of this name with the label of another.
fn labelled(town: &Town, name: &str, app: &str) -> Value {
    let mut object = pod(town, name, None);
    object["metadata"]["labels"] = json!({ "app": app });
    object
}
