//! What the agent holds by is taken away from under it: its bpffs, a link.

use crate::{PATIENCE, check_nothing_leaked, check_unready, metric};
use reeve_tests::lab::{AgentOptions, until};
use reeve_tests::stage::counts::{Traffic, counted, counted_with};
use reeve_tests::stage::{WEB, get};
use reeve_tests::traffic::NoAnswer;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::process::{Command, Stdio};

#[test]
fn bpffs_that_is_unmounted_is_told_and_used_again_when_it_is_back() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = counted("f-bpffs", 1, "");
    let before = stage.node.objects().expect("what is held");
    let traffic = Traffic::start(&web, &client, &guest);
    unmount(stage.node.bpffs(), UnmountFlags::DETACH).expect("unmounted");
    check_unready(&mut stage, "is on no bpffs any more");
    stage.allows(&client, &web, WEB, "web-clients");
    stage.denies(&guest, &web, WEB, "web-clients");
    // A pod that comes now has no pin either, and is enforced all the same.
    let late = stage.pod("late", &[("app", "web")]);
    let attached = until("enforcement", PATIENCE, || {
        Ok((get(&guest, &late) == Err(NoAnswer::TimedOut) && get(&client, &late) == Ok(())).then_some(()))
    });
    attached.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.agent().log()));
    traffic.denied.wait_for(500);
    mount("bpffs", stage.node.bpffs(), "bpf", MountFlags::empty(), None).expect("mounted again");
    stage.agent().wait_ready().expect("ready again");
    assert!(metric(&mut stage, "reeve_drift_total", &[("what", "pin")]) > 0.0);
    late.remove().expect("removed");
    stage.settled();
    // With its pins it outlives the agent again, and the next one takes over without a gap.
    let pinned = until("every pin", PATIENCE, || Ok((stage.node.objects()?.pins == before.pins).then_some(())));
    pinned.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.agent().log()));
    stage.agent().kill9().expect("killed");
    assert_eq!((get(&guest, &web), get(&client, &web)), (Err(NoAnswer::TimedOut), Ok(())));
    stage.agent().start_again().expect("started again");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    traffic.stop().check_exact(&mut stage);
    check_nothing_leaked(&stage.node, &before);
}

#[test]
fn link_that_is_detached_under_traffic_leaks_what_is_counted_and_no_more() {
    if crate::skipped() {
        return;
    }
    let rarely = ["--attest-interval", "3600"].map(str::to_owned).to_vec();
    let options = AgentOptions { arguments: rarely, ..AgentOptions::default() };
    let (mut stage, web, client, guest) = counted_with("f-link", 1, "", options, |_| {});
    let before = stage.node.objects().expect("what is held");
    let traffic = Traffic::start(&web, &client, &guest);
    traffic.denied.wait_for(100);
    let ifindex = stage.endpoint(&web).expect("an endpoint")["ifindex"].to_string();
    let pin = stage.node.bpffs().join("reeve/v1/links").join(format!("{ifindex}-to"));
    let mut detach = Command::new("bpftool");
    detach.args(["link", "detach", "pinned"]).arg(&pin).stdin(Stdio::null()).stdout(Stdio::null());
    assert!(detach.status().expect("bpftool runs").success());
    let noticed = until("the drift", PATIENCE, || {
        Ok((stage.agent().metric("reeve_drift_total", &[("what", "attached")])? > 0.0).then_some(()))
    });
    noticed.expect("it is noticed");
    assert_eq!(stage.problems("had been taken off").len(), 1);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    traffic.denied.wait_for(100);
    let account = traffic.stop();
    println!("{account:?}");
    // What came while nobody judged there is told at the sender's end, and only there.
    assert_eq!(account.delivered, account.allowed);
    *stage.records() = stage.agent().records();
    let mut sums = reeve_tests::stage::counts::Sums::default();
    sums.check(&mut stage, "what guest sent", account.denied, reeve_tests::stage::counts::sent("guest"));
    let missed = account.denied - account.leaked;
    sums.check(&mut stage, "what web did not get", missed, reeve_tests::stage::counts::received("deny"));
    check_nothing_leaked(&stage.node, &before);
}
