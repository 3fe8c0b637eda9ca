//! Maps without room: what does not fit is closed and named, and nobody else pays for it.

use reeve_tests::lab::{Pod, until};
use reeve_tests::stage::counts::{SINK, Sums, datagrams, received, windowed};
use reeve_tests::stage::{RECORD_PATIENCE, Stage, WEB, get};
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, connect};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Longest wait for the agent's next look.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn flood_of_one_pods_flows_is_denied_by_name_and_evicts_nobody_elses() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("r-flows", 600, "[map-entries]\nFLOWS = 2048\n");
    let other = stage.pod("other", &[("app", "web")]);
    stage.settled();
    let mut live = stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection");
    // 512 flows are a pod's share. Nobody forbids these; who is flooded has a share as well.
    let (flooder, flooded) = (stage.pod("flooder", &[]), stage.pod("flooded", &[]));
    let silent: IpAddr = flooded.v4();
    stage.settled();
    let flood = move || {
        for port in 10_000..14_000_u16 {
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("bound");
            socket.send_to(b"flood", SocketAddr::new(silent, SINK)).expect("sent");
        }
    };
    flooder.netns().run(flood).expect("entered");
    let full = |row: &serde_json::Value| {
        row["decision"]["default"] == "flowTableFull"
            && row["source"]["pod"] == "flooder"
            && row["direction"] == "egress"
    };
    stage.records().wait_for(RECORD_PATIENCE, full).expect("the denial names the table");
    stage.settled();
    let denied = stage.agent().metric("reeve_datapath_packets_total", &[("state", "flow_budget")]).expect("a metric");
    assert!(denied >= 3_000.0, "{denied}");
    let named = until("the problem", LOOK_PATIENCE, || Ok(stage.problems("Pod/shop/flooder").pop()));
    assert_eq!(named.expect("named")["field"], "map FLOWS");
    assert_eq!(live.exchange(PATIENCE), Ok(()), "a connection of others goes on");
    stage.allows(&client, &web, WEB, "web-clients");
    stage.allows(&client, &other, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn flood_of_denied_tuples_is_counted_whole_and_touches_no_live_flow() {
    if crate::skipped() {
        return;
    }
    let settings = "[map-entries]\nDENIED = 64\n";
    let (mut stage, web, client, guest, _sink) = windowed("r-denied", 1, settings);
    let mut live = stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection");
    let denied = datagrams(&guest, &web, 20_000..22_000, 1);
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(live.exchange(PATIENCE), Ok(()));
    stage.allows(&client, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn address_without_room_is_nobody_for_selected_pods_and_is_named() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("r-addresses", 600, "");
    // Exactly as many as there are: another pod's find no room.
    let used = stage.agent().metric("reeve_map_entries", &[("map", "ADDRESSES")]).expect("a metric");
    let path = stage.lab.directory().join("settings.toml");
    std::fs::write(path, format!("[map-entries]\nADDRESSES = {used}\n")).expect("written");
    stage.agent().restart().expect("restarted");
    assert!(stage.problems("map ADDRESSES").is_empty(), "so far all have room");
    // To everybody but client: were the address taken for one outside the cluster, this would let it in.
    stage.policy(
        "web-world",
        &serde_json::json!({
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{ "from": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"] } }] }]
        }),
    );
    stage.policy(
        "late-alone",
        &serde_json::json!({ "podSelector": { "matchLabels": { "app": "late" } }, "policyTypes": ["Ingress"] }),
    );
    stage.settled();
    stage.allows(&guest, &web, WEB, "web-world");
    let late = stage.pod("late", &[("app", "late")]);
    stage.settled();
    assert_eq!(get(&late, &web), Err(NoAnswer::TimedOut), "an unknown peer of a selected pod");
    let told = |row: &serde_json::Value| {
        row["decision"]["default"] == "addressesIncomplete" && row["destination"]["pod"] == "web"
    };
    stage.records().wait_for(RECORD_PATIENCE, told).expect("the denial names the map");
    assert_eq!(stage.problems("map ADDRESSES").len(), 1);
    assert_eq!(get(&client, &web), Ok(()), "control: who has a place is known");
    assert_eq!(get(&client, &late), Err(NoAnswer::TimedOut), "and its own policy holds");
    // Two addresses go: there is room.
    guest.remove().expect("removed");
    stage.settled();
    assert!(stage.problems("map ADDRESSES").is_empty());
    stage.allows(&late, &web, WEB, "web-world");
    stage.denies(&client, &late, WEB, "late-alone");
}

#[test]
fn endpoint_without_room_is_closed_whole_and_named_until_there_is_room() {
    if !crate::skipped() {
        check_closed("r-endpoints", "ENDPOINTS");
    }
}

#[test]
fn endpoint_without_room_for_its_share_is_closed_whole_and_named_until_there_is_room() {
    if !crate::skipped() {
        check_closed("r-budgets", "BUDGETS");
    }
}

/// Three pods have room in the map, the fourth has none until one goes.
#[track_caller]
fn check_closed(name: &str, map: &str) {
    let (mut stage, web, client, guest, _sink) = windowed(name, 600, &format!("[map-entries]\n{map} = 3\n"));
    let late = stage.pod("late", &[]);
    let refused = stage.agent().request("POST", "/sync").expect("an answer");
    assert_eq!(refused.status, 504, "{}", refused.body);
    assert!(refused.body.contains(map), "{}", refused.body);
    assert_eq!(stage.problems(&format!("map {map}")).len(), 1);
    assert_eq!(get(&late, &client), Err(NoAnswer::TimedOut), "it sends nothing");
    assert_eq!(get(&client, &late), Err(NoAnswer::TimedOut), "and receives nothing");
    assert_eq!((get(&client, &web), get(&guest, &web)), (Ok(()), Err(NoAnswer::TimedOut)), "others are as they were");
    stage.agent().kill9().expect("killed");
    assert_eq!(get(&client, &late), Err(NoAnswer::TimedOut), "nor without an agent");
    guest.remove().expect("removed");
    stage.agent().start_again().expect("started again");
    // Nobody could ask it for its hardware address; the node asks again once a second.
    let found = until("late's address", LOOK_PATIENCE, || Ok(get(&client, &late).ok()));
    found.expect("there is room");
    stage.allows(&client, &late, WEB, "noPolicySelects");
    stage.allows(&late, &client, WEB, "noPolicySelects");
    assert!(stage.problems(&format!("map {map}")).is_empty());
    stage.denies(&late, &web, WEB, "web-clients");
}

/// A Service of `shop` with these ports.
fn write_service(stage: &Stage, name: &str, address: &str, ports: &[u16]) {
    let ports: Vec<Value> =
        ports.iter().map(|port| json!({ "name": format!("p{port}"), "port": port, "protocol": "TCP" })).collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": name },
        "spec": { "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports },
    });
    stage.lab.manifests().write(&format!("service-{name}"), &service).expect("written");
}

/// Rows and capacity of a map, as the agent tells them.
fn rows(stage: &mut Stage, map: &str) -> (Value, Value) {
    let all = stage.agent().request("GET", "/maps").and_then(|answer| answer.json()).expect("the maps");
    let found = all.as_array().expect("a list").iter().find(|one| one["name"] == map).expect("it is told");
    (found["entries"].clone(), found["capacity"].clone())
}

#[test]
fn services_without_room_are_named_and_those_that_go_make_room_for_others() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("r-services", 600, "[map-entries]\nSERVICES = 2\n");
    write_service(&stage, "first", "10.96.0.10", &[80, 81]);
    stage.settled();
    assert_eq!(rows(&mut stage, "SERVICES"), (json!(2), json!(2)));
    assert!(stage.problems("map SERVICES").is_empty(), "they have room");
    write_service(&stage, "second", "10.96.0.11", &[80]);
    let refused = stage.agent().request("POST", "/sync").expect("an answer");
    assert!(refused.status == 504 && refused.body.contains("SERVICES"), "{} {}", refused.status, refused.body);
    let problems = stage.problems("map SERVICES");
    assert_eq!((problems.len(), &problems[0]["what"]), (1, &json!("1 ports of Services have no room")));
    stage.allows(&client, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
    // Both go and two others come, at once: only those that go make room.
    stage.lab.manifests().remove("service-second").expect("removed");
    write_service(&stage, "first", "10.96.0.12", &[90, 91]);
    stage.settled();
    assert_eq!(rows(&mut stage, "SERVICES"), (json!(2), json!(2)));
    assert!(stage.problems("map SERVICES").is_empty());
}

#[test]
fn device_without_room_makes_pods_stricter_and_is_named_until_it_goes() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, _, _sink) = windowed("r-devices", 600, "[map-entries]\nDEVICES = 1\n");
    let outside = stage.lab.outside("world").expect("a machine outside");
    let world: IpAddr = "172.18.0.2".parse().expect("an address");
    let _server = Server::tcp(&outside, world, 8080).expect("a server");
    let silent = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Egress"] });
    stage.policy("web-silent", &silent);
    stage.settled();
    let ask = |pod: &Pod| connect(pod.netns(), SocketAddr::new(world, 8080), PATIENCE).map(drop);
    let guarded = |stage: &mut Stage| stage.agent().metric("reeve_hooks", &[("state", "guarded")]).expect("a metric");
    assert!(guarded(&mut stage) > 0.5);
    stage.node.netns().ip(&["link add late type bridge".to_owned()]).expect("a device");
    let named = until("the device", LOOK_PATIENCE, || {
        let answer = stage.agent().request("GET", "/readyz")?;
        Ok(answer.body.contains("DEVICES").then_some(()))
    });
    named.expect("the agent says what has no room");
    assert!(guarded(&mut stage) < 0.5, "what leaves is judged by what it shows as well");
    assert_eq!((ask(&client), ask(&web)), (Ok(()), Err(NoAnswer::TimedOut)));
    stage.allows(&client, &web, WEB, "web-clients");
    stage.node.netns().ip(&["link del late".to_owned()]).expect("it goes");
    stage.settled();
    assert!(guarded(&mut stage) > 0.5);
    assert_eq!((ask(&client), ask(&web)), (Ok(()), Err(NoAnswer::TimedOut)));
}

/// In a packet's place: more fragments follow.
const MORE: u16 = 0x2000;

/// An IPv4 packet with a part of a UDP datagram; the kernel fills in length and checksum.
fn fragment(from: IpAddr, to: IpAddr, identification: u16, place: u16, part: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { panic!("IPv4 only") };
    let mut packet = vec![0x45, 0, 0, 0];
    packet.extend(identification.to_be_bytes());
    packet.extend(place.to_be_bytes());
    packet.extend([64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(part);
    packet
}

#[test]
fn fragments_whose_beginning_had_no_room_are_denied_by_name() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, _, sink) = windowed("r-fragments", 600, "[map-entries]\nFRAGMENTS = 16\n");
    sink.set_read_timeout(Some(PATIENCE)).expect("set");
    let raw = client.netns().run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))));
    let raw = raw.expect("entered").expect("a raw socket");
    let (from, to) = (client.v4(), web.v4());
    let send = |identification: u16, place: u16, part: &[u8]| {
        let target = SocketAddr::new(to, 0).into();
        raw.send_to(&fragment(from, to, identification, place, part), &target).expect("sent");
    };
    // Ports 7 and 9000, 24 bytes, no checksum; the first eight bytes of content, and the other eight.
    let [first, later] = [[&[0, 7, 0x23, 0x28, 0, 24, 0, 0], &b"01234567"[..]].concat(), b"89abcdef".to_vec()];
    let mut bytes = [0; 64];
    send(1, MORE, &first);
    send(1, 2, &later);
    assert_eq!(sink.recv(&mut bytes).expect("control: with room it comes through whole"), 16);
    send(2, MORE, &first);
    for identification in 3..400 {
        send(identification, MORE, &first);
    }
    send(2, 2, &later);
    let unknown =
        |row: &serde_json::Value| row["decision"]["default"] == "unknownFragment" && row["source"]["pod"] == "client";
    stage.records().wait_for(RECORD_PATIENCE, unknown).expect("the denial is told");
    assert!(sink.recv(&mut bytes).is_err(), "half a datagram is none");
    stage.allows(&client, &web, WEB, "web-clients");
}
