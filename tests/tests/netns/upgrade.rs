//! Agents whose maps have another layout or size than those that an earlier agent pinned.

use crate::before::{self, bind, closed_shop, passes};
use crate::life::Flow;
use reeve_tests::lab::AgentOptions;
use reeve_tests::stage::counts::{
    FLOW_PATIENCE, SINK, Stream, Sums, burst, counted_by_processors, datagrams, flags, received, windowed,
};
use reeve_tests::stage::{Stage, WEB};
use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Sizes of maps for the next agent.
fn sizes(stage: &Stage, text: &str) -> AgentOptions {
    let path = stage.lab.directory().join("settings.toml");
    std::fs::write(&path, format!("[map-entries]\n{text}\n")).expect("written");
    AgentOptions { arguments: vec!["--config".to_owned(), path.display().to_string()], ..AgentOptions::default() }
}

fn pins(stage: &Stage) -> PathBuf {
    stage.node.bpffs().join("reeve/v1/maps")
}

#[track_caller]
fn check_fate(stage: &mut Stage, map: &str, fate: &str) {
    let labels = [("map", map), ("state", fate)];
    let found = stage.agent().metric("reeve_migrated_maps_total", &labels).expect("a metric");
    assert!((found - 1.0).abs() < 0.5, "{map} {fate}: {found}");
    let aside = pins(stage).join(format!("{map}-replaced"));
    assert!(!aside.exists(), "{} is left behind", aside.display());
}

#[test]
fn flow_table_of_another_size_keeps_its_flows() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, _) = closed_shop("u-flows");
    let small = sizes(&stage, "FLOWS = 4096");
    stage.start_with(small);
    let (asks, answers, other) = (bind(&client, 5_000), bind(&web, 9_000), bind(&web, 9_001));
    let (client_at, web_at) = (asks.local_addr().expect("bound"), answers.local_addr().expect("bound"));
    assert!(passes(&asks, &answers, web_at));
    stage.agent().kill9().expect("killed");
    sizes(&stage, "FLOWS = 8192");
    stage.agent().start_again().expect("started again");
    assert!(passes(&answers, &asks, client_at), "the answer belongs to a flow that was allowed");
    assert!(!passes(&other, &asks, client_at), "control: what web begins itself is denied");
    check_fate(&mut stage, "FLOWS", "copied");
}

#[test]
fn flow_table_of_another_layout_is_told_by_connection_tracking() {
    if before::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = closed_shop("u-layout");
    before::rules(&stage, "");
    stage.start();
    let (asks, answers, other) = (bind(&client, 5_000), bind(&web, 9_000), bind(&web, 9_001));
    let (client_at, web_at) = (asks.local_addr().expect("bound"), answers.local_addr().expect("bound"));
    assert!(passes(&asks, &answers, web_at));
    stage.agent().kill9().expect("killed");
    let pin = pins(&stage).join("FLOWS");
    std::fs::remove_file(&pin).expect("removed");
    let mut create = Command::new("bpftool");
    create.args(["map", "create"]).arg(&pin).stdin(Stdio::null());
    create.args(["type", "hash", "key", "32", "value", "8", "entries", "64", "name", "FLOWS"]);
    assert!(create.status().expect("bpftool runs").success());
    stage.agent().start_again().expect("started again");
    assert!(passes(&answers, &asks, client_at), "the kernel knows who began");
    assert!(!passes(&other, &asks, client_at), "control: what web begins itself is denied");
    check_fate(&mut stage, "FLOWS", "refilled");
    assert!(stage.agent().metric("reeve_seeded_flows_total", &[("state", "seeded")]).expect("a metric") >= 2.0);
    stage.denies(&guest, &web, WEB, "web-clients");
}

#[test]
fn policy_maps_of_another_size_are_filled_before_anything_is_judged_by_them() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, sink) = windowed("u-policy", 600, "");
    let live = Flow::start(stage.allows(&client, &web, WEB, "web-clients").connection.expect("an open connection"));
    let denied = Stream::start(&guest, &web);
    let before = stage.settled();
    stage.agent().kill9().expect("killed");
    let path = stage.lab.directory().join("settings.toml");
    std::fs::write(path, "[map-entries]\nPEERS = 1024\n").expect("written");
    stage.agent().start_again().expect("started again");
    live.check_unbroken();
    assert!(denied.stop() > 10, "hardly traffic");
    sink.set_nonblocking(true).expect("set");
    assert!(sink.recv(&mut [0; 16]).is_err(), "not one of guest's datagrams came through");
    assert_eq!(datagrams(&client, &web, 9_500..9_501, 1), 1);
    sink.set_nonblocking(false).expect("set");
    assert!(sink.recv(&mut [0; 16]).is_ok(), "control: client's does");
    for map in ["PEERS", "ENDPOINTS", "CONFIG"] {
        check_fate(&mut stage, map, "refilled");
    }
    assert!(stage.settled() > before, "revisions never begin anew");
    let adopted = stage.agent().metric("reeve_adopted_links", &[]).expect("a metric");
    assert!((adopted - 3.0).abs() < 0.5, "{adopted}");
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn pod_that_went_from_the_facts_during_an_upgrade_stays_closed() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("u-closed", 600, "");
    stage.agent().kill9().expect("killed");
    guest.remove_manifest().expect("removed");
    let path = stage.lab.directory().join("settings.toml");
    std::fs::write(path, "[map-entries]\nPEERS = 1024\n").expect("written");
    stage.agent().start_again().expect("started again");
    let target = SocketAddr::new(client.v4(), SINK);
    let ear: UdpSocket = bind(&client, SINK);
    assert!(!passes(&bind(&guest, 9_000), &ear, target), "a device without a pod in the facts sends nothing");
    assert!(passes(&bind(&web, 9_100), &ear, target), "control: a pod that is there does");
}

#[test]
fn counts_in_a_map_of_another_size_are_told_whole() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("u-counts", 600, "");
    stage.agent().kill9().expect("killed");
    let (allowed, denied) = (datagrams(&client, &web, 20_000..20_040, 1), datagrams(&guest, &web, 20_000..20_030, 1));
    let path = stage.lab.directory().join("settings.toml");
    std::fs::write(path, "[map-entries]\nEDGES = 4096\nFLOWS = 4096\n").expect("written");
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web got", allowed, received("allow"));
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(flags(&sums, received("deny")), BTreeSet::from(["[\"backfilled\"]".to_owned()]));
    check_fate(&mut stage, "EDGES", "copied");
}

#[test]
fn counts_of_processors_in_a_map_that_was_moved_away_are_told_whole() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, _, _sink) = windowed("u-recent", 1, "");
    stage.agent().kill9().expect("killed");
    let sent = burst(&client, &web, 20_000, 5_000);
    // As an agent leaves it that finds another layout and is ended in the middle.
    std::fs::rename(pins(&stage).join("RECENT"), pins(&stage).join("RECENT-replaced")).expect("moved away");
    let unlooked = counted_by_processors(&stage.node, "RECENT-replaced");
    assert!(unlooked > sent, "{unlooked} packets of twice {sent} were counted without a look at their flow");
    stage.agent().start_again().expect("started again");
    Sums::default().check_within(FLOW_PATIENCE, &mut stage, "what web got", sent, received("allow"));
    check_fate(&mut stage, "RECENT", "copied");
}
