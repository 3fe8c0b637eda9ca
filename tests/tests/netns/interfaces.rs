//! Interfaces that change their names, go, come back and take over each other's numbers while the agent runs.

use crate::life::Flow;
use reeve_tests::lab::{Mode, Pod, until};
use reeve_tests::stage::{Stage, WEB, get, shop};
use reeve_tests::traffic::{NoAnswer, PATIENCE, connect};
use std::net::SocketAddr;
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
fn rewire_with_index(stage: &Stage, pod: &Pod, ifindex: u64) {
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
