//! Interfaces that change their names, go, come back and take over each other's numbers while the agent runs.

use crate::drift::RARELY;
use crate::life::Flow;
use reeve_tests::lab::{AgentOptions, Mode, Pod, until};
use reeve_tests::stage::{RECORD_PATIENCE, Stage, WEB, get, shop};
use reeve_tests::traffic::{NoAnswer, PATIENCE, Server, connect, connect_from, udp_exchange};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const NOTICE_PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn renamed_interface_stays_enforced_and_is_shown_by_its_name() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("i-renamed", Mode::Routed);
    let flow = Flow::start(stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection"));
    let name = web.host_side();
    stage
        .node
        .netns()
        .ip(&[format!("link property add dev {name} altname also-{name}"), format!("link set {name} name cali0")])
        .expect("renamed");
    let shown = until("the new name", NOTICE_PATIENCE, || {
        let row = stage.endpoint(&web)?;
        Ok((row["interface"] == "cali0" && row["state"] == "ready").then_some(()))
    });
    shown.expect("the agent shows the name of now");
    flow.check_unbroken();
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    let drift = stage.agent().metric("reeve_drift_total", &[]).expect("a metric");
    assert!(drift < 0.5, "nothing was attached anew: {drift}");
}

/// Takes the pod's wire away and gives it another one under the same number, at once.
pub(crate) fn rewire_with_index(stage: &Stage, pod: &Pod, ifindex: u64) {
    let (device, address) = (pod.host_side(), pod.v4());
    let on_node = [
        format!("link del {device}"),
        format!("link add {device} index {ifindex} type veth peer name eth0 netns {}", pod.netns().name()),
        format!("link set {device} address ee:ee:ee:ee:ee:ee up"),
        format!("route replace {address} dev {device}"),
    ];
    stage.node.netns().ip(&on_node).expect("wired");
    let in_pod = [
        "link set eth0 up".to_owned(),
        format!("addr add {address}/32 dev eth0"),
        "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent".to_owned(),
        "route add 0.0.0.0/0 via 169.254.1.1 dev eth0 onlink".to_owned(),
    ];
    pod.netns().ip(&in_pod).expect("wired");
}

#[test]
fn interface_that_takes_over_the_number_of_one_that_went_is_enforced() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("i-number", Mode::Routed);
    stage.denies(&guest, &web, WEB, "web-clients");
    let ifindex = stage.endpoint(&web).expect("an endpoint")["ifindex"].as_u64().expect("a number");
    rewire_with_index(&stage, &web, ifindex);
    let closed = until("enforcement", NOTICE_PATIENCE, || {
        Ok((get(&guest, &web) == Err(NoAnswer::TimedOut) && get(&client, &web) == Ok(())).then_some(()))
    });
    closed.expect("the number is the same, the device is not");
    assert_eq!(stage.endpoint(&web).expect("an endpoint")["ifindex"], ifindex);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn pod_that_is_deleted_in_the_middle_of_a_flow_leaves_the_others_as_they_are() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("i-deleted", Mode::Routed);
    let other = stage.pod("other", &[("app", "web")]);
    stage.settled();
    let mut gone = connect(client.netns(), SocketAddr::new(web.v4(), 8080), PATIENCE).expect("connected");
    assert_eq!(gone.exchange(PATIENCE), Ok(()));
    let flow = Flow::start(stage.allows(&client, &other, WEB, "web-clients").connection.expect("an open connection"));
    web.remove().expect("removed");
    stage.settled();
    gone.exchange(PATIENCE).expect_err("nobody is there");
    flow.check_unbroken();
    assert!(stage.endpoint(&web).is_err(), "it is no endpoint any more");
    stage.denies(&guest, &other, WEB, "web-clients");
    stage.allows(&client, &other, WEB, "web-clients");
    assert_eq!(stage.agent().request("GET", "/readyz").expect("an answer").status, 200);
}

#[test]
fn second_address_of_a_pod_is_the_pods_at_its_device_from_the_start() {
    if crate::skipped() {
        return;
    }
    let mut stage = Stage::new("i-second", Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    let guest = stage.pod("guest", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    stage.allow_from("client-webs", ("role", "client"), ("app", "web"));
    let IpAddr::V4(first) = web.v4() else { panic!("an IPv4 address") };
    // Of several the lowest is the one that the pod sends from.
    let second = IpAddr::V4(Ipv4Addr::from(u32::from(first) | 0xf0));
    let mac = web.mac().expect("an address").map(|byte| format!("{byte:02x}")).join(":");
    let to_it = [
        format!("route add {second} dev {}", web.host_side()),
        // It may not answer for more than its first.
        format!("neigh add {second} lladdr {mac} dev {} nud permanent", web.host_side()),
    ];
    stage.node.netns().ip(&to_it).expect("a way");
    web.netns().ip(&[format!("addr add {second} dev eth0")]).expect("an address");
    let names = Server::udp(web.netns(), second, 53).expect("a UDP server");
    let _server = Server::tcp(web.netns(), second, 8080).expect("a TCP server");
    let claims = |stage: &Stage, addresses: &[IpAddr]| {
        let mut manifest = web.manifest();
        manifest["status"]["podIPs"] = addresses.iter().map(|address| json!({ "ip": address })).collect();
        stage.lab.manifests().write("pod-shop-web", &manifest).expect("written");
    };
    claims(&stage, &[web.v4(), second]);
    // Nothing is put right afterwards.
    stage.start_with(AgentOptions { arguments: RARELY.map(str::to_owned).to_vec(), ..AgentOptions::default() });
    assert_eq!(stage.problems("status.podIPs").len(), 1, "Kubernetes gives one address of each family");
    let told = |record: &Value, from: &Pod, verdict: &str| {
        record["source"]["uid"] == from.uid()
            && record["destination"]["ip"] == second.to_string()
            && record["direction"] == "ingress"
            && record["verdict"] == verdict
    };
    for (from, verdict) in [(&guest, "deny"), (&client, "allow")] {
        let to = SocketAddr::new(second, 53);
        assert_eq!(udp_exchange(from.netns(), to, PATIENCE), Err(NoAnswer::TimedOut), "the pod does not answer by it");
        assert_eq!(!names.clients().is_empty(), verdict == "allow", "{verdict}");
        let record = stage.records().wait_for(RECORD_PATIENCE, |record| told(record, from, verdict)).expect("a record");
        assert_eq!(record["destination"]["uid"], web.uid(), "{record}");
        assert!(record["decision"].to_string().contains("web-clients"), "{record}");
    }
    stage.allows(&web, &client, WEB, "client-webs");
    claims(&stage, &[second]);
    stage.settled();
    let from = |pod: &Pod, address: IpAddr| {
        let local = SocketAddr::new(address, 0);
        let connected = connect_from(pod.netns(), Some(local), SocketAddr::new(client.v4(), 8080), PATIENCE);
        connected.and_then(|mut connection| connection.exchange(PATIENCE))
    };
    assert_eq!(from(&web, second), Ok(()), "whoever receives it knows the device");
    assert_eq!(from(&web, web.v4()), Err(NoAnswer::TimedOut), "the first is the pod's no more");
    assert_eq!(from(&guest, guest.v4()), Err(NoAnswer::TimedOut));
    let to = SocketAddr::new(second, 8080);
    assert_eq!(connect(client.netns(), to, PATIENCE).and_then(|mut one| one.exchange(PATIENCE)), Ok(()));
    assert_eq!(connect(guest.netns(), to, PATIENCE).map(drop), Err(NoAnswer::TimedOut));
}
