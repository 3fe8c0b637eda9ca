//! Between nodes: pods, processes of nodes and strangers, over plain links and through tunnels.

use reeve_policy::model::{Direction, Verdict};
use reeve_tests::frames::{Ends, Tap, is_to_port};
use reeve_tests::lab::{Mode, Netns, Network, Pod};
use reeve_tests::stage::{Cluster, NAMES, Probe, RECORD_PATIENCE, WEB};
use reeve_tests::traffic::{self, Answer, NoAnswer, PATIENCE};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

fn get(netns: &Netns, to: IpAddr) -> Answer {
    traffic::connect(netns, SocketAddr::new(to, 8080), PATIENCE)?.exchange(PATIENCE)
}

/// `web` on the second node, which lets `role=client` in; such a client and a guest on the first.
fn shop(name: &str, network: Network, modes: [Mode; 2]) -> (Cluster, Pod, Pod, Pod) {
    let mut cluster = Cluster::new(name, network, &modes);
    let web = cluster.pod(1, "web", &[("app", "web")]);
    let client = cluster.pod(0, "client", &[("role", "client")]);
    let guest = cluster.pod(0, "guest", &[]);
    cluster.allow_from("web-clients", ("app", "web"), ("role", "client"));
    cluster.start();
    (cluster, web, client, guest)
}

/// Every protocol in both families: judged at the sender on its node and at the receiver on the other, both with the
/// same two pods and addresses; denied where the policy's subject is.
#[track_caller]
fn check_both_ends(name: &str, network: Network, modes: [Mode; 2]) {
    if crate::skipped() {
        return;
    }
    let (mut cluster, web, client, guest) = shop(name, network, modes);
    for v6 in [false, true] {
        for probe in [WEB, NAMES, Probe::Ping] {
            let allowed = cluster.check(&client, &web, probe, v6, Verdict::Allow, "web-clients");
            let denied = cluster.check(&guest, &web, probe, v6, Verdict::Deny, "web-clients");
            for attempt in [&allowed, &denied] {
                let ends: Vec<_> =
                    attempt.rows.iter().map(|row| (row.record.direction, row.record.node.as_str())).collect();
                assert_eq!(ends, [(Direction::Egress, "node-1"), (Direction::Ingress, "node-2")], "{}", attempt.what);
                let [sent, received] = [&attempt.rows[0].line, &attempt.rows[1].line];
                for side in ["source", "destination"] {
                    assert_eq!(sent[side], received[side], "{}", attempt.what);
                }
            }
        }
        cluster.check(&web, &guest, WEB, v6, Verdict::Allow, "noPolicySelects");
    }
    cluster.policy(
        "client-web",
        &json!({
            "podSelector": { "matchLabels": { "role": "client" } },
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{ "podSelector": { "matchLabels": { "app": "web" } } }],
                "ports": [{ "protocol": "TCP", "port": 8080 }]
            }]
        }),
    );
    cluster.settled();
    cluster.check(&client, &web, WEB, false, Verdict::Allow, "web-clients");
    let denied = cluster.check(&client, &web, NAMES, false, Verdict::Deny, "client-web");
    assert_eq!(denied.rows.len(), 1, "the other node sees nothing of what its sender may not send");
}

#[test]
fn both_nodes_record_the_same_flow_of_routed_pods_over_links() {
    check_both_ends("ends-flat-r", Network::Flat, [Mode::Routed, Mode::Routed]);
}

#[test]
fn both_nodes_record_the_same_flow_of_bridged_pods_over_links() {
    check_both_ends("ends-flat-b", Network::Flat, [Mode::Bridged, Mode::Routed]);
}

#[test]
fn both_nodes_record_the_same_flow_of_bridged_pods_through_tunnels() {
    check_both_ends("ends-over-b", Network::Overlay, [Mode::Bridged, Mode::Bridged]);
}

#[test]
fn both_nodes_record_the_same_flow_of_routed_pods_through_tunnels() {
    check_both_ends("ends-over-r", Network::Overlay, [Mode::Routed, Mode::Routed]);
}

#[test]
fn three_nodes_judge_each_their_own_pods() {
    if crate::skipped() {
        return;
    }
    let mut cluster = Cluster::new("three", Network::Overlay, &[Mode::Routed, Mode::Bridged, Mode::Routed]);
    let pods = [0, 1, 2].map(|node| cluster.pod(node, &format!("pod-{node}"), &[("part", &node.to_string())]));
    cluster.allow_from("ring-1", ("part", "1"), ("part", "0"));
    cluster.allow_from("ring-2", ("part", "2"), ("part", "1"));
    cluster.allow_from("ring-0", ("part", "0"), ("part", "2"));
    cluster.start();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let name = format!("ring-{to}");
        cluster.check(&pods[from], &pods[to], WEB, false, Verdict::Allow, &name);
        cluster.check(&pods[to], &pods[from], WEB, true, Verdict::Deny, &format!("ring-{from}"));
    }
}

/// A process of another node is not the own node: it is judged, by the address that it shows.
#[track_caller]
fn check_process_of_another_node(name: &str, network: Network, shown: [&str; 2]) {
    if crate::skipped() {
        return;
    }
    let (mut cluster, web, _, _) = shop(name, network, [Mode::Routed, Mode::Bridged]);
    let (first, second) = (cluster.nodes[0].netns().clone(), cluster.nodes[1].netns().clone());
    let shown: [IpAddr; 2] = shown.map(|address| address.parse().expect("an address"));
    for (to, from) in [web.v4(), web.v6()].into_iter().zip(shown) {
        cluster.skip_records();
        assert_eq!(get(&first, to), Err(NoAnswer::TimedOut), "{to}");
        let line = cluster.record_between(1, from, to);
        assert_eq!((&line["verdict"], &line["direction"]), (&"deny".into(), &"ingress".into()), "{line}");
        assert!(line["decision"].to_string().contains("web-clients"), "{line}");
        assert_eq!(line["source"]["owner"], "node", "{line}");
        assert_eq!(get(&second, to), Ok(()), "the own node's process is let in");
    }
    let blocks = shown.map(|address| {
        let length = if address.is_ipv6() { 128 } else { 32 };
        json!({ "ipBlock": { "cidr": format!("{address}/{length}") } })
    });
    cluster.policy(
        "web-node",
        &json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": blocks }] }),
    );
    cluster.settled();
    for (to, from) in [web.v4(), web.v6()].into_iter().zip(shown) {
        cluster.skip_records();
        assert_eq!(get(&first, to), Ok(()), "{to}");
        let line = cluster.record_between(1, from, to);
        assert!(line["decision"].to_string().contains("web-node"), "{line}");
    }
}

#[test]
fn process_of_another_node_is_judged_over_a_link() {
    check_process_of_another_node("host-flat", Network::Flat, ["172.18.0.1", "fd00:18::1"]);
}

#[test]
fn process_of_another_node_is_judged_through_a_tunnel() {
    check_process_of_another_node("host-over", Network::Overlay, ["10.244.1.0", "fd00:244:1::"]);
}

/// What pods send to processes of nodes is judged where it is sent; a rule for the one node does not open the other.
#[track_caller]
fn check_to_processes_of_nodes(name: &str, network: Network, mode: Mode) {
    if crate::skipped() {
        return;
    }
    let mut cluster = Cluster::new(name, network, &[mode, Mode::Routed]);
    let client = cluster.pod(0, "client", &[("role", "client")]);
    let free = cluster.pod(0, "free", &[]);
    cluster.serve_on_node(0);
    cluster.serve_on_node(1);
    let own = [cluster.nodes[0].v4(), cluster.nodes[0].v6()];
    let other = [cluster.nodes[1].v4(), cluster.nodes[1].v6()];
    cluster.start();
    for (allowed, denied) in [(own, other), (other, own)] {
        let blocks = allowed.map(|address| {
            let length = if address.is_ipv6() { 128 } else { 32 };
            json!({ "ipBlock": { "cidr": format!("{address}/{length}") } })
        });
        cluster.policy(
            "one-node",
            &json!({
                "podSelector": { "matchLabels": { "role": "client" } },
                "policyTypes": ["Egress"], "egress": [{ "to": blocks }]
            }),
        );
        cluster.settled();
        for address in allowed.into_iter().chain(denied) {
            cluster.skip_records();
            let (answer, verdict) =
                if allowed.contains(&address) { (Ok(()), "allow") } else { (Err(NoAnswer::TimedOut), "deny") };
            assert_eq!(get(client.netns(), address), answer, "{address}");
            let source = if address.is_ipv6() { client.v6() } else { client.v4() };
            let line = cluster.record_between(0, source, address);
            assert_eq!((&line["verdict"], &line["direction"]), (&verdict.into(), &"egress".into()), "{line}");
            assert!(line["decision"].to_string().contains("one-node"), "{line}");
            let owner = if own.contains(&address) { "host" } else { "node" };
            assert_eq!(line["destination"]["owner"], owner, "{line}");
            assert_eq!(get(free.netns(), address), Ok(()), "who is not selected reaches {address}");
        }
    }
}

#[test]
fn pods_reach_only_the_node_whose_address_their_policy_names() {
    check_to_processes_of_nodes("to-hosts-flat", Network::Flat, Mode::Routed);
}

#[test]
fn bridged_pods_of_an_overlay_reach_only_the_node_whose_address_their_policy_names() {
    check_to_processes_of_nodes("to-hosts-over", Network::Overlay, Mode::Bridged);
}

/// A datagram that comes from the network in the name of a pod of this very node goes nowhere; in an honest name it is
/// heard.
#[track_caller]
fn check_forged_from_the_network(name: &str, network: Network, mode: Mode) {
    if crate::skipped() {
        return;
    }
    let mut cluster = Cluster::new(name, network, &[Mode::Routed, mode]);
    let web = cluster.pod(1, "web", &[("app", "web")]);
    let neighbour = cluster.pod(1, "neighbour", &[("role", "client")]);
    let honest = cluster.pod(0, "honest", &[("role", "client")]);
    cluster.allow_from("web-clients", ("app", "web"), ("role", "client"));
    cluster.start();
    cluster.check(&neighbour, &web, WEB, false, Verdict::Allow, "web-clients");
    let wire = network.wire();
    for (of, device) in [Pod::v4 as fn(&Pod) -> IpAddr, Pod::v6].into_iter().zip(wire) {
        let ends = |source| Ends {
            source_mac: cluster.nodes[0].netns().mac(device).expect("a hardware address"),
            destination_mac: cluster.nodes[1].netns().mac(device).expect("a next hop"),
            source,
            destination: of(&web),
        };
        let frames = [ends(of(&neighbour)).udp(40_001, 53, b"forged"), ends(of(&honest)).udp(40_002, 53, b"honest")];
        let mut ear = Tap::open(web.netns(), "eth0").expect("an ear");
        let mouth = Tap::open(cluster.nodes[0].netns(), device).expect("a mouth");
        cluster.skip_records();
        for frame in frames {
            mouth.send(&frame).expect("sent");
        }
        let heard = ear.capture(RECORD_PATIENCE, |frame| is_to_port(frame, 53)).expect("an ear").expect("a frame");
        assert!(heard.ends_with(b"honest"), "the frame that arrives first is the honest one");
        let line = cluster.record_between(1, of(&neighbour), of(&web));
        assert_eq!(line["decision"]["default"], "spoofedSource", "{line}");
        assert_eq!((&line["verdict"], &line["direction"]), (&"deny".into(), &"ingress".into()), "{line}");
        let line = cluster.record_between(1, of(&honest), of(&web));
        assert_eq!(line["verdict"], "allow", "{line}");
    }
}

#[test]
fn pods_address_that_comes_over_the_link_is_a_spoofed_source() {
    check_forged_from_the_network("forged-flat-r", Network::Flat, Mode::Routed);
}

#[test]
fn bridged_pods_address_that_comes_over_the_link_is_a_spoofed_source() {
    check_forged_from_the_network("forged-flat-b", Network::Flat, Mode::Bridged);
}

#[test]
fn pods_address_that_comes_through_the_tunnel_is_a_spoofed_source() {
    check_forged_from_the_network("forged-over-r", Network::Overlay, Mode::Routed);
}

#[test]
fn bridged_pods_address_that_comes_through_the_tunnel_is_a_spoofed_source() {
    check_forged_from_the_network("forged-over-b", Network::Overlay, Mode::Bridged);
}

/// The labels of a pod change on its node; the other node, whose pod it talks to, cuts.
#[track_caller]
fn check_relabel(name: &str, network: Network, modes: [Mode; 2]) {
    if crate::skipped() {
        return;
    }
    let (mut cluster, web, client, guest) = shop(name, network, modes);
    guest.set_labels(&[("role", "client")]).expect("relabelled");
    cluster.settled();
    let mut live = cluster.check(&client, &web, WEB, false, Verdict::Allow, "web-clients").connection.expect("open");
    let mut control = cluster.check(&guest, &web, WEB, false, Verdict::Allow, "web-clients").connection.expect("open");
    client.set_labels(&[("role", "former")]).expect("relabelled");
    cluster.settled();
    assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut));
    let port = live.local().port();
    let line = cluster.record(1, |line| line["event"] == "rejudged" && line["source"]["port"] == port);
    assert_eq!((&line["verdict"], &line["reason"]), (&"deny".into(), &"flowCut".into()), "{line}");
    assert_eq!((&line["node"], &line["direction"]), (&"node-2".into(), &"ingress".into()), "{line}");
    assert!(line["decision"].to_string().contains("web-clients"), "{line}");
    assert_eq!(line["source"]["labels"]["role"], "former", "{line}");
    assert_eq!(control.exchange(PATIENCE), Ok(()), "who keeps its labels keeps its connection");
    cluster.check(&client, &web, WEB, true, Verdict::Deny, "web-clients");
    client.set_labels(&[("role", "client")]).expect("relabelled");
    cluster.settled();
    cluster.check(&client, &web, WEB, true, Verdict::Allow, "web-clients");
}

#[test]
fn relabel_of_a_remote_pod_cuts_on_the_other_node_over_a_link() {
    check_relabel("relabel-flat", Network::Flat, [Mode::Routed, Mode::Bridged]);
}

#[test]
fn relabel_of_a_remote_pod_cuts_on_the_other_node_through_a_tunnel() {
    check_relabel("relabel-over", Network::Overlay, [Mode::Bridged, Mode::Routed]);
}

#[test]
fn remote_pod_whose_manifest_is_gone_is_no_client_any_more() {
    if crate::skipped() {
        return;
    }
    let (mut cluster, web, client, guest) = shop("gone", Network::Flat, [Mode::Routed, Mode::Routed]);
    cluster.check(&client, &web, WEB, false, Verdict::Allow, "web-clients");
    client.remove_manifest().expect("removed");
    cluster.settled();
    assert_eq!(get(client.netns(), web.v4()), Err(NoAnswer::TimedOut), "an address that is nobody's is no client");
    guest.set_labels(&[("role", "client")]).expect("relabelled");
    cluster.settled();
    cluster.check(&guest, &web, WEB, false, Verdict::Allow, "web-clients");
}
