//! Programs that judge traffic of no one pod, taken off or put behind others: put right, and nobody else pays for it.

use crate::drift::{RARELY, check_noticed, pins, put_first};
use crate::life::{shop_with, standing};
use aya::programs::{SchedClassifier, TcAttachType};
use reeve_tests::lab::{Pod, until};
use reeve_tests::stage::{Stage, WEB};
use reeve_tests::traffic::{self, Datagrams, NoAnswer, PATIENCE, Server};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The first machine on the switch after the node.
const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 18, 0, 2));

/// `shop` where `web` may begin nothing, with an agent that looks at everything once an hour only.
fn silent_web(name: &str) -> (Stage, Pod, Pod, Pod) {
    let (mut stage, web, client, guest) = shop_with(name, &RARELY);
    let silent = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Egress"] });
    stage.policy("web-silent", &silent);
    stage.settled();
    (stage, web, client, guest)
}

#[test]
fn program_of_the_nodes_processes_is_put_back() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = silent_web("h-host");
    let to = SocketAddr::new(stage.node.v4(), 8080);
    let _server = Server::tcp(stage.node.netns(), to.ip(), to.port()).expect("a server");
    let ask = |pod: &Pod| traffic::connect(pod.netns(), to, PATIENCE)?.exchange(PATIENCE);
    assert_eq!((ask(&web), ask(&client)), (Err(NoAnswer::TimedOut), Ok(())));
    let pin = pins(&stage).join("links/host-in");
    let mut detach = Command::new("bpftool");
    detach.args(["link", "detach", "pinned"]).arg(&pin).stdin(Stdio::null()).stdout(Stdio::null());
    assert!(detach.status().expect("bpftool runs").success());
    check_noticed(&mut stage, "attached", "cgroup of the node");
    assert_eq!((ask(&web), ask(&client)), (Err(NoAnswer::TimedOut), Ok(())), "it judges again");
    std::fs::remove_file(&pin).expect("removed");
    check_noticed(&mut stage, "pin", "cgroup of the node");
    let only = |stage: &Stage| assert_eq!(standing(stage, &[]), ["reeve_host_in".to_owned()].into(), "once");
    only(&stage);
    stage.agent().kill9().expect("killed");
    only(&stage);
    assert_eq!((ask(&web), ask(&client)), (Err(NoAnswer::TimedOut), Ok(())), "the new link is pinned");
    stage.agent().start_again().expect("started again");
    only(&stage);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

/// Programs at one end of a device of the node's, the first first.
fn chain(stage: &Stage, device: &str, at: TcAttachType) -> Vec<String> {
    let ask = || SchedClassifier::query_tcx(device, at);
    let (_, chain) = stage.node.netns().run(ask).expect("entered").expect("asked");
    chain.iter().map(|program| program.name_as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn repair_of_a_devices_programs_drops_nothing_and_lets_nothing_out_unjudged() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = silent_web("h-order");
    let outside = stage.lab.outside("world").expect("a machine outside");
    let node = stage.node.netns().clone();
    let at = |port: u16| SocketAddr::new(OUTSIDE, port);
    let of_node = [
        Datagrams::start(&node, &outside, at(9000)),
        Datagrams::start(&outside, &node, SocketAddr::new(stage.node.v4(), 9001)),
    ];
    let of_client = Datagrams::start(client.netns(), &outside, at(9002));
    let of_web = Datagrams::start(web.netns(), &outside, at(9003));
    let flowing = until("traffic", Duration::from_secs(20), || {
        Ok((of_node.iter().all(|one| one.heard() > 50) && of_client.heard() > 50).then_some(()))
    });
    flowing.expect("all that may come does");
    for (at, ours, times) in [
        (TcAttachType::Egress, "reeve_uplink", 1),
        (TcAttachType::Ingress, "reeve_uplink_in", 2),
        (TcAttachType::Egress, "reeve_uplink", 3),
    ] {
        let foreign = put_first(&stage, "eth0", at);
        let repaired = until("the repair", Duration::from_secs(20), || {
            let found = stage.agent().metric("reeve_drift_total", &[("what", "order")])?;
            Ok((found > f64::from(times) - 0.5).then_some(()))
        });
        repaired.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.agent().log()));
        assert_eq!(chain(&stage, "eth0", at), [ours, "reeve_to_pod"], "both stand, ours first, and no spare is left");
        drop(foreign);
        let gone = until("the other's end", Duration::from_secs(20), || {
            Ok((chain(&stage, "eth0", at) == [ours]).then_some(()))
        });
        gone.expect("the kernel frees it some time after its last descriptor");
    }
    assert!(!stage.problems("another program had been put before ours").is_empty());
    for one in of_node {
        let (sent, came) = one.finish();
        assert_eq!((sent, sent > 100), (came, true), "what the node sends and receives");
    }
    let (sent, came) = of_client.finish();
    assert_eq!((sent, sent > 100), (came, true), "what a pod may send");
    let (sent, came) = of_web.finish();
    assert_eq!((sent > 100, came), (true, 0), "what a pod may not send");
    let lost = stage.agent().metric("reeve_datapath_packets_total", &[("state", "mark_lost")]).expect("a metric");
    assert!(lost < 0.5, "no packet is seen twice: {lost}");
    stage.agent().kill9().expect("killed");
    for pin in ["out", "in"] {
        let ends = format!("-{pin}");
        let links = pins(&stage).join("links").read_dir().expect("a directory");
        let pinned = links.map(|link| link.expect("read").file_name().to_string_lossy().into_owned());
        assert!(pinned.filter(|name| name != "host-in").any(|name| name.ends_with(&ends)), "{pin} is pinned");
    }
    assert_eq!(chain(&stage, "eth0", TcAttachType::Egress)[0], "reeve_uplink", "the new link outlives the agent");
    stage.agent().start_again().expect("started again");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

/// Waits until these programs stand at the ends of a device.
#[track_caller]
fn hooked(stage: &mut Stage, device: &str, ingress: &[&str], egress: &[&str]) {
    let standing = || {
        let now = (chain(stage, device, TcAttachType::Ingress), chain(stage, device, TcAttachType::Egress));
        Ok((now.0 == ingress && now.1 == egress).then_some(()))
    };
    let stood = until("programs", Duration::from_secs(20), standing);
    stood.unwrap_or_else(|error| panic!("{error:#}: {ingress:?} and {egress:?} at {device}\n{}", stage.agent().log()));
}

#[test]
fn pair_that_has_just_come_has_the_programs_of_a_pod_until_it_is_known_to_be_none() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("h-new", &RARELY);
    let (node, other) = (stage.node.netns().clone(), stage.lab.outside("neighbour").expect("a machine"));
    let pair = |device: &str, net: u8| {
        node.ip(&[
            format!("link add {device} type veth peer name {device} netns {}", other.name()),
            format!("addr add 10.99.{net}.1/24 dev {device}"),
            format!("link set {device} up"),
        ])?;
        other.ip(&[format!("addr add 10.99.{net}.2/24 dev {device}"), format!("link set {device} up")])
    };
    pair("new-1", 1).expect("a pair");
    let coming = Datagrams::start(&other, &node, "10.99.1.1:9001".parse().expect("an address"));
    hooked(&mut stage, "new-1", &["reeve_from_pod"], &["reeve_to_pod"]);
    let going = Datagrams::start(&node, &other, "10.99.1.2:9002".parse().expect("an address"));
    hooked(&mut stage, "new-1", &["reeve_uplink_in"], &["reeve_uplink"]);
    for traffic in [coming, going] {
        let (sent, came) = traffic.finish();
        assert_eq!((sent, sent > 50), (came, true), "nobody's traffic is lost over it");
    }
    // Who ends meanwhile leaves nothing there, and who comes then knows the device for an old one.
    pair("new-2", 2).expect("a pair");
    hooked(&mut stage, "new-2", &["reeve_from_pod"], &["reeve_to_pod"]);
    stage.agent().kill9().expect("killed");
    hooked(&mut stage, "new-2", &[], &[]);
    hooked(&mut stage, "new-1", &["reeve_uplink_in"], &["reeve_uplink"]);
    stage.agent().start_again().expect("started again");
    hooked(&mut stage, "new-2", &["reeve_uplink_in"], &["reeve_uplink"]);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn program_that_came_before_those_of_a_new_pair_is_behind_them_when_the_pod_is_told() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("h-late", &RARELY);
    let (node, late) = (stage.node.netns().clone(), stage.lab.outside("late").expect("a machine"));
    let of_node = [
        format!("link add late type veth peer name late netns {}", late.name()),
        "link set late up".to_owned(),
        "route add 10.99.3.2/32 dev late".to_owned(),
    ];
    node.ip(&of_node).expect("a pair");
    hooked(&mut stage, "late", &["reeve_from_pod"], &["reeve_to_pod"]);
    let _foreign = put_first(&stage, "late", TcAttachType::Ingress);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "shop", "name": "late", "uid": "late-uid" },
        "spec": { "nodeName": stage.node.name() }, "status": { "phase": "Running", "podIPs": [{ "ip": "10.99.3.2" }] },
    });
    stage.lab.manifests().write("pod-shop-late", &pod).expect("a manifest");
    stage.settled();
    hooked(&mut stage, "late", &["reeve_from_pod", "reeve_to_pod"], &["reeve_to_pod"]);
    let repaired = stage.agent().metric("reeve_drift_total", &[("what", "order")]).unwrap_or_default();
    assert!(repaired < 0.5, "they were put first at once, not when somebody looked: {repaired}");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}
