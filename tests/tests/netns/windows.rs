//! Exact counts: windows add up to what was sent, whatever becomes of the agent and however small its map is.

use reeve_tests::lab::{Mode, until};
use reeve_tests::stage::counts::{
    FLOW_PATIENCE, SINK, Stream, Sums, WINDOW_PATIENCE, burst, counted_by_processors, datagrams, flags, received, sent,
    windowed,
};
use reeve_tests::stage::{Stage, WEB, shop};
use serde_json::Value;
use std::collections::BTreeSet;

#[test]
fn windows_add_up_to_every_packet_under_traffic_and_over_two_kills() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-exact", 1, "");
    let (allowed, denied) = (Stream::start(&client, &web), Stream::start(&guest, &web));
    for _ in 0..2 {
        let told = |row: &Value| row["event"] == "window" && row["destination"]["port"] == SINK;
        stage.records().wait_for(WINDOW_PATIENCE, told).expect("a window under traffic");
        stage.agent().kill9().expect("killed");
        stage.agent().start_again().expect("started again");
    }
    // However quick the agents were: it is traffic, and some of it comes behind the last of them.
    for stream in [&allowed, &denied] {
        stream.wait_for(500);
    }
    let (allowed, denied) = (allowed.stop(), denied.stop());
    let all = stage.agent().records();
    *stage.records() = all;
    let mut sums = Sums::default();
    sums.check(&mut stage, "what client sent", allowed, sent("client"));
    sums.check(&mut stage, "what guest sent", denied, sent("guest"));
    sums.check(&mut stage, "what web got", allowed, received("allow"));
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(stage.agent().metric("reeve_windows_total", &[("state", "start")]).expect("a metric"), 1.0);
    assert!(stage.agent().metric("reeve_window_rows_total", &[("state", "backfilled")]).expect("a metric") > 0.0);
    assert!(stage.agent().metric("reeve_windows_total", &[("state", "time")]).expect("a metric") > 0.0);
}

#[test]
fn burst_of_one_flow_that_nothing_follows_is_counted_whole() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-burst", 1, "");
    let (allowed, denied) = (burst(&client, &web, 20_000, 5_000), burst(&guest, &web, 20_000, 500));
    let unlooked = counted_by_processors(&stage.node, "RECENT");
    assert!(unlooked > allowed, "{unlooked} packets of twice {allowed} were counted without a look at their flow");
    let mut sums = Sums::default();
    sums.check_within(FLOW_PATIENCE, &mut stage, "what client sent", allowed, sent("client"));
    sums.check_within(FLOW_PATIENCE, &mut stage, "what web got", allowed, received("allow"));
    sums.check_within(FLOW_PATIENCE, &mut stage, "what web did not get", denied, received("deny"));
}

#[test]
fn port_scan_that_overflows_the_map_is_counted_whole_and_its_decider_named() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-scan", 600, "[map-entries]\nEDGES = 16\n");
    let denied = datagrams(&guest, &web, 20_000..20_500, 500);
    let allowed = datagrams(&client, &web, 20_000..20_300, 300);
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    sums.check(&mut stage, "what web got", allowed, received("allow"));
    let overflowed: Vec<&Value> =
        sums.rows.iter().filter(|row| row["flags"].to_string().contains("overflowed")).collect();
    let of_scan = overflowed.iter().find(|row| received("deny")(row)).expect("a reserved row");
    assert_eq!(of_scan["decision"]["default"], "tierDefault", "{of_scan}");
    assert!(of_scan["decision"]["isolating"].to_string().contains("web-clients"), "{of_scan}");
    assert_eq!(of_scan["source"]["owner"], "various", "{of_scan}");
    let state = |state| [("state", state)];
    stage.settled();
    let agent = stage.agent();
    assert!(agent.metric("reeve_datapath_packets_total", &state("edges_overflowed")).expect("a metric") > 500.0);
    assert_eq!(agent.metric("reeve_datapath_packets_total", &state("edges_lost")).expect("a metric"), 0.0);
    assert!(agent.metric("reeve_windows_total", &state("filling")).expect("a metric") > 0.0, "not after 600 s");
}

#[test]
fn window_ends_early_when_its_map_is_filling_and_nothing_overflows() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, _, guest, _sink) = windowed("w-filling", 600, "[map-entries]\nEDGES = 4096\n");
    let denied = datagrams(&guest, &web, 20_000..21_400, 1_400); // a row at each end
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    stage.settled();
    let state = |state| [("state", state)];
    let agent = stage.agent();
    assert!(agent.metric("reeve_windows_total", &state("filling")).expect("a metric") > 0.0, "not after 600 s");
    assert_eq!(agent.metric("reeve_datapath_packets_total", &state("edges_overflowed")).expect("a metric"), 0.0);
}

#[test]
fn interval_without_an_agent_is_backfilled_when_everything_stands_as_it_stood() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-proven", 600, "");
    stage.agent().kill9().expect("killed");
    let (allowed, denied) = (datagrams(&client, &web, 20_000..20_040, 1), datagrams(&guest, &web, 20_000..20_030, 1));
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web got", allowed, received("allow"));
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(flags(&sums, received("deny")), BTreeSet::from(["[\"backfilled\"]".to_owned()]));
    let intervals = |state: &str, stage: &mut Stage| {
        stage.agent().metric("reeve_intervals_total", &[("state", state)]).expect("a metric")
    };
    assert_eq!((intervals("proven", &mut stage), intervals("unproven", &mut stage)), (1.0, 0.0));
    // Control: what is counted from now on is told by who was there.
    let live = datagrams(&guest, &web, 21_000..21_010, 1);
    stage.agent().terminate().expect("ended");
    sums.check(&mut stage, "what web did not get", denied + live, received("deny"));
    assert!(flags(&sums, received("deny")).contains("null"), "{:?}", flags(&sums, received("deny")));
}

#[test]
fn interval_in_which_a_link_was_taken_off_is_unproven_for_its_pod_only() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest, _sink) = windowed("w-unproven", 600, "");
    let ifindex = stage.endpoint(&web).expect("an endpoint")["ifindex"].to_string();
    stage.agent().kill9().expect("killed");
    let denied = datagrams(&guest, &web, 20_000..20_030, 1);
    let pin = stage.node.bpffs().join("reeve/v1/links").join(format!("{ifindex}-to"));
    std::fs::remove_file(pin).expect("removed");
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what guest sent", denied, sent("guest"));
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(flags(&sums, received("deny")), BTreeSet::from(["[\"unproven\"]".to_owned()]));
    assert_eq!(flags(&sums, sent("guest")), BTreeSet::from(["[\"backfilled\"]".to_owned()]));
    let unproven = stage.agent().metric("reeve_intervals_total", &[("state", "unproven")]).expect("a metric");
    assert_eq!(unproven, 1.0);
    assert!(stage.agent().log().contains("nothing proves that every packet"));
    // The new agent has put it back.
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
}

#[test]
fn interval_after_a_lost_checkpoint_is_never_backfilled() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, _, guest, _sink) = windowed("w-lost", 600, "");
    stage.agent().kill9().expect("killed");
    let denied = datagrams(&guest, &web, 20_000..20_030, 1);
    std::fs::remove_file(stage.node.state_directory().join("checkpoint.json")).expect("removed");
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
    assert_eq!(flags(&sums, received("deny")), BTreeSet::from(["[\"unproven\"]".to_owned()]));
}

#[test]
fn counts_that_cannot_be_written_stay_in_the_kernel_until_they_can() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, guest) = shop("w-sink", Mode::Routed);
    stage.denies(&guest, &web, WEB, "web-clients");
    stage.allows(&client, &web, WEB, "web-clients");
    stage.agent().terminate().expect("ended");
    let denied = datagrams(&guest, &web, 20_000..20_030, 1);
    // The device that is always full takes no record.
    let (file, away) = (stage.node.records_file(), stage.node.run_directory().with_file_name("away.jsonl"));
    std::fs::rename(&file, &away).expect("moved away");
    std::os::unix::fs::symlink("/dev/full", &file).expect("a sink that is full");
    stage.agent().start_again().expect("started again");
    let lost = until("lost records", WINDOW_PATIENCE, || {
        Ok((stage.agent().metric("reeve_records_lost_total", &[])? > 0.0).then_some(()))
    });
    lost.expect("the sink takes nothing");
    stage.agent().terminate().expect("ended");
    std::fs::remove_file(&file).expect("removed");
    std::fs::rename(&away, &file).expect("moved back");
    stage.agent().start_again().expect("started again");
    let mut sums = Sums::default();
    sums.check(&mut stage, "what web did not get", denied, received("deny"));
}
