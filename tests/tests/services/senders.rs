//! What the sending pod's policies say where addresses are rewritten on the way: the destination is whom it reaches.

use std::net::{IpAddr, SocketAddr};

use reeve_policy::model::Verdict;
use reeve_tests::demo::attempt::Probe;
use reeve_tests::lab::Transport::Tcp;
use reeve_tests::lab::{Backend, ExternalPolicy, Masquerade, Netns, Pod};
use reeve_tests::traffic::{NoAnswer, PATIENCE, connect};
use serde_json::{Value, json};

use super::town::{Town, ask, ask_udp, everywhere, pods};

/// Lets the client reach only these peers; every agent knows.
fn let_out(town: &mut Town, peers: &[Value]) {
    let spec = json!({
        "podSelector": { "matchLabels": { "role": "client" } }, "policyTypes": ["Egress"], "egress": [{ "to": peers }]
    });
    town.cluster.policy("out-of-client", &spec);
    town.cluster.settled();
}

/// The client's own record of what it asked for: verdict, destination and Service.
#[track_caller]
fn told_at_sender(town: &mut Town, destination: IpAddr, verdict: &str, service: Option<SocketAddr>) -> Value {
    let (source, destination) = (town.of(&town.client).to_string(), destination.to_string());
    let line = town.cluster.record(0, |line| {
        line["direction"] == "egress"
            && line["source"]["ip"] == source.as_str()
            && line["destination"]["ip"] == destination.as_str()
    });
    assert_eq!(line["verdict"], verdict, "{line}");
    assert!(line["decision"].to_string().contains("out-of-client"), "{line}");
    let asked = service.map_or(Value::Null, |asked| json!({ "address": asked.ip(), "port": asked.port() }));
    assert_eq!(line["service"], asked, "{line}");
    line
}

#[test]
fn client_of_a_service_reaches_backends_that_its_policies_name_and_no_others() {
    everywhere("out-backends", |town| {
        for (name, backend) in [("web", town.web.clone()), ("far", town.far.clone())] {
            let service = town.service(name, &[Backend::pod(&backend)]);
            let (client, tcp, udp) = (town.client.clone(), town.tcp(&service), town.udp(&service));
            for (named, verdict) in [(name, Verdict::Allow), ("near", Verdict::Deny)] {
                let_out(town, &[pods("app", named)]);
                let said = if verdict == Verdict::Allow { "noPolicySelects" } else { "out-of-client" };
                town.cluster.check_at(&client, tcp, &backend, Probe::Tcp(8080), verdict, said);
                town.cluster.check_at(&client, udp, &backend, Probe::Udp(53), verdict, said);
            }
        }
    });
}

#[test]
fn process_of_a_node_behind_a_service_is_judged_as_that_node() {
    everywhere("out-host", |town| {
        for node in [0, 1] {
            let backend = Backend::host(&town.cluster.nodes[node]);
            let service = town.service(&format!("host-{node}"), &[backend]);
            let (tcp, netns, to) = (town.tcp(&service), town.client.netns().clone(), town.node(node));
            for (peer, answer, verdict) in
                [(Town::block(to), Ok(()), "allow"), (pods("app", "near"), Err(NoAnswer::TimedOut), "deny")]
            {
                let_out(town, &[peer]);
                town.cluster.skip_records();
                assert_eq!(ask(&netns, tcp), answer, "by way of a Service to node {node}");
                told_at_sender(town, to, verdict, Some(tcp));
                town.cluster.skip_records();
                assert_eq!(ask(&netns, SocketAddr::new(to, 8080)), answer, "node {node} itself");
                let line = told_at_sender(town, to, verdict, None);
                assert_eq!(line["destination"]["owner"], if node == 0 { "host" } else { "node" }, "{line}");
            }
        }
    });
}

#[test]
fn machine_outside_is_judged_as_it_is_reached_and_answers_only_while_allowed() {
    everywhere("out-world", |town| {
        let outside = town.outside_address();
        let machine = town.outside.clone();
        let _servers = [
            reeve_tests::traffic::Server::tcp(&machine, outside, 8080).expect("a TCP server"),
            reeve_tests::traffic::Server::udp(&machine, outside, 53).expect("a UDP server"),
        ];
        let netns = town.client.netns().clone();
        let to = SocketAddr::new(outside, 8080);
        let_out(town, &[Town::block(outside)]);
        town.cluster.skip_records();
        let mut live = connect(&netns, to, PATIENCE).expect("allowed");
        assert_eq!(live.exchange(PATIENCE), Ok(()));
        told_at_sender(town, outside, "allow", None);
        assert_eq!(ask_udp(&netns, SocketAddr::new(outside, 53)), Ok(()));
        let_out(town, &[pods("app", "near")]);
        town.cluster.skip_records();
        assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut), "the live connection is cut");
        assert_eq!(ask(&netns, to), Err(NoAnswer::TimedOut));
        let line = told_at_sender(town, outside, "deny", None);
        assert_eq!(line["destination"]["owner"], "world", "{line}");
    });
}

#[test]
fn pod_reaches_itself_by_way_of_its_service_whatever_policies_say() {
    everywhere("out-self", |town| {
        let service = town.service("mine", &[Backend::pod(&town.client)]);
        let_out(town, &[pods("app", "near")]);
        let spec = json!({ "podSelector": { "matchLabels": { "role": "client" } }, "policyTypes": ["Ingress"] });
        town.cluster.policy("into-client", &spec);
        town.cluster.settled();
        town.cluster.skip_records();
        let (tcp, own) = (town.tcp(&service), town.of(&town.client));
        assert_eq!(ask(town.client.netns(), tcp), Ok(()));
        for direction in ["egress", "ingress"] {
            let line = town.cluster.record(0, |line| line["event"] == "opened" && line["direction"] == direction);
            assert_eq!(line["decision"]["default"], "self", "{line}");
            assert_eq!(line["source"]["ip"], own.to_string(), "{line}");
            assert_eq!(line["destination"]["ip"], own.to_string(), "{line}");
        }
        assert_eq!(ask(town.guest.netns(), tcp), Err(NoAnswer::TimedOut), "nobody else is let in");
    });
}

#[test]
fn client_outside_behind_the_nodes_address_is_judged_and_recorded_as_itself() {
    everywhere("outside-hidden", |town| {
        let web: Pod = town.web.clone();
        town.at_nodes("hidden", 30_081, ExternalPolicy::Cluster, &web);
        let (outside, to, node) = (town.outside_address(), town.of(&web), town.node(0));
        let machine: Netns = town.outside.clone();
        for (peer, answer, verdict) in [(outside, Ok(()), "allow"), (node, Err(NoAnswer::TimedOut), "deny")] {
            town.let_in("web", &[Town::block(peer)]);
            town.cluster.skip_records();
            assert_eq!(ask(&machine, SocketAddr::new(node, 30_081)), answer, "{peer} is let in");
            let line = town.told_at_receiver(0, outside, to, verdict, "into-web");
            assert_eq!(line["service"], json!({ "address": node, "port": 30_081 }), "{line}");
        }
    });
}

#[test]
fn client_outside_of_a_pods_port_of_the_node_is_judged_and_recorded_as_itself_behind_the_nodes_address() {
    everywhere("port-hidden", |town| {
        let (web, near) = (town.web.clone(), town.near.clone());
        town.services.host_port(&web, Tcp, 9090, 8080, Masquerade::All).expect("a hostPort");
        let (outside, to, node) = (town.outside_address(), town.of(&web), town.node(0));
        let machine: Netns = town.outside.clone();
        for (peer, answer, verdict) in [(outside, Ok(()), "allow"), (node, Err(NoAnswer::TimedOut), "deny")] {
            town.let_in("web", &[Town::block(peer)]);
            town.cluster.skip_records();
            assert_eq!(ask(&machine, SocketAddr::new(node, 9090)), answer, "{peer} is let in");
            let line = town.told_at_receiver(0, outside, to, verdict, "into-web");
            assert_eq!(line["service"], json!({ "address": node, "port": 9090 }), "{line}");
        }
        // A pod that says nothing of it has the same rules: nobody is noted, and what is shown is one of the node's
        // addresses, whichever its rules take.
        town.services.host_port(&near, Tcp, 9091, 8080, Masquerade::All).expect("a hostPort");
        near.remove_host_ports().expect("written");
        let anybody = if node.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        town.let_in("near", &[json!({ "ipBlock": { "cidr": anybody } })]);
        town.cluster.skip_records();
        assert_eq!(ask(&machine, SocketAddr::new(node, 9091)), Ok(()), "what is shown is let in");
        let near = town.of(&near).to_string();
        let line = town.cluster.record(0, |line| line["event"] == "opened" && line["destination"]["ip"] == near);
        assert_eq!(
            (&line["direction"], &line["source"]["owner"]),
            (&"ingress".into(), &"masqueraded".into()),
            "{line}"
        );
        assert_ne!(line["source"]["ip"], outside.to_string(), "{line}");
    });
}
