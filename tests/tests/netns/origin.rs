//! Where packets come from: the node's own processes, and pods that say they are somebody else.

use reeve_tests::frames::{Ends, Tap, is_to_port};
use reeve_tests::lab::{Mode, Netns, Pod};
use reeve_tests::stage::{RECORD_PATIENCE, Stage, WEB};
use reeve_tests::traffic::{self, NoAnswer, PATIENCE};
use std::net::{IpAddr, SocketAddr};

/// `web`, which lets `role=client` in, such a client, and a pod that nothing allows.
fn shop(name: &str, mode: Mode) -> (Stage, Pod, Pod, Pod) {
    let mut stage = Stage::new(name, mode);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    let thief = stage.pod("thief", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    stage.start();
    (stage, web, client, thief)
}

fn get(netns: &Netns, to: IpAddr) -> traffic::Answer {
    traffic::connect(netns, SocketAddr::new(to, 8080), PATIENCE)?.exchange(PATIENCE)
}

#[track_caller]
fn check_probe(name: &str, mode: Mode) {
    let (mut stage, web, client, thief) = shop(name, mode);
    stage.lab.manifests().remove("web-clients").expect("removed");
    stage.policy("isolated", &serde_json::json!({ "podSelector": {}, "policyTypes": ["Ingress"] }));
    stage.settled();
    for address in [web.v4(), web.v6()] {
        stage.records().rest().expect("records");
        assert_eq!(get(stage.node.netns(), address), Ok(()), "the kubelet's probe");
        let to_web = |line: &serde_json::Value| line["destination"]["ip"] == address.to_string();
        let line = stage.records().wait_for(RECORD_PATIENCE, to_web).expect("a record");
        assert_eq!((&line["verdict"], &line["decision"]["default"]), (&"allow".into(), &"ownNode".into()), "{line}");
    }
    assert_eq!(traffic::ping(stage.node.netns(), web.v4(), PATIENCE), Ok(()));
    for pod in [&client, &thief] {
        stage.denies(pod, &web, WEB, "isolated");
    }
}

#[test]
fn probe_from_the_node_reaches_an_isolated_routed_pod() {
    if !crate::skipped() {
        check_probe("probe-routed", Mode::Routed);
    }
}

#[test]
fn probe_from_the_node_reaches_an_isolated_bridged_pod() {
    if !crate::skipped() {
        check_probe("probe-bridged", Mode::Bridged);
    }
}

/// A frame by `thief` in the name of another goes nowhere and is recorded as what it is; one in its own name is heard.
#[track_caller]
fn check_forged(name: &str, mode: Mode, v6: bool, forged: impl Fn(&Stage, &Pod) -> IpAddr) {
    let (mut stage, web, client, thief) = shop(name, mode);
    // The one from the thief itself must get through, so that nothing but its source is what stops the other.
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    thief.set_labels(&[("role", "client")]).expect("relabelled");
    stage.settled();
    let ends = |source| Ends {
        source_mac: thief.mac().expect("a hardware address"),
        destination_mac: if mode == Mode::Bridged { web.mac() } else { thief.gateway_mac() }.expect("a next hop"),
        source,
        destination: if v6 { web.v6() } else { web.v4() },
    };
    let mut ear = Tap::open(web.netns(), "eth0").expect("an ear");
    let mouth = Tap::open(thief.netns(), "eth0").expect("a mouth");
    stage.records().rest().expect("records");
    let source = forged(&stage, &client);
    mouth.send(&ends(source).udp(40_001, 53, b"forged")).expect("sent");
    let own = if v6 { thief.v6() } else { thief.v4() };
    mouth.send(&ends(own).udp(40_002, 53, b"own")).expect("sent");
    let heard = ear.capture(RECORD_PATIENCE, |frame| is_to_port(frame, 53)).expect("an ear").expect("a frame");
    assert!(heard.ends_with(b"own"), "the frame that arrives first is the honest one");
    let line = stage.records().wait_for(RECORD_PATIENCE, |line| line["event"] == "denied").expect("a record");
    assert_eq!(line["decision"]["default"], "spoofedSource", "{line}");
    assert_eq!((&line["direction"], &line["source"]["ip"]), (&"egress".into(), &source.to_string().into()), "{line}");
    let honest = |line: &serde_json::Value| line["event"] == "opened" && line["source"]["port"] == 40_002;
    stage.records().wait_for(RECORD_PATIENCE, honest).expect("the record of the honest frame");
}

fn of(pod: &Pod, v6: bool) -> IpAddr {
    if v6 { pod.v6() } else { pod.v4() }
}

#[test]
fn another_pods_address_is_denied_to_a_routed_pod() {
    if !crate::skipped() {
        check_forged("forge-routed4", Mode::Routed, false, |_, other| of(other, false));
    }
}

#[test]
fn another_pods_address_is_denied_to_a_bridged_pod() {
    if !crate::skipped() {
        check_forged("forge-bridged4", Mode::Bridged, false, |_, other| of(other, false));
    }
}

#[test]
fn another_pods_ipv6_address_is_denied() {
    if !crate::skipped() {
        check_forged("forge-routed6", Mode::Routed, true, |_, other| of(other, true));
    }
}

#[test]
fn the_nodes_address_is_denied_to_a_pod() {
    if !crate::skipped() {
        check_forged("forge-node", Mode::Routed, false, |stage, _| stage.node.v4());
    }
}

#[test]
fn the_nodes_address_is_denied_to_a_pod_behind_a_bridge() {
    if !crate::skipped() {
        check_forged("forge-node-bridged", Mode::Bridged, false, |stage, _| stage.node.v4());
    }
}

#[test]
fn pod_that_takes_the_nodes_address_is_not_taken_for_the_node() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, _, thief) = shop("take-node", Mode::Routed);
    let address = stage.node.v4();
    let commands = [
        format!("addr add {address}/32 dev eth0"),
        format!("route replace {} via 169.254.1.1 dev eth0 onlink src {address}", web.v4()),
    ];
    thief.netns().ip(&commands).expect("readdressed");
    stage.records().rest().expect("records");
    assert_eq!(get(thief.netns(), web.v4()), Err(NoAnswer::TimedOut));
    let line = stage.records().wait_for(RECORD_PATIENCE, |line| line["event"] == "denied").expect("a record");
    assert_eq!(line["decision"]["default"], "spoofedSource", "{line}");
    assert_eq!(line["source"]["ip"], address.to_string(), "{line}");
    assert_eq!(get(stage.node.netns(), web.v4()), Ok(()), "the node itself is let in");
}
