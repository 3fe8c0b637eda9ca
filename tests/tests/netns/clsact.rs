//! Enforcement by clsact filters, as on kernels without TCX.

use crate::life::{Flow, run, shop_with, standing};
use reeve_policy::model::Verdict;
use reeve_tests::lab::{Pod, until};
use reeve_tests::stage::counts::{SINK, Stream, datagrams};
use reeve_tests::stage::{Stage, WEB, get};
use reeve_tests::traffic::NoAnswer;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::Duration;

const CLSACT: [&str; 2] = ["--attach", "clsact"];
const TCX: [&str; 2] = ["--attach", "tcx"];

/// Our filters at one side of a pod's device.
fn filters(stage: &Stage, pod: &Pod, side: &str) -> usize {
    let mut tc = Command::new("tc");
    tc.args(["filter", "show", "dev", pod.host_side(), side]).stdin(Stdio::null());
    let output = stage.node.netns().run(|| tc.output()).expect("entered").expect("ran");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    shown.lines().filter(|line| line.contains("reeve_") && line.contains("direct-action")).count()
}

/// Names of the links that are pinned.
fn pins(stage: &Stage) -> Vec<String> {
    let links = stage.node.bpffs().join("reeve/v1/links").read_dir().expect("a directory");
    links.map(|link| link.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

fn ear(web: &Pod) -> UdpSocket {
    let ear = web.netns().run(|| UdpSocket::bind((web.v4(), SINK))).expect("entered").expect("bound");
    ear.set_nonblocking(true).expect("set");
    ear
}

/// Ends the agent, starts another one and checks that nobody noticed.
#[track_caller]
fn check_no_gap(stage: &mut Stage, web: &Pod, client: &Pod, guest: &Pod, again: &[&str]) {
    let live = Flow::start(stage.allows(client, web, WEB, "web-clients").connection.expect("an open connection"));
    let (ear, denied) = (ear(web), Stream::start(guest, web));
    stage.agent().kill9().expect("killed");
    assert_eq!(get(guest, web), Err(NoAnswer::TimedOut), "denied stays denied without an agent");
    let arguments = again.iter().map(|argument| (*argument).to_owned()).collect();
    stage.start_with(reeve_tests::lab::AgentOptions { arguments, ..Default::default() });
    live.check_unbroken();
    assert!(denied.stop() > 10, "hardly traffic");
    assert!(ear.recv(&mut [0; 16]).is_err(), "not one of guest's datagrams came through");
    assert_eq!(datagrams(client, web, 9_500..9_501, 1), 1);
    let heard = until("client's datagram", Duration::from_secs(2), || Ok(ear.recv(&mut [0; 16]).ok()));
    heard.expect("control: client's does");
}

#[test]
fn clsact_filters_judge_as_links_do_and_are_replaced_in_place() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("c-core", &CLSACT);
    for v6 in [false, true] {
        stage.check(&guest, &web, WEB, v6, Verdict::Deny, "web-clients");
        stage.check(&client, &web, WEB, v6, Verdict::Allow, "web-clients");
        stage.check(&web, &guest, WEB, v6, Verdict::Allow, "noPolicySelects");
    }
    assert_eq!(pins(&stage), ["host-in"], "no device has a link; the cgroup has no other way");
    check_no_gap(&mut stage, &web, &client, &guest, &CLSACT);
    for side in ["ingress", "egress"] {
        assert_eq!(filters(&stage, &web, side), 1, "one filter at {side}");
    }
    let adopted = stage.agent().metric("reeve_adopted_links", &[]).expect("a metric");
    assert!((adopted - 3.0).abs() < 0.5, "{adopted}");
    stage.denies(&guest, &web, WEB, "web-clients");
    let mut live = stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection");
    client.set_labels(&[]).expect("relabelled");
    stage.settled();
    live.exchange(Duration::from_millis(400)).expect_err("cut");
}

#[test]
fn uninstall_removes_clsact_filters() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("c-uninstall", &CLSACT);
    stage.denies(&guest, &web, WEB, "web-clients");
    assert_eq!(filters(&stage, &web, "egress"), 1);
    stage.agent().terminate().expect("ended");
    assert_eq!(get(&guest, &web), Err(NoAnswer::TimedOut), "an agent that ends frees nothing");
    assert_eq!(standing(&stage, &[]), ["reeve_host_in".to_owned()].into());
    let done = run(&stage, &["uninstall"]);
    assert_eq!(standing(&stage, &[]), [].into(), "nothing stands at the cgroup any more, at once");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!((get(&guest, &web), get(&client, &web)), (Ok(()), Ok(())));
    for side in ["ingress", "egress"] {
        assert_eq!(filters(&stage, &web, side), 0, "{side}");
    }
}

#[test]
fn agent_changes_from_links_to_filters_and_back_without_a_gap() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop_with("c-change", &TCX);
    check_no_gap(&mut stage, &web, &client, &guest, &CLSACT);
    assert_eq!(filters(&stage, &web, "egress"), 1);
    assert_eq!(pins(&stage), ["host-in"], "no device has a link; the cgroup has no other way");
    check_no_gap(&mut stage, &web, &client, &guest, &TCX);
    assert_eq!(filters(&stage, &web, "egress"), 0);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}
