//! Pods that ran before the agent: attached without cutting what policies allow, and without sparing what they deny.

use crate::interfaces::rewire_with_index;
use reeve_tests::lab::{Mode, Pod};
use reeve_tests::require::{Capability, skip_unless};
use reeve_tests::stage::{RECORD_PATIENCE, Stage, WEB};
use reeve_tests::traffic::{self, NoAnswer, PATIENCE, Tcp};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

pub(crate) fn skipped() -> bool {
    crate::skipped() || skip_unless(&[Capability::Nat])
}

/// Loads rules into the node, which makes its kernel track connections.
pub(crate) fn rules(stage: &Stage, translations: &str) {
    let text = format!(
        "table inet lab {{\n chain track {{ type filter hook prerouting priority 0; ct state new counter; }}\n \
         chain translate {{ type nat hook prerouting priority -100; {translations} }}\n}}\n"
    );
    let path = stage.lab.directory().join("rules.nft");
    std::fs::write(&path, text).expect("written");
    let mut nft = Command::new("nft");
    nft.arg("-f").arg(path).stdin(Stdio::null());
    let status = stage.node.netns().run(|| nft.status()).expect("entered").expect("ran");
    assert!(status.success(), "{status}");
}

/// `web` is reached by `client` only and begins nothing; nobody may begin anything with `client`.
pub(crate) fn closed_shop(name: &str) -> (Stage, Pod, Pod, Pod) {
    let mut stage = Stage::new(name, Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    let guest = stage.pod("guest", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    let silent = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Egress"] });
    stage.policy("web-silent", &silent);
    let shut = json!({ "podSelector": { "matchLabels": { "role": "client" } }, "policyTypes": ["Ingress"] });
    stage.policy("client-shut", &shut);
    (stage, web, client, guest)
}

pub(crate) fn bind(pod: &Pod, port: u16) -> UdpSocket {
    let socket = pod.netns().run(|| UdpSocket::bind((pod.v4(), port))).expect("entered").expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket
}

/// Whether a datagram sent from here to there comes through.
pub(crate) fn passes(from: &UdpSocket, to: &UdpSocket, target: SocketAddr) -> bool {
    from.send_to(b"word", target).expect("sent");
    let mut bytes = [0; 16];
    to.recv(&mut bytes).is_ok_and(|length| &bytes[..length] == b"word")
}

/// A connection that `pod` holds to a server.
fn connection(pod: &Pod, to: IpAddr) -> Tcp {
    let mut connection = traffic::connect(pod.netns(), SocketAddr::new(to, 8080), PATIENCE).expect("connected");
    connection.exchange(PATIENCE).expect("nobody enforces anything yet");
    connection
}

fn from_before(record: &Value) -> bool {
    record["event"] == "rejudged" && record["previous"]["default"] == "establishedBefore"
}

fn seeded(stage: &mut Stage) -> f64 {
    stage.agent().metric("reeve_seeded_flows_total", &[("state", "seeded")]).expect("a metric")
}

#[test]
fn answer_to_a_flow_from_before_passes_though_nobody_asks_again() {
    if skipped() {
        return;
    }
    let (mut stage, web, client, _) = closed_shop("b-answer");
    rules(&stage, "");
    let (asks, answers, other) = (bind(&client, 5_000), bind(&web, 9_000), bind(&web, 9_001));
    let (client_at, web_at) = (asks.local_addr().expect("bound"), answers.local_addr().expect("bound"));
    assert!(passes(&asks, &answers, web_at));
    stage.start();
    assert!(seeded(&mut stage) >= 2.0, "both ends of the flow");
    assert!(passes(&answers, &asks, client_at), "the flow was begun by the client, who may");
    assert!(!passes(&other, &asks, client_at), "control: what web begins itself is denied");
    assert!(passes(&asks, &answers, web_at));
    let judged = |record: &Value| from_before(record) && record["destination"]["pod"] == "web";
    let record = stage.records().wait_for(RECORD_PATIENCE, judged).expect("judged when it was seen again");
    assert!(record["decision"].to_string().contains("web-clients") || record["direction"] == "egress", "{record}");
}

#[test]
fn flow_that_zones_tell_as_begun_by_both_ends_is_believed_of_neither() {
    if skipped() {
        return;
    }
    let (mut stage, web, client, guest) = closed_shop("b-zones");
    // What each pod sends is tracked by itself: the answer is a connection of its own.
    let zone = |pod: &Pod, number: u8| format!("iifname \"{}\" ct zone set {number};", pod.host_side());
    let zones = format!(
        "}}\n chain zones {{ type filter hook prerouting priority raw; {} {} }}\n chain rest {{ ",
        zone(&client, 1),
        zone(&web, 2)
    );
    rules(&stage, &zones);
    let (asks, answers) = (bind(&client, 5_000), bind(&web, 9_000));
    let (client_at, web_at) = (asks.local_addr().expect("bound"), answers.local_addr().expect("bound"));
    assert!(passes(&asks, &answers, web_at) && passes(&answers, &asks, client_at), "nobody enforces anything yet");
    stage.start();
    let contradictory =
        stage.agent().metric("reeve_seeded_flows_total", &[("state", "contradictory")]).expect("a metric");
    assert!((contradictory - 2.0).abs() < 0.5, "one at each end: {contradictory}");
    assert!(!passes(&answers, &asks, client_at), "web may begin nothing, and nothing proves that it answers");
    assert!(passes(&asks, &answers, web_at), "control: client may begin it");
    assert!(passes(&answers, &asks, client_at), "and now it is known who did");
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn answer_through_a_service_from_before_passes_at_both_ends() {
    if skipped() {
        return;
    }
    let (mut stage, web, client, _) = closed_shop("b-service");
    rules(&stage, &format!("ip daddr 10.96.0.10 udp dport 80 dnat ip to {}:9000;", web.v4()));
    let (asks, answers, other) = (bind(&client, 5_000), bind(&web, 9_000), bind(&web, 9_001));
    let client_at = asks.local_addr().expect("bound");
    let service: SocketAddr = "10.96.0.10:80".parse().expect("an address");
    assert!(passes(&asks, &answers, service), "the Service is translated");
    stage.start();
    assert!(passes(&answers, &asks, client_at), "web answers to client, and client hears the Service");
    assert!(!passes(&other, &asks, client_at), "control: what web begins itself is denied");
    assert!(passes(&asks, &answers, service));
}

#[test]
fn connection_from_before_goes_on_if_its_own_direction_is_allowed_and_is_cut_if_not() {
    if skipped() {
        return;
    }
    let mut stage = Stage::new("b-direction", Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[("role", "client")]);
    let guest = stage.pod("guest", &[]);
    stage.allow_from("web-clients", ("app", "web"), ("role", "client"));
    rules(&stage, "");
    let (mut allowed, mut denied) = (connection(&client, web.v4()), connection(&guest, web.v4()));
    // web may begin connections with guest, so only the direction of the live one tells that it is denied.
    let mut begun_by_web = connection(&web, guest.v4());
    stage.start();
    assert_eq!(denied.exchange(PATIENCE), Err(NoAnswer::TimedOut), "its direction is denied");
    assert_eq!(allowed.exchange(PATIENCE), Ok(()), "its direction is allowed");
    assert_eq!(begun_by_web.exchange(PATIENCE), Ok(()), "and so is this one's");
    let port = denied.local().port();
    let cut = |record: &Value| from_before(record) && record["reason"] == "flowCut" && record["source"]["port"] == port;
    let record = stage.records().wait_for(RECORD_PATIENCE, cut).expect("the cut is told");
    assert_eq!((&record["direction"], &record["verdict"]), (&json!("ingress"), &json!("deny")), "{record}");
    assert_eq!(record["decision"]["default"], "tierDefault", "{record}");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn connection_of_the_node_from_before_goes_on() {
    if skipped() {
        return;
    }
    let (mut stage, web, client, guest) = closed_shop("b-node");
    rules(&stage, "");
    let to = SocketAddr::new(web.v4(), 8080);
    let mut probe = traffic::connect(stage.node.netns(), to, PATIENCE).expect("connected");
    assert_eq!(probe.exchange(PATIENCE), Ok(()));
    stage.start();
    assert_eq!(probe.exchange(PATIENCE), Ok(()), "what the own node began is let in");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn pod_that_is_younger_than_the_agent_is_never_taken_for_one_from_before() {
    if skipped() {
        return;
    }
    let (mut stage, web, _, guest) = closed_shop("b-younger");
    rules(&stage, "");
    stage.start();
    let agent = i32::try_from(stage.agent().process_id()).ok().and_then(Pid::from_raw).expect("a process");
    let before = seeded(&mut stage);
    // The agent sleeps while the pod comes and makes a connection that policies deny.
    kill_process(agent, Signal::STOP).expect("stopped");
    let late = stage.pod("late", &[("app", "web")]);
    let mut live = connection(&late, guest.v4());
    kill_process(agent, Signal::CONT).expect("continued");
    stage.settled();
    assert_eq!(seeded(&mut stage).to_bits(), before.to_bits(), "nothing of it is believed");
    assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut));
    stage.denies(&late, &guest, WEB, "web-silent");
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn pod_on_the_number_of_an_interface_from_before_is_not_taken_for_one_from_before() {
    if skipped() {
        return;
    }
    let (mut stage, web, _, guest) = closed_shop("b-number");
    rules(&stage, "");
    stage.node.netns().ip(&["link add before index 7000 type veth peer name other".to_owned()]).expect("an interface");
    stage.start();
    let agent = i32::try_from(stage.agent().process_id()).ok().and_then(Pid::from_raw).expect("a process");
    let before = seeded(&mut stage);
    // The agent sees neither that there is no such interface, nor what the pod does before it is attached.
    kill_process(agent, Signal::STOP).expect("stopped");
    stage.node.netns().ip(&["link del before".to_owned()]).expect("removed");
    let late = stage.pod("late", &[("app", "web")]);
    rewire_with_index(&stage, &late, 7000);
    let mut live = connection(&late, guest.v4());
    kill_process(agent, Signal::CONT).expect("continued");
    stage.settled();
    assert_eq!(stage.endpoint(&late).expect("an endpoint")["ifindex"], 7000);
    assert_eq!(seeded(&mut stage).to_bits(), before.to_bits(), "nothing of it is believed");
    assert_eq!(live.exchange(PATIENCE), Err(NoAnswer::TimedOut));
    stage.denies(&late, &guest, WEB, "web-silent");
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn restarted_agent_seeds_nothing_anew() {
    if skipped() {
        return;
    }
    let (mut stage, web, client, guest) = closed_shop("b-restart");
    rules(&stage, "");
    let mut live = connection(&client, web.v4());
    stage.start();
    assert!(seeded(&mut stage) > 0.0);
    stage.agent().kill9().expect("killed");
    stage.agent().start_again().expect("started again");
    assert!(seeded(&mut stage) < 0.5, "its endpoints were enforced before");
    assert_eq!(live.exchange(PATIENCE), Ok(()));
    stage.denies(&guest, &web, WEB, "web-clients");
}
