//! Pods with an address of each family, which real plugins gave them: what is judged in one is not in the other.

use std::net::{IpAddr, SocketAddr};

use reeve_tests::cluster::WiredPod;
use reeve_tests::lab::Records;
use reeve_tests::stage::RECORD_PATIENCE;
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, tcp_exchange};
use serde_json::{Value, json};

use crate::town::{Company, Town, is_judged, skipped};
use crate::wiring::pod;

/// A peer that is a network.
fn block(network: &str, except: &[String]) -> Value {
    json!({ "ipBlock": { "cidr": network, "except": except } })
}

fn only(address: IpAddr) -> Value {
    block(&format!("{address}/{}", if address.is_ipv6() { 128 } else { 32 }), &[])
}

#[test]
fn labels_count_in_both_families_and_a_network_in_its_own() {
    if skipped() {
        return;
    }
    let mut town = Town::new("families", Company::Shared);
    town.start();
    let chain = town.enforced_chain(&town.node);
    let run = |name: &str| town.cluster.run_pod(&town.node, &chain, &pod(&town, name, None)).expect("a pod");
    let (web, client, guest) = (run("web"), run("client"), run("guest"));
    let _servers: Vec<Server> =
        web.addresses().iter().map(|address| Server::tcp(web.netns(), *address, 8080).expect("a server")).collect();
    let mut records = town.own().records();
    let (own_v6, guest_v6) = (client.address(true), guest.address(true));
    let labelled = json!({ "podSelector": { "matchLabels": { "app": "client" } } });
    let all_but_guest = block("fd00:244::/32", &[format!("{guest_v6}/128")]);
    let (v4, v6) = (false, true);
    // Whom the policy lets in, and in which families that is the client and the guest.
    let cases: [(&str, Vec<Value>, [bool; 4]); 6] = [
        ("by label", vec![labelled], [true, true, false, false]),
        ("the client's IPv6 address", vec![only(own_v6)], [false, true, false, false]),
        ("the client's IPv4 address", vec![only(client.address(v4))], [true, false, false, false]),
        ("all of IPv6 but the guest", vec![all_but_guest], [false, true, false, false]),
        ("all of IPv4", vec![block("0.0.0.0/0", &[])], [true, false, true, false]),
        ("one family of each", vec![only(own_v6), only(guest.address(v4))], [false, true, true, false]),
    ];
    for (what, peers, wanted) in &cases {
        town.let_in("web", peers, &[town.own()]);
        let tries = [(&client, v4), (&client, v6), (&guest, v4), (&guest, v6)];
        for ((from, family), allowed) in tries.into_iter().zip(wanted) {
            judged(&mut records, what, from, &web, family, *allowed);
        }
    }
}

/// Tries a connection in a family; socket and record agree with what is wanted, and the record names the policy.
#[track_caller]
fn judged(records: &mut Records, what: &str, from: &WiredPod, to: &WiredPod, v6: bool, allowed: bool) {
    records.rest().expect("records");
    let (source, destination) = (from.address(v6).to_string(), to.address(v6));
    let got = tcp_exchange(from.netns(), SocketAddr::new(destination, 8080), PATIENCE);
    let wanted = if allowed { Ok(()) } else { Err(NoAnswer::TimedOut) };
    assert_eq!(got, wanted, "{what}: {source} to {destination}");
    let of_it = |line: &Value| {
        is_judged(line, "ingress")
            && line["source"]["ip"] == source
            && line["destination"]["ip"] == destination.to_string()
    };
    let line = records.wait_for(RECORD_PATIENCE, of_it).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    assert_eq!(line["verdict"], if allowed { "allow" } else { "deny" }, "{what}: {line}");
    assert!(line["decision"].to_string().contains("into-web"), "{what}: {line}");
    for (side, pod) in [("source", from), ("destination", to)] {
        assert_eq!(line[side]["uid"], pod.sandbox().uid.as_str(), "{what}: {line}");
    }
}
